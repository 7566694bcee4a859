"""On which file system a folder is, as far as the system tells."""

import os
from typing import Final

# Of disks of this machine, and of its memory. Whatever is not here may be slow, or never answer.
_LOCAL: Final = frozenset(
    (
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "jfs",
        "reiserfs",
        "bcachefs",
        "tmpfs",
        "overlay",
    )
)
_MOUNTS: Final = "/proc/self/mountinfo"  # see proc(5)


def is_local(path: str) -> bool:
    """Whether a folder is on a disk of this machine; ``False`` where nobody knows."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
        device = os.stat(_nearest(path)).st_dev
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = {fields[fields.index("-") + 1] for fields in mounts if fields[2] == number}
    return bool(kinds) and kinds <= _LOCAL


def _nearest(path: str) -> str:
    """The path, or the folder of it that is there already."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path

"""Who owns a claim, and whether that is a process of this machine that has died.

An owner's name says which boot of which machine it belongs to, in which PID namespace, and which
process it is: a PID alone comes round again. Of a process elsewhere nothing is known but its lease.
"""

import functools
import json
import os
import platform
import uuid
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def new_owner() -> str:
    """A name for a store that is opening: of this process, and of no other store in it."""
    pid = os.getpid()
    return json.dumps([platform.node(), *_place(), pid, _started(pid), uuid.uuid4().hex[:12]])


def is_gone(owner: str) -> bool:
    """Whether an owner was a process of this machine that has ended since.

    ``False`` where that cannot be told: on another machine, in another container, or on a system
    without ``/proc``. Its lease decides then.
    """
    named = _parsed(owner)
    if named is None:
        return False
    (boot, space), pid, started = named
    if (boot, space) != _place() or not boot or not started:
        return False
    return _started(pid) != started


def is_alive(owner: str) -> bool:
    """Whether an owner is a process of this machine that has not ended, be it paused."""
    named = _parsed(owner)
    return named is not None and named[0] == _place() and _started(named[1]) == named[2] != ""


def _parsed(owner: str) -> tuple[tuple[str, str], int, str] | None:
    """What a name says; ``None`` where it is no name of this form, whoever wrote it."""
    try:
        _, boot, space, pid, started, _ = json.loads(owner)
    except (ValueError, TypeError):
        return None
    if not (isinstance(pid, int) and all(isinstance(x, str) for x in (boot, space, started))):
        return None
    return (boot, space), pid, started


def _place() -> tuple[str, str]:
    """The boot of the machine, and the PID namespace: within both, a PID means one process."""
    return _boot(), _namespace()


@functools.cache
def _boot() -> str:
    return _read(_PROC / "sys/kernel/random/boot_id").strip()


def _namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty for one that has ended."""
    # proc(5): the fields after the command's name, which may hold blanks and brackets itself.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie runs nothing any more
        return ""
    return fields[19]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""

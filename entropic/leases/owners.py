"""Who owns a claim, and whether that is a process of this machine that has died.

An owner's name says which boot of which machine it belongs to, in which namespaces, and which
process it is: a PID alone comes round again. Of a process elsewhere nothing is known but its lease;
and of one that cannot be looked at, neither: it is gone only if that is known for certain.
"""

import functools
import json
import os
import platform
import uuid
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")

# The boot, the PID namespace and the time namespace: within all three, a PID and the time at which
# it began mean one process.
_Place = list[str]


def new_owner() -> str:
    """A name for a store that is opening: of this process, and of no other store in it."""
    pid = os.getpid()
    return json.dumps([platform.node(), _place(), pid, _began(), uuid.uuid4().hex[:12]])


def described(owner: str) -> str:
    """An owner for people: which process of which machine."""
    try:
        node, _, pid, _, _ = json.loads(owner)
    except (ValueError, TypeError, RecursionError):
        return owner
    return f"process {pid} of {node}"


def is_gone(owner: str) -> bool:
    """Whether an owner was a process of this machine that has ended since.

    ``False`` where that cannot be told: on another machine, in another container, on a system
    without ``/proc``, or while no file can be opened. Its lease decides then.
    """
    return _is_known_to_have_ended(owner) is True


def is_alive(owner: str) -> bool:
    """Whether an owner is a process of this machine that is not known to have ended.

    It may be paused.
    """
    return _is_known_to_have_ended(owner) is False


def _is_known_to_have_ended(owner: str) -> bool | None:
    """Whether a process of this machine is; ``None`` of any other."""
    named = _parsed(owner)
    if named is None:
        return None
    place, pid, began = named
    return _has_ended(pid, began) if place == _place() else None


def _parsed(owner: str) -> tuple[_Place, int, str] | None:
    """What a name says; ``None`` where it is no such name, or its process could not see itself."""
    try:
        _, place, pid, began, _ = json.loads(owner)
    except (ValueError, TypeError, RecursionError):
        return None
    if not (isinstance(place, list) and isinstance(pid, int) and isinstance(began, str)):
        return None
    return place, pid, began


def _place() -> _Place | None:
    """Where this process is; ``None`` where that is not known."""
    try:
        # Another namespace's /proc shows other processes under the same numbers.
        if os.readlink(_PROC / "self") != str(os.getpid()):
            return None
        return [_boot(), os.readlink(_PROC / "self/ns/pid"), _time_namespace()]
    except OSError:
        return None


@functools.cache
def _boot() -> str:
    return _read(_PROC / "sys/kernel/random/boot_id").strip()


def _time_namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/time")
    except FileNotFoundError:  # before Linux 5.6, all have the same time
        return ""


def _began() -> str | None:
    """When this process began, in ticks since the boot."""
    try:
        return _stat(os.getpid())[1]
    except (OSError, IndexError):
        return None


def _has_ended(pid: int, began: str) -> bool:
    try:
        state, since = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return _is_nobodys(pid)
    except (OSError, IndexError):  # out of descriptors, for instance
        return False
    return state in "ZX" or since != began  # a zombie runs nothing any more


def _is_nobodys(pid: int) -> bool:
    """Whether no process has a number: /proc may hide (hidepid) those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _stat(pid: int) -> tuple[str, str]:
    """The state of a process, and when it began."""
    # proc(5): the fields after the command's name, which may hold blanks and brackets itself.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return fields[0], fields[19]


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")

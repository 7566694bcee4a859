"""What lies beside a finished staged result: all that it takes to publish it after a crash.

It is plain JSON, and whoever can write to the results folder can write one. So it is read with
suspicion: nothing of it is executed, and no path of it is used.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from entropic.artifacts.moves import read_plain
from entropic.artifacts.stage import Stage, Staged

FORMAT: Final = 1

# Parameters and custom data are in it: large, but not without end.
_MOST_BYTES: Final = 256 << 20

_LARGEST: Final = 1 << 64  # of file systems' own numbers

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A finished run.

    Attributes:
        nonce: Of the cache that staged it.
        id: The run id.
        has_own_id: Whether the caller chose it.
        token: The token that it was run under.
        owner: Who ran it.
        values: The parameters, as plain JSON.
        custom_data: What goes to the row beside ``elapsed_seconds``.
        name: The result's name in its stage.
        elapsed_seconds: Of the runner alone.
        started_at: Seconds since 1970.
        host: The machine it ran on.
        staged: The result.
    """

    nonce: str
    id: str
    has_own_id: bool
    token: int
    owner: str
    values: dict[str, Any]
    custom_data: dict[str, Any]
    name: str
    elapsed_seconds: float
    started_at: float
    host: str
    staged: Staged

    def as_json(self) -> dict[str, Any]:
        """What is written."""
        about = {field.name: getattr(self, field.name) for field in fields(self)}
        staged = {field.name: getattr(self.staged, field.name) for field in fields(Staged)}
        return {"format": FORMAT, **about, "staged": staged}


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "nonce": (str,),
    "id": (str,),
    "has_own_id": (bool,),
    "token": (int,),
    "owner": (str,),
    "values": (dict,),
    "custom_data": (dict,),
    "name": (str,),
    "elapsed_seconds": (int, float),
    "started_at": (int, float),
    "host": (str,),
    "staged": (dict,),
}

_STAGED_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "size": (int,),
    "is_folder": (bool,),
    "companions": (list,),
    "digest": (str, type(None)),
    "inode": (int,),
    "mtime_ns": (int,),
}


def read_sidecar(stage: Stage) -> Sidecar | None:
    """The sidecar of a stage; ``None`` where there is none, or none that can be believed."""
    try:
        found = json.loads(_read(stage), parse_constant=_infinite)
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        return None
    staged: Any = found.get("staged")
    if not (_is_like(found, _KINDS) and _is_like(staged, _STAGED_KINDS)):
        return None
    if found["name"] != stage.name or not all(isinstance(c, str) for c in staged["companions"]):
        return None
    companions = tuple(staged["companions"])
    times = {name: float(found[name]) for name in ("elapsed_seconds", "started_at")}
    return Sidecar(**{**found, **times, "staged": Staged(**{**staged, "companions": companions})})


def _is_like(found: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == kinds.keys()
        and all(isinstance(found[name], kind) for name, kind in kinds.items())
        and all(_can_be_stored(found[name]) for name in kinds)
    )


def _can_be_stored(value: Any) -> bool:
    """Whether a database takes it; of lists and objects others know more."""
    if isinstance(value, str):
        return "\0" not in value and not _SURROGATE.search(value)
    return not isinstance(value, int | float) or -_LARGEST < value < _LARGEST


def _infinite(name: str) -> float:
    """The constants that Python's JSON has beyond the standard's; NaN is nobody's."""
    if name == "NaN":
        raise ValueError(name)
    return float(name)


def _read(stage: Stage) -> bytes:
    """A regular file's content, in a real folder.

    Raises:
        OSError: It is none, or too large.
    """
    folder = os.open(stage.folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        return read_plain(os.path.basename(stage.sidecar), _MOST_BYTES, folder)
    finally:
        os.close(folder)


assert {field.name for field in fields(Sidecar)} == _KINDS.keys()
assert {field.name for field in fields(Staged)} == _STAGED_KINDS.keys()

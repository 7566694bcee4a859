"""What a worker does with files: make a stage, check what the runner left in it, seal it.

<results_dir>/.entropic/staging/<id>.<token>.<nonce>/
    <id><suffix>                        the result
    ...                                 what else the runner writes
    .files/                             the same, put together once it has finished
    .sidecar.json                       at the end: all that publishing it takes
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from entropic.artifacts.moves import fsync
from entropic.errors import ResultMissingError, ResultsDirError

COMPANIONS: Final = ".files"
"""What the folder of a result's companions is called, after the result's stem."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where one run writes.

    Attributes:
        folder: The run's own folder, absolute.
        name: The result's name in it: the id and the suffix.
    """

    folder: str
    name: str

    @property
    def result(self) -> str:
        """The path that the runner is given."""
        return os.path.join(self.folder, self.name)

    @property
    def sidecar(self) -> str:
        """Where the run's sidecar goes once it has finished."""
        return os.path.join(self.folder, ".sidecar.json")

    @property
    def companions(self) -> str:
        """Where the runner's other files are put together."""
        return os.path.join(self.folder, COMPANIONS)


@dataclass(frozen=True, slots=True)
class Staged:
    """What a run left in its stage.

    Attributes:
        size: Bytes of the result; of all its files, where it is a folder.
        is_folder: Whether the result is a folder.
        companions: Names of the other files that the runner left beside it.
        digest: SHA-256 of the result, in hexadecimal; ``None`` where it was not asked for.
    """

    size: int
    is_folder: bool
    companions: tuple[str, ...]
    digest: str | None


def make(stage: Stage) -> None:
    """Make a run's staging folder.

    Raises:
        ResultsDirError: It cannot be made, or is there already: tokens never repeat, so whatever
            lies there is not ours to write into.
    """
    try:
        os.mkdir(stage.folder)
    except OSError as error:
        raise ResultsDirError(
            f"the staging folder {stage.folder} cannot be made: {error.strerror}; if something of"
            " that name is there, move it away",
            path=stage.folder,
        ) from error


def check(stage: Stage, *, checksum: bool, durable: bool) -> Staged:
    """Look at what a runner left, and put its companions together; done by the worker.

    Args:
        stage: Where the runner wrote.
        checksum: Whether to compute the digest, now that the result is in the page cache.
        durable: Whether to write the result through to the disk.

    Raises:
        ResultMissingError: There is no result, or an empty one; says what is there instead.
    """
    entries = sorted(os.listdir(stage.folder))
    if stage.name not in entries:
        raise ResultMissingError(_missing(stage, entries))
    mode = os.lstat(stage.result).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise ResultMissingError(
            f"the runner left {what} at params['result_file'] ({stage.result}); it must write the"
            " result itself there; a file that lies elsewhere can be indexed by register()"
        )
    files = list(_files(stage.result))
    size = sum(os.lstat(path).st_size for path in files)
    if size == 0:
        what = "folder without content" if stat.S_ISDIR(mode) else "file"
        raise ResultMissingError(
            f"the runner left an empty {what} at params['result_file'] ({stage.result})"
        )
    companions = [entry for entry in entries if entry != stage.name]
    if companions:
        os.mkdir(stage.companions)
        for entry in companions:
            os.rename(os.path.join(stage.folder, entry), os.path.join(stage.companions, entry))
    digest = _digest(stage.result, files) if checksum else None
    if durable:
        for path in (*files, *_files(stage.companions), stage.folder):
            fsync(path)
    return Staged(size, stat.S_ISDIR(mode), tuple(companions), digest)


def seal(stage: Stage, sidecar: Mapping[str, Any], *, durable: bool) -> None:
    """Write the sidecar, whole or not at all.

    From here on the run is finished, and can be published by anyone who finds it.
    """
    draft = stage.sidecar + ".draft"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(sidecar, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.rename(draft, stage.sidecar)
    if durable:
        fsync(stage.folder)


def _missing(stage: Stage, entries: list[str]) -> str:
    message = f"the runner wrote no file at params['result_file'] ({stage.result})"
    if not entries:
        return f"{message}, nor anything else in that folder"
    wrote = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    for entry in entries:
        if entry.startswith(stage.name):
            added = entry.removeprefix(stage.name)
            return (
                f"{message}; it wrote {entry}: what it writes with appends {added!r} to other"
                f" names (numpy.save does), so give the store file_suffix={added!r}"
            )
    return f"{message}; it wrote {wrote}: write to exactly params['result_file']"


def _files(path: str) -> Iterator[str]:
    """The regular files at or below a path, sorted; links are not followed."""
    if not os.path.isdir(path):
        if os.path.lexists(path):
            yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            found = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(found).st_mode):
                yield found


def _digest(result: str, files: list[str]) -> str:
    """SHA-256 of a file; of a folder, that of its files' relative names and digests."""
    if files == [result]:
        with open(result, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{os.path.relpath(path, result)}\0{digest}\0".encode())
    return whole.hexdigest()

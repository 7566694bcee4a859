"""Where a model's results are, when nobody says so: in the folder that its rows name.

Rows give paths as the store's ``results_dir`` was spelled, from wherever it was used: from the
database's folder, or from the working directory, as a script is started again where it was. In that
order: who names a database in another folder means what is beside it.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from entropic.artifacts import ResultsFolder, Stage
from entropic.artifacts.corner import folder_id
from entropic.ledger import Ledger
from entropic.ledger.survey import Sample

_USUAL: Final = "./results"
"""Where a store has them, if it is not told otherwise."""

_NUMBER: Final = re.compile(r"\.\d+(?=\.)")


async def results_of(
    ledger: Ledger[Any], nonce: str | None, near: str | None, spelled: str | None = None
) -> ResultsFolder | None:
    """The folder of a model's results, to look at; its names end with what theirs do.

    Args:
        ledger: The rows of the model.
        nonce: Names the model's stages, where it has any.
        near: The database's folder, if it has one.
        spelled: Where the results are; by default, where the rows say.

    Returns:
        The folder, or ``None`` where there is none.

    Raises:
        DatabaseError: The database failed.
    """
    samples = await ledger.survey.samples()
    path = located(samples, near) if spelled is None else spelled
    folder = None if path is None else _opened(path, suffix_of(samples))
    if folder is None or samples or not folder.id:
        return folder
    return _opened(folder.spelled, await _suffix_without_rows(ledger, nonce, folder))


def located(samples: Sequence[Sample], near: str | None) -> str | None:
    """The folder of a model's results.

    Args:
        samples: Where some of them are said to be, those that count most first.
        near: The database's folder, if it has one.

    Returns:
        Its path, or ``None`` where it is in none of these places: a folder of that name is not
        enough, it must be the one.
    """
    for sample in sorted(samples, key=_is_foreign):
        for folder in _candidates(_home(sample), near):
            if _is_it(folder, sample):
                return folder
    usual = () if samples else _candidates(_USUAL, near)
    return next((folder for folder in usual if folder_id(folder) is not None), None)


def is_named(samples: Sequence[Sample], folder: str) -> bool:
    """Whether a folder is one that rows name, wherever it is now; without any, one of results."""
    telling = [sample for sample in samples if not _is_foreign(sample)]
    if not telling:
        return folder_id(folder) is not None
    return any(_is_it(folder, sample) for sample in telling)


def named(samples: Sequence[Sample]) -> str | None:
    """Where rows have the results, as they spell it; ``None`` without any."""
    return next((_home(sample) for sample in sorted(samples, key=_is_foreign)), None)


def copies(samples: Sequence[Sample], near: str | None, chosen: str | None) -> list[str] | None:
    """The places of one folder that is in several: which of them is meant, nothing tells.

    Args:
        samples: Where some of the results are said to be.
        near: The database's folder, if it has one.
        chosen: The folder that its user has named: of that one it is known.

    Returns:
        The places, or ``None`` where each folder is in no more than one.
    """
    places: dict[str, dict[str, str]] = {}
    for sample in samples:
        if _is_foreign(sample) or (chosen is not None and _is_it(chosen, sample)):
            continue
        found = places.setdefault(sample.folder or _home(sample), {})
        for folder in (*_candidates(_home(sample), near), *_beside(_home(sample), near)):
            if _is_it(folder, sample):
                found.setdefault(os.path.realpath(folder), folder)
    return next((list(found.values()) for found in places.values() if len(found) > 1), None)


def suffix_of(samples: Iterable[Sample]) -> str:
    """What the results' names end with: what most of them do."""
    found = Counter(_suffix(sample) for sample in samples)
    found.pop(None, None)
    return str(found.most_common(1)[0][0]) if found else ""


def staged_suffix(staged: Iterable[tuple[str, int, Stage]]) -> str:
    """The same, of what is staged, where nothing is stored yet."""
    names = ((id, name) for id, _, stage in staged for name in _names(stage.folder))
    found = Counter(name.removeprefix(id) for id, name in names if name.startswith(id))
    return found.most_common(1)[0][0] if found else ""


async def _suffix_without_rows(
    ledger: Ledger[Any], nonce: str | None, folder: ResultsFolder
) -> str:
    """What the results' names end with, by those of deleted runs, or by what is staged."""
    traces = await ledger.survey.traces(folder.id)
    deleted = suffix_of(Sample(one.id, folder.id, one.name, one.name) for one in traces)
    return deleted or ("" if nonce is None else staged_suffix(folder.staged(nonce)))


def _opened(path: str, suffix: str) -> ResultsFolder | None:
    if not os.path.isdir(path):
        return None
    folder = ResultsFolder(path, suffix)
    folder.open_for_reading()
    return folder


def _candidates(folder: str, near: str | None) -> Iterator[str]:
    if near is not None and not os.path.isabs(folder) and not _is_here(near):
        yield os.path.normpath(os.path.join(near, folder))
    yield folder


def _beside(folder: str, near: str | None) -> Iterator[str]:
    """Where a folder that is named by a whole path would be copied to with its database."""
    if near is not None and os.path.isabs(folder):
        yield os.path.join(near, os.path.basename(os.path.normpath(folder)))


def _is_here(folder: str) -> bool:
    """Whether a folder is the working directory."""
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:
        return False


def _home(sample: Sample) -> str:
    return os.path.dirname(sample.result_file) or "."


def _is_foreign(sample: Sample) -> bool:
    """Whether its name is not made of its id: entropic 2 has registered it where it was."""
    name = os.path.basename(sample.result_file)
    return sample.folder is None and not name.startswith(sample.id)


def _is_it(folder: str, sample: Sample) -> bool:
    if sample.folder is not None:
        return folder_id(folder) == sample.folder
    return os.path.lexists(os.path.join(folder, os.path.basename(sample.result_file)))


def _suffix(sample: Sample) -> str | None:
    name = sample.name or os.path.basename(sample.result_file)
    if not name.startswith(sample.id):
        return None  # a registered one of entropic 2
    rest = name.removeprefix(sample.id)
    # The number stands where the plain name was not free.
    numbered = _NUMBER.match(rest)
    return rest[numbered.end() :] if numbered else rest


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []

"""Where a model's results are, when nobody says so: in the folder that its rows name.

Rows give paths as the store's ``results_dir`` was spelled, from wherever it was used: from the
working directory, as a script is started again where it was, or from the database's folder.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from entropic.artifacts import Stage
from entropic.artifacts.corner import folder_id
from entropic.ledger.survey import Sample

_USUAL: Final = "./results"
"""Where a store has them, if it is not told otherwise."""

_NUMBER: Final = re.compile(r"\.\d+(?=\.)")


def located(samples: Sequence[Sample], near: str | None) -> str | None:
    """The folder of a model's results.

    Args:
        samples: Where some of them are said to be, those that count most first.
        near: The database's folder, if it has one.

    Returns:
        Its path, or ``None`` where it is in none of these places: a folder of that name is not
        enough, it must be the one.
    """
    for sample in samples:
        for folder in _candidates(os.path.dirname(sample.result_file) or ".", near):
            if _is_it(folder, sample):
                return folder
    usual = () if samples else _candidates(_USUAL, near)
    return next((folder for folder in usual if folder_id(folder) is not None), None)


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


def _candidates(folder: str, near: str | None) -> Iterator[str]:
    yield folder
    if near is not None and not os.path.isabs(folder):
        yield os.path.normpath(os.path.join(near, folder))


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

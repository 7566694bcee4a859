"""What would happen, as values that print as a few lines: ``Plan`` and ``Explanation``.

What is known of the runs is found out by ``pipeline``; nothing is run for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Generic, Literal, TypeVar

from entropic.errors import Failure
from entropic.models import Base
from entropic.models.showing import cut, printable, shown, spell_seconds

R = TypeVar("R", bound=Base)

_LINE: Final = 200  # characters
_DAY_SECONDS: Final = 86400.0

Verdict = Literal["stored", "running", "failed", "lost", "new"]


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What a sweep would meet.

    Attributes:
        hits: How many sets are stored.
        in_flight: How many somebody is running at this moment; a sweep would wait for them.
        failed: How many have failed and not succeeded since; a sweep would try them again.
        misses: How many nobody has run, or whose result is gone.
        eta_seconds: How long the sweep would take: the mean duration of the runs on record, for
            those to run, shared out among the workers. ``None`` where no run is on record.
    """

    hits: int
    in_flight: int
    failed: int
    misses: int
    eta_seconds: float | None

    def __repr__(self) -> str:
        total = self.hits + self.in_flight + self.failed + self.misses
        lines = [f"{total:,} sets: {self.hits:,} stored, {self.failed + self.misses:,} to run"]
        if self.failed:
            lines.append(f"{self.failed:,} of those have failed before")
        if self.in_flight:
            lines.append(f"{self.in_flight:,} being run by others")
        if self.eta_seconds is None:
            lines.append("no run is on record to tell how long that takes")
        elif self.eta_seconds:
            lines.append(f"about {spell_seconds(self.eta_seconds)} by the durations on record")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, repr=False)
class Nearest(Generic[R]):
    """A stored set that is much like the one that was asked for.

    Attributes:
        record: Its record.
        differences: For each parameter that differs, the stored value and the one asked for.
    """

    record: R
    differences: Mapping[str, tuple[Any, Any]]

    def __repr__(self) -> str:
        told = [
            f"{name} is {shown(stored)}, not {shown(asked)}"
            for name, (stored, asked) in self.differences.items()
        ]
        return f"{self.record.id}: {', '.join(told) or 'the same, under another id'}"


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Generic[R]):
    """Why a set would run, or would not.

    Attributes:
        id: The run id.
        params: The parameters, as the model types them.
        verdict: ``"stored"``: nothing would run. ``"running"``: somebody runs it, and a request
            would wait. The others would run: ``"failed"``, as it failed the last time;
            ``"lost"``, as its result is gone or not what it was; ``"new"``.
        record: What is stored, if anything is.
        failure: The failure on record, if that is why.
        owner: Who runs it, if somebody does.
        nearest: Of what would be new: the stored sets that differ in the fewest parameters, and
            there by the least.
    """

    id: str
    params: Mapping[str, Any]
    verdict: Verdict
    record: R | None = None
    failure: Failure | None = None
    owner: str | None = None
    nearest: Sequence[Nearest[R]] = ()

    def __repr__(self) -> str:
        return "\n".join([self._reason(), *(f"  {line}" for line in self._details())])

    @property
    def would_run(self) -> bool:
        """Whether a request would run it."""
        return self.verdict in ("failed", "lost", "new")

    def _reason(self) -> str:
        match self.verdict:
            case "stored":
                return f"{self.id} is stored: nothing would run"
            case "running":
                return f"{self.id} is being run by {self.owner}: a request would wait for it"
            case "failed":
                assert self.failure is not None
                attempts = f"attempt {self.failure.attempts}"
                return f"{self.id} would run again: it has failed ({attempts})"
            case "lost":
                return f"{self.id} would run again: its result is gone, or not as large as it was"
        return f"{self.id} would run: nothing is stored of these parameters"

    def _details(self) -> list[str]:
        if self.failure is not None:
            error = self.failure.exception
            name = getattr(error, "type_name", None) or type(error).__qualname__
            first, *more = str(error).splitlines() or [""]
            text = printable(f"{name.removeprefix('builtins.')}: {first}")
            return [cut(text, _LINE) + (" ..." if more else "")]
        if self.record is not None:
            return [self.record.result_file]
        if not self.nearest:
            return []
        return ["nearest of what is stored:", *(f"  {one!r}" for one in self.nearest)]


def farness(differences: Mapping[str, tuple[Any, Any]]) -> tuple[int, float]:
    """Orders stored sets by how little they differ from the one asked for.

    First by the number of parameters, then by how far those are: numbers in units of the one that
    was asked for, times in days, all else by 1.
    """
    return len(differences), sum(_distance(*pair) for pair in differences.values())


def _distance(stored: Any, asked: Any) -> float:
    try:
        if isinstance(asked, bool):
            return 1.0
        if isinstance(asked, date):
            return float(abs((stored - asked).total_seconds())) / _DAY_SECONDS
        distance = float(abs(stored - asked))
    except (TypeError, ValueError, ArithmeticError):  # no numbers, or beyond all floats
        return 1.0
    return distance / abs(float(asked)) if asked else distance


def eta_seconds(to_run: int, in_flight: int, workers: int, mean: float | None) -> float | None:
    """How long runs take, by the mean duration of a run; a last one is not shared out."""
    rounds = math.ceil(to_run / workers) or int(in_flight > 0)
    if not rounds:
        return 0.0
    return None if mean is None else rounds * mean

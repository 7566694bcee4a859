"""From measured seconds to the table that is printed; nothing is measured here."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.works import Work


@dataclass(frozen=True, slots=True)
class Sample:
    """One subject's work, done once.

    Attributes:
        seconds: How long it took; ``None`` where it failed.
        growth: By how many bytes the process grew at its peak.
        error: What it raised, in a line.
    """

    seconds: float | None = None
    growth: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What one subject's samples come to; times in seconds for one run or row.

    ``ratio`` is the median of the ratios within each round, in which all subjects took their
    turn: what slows the machine down for a while slows both terms.
    """

    median: float
    p95: float
    ratio: float
    growth: int


def figures(samples: Sequence[Sample], references: Sequence[Sample], size: int) -> Figures | None:
    """The figures of a subject beside the reference's; ``None`` where one of them failed."""
    seconds = _seconds(samples)
    against = _seconds(references)
    if seconds is None or against is None:
        return None
    return Figures(
        median=statistics.median(seconds) / size,
        p95=_p95(seconds) / size,
        ratio=statistics.median(mine / its for mine, its in zip(seconds, against, strict=True)),
        growth=max(sample.growth or 0 for sample in samples),
    )


def render(work: Work, size: int, samples: dict[str, list[Sample]]) -> str:
    """The lines of one work, its subjects in the catalogue's order."""
    reference = samples[work.subjects[0].label]
    lines = [
        f"{work.title} ({len(reference)} rounds, {size:,} each)",
        f"  {'':40}{f'median, µs a {work.unit}':>20}{'p95':>9}{'ratio':>8}{'growth':>10}",
    ]
    for label, taken in samples.items():
        found = figures(taken, reference, size)
        if found is None:
            lines.append(f"  {label:40}  fails: {_first(s.error for s in taken)}")
            continue
        lines.append(
            f"  {label:40}{found.median * 1e6:20,.1f}{found.p95 * 1e6:9,.1f}{found.ratio:8.2f}"
            f"{found.growth / 2**20:7.0f} MB"
        )
    return "\n".join(lines)


def _seconds(samples: Sequence[Sample]) -> list[float] | None:
    seconds = [sample.seconds for sample in samples if sample.seconds is not None]
    return seconds if len(seconds) == len(samples) else None


def _p95(seconds: list[float]) -> float:
    if len(seconds) < 2:
        return seconds[0]
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


def _first(errors: Iterable[str | None]) -> str:
    return next((error for error in errors if error is not None), "the reference has failed")

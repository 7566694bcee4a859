"""From measured seconds to the table that is printed; nothing is measured here."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.works import Goal, Work


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
    """One work in Markdown: its subjects in the catalogue's order, and what was to be reached."""
    reference = next(iter(samples.values()))
    lines = [
        f"## {work.title}",
        "",
        f"{len(reference)} rounds, {size:,} each.",
        "",
        f"| {'who':36} | median, µs a {work.unit} | p95 | ratio | growth, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, taken in samples.items():
        found = figures(taken, reference, size)
        if found is None:
            lines.append(f"| {label:36} | fails: {_first(s.error for s in taken)} | | | |")
            continue
        lines.append(
            f"| {label:36} | {found.median * 1e6:,.1f} | {found.p95 * 1e6:,.1f}"
            f" | {found.ratio:.2f} | {found.growth / 2**20:.0f} |"
        )
    goals = [line for goal in work.goals if (line := _reached(goal, samples)) is not None]
    if goals:
        lines += ["", "| goal of | is to be at most | and is |", "| --- | --- | --- |", *goals]
    return "\n".join(lines)


def _reached(goal: Goal, samples: dict[str, list[Sample]]) -> str | None:
    """Whether a goal was; ``None`` where nobody was there to be compared with."""
    mine = samples.get(goal.label, [])
    found = figures(mine, mine if goal.growth is not None else samples.get(goal.against, []), 1)
    if found is None:
        return None
    if goal.growth is not None:
        wanted, is_now = f"{goal.growth / 2**20:.0f} MB larger", f"{found.growth / 2**20:.0f} MB"
        is_reached = found.growth <= goal.growth
    else:
        wanted, is_now = f"{goal.most:.2f} of {goal.against}", f"{found.ratio:.2f}"
        is_reached = found.ratio <= goal.most
    return f"| {goal.label} | {wanted} | {is_now}{'' if is_reached else ', not reached'} |"


def ratios(page: str) -> dict[tuple[str, str], float]:
    """The ratio of each subject of each work on a page of these tables."""
    found = {}
    title = ""
    for line in page.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"\d+\.\d\d", cells[3]):
            found[title, cells[0]] = float(cells[3])
    return found


def regressions(before: str, now: str) -> list[str]:
    """What has become slower by more than a third, beside the first subject of its work."""
    earlier = ratios(before)
    return [
        f"{who} ({title}): {earlier[title, who]:.2f} before, {ratio:.2f} now"
        for (title, who), ratio in ratios(now).items()
        if who.startswith("entropic") and _V2 not in who
        if ratio > earlier.get((title, who), ratio) * _SLACK
    ]


_SLACK: Final = 4 / 3
_V2: Final = "2.3.0"


def _seconds(samples: Sequence[Sample]) -> list[float] | None:
    seconds = [sample.seconds for sample in samples if sample.seconds is not None]
    return seconds if samples and len(seconds) == len(samples) else None


def _p95(seconds: list[float]) -> float:
    if len(seconds) < 2:
        return seconds[0]
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


def _first(errors: Iterable[str | None]) -> str:
    return next((error for error in errors if error is not None), "the reference has failed")

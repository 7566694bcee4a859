"""The benchmarks: every work that needs no other library runs, and its figures add up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import entropic
from benchmarks.table import Sample, figures, render
from benchmarks.works import WORKS

ROOT = Path(entropic.__file__).parents[1]


BY_DAY = ["thread", "dask"]
AT_NIGHT = [work.name for work in WORKS if work.name not in BY_DAY]


@pytest.mark.parametrize("names", [BY_DAY, pytest.param(AT_NIGHT, marks=pytest.mark.nightly)])
def test_every_work_runs(tmp_path: Path, names: list[str]) -> None:
    """In small, without peers: a table for each, whose reference has a ratio of one."""
    works = [work for work in WORKS if work.name in names]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--small", "--folder", tmp_path, "--only", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fails" not in done.stdout
    tables = done.stdout.split("\n\n")[1:-1]
    assert len(tables) == len(works)
    for work, table in zip(works, tables, strict=True):
        title, _, reference, *others = table.splitlines()
        assert title == f"{work.title} (1 rounds, {work.small_size:,} each)"
        assert reference.startswith(f"  {work.subjects[0].label} ")
        assert " 1.00 " in reference
        assert len(others) == sum(not subject.peer for subject in work.subjects[1:])
        for line in others:
            assert re.search(r"\d\.\d +\d[\d,]*\.\d +\d+\.\d\d +\d+ MB$", line)
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_is_of_samples_of_the_same_round() -> None:
    """A slow round slows both down, and is no news; the middle of the ratios is what is told."""
    reference = [Sample(1.0, 0), Sample(10.0, 0), Sample(1.0, 0)]
    mine = [Sample(2.0, 5), Sample(20.0, 9), Sample(3.0, 7)]
    found = figures(mine, reference, size=10)
    assert found is not None
    assert (found.median, found.ratio, found.growth) == (0.3, 2.0, 9)
    assert found.p95 == pytest.approx(1.83)


def test_who_fails_has_no_figures_but_a_reason() -> None:
    """Nor has anybody else where the reference fails."""
    work = WORKS[0]
    labels = [subject.label for subject in work.subjects]
    good, bad = [Sample(1.0, 0)], [Sample(error="OperationalError: too many SQL variables")]
    table = render(work, 1, {labels[0]: good, labels[1]: bad})
    assert "fails: OperationalError: too many SQL variables" in table
    assert figures(good, bad, size=1) is None

"""The benchmarks: every work that needs no other library runs, and its figures add up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import entropic
from benchmarks.__main__ import environment, file_system
from benchmarks.table import Sample, figures, ratios, regressions, render
from benchmarks.works import WORKS

ROOT = Path(entropic.__file__).parents[1]


BY_DAY = ["thread"]
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
    assert re.match(r".+, \d+ CPUs, files on \w[\w .,-]+, Python [\d.]+; entropic ", done.stdout)
    _, *tables = re.split("^## ", done.stdout, flags=re.MULTILINE)
    assert len(tables) == len(works)
    for work, table in zip(works, tables, strict=True):
        labels = [subject.label for subject in work.subjects if not subject.peer]
        assert table.startswith(f"{work.title}\n\n1 rounds, {work.small_size:,} each.\n")
        figures_of = r"^\| (.*?) +\| [\d,]+\.\d \| [\d,]+\.\d \| .* \| \d+ \|$"
        rows = re.findall(figures_of, table, re.MULTILINE)
        assert rows == labels
        found = ratios(f"## {table}")
        assert found.keys() == {(work.title, label) for label in labels}
        assert found[work.title, labels[0]] == 1.0
        told = re.findall(r"^\| (.*?) \| [\d.]+ (?:of|MB) .* \| [\d.]+.* \|$", table, re.MULTILINE)
        assert told == [g.label for g in work.goals if {g.label, g.against or g.label} <= {*labels}]
    assert list(tmp_path.iterdir()) == []


def test_no_process_compiles_what_another_has_compiled() -> None:
    """Whatever is said where it is called: it would take longer than what is measured."""
    ours = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "here", "HOME": "there"}
    assert environment(ours, is_peer=False) == {"PYTHONPATH": "here", "HOME": "there"}
    assert environment(ours, is_peer=True) == {"HOME": "there"}


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw
24 22 7:0 / /mnt/with\\040space rw shared:1 - ext4 /dev/loop0 rw
25 22 0:50 / /home/a rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("number", "options", "kind"),
    [
        ("254:0", "rw\nnojournal_checksum\ncommit=5\n", "ext4 without a journal"),
        ("7:0", "rw\njournal_checksum\ndata=ordered\n", "ext4 with a journal"),
        ("7:0", None, "ext4, perhaps without a journal"),
        ("0:21", None, "tmpfs"),
        ("0:50", None, "fuse.sshfs"),
        ("9:9", None, "an unknown file system"),
    ],
)
def test_the_kind_of_file_system_is_told(number: str, options: str | None, kind: str) -> None:
    """Of an ext4 also what counts most there; and not more than is known."""
    assert file_system(number, MOUNTS, options) == kind


def test_a_page_is_kept_where_something_has_become_slower() -> None:
    """By more than a third, beside the first subject; the others' own pace is nothing to it."""

    def page(ours: float, theirs: float) -> str:
        work = WORKS[0]
        labels = [subject.label for subject in work.subjects[:3]]
        samples = zip(labels, (1.0, ours, theirs), strict=True)
        return render(work, 1, {label: [Sample(seconds, 0)] for label, seconds in samples})

    assert regressions(page(3.0, 3.0), page(3.9, 9.0)) == []
    (slower,) = regressions(page(3.0, 3.0), page(4.1, 3.0))
    assert slower == f"entropic, Store ({WORKS[0].title}): 3.00 before, 4.10 now"
    assert regressions("", page(9.0, 9.0)) == []


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

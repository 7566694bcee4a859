"""``python -m benchmarks``: measure, and print the tables.

Each sample is taken in a process of its own, and the subjects of a work take turns: all of them
once, then all of them again. So peers of the same package name can be compared, nobody profits
from what another has left in memory, and noise meets all of them alike.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.table import Sample, regressions, render
from benchmarks.works import WORKS, Subject, Work

_HERE: Final = Path(__file__).parent
_PEERS: Final = _HERE / "peers.txt"
_LIMIT_SECONDS: Final = 900.0  # of one sample: the million rows are written in one, too


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    works = [work for work in WORKS if options.only is None or work.name in options.only]
    machine = _machine(options.peers, options.folder or tempfile.gettempdir())
    print(machine)
    began = time.monotonic()
    tables = []
    for work in works:
        print()
        tables.append(_measure(work, options))
        print(tables[-1], flush=True)
    print(f"\nTaken in {time.monotonic() - began:,.0f} s.")
    if options.page is not None:
        _keep(Path(options.page), "\n\n".join([_preface(machine), *tables]) + "\n", options)


def _keep(page: Path, now: str, options: argparse.Namespace) -> None:
    """Write the page, unless something has become slower than it says."""
    slower = regressions(page.read_text(encoding="utf-8"), now) if page.exists() else []
    if slower and not options.accept:
        lost = "".join(f"\n  {line}" for line in slower)
        raise SystemExit(
            f"slower by more than a third than {page} says:{lost}\n"
            "The page is left as it is; --accept writes it all the same."
        )
    if options.only is None and not options.small:
        page.write_text(now, encoding="utf-8")


def _preface(machine: str) -> str:
    return f"""\
# Benchmarks

Taken on {datetime.now(UTC):%Y-%m-%d} by `make bench`, which replaces this page.
{textwrap.fill(machine + ".", 98)}

How each figure is taken is said in `benchmarks/README.md`; what they mean, in
[Performance](performance.md). Compare ratios, within one table."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [work.name for work in WORKS]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="WORK", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--peers", metavar="PYTHON", help="the Python of the environment with entropic 2.3.0"
    )
    parser.add_argument(
        "--folder", help="where to put files, on the file system that is of interest"
    )
    parser.add_argument(
        "--small", action="store_true", help="few of each, once: does everything work?"
    )
    parser.add_argument("--page", help="the page to compare with, and to write if all is measured")
    parser.add_argument(
        "--accept", action="store_true", help="write the page, also where something is slower"
    )
    return parser.parse_args(arguments)


def _machine(peers: str | None, folder: str) -> str:
    names = ("entropic", "sqlalchemy", "aiosqlite", "distributed")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    if peers is not None:
        lines = _PEERS.read_text(encoding="utf-8").splitlines()
        beside = ", ".join(line.replace("==", " ") for line in lines if "==" in line)
        versions += f"; beside {beside}"
    cpus = len(os.sched_getaffinity(0))
    return (
        f"{platform.system()} {platform.machine()}, {cpus} CPUs, files on {_file_system(folder)},"
        f" Python {platform.python_version()}; {versions}"
    )


def _file_system(folder: str) -> str:
    """The kind that a folder is on; of an ext4, also whether it has the journal that most have."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        name = Path(f"/sys/dev/block/{number}").resolve().name
        options = Path(f"/proc/fs/ext4/{name}/options")
        return file_system(number, mounts, options.read_text() if options.exists() else None)
    except OSError:  # not Linux
        return "an unknown file system"


def file_system(number: str, mounts: str, options: str | None) -> str:
    """What a device holds.

    Args:
        number: The device's, as ``major:minor``.
        mounts: As ``/proc/self/mountinfo`` has them.
        options: Of an ext4, as the system tells them.
    """
    kinds = [
        line.partition(" - ")[2].split()[0]
        for line in mounts.splitlines()
        if line.split()[2] == number
    ]
    if not kinds:
        return "an unknown file system"
    if kinds[-1] != "ext4":
        return kinds[-1]
    # Without one, a file takes up to twenty times as long to make.
    if options is None:
        return "ext4, perhaps without a journal"
    return "ext4 with a journal" if "data=" in options else "ext4 without a journal"


def _measure(work: Work, options: argparse.Namespace) -> str:
    """All rounds of one work; returns its table."""
    size = work.small_size if options.small else work.size
    rounds = 1 if options.small else work.repeats
    pythons = {False: sys.executable, True: options.peers}
    subjects = [subject for subject in work.subjects if pythons[subject.peer]]
    samples: dict[str, list[Sample]] = {subject.label: [] for subject in subjects}
    with tempfile.TemporaryDirectory(prefix="entropic-bench-", dir=options.folder) as name:
        folder = Path(name)
        stored = _store_rows(subjects, pythons, size, folder, is_small=options.small)
        for turn in range(rounds):
            for subject in subjects:
                place = stored[subject.needs] if subject.needs else folder / f"{turn}"
                place.mkdir(exist_ok=True)
                rows = size if subject.rows is None or options.small else subject.rows
                samples[subject.label].append(_sample(subject, pythons, rows, place))
                if not subject.needs:
                    _remove(place)
        for place in stored.values():
            _remove(place)
    return render(work, size, samples)


def _store_rows(
    subjects: Sequence[Subject],
    pythons: dict[bool, str],
    size: int,
    folder: Path,
    *,
    is_small: bool,
) -> dict[str, Path]:
    """The rows that the subjects are to find, by the name under which they need them."""
    stored = {}
    for subject in _needing(subjects):
        assert subject.needs is not None
        place = stored[subject.needs] = folder / subject.needs
        place.mkdir()
        filler = Subject(subject.needs, "stores", subject.filler, peer=subject.peer)
        rows = size if subject.rows is None or is_small else subject.rows
        filled = _sample(filler, pythons, rows, place)
        if filled.error is not None:
            raise SystemExit(f"cannot store rows for {subject.label}: {filled.error}")
    return stored


def _needing(subjects: Sequence[Subject]) -> Iterator[Subject]:
    seen = set()
    # A subject that is a store makes the rows, for those as well that read them by other means.
    for subject in sorted(subjects, key=lambda subject: subject.script != "stores"):
        if subject.needs is not None and subject.needs not in seen:
            seen.add(subject.needs)
            yield subject


def _sample(subject: Subject, pythons: dict[bool, str], size: int, place: Path) -> Sample:
    """Let a process of its own do the work, in ``place``, and report."""
    script = _HERE / "subjects" / f"{subject.script}.py"
    done = subprocess.run(
        [pythons[subject.peer], str(script), subject.function, str(size)],
        cwd=place,
        env=environment(os.environ, is_peer=subject.peer),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if not done.stdout:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Sample(error=lines[-1][:100])
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def environment(ours: Mapping[str, str], *, is_peer: bool) -> dict[str, str]:
    """The variables of a process that takes a sample.

    Args:
        ours: The variables of this process.
        is_peer: Whether it runs in the environment of the peers.
    """
    # What Python compiles is kept, or each process would do it anew: the Makefile's pip does not.
    hidden = {"PYTHONDONTWRITEBYTECODE"}
    if is_peer:
        hidden.add("PYTHONPATH")  # one that leads to this checkout would hide their own entropic
    return {name: value for name, value in ours.items() if name not in hidden}


def _remove(folder: Path) -> None:
    # Of a million files, rm takes a third of the time of shutil.rmtree.
    subprocess.run(["rm", "-rf", "--", str(folder)], check=True)


if __name__ == "__main__":
    main()

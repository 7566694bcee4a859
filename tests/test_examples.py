"""The examples, each as the process that a reader would start."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

import entropic

ROOT = Path(entropic.__file__).parents[1]


def run(example: str, *arguments: str) -> str:
    """Run an example in the working directory; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / example), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def simulated(output: str) -> list[int]:
    """How many simulations each of an example's steps reports."""
    return [int(count) for count in re.findall(r"(\d+) simulated", output)]


def test_the_demo_shows_a_run_a_hit_and_a_sweep(folder: Path) -> None:
    """It starts afresh each time, and leaves nothing behind."""
    for _ in range(2):
        output = run("quickstart.py")
        assert simulated(output) == [1, 0, 2, 0]
        assert output.count("my_sim:") == 3
        assert output.count("record f444a074a2e52bf9") == 2
        assert len(re.findall(r"\(100, 5000\) float64", output)) == 3
        place = re.search(rf"entropic {re.escape(entropic.__version__)}, in (\S+)", output)
        assert place is not None
        assert not Path(place[1]).exists()
    assert list(folder.iterdir()) == []


def test_the_demo_keeps_a_folder_that_it_is_given(folder: Path) -> None:
    """Run again there, in another process, it simulates nothing."""
    assert simulated(run("quickstart.py", "kept")) == [1, 0, 2, 0]
    results = sorted((folder / "kept" / "results").glob("*.npy"))
    assert [np.load(result).shape for result in results] == [(100, 5000)] * 3
    assert simulated(run("quickstart.py", "kept")) == [0, 0, 0, 0]
    with closing(sqlite3.connect(folder / "kept" / "runs.sqlite3")) as database:
        stored = database.execute("SELECT id FROM results").fetchall()
    assert sorted(f"{id}.npy" for (id,) in stored) == [result.name for result in results]


def test_the_pendulums_are_solved_in_processes_and_drawn(folder: Path) -> None:
    """Once; the second time the plot is drawn from what is stored."""
    assert "6 pendulums: 6 simulated, 0 stored" in run("ode_sweep.py", str(folder))
    assert "6 pendulums: 0 simulated, 6 stored" in run("ode_sweep.py", str(folder))
    assert (folder / "pendulum.png").read_bytes().startswith(b"\x89PNG")


def test_the_cluster_estimates_pi_once() -> None:
    """What is stored is not simulated again."""
    output = run("dask_sweep.py")
    assert simulated(output) == [40, 0]
    assert output.count("pi is about 3.14") == 2


def test_the_external_solver_is_stopped_when_it_is_late() -> None:
    """The other cases are solved, and what the solver printed is kept."""
    output = run("external_program.py")
    assert "8 cases solved" in output
    assert "99 cells: the run took longer than timeout=2 seconds; it was stopped" in output
    assert "9 from the log: solving 3 cells" in output


def test_the_search_goes_the_same_way_and_simulates_only_what_is_new(folder: Path) -> None:
    """Failed trials are told as failed; started again, the search costs no runs, theirs neither."""
    outputs = [run("optuna_search.py", str(folder), rounds) for rounds in ("5", "5", "7")]
    assert [output.split(" trials")[0] for output in outputs] == ["20", "20", "28"]
    assert [simulated(output) for output in outputs] == [[20], [0], [8]]
    failed = [int(count) for output in outputs for count in re.findall(r"(\d+) failed", output)]
    assert 0 < failed[0] < 20
    assert failed[1] == failed[0]
    assert len(list((folder / "results").glob("*.npy"))) == 28 - failed[2]
    best = [output.split("the best: ")[1] for output in outputs]
    assert best[1] == best[0]

"""Signs of life of runs that are at work."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path

from entropic.artifacts.life import signs_of_life
from tests.scripts import wait_for

SOON = 0.01
LATE = 1000.0


def stage(folder: Path, name: str) -> Path:
    """A stage that was last touched long ago."""
    made = folder / name
    made.mkdir()
    os.utime(made, (0, 0))
    return made


def is_touched(folder: Path) -> bool:
    """Whether it has been, since it was made."""
    return folder.stat().st_mtime > 0


def ours() -> set[threading.Thread]:
    """The threads that give signs."""
    return {thread for thread in threading.enumerate() if thread.name == "entropic-life"}


def test_runs_side_by_side_share_a_thread_that_ends_after_them(tmp_path: Path) -> None:
    """All of them are touched, again and again; with the last run the thread goes, too."""
    before = ours()
    stages = [stage(tmp_path, f"{n}") for n in range(20)]
    with ExitStack() as runs:
        for each in stages:
            runs.enter_context(signs_of_life(str(each), SOON))
        wait_for(lambda: all(map(is_touched, stages)))
        for each in stages:
            os.utime(each, (0, 0))
        wait_for(lambda: all(map(is_touched, stages)))
        assert len(ours() - before) == 1
    wait_for(lambda: not ours() - before)


def test_a_run_with_less_patience_is_touched_in_time(tmp_path: Path) -> None:
    """Also where the thread meant to look much later; the other one is left alone meanwhile."""
    patient, other = stage(tmp_path, "patient"), stage(tmp_path, "other")
    with signs_of_life(str(patient), LATE):
        with signs_of_life(str(other), SOON):
            wait_for(lambda: is_touched(other))
        assert not is_touched(patient)


def test_runs_of_two_folders_do_not_wait_for_one_another(tmp_path: Path) -> None:
    """A thread each: one of the disks may not answer."""
    before = ours()
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with signs_of_life(str(stage(one, "a")), SOON), signs_of_life(str(stage(two, "a")), SOON):
        assert len(ours() - before) == 2


def test_a_stage_that_is_made_later_is_touched_then(tmp_path: Path) -> None:
    """That there is none yet stops nothing."""
    late = tmp_path / "late"
    seen = stage(tmp_path, "seen")
    with signs_of_life(str(late), SOON), signs_of_life(str(seen), SOON):
        wait_for(lambda: is_touched(seen))
        stage(tmp_path, "late")
        wait_for(lambda: is_touched(late))


def test_a_forked_child_has_a_thread_of_its_own(tmp_path: Path) -> None:
    """The parent's is not there."""
    mine, childs = stage(tmp_path, "mine"), stage(tmp_path, "childs")
    with signs_of_life(str(mine), LATE):
        child = os.fork()
        if not child:
            with signs_of_life(str(childs), SOON):
                wait_for(lambda: is_touched(childs))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

"""``executor="process"``: worker processes that die alone, stop when told, and end with us."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropic import (
    AsyncStore,
    RemoteRunError,
    RunError,
    RunTimeoutError,
    SettingsError,
    Store,
    SweepError,
    WorkerDiedError,
)
from entropic.artifacts import Stage
from entropic.executors import processes, worker_process
from entropic.executors.parcels import dumps
from entropic.worker import Job
from tests import databases, scripts, simulations
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate, simulate_async

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("database"), databases.either]

DEADLINE = 20.0


def sets(*numbers: int) -> list[dict[str, Any]]:
    """A parameter set for each number."""
    return [{"n": n} for n in numbers]


@pytest.fixture(params=["store", "async-threads"])
def store_of(request: pytest.FixtureRequest, make_store: Callable[..., Any]) -> Any:
    """Makes stores of both faces that run in processes."""

    def make(runner: Any = simulate, **settings: Any) -> Any:
        usual = {"executor": "process", "max_workers": 2}
        return make_store(request.param, runner=runner, **{**usual, **settings})

    return make


def note_process(params: dict[str, Any]) -> None:
    """A runner that notes which process it is in."""
    Path(f"pid-{params['n']}").write_text(str(os.getpid()))
    simulate(params)


def pids() -> set[int]:
    """The processes that were noted."""
    # One that is being written is still empty.
    texts = [path.read_text() for path in Path().glob("pid-*")]
    return {int(text) for text in texts if text}


def test_runs_are_in_other_processes_and_those_are_kept(store_of: Any) -> None:
    """As many as there are workers; the next sweep has the same ones."""
    store = store_of(note_process)
    assert [record.n for record in store.sweep(sets(*range(6)))] == list(range(6))
    first = pids()
    assert os.getpid() not in first
    assert 1 <= len(first) <= 2
    store.sweep(sets(*range(6, 12)))
    assert len(pids()) <= 2
    assert calls() == 12
    store.close()
    assert not any(psutil.pid_exists(pid) for pid in pids())


def test_a_worker_follows_the_working_directory(
    store_of: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner's relative paths lead where they lead in the store's process, at each run anew."""

    def read(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text(Path("input").read_text())
        os.chdir("/")

    store = store_of(read, max_workers=1)
    for n, name in enumerate(("one", "two")):
        (folder / name).mkdir()
        (folder / name / "input").write_text(name)
        monkeypatch.chdir(folder / name)
        assert Path(store.run_or_retrieve({"n": n}).result_file).read_text() == name


class Fragile:
    """A part of a runner that can be pickled so many times, and then fails as a disk would."""

    left = 100

    def __reduce__(self) -> Any:
        type(self).left -= 1
        if self.left < 0:
            raise TimeoutError("the disk is away")
        return Fragile, ()


def test_a_job_that_cannot_be_packed_costs_no_worker(
    store_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is what is told; and the next one finds the worker that there was."""

    def run(params: dict[str, Any], part: Any) -> None:
        note_process(params)

    store = store_of(partial(run, part=Fragile()), max_workers=1)
    store.run({"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Fragile, "left", 1)  # the check's
        with pytest.raises(TimeoutError, match="the disk is away"):
            store.run({"n": 2})
    store.run({"n": 3})
    assert len(pids()) == 1


def test_a_runner_sees_no_arguments_of_ours(store_of: Any) -> None:
    """What it parses is what there is."""

    def tell(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text(repr(sys.argv[1:]))

    assert Path(store_of(tell).run({"n": 1}).result_file).read_text() == "[]"


def test_no_process_is_started_for_hits(store_of: Any) -> None:
    """They are started when there is work."""
    store = store_of()
    store.sweep(sets(1))
    store.close()
    before = set(psutil.Process().children())
    store.sweep(sets(1))
    assert set(psutil.Process().children()) == before


def test_closures_lambdas_and_async_runners_work(store_of: Any) -> None:
    """What no plain pickle takes."""
    text = "from a closure"

    def closure(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text(text)

    assert Path(store_of(closure).run({"n": 1}).result_file).read_text() == text
    store = store_of(lambda params: Path(params["result_file"]).write_text("lambda"))
    assert Path(store.run({"n": 2}).result_file).read_text() == "lambda"
    assert store_of(simulate_async).run({"n": 3}).n == 3


def die(params: dict[str, Any]) -> None:
    """A runner that kills its process for n = 1, leaves it for n = 2, and works otherwise."""
    mark_call(params)
    if params["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if params["n"] == 2:
        os._exit(7)
    Path(params["result_file"]).write_text("result")


def test_a_worker_that_dies_fails_its_own_run_alone(store_of: Any) -> None:
    """All others go on, on a new worker where one is needed."""
    store = store_of(die)
    with pytest.raises(SweepError) as caught:
        store.sweep(sets(*range(10)), on_error="finish")
    assert [record.n for record in caught.value.records] == [0, *range(3, 10)]
    errors = {failure.params["n"]: failure.exception for failure in caught.value.failures}
    assert all(isinstance(error, WorkerDiedError) for error in errors.values())
    assert "was killed by SIGKILL" in str(errors[1])
    assert "exit code 7" in str(errors[2])
    assert isinstance(errors[1], WorkerDiedError)
    assert errors[1].params == {"n": 1, "dt": 0.5, "label": None}
    assert calls() == 10
    assert not list(Path("results/.entropic/staging").iterdir())


@pytest.mark.parametrize(
    ("end", "timeout"),
    [
        pytest.param(simulations.end_process, None, id="killed"),
        pytest.param(partial(os._exit, 0), None, id="exits"),
        pytest.param(partial(time.sleep, 60), 2, id="hangs"),
    ],
)
def test_a_finished_run_outlives_the_worker_that_could_not_say_so(
    store_of: Any, end: Any, timeout: float | None
) -> None:
    """Its result was sealed: it is stored, and not run again, and ends nobody's sweep."""
    store = store_of(partial(simulations.simulate_and_then, end))
    records = store.sweep(sets(*range(3)), timeout=timeout)
    assert [record.n for record in records] == list(range(3))
    assert all(np.load(record.result_file)[0] == record.n for record in records)
    assert all(record.custom_data["elapsed_seconds"] < 2 for record in records)
    assert (calls(), store.failures()) == (3, [])
    store.sweep(sets(*range(3)))
    assert calls() == 3
    assert not list(Path("results/.entropic/staging").iterdir())


def test_a_worker_that_died_while_it_waited_fails_no_run(store_of: Any) -> None:
    """The next run has a new one."""
    store = store_of(note_process)
    store.sweep(sets(1, 2, 3))
    for pid in pids():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(is_running(pid) for pid in pids()))
    assert [record.n for record in store.sweep(sets(4, 5, 6))] == [4, 5, 6]


def test_a_worker_that_is_found_dead_when_the_job_is_sent_fails_no_run(store_of: Any) -> None:
    """Nobody looks beforehand: it may as well die a moment later."""
    store = store_of(note_process, max_workers=1)
    store.sweep(sets(0))
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    assert store.run({"n": 1}).n == 1
    assert calls() == 2


def test_a_run_whose_worker_died_may_be_tried_again(store_of: Any) -> None:
    """As any other that failed."""

    def die_once(params: dict[str, Any]) -> None:
        if not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        simulate(params)

    assert store_of(die_once).sweep(sets(1), retries=1)[0].n == 1


class CannotTravelError(Exception):
    """An error that pickles and does not come back."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("one and two")


def test_a_runners_error_reaches_the_caller(store_of: Any) -> None:
    """As itself, with its traceback as text; as text alone where it cannot travel."""

    def fail(params: dict[str, Any]) -> None:
        if params["n"]:
            raise CannotTravelError(1, 2)
        raise FileNotFoundError(2, "not there", "mesh.dat")

    store = store_of(fail)
    with pytest.raises(FileNotFoundError) as caught:
        store.run({"n": 0})
    assert caught.value.filename == "mesh.dat"
    with pytest.raises(RemoteRunError, match="CannotTravelError: one and two") as remote:
        store.run({"n": 1})
    assert "raise CannotTravelError(1, 2)" in (remote.value.traceback or "")


def test_a_runner_that_cannot_travel_is_refused_before_anything_starts(store_of: Any) -> None:
    """The message says what it is that cannot."""
    lock = threading.Lock()

    def locked(params: dict[str, Any]) -> None:
        with lock:
            simulate(params)

    store = store_of(locked)
    with pytest.raises(SettingsError, match=r"cannot be sent to a worker process, .*lock"):
        store.sweep(sets(1, 2))
    assert calls() == 0
    assert store.failures() == []


def test_a_late_run_is_stopped_for_real(store_of: Any) -> None:
    """With the programs that it has started; the others go on."""

    def be_late(params: dict[str, Any]) -> None:
        if params["n"] == 1:
            with subprocess.Popen(["sleep", "600"]) as program:
                Path("program").write_text(str(program.pid))
        simulate(params)

    store = store_of(be_late, timeout=1.0)
    begun = time.monotonic()
    with pytest.raises(SweepError) as caught:
        store.sweep(sets(0, 1, 2, 3), on_error="finish")
    assert time.monotonic() - begun < DEADLINE
    (failure,) = caught.value.failures
    assert isinstance(failure.exception, RunTimeoutError)
    assert isinstance(failure.exception, TimeoutError)
    assert "timeout=1 seconds" in str(failure.exception)
    assert [record.n for record in caught.value.records] == [0, 2, 3]
    program = int(Path("program").read_text())
    wait_for(lambda: not is_running(program))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not just its remains."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_late_async_runner_is_stopped_on_the_loop(make_store: Callable[..., Any]) -> None:
    """A TimeoutError of its own is not mistaken for that."""

    async def be_late(params: dict[str, Any]) -> None:
        if params["n"] == 1:
            raise TimeoutError("of the runner's own")
        await asyncio.Event().wait()

    store = make_store("async-threads", runner=be_late)
    with pytest.raises(RunTimeoutError, match=r"timeout=0\.05 seconds"):
        store.sweep(sets(2), timeout=0.05)
    with pytest.raises(TimeoutError, match="of the runner's own") as caught:
        store.sweep(sets(1), timeout=60)
    assert not isinstance(caught.value, RunTimeoutError)


@databases.both
def test_a_cancelled_sweep_kills_what_runs() -> None:
    """At once, and leaves nothing."""

    def block(params: dict[str, Any]) -> None:
        note_process(params)
        time.sleep(600)

    async def main() -> None:
        async with AsyncStore(
            block,
            Point,
            file_suffix=".npy",
            executor="process",
            max_workers=2,
            db_url=databases.url(),
        ) as store:
            sweep = asyncio.create_task(store.sweep(sets(1, 2, 3)))
            async with asyncio.timeout(DEADLINE):
                while len(pids()) < 2:
                    await asyncio.sleep(0.01)
                sweep.cancel()
                await asyncio.wait({sweep})
            assert sweep.cancelled()
            assert not any(is_running(pid) for pid in pids())
            assert await store.retrieve({"n": 1}) is None

    asyncio.run(main())
    assert not list(Path("results/.entropic/staging").iterdir())


@databases.both
def test_a_runner_may_use_a_store(store_of: Any) -> None:
    """Its own: it travels with its settings."""
    inner = Store(simulate, Point, file_suffix=".npy", db_url="sqlite:///inner.sqlite3")

    def feed(params: dict[str, Any]) -> None:
        assert inner.run_or_retrieve({"n": params["n"] // 2}).n == params["n"] // 2
        Path(params["result_file"]).write_text("result")

    assert len(store_of(feed).sweep(sets(0, 2, 4))) == 3
    inner.close()


@databases.both
def test_several_sweeps_share_the_workers() -> None:
    """No more processes than there are workers, whoever asks."""

    async def main() -> None:
        async with (
            AsyncStore(
                note_process,
                Point,
                file_suffix=".npy",
                executor="process",
                max_workers=2,
                db_url=databases.url(),
            ) as store,
            asyncio.TaskGroup() as group,
        ):
            for start in range(0, 12, 3):
                group.create_task(store.sweep(sets(*range(start, start + 3))))
        assert len(pids()) <= 2
        assert calls() == 12

    asyncio.run(main())


def test_a_pool_for_one_sweep_ends_with_it(make_store: Callable[..., Any]) -> None:
    """A store that runs elsewhere has no use for it afterwards."""
    store = make_store("store", runner=note_process)
    store.sweep(sets(1, 2), executor="process")
    assert pids()
    assert not any(is_running(pid) for pid in pids())


NOISY = """\
import subprocess, warnings
def run(params):
    print("from the runner", params["n"])
    subprocess.run(["/bin/echo", "from a program"])
    warnings.warn("from a warning")
    simulate(params)

store = make(run, executor="process", max_workers=1)
store.sweep([{"n": 1}])
store.close()
"""


def test_what_a_runner_prints_reaches_the_terminal() -> None:
    """Its programs' words and its warnings, too; from a script that guards nothing."""
    with scripts.script(NOISY) as script:
        assert script.process.stdout is not None
        printed = script.process.stdout.read()
        assert script.ended() == 0
        assert sorted(printed.split("\n")) == ["", "from a program", "from the runner 1"]
        assert "from a warning" in script.errors()
    assert calls() == 1


MAIN = """\
import enum
class Kind(enum.Enum):
    A = "a"
class Mine(Exception):
    pass
factor = 3
say("script runs")
def run(params):
    if params["n"] == 2:
        raise Mine(Kind.A)
    with open(params["result_file"], "w") as file:
        file.write(str(factor * params["n"]))
store = make(run, executor="process", max_workers=2)
say(open(store.run_or_retrieve({"n": 5}).result_file).read())
try:
    store.run_or_retrieve({"n": 2})
except Mine as error:
    say("caught", error.args[0] is Kind.A)
"""


def test_a_script_without_a_guard_runs_once() -> None:
    """Its functions, globals and exceptions travel; nothing is started without end."""
    lines, _ = scripts.run(MAIN)
    assert lines == ["script runs", "15", "caught True"]


CHILD = """\
import multiprocessing
class Mine(Exception):
    pass
factor = 3
def run(params):
    if params["n"] == 2:
        raise Mine
    with open(params["result_file"], "w") as file:
        file.write(str(factor * params["n"]))
def ask():
    store = make(run, executor="process", max_workers=1)
    say(open(store.run_or_retrieve({"n": 5}).result_file).read())
    try:
        store.run_or_retrieve({"n": 2})
    except Mine:
        say("caught")
    store.close()
if __name__ == "__main__":
    child = multiprocessing.get_context(METHOD).Process(target=ask)
    child.start()
    child.join()
    say("ended", child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_scripts_runner_works_in_a_child_of_the_script(method: str) -> None:
    """There its module has another name, that of no module that a worker could import."""
    lines, _ = scripts.run(scripts.arguments(METHOD=method) + CHILD)
    assert lines == ["15", "caught", "ended 0"]


BUSY = """\
def run(params):
    say("in", os.getpid())
    if params["n"] == 1:
        while True: pass
    time.sleep(600)
store = make(run, executor="process", max_workers=2)
try:
    list(getattr(store, CALL)([{"n": 1}, {"n": 2}, {"n": 3}]))
except KeyboardInterrupt:
    say("interrupted")
"""


@pytest.mark.parametrize("call", ["sweep", "as_completed"])
@pytest.mark.parametrize("sent", ["kill", "terminate", "interrupt"])
def test_workers_end_with_their_parent(sent: str, call: str) -> None:
    """Killed outright, told to end, or interrupted at a terminal: whatever their runners do."""
    with scripts.script(scripts.arguments(CALL=call) + BUSY) as script:
        workers = [int(script.expect("in")) for _ in range(2)]
        begun = time.monotonic()
        if sent == "interrupt":
            script.interrupt()
            script.expect("interrupted")
        else:
            getattr(script.process, sent)()
        script.ended()
        wait_for(lambda: not any(is_running(pid) for pid in workers))
        assert time.monotonic() - begun < 3


GROUP = """\
os.environ["GROUP"] = str(os.getpgrp())
def run(params):
    say(os.getpgrp() == int(os.environ["GROUP"]))
    simulate(params)
make(run, executor="process").run({"n": 1})
"""


def test_a_terminals_ctrl_c_is_the_parents_to_handle() -> None:
    """Workers are of another process group: what was nearly done is not killed under it."""
    lines, _ = scripts.run(GROUP)
    assert lines == ["False"]


def test_a_process_that_cannot_start_is_an_error(
    store_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not started again and again."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    store = store_of()
    with pytest.raises(WorkerDiedError, match="exit code 1"):
        store.run({"n": 1})


def test_nothing_stays_open() -> None:
    """No file, no thread, no zombie."""

    async def main() -> None:
        async with AsyncStore(
            die,
            Point,
            file_suffix=".npy",
            executor="process",
            max_workers=2,
            db_url=databases.url(),
        ) as store:
            await store.sweep(sets(*range(6)), on_error="skip")

    asyncio.run(main())
    process = psutil.Process()
    files, children = process.num_fds(), set(process.children())
    threads = threading.active_count()
    for _ in range(3):
        asyncio.run(main())
    assert process.num_fds() <= files
    assert set(process.children()) == children
    wait_for(lambda: threading.active_count() <= threads)


def leave_a_child(params: dict[str, Any]) -> None:
    """A runner whose process dies, and has forked another one, which keeps all that it had open."""
    note_process(params)
    child = os.fork()
    if not child:
        time.sleep(600)
    Path("child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_missed_although_what_it_forked_lives(store_of: Any) -> None:
    """Its socket is still open; and what it forked ends with it."""
    store = store_of(leave_a_child, max_workers=1)
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        store.run({"n": 1})
    wait_for(lambda: not is_running(int(Path("child").read_text())))


def test_a_worker_that_cannot_be_started_fails_its_run(
    store_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason."""
    store = store_of()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(RunError, match=r"could not be started.*No such file"):
            store.run({"n": 1})
    assert store.run({"n": 1}).n == 1


def test_a_path_object_on_the_import_path_and_a_very_long_timeout(
    store_of: Any, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Both are what some programs have."""
    monkeypatch.setattr(sys, "path", [*sys.path, folder])
    store = store_of(timeout=1e10)
    assert store.run({"n": 1}).n == 1


OPTIMISED = """\
def run(params):
    assert False, "asserts are off"
    simulate(params)
make(run, executor="process").run({"n": 1})
"""


def test_a_worker_has_the_options_of_its_parents_interpreter() -> None:
    """Of python -O, for instance."""
    scripts.run(OPTIMISED, "-O")
    assert calls() == 1


def leave_a_child_idle(params: dict[str, Any]) -> None:
    """A runner that forks a process which keeps all that it had open, the first time."""
    note_process(params)
    if params["n"] == 1:
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
        Path("child").write_text(str(child))


def test_a_large_job_is_not_sent_for_ever_to_a_worker_that_has_died(store_of: Any) -> None:
    """Although what it forked holds its socket open: another worker runs it, once."""
    store = store_of(leave_a_child_idle, max_workers=1)
    store.run({"n": 1})
    (worker,) = pids()
    os.kill(worker, signal.SIGKILL)
    assert store.run({"n": 2, "label": "y" * 5_000_000}).n == 2
    assert not is_running(int(Path("child").read_text()))
    assert len(pids()) == 2
    assert calls() == 2


def die_of(params: dict[str, Any]) -> None:
    """A runner that ends its process in a way of its own."""
    if params["n"] == 1:
        os.kill(os.getpid(), signal.SIGRTMIN + 6)
    os.closerange(3, 200)
    time.sleep(600)


def test_how_a_worker_was_lost_is_said(store_of: Any) -> None:
    """By a signal without a name; or because the runner has closed what was not its own."""
    store = store_of(die_of, max_workers=1)
    with pytest.raises(WorkerDiedError, match=f"was killed by signal {signal.SIGRTMIN + 6};"):
        store.run({"n": 1})
    with pytest.raises(WorkerDiedError, match="the runner closed files"):
        store.run({"n": 2})


FORGETFUL = """\
def run(params):
    if params["n"] == 1:
        os._exit(7)
    simulate(params)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
store = make(run, executor="process", max_workers=1)
try:
    store.run({"n": 1})
except entropic.WorkerDiedError as error:
    say("how is not known" in str(error))
say(store.run({"n": 2}).n)
"""


def test_a_program_that_takes_no_notice_of_its_children_hears_of_their_death() -> None:
    """How they ended, the system has forgotten."""
    lines, _ = scripts.run("import entropic, signal\n" + FORGETFUL)
    assert lines == ["True", "2"]


def close_output(params: dict[str, Any]) -> None:
    """A runner that does not want to be heard."""
    note_process(params)
    if params["n"] == 1:
        sys.stdout.close()
    elif params["n"] == 2:
        sys.stdout = None


def test_a_worker_without_an_output_goes_on(store_of: Any) -> None:
    """Nobody needs it to write there."""
    store = store_of(close_output, max_workers=1)
    assert [record.n for record in store.sweep(sets(1, 2, 3))] == [1, 2, 3]
    assert len(pids()) == 1


def fork_and_return(params: dict[str, Any]) -> None:
    """A runner whose child forgets to end, and comes back from it, too."""
    Path(params["result_file"]).write_text(str(params["n"]))
    if params["n"] == 1:
        if not os.fork():
            wait_for(lambda: Path("second").exists())
    elif params["n"] == 2:
        Path("second").touch()
        ended = psutil.STATUS_ZOMBIE
        wait_for(lambda: all(it.status() == ended for it in psutil.Process().children()))


def test_a_runners_child_that_comes_back_answers_for_nobody(store_of: Any) -> None:
    """Its parent is the worker: its answer would be taken for that of the next run."""
    store = store_of(fork_and_return, max_workers=1)
    records = store.sweep(sets(1, 2, 3))
    assert [Path(record.result_file).read_text() for record in records] == ["1", "2", "3"]


IDLE = """\
import threading
def run(params):
    simulate(params)
    threading.Thread(target=time.sleep, args=[600]).start()
    say("in", os.getpid())
store = make(run, executor="process", max_workers=1)
store.run({"n": 1})
say("idle")
time.sleep(600)
"""


def test_an_idle_worker_ends_with_its_parent_whatever_its_runners_have_left() -> None:
    """A thread of theirs, that would go on for long."""
    with scripts.script(IDLE) as script:
        worker = int(script.expect("in"))
        script.expect("idle")
        script.process.kill()
        script.ended()
        wait_for(lambda: not is_running(worker))


@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_messages_come_in_any_parts(messages: list[bytes], size: int) -> None:
    """A byte at a time, or several of them at once; and not before they are whole."""
    sent = b"".join(worker_process.framed(*messages))
    inbox, come = worker_process.Inbox(), []
    for at in range(0, len(sent), size):
        inbox.add(sent[at : at + size])
        while (message := inbox.take()) is not None:
            come.append(message)
        assert len(b"".join(worker_process.framed(*come))) <= at + size
    assert come == messages
    assert inbox.take() is None


def test_a_large_message_is_sent_in_parts() -> None:
    """And comes whole."""
    messages = [b"small", bytes(1_000_000), b"last"]
    inbox = worker_process.Inbox()
    parts = worker_process.framed(*messages)
    assert len(parts) > 1
    for part in parts:
        inbox.add(part)
    assert [inbox.take() for _ in range(4)] == [*messages, None]


def test_a_forked_child_has_no_say_in_its_parents_workers(folder: Path) -> None:
    """It could neither ask one nor end one."""
    process = asyncio.run(processes.WorkerProcess.started())
    stage = Stage(str(folder / "stage"), "id.npy")
    params = {"n": 1, "dt": 0.5}
    job = Job(simulate, params, "id", "cache", stage, checksum=False)
    assert asyncio.run(process.run(dumps(job), None)).error is None
    worker = process._process
    process.abandon()
    assert not process.is_open
    asyncio.run(process.kill())
    assert worker.poll() is None
    worker.kill()
    worker.wait()

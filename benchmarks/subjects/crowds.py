"""One SQLite database under many processes that hit and miss it."""

import multiprocessing
import time
from typing import Any

from measuring import main, measured
from models import store_of
from simulations import DT, trivial

from entropic import Store

_EACH = 20  # sets of one call


def one(size: int) -> None:
    _crowd(1, size)


def eight(size: int) -> None:
    _crowd(8, size)


def _crowd(processes: int, size: int) -> None:
    """As many sets in all, however many share them; half of them are stored."""
    store_of(Store, trivial).sweep({"n": n, "dt": DT} for n in range(size))
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes + 1), context.SimpleQueue()
    children = [
        context.Process(target=_work, args=(part, size // processes, ready, answers))
        for part in range(processes)
    ]
    for child in children:
        child.start()
    ready.wait()
    with measured():
        found = [answers.get() for _ in children]
    for child in children:
        child.join()
    assert found == [None] * processes, found


def _work(part: int, count: int, ready: Any, answers: Any) -> None:
    with store_of(Store, trivial) as store:
        store.retrieve({"n": 0, "dt": DT})
        new = time.time_ns() + part * 10**9
        ready.wait()
        try:
            for first in range(0, count, 2 * _EACH):
                stored = [{"n": first + n, "dt": DT} for n in range(_EACH)]
                store.sweep(stored + [{"n": new + first + n, "dt": DT} for n in range(_EACH)])
        except Exception as error:
            answers.put(repr(error))
        else:
            answers.put(None)


if __name__ == "__main__":
    main({"one": one, "eight": eight})

"""Models and runners that the tests share.

Runners leave a mark for each call in a folder: so calls are counted across processes, too.
"""

import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from entropic import Base, Mapped, mapped_column
from entropic.artifacts import stage as stages


class SimResult(Base):
    """The quickstart's model."""

    __tablename__ = "results"

    n: Mapped[int]
    steps: Mapped[int]
    dt: Mapped[float]


class Point(Base):
    """A small model with a default and a nullable parameter."""

    __tablename__ = "points"

    n: Mapped[int]
    dt: Mapped[float] = mapped_column(default=0.5)
    label: Mapped[str | None]


CALLS = "calls"


def mark_call(params: dict[str, Any]) -> None:
    """Leave a mark that this run was started, in ``calls/`` of the working directory."""
    folder = Path(os.environ.get("ENTROPIC_TEST_CALLS", CALLS))
    folder.mkdir(exist_ok=True)
    (folder / f"{params['id']}.{uuid.uuid4().hex}").touch()


def calls(id: str | None = None) -> int:
    """How many runs were started; those of one id, if one is given."""
    folder = Path(os.environ.get("ENTROPIC_TEST_CALLS", CALLS))
    return len(list(folder.glob(f"{id}.*" if id else "*")))


def simulate(params: dict[str, Any]) -> None:
    """Write a small array that tells which parameters it was made from."""
    mark_call(params)
    with open(params["result_file"], "wb") as file:
        np.save(file, np.array([params["n"], params["dt"]]))


async def simulate_async(params: dict[str, Any]) -> None:
    """The same, as an ``async def``."""
    simulate(params)


def end_process() -> None:
    """End the process that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


def simulate_and_then(end: Callable[[], object], params: dict[str, Any]) -> None:
    """The same, in a worker process that comes to an end once the result is sealed."""
    seal = stages.seal

    def seal_last(*args: Any, **kwargs: Any) -> None:
        seal(*args, **kwargs)
        end()

    stages.seal = seal_last
    simulate(params)

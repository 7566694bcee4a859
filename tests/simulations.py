"""Models and runners that the tests share.

Runners leave a mark for each call in a folder: so calls are counted across processes, too.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from entropic import Base, Mapped, mapped_column


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

"""The model, and a store of it where the harness has set the working directory."""

from collections.abc import Callable
from typing import Any

from entropic import Base, Mapped


class Result(Base):
    __tablename__ = "results"

    n: Mapped[int]
    dt: Mapped[float]


def store_of(kind: Callable[..., Any], runner: Callable[..., None], **options: Any) -> Any:
    """A store of either kind; of entropic 2.3.0, too, where no option is given."""
    return kind(runner, Result, "./results", ".bin", "sqlite:///runs.sqlite3", **options)

"""The runners that all subjects share, and their params."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DT = 0.5


def trivial(params: dict[str, Any]) -> None:
    """Write eight bytes."""
    Path(params["result_file"]).write_bytes(params["n"].to_bytes(8, "little", signed=True))


def five_ms(params: dict[str, Any]) -> None:
    """Use a CPU for 5 ms without holding the interpreter, as NumPy would."""
    _work(0.005)
    trivial(params)


def ten_ms(params: dict[str, Any]) -> None:
    """The same, for 10 ms."""
    _work(0.010)
    trivial(params)


def sets(size: int) -> Iterator[dict[str, Any]]:
    """Distinct params: an int and a float."""
    return ({"n": n, "dt": DT} for n in range(size))


def bare(size: int, folder: Path) -> list[dict[str, Any]]:
    """The same, with a result file: what a runner is given where no store gives it."""
    folder.mkdir()
    return [{**params, "result_file": str(folder / f"{params['n']}.bin")} for params in sets(size)]


def _work(seconds: float) -> None:
    # In seconds of this thread's own CPU time: who is kept waiting has still all its work to do.
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"entropic", b"benchmark", 500)

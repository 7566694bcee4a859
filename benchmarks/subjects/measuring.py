"""How a subject measures itself: the time and the memory of one block.

The scripts beside this one run as scripts, in several environments, and import no package of this
repository's but the ``entropic`` that their environment holds.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def measured() -> Iterator[None]:
    """Time a block, and print what it took as JSON for the harness.

    The growth is the peak of the resident memory within the block less what was resident before.
    """
    _forget_the_peak()
    before = _kilobytes("VmRSS")
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    growth = max(0, _kilobytes("VmHWM") - before) * 1024
    print(json.dumps({"seconds": seconds, "growth": growth}))


def main(functions: dict[str, Callable[[int], None]]) -> None:
    """Do what the command line says: the function's name, and how many.

    What fails is told the harness in a line: that a subject cannot do a work is a figure, too.
    """
    try:
        functions[sys.argv[1]](int(sys.argv[2]))
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0][:100]}))


def _forget_the_peak() -> None:
    # Documented in proc(5): 5 resets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")


def _kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}")

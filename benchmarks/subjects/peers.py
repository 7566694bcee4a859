"""The neighbours: joblib.Memory and diskcache, doing what one does with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diskcache
import joblib
from measuring import main, measured
from simulations import sets


def simulate(n: int, dt: float) -> bytes:
    return n.to_bytes(8, "little", signed=True)


def joblib_cold(size: int) -> None:
    _cold(_memory(), size)


def joblib_hits(size: int) -> None:
    _hits(_memory(), size)


def diskcache_cold(size: int) -> None:
    with diskcache.Cache("diskcache") as cache:
        _cold(cache.memoize()(simulate), size)


def diskcache_hits(size: int) -> None:
    with diskcache.Cache("diskcache") as cache:
        _hits(cache.memoize()(simulate), size)


def _cold(cached: Callable[..., object], size: int) -> None:
    cached(n=-1, dt=0.5)
    with measured():
        for params in sets(size):
            cached(**params)


def _hits(cached: Callable[..., object], size: int) -> None:
    params = list(sets(size))
    for each in params:
        cached(**each)
    with measured():
        for each in params:
            cached(**each)


def _memory() -> Any:
    return joblib.Memory(Path("joblib"), verbose=0).cache(simulate)


if __name__ == "__main__":
    main(
        {
            "joblib_cold": joblib_cold,
            "joblib_hits": joblib_hits,
            "diskcache_cold": diskcache_cold,
            "diskcache_hits": diskcache_hits,
        }
    )

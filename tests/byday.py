"""Which cases of a test run by day: those that tell the most; ``make nightly`` runs all.

Most tests are about one thing, and are run on two databases and through up to four faces of the
store. Each thing has its turn by day, but not on every pair of those: the pairs take turns, from
one test to the next and from one value to the next.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from entropic import AsyncStore, Store

FACES = (
    *("store", "store-threads", "store-loop", "async-threads", "async-loop"),
    *("Store", "AsyncStore", Store, AsyncStore),
)
"""Values of parameters that say how the store is used."""

# Every so many values of a test, the first one among them, have their turn on PostgreSQL, too.
_ON_POSTGRESQL = 5


def leave_to_the_night(items: Iterable[pytest.Item]) -> None:
    """Mark what is left out by day."""
    tests: dict[Any, dict[Any, list[pytest.Function]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests[item.parent, item.originalname][_about(item.callspec)].append(item)
    modules: dict[Any, int] = defaultdict(int)
    for (module, _), values in tests.items():
        modules[module] += 1
        for number, cases in enumerate(values.values()):
            _choose(cases, turn=modules[module] + number, on_server=_is_on_server(number))


def _about(callspec: Any) -> tuple[tuple[str, int], ...]:
    """What tells a case from others, but for the database and the face."""
    return tuple(
        (name, id(value))
        for name, value in callspec.params.items()
        if name != "database" and not _is_face(value)
    )


def _is_face(value: Any) -> bool:
    return isinstance(value, str | type) and value in FACES


def _is_on_server(number: int) -> bool:
    return number % _ON_POSTGRESQL == 0


def _choose(cases: list[pytest.Function], turn: int, *, on_server: bool) -> None:
    server = [case for case in cases if case.callspec.params.get("database") == "postgresql"]
    others = [case for case in cases if case not in server]
    chosen = others[turn % len(others) :][:1] if others else []
    if server and (on_server or not others):
        chosen.append(server[(turn + 1) % len(server)])
    for case in cases:
        if case not in chosen:
            case.add_marker(pytest.mark.nightly)

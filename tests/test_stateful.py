"""The store held against a plain dict, through everything that can happen to it in one process."""

import itertools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from entropic import Store
from tests import databases
from tests.simulations import Point

Key = tuple[int, float]

# Two ways to write each of a few sets: as the model types them, and as people pass them.
numbers = st.sampled_from([1, 2, 3])
steps = st.sampled_from([0.5, 0.25])
sets = st.tuples(numbers, steps)


def spelled(key: Key, *, loosely: bool) -> dict[str, Any]:
    """Params of a set; loosely spelled, they are the same set all the same."""
    n, dt = key
    if not loosely:
        return {"n": n, "dt": dt}
    return {"n": float(n)} if dt == 0.5 else {"dt": dt, "n": float(n), "label": None}


@dataclass
class Expected:
    """What must be stored of one set."""

    content: str
    note: str | None
    created_at: Any
    path: Path
    is_intact: bool = True


class AgainstADict(RuleBasedStateMachine):
    """Every call must do to the store what it does to the dict."""

    notes = Bundle("notes")

    @initialize(executor=st.sampled_from(["caller", "thread"]))
    def open_store(self, executor: str) -> None:
        """An empty folder and database."""
        self.folder = Path(tempfile.mkdtemp())
        databases.current().clear()
        self.executor = executor
        self.versions = itertools.count()
        self.started: list[str] = []
        self.will_fail = False
        self.expected: dict[Key, Expected] = {}
        self.store = self.make_store()

    def make_store(self) -> Store[Point]:
        """A store on the machine's folder and database."""
        return Store(
            self.simulate,
            Point,
            self.folder / "results",
            ".txt",
            databases.url(),
            executor=self.executor,
        )

    def simulate(self, params: dict[str, Any]) -> None:
        """Each run's result is one of its own."""
        self.started.append(params["id"])
        if self.will_fail:
            Path(params["result_file"]).write_text("half of it")
            raise ArithmeticError("diverged")
        Path(params["result_file"]).write_text(f"version {next(self.versions)}")

    def hits(self, key: Key) -> bool:
        """Whether a set is stored, with its result."""
        return key in self.expected and self.expected[key].is_intact

    def took(self, key: Key, record: Point, *, ran: bool, note: str | None) -> None:
        """Note a record that a call returned."""
        before = self.expected.get(key)
        content = Path(record.result_file).read_text()
        if ran:
            created_at = record.created_at if before is None else before.created_at
            self.expected[key] = Expected(content, note, created_at, Path(record.result_file))
        self.check(key, record)

    def check(self, key: Key, record: Point) -> None:
        """A record says what the dict says."""
        expected = self.expected[key]
        assert (record.n, record.dt, record.label) == (*key, None)
        assert Path(record.result_file).read_text() == expected.content
        assert record.custom_data.get("note") == expected.note
        assert record.created_at == expected.created_at

    @rule(key=sets, loosely=st.booleans(), note=st.sampled_from(["a", "b"]))
    def run_or_retrieve(self, key: Key, loosely: bool, note: str) -> None:
        """A hit starts nothing; a miss starts one run."""
        hit = self.hits(key)
        self.started.clear()
        record = self.store.run_or_retrieve(spelled(key, loosely=loosely), note=note)
        assert len(self.started) == (0 if hit else 1)
        self.took(key, record, ran=not hit, note=note)

    @rule(key=sets, note=st.sampled_from(["a", "b"]))
    def run(self, key: Key, note: str) -> None:
        """It runs in any case."""
        self.started.clear()
        record = self.store.run(spelled(key, loosely=False), note=note)
        assert len(self.started) == 1
        self.took(key, record, ran=True, note=note)

    @rule(key=sets, force=st.booleans())
    def fail(self, key: Key, force: bool) -> None:
        """A failed run changes nothing."""
        self.will_fail = True
        try:
            if self.hits(key) and not force:
                self.store.run_or_retrieve(spelled(key, loosely=False))
            else:
                with pytest.raises(ArithmeticError, match="diverged"):
                    self.store.run(spelled(key, loosely=False))
        finally:
            self.will_fail = False

    @rule(key=sets, loosely=st.booleans())
    def retrieve(self, key: Key, loosely: bool) -> None:
        """It gives what is stored, and runs nothing."""
        self.started.clear()
        record = self.store.retrieve(spelled(key, loosely=loosely))
        assert not self.started
        assert (record is not None) == self.hits(key)
        if record is not None:
            self.check(key, record)

    @rule(key=sets, remove_file=st.booleans())
    def delete(self, key: Key, remove_file: bool) -> None:
        """True if there was a row."""
        expected = self.expected.pop(key, None)
        deleted = self.store.delete(spelled(key, loosely=True), remove_file=remove_file)
        assert deleted == (expected is not None)
        if expected is not None and remove_file and expected.is_intact:
            assert not expected.path.exists()

    @rule(key=sets, content=st.sampled_from(["made", "made elsewhere"]))
    def register(self, key: Key, content: str) -> None:
        """A file made elsewhere replaces what is stored."""
        path = self.folder / f"external-{next(self.versions)}.txt"
        path.write_text(content)
        record = self.store.register(spelled(key, loosely=False), path, note="registered")
        assert record.result_file == str(path)
        self.took(key, record, ran=True, note="registered")

    @rule(keys=st.lists(sets, max_size=8), note=st.sampled_from(["a", "b"]))
    def sweep(self, keys: list[Key], note: str) -> None:
        """Distinct sets in first-seen order; only what is missing runs."""
        distinct = list(dict.fromkeys(keys))
        hits = {key for key in distinct if self.hits(key)}
        self.started.clear()
        inputs = (spelled(key, loosely=at % 2 == 1) for at, key in enumerate(keys))
        records = self.store.sweep(inputs, custom_data={"note": note})
        assert len(self.started) == len(distinct) - len(hits)
        assert len(records) == len(distinct)
        for key, record in zip(distinct, records, strict=True):
            self.took(key, record, ran=key not in hits, note=note)

    @precondition(lambda self: any(e.is_intact for e in self.expected.values()))
    @rule(data=st.data(), how=st.sampled_from(["removed", "cut short", "emptied"]))
    def lose_a_result(self, data: st.DataObject, how: str) -> None:
        """A result is damaged behind the store's back: a miss from now on."""
        intact = sorted(key for key, e in self.expected.items() if e.is_intact)
        expected = self.expected[data.draw(st.sampled_from(intact))]
        if how == "removed":
            expected.path.unlink()
        else:
            expected.path.write_text("v" if how == "cut short" else "")
        expected.is_intact = False

    @rule()
    def reopen(self) -> None:
        """Another store on the same database and folder has everything."""
        self.store.close()
        self.store = self.make_store()

    @invariant()
    def nothing_is_left_staged(self) -> None:
        """Between calls no run is under way, so the staging area is empty."""
        staging = self.folder / "results" / ".entropic" / "staging"
        assert not staging.exists() or not any(staging.iterdir())

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


@pytest.mark.usefixtures("database")
def test_the_store_does_what_a_dict_would() -> None:
    """The normal run: some dozens of stories."""
    run_state_machine_as_test(
        AgainstADict,
        settings=settings(
            max_examples=25 if databases.current().name == "sqlite" else 8,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.usefixtures("database")
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_store_does_what_a_dict_would_at_length() -> None:
    """The nightly run: many, and longer."""
    run_state_machine_as_test(
        AgainstADict,
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""Finding, counting and deleting by conditions: the same rows on every database."""

import asyncio
import enum
import logging
import math
import threading
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy.orm import aliased

from entropic import (
    AsyncStore,
    Base,
    Mapped,
    ParamsError,
    Records,
    SettingsError,
    Store,
    mapped_column,
)
from entropic.models import ExactDecimal
from tests import databases
from tests.simulations import Point, simulate


class Colour(enum.Enum):
    """A small enum."""

    RED = "red"
    BLUE = "blue"


class Rich(Base):
    """A model with a column of each kind that conditions treat in a way of its own."""

    __tablename__ = "rich"

    n: Mapped[int]
    x: Mapped[float | None]
    word: Mapped[str | None]
    is_on: Mapped[bool] = mapped_column(default=False)
    colour: Mapped[Colour | None]
    exact: Mapped[Decimal | None]
    day: Mapped[date | None]
    at: Mapped[datetime | None]
    key: Mapped[uuid.UUID | None]
    where: Mapped[Path | None]
    config: Mapped[dict[str, Any] | None]
    grid: Mapped[NDArray[np.float64] | None]


def write(params: dict[str, Any]) -> None:
    """A result of a few bytes."""
    Path(params["result_file"]).write_text(str(params["n"]))


@pytest.fixture
def rich(make_store: Any, database: databases.Place) -> Any:
    """A store of the rich model, on each database."""
    return make_store(runner=write, result_cls=Rich, file_suffix=".txt")


def ns(records: Any) -> list[int]:
    """The ``n`` of each record."""
    return [record.n for record in records]


def test_find_gives_the_records_that_meet_all_conditions(store: Any) -> None:
    """Expressions and dicts; as ``retrieve`` gives them."""
    records = store.sweep([{"n": n, "dt": dt} for n in (3, 1, 2) for dt in (0.5, 0.25)])
    assert sorted(ns(store.find())) == [1, 1, 2, 2, 3, 3]
    found = store.find(Point.n > 1, Point.dt < 0.3, order_by="-n")
    assert [(r.n, r.dt) for r in found] == [(3, 0.25), (2, 0.25)]
    assert isinstance(found, Records)
    assert found[0].result_file == records[1].result_file
    assert found[0].custom_data == records[1].custom_data
    assert found[0].created_at == records[1].created_at
    assert store.find({"n": 1.0, "dt": 0.25})[0].id == records[3].id
    assert store.find({"n": 1}, Point.dt == 0.25)[0].id == records[3].id
    assert store.find((Point.n == 1) | (Point.n == 2), Point.dt == 0.5, Point.n != 2)[0].n == 1
    assert store.find(Point.n > 5) == []


def test_find_orders_and_cuts(store: Any) -> None:
    """By columns, names, expressions and several of them; limit and offset count rows."""
    store.sweep([{"n": n, "dt": dt} for n in (3, 1, 2) for dt in (0.5, 0.25)])
    assert ns(store.find(order_by=Point.n)) == [1, 1, 2, 2, 3, 3]
    assert ns(store.find(order_by="-n", limit=2)) == [3, 3]
    assert ns(store.find(order_by=Point.n.desc(), offset=5)) == [1]
    found = store.find(order_by=["dt", Point.n.desc()], limit=3, offset=1)
    assert [(r.n, r.dt) for r in found] == [(2, 0.25), (1, 0.25), (3, 0.5)]
    assert ns(store.find(order_by=-Point.n * Point.dt, limit=1)) == [3]
    assert store.find(limit=0) == []
    assert store.first(order_by="n").n == 1
    assert store.first(Point.n == 9) is None


def test_the_oldest_come_first(store: Any) -> None:
    """Where no order is asked for; a re-run keeps its place."""
    for n in (3, 1, 2):
        store.run_or_retrieve({"n": n})
    store.run({"n": 3})
    assert ns(store.find()) == [3, 1, 2]
    assert ns(store.iter_find(Point.n != 1)) == [3, 2]
    assert store.first().n == 3


def test_count_and_iter_find_say_the_same(store: Any) -> None:
    """As ``find`` does, whichever part is asked for."""
    store.sweep({"n": n} for n in range(7))
    assert store.count() == 7
    assert store.count(Point.n >= 5) == store.count({"n": 5}) + store.count({"n": 6}) == 2
    found = store.iter_find(Point.n >= 2, order_by="-n", limit=3, offset=1)
    assert ns(found) == [5, 4, 3]
    assert ns(store.iter_find()) == ns(store.find())


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ([True], "not True"),
        ([Point.n], "not "),
        ([Point.n.desc()], "not "),
        ([sa.select(Point)], "not "),
        ([Point.n < 2**63], "does not fit 64 bits"),
        ([Point.dt.in_([math.nan])], "NaN"),
        ([Point.label == "\ud800"], "half a character"),
        ([Point.label == "a\0b"], "NUL"),
        ([aliased(Point).n == 1], "an alias.n"),
        ([Point.n.in_(range(40_000))], "can have 30,000"),
        (["n > 1"], "not 'n > 1'"),
        ([{"m": 1}], "no parameter 'm'"),
        ([{"n": 1.5}], "cannot take 1.5"),
        ([{"created_at": "today"}], "created_at cannot be 'today'"),
        ([Base.custom("a")], "a condition is an expression"),
        ([Rich.n == 1], "speaks of rich.n"),
        ([Point.created_at > "today"], "a value that it cannot"),
    ],
)
def test_what_is_no_condition_is_refused(make_store: Any, where: list[Any], said: str) -> None:
    """With a message that says which, before anything is asked."""
    store = make_store()
    for method in (store.find, store.count, store.delete_where):
        with pytest.raises(ParamsError, match=said):
            method(*where)


def test_what_is_no_order_is_refused(make_store: Any) -> None:
    """An unknown name is told with the nearest; a limit is a whole number."""
    store = make_store()
    with pytest.raises(ParamsError, match="no column 'lable': did you mean 'label'"):
        store.find(order_by="-lable")
    with pytest.raises(ParamsError, match="order_by is a column"):
        store.find(order_by=3)
    with pytest.raises(SettingsError, match="limit must be"):
        store.find(limit=-1)
    with pytest.raises(SettingsError, match="offset must be"):
        next(store.iter_find(offset=1.5))


VALUES: dict[str, list[Any]] = {
    "x": [0.3, 0.1 + 0.2, 1e300, -0.0, float("inf"), None, 5],
    "word": ["a", "A", "é", "", None],
    "is_on": [True, False],
    "colour": [Colour.RED, "blue", None],
    "exact": [Decimal("1.5"), Decimal(10), None],
    "day": [date(2026, 1, 2), None],
    "at": [datetime(2026, 1, 2, 3, tzinfo=UTC), datetime(2026, 1, 2, 3), None],
    "key": [uuid.UUID(int=5), None],
    "where": [Path("a/b"), None],
    "config": [{"b": 1, "a": [0.1 + 0.2]}, {"a": [0.3], "b": 1.0}, None],
    "grid": [np.eye(2), [[1.0, 0.0], [0.0, 1.0]], None],
}


@pytest.mark.parametrize("name", VALUES)
def test_a_dict_finds_what_the_same_params_would_hit(rich: Any, name: str) -> None:
    """Whatever its type: a value is equal to those that are one run with it, and to no other."""
    values = VALUES[name]
    records = [rich.run_or_retrieve({"n": 1, name: value}) for value in values]
    for value, record in zip(values, records, strict=True):
        assert [r.id for r in rich.find({name: value})] == [record.id]
        assert rich.count({name: value}, Rich.n == 1) == 1
        assert rich.find({name: value, "n": 2}, limit=1) == []
        assert [r.id for r in rich.iter_find({name: value})] == [record.id]


def test_texts_are_ordered_by_their_code_points(rich: Any) -> None:
    """On a server with another collation, too; in conditions and in orders; LIKE knows cases."""
    words = ["Zebra", "apple", "Äpfel", "a_b", "axb", "z", "A"]
    rich.sweep({"n": n, "word": word} for n, word in enumerate(words))
    assert [r.word for r in rich.find(order_by="word")] == sorted(words)
    assert {r.word for r in rich.find(Rich.word < "a")} == {w for w in words if w < "a"}
    assert {r.word for r in rich.find(Rich.word.between("A", "b"))} == {
        w for w in words if "A" <= w <= "b"
    }
    assert {r.word for r in rich.find(Rich.word.like("a%"))} == {"apple", "a_b", "axb"}
    assert {r.word for r in rich.find(Rich.word.contains("_", autoescape=True))} == {"a_b"}
    assert {r.word for r in rich.find(Rich.word.in_(["z", "A", "none"]))} == {"z", "A"}
    assert rich.count(Rich.word.in_([])) == 0
    assert rich.count(Rich.word.not_in(["z"])) == rich.count(Rich.word.not_in([])) - 1 == 6


def test_none_comes_first(rich: Any) -> None:
    """Before the smallest value, and after the largest where the order is turned round."""
    rich.sweep([{"n": 1, "x": 2.0}, {"n": 2}, {"n": 3, "x": -1.0}])
    assert ns(rich.find(order_by="x")) == [2, 3, 1]
    assert ns(rich.find(order_by=Rich.x.desc())) == [1, 3, 2]
    assert ns(rich.find(order_by=Rich.x.desc().nulls_first())) == [2, 1, 3]
    assert ns(rich.find(Rich.x.is_(None))) == [2]


def test_decimals_are_ordered_by_their_values(rich: Any) -> None:
    """Although they are kept as text."""
    rich.sweep({"n": n, "exact": Decimal(text)} for n, text in enumerate(["9", "10.5", "-1"]))
    assert ns(rich.find(order_by="exact")) == [2, 0, 1]
    assert ns(rich.find(Rich.exact > Decimal("9.5"))) == [1]
    assert ns(rich.find(Rich.exact.between(Decimal(-2), Decimal(9)), order_by="n")) == [0, 2]


def test_decimals_are_compared_by_every_digit(rich: Any) -> None:
    """Also by ==, among others, and by what the largest of them is."""
    texts = ["9", "10", "0.1", "0.10000000000000000001", "123456789012345678901234567891"]
    rich.sweep({"n": n, "exact": Decimal(text)} for n, text in enumerate(texts))
    assert ns(rich.find(Rich.exact == Decimal("9.0"))) == [0]
    assert ns(rich.find(Rich.exact.in_([Decimal("9.00"), Decimal("10.0")]), order_by="n")) == [0, 1]
    assert set(ns(rich.find(Rich.exact != Decimal("9.0")))) == {1, 2, 3, 4}
    assert set(ns(rich.find(Rich.exact.not_in([Decimal("9.0")])))) == {1, 2, 3, 4}
    assert ns(rich.find((Rich.exact > Decimal("0.1")) & (Rich.exact < Decimal("0.2")))) == [3]
    assert rich.count(Rich.exact == Decimal(123456789012345678901234567890)) == 0
    assert ns(rich.find(sa.literal(Decimal("9.5"), ExactDecimal()) < Rich.exact, order_by="n")) == [
        1,
        4,
    ]
    largest = sa.select(sa.func.max(Rich.exact)).scalar_subquery()
    assert ns(rich.find(Rich.exact == largest)) == [4]
    with pytest.raises(ParamsError, match="infinite"):
        rich.find(Rich.exact > Decimal("Infinity"))


def test_computing_with_decimals_and_dates_is_refused(rich: Any) -> None:
    """Databases differ in what comes out, or do not know it."""
    day = timedelta(days=1)
    for condition in (
        Rich.exact + 1 > 10,
        Rich.created_at - Rich.at > day,
        Rich.day + day > date(2026, 1, 1),
        sa.cast(Rich.at, sa.Date) == date(2026, 1, 1),
        Rich.day == datetime(2026, 1, 2),
        Rich.config == {"a": 1},
    ):
        with pytest.raises(ParamsError):
            rich.find(condition)
    assert rich.count(Rich.n + 1 > 10) == rich.count(-Rich.n * 2 > 0) == 0


def test_numbers_of_numpy_are_numbers(rich: Any) -> None:
    """SQLite would keep them as bytes, which are larger than all numbers."""
    rich.sweep({"n": n, "x": n / 2} for n in range(4))
    assert ns(rich.find(Rich.n == np.int64(1))) == [1]
    assert ns(rich.find(Rich.n < np.int32(1))) == [0]
    assert ns(rich.find(Rich.n.in_(np.arange(2)), order_by="n")) == [0, 1]
    assert ns(rich.find(Rich.x.between(np.float32(0.5), np.float64(1)), order_by="n")) == [1, 2]
    assert rich.delete_where(Rich.n < np.int64(1), remove_file=True) == 1
    assert rich.count() == 3


def test_like_has_no_escape_unless_one_is_given(rich: Any) -> None:
    """A backslash is a backslash, on PostgreSQL, too."""
    words = ["C:\\dir", "C:dir", "50%", "a\\_b"]
    rich.sweep({"n": n, "word": word} for n, word in enumerate(words))
    assert ns(rich.find(Rich.word.contains("\\"), order_by="n")) == [0, 3]
    assert ns(rich.find(Rich.word.like("C:\\dir"))) == [0]
    assert ns(rich.find(Rich.word.like("%\\"))) == []
    assert ns(rich.find(Rich.word.contains("%", autoescape=True))) == [2]
    assert ns(rich.find(Rich.word.ilike("c:d%"))) == [1]
    assert set(ns(rich.find(~Rich.word.startswith("C:\\")))) == {1, 2, 3}


def test_a_range_may_be_symmetric_and_values_may_be_pairs(rich: Any) -> None:
    """As SQLAlchemy has them, on every database."""
    rich.sweep({"n": n, "word": "ab"[n % 2]} for n in range(6))
    assert ns(rich.find(Rich.n.between(4, 2, symmetric=True), order_by="n")) == [2, 3, 4]
    assert ns(rich.find(~Rich.n.between(4, 2, symmetric=True), order_by="n")) == [0, 1, 5]
    pairs = sa.tuple_(Rich.n, Rich.word).in_([(1, "b"), (2, "b"), (4, "a")])
    assert ns(rich.find(pairs, order_by="n")) == [1, 4]
    assert ns(rich.find(Rich.n == sa.bindparam("b_ids", 3))) == [3]
    assert ns(rich.find(Rich.is_on, order_by=sa.text("rich.n"))) == []
    assert ns(rich.find(~Rich.is_on, order_by=sa.desc("n"), limit=1)) == [5]


def test_a_condition_on_other_rows_is_judged_once(rich: Any) -> None:
    """And not anew for each hundred that is deleted."""
    rich.sweep({"n": n, "word": str(n // 2)} for n in range(300))
    twice = sa.select(Rich.word).group_by(Rich.word).having(sa.func.count() > 1)
    assert rich.count(Rich.word.in_(twice)) == 300
    assert len(list(rich.iter_find(Rich.word.in_(twice)))) == 300
    assert rich.delete_where(Rich.word.in_(twice)) == 300


def test_many_values_take_no_longer_than_one_look(rich: Any) -> None:
    """Of custom data, too; the event loop goes on meanwhile."""
    rich.sweep([{"n": n} for n in range(20)], custom_data={"tag": 5})
    many = [str(n) for n in range(1500)]  # more than SQLite's expressions can be deep
    assert rich.count(Base.custom("tag").in_([*many, 5, None])) == 20
    assert rich.count(Base.custom("tag").not_in(many)) == 20
    assert rich.count(Rich.n.in_(range(10, 3000))) == 10


def test_times_and_enums_can_be_compared(rich: Any) -> None:
    """A naive time is UTC; created_at is a column like the others."""
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    before = datetime.now(UTC)
    rich.sweep(
        [{"n": 1, "at": noon, "colour": "red"}, {"n": 2, "at": noon + timedelta(microseconds=1)}]
    )
    assert ns(rich.find(Rich.at > datetime(2026, 1, 2, 12))) == [2]
    assert ns(rich.find(Rich.colour == Colour.RED)) == [1]
    assert ns(rich.find(Rich.created_at >= before, Rich.n == 2)) == [2]
    assert rich.count(Rich.created_at < before) == 0


CUSTOM: list[Any] = [None, True, False, 0, 1, 2.5, -3, "", "1", "a", "B", "é"]


def stored_customs(rich: Any) -> dict[int, Any]:
    """A run for each value under the key; -1 for a run without it."""
    for n, value in enumerate(CUSTOM):
        rich.run_or_retrieve({"n": n}, **{'a "key".with$': value, "other": 1})
    rich.run_or_retrieve({"n": -1}, other=1)
    return dict(enumerate(CUSTOM))


def is_same_kind(one: Any, other: Any) -> bool:
    """As JSON has kinds: a bool is no number."""
    kinds = [
        "bool" if isinstance(v, bool) else "text" if isinstance(v, str) else "number"
        for v in (one, other)
    ]
    return one is not None and other is not None and kinds[0] == kinds[1]


def test_custom_data_is_compared_by_kind_and_value(rich: Any) -> None:
    """With every value against every other; the key is taken literally, whatever is in it."""
    values = stored_customs(rich)
    custom = Base.custom('a "key".with$')
    for asked in CUSTOM:
        equal = {n for n, v in values.items() if is_same_kind(v, asked) and v == asked}
        there = {n for n, v in values.items() if v is not None}
        if asked is None:
            missing = {-1, 0}
            assert set(ns(rich.find(custom == None))) == missing  # noqa: E711
            assert set(ns(rich.find(custom.is_not(None)))) == there
            continue
        assert set(ns(rich.find(custom == asked))) == equal
        assert set(ns(rich.find(custom != asked))) == there - equal
        if isinstance(asked, bool):
            with pytest.raises(ParamsError, match="cannot be less or more"):
                _ = custom < asked
            continue
        smaller = {n for n, v in values.items() if is_same_kind(v, asked) and v < asked}
        assert set(ns(rich.find(custom < asked))) == smaller
        assert set(ns(rich.find(custom <= asked))) == smaller | equal
        larger = {n for n, v in values.items() if is_same_kind(v, asked) and v > asked}
        assert set(ns(rich.find(custom > asked))) == larger
        assert set(ns(rich.find(custom >= asked))) == larger | equal
    assert set(ns(rich.find(custom.in_([1, "a", True])))) == {1, 4, 9}
    assert set(ns(rich.find(custom.not_in([1, "a", True])))) == set(values) - {0, 1, 4, 9}
    assert ns(rich.find(custom.startswith("é") | custom.contains("1"), order_by="n")) == [8, 11]
    assert rich.count({"custom_data": {'a "key".with$': 2.5, "other": 1}}) == 1


def test_an_order_by_custom_data_is_the_same_everywhere(rich: Any) -> None:
    """What is missing first, then numbers, then texts."""
    stored_customs(rich)
    custom = Base.custom('a "key".with$')
    expected = [-3, 0, 1, 2.5, "", "1", "B", "a", "é"]
    found = rich.find(custom.is_not(None), ~custom.in_([True, False]), order_by=custom)
    assert [CUSTOM[n] for n in ns(found)] == expected
    found = rich.find(custom.is_not(None), ~custom.in_([True, False]), order_by=custom.desc())
    assert [CUSTOM[n] for n in ns(found)] == expected[::-1]
    assert set(ns(rich.find(order_by=[custom, "n"], limit=4))) == {-1, 0, 1, 2}


def test_numbers_of_custom_data_are_compared_with_every_digit(rich: Any) -> None:
    """As json keeps them: floats that differ in the last bit, and integers beyond 2**53."""
    rich.run_or_retrieve({"n": 1}, value=0.1 + 0.2, whole=2**53 + 1)
    assert rich.count(Base.custom("value") == 0.1 + 0.2) == 1
    assert rich.count(Base.custom("value") == 0.3) == 0
    assert rich.count(Base.custom("whole") == 2**53 + 1) == 1
    assert rich.count(Base.custom("whole") == 2**53) == 0
    assert rich.count(Base.custom("value") > np.float32(0.25)) == 1
    with pytest.raises(ParamsError, match="finite number"):
        _ = Base.custom("value") == [1]
    with pytest.raises(ParamsError, match="finite number"):
        Base.custom("value").in_([math.nan])


@databases.only_sqlite
def test_custom_data_of_entropic_2_that_is_no_json_matches_nothing(
    rich: Any, database: databases.Place
) -> None:
    """It stored NaN; the other rows are found all the same."""
    rich.sweep([{"n": 1}, {"n": 2}], custom_data={"a": 1})
    with sa.create_engine(f"sqlite:///{databases.PATH}").begin() as connection:
        connection.execute(sa.text("""UPDATE rich SET custom_data = '{"a": NaN}' WHERE n = 1"""))
    assert ns(rich.find(Base.custom("a") == 1)) == [2]


def test_delete_where_removes_what_meets_the_conditions(store: Any) -> None:
    """A dry run lists it; files go where that is asked for; nothing else is touched."""
    records = store.sweep({"n": n} for n in range(6))
    with pytest.raises(ParamsError, match="needs a condition"):
        store.delete_where()
    assert sorted(ns(store.delete_where(Point.n < 2, dry_run=True))) == [0, 1]
    assert store.count() == 6
    assert store.delete_where(Point.n < 2) == 2
    assert store.delete_where({"n": 2}, remove_file=True) == 1
    assert [Path(r.result_file).exists() for r in records] == [True, True, False, True, True, True]
    assert ns(store.find(order_by="n")) == [3, 4, 5]
    assert store.delete_where(Point.n > 5) == 0
    assert store.delete_where(sa.true()) == 3
    assert store.count() == 0


def test_many_are_deleted_in_few_transactions(make_store: Any) -> None:
    """More than one piece of them; a result that is gone already is no error."""
    store = make_store()
    records = store.sweep({"n": n} for n in range(250))
    Path(records[7].result_file).unlink()
    assert store.delete_where(Point.n < 230, remove_file=True) == 230
    assert ns(store.find(order_by="n")) == list(range(230, 250))
    assert sorted(path.name for path in Path("results").glob("*.npy")) == sorted(
        Path(record.result_file).name for record in records[230:]
    )
    assert len(store.sweep({"n": n} for n in range(250))) == 250


def test_what_is_run_again_before_its_turn_is_not_deleted(
    make_store: Any, database: databases.Place
) -> None:
    """It is no longer the run that was to go."""
    store = make_store()
    store.sweep([{"n": n} for n in range(150)], custom_data={"mark": "old"})
    last = store.find()[-1]

    def rerun() -> None:
        async def main() -> None:
            async with AsyncStore(
                simulate, Point, file_suffix=".npy", db_url=databases.url()
            ) as other:
                await other.run({"n": last.n}, mark="new")

        asyncio.run(main())

    threads: list[threading.Thread] = []

    def once_the_first_are_gone(record: logging.LogRecord) -> bool:
        if "deleted the row" in record.getMessage() and not threads:
            threads.append(threading.Thread(target=rerun))
            threads[0].start()
            threads[0].join()
        return True

    logger = logging.getLogger("entropic")
    logger.setLevel(logging.INFO)
    logger.addFilter(once_the_first_are_gone)  # a handler would be locked meanwhile
    try:
        assert store.delete_where(Base.custom("mark") == "old") == 149
    finally:
        logger.removeFilter(once_the_first_are_gone)
        logger.setLevel(logging.NOTSET)
    assert [r.id for r in store.find()] == [last.id]
    assert store.find()[0].custom_data["mark"] == "new"


def test_what_is_deleted_while_a_stream_goes_on_is_left_out(make_store: Any) -> None:
    """And what is stored meanwhile is not among it."""
    store = make_store()
    store.sweep({"n": n} for n in range(700))
    stream = store.iter_find(order_by="n")
    assert next(stream).n == 0
    store.delete_where(Point.n >= 600)
    store.run_or_retrieve({"n": 5000})
    assert ns(stream) == list(range(1, 600))


def test_a_condition_on_a_model_that_was_defined_again_still_serves(make_store: Any) -> None:
    """As in a notebook, where the cell with the model is run twice, and the store's is not."""

    def define() -> Any:
        class Cell(Base):
            __tablename__ = "cell"
            n: Mapped[int]

        return Cell

    first = define()
    store = make_store(runner=write, result_cls=first, file_suffix=".txt")
    store.sweep([{"n": 1}, {"n": 2}])
    second = define()
    assert ns(store.find(second.n > 1, order_by=second.n)) == [2]


def test_results_that_are_gone_are_found_all_the_same(make_store: Any) -> None:
    """The row is what is asked for; a registered result keeps the path it was given."""
    store = make_store()
    record = store.run_or_retrieve({"n": 1})
    Path(record.result_file).unlink()
    Path("made.npy").write_bytes(b"x")
    store.register({"n": 2}, "made.npy")
    assert [r.result_file for r in store.find(order_by="n")] == [record.result_file, "made.npy"]


def test_a_store_in_another_folder_gives_paths_that_lead_there(
    make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own spelling of the results folder, as ``retrieve`` does."""
    make_store().run_or_retrieve({"n": 1})
    url = f"sqlite:///{tmp_path / databases.PATH}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    store = make_store(results_dir="../results", db_url=url)
    (found,) = store.find()
    assert found.result_file == f"../results/{found.id}.npy"
    assert Path(found.result_file).exists()


def test_large_finds_do_not_hold_up_the_loop_or_other_calls(folder: Path) -> None:
    """A hit is served while a find reads many rows."""

    async def main() -> None:
        async with AsyncStore(write, Rich, file_suffix=".txt") as store:
            await store.sweep({"n": n} for n in range(1500))
            finding = asyncio.ensure_future(store.find())
            hits = 0
            while not finding.done():
                assert await store.retrieve({"n": 1})
                hits += 1
            assert len(finding.result()) == 1500
            assert hits > 1

    asyncio.run(main())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=st.floats(allow_nan=False, allow_infinity=False), data=st.data())
@databases.only_sqlite
def test_a_float_is_found_by_whatever_is_the_same_run(
    found_store: Store[Rich], value: float, data: st.DataObject
) -> None:
    """Its neighbours are found exactly where they have its id."""
    record = found_store.run_or_retrieve({"n": 1, "x": value})
    other = value
    for _ in range(data.draw(st.integers(0, 12))):
        other = math.nextafter(other, data.draw(st.sampled_from([-math.inf, math.inf])))
    same = found_store.retrieve({"n": 1, "x": other})
    is_same = same is not None and same.id == record.id
    assert (record.id in [r.id for r in found_store.find({"x": other})]) == is_same


@pytest.fixture
def found_store(folder: Path) -> Any:
    """One store for all examples of a test."""
    with Store(write, Rich, file_suffix=".txt", db_url="sqlite://") as store:
        yield store


def test_a_list_of_records_shows_itself_as_a_table(make_store: Any) -> None:
    """Parameters and paths, in text and in HTML; long lists and values are cut."""
    store = make_store()
    records = store.sweep({"n": n, "label": "<b>" * 30 if n else None} for n in range(25))
    lines = repr(records).splitlines()
    assert lines[0] == "25 records of Point"
    assert lines[1].split() == ["id", "n", "dt", "label", "result_file"]
    assert lines[2].split() == [records[0].id, "0", "0.5", "None", f"./results/{records[0].id}.npy"]
    assert lines[-1] == "... and 5 more"
    assert len(lines) == 23
    assert all("<b><b>" not in line or line.count("...") == 1 for line in lines[2:-1])
    html = records._repr_html_()
    assert html.count("<tr>") == 21
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert repr(records[:0]) == "0 records"
    assert isinstance(records[1:3], Records)
    assert repr(records[1:2]).startswith("1 record of Point\n")
    assert records[0]._repr_html_().count("<tr>") == 5


def test_hostile_texts_are_only_shown(make_store: Any) -> None:
    """Neither a terminal nor a browser does what they say."""
    store = make_store()
    store.run_or_retrieve({"n": 1, "label": "\x1b[31m\x07\u202e<script>"})
    (record,) = found = store.find()
    for text in (repr(found), repr(record)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    hostile = type("<img src=x>", (list,), {"_fields": lambda self: {"id": "<i>"}})
    shown = Records([hostile()])._repr_html_()
    assert "<img" not in shown
    assert "<i>" not in shown

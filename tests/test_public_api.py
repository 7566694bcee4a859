"""What users import: names, signatures, the tree of errors, and settings that cannot work."""

import ast
import copy
import functools
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

import entropic
from entropic import (
    AsyncStore,
    Base,
    EntropicError,
    Failure,
    Mapped,
    SettingsError,
    Store,
    SweepError,
    errors,
)
from tests.scripts import ROOT
from tests.simulations import Point, simulate, simulate_async


def public(cls: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class, and its constructor; those of the library's own bases, too."""
    ours = [c for c in reversed(cls.__mro__) if c.__module__.startswith("entropic.")]
    return {
        name: function
        for c in ours
        for name, function in vars(c).items()
        if callable(function) and (not name.startswith("_") or name == "__init__")
    }


def summary(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def documented_arguments(thing: object) -> list[str]:
    """The names in the Args section of a docstring."""
    section = re.search(r"\nArgs:\n(.*?)(\n\n\S|\Z)", inspect.getdoc(thing) or "", re.DOTALL)
    return re.findall(r"^    (\w+):", section[1], re.MULTILINE) if section else []


TWINS = {"close": "aclose"}

STREAMS = ("as_completed", "iter_find")


def test_both_stores_have_the_same_methods() -> None:
    """Each is there twice: awaited, and as a plain call."""
    plain = {TWINS.get(name, name) for name in public(Store)}
    assert plain == set(public(AsyncStore))
    assert {"__enter__", "__exit__"} <= set(vars(Store))
    assert {"__aenter__", "__aexit__"} <= set(vars(AsyncStore))


@pytest.mark.parametrize("name", [name for name in public(Store) if name != "__init__"])
def test_twin_methods_have_the_same_signature_and_summary(name: str) -> None:
    """Names, kinds, defaults and annotations of all parameters; and what is returned."""
    plain = public(Store)[name]
    awaited = public(AsyncStore)[TWINS.get(name, name)]
    streams = name in STREAMS
    signatures = [inspect.signature(method) for method in (plain, awaited)]
    if streams:  # one is a generator, the other an asynchronous one
        returned = [signature.return_annotation for signature in signatures]
        assert [get_origin(kind) for kind in returned] == [Generator, AsyncGenerator]
        assert get_args(returned[0])[0] == get_args(returned[1])[0]
        signatures = [signature.replace(return_annotation=None) for signature in signatures]
    assert signatures[0] == signatures[1]
    assert summary(plain) == summary(awaited) != ""
    assert inspect.iscoroutinefunction(awaited) != streams
    assert not inspect.iscoroutinefunction(plain)


def test_both_stores_take_the_same_settings() -> None:
    """In the documented positional order; only the default executor differs."""
    plain, awaited = (inspect.signature(cls.__init__).parameters for cls in (Store, AsyncStore))
    assert list(plain) == list(awaited)
    for name in plain:
        if name != "executor":
            assert plain[name] == awaited[name]
    assert (plain["executor"].default, awaited["executor"].default) == ("caller", "thread")
    positional = [
        (parameter.name, parameter.default)
        for parameter in plain.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional[1:] == [
        ("runner", inspect.Parameter.empty),
        ("result_cls", inspect.Parameter.empty),
        ("results_dir", "./results"),
        ("file_suffix", ".h5"),
        ("db_url", "sqlite:///db.sqlite3"),
    ]
    assert summary(Store) == summary(AsyncStore)


@pytest.mark.parametrize("cls", [Store, AsyncStore])
def test_every_setting_is_documented(cls: type) -> None:
    """In the order of the signature."""
    assert documented_arguments(cls) == list(inspect.signature(cls).parameters)


@pytest.mark.parametrize("name", [name for name in public(AsyncStore) if name != "__init__"])
def test_every_argument_of_a_method_is_documented(name: str) -> None:
    """And whatever it raises has a place in the documentation, where there is anything."""
    method = public(AsyncStore)[name]
    taken = [p for p in inspect.signature(method).parameters if p != "self"]
    assert documented_arguments(method) == taken
    text = inspect.getdoc(method) or ""
    given = "Yields" if name in STREAMS else "Returns"
    assert name == "aclose" or (f"\n{given}:\n" in text and "\nRaises:\n" in text)


def test_every_public_name_can_be_imported() -> None:
    """From the package, by a star, and by whoever looks around in it."""
    names = entropic.__all__
    assert len(set(names)) == len(names)
    everything: dict[str, object] = {}
    exec("from entropic import *", everything)
    for name in names:
        assert everything[name] is getattr(entropic, name)
    assert set(names) <= set(dir(entropic))
    with pytest.raises(AttributeError, match="no attribute 'Stor'"):
        _ = entropic.Stor  # type: ignore[attr-defined]


def test_what_a_type_checker_sees_is_what_there_is() -> None:
    """The imports that are only for it name the same homes."""
    tree = ast.parse(Path(entropic.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == entropic._HOMES


def test_every_error_is_a_public_name() -> None:
    """Users catch them."""
    assert {cls.__name__ for cls in error_classes()} <= set(entropic.__all__)


def test_the_version_is_that_of_the_package() -> None:
    """It stands in two places."""
    assert f'version = "{entropic.__version__}"' in (ROOT / "pyproject.toml").read_text()


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    return set(ran.stdout.split())


HEAVY = {"asyncpg", "dask", "distributed", "numpy", "pandas", "polars", "tqdm", "xarray"}
DATABASE = {"aiosqlite", "greenlet", "sqlalchemy", "sqlite3"}


@pytest.mark.parametrize(
    "statement",
    [
        "import entropic",
        "import entropic.worker",
        "import entropic.errors",
        "from entropic import expand_grid, RunError",
    ],
)
def test_a_worker_does_not_load_the_database(statement: str) -> None:
    """Nor does whoever only wants a name or two."""
    assert not loaded_by(statement) & (HEAVY | DATABASE)


def test_a_store_loads_no_more_than_it_needs() -> None:
    """What only some users need is loaded when they use it."""
    loaded = loaded_by("from entropic import Store, AsyncStore, Base, Mapped, mapped_column")
    assert "sqlalchemy" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("collects", [True, False])
def test_an_import_leaves_the_garbage_collector_as_it_was(collects: bool) -> None:
    """It is off meanwhile, as it takes a fifth of the time."""
    program = f"""
import gc
{"" if collects else "gc.disable()"}
from entropic import Store
assert gc.isenabled() is {collects}
try:
    from entropic import Stor
except ImportError:
    assert gc.isenabled() is {collects}
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_looks_into_a_store_is_loaded_by_its_first_call() -> None:
    """Most programs run and retrieve: the import is to stay near that of SQLAlchemy."""
    program = "from entropic import Store\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    late = ("export", "outlook", "models.custom", "ledger.conditions", "pipeline.planning")
    assert not {f"entropic.{name}" for name in late} & set(ran.stdout.split())


def error_classes() -> Iterator[type[EntropicError]]:
    """Every class of the tree."""
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, EntropicError):
            yield cls


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """The tree in the docstring: for each name, its parent and the built-in beside it."""
    drawn: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)(\w+Error)(?: \((\w+)\))?", line)
        if found:
            depth = len(found[1]) // 4
            del path[depth:]
            drawn[found[2]] = (path[-1] if path else None, found[3])
            path.append(found[2])
    return drawn


def test_the_tree_of_errors_is_as_it_is_drawn() -> None:
    """Parents, and the built-in exceptions that some of them are, too."""
    actual: dict[str, tuple[str | None, str | None]] = {}
    for cls in error_classes():
        of_ours = [base.__name__ for base in cls.__bases__ if issubclass(base, EntropicError)]
        others = [
            base.__name__
            for base in cls.__bases__
            if not issubclass(base, EntropicError) and base is not Exception
        ]
        actual[cls.__name__] = (of_ours[0] if of_ours else None, others[0] if others else None)
    assert drawn_tree() == actual


def test_errors_about_arguments_are_value_errors() -> None:
    """Whoever catches what Python raises for a bad argument catches these."""
    about = {"SettingsError", "ModelError", "ParamsError", "IdConflictError", "ExportError"}
    assert {cls.__name__ for cls in error_classes() if issubclass(cls, ValueError)} == about


_ATTRIBUTES: dict[str, Any] = {
    "column": "dt",
    "value": [1, "two"],
    "id": "a3f8c1d2e4b6f7a8",
    "ids": ("a3f8c1d2e4b6f7a8", "my-run"),
    "params": {"n": 3},
    "chain": ("one", "two", "one"),
    "path": "./results",
    "type_name": "builtins.OSError",
    "traceback": "Traceback (most recent call last): ...",
}


@pytest.mark.parametrize("cls", [cls for cls in error_classes() if cls is not SweepError])
@pytest.mark.parametrize(
    "reproduce",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickled", "copied", "deeply"],
)
def test_errors_survive_pickling_with_all_that_they_carry(
    cls: type[EntropicError], reproduce: Callable[[EntropicError], EntropicError]
) -> None:
    """Their message, attributes and notes: they come back from workers."""
    taken = [name for name in inspect.signature(cls).parameters if name != "message"]
    error = cls("what is wrong", **{name: _ATTRIBUTES[name] for name in taken})
    error.add_note("while running it")
    twin = reproduce(error)
    assert type(twin) is cls
    assert str(twin) == "what is wrong"
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    for name in taken:
        assert getattr(twin, name) == _ATTRIBUTES[name]
    assert twin.__notes__ == ["while running it"]


def test_a_sweeps_error_survives_pickling_and_being_taken_apart() -> None:
    """With the records, and those failures that a part is about."""
    failures = [
        Failure({"n": n}, f"id{n}", error, "Traceback ...", attempts=n)
        for n, error in enumerate((ValueError("one"), OSError("two")))
    ]
    error = SweepError(
        "2 of 3 runs failed",
        [failure.exception for failure in failures],
        records=["record"],
        failures=failures,
    )
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error)
    assert [(f.params, f.id, str(f.exception), f.attempts) for f in twin.failures] == [
        ({"n": 0}, "id0", "one", 0),
        ({"n": 1}, "id1", "two", 1),
    ]
    assert twin.records == ["record"]
    part, rest = error.split(OSError)
    assert isinstance(part, SweepError)
    assert part.failures == failures[1:]
    assert isinstance(rest, SweepError)
    assert rest.failures == failures[:1]


class NotBase:
    n: int


class OnlyAnnotated(Base):
    __abstract__ = True
    n: Mapped[int]


BAD_SETTINGS: list[tuple[str, Any, str]] = [
    ("runner", "simulate", "'simulate'"),
    ("runner", None, "None"),
    ("result_cls", NotBase, "NotBase"),
    ("result_cls", Point(), "Point"),
    ("result_cls", Base, "Base"),
    ("results_dir", "", "''"),
    ("results_dir", 5, "5"),
    ("results_dir", b"results", "b'results'"),
    ("results_dir", None, "None"),
    ("file_suffix", "/x.npy", "'/x.npy'"),
    ("file_suffix", "a\0b", r"'a\\x00b'"),
    ("file_suffix", None, "None"),
    ("file_suffix", 5, "5"),
    ("executor", "processes", "'processes'"),
    ("executor", None, "None"),
    ("max_workers", 0, "0"),
    ("max_workers", -1, "-1"),
    ("max_workers", 1.5, "1.5"),
    ("max_workers", "2", "'2'"),
    ("lock_timeout", -1, "-1"),
    ("lock_timeout", float("nan"), "nan"),
    ("lock_timeout", "5", "'5'"),
    ("lock_timeout", True, "True"),
]


@pytest.mark.parametrize("cls", [Store, AsyncStore])
@pytest.mark.parametrize(("name", "value", "shown"), BAD_SETTINGS, ids=lambda v: str(v)[:20])
def test_a_setting_that_cannot_work_is_named_with_its_value(
    cls: type, name: str, value: Any, shown: str, folder: Path
) -> None:
    """Before anything is made on the disk."""
    settings = {"runner": simulate, "result_cls": Point, name: value}
    with pytest.raises(SettingsError, match=f"{name}.*{shown}") as caught:
        cls(**settings)
    assert isinstance(caught.value, ValueError)
    assert not list(folder.iterdir())


def test_the_callers_thread_is_no_place_for_an_async_store() -> None:
    """Its caller is the loop; the message says what there is."""
    with pytest.raises(
        SettingsError, match=r"executor must be 'thread', 'process', .* not 'caller'"
    ):
        AsyncStore(simulate, Point, executor="caller")


class Callable_:  # noqa: N801  as a user's class, it is only called
    def __call__(self, params: dict[str, Any]) -> None:
        simulate(params)

    def method(self, params: dict[str, Any]) -> None:
        simulate(params)


@pytest.mark.parametrize(
    "runner",
    [
        simulate,
        simulate_async,
        lambda params: simulate({**params}),
        functools.partial(simulate),
        Callable_(),
        Callable_().method,
    ],
)
def test_anything_callable_may_be_the_runner(
    runner: Callable[..., Any], make_store: Callable[..., Any]
) -> None:
    """A function of either kind, a lambda, a partial, an object, a method."""
    assert make_store(runner=runner).run_or_retrieve({"n": 3}).n == 3


def test_a_path_may_be_an_object(make_store: Callable[..., Any], folder: Path) -> None:
    """Records give it as text."""
    store = make_store(results_dir=folder / "here")
    assert store.run_or_retrieve({"n": 3}).result_file.startswith(str(folder / "here"))


@pytest.mark.parametrize("cls", [Store, AsyncStore])
def test_a_store_shows_what_it_is(cls: type) -> None:
    """Its model, folder and database; no password (there are tests of URLs, too)."""
    store = cls(simulate, Point, "out", db_url="sqlite:///runs.sqlite3")
    assert re.fullmatch(
        rf"{cls.__name__}\(Point, results_dir='out', .*runs\.sqlite3.*\)", repr(store)
    )


def test_the_logger_is_silent_by_default() -> None:
    """A library's has a handler that does nothing, and leaves the rest to its user."""
    program = (
        "import logging, entropic\n"
        "logger = logging.getLogger('entropic')\n"
        "assert [type(h).__name__ for h in logger.handlers] == ['NullHandler']\n"
        "assert logger.level == logging.NOTSET and logger.propagate\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )


def test_the_modules_can_each_be_imported_first() -> None:
    """None of them relies on another one having been imported before it."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "entropic").rglob("*.py"))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    for loaded in [m for m in sys.modules if m.partition('.')[0] == 'entropic']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert importlib.import_module(modules[0]) is entropic

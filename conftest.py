"""The Python in README.md and docs/ is run as it stands: each page is a program of its own.

What a page shows is checked, too. A comment at the end of an expression, or below it, that reads
as a Python literal is what the expression must give; what follows an em dash in it is a remark.
Comments right below a statement that prints are what it must have printed, however wrapped.

A statement may await at the top level, as in a notebook: then it runs on a loop of the page's own.
"""

import ast
import asyncio
import gc
import inspect
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser

from tests import databases


@pytest.fixture(scope="module")
def empty_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A working directory for one page; the page's logging ends with it.

    A page that is about PostgreSQL finds a database's URL in its environment.
    """
    with ExitStack() as until_its_end:
        if request.path.name == "postgresql.md":
            place = until_its_end.enter_context(databases.made("postgresql"))
            until_its_end.enter_context(pytest.MonkeyPatch.context()).setenv(
                "RUNS_DB_URL", place.url
            )
        yield from _folder(tmp_path_factory)


@pytest.fixture(scope="module")
def page_loop() -> Iterator[asyncio.Runner]:
    """Where a page awaits; its loop is made when it first does."""
    runner = asyncio.Runner()
    yield runner
    runner.close()


def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("page")
    logger = logging.getLogger("entropic")
    handlers, level = list(logger.handlers), logger.level
    os.chdir(folder)
    yield folder
    gc.collect()
    os.chdir(before)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a page start a Dask cluster while another program has the port of its dashboard.

    Dask warns then, and leaves a socket to the garbage collector.
    """
    for item in items:
        if isinstance(item, SybilItem) and "dask.distributed" in item.example.document.text:
            for ignored in (
                "ignore:Port [0-9]+ is already in use",
                "ignore::ResourceWarning",
                "ignore::pytest.PytestUnraisableExceptionWarning",
            ):
                item.add_marker(pytest.mark.filterwarnings(ignored))


def _run_block(example: Example) -> None:
    """Execute one block, a statement at a time, and compare what the page shows of each."""
    above = example.line + example.parsed.line_offset
    lines = ["" for _ in range(above)] + str(example.parsed).splitlines()
    for statement in ast.parse("\n".join(lines)).body:
        value, printed = _execute(statement, example)
        comments = _comments(lines, statement)
        if printed:
            shown = " ".join(comments[1:])
            assert _comparable(printed) == _comparable(shown), f"it printed: {printed}"
        elif isinstance(statement, ast.Expr):
            for shown in comments:
                _check_value(value, shown)


def _execute(statement: ast.stmt, example: Example) -> tuple[Any, str]:
    tree: ast.mod = ast.Module([statement], [])
    if isinstance(statement, ast.Expr):
        tree = ast.Expression(statement.value)
    mode = "eval" if isinstance(statement, ast.Expr) else "exec"
    code = compile(tree, str(example.path), mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with redirect_stdout(io.StringIO()) as output:
        value = eval(code, example.namespace)  # noqa: S307  the repository's own pages
        if code.co_flags & inspect.CO_COROUTINE:
            value = example.namespace["page_loop"].run(value)
    return value, output.getvalue()


def _comments(lines: list[str], statement: ast.stmt) -> list[str]:
    """The comment at a statement's end (empty if there is none), and those right below it."""
    assert statement.end_lineno is not None
    assert statement.end_col_offset is not None
    line = lines[statement.end_lineno - 1].encode()
    found = [line[statement.end_col_offset :].decode().strip().removeprefix("#").strip()]
    for below in lines[statement.end_lineno :]:
        if not below.startswith("#"):
            break
        found.append(below.removeprefix("#").strip())
    return found


def _check_value(value: Any, shown: str) -> None:
    try:
        expected = ast.literal_eval(shown.partition(" — ")[0])
    except (SyntaxError, ValueError):
        return  # a remark in words
    assert _comparable(repr(value)) == _comparable(repr(expected))


def _comparable(text: str) -> str:
    """Text without what differs from run to run, and however it was wrapped."""
    text = re.sub(r"'elapsed_seconds': [0-9.e-]+", "'elapsed_seconds': ...", text)
    return " ".join(text.split())


def _as_main(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "__main__"


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", _run_block)],
    patterns=["*.md"],
    setup=_as_main,
    fixtures=["empty_folder", "page_loop"],
).pytest()

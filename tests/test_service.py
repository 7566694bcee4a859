"""The example of a service: real servers in processes of their own, asked over HTTP."""

import asyncio
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import databases
from tests.scripts import ROOT, arguments, script, wait_for
from tests.simulations import calls

pytestmark = pytest.mark.timeout(90)

# Runs with n below 1000 wait at the gate, a file that a test makes.
SERVER = """
import socket
from pathlib import Path

import uvicorn

from examples.service.app import create_app, simulate
from tests.simulations import mark_call

os.environ["ORBITS_DB_URL"] = DB_URL

def gated(params):
    mark_call(params)
    while params["n"] < 1000 and not Path(gate).exists():
        time.sleep(0.01)
    simulate(params)

with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
    say("port", listening.getsockname()[1])
    app = create_app(gated, max_workers=workers)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        say("ended")
"""

GATE = Path("gate")


@contextmanager
def serving(*, name: str = "script", workers: int = 2) -> Iterator[str]:
    """A server with a gate before its runs; its URL. It ends well at an interrupt."""
    settings = arguments(gate=str(GATE.resolve()), workers=workers)
    with script(settings + SERVER, name=name) as server:
        yield f"http://127.0.0.1:{server.expect('port')}"
        server.interrupt()
        server.expect("ended")
        assert (server.ended(), server.errors()) == (0, "")


@asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may have any number of requests under way."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as made:
        yield made


async def come_about(condition: Any) -> None:
    """Wait until something is so, while requests are under way."""
    await asyncio.to_thread(wait_for, condition)


async def orbit(asking: httpx.AsyncClient, record: dict[str, Any]) -> Any:
    """The result that an answer points at, downloaded."""
    answer = await asking.get(record["result"])
    assert answer.status_code == 200
    return np.load(io.BytesIO(answer.content))


@databases.either
def test_a_set_is_simulated_once_for_all_requests(database: databases.Place) -> None:
    """For those to two servers, too; which answer that they are well meanwhile."""
    grid: dict[str, list[Any]] = {"n": [100, 200, 300], "dt": [0.01]}

    async def ask(*urls: str) -> list[httpx.Response]:
        async with client(urls[0]) as one, client(urls[1]) as other:
            requests = [
                asyncio.create_task(each)
                for asking in (one, other)
                for _ in range(20)
                for each in (
                    *(asking.get("/result", params={"n": n, "dt": 0.01}) for n in grid["n"]),
                    asking.post("/sweep", json=grid),
                )
            ]
            await come_about(lambda: calls() >= 2)
            for asking in (one, other):
                assert (await asking.get("/health")).json() == {"status": "ok"}
            assert not any(request.done() for request in requests)
            GATE.touch()
            return await asyncio.gather(*requests)

    async def download(url: str, records: list[dict[str, Any]]) -> None:
        async with client(url) as asking:
            for record in records:
                places = await orbit(asking, record)
                assert places.shape == (record["n"],)
                assert abs(places[0] - (1 + 0.008j)) < 1e-3

    with ExitStack() as until_the_end:
        urls = [until_the_end.enter_context(serving(name=name)) for name in ("one", "other")]
        answers = asyncio.run(ask(*urls))
        assert {answer.status_code for answer in answers} == {200}
        singles = [answer.json() for answer in answers if "n=" in str(answer.url)]
        sweeps = [answer.json()["records"] for answer in answers if "n=" not in str(answer.url)]
        assert [record["n"] for record in sweeps[0]] == grid["n"]
        assert singles == sweeps[0] * 40
        assert sweeps == sweeps[:1] * 40
        for url in urls:
            asyncio.run(download(url, sweeps[0]))
    assert calls() == 3


def test_a_client_that_hangs_up_stops_no_run_that_another_waits_for() -> None:
    """One that nobody waits for any more is stopped, and gives way to others."""

    async def ask(url: str) -> None:
        async with client(url) as asking:
            kept = asyncio.create_task(asking.get("/result", params={"n": 100, "dt": 0.01}))
            await come_about(lambda: calls() == 1)
            both = {"n": [100, 200], "dt": [0.01]}
            left = asyncio.create_task(asking.post("/sweep", json=both))
            await come_about(lambda: calls() == 2)
            left.cancel()
            await asyncio.wait([left])
            assert left.cancelled()

            # Both workers were taken, by runs that would wait for ever.
            assert (await asking.get("/result", params={"n": 1000, "dt": 0.01})).status_code == 200
            GATE.touch()
            answer = await kept
            assert (answer.status_code, answer.json()["n"]) == (200, 100)
            assert calls(answer.json()["id"]) == 1

    with serving(workers=2) as url:
        asyncio.run(ask(url))
    assert calls() == 3


def test_what_cannot_be_is_explained() -> None:
    """Bad parameters are refused before anything runs; a run that fails has its id."""
    refused = {
        "/result?n=1.5&dt=0.01": "Orbit.n is an int and cannot take 1.5",
        "/result?n=few&dt=0.01": "Orbit.n is an int and cannot take 'few'",
        "/result?n=1000&dt=NaN": "Orbit.dt is a float and cannot take nan",
        "/result?n=1000": "params lack Orbit.dt",
        "/results/..%2Fsecret": None,
        "/results/.secret": "the id '.secret' must be",
    }
    refused_bodies = {
        "{": "the body is no JSON",
        "[" * 90_000: "the body is no JSON",
        "5": "sweep takes an iterable of dicts, not 5",
        "[5]": "params must be a dict of Orbit's parameters",
        '{"n": 5}': "the values of 'n' must be a list",
        '[{"n": 5, "dt": 1}, {"n": 5}]': "in the parameter set at position 1 of the input",
        json.dumps({"n": [*range(200)], "dt": [*range(200)]}): "a grid may have 10000 sets",
    }
    with serving() as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as asking:
        for path, why in refused.items():
            answer = asking.get(path)
            assert answer.status_code == (404 if why is None else 422), path
            assert why is None or answer.json()["error"].startswith(why)
        for body, why in refused_bodies.items():
            answer = asking.post("/sweep", content=body)
            assert (answer.status_code, why in answer.json()["error"]) == (422, True), body[:99]
        assert asking.post("/sweep", content=b" " * 200_000).status_code == 413
        assert asking.get("/results/0123456789abcdef").status_code == 404
        assert calls() == 0

        answer = asking.get("/result", params={"n": 1000, "dt": "Infinity"})
        assert answer.status_code == 500
        assert "dt is too large" in answer.json()["error"]
        assert calls(answer.json()["id"]) == 1
        answer = asking.post("/sweep", content='[{"n": 1000, "dt": 1e999}, {"n": 1000, "dt": 0.1}]')
        assert answer.status_code == 200
        assert [failure["id"] for failure in answer.json()["failures"]]
        assert [record["dt"] for record in answer.json()["records"]] == [0.1]


def test_the_page_shows_what_the_service_answers(folder: Path) -> None:
    """Started as the page says, it answers each of its requests as the page says."""
    page = (ROOT / "examples" / "service" / "README.md").read_text(encoding="utf-8")
    console = "".join(re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL))
    start, *requests = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    assert start == ".venv/bin/uvicorn examples.service.app:app\n"
    assert len(requests) > 5
    with started_as_the_page_says() as url:
        for request in requests:
            command, *shown = request.splitlines()
            answer = send(url, command)
            if shown:
                assert answer.json() == json.loads(" ".join(shown)), command
            else:
                assert answer.headers["content-disposition"].endswith('.npy"')
    assert (folder / "orbits.sqlite3").exists()


@contextmanager
def started_as_the_page_says() -> Iterator[str]:
    """A server, on any free port; its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.service.app:app", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            told = (re.search(r"running on (http://\S+)", line) for line in server.stderr)
            yield next(found[1] for found in told if found)
            server.send_signal(signal.SIGINT)
            assert "Application shutdown complete." in server.stderr.read()
        finally:
            server.kill()


def send(url: str, command: str) -> httpx.Response:
    """The request of a line with curl."""
    words = [word for word in shlex.split(command) if word not in ("curl", "-OJ")]
    place = words[0].replace("localhost:8000", url)
    if words[1:]:
        assert words[1] == "-d"
        return httpx.post(place, content=words[2], trust_env=False)
    return httpx.get(place, trust_env=False)

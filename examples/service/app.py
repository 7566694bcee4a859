"""An HTTP service over one ``AsyncStore``: each distinct set is simulated once, whoever asks.

    pip install starlette uvicorn numpy
    uvicorn examples.service.app:app

README.md, beside this file, shows it at work.
"""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypedDict, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from entropic import AsyncStore, Base, Mapped, ParamsError, RunError, SweepError, expand_grid

T = TypeVar("T")

MOST_SETS = 10_000
"""How many parameter sets one grid may have."""


class Orbit(Base):
    __tablename__ = "orbits"

    n: Mapped[int]
    dt: Mapped[float]


def simulate(params: dict[str, Any]) -> None:
    """A planet around its star, for ``n`` steps of ``dt``: its places in the plane."""
    if not 0 < params["n"] <= 1_000_000:
        raise RunError("an orbit has 1 to 1,000,000 steps")
    places = np.empty(params["n"], complex)
    place, speed = 1 + 0j, 0.8j
    for step in range(params["n"]):
        speed -= params["dt"] * place / abs(place) ** 3
        place += params["dt"] * speed
        places[step] = place
    if not np.all(np.abs(places) < 2):
        raise RunError("the planet has left its star: dt is too large")
    np.save(params["result_file"], places)


def create_app(runner: Any = simulate, **settings: Any) -> Starlette:
    """The application; its store opens and closes with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        async with AsyncStore(
            runner,
            Orbit,
            "./results",
            ".npy",
            os.environ.get("ORBITS_DB_URL", "sqlite:///orbits.sqlite3"),
            # Processes: they use all the CPUs, and a run in one of them can be stopped.
            **{"executor": "process", "timeout": 60, **settings},
        ) as store:
            yield {"store": store}

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/result", result),
            Route("/results/{id}", download),
            Route("/sweep", sweep, methods=["POST"]),
        ],
        exception_handlers={ParamsError: refused, RunError: failed, Exception: failed},
        lifespan=lifespan,
        max_body_size=100_000,
    )


class State(TypedDict):
    store: AsyncStore[Orbit]


async def health(request: Request[State]) -> Response:
    return JSONResponse({"status": "ok"})


async def result(request: Request[State]) -> Response:
    store = request.state["store"]
    params = {name: value(text) for name, text in request.query_params.items()}
    return JSONResponse(shown(await for_client(request, store.run_or_retrieve(params))))


async def sweep(request: Request[State]) -> Response:
    store = request.state["store"]
    sets = parameter_sets(await request.body())
    failures: list[dict[str, Any]] = []
    try:
        records: Sequence[Orbit] = await for_client(request, store.sweep(sets, on_error="finish"))
    except SweepError as error:  # an answer like any other: it has the records of what went well
        records = error.records
        failures = [{"id": each.id, "error": told(each.exception)} for each in error.failures]
    return JSONResponse({"records": [shown(record) for record in records], "failures": failures})


async def download(request: Request[State]) -> Response:
    id = request.path_params["id"]
    record = await request.state["store"].retrieve({"id": id})
    if record is None:
        return JSONResponse({"error": f"there is no result {id}"}, status_code=404)
    return FileResponse(record.result_file, filename=f"{id}.npy")


async def for_client(request: Request[State], work: Coroutine[Any, Any, T]) -> T:
    """Do what a client waits for; leave it when the client hangs up.

    A run goes on while anybody waits for it, and is stopped when the last one has left.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(hung_up(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the client has left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def hung_up(request: Request[State]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refused(request: Request[Any], error: Exception) -> Response:
    """The client's mistake: nothing was run."""
    return JSONResponse({"error": told(error)}, status_code=422)


def failed(request: Request[Any], error: Exception) -> Response:
    """A run that failed, which has its id; or a fault of the service's, which has none."""
    answer = {"id": getattr(error, "id", None), "error": told(error)}
    return JSONResponse(answer, status_code=500)


def told(error: Exception) -> str:
    """What it says, and what its notes do: with which parameters, in which set of a sweep."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def shown(record: Orbit) -> dict[str, Any]:
    return {
        "id": record.id,
        "n": record.n,
        "dt": record.dt,
        "result": f"/results/{record.id}",
    }


def value(text: str) -> Any:
    """A number where the text is one; the model says whether it may be a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parameter_sets(body: bytes) -> Any:
    """A list of sets as it is, a grid as the list of its sets."""
    try:
        sets = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ParamsError(f"the body is no JSON: {error}") from error
    if not isinstance(sets, dict):
        return sets
    if math.prod(len(values) for values in sets.values() if isinstance(values, list)) > MOST_SETS:
        raise ParamsError(f"a grid may have {MOST_SETS} sets; this one has more")
    try:
        return expand_grid(sets)
    except TypeError as error:
        raise ParamsError(str(error)) from error


app = create_app()

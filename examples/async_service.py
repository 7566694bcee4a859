"""A small service: a TCP server that answers requests for simulations from one AsyncStore.

    python examples/async_service.py

A request is a line of JSON, the parameters; so is the answer. A hundred clients ask at once for
a few parameter sets. Requests for a set that is being simulated wait for that one run, and the
event loop never blocks: simulations run in worker threads.
"""

import asyncio
import json
import os
import tempfile
import time
from typing import Any

import numpy as np

from entropic import AsyncStore, Base, Mapped, ParamsError


class Walk(Base):
    __tablename__ = "walks"

    walkers: Mapped[int]
    drift: Mapped[float]


def walk(params: dict[str, Any]) -> None:
    simulated.append(params["id"])
    steps = np.random.default_rng(7).normal(params["drift"], 1, (params["walkers"], 1000))
    np.save(params["result_file"], steps.cumsum(axis=1))


simulated: list[str] = []


async def answer(store: AsyncStore[Walk], params: Any) -> dict[str, Any]:
    try:
        record = await store.run_or_retrieve(params)
    except ParamsError as error:  # the client's mistake, and the message says which
        return {"error": str(error)}
    return {"id": record.id, "result_file": record.result_file}


async def request(port: int, params: dict[str, Any]) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(json.dumps(params).encode() + b"\n")
    response: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    await writer.wait_closed()
    return response


async def main() -> None:
    async with AsyncStore(
        walk, Walk, file_suffix=".npy", db_url="sqlite:///walks.sqlite3", max_workers=4
    ) as store:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            response = await answer(store, json.loads(await reader.readline()))
            writer.write(json.dumps(response).encode() + b"\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=128)
        async with server:
            port = server.sockets[0].getsockname()[1]
            wanted = [{"walkers": 200, "drift": (i % 5) / 10} for i in range(100)]

            for when in ("at once", "once more"):
                before, started = len(simulated), time.perf_counter()
                answers = await asyncio.gather(*(request(port, params) for params in wanted))
                sets = len({a["id"] for a in answers})
                print(
                    f"{len(answers)} requests {when}, for {sets} parameter sets:"
                    f" {len(simulated) - before} simulated,"
                    f" {(time.perf_counter() - started) * 1000:.0f} ms"
                )
            print("A request with a slip:", await request(port, {"walkers": 200, "drfit": 0.1}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="entropic-service-") as folder:
        before = os.getcwd()
        os.chdir(folder)
        asyncio.run(main())
        os.chdir(before)

"""A search by Optuna, several trials at a time; each set that it asks for is simulated once.

    pip install optuna numpy
    python examples/optuna_search.py [folder [rounds]]

It tunes a controller that moves a cart to a mark. Optuna says what to try, four sets in a round,
and is told what came of each. Started again in the same folder, the search goes the same way and
simulates nothing; with more rounds, it simulates what is new.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from entropic import AsyncStore, Base, Mapped

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE: dict[str, BaseDistribution] = {
    "pull": FloatDistribution(1, 400, log=True),
    "damping": FloatDistribution(1, 60, log=True),
}


class Cart(Base):
    __tablename__ = "carts"

    pull: Mapped[float]
    damping: Mapped[float]


def drive(params: dict[str, Any]) -> None:
    """Four seconds of a cart that is pulled towards 1, in steps of 0.05 s."""
    simulated.append(params["id"])
    path, place, speed = [], 0.0, 0.0
    for _ in range(80):
        speed += 0.05 * (params["pull"] * (1 - place) - params["damping"] * speed)
        place += 0.05 * speed
        path.append(place)
    if max(path) > 10:
        raise ArithmeticError("the controller is unstable")
    np.save(params["result_file"], path)


simulated: list[str] = []


def cost(record: Cart) -> float:
    """How far the cart is from the mark, on average."""
    return float(np.abs(1 - np.load(record.result_file)).mean())


async def search(store: AsyncStore[Cart], rounds: int) -> optuna.Study:
    # The seed makes it ask for the same sets again, as long as it is told the same of them.
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    # A failure is no result: the store would try again. Here, that would fail again.
    hopeless = [failure.params for failure in await store.failures()]

    async def evaluate(trial: optuna.Trial) -> None:
        if trial.params in hopeless:
            study.tell(trial, state=TrialState.FAIL)
            return
        try:
            record = await store.run_or_retrieve(trial.params)
        except ArithmeticError:  # any other error is none of the search's, and ends it
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, cost(record))

    for _ in range(rounds):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(evaluate(study.ask(SPACE)))
    return study


async def main(folder: Path, rounds: int) -> None:
    db_url = f"sqlite:///{folder}/runs.sqlite3"
    async with AsyncStore(drive, Cart, folder / "results", ".npy", db_url) as store:
        study = await search(store, rounds)
    failed = len(study.get_trials(states=[TrialState.FAIL]))
    best = ", ".join(f"{name} {value:.4g}" for name, value in study.best_params.items())
    print(f"{len(study.trials)} trials: {len(simulated)} simulated, {failed} failed")
    print(f"the best: {best}, with a cost of {study.best_value:.3f}; kept in {folder}")


if __name__ == "__main__":
    arguments = sys.argv[1:] or [tempfile.mkdtemp(prefix="entropic-optuna-", dir=os.getcwd())]
    rounds = int(arguments[1]) if arguments[1:] else 10
    asyncio.run(main(Path(arguments[0]), rounds))

"""A sweep over an ODE with all CPUs, and a plot of what came out.

    pip install scipy matplotlib
    python examples/ode_sweep.py [folder]

The damped, driven pendulum, solved by SciPy for a grid of damping and drive. Started again in the
same folder, it solves nothing and draws the plot from what is stored.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.integrate import solve_ivp

from entropic import Base, Mapped, Store, expand_grid

mpl.use("Agg")  # into a file: no window


class Pendulum(Base):
    __tablename__ = "pendulums"

    damping: Mapped[float]
    drive: Mapped[float]


def solve(params: dict[str, Any]) -> None:
    def motion(time: float, state: Any) -> list[float]:
        angle, speed = state
        force = params["drive"] * np.cos(2 / 3 * time)
        return [speed, -np.sin(angle) - params["damping"] * speed + force]

    solution = solve_ivp(motion, (0, 60), [0.2, 0.0], max_step=0.05)
    np.savez(params["result_file"], time=solution.t, angle=solution.y[0])


def draw(records: list[Pendulum], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for record in records:
        with np.load(record.result_file) as result:
            label = f"damping {record.damping:g}, drive {record.drive:g}"
            axes.plot(result["time"], result["angle"], label=label, linewidth=1)
    axes.set(xlabel="time (s)", ylabel="angle (rad)", title="A damped, driven pendulum")
    axes.legend(fontsize="small")
    figure.savefig(path)


def main(folder: Path) -> None:
    grid = expand_grid({"damping": [0.2, 0.5], "drive": [0.1, 0.5, 0.9]})
    with Store(
        solve,
        Pendulum,
        folder / "results",
        ".npz",
        f"sqlite:///{folder}/runs.sqlite3",
        executor="process",
        max_workers=2,
    ) as store:
        seen: list[Any] = []
        records = store.sweep(grid, progress=seen.append)
        draw(records, folder / "pendulum.png")
    print(f"{len(records)} pendulums: {seen[-1].runs} simulated, {seen[-1].hits} stored")
    print(f"plot: {folder / 'pendulum.png'}")


# Worker processes of entropic's own need no such guard; it lets you import this file.
if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        main(Path(tempfile.mkdtemp(prefix="entropic-ode-", dir=os.getcwd())))

"""Learning curves: agents × environments × seeds, each cell one `train.py` run, finished cells are skipped.

python benchmarks/learning_curves.py --agents ddqn kernel_ddqn --seeds 10 --jobs 2
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"CartPole-v1": 10_000, "Acrobot-v1": 15_000, "MountainCar-v0": 30_000, "LunarLander-v3": 20_000}


@dataclass(frozen=True)
class Grid:
    """Which runs to make, and where."""

    agents: tuple[str, ...] = ("ddqn", "kernel_ddqn")
    """Agents by their `train.py` names."""

    envs: tuple[str, ...] = tuple(BUDGETS)
    """Environments, each with the budget of its configuration."""

    seeds: int = 5
    """Seeds 0 … seeds − 1."""

    overrides: tuple[str, ...] = ()
    """Settings for every run, as NAME=VALUE: `kernel.exploration_bonus=0`, for an ablation in a folder of its own."""

    eval_episodes: int = 5
    """Greedy episodes of every evaluation during training; the final one has 20."""

    jobs: int = 2
    """Runs at the same time, each with one thread."""

    folder: Path = ROOT / "runs" / "learning_curves"
    """Where the runs lie; a cell with a `result.json` is finished."""

    action: Literal["run", "print"] = "run"
    """Run the cells, or print their commands for a batch scheduler."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    agent: str
    env: str
    seed: int
    folder: Path
    settings: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.folder / self.agent / self.env / f"seed{self.seed}"

    def command(self) -> list[str]:
        """The `train.py` call."""
        words = ["train.py", "--agent", self.agent, "--env", self.env, "--seed", str(self.seed)]
        for setting in self.settings:
            name, value = setting.split("=", 1)
            words += [f"--{name.replace('_', '-')}", value]
        words += ["--threads", "1", "--no-progress-bar"]
        return [sys.executable, *words, "--run-dir", str(self.run_dir)]


def run_cell(cell: Cell) -> float | None:
    """Train one cell; its wall seconds, or None when it failed. Output goes to `log.txt` beside the run."""
    if (cell.run_dir / "result.json").exists():
        return 0.0
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (cell.run_dir / "log.txt").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(cell.command(), cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
    return time.perf_counter() - started if done.returncode == 0 else None


def main() -> int:
    """Run the grid; the exit status is 1 when a cell failed."""
    grid = tyro.cli(Grid, description=__doc__)
    # Seed by seed, so that an interrupted study compares every agent on the same seeds.
    cells = [
        Cell(agent, env, seed, grid.folder, (*grid.overrides, f"n_eval_episodes={grid.eval_episodes}"))
        for seed in range(grid.seeds)
        for env in grid.envs
        for agent in grid.agents
    ]
    if grid.action == "print":
        print("\n".join(" ".join(cell.command()) for cell in cells))
        return 0
    grid.folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/learning_curves.py", *sys.argv[1:]])
    (grid.folder / "command.txt").write_text(command + "\n")
    failed = []
    with ThreadPoolExecutor(grid.jobs) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in cells}
        for count, future in enumerate(as_completed(futures), start=1):
            cell, seconds = futures[future], future.result()
            if seconds is None:
                failed.append(cell)
            outcome = "FAILED" if seconds is None else f"{seconds:.0f} s"
            print(f"[{count}/{len(cells)}] {cell.agent} {cell.env} seed {cell.seed}: {outcome}", flush=True)
    for cell in failed:
        print(f"failed: {' '.join(cell.command())}; see {cell.run_dir / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

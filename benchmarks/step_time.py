"""Wall clock of a training step, agent against baseline, in alternation within one process.

python benchmarks/step_time.py --share 0.5
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from counts import check_counts
from shown_command import shown_command
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tasks import ENVIRONMENTS

from agents.common.atomic_save import write_text
from agents.common.schema import ConfigError
from agents.training.config import RunConfig
from agents.training.provenance import commit, machine, versions
from agents.training.registry import build_model
from agents.training.settings import resolve
from envs import UnknownEnvironmentError, make_env
from envs.make_env import require_known

WARM_UP = 1500
"""Steps of the throw-away agents: enough for every loop of a refresh to have been called."""

Timing = dict[str, Any]
"""One call of this script: where its figures are from, and under `results` those of every environment."""
Rows = dict[str, dict[str, Any]]
"""Figures by environment."""


@dataclass(frozen=True)
class StepTime:
    """What to time."""

    agent: str = "kernel_ddqn"
    """Agent that is timed."""

    baseline: str = "ddqn"
    """Agent that it is compared with."""

    envs: tuple[str, ...] = ENVIRONMENTS
    """Environments, each with the settings of its configuration."""

    share: float = 1.0
    """Share of every environment's budget."""

    rounds: int = 10
    """Alternations between the two agents."""

    device: str = "cpu"
    """Where the networks and kernels are, `cuda` say; timings on different devices stand beside each other."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Where step_time.json goes, beside the timings of other agents and environments that it holds; a trial belongs
    elsewhere."""


def configured(agent: str, env: str, device: str) -> RunConfig:
    """The configured settings of the agent."""
    return resolve({"agent": [agent], "env": [env], "device": [device]})


def make_model(agent: str, env: str, device: str) -> OffPolicyAlgorithm:
    """The agent at its configured settings, silent.

    Raises:
        ConfigError: it learns from whole rollouts, so that a number of steps says nothing of its time.
    """
    config = configured(agent, env, device)
    model = build_model(config, make_env(env, n_envs=config.n_envs, seed=0))
    if not isinstance(model, OffPolicyAlgorithm):
        raise ConfigError(f"{agent} learns from whole rollouts, not step by step; compare agents with a replay buffer")
    model.set_logger(configure(None, []))
    return model


class WholeBudget(BaseCallback):
    """Gives the schedules of a run in rounds, such as that of ε, the budget of all of them."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_training_start(self) -> None:
        self.model._total_timesteps = self.steps

    def _on_step(self) -> bool:
        return True


def time_rounds(
    models: list[OffPolicyAlgorithm], steps: int, rounds: int, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Wall seconds of every round and model, and environment steps, [rounds, models] both.

    A round goes on to the end of a rollout, whose length is the model's own.

    Args:
        models: which to train.
        steps: environment steps of a round.
        rounds: how many, the models taking turns.
        budget: environment steps that the schedules of the models are for.
    """
    seconds, taken = np.zeros((rounds, len(models))), np.zeros((rounds, len(models)), dtype=int)
    for index in range(rounds):
        for column, model in enumerate(models):
            before, started = model.num_timesteps if index else 0, time.perf_counter()
            model.learn(steps, callback=WholeBudget(budget), reset_num_timesteps=index == 0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # What is under way still is this model's.
            seconds[index, column] = time.perf_counter() - started
            taken[index, column] = model.num_timesteps - before
    return seconds, taken


def main(argv: Sequence[str]) -> int:
    """Time every environment and write the results; the exit status is 2 for agents that cannot be timed so."""
    settings = tyro.cli(StepTime, description=__doc__, args=argv)
    torch.set_num_threads(1)
    source = commit()
    file = settings.results / "step_time.json"
    try:
        earlier = read(file)
        rows = measure(settings)
    except (ConfigError, UnknownEnvironmentError) as error:
        print(f"step_time.py: {error}", file=sys.stderr)
        return 2
    timing = {
        "command": shown_command("step_time.py", argv),
        "commit": source,
        "machine": f"{machine()}, one thread",
        "versions": versions(),
        "results": rows,
    }
    write_text(file, json.dumps([*without(earlier, rows), timing], indent=2) + "\n")
    return 0


def read(file: Path) -> list[Timing]:
    """Timings of a file, which may be a single one; none where there is no file.

    Raises:
        ConfigError: the file is another one.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return without(content if isinstance(content, list) else [content], {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} holds no timings ({error!r}); move it away, or choose other --results") from error


def without(timings: list[Timing], rows: Rows) -> list[Timing]:
    """Timings without what has been measured anew: the same agents on the same environment and device."""

    def kept(results: Rows) -> Rows:
        return {env: row for env, row in results.items() if env not in rows or _timed(row) != _timed(rows[env])}

    return [timing | {"results": results} for timing in timings if (results := kept(timing["results"]))]


def _timed(row: dict[str, Any]) -> tuple[set[str], object]:
    """What a row is about: its agents, which the fields name, and their device."""
    return set(row), row.get("device")


def round_steps(settings: StepTime, env: str, budget: int) -> int:
    """Environment steps of a round.

    Args:
        settings: what to time.
        env: the environment.
        budget: environment steps that the agent learns from.

    Raises:
        ConfigError: there are no rounds, or one would be empty.
    """
    check_counts(settings, "rounds")
    steps = int(budget * settings.share) // settings.rounds
    if steps < 1:
        raise ConfigError(
            f"--share {settings.share:g} of {env}'s {budget:,} steps leaves none for each of {settings.rounds} "
            "rounds; take a larger share or fewer --rounds"
        )
    return steps


def measure(settings: StepTime) -> Rows:
    """Milliseconds of a step of both agents, and their ratio, by environment.

    Raises:
        ConfigError: there is nothing to compare, or an agent cannot be timed so.
        UnknownEnvironmentError: there is no such environment.
    """
    if settings.agent == settings.baseline:
        raise ConfigError(f"--agent and --baseline are both {settings.agent}; name two agents to compare")
    for env in settings.envs:
        require_known(env)
    budgets = {env: configured(settings.agent, env, settings.device).total_timesteps for env in settings.envs}
    steps_of = {env: round_steps(settings, env, budget) for env, budget in budgets.items()}
    rows: Rows = {}
    for env, steps in steps_of.items():
        # Throw-away agents first: the compiled loops are translated once per installation, not once per step.
        throw_away = [make_model(name, env, settings.device) for name in (settings.agent, settings.baseline)]
        time_rounds(throw_away, WARM_UP, rounds=1, budget=WARM_UP)
        models = [make_model(name, env, settings.device) for name in (settings.agent, settings.baseline)]
        seconds, taken = time_rounds(models, steps, settings.rounds, budgets[env])
        per_step = 1e3 * seconds / taken
        mine, theirs = 1e3 * seconds.sum(0) / taken.sum(0)
        rows[env] = {
            **({} if settings.device == "cpu" else {"device": settings.device}),
            "steps": int(taken[:, 0].sum()),
            f"{settings.agent}_ms_per_step": round(mine, 3),
            f"{settings.baseline}_ms_per_step": round(theirs, 3),
            "ratio": round(mine / theirs, 3),
            "ratio_by_round": np.round(per_step[:, 0] / per_step[:, 1], 2).tolist(),
        }
        print(f"{env}: {mine:.2f} ms against {theirs:.2f} ms a step, ratio {mine / theirs:.2f}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

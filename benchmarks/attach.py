"""Greedy return of models stopped at a fifth of their budget, before and after a kernel head is attached.

python benchmarks/attach.py --agents ddqn dqn --seeds 0 1 2 3 4
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import tyro
from counts import check_counts
from shown_command import shown_command
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tasks import ENVIRONMENTS

from agents import KernelDQNPolicy, attach_kernel_head
from agents.common.atomic_save import atomic_write, write_text
from agents.common.schema import ConfigError
from agents.kernel_ddqn.prior_network import check_model
from agents.training.evaluation import FINAL_SEED_OFFSET, MOST_COPIES, evaluate_greedily
from agents.training.provenance import commit, machine, versions
from agents.training.registry import build_model
from agents.training.settings import dump_config, resolve
from envs import UnknownEnvironmentError, make_env
from envs.make_env import require_known

COPIES = 5
"""Copies of the environment in which the kernel's experience is collected."""


@dataclass(frozen=True)
class Attach:
    """What to measure."""

    agents: tuple[str, ...] = ("ddqn", "dqn")
    """Agents whose models are attached to, at their configured settings."""

    envs: tuple[str, ...] = ENVIRONMENTS
    """Environments, each with the settings of its configuration."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds, one model each."""

    share: float = 0.2
    """Share of its budget at which a model is stopped."""

    steps: int = 10_000
    """Environment steps of `attach_kernel_head`."""

    episodes: int = 20
    """Greedy episodes of each of the two evaluations, from the same starts."""

    models: Path = Path("runs/attach")
    """Folder of the stopped models; those of the same settings and clean commit are used again."""

    name: str = "attach"
    """Stem of the result files."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Where they go; a trial belongs elsewhere."""

    def __post_init__(self) -> None:
        """Refuse what there is nothing to measure of."""
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"--share is {self.share:g}, but must be above 0 and at most 1")
        check_counts(self, "steps", "episodes")


@dataclass(frozen=True)
class Row:
    """One model; returns are means over episodes, steps environment steps, seconds those of attaching."""

    agent: str
    env: str
    seed: int
    trained_steps: int
    before: float
    after: float
    attach_steps: int
    seconds: float
    processor_seconds: float


class StopAt(BaseCallback):
    """Ends training early, with every schedule of the whole budget."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def stopped_model(settings: Attach, agent: str, env: str, seed: int, source: str | None) -> OffPolicyAlgorithm:
    """A model trained for a share of its budget, from its file where that is of these settings and this commit.

    Raises:
        ConfigError: nothing can be attached to the agent's models.
    """
    file = settings.models / agent / env / f"seed{seed}" / f"share{settings.share:g}.zip"
    config = resolve({"agent": [agent], "env": [env], "seed": [str(seed)], "device": ["cpu"]})
    model = build_model(config, make_env(env, n_envs=config.n_envs, seed=seed))
    try:
        check_model(model)
    except ValueError as error:
        raise ConfigError(f"{agent}: {error}") from error
    assert isinstance(model, OffPolicyAlgorithm)
    origin, made = file.with_suffix(".yaml"), f"# commit {source}\n{dump_config(config)}"
    known = source is not None and not source.endswith("-dirty")
    if not known or not file.exists() or not origin.exists() or origin.read_text(encoding="utf-8") != made:
        model.set_logger(configure(None, []))
        model.learn(config.total_timesteps, callback=StopAt(round(settings.share * config.total_timesteps)))
        atomic_write(file, model.save)
        write_text(origin, made)
    # As somebody would who saved a model earlier: a file holds no replay buffer.
    return type(model).load(file, device="cpu")


def greedy_return(model: BaseAlgorithm | KernelDQNPolicy, env: str, seed: int, episodes: int) -> float:
    """Mean return of greedy episodes, the same starts for every model of a seed."""
    copies = make_env(env, n_envs=min(MOST_COPIES, episodes), evaluation=True)
    mean = evaluate_greedily(model, copies, episodes, seed + FINAL_SEED_OFFSET).mean
    copies.close()
    return mean


def measure(settings: Attach, agent: str, env: str, seed: int, source: str | None) -> Row:
    """Evaluate, attach, evaluate."""
    model = stopped_model(settings, agent, env, seed, source)
    before = greedy_return(model, env, seed, settings.episodes)
    copies = make_env(env, n_envs=COPIES, seed=seed)
    taken: list[int] = []
    wall, processor = time.perf_counter(), time.process_time()
    policy = attach_kernel_head(
        model, copies, settings.steps, seed=seed, report=lambda steps, mean_return: taken.append(steps)
    )
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    copies.close()
    after = greedy_return(policy, env, seed, settings.episodes)
    return Row(agent, env, seed, model.num_timesteps, before, after, taken[-1], wall, processor)


def summary(rows: Sequence[Row]) -> str:
    """One line of the table: an agent on an environment."""
    before, after = (np.array([getattr(row, name) for row in rows]) for name in ("before", "after"))
    gain = after - before
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
    seconds = [row.seconds for row in rows]
    cells = [
        rows[0].env,
        rows[0].agent,
        f"{rows[0].trained_steps:,}",
        f"{before.mean():.0f}",
        f"**{after.mean():.0f}**",
        f"{gain.mean():+.0f} ± {error:.0f}",
        ", ".join(f"{row.before:.0f} → {row.after:.0f}" for row in rows),
        f"{np.mean([row.attach_steps for row in rows]):,.0f}",
        f"{np.mean(seconds):.0f} (≤ {max(seconds):.0f})",
        f"{np.mean([row.processor_seconds for row in rows]):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def write(settings: Attach, rows: Sequence[Row], source: str | None) -> None:
    """The table, and every model as a line of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(value) for name, value in asdict(row).items()} for row in rows)
    write_text(settings.results / f"{settings.name}.csv", text.getvalue())
    groups = [[row for row in rows if (row.agent, row.env) == key] for key in {(r.agent, r.env): None for r in rows}]
    header = (
        "| environment | agent | trained for | before | after | difference ± s.e. | by seed | steps of attaching "
        "| seconds (most) | processor seconds |"
    )
    command = shown_command("attach.py", sys.argv[1:])
    packages = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    lines = [
        f"# {settings.name}",
        "",
        f"`{command}` · commit {source} · {machine()}, one thread, niceness {os.nice(0)} · {packages}.",
        "",
        f"Models stopped at {settings.share:g} of their budget; `attach_kernel_head` takes no gradient step. Greedy "
        f"return, mean over {settings.episodes} episodes from the same starts before and after, seeds "
        f"{', '.join(map(str, settings.seeds))}. Steps of attaching are environment steps over {COPIES} copies, greedy "
        "measurements included; seconds are those of attaching, collection included.",
        "",
        header,
        "|" + "---|" * (header.count("|") - 1),
        *(summary(group) for group in groups),
    ]
    write_text(settings.results / f"{settings.name}.md", "\n".join(lines) + "\n")


def _rounded(value: object) -> object:
    return round(value, 2) if isinstance(value, float) else value


def main() -> int:
    """Measure every model and write the results after each, so that an interrupt keeps what there is.

    Returns:
        The exit status, 2 for an unknown name, numbers out of range, or an agent that nothing can be attached to.
    """
    settings = tyro.cli(Attach, description=__doc__)
    try:
        measure_all(settings)
    except (ConfigError, UnknownEnvironmentError) as error:
        print(f"attach.py: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(settings: Attach) -> None:
    """Every model, one after the other.

    Raises:
        ConfigError: there is no such agent, or nothing can be attached to its models.
        UnknownEnvironmentError: there is no such environment.
    """
    for env_id in settings.envs:
        require_known(env_id)
    for agent in settings.agents:
        resolve({"agent": [agent]})
    torch.set_num_threads(1)
    source = commit()
    settings.results.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    # A throw-away call first: the compiled loops are translated once per installation.
    env = make_env("CartPole-v1", n_envs=COPIES, seed=0)
    attach_kernel_head(DQN("MlpPolicy", env, device="cpu"), env, 500, seed=0)
    for agent in settings.agents:
        for env_id in settings.envs:
            for seed in settings.seeds:
                rows.append(measure(settings, agent, env_id, seed, source))
                print(rows[-1], flush=True)
                write(settings, rows, source)


if __name__ == "__main__":
    sys.exit(main())

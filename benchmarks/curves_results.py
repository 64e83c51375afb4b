"""Finished runs of a grid, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from grid_cells import WITHOUT_EFFECT
from statistics_of_curves import Scores, area_under_curve, first_reaching
from tasks import Task

from agents.common.schema import ConfigError, to_plain
from agents.training.settings import load_config

OF_ONE_RUN = ("seed", *WITHOUT_EFFECT)
EPISODES = ("n_eval_episodes", "n_final_eval_episodes")
OF_THE_TASK: Mapping[str, Any] = {"env_kwargs": {}, "max_episode_steps": None, **dict.fromkeys(EPISODES)}
"""Settings in which variants must agree to be compared, with what older runs have that do not name them."""

FIGURES = ("eval_timesteps", "eval_mean_returns", "eval_seconds", "final_mean_return", "train_seconds", "wall_seconds")
"""What a result holds of numbers; older ones lack seconds of the evaluations."""


@dataclass(frozen=True)
class Run:
    """What a finished run left behind; returns are undiscounted, steps environment steps."""

    variant: str
    env: str
    agent: str
    seed: int
    total_timesteps: int
    timesteps: Scores
    """Of the evaluations during training, [evaluations]."""

    mean_returns: Scores
    """Greedy, [evaluations]."""

    seconds: Scores | None
    """Training wall clock up to each evaluation without the evaluations, [evaluations]; None in older results."""

    final_return: float
    train_seconds: float
    wall_seconds: float
    versions: Mapping[str, str | None]
    commit: str | None
    machine: str | None
    """None in older results."""
    settings: Mapping[str, Any]
    """`config.yaml`, without what belongs to this run alone."""

    @property
    def area(self) -> float:
        """Area under the curve, in units of return."""
        return area_under_curve(self.mean_returns)

    @property
    def best_return(self) -> float:
        """Highest evaluation during training."""
        return float(self.mean_returns.max())

    def steps_to(self, task: Task) -> float:
        """Environment steps until an evaluation reached the task's threshold; infinite when none did."""
        return first_reaching(task.threshold, self.mean_returns, self.timesteps)

    def seconds_to(self, task: Task) -> float | None:
        """Training seconds until then; None when the result does not hold them."""
        return None if self.seconds is None else first_reaching(task.threshold, self.mean_returns, self.seconds)


Runs = dict[tuple[str, str], list[Run]]
"""Runs by environment and variant, ordered by seed."""


def read_runs(folder: Path) -> Runs:
    """Every finished run of a grid, VARIANT/ENV/seedSEED below its folder.

    Raises:
        ValueError: runs of one variant on one environment had different settings, a file is no result, or it lies in
            the folder of another environment or seed.
    """
    runs: Runs = {}
    for file in sorted(folder.glob("*/**/seed*/result.json")):
        variant, *middle, seed_folder = file.parent.relative_to(folder).parts
        run = _read(file, variant)
        if (place := f"{'/'.join(middle)}/{seed_folder}") != (own := f"{run.env}/seed{run.seed}"):
            raise ValueError(f"{file} lies in {place}, but is of {own}, and would count twice; move it away")
        runs.setdefault((run.env, run.variant), []).append(run)
    for (env, variant), group in runs.items():
        group.sort(key=lambda run: run.seed)
        for run in group:
            _check_equal(group[0], run, f"{variant} on {env}")
    return dict(sorted(runs.items()))


def environments(runs: Runs) -> list[str]:
    """Environments of the grid."""
    return sorted({env for env, _ in runs})


def variants(runs: Runs, baseline: str) -> list[str]:
    """Variants of the grid, the baseline first."""
    return sorted({variant for _, variant in runs}, key=lambda variant: (variant != baseline, variant))


def unequal(runs: Runs) -> dict[str, list[str]]:
    """Environments on which variants had other budgets, evaluations or constructor arguments, each with who and what.

    Args:
        runs: the finished ones; those of one variant are known to agree.
    """
    first: dict[str, Run] = {}
    found: dict[str, list[str]] = {}
    for (env, variant), group in runs.items():
        reference = first.setdefault(env, group[0])
        if different := _task_differences(reference, group[0]):
            found.setdefault(env, []).append(f"{variant} differs from {reference.variant} in {', '.join(different)}")
    return found


def _task_differences(one: Run, other: Run) -> list[str]:
    different = [
        name
        for name, usual in OF_THE_TASK.items()
        if (theirs := other.settings.get(name, usual)) != (ours := one.settings.get(name, usual))
        and not (name in EPISODES and None in (ours, theirs))  # not known of the older one
    ]
    if one.total_timesteps != other.total_timesteps:
        different.append("total_timesteps")
    # Copies are stepped together, so an evaluation comes up to all of them late.
    tolerance = max(run.settings.get("n_envs", 1) for run in (one, other))
    together = one.timesteps.shape == other.timesteps.shape
    if not together or np.abs(one.timesteps - other.timesteps).max(initial=0.0) >= tolerance:
        different.append("eval_timesteps")
    return different


def gaps(runs: Runs, folder: Path) -> list[str]:
    """Cells that have not finished and that others suggest, in words: every variant, environment and seed by another.

    Args:
        runs: the finished ones.
        folder: where they lie; what began there and left no result counts as one that should have finished.
    """
    finished = {(env, variant, run.seed) for (env, variant), group in runs.items() for run in group}
    envs, labels, seeds = (sorted(set(names)) for names in zip(*finished | _begun(folder), strict=True))
    missing = []
    for env in envs:
        for variant in labels:
            absent = [seed for seed in seeds if (env, variant, seed) not in finished]
            if absent:
                missing.append(f"{variant} on {env}: seed {', '.join(map(str, absent))}")
    return missing


def _begun(folder: Path) -> set[tuple[str, str, int]]:
    """Environment, variant and seed of runs that left a log or settings, and no result."""
    begun = set()
    for place in folder.glob("*/**/seed*"):
        variant, *env, seed = place.relative_to(folder).parts
        traces = [place / name for name in ("log.txt", "config.yaml")]
        began = any(trace.exists() for trace in traces) and not (place / "result.json").exists()
        if began and seed.removeprefix("seed").isdecimal():
            begun.add(("/".join(env), variant, int(seed.removeprefix("seed"))))
    return begun


def _read(file: Path, variant: str) -> Run:
    try:
        return _of(json.loads(file.read_text()), _settings(file.with_name("config.yaml")), variant)
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no result of train.py ({error!r}); remove it, and run the cell again") from error


def _of(result: Mapping[str, Any], settings: Mapping[str, Any], variant: str) -> Run:
    seconds = result.get("eval_seconds")
    for name in FIGURES:
        if name in result and not np.isfinite(np.array(result[name], dtype=np.float64)).all():
            raise ValueError(f"{name} is not finite: {result[name]}")
    return Run(
        variant=variant,
        env=result["env"],
        agent=result["agent"],
        seed=result["seed"],
        total_timesteps=result["total_timesteps"],
        timesteps=np.array(result["eval_timesteps"], dtype=np.float64),
        mean_returns=np.array(result["eval_mean_returns"], dtype=np.float64),
        seconds=None if seconds is None else np.array(seconds, dtype=np.float64),
        final_return=result["final_mean_return"],
        train_seconds=result["train_seconds"],
        wall_seconds=result["wall_seconds"],
        versions=result["versions"],
        commit=result["commit"],
        machine=result.get("machine"),
        settings={name: value for name, value in settings.items() if name not in OF_ONE_RUN},
    )


def _settings(file: Path) -> Mapping[str, Any]:
    """All settings under today's names, so that runs of different age compare; as written where nobody can run them."""
    if not file.exists():
        return {}
    try:
        return to_plain(load_config(file))
    except ConfigError:
        return dict(yaml.safe_load(file.read_text()))


def _check_equal(one: Run, other: Run, where: str) -> None:
    different = [
        name
        for name in dict.fromkeys([*one.settings, *other.settings])
        if one.settings.get(name) != other.settings.get(name)
    ]
    if not np.array_equal(one.timesteps, other.timesteps):
        different.append("eval_timesteps")
    if different:
        raise ValueError(
            f"{where}: seeds {one.seed} and {other.seed} differ in {', '.join(different)}; run one of them again"
        )

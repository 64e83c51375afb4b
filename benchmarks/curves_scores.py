"""Figures of finished runs, normalised where environments are to be aggregated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from curves_results import Run, Runs, environments, unequal, variants
from statistics_of_curves import Scores, Strata
from tasks import Task

Tasks = Mapping[str, Task]
Measure = Callable[[Run], float]
MEASURES: dict[str, Measure] = {"AUC": lambda run: run.area, "final": lambda run: run.final_return}


def values(group: Sequence[Run], measure: Measure) -> Scores:
    """A figure of every run, [seeds]."""
    return np.array([measure(run) for run in group], dtype=np.float64)


def common_tasks(runs: Runs, tasks: Tasks) -> list[str]:
    """Environments with known returns that every variant has run alike: those that can be aggregated."""
    names, left_out = variants(runs, ""), unequal(runs)
    known = [env for env in environments(runs) if env in tasks and env not in left_out]
    return [env for env in known if all((env, name) in runs for name in names)]


def balanced(runs: Runs, tasks: Tasks, variant: str) -> dict[str, list[Run]]:
    """Runs of a variant on the common tasks, as many of each as there are of the one with fewest.

    Pooled scores count environments by their runs, and rliable's matrix of scores has equally many of each. Seeds that
    every environment has go first.
    """
    groups = {env: runs[env, variant] for env in common_tasks(runs, tasks)}
    seeds = [{run.seed for run in group} for group in groups.values()]
    shared, fewest = set.intersection(*seeds), min(map(len, groups.values()))
    return {
        env: sorted(group, key=lambda run: (run.seed not in shared, run.seed))[:fewest] for env, group in groups.items()
    }


def strata(runs: Runs, tasks: Tasks, variant: str, measure: Measure) -> Strata:
    """Normalised scores of a variant on the common tasks, each [seeds]."""
    return [
        np.array([tasks[env].normalised(value) for value in values(group, measure)])
        for env, group in balanced(runs, tasks, variant).items()
    ]

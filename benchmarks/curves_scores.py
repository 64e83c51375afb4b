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


def strata(runs: Runs, tasks: Tasks, variant: str, measure: Measure) -> Strata:
    """Normalised scores of a variant on the common tasks, each [seeds]."""
    return [
        np.array([tasks[env].normalised(value) for value in values(runs[env, variant], measure)])
        for env in common_tasks(runs, tasks)
    ]

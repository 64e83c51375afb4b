"""Finished runs as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from curves_results import Runs
from curves_scores import Tasks

from agents.common.atomic_save import write_text


def write_evaluations(runs: Runs, path: Path) -> None:
    """CSV with one row per run and evaluation."""
    head = ["env", "variant", "seed", "timesteps", "seconds", "mean_return"]
    rows = [
        [env, variant, run.seed, int(step), "" if run.seconds is None else f"{run.seconds[index]:.3f}", f"{value:.3f}"]
        for (env, variant), group in runs.items()
        for run in group
        for index, (step, value) in enumerate(zip(run.timesteps, run.mean_returns, strict=True))
    ]
    _write_csv(path, head, rows)


def write_seeds(runs: Runs, tasks: Tasks, path: Path) -> None:
    """CSV with one row per run; a threshold never reached is `inf`, what is unknown stays empty."""
    head = ["env", "variant", "agent", "seed", "total_timesteps", "area_under_curve", "final_return", "best_return"]
    head += ["steps_to_threshold", "seconds_to_threshold", "train_seconds", "wall_seconds", "commit"]
    rows: list[list[object]] = []
    for (env, variant), group in runs.items():
        task = tasks.get(env)
        for run in group:
            reaching = [None, None] if task is None else [run.steps_to(task), run.seconds_to(task)]
            scores = [run.area, run.final_return, run.best_return]
            rows.append(
                [env, variant, run.agent, run.seed, run.total_timesteps]
                + ["" if value is None else f"{value:.6g}" for value in (*scores, *reaching)]
                + [f"{run.train_seconds:.3f}", f"{run.wall_seconds:.3f}", run.commit]
            )
    _write_csv(path, head, rows)


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())

"""Closing tables of the commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agents.training.evaluation import Evaluation
from agents.training.provenance import SOURCE_ROOT
from agents.training.run_folder import RunFolder
from agents.training.runs import RunResult


def report_evaluation(step: int, evaluation: Evaluation) -> None:
    """Print a line on a periodic evaluation."""
    print(f"step {step:>9,}   return {evaluation.mean:9.2f} ± {evaluation.std:.2f}")


def show_training(result: RunResult, folder: RunFolder, final_episodes: int) -> None:
    """Print the closing table of a training run, and the commands that go on from it."""
    table = Table(show_header=False)
    best_step = result.eval_timesteps[result.eval_mean_returns.index(result.best_mean_return)]
    table.add_row(
        f"final return (episodes: {final_episodes})", f"{result.final_mean_return:.2f} ± {result.final_std_return:.2f}"
    )
    table.add_row("best return while training", f"{result.best_mean_return:.2f} at step {best_step:,}")
    table.add_row("environment steps", f"{result.total_timesteps:,}")
    table.add_row("wall time", f"{result.wall_seconds:.1f} s")
    table.add_row("training without evaluations", f"{result.train_seconds:.1f} s")
    console = Console()
    _print_line(console, f"{result.agent} on {result.env}, seed {result.seed}")
    console.print(table)
    place = shlex.quote(str(folder.path))
    _print_line(console, f"run folder   {place}  (config.yaml, model.zip, best_model.zip, result.json)")
    python, script = _typed(Path(sys.executable)), _typed(SOURCE_ROOT / "evaluate.py")
    _print_line(console, f"curves       {python} -m tensorboard.main --logdir {place}")
    _print_line(console, f"evaluation   {python} {script} {place} --video")


def _typed(path: Path) -> str:
    """A path as a user would type it: relative, where it lies below the present folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def show_evaluation(evaluation: Evaluation, title: str, unit: str = "steps") -> None:
    """Print the table of an evaluation, with what lengths are counted in."""
    lengths = evaluation.lengths
    table = Table(show_header=False)
    table.add_row("episodes", str(len(evaluation.returns)))
    table.add_row("return", f"{evaluation.mean:.2f} ± {evaluation.std:.2f}")
    table.add_row("lowest", f"{min(evaluation.returns):.2f}")
    table.add_row("highest", f"{max(evaluation.returns):.2f}")
    table.add_row("mean length", f"{sum(lengths) / len(lengths):.1f} {unit}")
    console = Console()
    _print_line(console, title)
    console.print(table)


def show_video(video: Path) -> None:
    """Print where a film lies."""
    _print_line(Console(), f"video        {shlex.quote(str(video))}")


def _print_line(console: Console, line: str) -> None:
    """Print without folding, so that a long path can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)

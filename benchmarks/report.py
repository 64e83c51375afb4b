"""Tables and figures of finished runs: python benchmarks/report.py --folder runs/learning_curves --name newcomer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from curves_csv import write_evaluations, write_seeds
from curves_plots import plot_curves, plot_intervals
from curves_results import environments, gaps, read_runs, variants
from curves_tables import markdown
from tasks import read_tasks

from agents.common.atomic_save import write_text

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Report:
    """What to summarise, and where to put it."""

    folder: Path = ROOT / "runs" / "learning_curves"
    """Folder of the runs, as `learning_curves.py` lays it out."""

    name: str = "learning_curves"
    """Stem of the files: NAME.md, NAME.csv (every evaluation), NAME_seeds.csv (every run), NAME.png and .svg (curves),
    NAME_intervals.png and .svg."""

    baseline: str = "ddqn"
    """Variant that the others are compared with."""

    tasks: tuple[str, ...] = ()
    """Further environments to normalise, as ENV=RANDOM,THRESHOLD: `ALE/Pong-v5=-20.7,18`."""

    results: Path = ROOT / "benchmarks" / "results"
    """Where the files go."""


def main(argv: Sequence[str]) -> int:
    """Write tables, CSV files and figures; the exit status is 2 when there is nothing to report or to compare with."""
    report = tyro.cli(Report, description=__doc__, args=argv)
    try:
        write(report)
    except (OSError, ValueError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


def write(report: Report) -> None:
    """Write every file and print the tables.

    Raises:
        ValueError: there is no finished run, none of the baseline or of a task, or one that cannot be read or compared.
    """
    tasks, runs = read_tasks(report.tasks), read_runs(report.folder)
    if not runs:
        raise ValueError(f"no finished run below {report.folder}; run benchmarks/learning_curves.py first")
    if unknown := {word.partition("=")[0] for word in report.tasks} - {env for env, _ in runs}:
        raise ValueError(
            f"--tasks names {', '.join(sorted(unknown))}, of which there is no run below {report.folder}; "
            f"there are runs of {', '.join(environments(runs))}"
        )
    names = variants(runs, report.baseline)
    if report.baseline not in names:
        raise ValueError(f"no run of the baseline '{report.baseline}'; take another --baseline: {', '.join(names)}")
    unfinished = gaps(runs, report.folder)
    commands = report.folder / "command.txt"
    lines = commands.read_text().splitlines() if commands.exists() else []
    text = markdown(runs, tasks, report.name, report.baseline, lines, unfinished)
    stem = report.results / report.name
    write_text(stem.with_name(f"{report.name}.md"), text)
    write_evaluations(runs, stem.with_name(f"{report.name}.csv"))
    write_seeds(runs, tasks, stem.with_name(f"{report.name}_seeds.csv"))
    plot_curves(runs, tasks, report.baseline, stem)
    plot_intervals(runs, tasks, report.baseline, stem.with_name(f"{report.name}_intervals"))
    # A terminal may lack a letter; the files have them all.
    print(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

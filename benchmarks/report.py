"""Tables and figures of finished runs: python benchmarks/report.py --folder runs/learning_curves --name newcomer."""

from __future__ import annotations

import csv
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from statistics_of_curves import Interval, area_under_curve, bootstrap_interval, curve_intervals

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ("#777777", "#c2410c", "#1d4ed8", "#15803d", "#7e22ce")
Runs = dict[tuple[str, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Report:
    """What to summarise, and where to put it."""

    folder: Path = ROOT / "runs" / "learning_curves"
    """Folder of the runs, as `learning_curves.py` lays it out."""

    name: str = "learning_curves"
    """Stem of the files written to `benchmarks/results/`."""

    baseline: str = "ddqn"
    """Agent that wall clock is compared with."""


def read_runs(folder: Path) -> Runs:
    """Results by environment and agent, ordered by seed."""
    runs: Runs = {}
    for file in sorted(folder.glob("*/*/seed*/result.json")):
        result = json.loads(file.read_text())
        runs.setdefault((result["env"], result["agent"]), []).append(result)
    for results in runs.values():
        results.sort(key=lambda result: result["seed"])
    return runs


def write_table(runs: Runs, report: Report, path: Path) -> None:
    """Markdown: one row per environment and agent, then every seed's figures."""
    columns = "seeds | AUC mean ± s.e. | AUC IQM [95 %] | final mean ± s.e. | final IQM [95 %]"
    lines = [
        f"# {report.name}",
        "",
        _provenance(runs, report),
        "",
        f"| environment | agent | steps | {columns} | seconds | × {report.baseline} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (env, agent), results in sorted(runs.items()):
        areas = np.array([area_under_curve(np.array(result["eval_mean_returns"])) for result in results])
        finals = np.array([result["final_mean_return"] for result in results])
        seconds = np.mean([result["train_seconds"] for result in results])
        base = [result["train_seconds"] for result in runs.get((env, report.baseline), results)]
        lines.append(
            f"| {env} | {agent} | {results[0]['total_timesteps']:,} | {len(results)} | {_mean(areas)} | "
            f"{_interval(bootstrap_interval(areas))} | {_mean(finals)} | {_interval(bootstrap_interval(finals))} | "
            f"{seconds:.0f} | {seconds / np.mean(base):.2f} |"
        )
    lines += [
        "",
        "Every seed: area under the curve / final return.",
        "",
        "| environment | agent | by seed |",
        "|---|---|---|",
    ]
    for (env, agent), results in sorted(runs.items()):
        cells = [
            f"{area_under_curve(np.array(result['eval_mean_returns'])):.0f} / {result['final_mean_return']:.0f}"
            for result in results
        ]
        lines.append(f"| {env} | {agent} | {', '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n")


def write_csv(runs: Runs, path: Path) -> None:
    """One row per run and evaluation."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env", "agent", "seed", "timesteps", "mean_return"])
        for (env, agent), results in sorted(runs.items()):
            for result in results:
                for step, value in zip(result["eval_timesteps"], result["eval_mean_returns"], strict=True):
                    writer.writerow([env, agent, result["seed"], step, f"{value:.3f}"])


def plot_curves(runs: Runs, path: Path) -> None:
    """One panel per environment: interquartile mean over seeds with its 95 % bootstrap band."""
    envs = sorted({env for env, _ in runs})
    agents = sorted({agent for _, agent in runs})
    figure, panels = plt.subplots(1, len(envs), figsize=(4.2 * len(envs), 3.4), squeeze=False)
    for panel, env in zip(panels[0], envs, strict=True):
        for colour, agent in zip(COLOURS, agents, strict=False):
            results = runs.get((env, agent))
            if results:
                steps = results[0]["eval_timesteps"]
                middle, low, high = curve_intervals(np.array([result["eval_mean_returns"] for result in results]))
                panel.plot(steps, middle, color=colour, label=f"{agent} ({len(results)} seeds)")
                panel.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        panel.set_title(env)
        panel.set_xlabel("environment steps")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("greedy return")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _provenance(runs: Runs, report: Report) -> str:
    results: Sequence[dict[str, Any]] = [result for group in runs.values() for result in group]
    commits = ", ".join(sorted({str(result["commit"])[:12] for result in results}))
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    command = (report.folder / "command.txt").read_text().strip()
    return (
        f"`{command}` · commit {commits} · {platform.machine()}, one thread per run · {versions}.\n\n"
        "AUC: mean greedy return of the evaluations during training (every tenth of the budget). "
        "Final: greedy return after the budget. IQM: interquartile mean over seeds, 95 % bootstrap interval."
    )


def _mean(values: np.ndarray) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.0f} ± {error:.0f}"


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def main() -> int:
    """Write table, CSV and figure; the exit status is 1 when there is nothing to report."""
    report = tyro.cli(Report, description=__doc__)
    runs = read_runs(report.folder)
    if not runs:
        print(f"no finished run below {report.folder}; run benchmarks/learning_curves.py first", file=sys.stderr)
        return 1
    results = ROOT / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    write_table(runs, report, results / f"{report.name}.md")
    write_csv(runs, results / f"{report.name}.csv")
    plot_curves(runs, results / f"{report.name}.png")
    print((results / f"{report.name}.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

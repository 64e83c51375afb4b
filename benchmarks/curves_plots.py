"""Figures of finished runs: learning curves, and intervals over environments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from curves_results import Runs, environments, variants
from curves_scores import MEASURES, Tasks, common_tasks, strata
from statistics_of_curves import Interval, curve_intervals, improvement_interval, stratified_interval

from agents.common.atomic_save import atomic_write

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

BASELINE_COLOUR = "#777777"
OWN_COLOURS = {"kernel_ddqn": "#1d4ed8", "kernel_q": "#15803d"}
"""These keep their colour in every figure in which they are not the baseline."""
COLOURS = ("#c2410c", "#7e22ce", "#0e7490", "#a16207", "#be185d", "#4d7c0f", "#4338ca", "#000000")
SUFFIXES = (".png", ".svg")
SVG_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "learning curves"}
"""Text stays text, and the same runs give the same file."""


def plot_curves(runs: Runs, tasks: Tasks, baseline: str, stem: Path) -> None:
    """One panel per environment: interquartile mean over seeds with its band, and the threshold where there is one.

    Of more variants than there are colours nobody could tell the curves apart, so none are drawn.
    """
    envs, colours = environments(runs), colours_of(runs, baseline)
    if len(set(colours.values())) < len(colours):
        remove(stem)  # of when there were fewer
        return
    lines: dict[str, Line2D] = {}
    figure, panels = plt.subplots(1, len(envs), figsize=(4.2 * len(envs), 3.4), squeeze=False)
    for panel, env in zip(panels[0], envs, strict=True):
        for variant, colour in colours.items():
            if (env, variant) in runs:
                group = runs[env, variant]
                middle, low, high = curve_intervals(np.array([run.mean_returns for run in group]))
                (line,) = panel.plot(group[0].timesteps, middle, color=colour)
                lines.setdefault(variant, line)
                panel.fill_between(group[0].timesteps, low, high, color=colour, alpha=0.15, linewidth=0)
        if env in tasks:
            panel.axhline(tasks[env].threshold, color="black", linewidth=0.7, linestyle=":")
        panel.set_title(env)
        panel.set_xlabel("environment steps")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("greedy return")
    names = [name for name in colours if name in lines]
    columns = 3 * len(envs)
    figure.legend(
        [lines[name] for name in names],
        [f"{name} ({_seeds(runs, name)} seeds)" for name in names],
        loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(columns, len(names)), frameon=False,
    )  # fmt: skip
    save(figure, stem)


def _seeds(runs: Runs, variant: str) -> str:
    """How many seeds a variant has, from the fewest to the most over environments."""
    counts = sorted({len(group) for (_, name), group in runs.items() if name == variant})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def plot_intervals(runs: Runs, tasks: Tasks, baseline: str, stem: Path) -> None:
    """Normalised interquartile means and probabilities of improvement with their intervals, if anything aggregates.

    The baseline comes first, the others by their area.
    """
    if not common_tasks(runs, tasks):
        remove(stem)  # of when there was something
        return
    colours = colours_of(runs, baseline)
    by_measure = {
        name: {variant: strata(runs, tasks, variant, measure) for variant in colours}
        for name, measure in MEASURES.items()
    }
    intervals = {
        name: {variant: stratified_interval(scores) for variant, scores in by_variant.items()}
        for name, by_variant in by_measure.items()
    }
    first = next(iter(intervals.values()))
    names = [baseline, *sorted(set(colours) - {baseline}, key=lambda variant: (-first[variant].estimate, variant))]
    rows = [colours[variant] for variant in names]
    figure, panels = plt.subplots(1, 4, figsize=(14, 1.2 + 0.4 * len(names)), sharey=True)
    for name, scores, chances in zip(MEASURES, panels[::2], panels[1::2], strict=True):
        interval_panel(scores, [intervals[name][variant] for variant in names], rows)
        scores.set_xlabel(f"{name}: IQM of normalised scores")
        by_variant = by_measure[name]
        against = [improvement_interval(by_variant[variant], by_variant[baseline]) for variant in names[1:]]
        interval_panel(chances, against, rows[1:], first_row=1)
        chances.axvline(0.5, color="black", linewidth=0.7, linestyle=":")
        chances.set_xlim(-0.03, 1.03)
        chances.set_xlabel(f"{name}: P(better than {baseline})")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    save(figure, stem)


def interval_panel(panel: Axes, intervals: Sequence[Interval], colours: Sequence[str], first_row: int = 0) -> None:
    """Bars from low to high with a mark at the estimate, one row each."""
    panel.use_sticky_edges = False  # bars would end where the axis does
    for row, (interval, colour) in enumerate(zip(intervals, colours, strict=True), start=first_row):
        panel.barh(row, interval.high - interval.low, left=interval.low, height=0.6, color=colour, alpha=0.5)
        panel.vlines(interval.estimate, row - 0.3, row + 0.3, color="black", linewidth=1.2)
    panel.grid(axis="x", alpha=0.25)


def colours_of(runs: Runs, baseline: str) -> dict[str, str]:
    """A colour for every variant, grey for the baseline, which comes first; over again where there are too few."""
    wheel = cycle(COLOURS)
    return {
        name: BASELINE_COLOUR if name == baseline else OWN_COLOURS.get(name) or next(wheel)
        for name in variants(runs, baseline)
    }


def remove(stem: Path) -> None:
    """Remove a figure in every format."""
    for suffix in SUFFIXES:
        stem.with_name(stem.name + suffix).unlink(missing_ok=True)


def save(figure: Figure, stem: Path) -> None:
    """Write a figure in every format."""
    figure.tight_layout()
    for suffix in SUFFIXES:
        how: dict[str, Any] = {"format": suffix[1:], "metadata": {"Date": None} if suffix == ".svg" else None}
        draw = partial(figure.savefig, dpi=130, bbox_inches="tight", **how)
        with mpl.rc_context(SVG_STYLE):
            atomic_write(stem.with_name(stem.name + suffix), draw)
    plt.close(figure)

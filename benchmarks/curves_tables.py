"""Finished runs as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from curves_results import Run, Runs, environments, unequal, variants
from curves_scores import MEASURES, Tasks, balanced, common_tasks, strata, values
from statistics_of_curves import (
    Interval,
    Scores,
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    median_interval,
    ratio_interval,
    stratified_interval,
    stratified_mean_interval,
)
from tasks import Task

NOTHING = "–"

EXPLANATION = """AUC: mean greedy return of the evaluations during training. Final: greedy return after the budget. IQM:
interquartile mean over seeds; in brackets 95 % bootstrap intervals, seeds drawn anew within each environment, and none
where all resamples agree, which is no certainty. P: how probable it is that a run is better than one of {baseline},
ties counted half. Seconds are training wall clock without evaluations."""


def markdown(
    runs: Runs, tasks: Tasks, name: str, baseline: str, commands: Sequence[str], unfinished: Sequence[str]
) -> str:
    """The report; ``unfinished`` are cells without a result, in words."""
    parts = [
        f"# {name}",
        provenance(runs, commands),
        EXPLANATION.format(baseline=baseline).replace("\n", " "),
        *(f"**Not finished:** {gap}." for gap in unfinished),
        *(f"**Not comparable:** on {env} {'; '.join(how)}." for env, how in unequal(runs).items()),
        aggregate_section(runs, tasks, baseline),
        "## By environment",
        score_table(runs, baseline),
        "## Steps and seconds",
        "*Reached*: seeds with an evaluation at the threshold; medians over all seeds, ∞ unless more than half "
        f"reached it. *× {baseline}*: ratio of mean training seconds, where both are of one machine and commit. "
        "*Final / best*: the final model's score over that of the best evaluation, which looks better than it is, for "
        "it is the luckiest of many short ones.",
        cost_table(runs, tasks, baseline),
        "## Every seed",
        "Area under the curve / final return.",
        seed_table(runs),
    ]
    return "\n\n".join(parts) + "\n"


def provenance(runs: Runs, commands: Sequence[str]) -> str:
    """Commands, commits, machine and versions behind the runs."""
    every = [run for group in runs.values() for run in group]
    packages = dict.fromkeys(name for run in every for name in run.versions)
    versions = ", ".join(f"{name} {_versions(every, name)}" for name in packages)
    shown = ", ".join(f"`{command}`" for command in commands) or "commands unknown"
    machines = " and ".join(dict.fromkeys(run.machine or "unknown machine" for run in every))
    return f"{shown} · commit {_commits(every)} · {machines} · {versions}."


def _commits(every: Sequence[Run]) -> str:
    """The commit of all runs, or every one with the variants that it was measured on."""
    measured: dict[str, set[str]] = {}
    for run in every:
        head, changed, _ = str(run.commit).partition("-dirty")
        short = head[:12] + changed
        measured.setdefault(short, set()).add(run.variant)
    if len(measured) == 1:
        return next(iter(measured))
    return ", ".join(f"{commit} ({', '.join(sorted(measured[commit]))})" for commit in sorted(measured))


def _versions(every: Sequence[Run], package: str) -> str:
    """The version of a package, or all of them."""
    return " and ".join(dict.fromkeys(str(run.versions.get(package)) for run in every))


def aggregate_section(runs: Runs, tasks: Tasks, baseline: str) -> str:
    """IQM, mean and probability of improvement over the environments whose scores can be normalised."""
    common = common_tasks(runs, tasks)
    left_out = [env for env in environments(runs) if env not in common]
    if not common:
        how = "run by every variant with equal budgets" if unequal(runs) else "run by every variant"
        return f"Nothing to aggregate: no known environment was {how} ({', '.join(left_out)})."
    scale = "; ".join(f"{env} {tasks[env].random_return:g}, {tasks[env].threshold:g}" for env in common)
    note = f"Scores are 0 at the return of random actions and 1 at the threshold: {scale}."
    note += f" Left out: {', '.join(left_out)}." if left_out else ""
    rows = []
    for variant in variants(runs, baseline):
        counted, finished = balanced(runs, tasks, variant), sum(len(runs[env, variant]) for env in common)
        row = [variant, str(sum(map(len, counted.values())))]
        if row[1] != str(finished):
            note += f" Of {variant} {row[1]} of {finished} runs count, equally many of every environment."
        for measure in MEASURES.values():
            ours, theirs = (strata(runs, tasks, one, measure) for one in (variant, baseline))
            row += [bracketed(interval(ours), 3) for interval in (stratified_interval, stratified_mean_interval)]
            row.append(NOTHING if variant == baseline else bracketed(improvement_interval(ours, theirs), 2))
        rows.append(row)
    head = ["variant", "runs"]
    for name in MEASURES:
        head += [f"{name} IQM", f"{name} mean [95 %]", f"P({name} > {baseline})"]
    return f"## Over {len(common)} environments\n\n{note}\n\n{table(head, rows)}"


def score_table(runs: Runs, baseline: str) -> str:
    """Returns of every variant on every environment."""
    head = ["environment", "variant", "steps", "seeds"]
    for name in MEASURES:
        head += [f"{name} mean ± s.e.", f"{name} IQM", f"P({name} > {baseline})"]
    rows = []
    for env, variant, group in _ordered(runs, baseline):
        row = [env, variant, f"{group[0].total_timesteps:,}", str(len(group))]
        digits = _digits(runs, env)
        for measure in MEASURES.values():
            scores, theirs = values(group, measure), runs.get((env, baseline))
            better = NOTHING
            if theirs and variant != baseline:
                better = bracketed(improvement_interval([scores], [values(theirs, measure)]), 2)
            row += [_mean(scores, digits), bracketed(bootstrap_interval(scores), digits), better]
        rows.append(row)
    return table(head, rows)


def cost_table(runs: Runs, tasks: Tasks, baseline: str) -> str:
    """Steps and seconds to the threshold, seconds in all, and what the end of training lost."""
    head = ["environment", "variant", "threshold", "reached", "steps to it", "seconds to it", "seconds"]
    head += [f"× {baseline}", "final / best"]
    rows = []
    for env, variant, group in _ordered(runs, baseline):
        seconds, theirs = values(group, lambda run: run.train_seconds), runs.get((env, baseline))
        ratio = NOTHING
        if variant == baseline:
            ratio = "1"
        elif theirs and _of_one_origin([*group, *theirs]):
            ratio = bracketed(ratio_interval(seconds, values(theirs, lambda run: run.train_seconds)), 2)
        row = [env, variant, *_reaching(group, tasks.get(env)), f"{seconds.mean():.0f}", ratio]
        rows.append([*row, _kept(group, tasks.get(env))])
    return table(head, rows)


def seed_table(runs: Runs) -> str:
    """Area and final return of every seed."""
    rows = []
    for (env, variant), group in runs.items():
        digits = _digits(runs, env)
        seeds = [f"{run.seed}: {run.area:.{digits}f} / {run.final_return:.{digits}f}" for run in group]
        rows.append([env, variant, ", ".join(seeds)])
    return table(["environment", "variant", "by seed"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bracketed(interval: Interval, digits: int) -> str:
    """An estimate with its interval in brackets, if that has two ends."""
    estimate, low, high = (_number(value, digits) for value in interval)
    return estimate if interval.low == interval.high else f"{estimate} [{low}, {high}]"


def _of_one_origin(runs: Sequence[Run]) -> bool:
    """Whether runs are known to be of one commit and machine; seconds of others do not compare.

    Of two runs of a changed checkout nobody knows whether the changes were the same.
    """
    commit, machine = runs[0].commit, runs[0].machine
    known = commit is not None and not commit.endswith("-dirty") and machine is not None
    return known and all((run.commit, run.machine) == (commit, machine) for run in runs)


def _reaching(group: Sequence[Run], task: Task | None) -> list[str]:
    """Threshold, seeds that reached it, and medians of steps and seconds."""
    if task is None:
        return [NOTHING] * 4
    steps = values(group, lambda run: run.steps_to(task))
    seconds = [run.seconds_to(task) for run in group]
    known = np.array([value for value in seconds if value is not None], dtype=np.float64)
    return [
        f"{task.threshold:g}",
        f"{np.isfinite(steps).sum()} of {len(group)}",
        bracketed(median_interval(steps), 0),
        bracketed(median_interval(known), 1) if len(known) == len(group) else NOTHING,
    ]


def _kept(group: Sequence[Run], task: Task | None) -> str:
    """Interquartile mean score of the final model over that of the best evaluation."""
    if task is None:
        return NOTHING
    final, best = (
        float(interquartile_mean(np.array([task.normalised(value) for value in values(group, measure)])))
        for measure in (MEASURES["final"], lambda run: run.best_return)
    )
    return f"{final / best:.2f}" if best > 0 else NOTHING


def _ordered(runs: Runs, baseline: str) -> list[tuple[str, str, list[Run]]]:
    names = variants(runs, baseline)
    return [(env, name, runs[env, name]) for env in environments(runs) for name in names if (env, name) in runs]


def _digits(runs: Runs, env: str) -> int:
    """Digits behind the point that returns of an environment are shown with: none but where all of them are small."""
    returns = [value for (name, _), group in runs.items() if name == env for run in group for value in run.mean_returns]
    return 0 if np.abs(returns).max() >= 10 else 2


def _mean(scores: Scores, digits: int) -> str:
    error = _number(scores.std(ddof=1) / len(scores) ** 0.5, digits) if len(scores) > 1 else NOTHING
    return f"{scores.mean():.{digits}f} ± {error}"


def _number(value: float, digits: int) -> str:
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}"

"""Self-tuned settings against dense grids, on public regression sets: leave-one-out and held-out errors, and seconds.

python benchmarks/tuning.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from shown_command import shown_command
from sklearn import datasets
from torch import Tensor

from agents.common.atomic_save import write_text
from agents.training.provenance import commit, machine, versions
from skrl import ExactSearch, make_kernel, neighbor_lengthscale, sparse_kernel, tune
from skrl.tuning.probes import Probes

Row = dict[str, Any]

SETS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
    "friedman1": lambda: datasets.make_friedman1(1500, noise=1.0, random_state=0),
    "friedman2": lambda: datasets.make_friedman2(1500, noise=100.0, random_state=0),
    "friedman3": lambda: datasets.make_friedman3(1500, noise=0.1, random_state=0),
    "swiss_roll": lambda: datasets.make_swiss_roll(1500, noise=0.5, random_state=0),
}


@dataclass(frozen=True)
class Tuning:
    """What to compare."""

    kernel: str = "matern32"
    """Kernel of every fit."""

    k: tuple[int, ...] = (8, 16, 32, 64)
    """Neighbours, each on its own and then as candidates."""

    grid: int = 25
    """Lengthscales, from 0.1 to 100 median distances to the k-th neighbour, and ridges, from 1e-8 to 1e3."""

    repeats: int = 5
    """Timings, of which the median counts."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Where tuning.json and tuning.md go; a trial belongs elsewhere."""


class Points(NamedTuple):
    """Features [n, d] and targets [n, 1]."""

    features: Tensor
    targets: Tensor


class Settings(NamedTuple):
    """What a prediction needs besides the supports."""

    lengthscale: float
    ridge: float
    k: int


def load(name: str) -> Points:
    """Every point of a set, features and targets standardised."""
    features, targets = SETS[name]()
    columns = ((values - values.mean(0)) / values.std(0) for values in (features, targets[:, None]))
    return Points(*(torch.from_numpy(values).float() for values in columns))


def errors(points: Points, kernel: str, k: int, lengthscale: float, ridges: Sequence[float]) -> list[float]:
    """Leave-one-out root mean square error over all points, one for every ridge."""
    index = ExactSearch().index(points.features)
    probes = Probes.of(index, *points, make_kernel(kernel, points.features.shape[1]), k, len(points.targets), "hard")
    means = [mean for mean, _ in probes.predictions(lengthscale, ridges, k)]
    return [(mean - points.targets).square().mean().sqrt().item() for mean in means]


def best_of_grid(points: Points, kernel: str, k: int, count: int) -> tuple[float, Settings]:
    """Smallest leave-one-out error of a dense grid, and where it stands."""
    scale = neighbor_lengthscale(points.features, k, factor=1.0).item()
    ridges = np.geomspace(1e-8, 1e3, count).tolist()
    found = []
    for lengthscale in (scale * np.geomspace(0.1, 100.0, count)).tolist():
        rows = zip(errors(points, kernel, k, lengthscale, ridges), ridges, strict=True)
        found += [(error, Settings(lengthscale, ridge, k)) for error, ridge in rows]
    return min(found)


def heuristic(points: Points, k: int) -> Settings:
    """Twice the median distance to the k-th neighbour, and one ridge for everything."""
    return Settings(neighbor_lengthscale(points.features, k).item(), 1e-2, k)


def held_out_error(known: Points, new: Points, kernel: str, settings: Settings) -> float:
    """Root mean square error on new points."""
    lengthscale, ridge, k = settings
    answer = sparse_kernel(new.features, *known, kernel=kernel, lengthscale=lengthscale, ridge=ridge, k=k)
    return (answer.mean - new.targets).square().mean().sqrt().item()


def split(points: Points) -> tuple[Points, Points]:
    """Two thirds to fit and a third to hold out."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(points.targets)))
    third = len(order) // 3
    known, new = (Points(*(values[rows] for values in points)) for rows in (order[third:], order[:third]))
    return known, new


def timed_tune(points: Points, kernel: str, repeats: int, **keywords: object) -> tuple[Settings, float]:
    """Tuned settings and the median of the seconds that they took."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        tuned = tune(*points, make_kernel(kernel, points.features.shape[1]), **keywords)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - started)
    return Settings(float(tuned.lengthscale), tuned.ridge, tuned.k), float(np.median(seconds))


def compare(name: str, settings: Tuning) -> dict[str, Row]:
    """Tuned settings against the best of the grid on all points, and both on a third that was held out."""
    points = load(name)
    known, new = split(points)
    grids = {k: best_of_grid(points, settings.kernel, k, settings.grid) for k in settings.k}
    known_grids = {k: best_of_grid(known, settings.kernel, k, settings.grid) for k in settings.k}
    rows: dict[str, Row] = {}
    for candidates in [(k,) for k in settings.k] + [settings.k]:
        tuned, seconds = timed_tune(points, settings.kernel, settings.repeats, k=candidates)
        (error,) = errors(points, settings.kernel, tuned.k, tuned.lengthscale, [tuned.ridge])
        best, where = min(grids[k] for k in candidates)
        rivals = {
            "tuned": timed_tune(known, settings.kernel, 1, k=candidates)[0],
            "grid": min(known_grids[k] for k in candidates)[1],
            "heuristic": heuristic(known, candidates[0] if len(candidates) == 1 else 32),
        }
        rows[", ".join(map(str, candidates))] = {
            "tuned": tuned._asdict(),
            "grid": where._asdict(),
            "tuned_error": error,
            "grid_error": best,
            "ratio": error / best,
            "seconds": seconds,
            "held_out": {rival: held_out_error(known, new, settings.kernel, at) for rival, at in rivals.items()},
        }
    return rows


def speeds(settings: Tuning) -> list[Row]:
    """Seconds of `tune` on large sets, whose points are Gaussian and whose targets are a sine with noise."""
    cases: list[tuple[int, int, dict[str, object]]] = [
        (20_000, 64, {"k": (16, 32, 64)}),
        (20_000, 64, {"k": 32}),
        (20_000, 8, {"k": (16, 32, 64)}),
        (4_000, 8, {"k": 16}),
        (4_000, 8, {"k": 16, "probes": 128, "rounds": 2}),
    ]
    rows: list[Row] = []
    for count, dim, keywords in cases:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(count, dim, generator=generator)
        targets = torch.sin(2.0 * features[:, :1]) + 0.3 * torch.randn(count, 1, generator=generator)
        _, seconds = timed_tune(Points(features, targets), settings.kernel, settings.repeats, **keywords)
        rows.append({"points": count, "dim": dim, "keywords": keywords, "seconds": seconds})
    return rows


def table(rows: dict[str, dict[str, Row]]) -> str:
    """Errors of every set as a Markdown table."""
    lines = [
        "| set | k | tuned | grid | ratio | seconds | held out: tuned | grid | heuristic |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_candidates in rows.items():
        for candidates, row in by_candidates.items():
            chosen = f" → {row['tuned']['k']}" if "," in candidates else ""
            figures = [row["tuned_error"], row["grid_error"]]
            held_out = " | ".join(f"{error:.4f}" for error in row["held_out"].values())
            lines.append(
                f"| {name} | {candidates}{chosen} | {figures[0]:.4f} | {figures[1]:.4f} | {row['ratio']:.3f} "
                f"| {row['seconds']:.2f} | {held_out} |"
            )
    return "\n".join(lines)


REPORT = """# Self-tuning against dense grids

`{command}`, commit `{commit}`, {machine}; versions stand in `tuning.json`.

Root mean square errors in standard deviations of the targets, kernel {kernel}. *Tuned* and *grid* are leave-one-out
errors over all points: of `tune`, which looks at 512 of them at most, and of the best of {grid} × {grid} lengthscales
and ridges at every k. *Seconds* is the median of {repeats} calls. *Held out*: settings chosen on two thirds of the
points, errors on the last third; the heuristic is twice the median distance to the k-th neighbour (k = 32 where the
others choose) and λ = 0.01.

{errors}

## Seconds on large sets

| points | dimensions | arguments | seconds |
|---|---|---|---|
{speeds}
"""


def main() -> None:
    """Compare on every set and write the results."""
    settings = tyro.cli(Tuning, description=__doc__)
    torch.set_num_threads(1)
    provenance = {
        "command": shown_command("tuning.py", sys.argv[1:]),
        "commit": commit(),
        "machine": f"{machine()}, one thread",
    }
    timed_tune(load("diabetes"), settings.kernel, 1)  # compiles the loops
    large = speeds(settings)
    rows = {}
    for name in SETS:
        rows[name] = compare(name, settings)
        print(table({name: rows[name]}), flush=True)
    results = {"versions": versions() | {"scikit-learn": version("scikit-learn")}, "sets": rows, "speeds": large}
    write_text(settings.results / "tuning.json", json.dumps(provenance | results, indent=2) + "\n")
    lines = [
        f"| {row['points']} | {row['dim']} | {', '.join(f'{name}={value}' for name, value in row['keywords'].items())} "
        f"| {row['seconds']:.3f} |"
        for row in large
    ]
    text = REPORT.format(**provenance, **vars(settings), errors=table(rows), speeds="\n".join(lines))
    write_text(settings.results / "tuning.md", text)


if __name__ == "__main__":
    main()

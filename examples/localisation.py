"""Hard and continuous localisation in one picture: python examples/localisation.py --path docs/localisation.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from skrl import SparseKernel
from skrl.search.neighbors import LOCALISATIONS

COLOURS = {"hard": "#c2410c", "continuous": "#1d4ed8"}


@dataclass(frozen=True)
class Settings:
    """What to draw."""

    path: Path = Path("docs/localisation.png")
    """File of the picture."""

    points: int = 40
    """Support points."""

    k: int = 8
    """Neighbours of a query."""

    resolution: int = 20_001
    """Queries along the line."""


def predictions(features: Tensor, targets: Tensor, queries: Tensor, k: int) -> dict[str, Tensor]:
    """What both forms of one kernel answer, [B] each; lengthscale and ridge are the same."""
    return {
        form: SparseKernel(features, targets, k=k, lengthscale=0.3, ridge=0.1, localisation=form)(queries)[:, 0]
        for form in LOCALISATIONS
    }


def largest_jump(values: Tensor) -> tuple[float, int]:
    """The largest step between neighbouring queries, and where it starts."""
    steps = values.diff().abs()
    return float(steps.max()), int(steps.argmax())


def draw(axes: Axes, queries: Tensor, answers: dict[str, Tensor], features: Tensor, targets: Tensor) -> None:
    """Support points and both predictions."""
    axes.plot(features[:, 0], targets[:, 0], "o", color="#777777", markersize=4, label="support points")
    for form, values in answers.items():
        axes.plot(queries[:, 0], values, color=COLOURS[form], label=form, linewidth=1.5)
    axes.grid(alpha=0.25)
    axes.set_xlabel("query z")


def main(settings: Settings) -> dict[str, float]:
    """Draw the picture, print the largest jump of each form, and give it back."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(settings.points, 1, generator=generator, dtype=torch.float64).sort(0).values
    noise = 0.25 * torch.randn(settings.points, 1, generator=generator, dtype=torch.float64)
    targets = torch.sin(8.0 * features) + noise
    queries = torch.linspace(0, 1, settings.resolution, dtype=torch.float64).unsqueeze(1)
    answers = predictions(features, targets, queries, settings.k)
    jumps = {form: largest_jump(values) for form, values in answers.items()}

    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    whole, zoom = figure.subplots(1, 2)
    for axes in (whole, zoom):
        draw(axes, queries, answers, features, targets)
    place = jumps["hard"][1]
    centre, height = float(queries[place, 0]), float(answers["hard"][place : place + 2].mean())
    frame = {"xlim": (centre - 0.04, centre + 0.04), "ylim": (height - 0.25, height + 0.25)}
    zoom.set(title="where the neighbours change", **frame)
    whole.indicate_inset_zoom(zoom)
    whole.set(title=f"k = {settings.k} of {settings.points} points", ylabel="prediction f(z)")
    whole.legend(frameon=False)
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.path, dpi=130)
    for form, (step, _) in jumps.items():
        print(f"{form:<12} largest step between {settings.resolution:,} neighbouring queries: {step:.5f}")
    return {form: step for form, (step, _) in jumps.items()}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

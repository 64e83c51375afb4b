"""What each layer of a network knows about classes that it never saw, told by readouts on its frozen activations.

python examples/probe.py
python examples/probe.py --backbones vit --labels 50 --pooling flatten
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from backbones import BACKBONES, BackboneName, make_backbone, train
from images import first_per_class, load_images, split_per_class

from skrl import ProbeReport, probe_layers

LAYERS = {
    "cnn": ["blocks.0", "blocks.1", "blocks.2"],
    "vit": ["patches", "blocks.0", "blocks.1", "blocks.2", "norm"],
}
"""Modules whose outputs are probed."""


@dataclass(frozen=True)
class Settings:
    """What to probe."""

    backbones: tuple[BackboneName, ...] = tuple(BACKBONES)
    """Networks, trained on the first half of the classes."""

    labels: int = 50
    """Labelled pictures of every class of the second half that the readouts see."""

    pooling: Literal["mean", "flatten"] = "mean"
    """Activations averaged over positions, or all of them."""

    epochs: int = 30
    """Passes of the network over its pictures."""

    test_per_class: int = 60
    """Test pictures of every class."""

    seed: int = 0
    """Of split and network."""

    folder: Path = Path("runs/probe")
    """Where the figures go, one for each network."""

    mnist: Path | None = None
    """Folder of MNIST's idx files; scikit-learn's digits when left out."""

    limit: int | None = None
    """Pictures at most."""


def main(settings: Settings) -> dict[str, ProbeReport]:
    """Train and probe every network, print the tables, draw the figures, and give the reports back."""
    torch.set_num_threads(1)
    images = load_images(settings.mnist, settings.limit)
    classes = int(images.labels.max()) + 1
    known, new = images.of_classes(0, classes // 2 - 1), images.of_classes(classes // 2, classes - 1)
    split = split_per_class(new, settings.test_per_class, settings.seed)
    labelled = first_per_class(split.train, settings.labels)
    settings.folder.mkdir(parents=True, exist_ok=True)
    reports: dict[str, ProbeReport] = {}
    for name in settings.backbones:
        model = make_backbone(name, known, settings.seed)
        train(model, known, settings.epochs, settings.seed)
        reports[name] = probe_layers(
            model, LAYERS[name], train=labelled.loader(), test=split.test.loader(), pooling=settings.pooling
        )
        reports[name].plot(settings.folder / f"{name}.png")
        print(f"{name}, figure in {settings.folder / name}.png\n\n{reports[name].to_markdown()}")
    return reports


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

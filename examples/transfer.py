"""Transfer without training: a network learns half of the classes, and a readout on its frozen features the others.

The Sparse Kernel only stores the labelled features; its opponents on the same features are a linear readout, a
trained network of two hidden layers and nearest neighbours. Test pictures are drawn by the seed, before anything is
trained, and no choice is made on them.

python examples/transfer.py
python examples/transfer.py --seeds 0 1 2 3 4 --save benchmarks/results/transfer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import tyro
from backbones import BACKBONES, BackboneName, make_backbone, train
from images import Images, first_per_class, load_images, split_per_class
from opponents import MLPReadout, NearestNeighbours
from torch import Tensor, nn
from transfer_report import Row, summary, write_report

from agents.training.provenance import commit
from skrl import LinearClassifier, SparseKernelClassifier
from skrl.readouts.activations import collect_features


@dataclass(frozen=True)
class Settings:
    """What to try."""

    backbones: tuple[BackboneName, ...] = tuple(BACKBONES)
    """Networks."""

    labels: tuple[int, ...] = (10, 50, 200)
    """Labelled pictures of every new class; all but the test part where there are fewer."""

    seeds: tuple[int, ...] = (0,)
    """One split and one trained network each."""

    epochs: int = 30
    """Passes of the network over the pictures of the known classes."""

    test_per_class: int = 60
    """Test pictures of every new class."""

    mnist: Path | None = None
    """Folder of MNIST's idx files; scikit-learn's digits when left out."""

    limit: int | None = None
    """Pictures at most."""

    save: Path | None = None
    """Stem of the files that the results are written to, as `.md`, `.csv` and `.png`."""


class Readout(Protocol):
    """What a readout must have."""

    def fit(self, features: Tensor, labels: Tensor) -> object:
        """Learn from features, [n, d], and labels, [n]."""

    def score(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy."""


READOUTS: dict[str, Callable[[int], Readout]] = {
    "sparse kernel": lambda seed: SparseKernelClassifier(random_state=seed),
    "MLP": lambda seed: MLPReadout(seed=seed),
    "linear": lambda seed: LinearClassifier(random_state=seed),
    "k-NN": lambda seed: NearestNeighbours(seed=seed),
}
"""Readouts by name, made for a seed."""


def frozen_features(model: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
    """What reaches ``model.fc``, [n, d], batch by batch, and the labels."""
    return collect_features(images.loader(), backbone=model, head=model.get_submodule("fc"))


def transfer(settings: Settings, images: Images, backbone: BackboneName, seed: int) -> Iterator[Row]:
    """Train one network on the first half of the classes, then every readout on the second half."""
    classes = int(images.labels.max()) + 1
    known, new = images.of_classes(0, classes // 2 - 1), images.of_classes(classes // 2, classes - 1)
    split = split_per_class(new, settings.test_per_class, seed)
    model = make_backbone(backbone, known, seed)
    train(model, known, settings.epochs, seed)
    test = frozen_features(model, split.test)
    for count in settings.labels:
        labelled = first_per_class(split.train, count)
        given = len(labelled) / (int(new.labels.max()) + 1)
        features = frozen_features(model, labelled)
        for name, make in READOUTS.items():
            readout = make(seed)
            started = time.process_time()
            readout.fit(*features)
            seconds = time.process_time() - started
            yield Row(backbone, count, given, seed, name, readout.score(*test), seconds)


def main(settings: Settings) -> list[Row]:
    """Run every seed and network, print the summary, and write it where that is asked for."""
    torch.set_num_threads(1)
    source = commit()  # of the code that runs; what is committed meanwhile is not part of it
    images = load_images(settings.mnist, settings.limit)
    # What is compiled at the first call must not count as fitting.
    SparseKernelClassifier().fit(torch.randn(200, 64), torch.arange(200) % 5)
    rows = []
    for seed in settings.seeds:
        for backbone in settings.backbones:
            for row in transfer(settings, images, backbone, seed):
                rows.append(row)
                print(
                    f"{row.backbone} seed {seed}, {row.labels} a class, {row.readout}: {row.accuracy:.3f}", flush=True
                )
    print(summary(rows))
    if settings.save is not None:
        write_report(rows, settings.save, source)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

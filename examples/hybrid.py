"""A hybrid model: a Sparse Kernel beside ``model.fc``, trained end to end with the network, and its plain twin.

python examples/hybrid.py
python examples/hybrid.py --backbone vit --labels 20 --seeds 0 1 2
"""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean

import torch
import tyro
from backbones import BackboneName, ConvNet, VisionTransformer, accuracy, make_backbone, train
from images import Images, Split, first_per_class, load_images, split_per_class
from torch import Tensor, nn
from torch.nn import functional

from skrl import SparseKernelClassifier
from skrl.readouts.activations import collect_features


@dataclass(frozen=True)
class Settings:
    """What to train."""

    backbone: BackboneName = "cnn"
    """Network."""

    labels: int = 20
    """Labelled pictures of every class; all that are left beside the test part where there are fewer."""

    supports: int = 100
    """Support points of the kernel."""

    epochs: int = 30
    """Passes over the training pictures."""

    test_per_class: int = 60
    """Test pictures of every class."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One split and one pair of models each."""

    mnist: Path | None = None
    """Folder of MNIST's idx files; scikit-learn's digits when left out."""

    limit: int | None = None
    """Pictures at most."""


@dataclass(frozen=True)
class Result:
    """How one model did.

    Attributes:
        accuracy: on the test pictures.
        cross_entropy: likewise, in nats.
        seconds: of training.
    """

    accuracy: float
    cross_entropy: float
    seconds: float


class HybridHead(nn.Module):
    """A linear layer plus a Sparse Kernel whose supports, their targets, lengthscale and ridge all learn.

    Features move as the network learns. Far from all supports the kernel answers a constant, and the linear layer
    still has a gradient.

    Args:
        linear: the layer.
        supports: support points of the kernel.
    """

    def __init__(self, linear: nn.Module, supports: int) -> None:
        super().__init__()
        self.linear = linear
        # The supports are training pictures: under a small ridge the kernel would recite them, and nothing be learned.
        self.kernel = SparseKernelClassifier(
            scaling="standard",
            ridge=1.0,
            max_supports=supports,
            learn_supports=True,
            learn_targets=True,
            learn_kernel=True,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits, [B, C], of features, [B, d]."""
        logits: Tensor = self.linear(features) + self.kernel(features)
        return logits


def plain(settings: Settings, data: Split, seed: int) -> Result:
    """The network as it is."""
    model = make_backbone(settings.backbone, data.train, seed)
    return trained(model, settings, data, seed)


def hybrid(settings: Settings, data: Split, seed: int) -> Result:
    """The same network, with the same first weights, under a Sparse Kernel."""
    model = make_backbone(settings.backbone, data.train, seed)
    put_kernel_on(model, data.train, settings.supports)
    return trained(model, settings, data, seed)


def put_kernel_on(model: ConvNet | VisionTransformer, images: Images, supports: int) -> None:
    """Add a Sparse Kernel to ``model.fc``; its supports start as features of these pictures."""
    head = HybridHead(model.fc, supports)
    head.kernel.fit(*collect_features(images.loader(), backbone=model, head=model.fc))
    model.fc = head


def trained(model: nn.Module, settings: Settings, data: Split, seed: int) -> Result:
    """Train a model and test it."""
    started = time.perf_counter()
    train(model, data.train, settings.epochs, seed)
    seconds = time.perf_counter() - started
    return Result(accuracy(model, data.test), cross_entropy(model, data.test), seconds)


@torch.no_grad()
def cross_entropy(model: nn.Module, images: Images) -> float:
    """Mean cross entropy of the right labels."""
    losses = [functional.cross_entropy(model(x), y, reduction="sum") for x, y in images.loader(batch_size=256)]
    return float(torch.stack(losses).sum()) / len(images)


def main(settings: Settings) -> dict[str, list[Result]]:
    """Train both models on every seed, print a table, and give the results back."""
    torch.set_num_threads(1)
    images = load_images(settings.mnist, settings.limit)
    results: dict[str, list[Result]] = {"plain": [], "hybrid": []}
    for seed in settings.seeds:
        whole = split_per_class(images, settings.test_per_class, seed)
        data = Split(first_per_class(whole.train, settings.labels), whole.test)
        results["plain"].append(plain(settings, data, seed))
        results["hybrid"].append(hybrid(settings, data, seed))
    print("| model | accuracy by seed | mean | cross entropy | seconds |\n|---|---|---:|---:|---:|")
    for name, runs in results.items():
        by_seed = ", ".join(f"{run.accuracy:.3f}" for run in runs)
        accuracy_mean, entropy, seconds = (mean(values) for values in zip(*map(astuple, runs), strict=True))
        print(f"| {name} | {by_seed} | {accuracy_mean:.3f} | {entropy:.3f} | {seconds:.1f} |")
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

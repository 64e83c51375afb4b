"""What a readout without training must match: a trained network of two hidden layers, and nearest neighbours.

Both choose their settings, the scaling of the features among them, on held-out folds of the labelled samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional

from skrl.readouts.feature_scaling import FeatureScaling, Scaling
from skrl.readouts.linear_readouts import stratified_folds

SCALINGS: tuple[Scaling, ...] = ("standard", "whitened")
"""Candidates of both; the Sparse Kernel's own whitening is among them."""

FOLDS = 5
LEARNING_RATE = 1e-3
BATCH = 32


@dataclass(frozen=True)
class Plan:
    """One way of training, and what came of it on held-out folds.

    Attributes:
        scaling: of the features.
        weight_decay: of AdamW.
        epochs: passes over the data.
        loss: cross entropy of left-out labels.
    """

    scaling: Scaling
    weight_decay: float
    epochs: int
    loss: float


class MLPReadout:
    """Two hidden layers of rectified units, trained by AdamW.

    Scaling of the features, weight decay and number of epochs are those with the smallest cross entropy on held-out
    folds, where training stops once the loss has not improved for ``patience`` epochs. Then all samples are learned
    from in this way.

    Args:
        width: of the hidden layers.
        weight_decays: candidates.
        max_epochs: passes over the data at most.
        patience: passes without improvement after which a fold stops.
        seed: of weights, batches and folds.
    """

    model: nn.Sequential
    plan: Plan

    def __init__(
        self,
        width: int = 128,
        weight_decays: tuple[float, ...] = (0.1, 1.0, 3.0),
        max_epochs: int = 200,
        patience: int = 20,
        seed: int = 0,
    ) -> None:
        self.width, self.weight_decays = width, weight_decays
        self.max_epochs, self.patience, self.seed = max_epochs, patience, seed

    def fit(self, features: Tensor, labels: Tensor) -> MLPReadout:
        """Choose a plan, then train on everything.

        Args:
            features: [n, d].
            labels: 0 … C−1, [n].
        """
        candidates = product(SCALINGS, self.weight_decays)
        plans = [self._try(features, labels, *candidate) for candidate in candidates]
        self.plan = min(plans, key=lambda plan: plan.loss)
        self.model = self._blank(features, self.plan.scaling, labels)
        for _ in self._epochs(self.model, features, labels, self.plan.weight_decay, self.plan.epochs):
            pass
        return self

    @torch.no_grad()
    def score(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy."""
        return float((self.model(features).argmax(-1) == labels).float().mean())

    def _try(self, features: Tensor, labels: Tensor, scaling: Scaling, weight_decay: float) -> Plan:
        """The best number of epochs for these settings."""
        fold = stratified_folds(labels, FOLDS, self.seed)
        curves = [self._curve(features, labels, fold == held, scaling, weight_decay) for held in range(FOLDS)]
        mean = torch.stack(curves).mean(0)
        return Plan(scaling, weight_decay, int(mean.argmin()) + 1, float(mean.min()))

    def _curve(self, features: Tensor, labels: Tensor, held: Tensor, scaling: Scaling, weight_decay: float) -> Tensor:
        """Cross entropy of the held-out samples after every epoch, [max_epochs], its last value repeated to the end."""
        model = self._blank(features[~held], scaling, labels)
        losses: list[float] = []
        for _ in self._epochs(model, features[~held], labels[~held], weight_decay, self.max_epochs):
            with torch.no_grad():
                losses.append(float(functional.cross_entropy(model(features[held]), labels[held])))
            if len(losses) - losses.index(min(losses)) > self.patience:
                break
        return torch.tensor(losses + losses[-1:] * (self.max_epochs - len(losses)))

    def _epochs(
        self, model: nn.Module, features: Tensor, labels: Tensor, weight_decay: float, epochs: int
    ) -> Iterator[None]:
        """Train; gives a turn to the caller after every epoch."""
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=weight_decay)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
                loss = functional.cross_entropy(model(features[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            yield

    def _blank(self, features: Tensor, scaling: Scaling, labels: Tensor) -> nn.Sequential:
        """An untrained network, its scaling measured on these features."""
        torch.manual_seed(self.seed)
        dim, classes = features.shape[1], int(labels.max()) + 1
        scaled = FeatureScaling.fit(features, scaling)
        # The scaling gives rows of mean square length one; networks want that of every feature.
        scaled.scale *= dim**0.5
        hidden = [nn.Linear(dim, self.width), nn.ReLU(), nn.Linear(self.width, self.width), nn.ReLU()]
        return nn.Sequential(scaled, *hidden, nn.Linear(self.width, classes))


class NearestNeighbours:
    """The majority among the nearest samples; scaling and number make the fewest mistakes on held-out folds.

    Args:
        counts: candidates for the number of neighbours.
        seed: of the folds.
    """

    model: KNeighborsClassifier
    scaling: FeatureScaling

    def __init__(self, counts: tuple[int, ...] = (1, 3, 5, 9), seed: int = 0) -> None:
        self.counts, self.seed = counts, seed

    def fit(self, features: Tensor, labels: Tensor) -> NearestNeighbours:
        """Choose settings, then keep all samples, [n, d], and their labels, [n]."""
        fold = stratified_folds(labels, FOLDS, self.seed)

        def right(candidate: tuple[Scaling, int]) -> float:
            return sum(
                self._keep(features, labels, fold != held, *candidate).score(
                    features[fold == held], labels[fold == held]
                )
                * int((fold == held).sum())
                for held in range(FOLDS)
            )

        best = max(product(SCALINGS, self.counts), key=right)
        return self._keep(features, labels, fold >= 0, *best)

    def score(self, features: Tensor, labels: Tensor) -> float:
        """Accuracy."""
        return float(self.model.score(self.scaling(features).numpy(), labels.numpy()))

    def _keep(self, features: Tensor, labels: Tensor, rows: Tensor, scaling: Scaling, count: int) -> NearestNeighbours:
        """Keep some of the samples."""
        self.scaling = FeatureScaling.fit(features[rows], scaling)
        kept = self.scaling(features[rows]).numpy()
        self.model = KNeighborsClassifier(min(count, len(kept))).fit(kept, labels[rows].numpy())
        return self

"""What is timed: the interface of a contender, and ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from local_solve_problem import Answer, Settings
from torch import Tensor, nn

from skrl import SparseKernel

PRECISIONS = ("float64", "float32")
"""Both are checked; float32 is timed."""


class Contender(ABC):
    """One way to answer queries. Building an index (`fit`) and translating arrays stay outside the timing.

    Attributes:
        requires: modules that must be importable.
        precisions: what the two sides are compared in.
        one_process_per_precision: the library fixes its precision when it is imported.
        most_queries: queries of a batch that are solved, the others are searched only; all when None.
        compare_all: compare full batches in float64 too, where other contenders answer at most `PROBES` queries.
        setting: what the contender chose by itself, for the record.
        missing_seconds: what solving the other queries of the last batch would have taken.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    one_process_per_precision: ClassVar[bool] = False
    most_queries: ClassVar[int | None] = None
    compare_all: ClassVar[bool] = False
    setting: str = ""
    missing_seconds: float = 0.0

    @classmethod
    def environment(cls, precision: str) -> dict[str, str]:
        """Environment variables that the library reads at import."""
        return {}

    def native(self, values: np.ndarray) -> Any:
        """An array in the contender's own type."""
        return values

    @abstractmethod
    def fit(self, features: Any, targets: Any, settings: Settings) -> None:
        """Prepare for queries; [M, d] and [M, 1], native."""

    def settle(self, queries: Any) -> None:
        """Choose between variants before the timing, given a batch of the size to come; [B, d], native."""
        self.setting = ""

    @abstractmethod
    def __call__(self, queries: Any) -> Any:
        """Answer a batch, [B, d], native. This is what is timed."""

    @abstractmethod
    def answer(self, output: Any) -> Answer:
        """The output as arrays with the names of the dense solution."""


class TorchContender(Contender):
    """A contender that works on tensors."""

    def native(self, values: np.ndarray) -> Tensor:
        """A tensor that shares the array's memory."""
        return torch.from_numpy(values)


class OurPrediction(TorchContender):
    """Search, mean and variance by `SparseKernel.predict`."""

    def fit(self, features: Tensor, targets: Tensor, settings: Settings) -> None:
        """Build the module."""
        self.module = _module(features, targets, settings)

    @torch.no_grad()
    def __call__(self, queries: Tensor) -> Any:
        """Mean and variance."""
        return self.module.predict(queries)

    def answer(self, output: Any) -> Answer:
        """Mean [B, 1] and variance [B]."""
        return {"mean": output.mean.numpy(), "variance": output.variance.numpy()}


class OurSearch(TorchContender):
    """The search that `SparseKernel` uses, alone."""

    def fit(self, features: Tensor, targets: Tensor, settings: Settings) -> None:
        """Build the index."""
        self.k = settings.k
        self.index = _module(features, targets, settings).search.index(features)

    @torch.no_grad()
    def __call__(self, queries: Tensor) -> Any:
        """Indices and mask."""
        return self.index.nearest(queries, self.k)

    def answer(self, output: Any) -> Answer:
        """Neighbours in ascending order of their positions, [B, k]."""
        return {"indices": np.sort(output[0].numpy(), axis=1)}


class OurGradient(TorchContender):
    """Search, mean and variance, then the gradient of their sum in queries and features."""

    def fit(self, features: Tensor, targets: Tensor, settings: Settings) -> None:
        """Build a module with learned features."""
        self.module = _module(nn.Parameter(features), targets, settings)

    def __call__(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Gradients in queries and features."""
        queries = queries.detach().requires_grad_()
        prediction = self.module.predict(queries)
        assert self.module.features is not None
        return torch.autograd.grad(prediction.mean.sum() + prediction.variance.sum(), [queries, self.module.features])

    def answer(self, output: tuple[Tensor, ...]) -> Answer:
        """Gradients, [B, d] and [M, d]."""
        return gradient_answer(output)


def gradient_answer(gradients: tuple[Tensor, ...]) -> Answer:
    """Gradients in queries [B, d] and features [M, d], by name."""
    return {"query_gradient": gradients[0].numpy(), "feature_gradient": gradients[1].numpy()}


def _module(features: Tensor, targets: Tensor, settings: Settings) -> SparseKernel:
    return SparseKernel(
        features,
        targets,
        kernel="matern32",
        k=settings.k,
        lengthscale=settings.lengthscale,
        ridge=settings.ridge,
    )

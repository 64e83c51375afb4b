"""Sparse Kernel: lazy, local, differentiable kernel ridge regression as a function and as a module.

After J.-M. Mercier and G. Santin, *Differentiable Kernel Ridge Regression for Deep Learning Pipelines*, 2026,
arXiv 2605.02313.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from skrl.kernels import Kernel, make_kernel
from skrl.local_solve import Prediction, factorise
from skrl.neighbors import ExactSearch, NeighborSearch, gather_points
from skrl.shapes import Float, Tensor
from skrl.tuning import leave_one_out_ridge, neighbor_lengthscale, probes

MAX_GRAM = 1 << 24
"""Entries of all Gram matrices that one chunk of queries may hold (64 MiB in float32)."""

PriorMean = Callable[[Tensor], Tensor]
"""Any map from features [n, d] to targets [n, c]; a neural network, say."""


def sparse_kernel(
    queries: Float[Tensor, "queries dim"],
    features: Float[Tensor, "points dim"],
    targets: Float[Tensor, "points targets"],
    *,
    kernel: str | Kernel = "matern32",
    lengthscale: Float[Tensor, ""] | float = 1.0,
    ridge: Float[Tensor, ""] | float = 1e-2,
    k: int = 32,
    prior_mean: PriorMean | None = None,
    search: NeighborSearch | None = None,
) -> Prediction:
    """Predict by kernel ridge regression on the k nearest support points of every query.

    Gradients reach queries, features, targets, lengthscale, ridge and the prior mean; which points are neighbours is
    treated as constant.

    Args:
        queries: evaluation points z, [B, d].
        features: support points X, [M, d]; M may be smaller than k, or zero.
        targets: values Y at the support points, [M, c].
        kernel: a kernel or its name.
        lengthscale: ℓ > 0, in the units of the features.
        ridge: λ ≥ 0.
        k: neighbours per query.
        prior_mean: m; zero when left out.
        search: how neighbours are found; exact by default.

    Returns:
        Mean [B, c] and variance [B], in the dtype of the queries. Without supports: the prior mean and variance 1.
    """
    residuals = targets if prior_mean is None else targets - prior_mean(features)
    points, search, kernel = _precise(features), search or ExactSearch(), make_kernel(kernel)
    means, variances = [], []
    for chunk in torch.split(queries, max(1, MAX_GRAM // k**2)):
        with torch.autocast(queries.device.type, enabled=False):
            neighbors = search(chunk.to(points.dtype), points, k)
            system = factorise(neighbors, points, kernel, lengthscale, ridge)
            weights = system.weights()
            local = gather_points(residuals, neighbors.indices).to(weights.dtype)
            means.append((weights.unsqueeze(-2) @ local).squeeze(-2))
            variances.append(system.variance(weights))
    mean, variance = torch.cat(means), torch.cat(variances)
    if prior_mean is not None:
        mean = mean + prior_mean(queries)
    return Prediction(mean.to(queries.dtype), variance.to(queries.dtype))


def _precise(values: Tensor) -> Tensor:
    """At least float32: distances and solves in half precision overflow and lose their digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class SparseKernel(nn.Module):
    """A Sparse Kernel over a support set, usable wherever an ``nn.Module`` is.

    Args:
        features: support points X, [M, d]: a tensor stays fixed (a buffer), an ``nn.Parameter`` is learned.
        targets: values Y, [M, c], fixed or learned likewise.
        kernel: a kernel or its name.
        k: neighbours per query.
        lengthscale: ℓ; twice the median distance to the k-th neighbour when left out.
        ridge: λ; chosen among ``DEFAULT_RIDGES`` by leave-one-out error when left out.
        prior_mean: m, a module or any callable; zero when left out.
        search: how neighbours are found; exact by default.

    Raises:
        ValueError: shapes do not match, a setting is not positive, or a support point is not finite.
    """

    features: Tensor
    targets: Tensor
    lengthscale: Tensor
    ridge: Tensor

    def __init__(
        self,
        features: Float[Tensor, "points dim"],
        targets: Float[Tensor, "points targets"],
        *,
        kernel: str | Kernel = "matern32",
        k: int = 32,
        lengthscale: float | None = None,
        ridge: float | None = None,
        prior_mean: PriorMean | None = None,
        search: NeighborSearch | None = None,
    ) -> None:
        super().__init__()
        _check_supports(features, targets)
        for name, value in (("k", k), ("lengthscale", lengthscale)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, but must be positive")
        if ridge is not None and not ridge >= 0:
            raise ValueError(f"ridge is {ridge}, but must not be negative")
        self.kernel, self.k = make_kernel(kernel), k
        self.prior_mean, self.search = prior_mean, search or ExactSearch()
        self._fix_or_learn("features", features)
        self._fix_or_learn("targets", targets)
        points = _precise(self.features.detach())
        self.register_buffer("lengthscale", points.new_tensor(1.0 if lengthscale is None else lengthscale))
        self.register_buffer("ridge", points.new_tensor(1e-2 if ridge is None else ridge))
        with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            if lengthscale is None and len(points) > 1:
                self.lengthscale.copy_(neighbor_lengthscale(points, k, search=self.search))
            if ridge is None and len(points) > 1:
                neighbors = self.search(probes(points), points, k)
                residuals = _precise(self._residuals())
                self.ridge.copy_(leave_one_out_ridge(neighbors, points, residuals, self.kernel, self.lengthscale))

    def forward(self, queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries targets"]:
        """Mean prediction, [B, c]; see :meth:`predict`."""
        return self.predict(queries).mean

    def predict(self, queries: Float[Tensor, "queries dim"]) -> Prediction:
        """Mean [B, c] and variance [B].

        Args:
            queries: [B, d].

        Raises:
            ValueError: the width differs from the features', or a row is not finite. (On an accelerator looking at
                the rows would synchronise: there such a row answers with the prior.)
        """
        self._check_queries(queries)
        return sparse_kernel(
            queries,
            self.features,
            self.targets,
            kernel=self.kernel,
            lengthscale=self.lengthscale,
            ridge=self.ridge,
            k=self.k,
            prior_mean=self.prior_mean,
            search=self.search,
        )

    def leave_one_out(self, queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries k targets"]:
        """Closed-form leave-one-out errors of the neighbours of every query, [B, k, c]."""
        self._check_queries(queries)
        points, residuals = _precise(self.features), _precise(self._residuals())
        with torch.autocast(queries.device.type, enabled=False):
            neighbors = self.search(queries.to(points.dtype), points, self.k)
            system = factorise(neighbors, points, self.kernel, self.lengthscale, self.ridge)
            errors = system.leave_one_out(gather_points(residuals, neighbors.indices).to(points.dtype))
        return errors.to(queries.dtype)

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        points, dim = self.features.shape
        return (
            f"supports={points}, dim={dim}, kernel={self.kernel}, k={self.k}, "
            f"lengthscale={float(self.lengthscale):.4g}, ridge={float(self.ridge):.4g}"
        )

    def _fix_or_learn(self, name: str, value: Tensor) -> None:
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value.detach().clone())

    def _residuals(self) -> Tensor:
        return self.targets if self.prior_mean is None else self.targets - self.prior_mean(self.features)

    def _check_queries(self, queries: Tensor) -> None:
        width = self.features.shape[-1]
        if queries.dim() != 2 or queries.shape[-1] != width:
            raise ValueError(
                f"queries have shape {tuple(queries.shape)}, but must be [batch, {width}] like the features"
            )
        if queries.device.type == "cpu":
            bad = (~queries.isfinite().all(-1)).nonzero()
            if len(bad):
                row = int(bad[0])
                raise ValueError(f"query row {row} is not finite: {queries[row].tolist()}; drop it or repair it")


def _check_supports(features: Tensor, targets: Tensor) -> None:
    if features.dim() != 2 or targets.dim() != 2 or features.shape[0] != targets.shape[0]:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and targets {tuple(targets.shape)}, "
            "but must be [points, dim] and [points, targets] with equally many points"
        )
    if not features.is_floating_point():
        raise ValueError(f"features have dtype {features.dtype}, but must be floating point; call .float() first")
    for name, value in (("features", features), ("targets", targets)):
        bad = (~value.isfinite().all(-1)).nonzero()
        if len(bad):
            raise ValueError(f"{name} row {int(bad[0])} is not finite; drop it or repair it")

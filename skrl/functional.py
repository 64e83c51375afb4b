"""Sparse Kernel as a function: lazy, local, differentiable kernel ridge regression.

After J.-M. Mercier and G. Santin, *Differentiable Kernel Ridge Regression for Deep Learning Pipelines*, 2026,
arXiv 2605.02313.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from skrl.checks import (
    check_answer,
    check_lengthscale,
    check_neighbors,
    check_ridge,
    check_rows,
    check_sets,
    floating,
    looks_at,
)
from skrl.compiling import compiles
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import DIFFERENCES_DIM, centred_points, within_reach
from skrl.kernels.formulas import make_kernel
from skrl.modes import full_precision, precise, traced, transformed, wants_gradient
from skrl.search.exact import as_search
from skrl.search.neighbors import (
    Localisation,
    NeighborIndex,
    NeighborSearch,
    check_localisation,
    gather_points,
    measured,
    within_radius,
)
from skrl.shapes import Bool, Float, Int, Shaped, Tensor
from skrl.solve.differentiable import carries_gradients, differentiable_means, learns
from skrl.solve.fused import fuses
from skrl.solve.local_solve import LocalSystem, Prediction, factorise
from skrl.solve.local_weights import compiled_weights, fused_weights, weighted_means

MAX_GATHERED = 1 << 24
"""Entries of the Gram matrices and neighbours that one chunk of queries may hold (64 MiB in float32)."""

PriorMean = Callable[[Tensor], Tensor]
"""Any map from features [n, d] to targets [n, c]; a neural network, say."""


@dataclass(frozen=True)
class Support:
    """Support points made ready for queries: centred, in units of the lengthscale, indexed; no gradient is recorded.

    In these units distances are the kernel's argument r, whatever the scale of the data and however many lengthscales.

    Attributes:
        points: (x − centre) / ℓ, [M, d]; zero where a point is left out of the index.
        centre: a point amidst them, [d].
        kept: true where a point is in the index, [M].
        index: over the points.
    """

    points: Float[Tensor, "points dim"]
    centre: Float[Tensor, " dim"]
    kept: Bool[Tensor, " points"]
    index: NeighborIndex

    def scaled(self, values: Float[Tensor, "rows dim"], lengthscale: Tensor | float) -> Float[Tensor, "rows dim"]:
        """Points of the original space in these units, in the precision of the supports, [n, d]; carries gradients."""
        return ((values.to(self.points.dtype) - self.centre) / lengthscale).contiguous()


@torch.no_grad()
def make_support(
    features: Float[Tensor, "points dim"],
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float,
    search: NeighborSearch | None = None,
) -> Support:
    """Centre, scale and index support points.

    Args:
        features: X, [M, d]. A point that distances may overflow from, beyond 10¹⁹ lengthscales in float32, is left out
            of the index.
        lengthscale: ℓ, one or one per dimension.
        search: how neighbours are found; exact by default.

    Raises:
        ValueError: a point is not finite (an accelerator would have to wait for that look, so there it is left out), or
            the lengthscale is not positive.
    """
    features = precise(features.detach())
    lengthscale = lengthscale.detach() if isinstance(lengthscale, Tensor) else lengthscale
    check_rows("features", features)
    check_lengthscale(lengthscale, features.shape[1], features.dtype)
    points, centre, half_norms = centred_points(features, lengthscale)
    points = points.contiguous()
    index = as_search(search).index(points, half_norms)
    return Support(points, centre.squeeze(0), half_norms.isfinite(), index)


def sparse_kernel(
    queries: Shaped[Tensor, "queries dim"],
    features: Shaped[Tensor, "points dim"],
    targets: Shaped[Tensor, "points targets"],
    *,
    kernel: str | Kernel = "matern32",
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float = 1.0,
    ridge: Float[Tensor, ""] | float = 1e-2,
    k: int = 32,
    localisation: Localisation = "hard",
    prior_mean: PriorMean | None = None,
    search: NeighborSearch | None = None,
    support: Support | None = None,
) -> Prediction:
    """Predict by kernel ridge regression on the k nearest support points of every query.

    Gradients reach queries, features, targets, lengthscale, ridge and the prior mean; which points are neighbours is
    treated as constant. Neighbours are nearest in units of the lengthscale.

    Without jitter ‖w‖ ≤ √κ(z, z) / (2 √λ), so the correction of the prior mean is at most that often the norm of the
    neighbours' residuals, up to rounding.

    Args:
        queries: evaluation points z, [B, d].
        features: support points X, [M, d]; M may be smaller than k, or zero. Their precision, float32 at least, is that
            of the distances and solves.
        targets: values Y at the support points, [M, c].
        kernel: a kernel or its name.
        lengthscale: ℓ > 0, in the units of the features; one, or one per dimension, [d].
        ridge: λ ≥ 0.
        k: neighbours per query.
        localisation: "hard", or "continuous", whose prediction does not jump where the neighbours change.
        prior_mean: m; zero when left out. It is asked in the precision of the features: at the queries and at their
            neighbours, but at all features where these are few, on an accelerator and while the code is read.
        search: how neighbours are found; exact by default.
        support: the features made ready before, with the same lengthscale and search, to save that work.

    Returns:
        Mean [B, c] and variance [B], in the dtype of the queries. Integers and booleans, in any of the three sets,
        count as numbers of torch's default dtype. Without supports: the prior mean and variance κ(z, z).

    Raises:
        TypeError: a set is no tensor, or a setting neither a number nor a tensor.
        ValueError: shapes, dtypes or devices do not fit, a setting is out of range, or, on a CPU, a row of what was
            given or of the answer is not finite. (An accelerator would have to wait for that look. There a query that
            is not finite reads the prior, a support that is not finite is left out, and a target that is not finite
            makes the answers that read it so.)
    """
    queries, features, targets = floating(queries), floating(features), floating(targets)
    check_sets(queries, features, targets)
    k = check_neighbors(k, features.shape[0])
    check_rows("query", queries)
    check_ridge(ridge)
    check_localisation(localisation)
    kernel = make_kernel(kernel, max(1, features.shape[1]))
    with full_precision(queries.device.type):
        if support is None:
            support = make_support(features, lengthscale, search)
        elif support.points.shape != features.shape:
            raise ValueError(
                f"support was made of {tuple(support.points.shape)} features, but these are {tuple(features.shape)}; "
                "make it again with make_support"
            )
        found = find(queries, support, lengthscale, k, localisation)
    residuals = prior_residuals(features, targets, prior_mean, found.indices)
    with full_precision(queries.device.type):
        read = _read
        if wants_gradient(queries, features, residuals, lengthscale, ridge) or learns(kernel, support.points):
            if carries_gradients(kernel, support.points):
                read = _read_differentiably
        elif kernel.is_radial and compiles(support.points):
            read = _read_compiled
        elif fuses(kernel, k, support.points, ridge):
            read = _read_fused
        mean, variance = read(found, features, residuals, support, kernel, lengthscale, ridge, k, localisation)
    prior = None
    if prior_mean is not None:
        prior = _prior_values(prior_mean, queries.to(features.dtype), "queries", targets.shape[1])
    mean = (mean if prior is None else mean + prior).to(queries.dtype)
    check_answer(mean, prior, residuals, targets)
    return Prediction(mean, variance.to(queries.dtype))


def prior_residuals(
    features: Float[Tensor, "points dim"],
    targets: Float[Tensor, "points targets"],
    prior_mean: PriorMean | None,
    needed: Int[Tensor, "queries found"] | None = None,
) -> Float[Tensor, "points targets"]:
    """What is left for the kernel to explain: y − m(x), [M, c], in float32 at least.

    Args:
        features: X, [M, d].
        targets: Y, [M, c].
        prior_mean: m.
        needed: positions that will be read; all when left out. Where they are few the others are zero, and m is not
            asked there, but on an accelerator, which would have to wait for that look.

    Raises:
        ValueError: the prior mean has another shape than the targets, which subtraction might broadcast to [M, M].
    """
    if prior_mean is None:
        return precise(targets)
    if needed is None or not looks_at(needed) or 2 * needed.numel() > features.shape[0]:
        return precise(targets - _prior_values(prior_mean, features, "features", targets.shape[1]))
    rows: Tensor = torch.unique(needed)
    asked = _prior_values(prior_mean, features[rows], "features", targets.shape[1])
    residuals = precise(targets[rows] - asked)
    return residuals.new_zeros(targets.shape).index_copy(0, rows, residuals)


def _prior_values(prior_mean: PriorMean, inputs: Tensor, name: str, width: int) -> Tensor:
    values, shape = prior_mean(inputs), (inputs.shape[0], width)
    if values.shape != shape:
        raise ValueError(
            f"prior_mean returned shape {tuple(values.shape)} for {name} of shape {tuple(inputs.shape)}, but must "
            f"return {shape} like the targets"
        )
    return values


class Found(NamedTuple):
    """Queries and the min(k, M) neighbours that an index found for them, or one more for windows.

    Attributes:
        queries: [B, d]; carry gradients.
        scaled: the same in units of the lengthscale; do not.
        indices: positions in the support, [B, ·].
        present: where a neighbour exists, likewise.
    """

    queries: Float[Tensor, "queries dim"]
    scaled: Float[Tensor, "queries dim"]
    indices: Int[Tensor, "queries found"]
    present: Bool[Tensor, "queries found"]


@torch.no_grad()
def find(
    queries: Float[Tensor, "queries dim"],
    support: Support,
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float,
    k: int,
    localisation: Localisation,
) -> Found:
    """Neighbours of every query; arguments as in :func:`sparse_kernel`."""
    scaled = support.scaled(queries, lengthscale)
    return Found(queries, scaled, *support.index.nearest(scaled, k + (localisation == "continuous")))


def local_systems(
    found: Found,
    features: Float[Tensor, "points dim"],
    support: Support,
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    k: int,
    localisation: Localisation = "hard",
    width: int = 1,
) -> Iterator[tuple[Int[Tensor, "queries k"], LocalSystem]]:
    """Neighbours and factored systems, a chunk of queries at a time; arguments as in :func:`sparse_kernel`.

    Args:
        found: queries and their neighbours.
        width: entries that the caller gathers per neighbour; a chunk leaves room for them.
    """
    points = differentiable_points(features, support, lengthscale)
    k = min(k, features.shape[0])
    dim = features.shape[1]
    pairs = k * (dim if dim <= DIFFERENCES_DIM else 1)
    rows = MAX_GATHERED // max(1, k * max(pairs, width, dim))
    for chunk in _chunks(found, max(1, rows)):
        scaled, reach = _differentiable_queries(chunk, support, lengthscale)
        nearest = measured(scaled, points, chunk.indices, chunk.present & reach)
        neighbors, radius = within_radius(nearest, k, localisation)
        yield neighbors.indices, factorise(neighbors, points, kernel, 1.0, ridge, radius)


def _chunks(found: Found, rows: int) -> Iterable[Found]:
    """One chunk while the code is read, whose number of queries stays open."""
    if traced():
        return (found,)
    return map(Found, *(torch.split(values, rows) for values in found))


def differentiable_points(
    features: Float[Tensor, "points dim"],
    support: Support,
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float,
) -> Float[Tensor, "points dim"]:
    """The support's points, as functions of the features and the lengthscale where these want a gradient."""
    if not transformed() and not wants_gradient(features, lengthscale):
        return support.points
    # A point that is left out must not meet the gradient, where zero times infinity is no number.
    return support.scaled(torch.where(support.kept.unsqueeze(-1), features, support.centre), lengthscale)


def _differentiable_queries(found: Found, support: Support, lengthscale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Queries in units of the lengthscale, and which are within reach of the supports, [B, 1].

    The others, finite or not, must not meet the gradient either; they stand aside, and are to have no neighbours.
    """
    reach = within_reach(found.scaled).unsqueeze(-1)
    return support.scaled(torch.where(reach, found.queries, support.centre), lengthscale), reach


def _read(
    found: Found,
    features: Tensor,
    residuals: Tensor,
    support: Support,
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    k: int,
    localisation: Localisation,
) -> tuple[Tensor, Tensor]:
    means, variances = [], []
    systems = local_systems(found, features, support, kernel, lengthscale, ridge, k, localisation, residuals.shape[1])
    for indices, system in systems:
        weights = system.weights()
        means.append((weights.unsqueeze(-2) @ gather_points(residuals.to(weights.dtype), indices)).squeeze(-2))
        variances.append(system.variance(weights))
    return torch.cat(means), torch.cat(variances)


def _read_differentiably(
    found: Found,
    features: Tensor,
    residuals: Tensor,
    support: Support,
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    k: int,
    localisation: Localisation,
) -> tuple[Tensor, Tensor]:
    points = differentiable_points(features, support, lengthscale)
    scaled, reach = _differentiable_queries(found, support, lengthscale)
    residuals, present = residuals.to(scaled.dtype), found.present & reach
    return differentiable_means(scaled, points, residuals, ridge, found.indices, present, kernel, k, localisation)


@torch.no_grad()
def _read_compiled(
    found: Found,
    features: Tensor,
    residuals: Tensor,
    support: Support,
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    k: int,
    localisation: Localisation,
) -> tuple[Tensor, Tensor]:
    _, scaled, indices, present = found
    local = compiled_weights(
        scaled.unsqueeze(0), support.points.unsqueeze(0), indices, present, kernel, 1.0, float(ridge), k, localisation
    )
    return weighted_means(indices, local.weights[0], residuals.to(scaled.dtype)), local.variance[0]


@torch.no_grad()
def _read_fused(
    found: Found,
    features: Tensor,
    residuals: Tensor,
    support: Support,
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    k: int,
    localisation: Localisation,
) -> tuple[Tensor, Tensor]:
    _, scaled, indices, present = found
    local = fused_weights(
        scaled.unsqueeze(0), support.points.unsqueeze(0), indices, present, kernel, 1.0, ridge, k, localisation
    )
    targets = gather_points(residuals, local.indices[0]).to(scaled.dtype)
    return (local.weights[0].unsqueeze(-2) @ targets).squeeze(-2), local.variance[0]

"""Leave-one-out errors of the local predictor: what a support's nearest others say about it.

For a support x with residual r, and K, κ_x over its k nearest others,

    f₋(x) = κ_xᵀ (K + λI)⁻¹ r_N                 the prediction without x
    v₋(x) = κ(x, x) − κ_xᵀ (K + λI)⁻¹ κ_x + λ   its predictive variance, noise included

which is one Cholesky factor per support, and exactly what the predictor would answer had x not been there. In contrast
:meth:`skrl.solve.local_solve.LocalSystem.leave_one_out` predicts the neighbours of a query from each other.

Two objectives judge the errors e = r − f₋(x), smaller is better: "error", their mean square, and "likelihood", the mean
of −log N(r; f₋, a² v₋) after Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), equations
5.10–5.12. Its amplitude a² = mean e²/v₋ is the most likely one, so that any two λ can be compared. Columns are measured
in their standard deviation, so that none dominates.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from skrl.checks import check_neighbors, check_ridge, check_rows, check_sets, looks_at
from skrl.functional import differentiable_points, make_support
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import cross_distances
from skrl.kernels.formulas import make_kernel
from skrl.modes import full_precision, precise
from skrl.search.neighbors import (
    Localisation,
    NeighborIndex,
    Neighbors,
    NeighborSearch,
    gather_points,
    within_radius,
)
from skrl.shapes import Float, Int, Tensor
from skrl.solve.local_solve import Prediction, factorise

MAX_PROBES = 512
"""Support points whose errors are looked at; more would cost time and memory, not change the answer."""

COARSE_PROBES = 128
"""Probes that choose the region of settings in which all of them refine; half of them are always looked at."""

MOST_DISTANCES = 1 << 28
"""Distances among the neighbours of all probes; of single precision they take one GiB."""

FLAT = 1e-3
"""A column whose standard deviation is below this share of its root mean square counts as constant."""

Objective = Literal["error", "likelihood"]
"""What good settings do: err little, or give the supports a high density."""


def probe_rows(count: int, most: int = MAX_PROBES, device: torch.device | None = None) -> Int[Tensor, " probes"]:
    """Positions of at most ``most`` of ``count`` points, evenly spaced: deterministic, and no pairs of all points."""
    if count <= most:
        return torch.arange(count, device=device)
    return torch.arange(most, device=device) * (count - 1) // max(1, most - 1)


def affordable_probes(probes: int, k: int) -> int:
    """Probes whose distances take no more memory than those of 64 neighbours, but enough to tell settings apart.

    Where even 64 probes would hold more than ``MOST_DISTANCES``, as many as do not.
    """
    width = max(64, k)
    fewest = max(1, min(COARSE_PROBES // 2, MOST_DISTANCES // width**2))
    return min(probes, max(fewest, probes * 64**2 // width**2))


def nearest_others(
    index: NeighborIndex, points: Float[Tensor, "points dim"], rows: Int[Tensor, " probes"], k: int
) -> Neighbors:
    """The min(k, M − 1) nearest other points of some points.

    Args:
        index: over the points.
        points: [M, d].
        rows: positions of P points.
        k: neighbours per point.

    Returns:
        Neighbours, [P, min(k, M − 1)]. A point that its own search does not return, since more than k others lie on it,
        drops one of them.
    """
    queries = points[rows]
    with torch.no_grad():
        found, present = index.nearest(queries, k + 1)
        last = max(0, found.shape[1] - 1)
        itself = (found == rows.unsqueeze(1)) & present
        own = (~itself).long().cumprod(1).sum(1, keepdim=True).clamp(max=last)
        columns = torch.arange(last, device=rows.device)
        columns = columns + (columns >= own)
        indices, mask = found.gather(1, columns), present.gather(1, columns)
    distances = cross_distances(queries, gather_points(points, indices))
    return Neighbors(indices, torch.where(mask, distances, 0.0), mask)


def predict_probes(
    neighbors: Neighbors,
    points: Float[Tensor, "points dim"],
    residuals: Float[Tensor, "points targets"],
    kernel: Kernel,
    lengthscale: Tensor | float,
    ridge: Tensor | float,
    radius: Float[Tensor, " probes"] | None,
) -> Prediction:
    """Mean [P, c] and variance [P] of probes from their nearest others, differentiable."""
    system = factorise(neighbors, points, kernel, lengthscale, ridge, radius)
    weights = system.weights()
    means = (weights.unsqueeze(-2) @ gather_points(residuals, neighbors.indices)).squeeze(-2)
    return Prediction(means, system.variance(weights))


def column_scales(residuals: Float[Tensor, "points targets"]) -> Float[Tensor, " targets"]:
    """Standard deviation of every column, [c]: the error of always answering its mean; detached.

    A constant column has its root mean square instead, the error of always answering zero, and one when it is zero.
    """
    values = residuals.detach()
    if not len(values):
        return values.new_ones(values.shape[1])
    # In units of the largest value, whose square may overflow.
    largest = values.abs().amax(0).clamp(min=torch.finfo(values.dtype).tiny)
    magnitude = (values / largest).square().mean(0).sqrt()
    deviation = (values / largest).var(0, correction=0).sqrt()
    scales = largest * torch.where(deviation > FLAT * magnitude, deviation, magnitude)
    return torch.where(scales > 0, scales, 1.0)


def probe_losses(
    prediction: Prediction,
    targets: Float[Tensor, "probes targets"],
    ridge: Tensor | float,
    prior_variance: float,
    objective: Objective,
) -> Float[Tensor, " probes"]:
    """What every probe contributes to the mean that an objective minimises, [P].

    Args:
        prediction: of the probes without themselves.
        targets: standardised residuals of the probes, [P, c].
        ridge: λ.
        prior_variance: κ(z, z).
        objective: "error" or "likelihood".

    Raises:
        ValueError: the objective is unknown.
    """
    if objective not in get_args(Objective):
        raise ValueError(f"objective is '{objective}', but must be one of {', '.join(get_args(Objective))}")
    squares = (targets - prediction.mean).square()
    if objective == "error":
        return squares.mean(-1)
    eps = torch.finfo(squares.dtype).eps
    variance = (prediction.variance + ridge).clamp(min=eps * prior_variance).unsqueeze(-1)
    # A perfect fit would have infinite density: errors below rounding say nothing.
    amplitude = (squares / variance).mean(0).clamp(min=eps**2)
    densities = (2.0 * math.pi * amplitude * variance).log() + squares / (amplitude * variance)
    return 0.5 * densities.mean(-1)


def leave_one_out_loss(
    features: Float[Tensor, "points dim"],
    residuals: Float[Tensor, "points targets"],
    kernel: str | Kernel,
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float,
    ridge: Float[Tensor, ""] | float,
    k: int,
    *,
    objective: Objective = "error",
    probes: int = MAX_PROBES,
    search: NeighborSearch | None = None,
    localisation: Localisation = "hard",
) -> Float[Tensor, ""]:
    """Leave-one-out loss of the local predictor, differentiable in everything but the choice of neighbours.

    Minimise it to learn a kernel. One lengthscale per dimension (automatic relevance determination) grows where a
    dimension does not matter. The loss is the score of :func:`skrl.tuning.tune` at the same settings.

    Args:
        features: X, [M, d]. A point that :func:`skrl.functional.make_support` leaves out does not count; on an
            accelerator, which would have to wait for that look, it reads the prior.
        residuals: y − m of the supports, [M, c].
        kernel: a kernel or its name.
        lengthscale: ℓ, one or one per dimension, in the units of the features.
        ridge: λ.
        k: neighbours per prediction.
        objective: "error", the mean square error in units of the columns' variance, which is 1 − R²; or "likelihood",
            the negative log density per support.
        probes: supports whose errors are looked at, evenly spaced; fewer than asked for where k exceeds 64.
        search: how neighbours are found; exact by default.
        localisation: hard or continuous.

    Returns:
        A scalar; zero without supports.

    Raises:
        ValueError: shapes do not match, k, lengthscale, ridge or probes is out of range, or, on a CPU, a row is not
            finite.
    """
    check_sets(None, features, residuals)
    k = check_neighbors(k, len(features))
    check_ridge(ridge)
    if probes < 1:
        raise ValueError(f"probes is {probes}, but must be at least 1: a loss is a mean over the probes")
    kernel = make_kernel(kernel, max(1, features.shape[1]))
    features, residuals = precise(features), precise(residuals)
    check_rows("targets without prior_mean", residuals)
    with full_precision(features.device.type):
        support = make_support(features, lengthscale, search)
        kept = support.kept
        if looks_at(kept) and not kept.all():
            return leave_one_out_loss(
                features[kept], residuals[kept], kernel, lengthscale, ridge, k,
                objective=objective, probes=probes, search=search, localisation=localisation,
            )  # fmt: skip
        most = affordable_probes(probes, min(k, len(features) - 1))
        rows = probe_rows(len(features), most, features.device)
        points = differentiable_points(features, support, lengthscale)
        others = nearest_others(support.index, points, rows, k + (localisation == "continuous"))
        others = others._replace(mask=others.mask & kept[rows].unsqueeze(1))
        neighbors, radius = within_radius(others, k, localisation)
        standardised = (residuals / column_scales(residuals)).to(points.dtype)
        prediction = predict_probes(neighbors, points, standardised, kernel, 1.0, ridge, radius)
        losses = probe_losses(prediction, standardised[rows], ridge, kernel.prior_variance, objective)
        return losses.sum() / max(1, len(rows))

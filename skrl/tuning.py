"""Lengthscale and ridge from the data."""

from __future__ import annotations

import torch

from skrl.kernels import Kernel
from skrl.local_solve import factorise
from skrl.neighbors import ExactSearch, Neighbors, NeighborSearch, gather_points
from skrl.shapes import Float, Tensor

DEFAULT_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)

MAX_PROBES = 512
"""Support points on which a tuning rule looks; more would cost time and memory, not change the answer."""


def probes(features: Float[Tensor, "*batch points dim"]) -> Float[Tensor, "*batch probes dim"]:
    """At most ``MAX_PROBES`` support points, evenly spaced over the set: deterministic, and no pairs of all points."""
    count = features.shape[-2]
    if count <= MAX_PROBES:
        return features
    positions = torch.linspace(0, count - 1, MAX_PROBES, device=features.device).round().long()
    return features.index_select(-2, positions)


def median_neighbor_distance(neighbors: Neighbors) -> Float[Tensor, ""]:
    """Median distance to the farthest of the k neighbours, over all queries that have one; 1 when there is none.

    The usual scale of local kernels: it follows the density of the supports and never needs all pairs. Distances of
    zero (duplicates) do not count, so constant features give 1.

    Args:
        neighbors: k neighbours of each of B queries, [*batch, B, k].

    Returns:
        A positive scalar in the units of the features.
    """
    if neighbors.mask.shape[-1] == 0:
        return neighbors.distances.new_ones(())
    farthest = torch.where(neighbors.mask, neighbors.distances, 0.0).amax(-1).flatten()
    positive = farthest > 0
    # nanmedian ignores the rows without a neighbour and stays on the device.
    median = torch.where(positive, farthest, torch.nan).nanmedian()
    return torch.where(median.isnan(), torch.ones_like(median), median)


def neighbor_lengthscale(
    features: Float[Tensor, "*batch points dim"],
    k: int,
    factor: float = 2.0,
    search: NeighborSearch | None = None,
) -> Float[Tensor, ""]:
    """Lengthscale as a multiple of the median distance to the k-th neighbour within a support set.

    Args:
        features: [*batch, M, d].
        k: neighbours of a query.
        factor: multiple of the median distance.
        search: how neighbours are found; exact by default.

    Returns:
        A positive scalar, detached.
    """
    search = search or ExactSearch()
    with torch.no_grad():
        return factor * median_neighbor_distance(search(probes(features), features, k + 1))


def leave_one_out_rmse(
    neighbors: Neighbors,
    features: Float[Tensor, "*support dim"],
    residuals: Float[Tensor, "*support targets"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """Root mean square of the closed-form leave-one-out errors over a batch of local systems.

    Args:
        neighbors: k neighbours of each of B queries, [*batch, B, k].
        features: [*batch, M, d].
        residuals: y − m of the support set, [*batch, M, c].
        kernel: a radial kernel.
        lengthscale: ℓ.
        ridge: λ.

    Returns:
        A scalar in the units of the targets, differentiable in ℓ and λ.
    """
    system = factorise(neighbors, features, kernel, lengthscale, ridge)
    errors = system.leave_one_out(gather_points(residuals, neighbors.indices).to(system.factor.dtype))
    count = system.mask.sum().clamp(min=1) * errors.shape[-1]
    return (errors.square().sum() / count).sqrt()


def leave_one_out_ridge(
    neighbors: Neighbors,
    features: Float[Tensor, "*support dim"],
    residuals: Float[Tensor, "*support targets"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    candidates: tuple[float, ...] = DEFAULT_RIDGES,
) -> Float[Tensor, ""]:
    """The candidate ridge with the smallest leave-one-out error; arguments as in :func:`leave_one_out_rmse`."""
    with torch.no_grad():
        errors = torch.stack(
            [leave_one_out_rmse(neighbors, features, residuals, kernel, lengthscale, ridge) for ridge in candidates]
        )
        return torch.tensor(candidates, dtype=errors.dtype, device=errors.device)[errors.argmin()]

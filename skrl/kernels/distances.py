"""Euclidean distances with exact zeros and finite gradients."""

from __future__ import annotations

import torch

from skrl.modes import precise
from skrl.shapes import Bool, Float, Tensor

DIFFERENCES_DIM = 8
"""Dimensions up to which points of a block are subtracted from each other instead of multiplied."""

BLOCK_SAMPLE = 4
"""Points of a block whose median is taken: enough that none of them alone decides."""

SAMPLE = 64
"""Points whose median is taken, up to twice as many; more would cost time, and change the centre by little."""


def safe_sqrt(squared: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Square root whose gradient at zero is zero instead of infinite.

    Every radial kernel is either smooth at zero, where zero is the exact gradient of the distance's contribution, or
    has a kink there, where zero is the subgradient of least norm. A query that coincides with a support point
    therefore trains like any other.

    Args:
        squared: non-negative values, any shape.

    Returns:
        Square roots, same shape.
    """
    zero = squared == 0
    root = torch.where(zero, 1.0, squared).sqrt()
    return torch.where(zero, 0.0, root)


def within_reach(points: Float[Tensor, "*batch dim"]) -> Bool[Tensor, "*batch"]:
    """Whether a point is so near to the origin that its distance to any other such point has a square.

    In float32 those are points up to some 10¹⁹. Of one beyond, gradients are no numbers, even where they count nothing.
    """
    return (2.0 * precise(points.detach())).square().sum(-1).isfinite()


def cross_distances(
    queries: Float[Tensor, "*batch dim"], points: Float[Tensor, "*batch neighbors dim"]
) -> Float[Tensor, "*batch neighbors"]:
    """Distance of every query to its own block of points, by differences: exact at any offset.

    Args:
        queries: one query per block, [*batch, d].
        points: its k points, [*batch, k, d].

    Returns:
        Distances, [*batch, k].
    """
    return safe_sqrt((points - queries.unsqueeze(-2)).square().sum(-1))


def block_distances(points: Float[Tensor, "*batch neighbors dim"]) -> Float[Tensor, "*batch neighbors neighbors"]:
    """Distances within every block of points: by differences in few dimensions, else through one centred product.

    The product needs no [*batch, k, k, d] array, and is taken in float64: in float32 its cancellation would cost points
    that lie close together and far from the others, as in a block across clumps, all their digits. It is centred on the
    median of a few of the block's points: so the error that is left, some 1e-16 of the squared distances of two points
    from there, does not depend on their offset, and a single neighbour far from the others, be it the nearest or the
    last, which would carry a mean away, costs the others no digit. Squares below that error are set to exactly zero, so
    that duplicates are at distance zero and not at the square root of a rounding error.

    Args:
        points: blocks of k points, [*batch, k, d].

    Returns:
        Symmetric distances with a zero diagonal, [*batch, k, k].
    """
    if points.shape[-1] <= DIFFERENCES_DIM:
        return safe_sqrt((points.unsqueeze(-2) - points.unsqueeze(-3)).square().sum(-1))
    # Apple's accelerators have no float64.
    wide = points if points.device.type == "mps" else points.double()
    # Distances do not depend on the centre, so that no gradient has to pass through it.
    centred = wide - median_point(wide[..., :: max(1, points.shape[-2] // BLOCK_SAMPLE), :]).detach()
    products = centred @ centred.mT
    norms = products.diagonal(dim1=-2, dim2=-1)
    sums = norms.unsqueeze(-1) + norms.unsqueeze(-2)
    squared = sums - 2.0 * products
    noise = (4.0 * torch.finfo(wide.dtype).eps) * sums.detach()
    return safe_sqrt(torch.where(squared <= noise, 0.0, squared).to(points.dtype))


def median_point(points: Float[Tensor, "*batch points dim"]) -> Float[Tensor, "*batch one dim"]:
    """Median of every coordinate over evenly spaced points.

    A mean would follow a single point that is far away, and the digits of all others would be lost.

    Args:
        points: [*batch, M, d].

    Returns:
        [*batch, 1, d]; zero where there is none, or where it is not finite.
    """
    sample = points[..., :: max(1, points.shape[-2] // SAMPLE), :]
    if sample.shape[-2] == 0:
        return points.new_zeros(*points.shape[:-2], 1, points.shape[-1])
    # Sorted, since the median of an accelerator is not deterministic.
    middle = (sample.shape[-2] - 1) // 2
    return sample.sort(-2).values[..., middle : middle + 1, :].nan_to_num(0.0, 0.0, 0.0)


def centred_points(
    features: Float[Tensor, "*batch points dim"], unit: Float[Tensor, ""] | Float[Tensor, " dim"] | float = 1.0
) -> tuple[Float[Tensor, "*batch points dim"], Float[Tensor, "*batch one dim"], Float[Tensor, "*batch points"]]:
    """Points around a centre, in the given unit; empty slots for those that are not within reach of all others.

    Args:
        features: [*batch, M, d].
        unit: one, or one per dimension.

    Returns:
        Points, [*batch, M, d], zero in an empty slot; their centre, [*batch, 1, d]; ½‖x‖² of the points, +∞ for an
        empty slot, [*batch, M].
    """
    centre = median_point(features)
    points = (features - centre) / unit
    half_norms = 0.5 * points.square().sum(-1)
    filled = (8.0 * half_norms).isfinite()  # within reach, by what is known already
    return torch.where(filled.unsqueeze(-1), points, 0.0), centre, torch.where(filled, half_norms, torch.inf)


def ranking_scores(
    queries: Float[Tensor, "*batch queries dim"],
    features: Float[Tensor, "*batch points dim"],
    half_norms: Float[Tensor, "*batch points"],
) -> Float[Tensor, "*batch queries points"]:
    """Ranking scores: ½‖x‖² − z·x, which order the points as ½‖z − x‖² does, in one matrix product.

    Args:
        queries: [*batch, B, d].
        features: [*batch, M, d]; centre them (and the queries alike) when they lie far from the origin.
        half_norms: ½‖x‖² per point, [*batch, M]; +∞ excludes a point.

    Returns:
        Scores, smaller is nearer, [*batch, B, M].
    """
    if queries.dim() == 3:
        return torch.baddbmm(half_norms.unsqueeze(-2), queries, features.mT, alpha=-1.0)
    if queries.is_cuda and queries.dim() == 2:
        # In one pass over the scores, which on a GPU are what the search waits for.
        return torch.addmm(half_norms, queries, features.mT, alpha=-1.0)
    return half_norms.unsqueeze(-2) - queries @ features.mT

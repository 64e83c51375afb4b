"""Which rows of a batch become supports: functions from candidates to positions."""

from __future__ import annotations

import torch

from skrl.checks import check_one_lengthscale, check_ridge, floating
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import cross_distances
from skrl.kernels.formulas import make_kernel
from skrl.modes import full_precision, precise
from skrl.shapes import Float, Int, Shaped, Tensor


def newest_and_uniform(
    candidates: Int[Tensor, " candidates"], capacity: int, newest_fraction: float, generator: torch.Generator
) -> Int[Tensor, " chosen"]:
    """Choose support points: the newest ones, and a uniform draw without replacement from the older ones.

    Args:
        candidates: positions ordered from oldest to newest, [n], on the generator's device.
        capacity: points to choose at most.
        newest_fraction: share of the capacity that goes to the newest, 0 to 1.
        generator: source of the draw.

    Returns:
        Distinct candidates, oldest first, [min(n, capacity)].

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0.0 <= newest_fraction <= 1.0:
        raise ValueError(f"newest_fraction is {newest_fraction}, but must lie between 0 and 1")
    count = candidates.shape[0]
    if count <= capacity:
        return candidates
    newest = round(capacity * newest_fraction)
    older = count - newest
    drawn = torch.randperm(older, generator=generator, device=candidates.device)[: capacity - newest]
    return torch.cat([candidates[drawn.sort().values], candidates[older:]])


def newest_of_each(
    candidates: Int[Tensor, " candidates"], labels: Shaped[Tensor, " candidates"], capacity: int, most: int
) -> Int[Tensor, " chosen"]:
    """Choose support points so that every label keeps its newest one before any keeps a second, and so on.

    Args:
        candidates: positions ordered from oldest to newest, [n].
        labels: what each of them is one of, [n].
        capacity: points to choose at most.
        most: points of one label to choose at most.

    Returns:
        Distinct candidates, oldest first, no more than n and the capacity.
    """
    if len(candidates) == 0:
        return candidates
    backwards = labels.flip(0)
    grouped = backwards.argsort(stable=True)
    _, sizes = torch.unique_consecutive(backwards[grouped], return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(grouped), device=grouped.device) - starts
    kept = rank.argsort(stable=True)[: min(capacity, int((rank < most).sum()))]
    return candidates[(len(candidates) - 1 - kept).sort().values]


@torch.no_grad()
def p_greedy(
    features: Float[Tensor, "points dim"],
    capacity: int,
    kernel: str | Kernel = "matern32",
    lengthscale: float | Float[Tensor, ""] = 1.0,
    ridge: float = 0.0,
) -> Int[Tensor, " chosen"]:
    """Choose support points one by one, each where the posterior variance given those before it is largest.

    The square root of that variance is the power function, hence the name. A pivoted Cholesky factor keeps it at every
    point, in O(n m (m + d)) time and O(n m) memory. The choice needs no targets and spreads over the points: for
    Sobolev kernels asymptotically uniformly.

    S. De Marchi, R. Schaback and H. Wendland, *Near-optimal data-independent point locations for radial basis function
    interpolation*, 2005; G. Santin and B. Haasdonk, *Convergence rate of the data-independent P-greedy algorithm in
    kernel-based approximation*, 2017.

    Args:
        features: candidates, [n, d].
        capacity: points to choose at most.
        kernel: a radial kernel or its name.
        lengthscale: ℓ > 0, in the units of the features.
        ridge: λ ≥ 0, the noise with which a chosen point is observed; 0 is interpolation.

    Returns:
        Distinct positions in the order of choice, the first row first, [m]. m is smaller than the capacity when the
        variance of all the rest is lost in rounding, as it is for duplicates; float64 features go further.

    Raises:
        ValueError: a row is not finite, the kernel is not radial, or a setting is out of its range.
    """
    points = precise(floating(features))
    kernel = make_kernel(kernel, features.shape[-1])
    _check_settings(points, capacity, kernel, lengthscale, ridge)
    with full_precision(points.device.type):
        chosen = _pivots(points, min(capacity, len(points)), kernel, lengthscale, ridge)
    return torch.tensor(chosen, dtype=torch.long, device=features.device)


def _pivots(points: Tensor, limit: int, kernel: Kernel, lengthscale: float | Tensor, ridge: float) -> list[int]:
    """Pivots of a Cholesky factorisation of κ(x_i, x_j) + λ δ_ij by the largest posterior variance."""
    noise = limit * torch.finfo(points.dtype).eps * kernel.prior_variance
    variance = points.new_full((len(points),), kernel.prior_variance)
    columns = points.new_empty(limit, len(points))
    chosen: list[int] = []
    while len(chosen) < limit:
        pivot = int(variance.argmax())
        if float(variance[pivot]) <= noise:
            break
        before = columns[: len(chosen)]
        covariance = kernel(cross_distances(points[pivot], points) / lengthscale) - before[:, pivot] @ before
        column = covariance / (variance[pivot] + ridge).sqrt()
        columns[len(chosen)] = column
        variance -= column.square()
        variance[pivot] = -torch.inf
        chosen.append(pivot)
    return chosen


def _check_settings(points: Tensor, capacity: int, kernel: Kernel, lengthscale: float | Tensor, ridge: float) -> None:
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}, but at least 1 point must be allowed")
    check_one_lengthscale(lengthscale, points.dtype)
    check_ridge(ridge)
    if not kernel.is_radial:
        raise ValueError(f"kernel is {kernel}, but a power function over all points needs a radial kernel")
    bad = (~points.isfinite().all(-1)).nonzero()
    if len(bad):
        raise ValueError(f"features row {int(bad[0])} is not finite; drop it or repair it")

"""How queries read their support sets: neighbours, ridge weights and variance.

The weights depend on positions alone, not on targets, so agents compute them once and reuse them while targets change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from skrl.compiling import Array, compiles, over_rows
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import within_reach
from skrl.modes import wants_gradient
from skrl.search.exact import ExactIndex, inner_products
from skrl.search.neighbors import Localisation, NeighborIndex, check_localisation, local_neighbors
from skrl.shapes import Bool, Float, Int, Tensor
from skrl.solve import compiled_solve, fused
from skrl.solve.cholesky import JITTERS
from skrl.solve.compiled_kernels import CODES, MAX_DISTANCES, localise_one, solve_few
from skrl.solve.local_solve import factorise

MAX_GRAM = 1 << 17
"""Distances of one chunk of compiled systems: they stay in a cache between measuring and solving."""


class LocalWeights(NamedTuple):
    """How a batch of queries reads S support sets.

    Attributes:
        indices: support slots, [S, B, k].
        weights: their weights, zero where a neighbour is missing, [S, B, k].
        variance: posterior variance, κ(z, z) where nothing is known, [S, B].
        jittered: queries whose system needed jitter, [S, B].
        failed: queries that fell back to the prior, [S, B].
    """

    indices: Int[Tensor, "sets queries neighbors"]
    weights: Float[Tensor, "sets queries neighbors"]
    variance: Float[Tensor, "sets queries"]
    jittered: Bool[Tensor, "sets queries"]
    failed: Bool[Tensor, "sets queries"]


def ridge_weights(
    queries: Float[Tensor, "sets queries dim"],
    features: Float[Tensor, "sets points dim"],
    index: NeighborIndex,
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
    k: int,
    localisation: Localisation = "hard",
) -> LocalWeights:
    """Neighbours, weights and variance of every query in every set.

    Where no gradient is asked for, compiled loops do the work on a CPU and a fused kernel on a GPU; elsewhere plain
    torch does, to the same numbers.

    Args:
        queries: [S, B, d].
        features: [S, M, d].
        index: over the features.
        kernel: a kernel.
        lengthscale: ℓ.
        ridge: λ.
        k: neighbours per query.
        localisation: hard or continuous.
    """
    check_localisation(localisation)
    if kernel.is_radial and compiles(queries, features, *_tensors(lengthscale, ridge)):
        if queries.shape[1] == 1 and type(kernel) in CODES and type(index) is ExactIndex and index.centre is None:
            return _one_query(
                queries, features, index.half_norms, kernel, float(lengthscale), float(ridge), k, localisation
            )
        found, present = index.nearest(queries, k + (localisation == "continuous"))
        return compiled_weights(
            queries, features, found, present, kernel, float(lengthscale), float(ridge), k, localisation
        )
    if not wants_gradient(queries) and fused.fuses(kernel, k, features, lengthscale, ridge):
        found, present = index.nearest(queries, k + (localisation == "continuous"))
        return fused_weights(queries, features, found, present, kernel, lengthscale, ridge, k, localisation)
    neighbors, radius = local_neighbors(index, queries, features, k, localisation)
    system = factorise(neighbors, features, kernel, lengthscale, ridge, radius)
    weights = system.weights()
    failed = system.failed | ~within_reach(queries)
    return LocalWeights(neighbors.indices, weights, system.variance(weights), system.jittered, failed)


def bounded_correction(
    indices: Int[Tensor, "sets queries neighbors"],
    weights: Float[Tensor, "sets queries neighbors"],
    residuals: Float[Tensor, "sets points"],
) -> Float[Tensor, "sets queries"]:
    """Weighted residuals, kept between the smallest and the largest of the neighbours' residuals and zero.

    Ridge weights may be negative or sum to more than one; the bound makes a repeated backup through them unable to
    diverge.

    Args:
        indices: neighbours as positions in their set, [S, B, k].
        weights: of the same neighbours, [S, B, k].
        residuals: of every support, [S, M].

    Returns:
        Corrections, [S, B].
    """
    if compiles(weights, residuals):
        corrections = weights.new_empty(weights.shape[:2])
        compiled_solve.read_blocks(indices.numpy(), weights.numpy(), residuals.numpy(), corrections.numpy())
        return corrections
    local = residuals.gather(1, indices.flatten(1).long()).view_as(weights)
    low, high = torch.aminmax(local, dim=-1)
    total = (weights * local).sum(-1)
    return torch.minimum(torch.maximum(total, low.clamp(max=0.0)), high.clamp(min=0.0))


def _tensors(*values: Tensor | float) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def weighted_means(
    indices: Int[Tensor, "queries found"],
    weights: Float[Tensor, "queries neighbors"],
    targets: Float[Tensor, "points targets"],
) -> Float[Tensor, "queries targets"]:
    """Weighted sums of the neighbours' targets by the compiled loops, [B, c].

    Args:
        indices: neighbours, at least as many as there are weights, [B, ·].
        weights: of the first k of them, on a CPU, [B, k].
        targets: of every support, in the precision of the weights, [M, c].
    """
    means = weights.new_empty(weights.shape[0], targets.shape[1])
    slots, shares, values = (tensor.detach().contiguous().numpy() for tensor in (indices, weights, targets))
    over_rows(
        lambda start, stop: compiled_solve.mean_rows(slots, shares, values, start, stop, means.numpy()),
        weights.shape[0],
        2e-9 * weights.shape[1] * targets.shape[1],
    )
    return means


def fused_weights(
    queries: Float[Tensor, "sets queries dim"],
    features: Float[Tensor, "sets points dim"],
    found: Int[Tensor, "*sets queries found"],
    present: Bool[Tensor, "*sets queries found"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
    k: int,
    localisation: Localisation,
) -> LocalWeights:
    """Weights of known neighbours by the fused kernel; arguments as in :func:`compiled_weights`."""
    windowed = localisation == "continuous"
    solution = fused.solve(queries, features, found, present, kernel, lengthscale, ridge, k, windowed)
    return LocalWeights(found[..., :k].reshape(solution.weights.shape), *solution)


def compiled_weights(
    queries: Float[Tensor, "sets queries dim"],
    features: Float[Tensor, "sets points dim"],
    found: Int[Tensor, "*sets queries found"],
    present: Bool[Tensor, "*sets queries found"],
    kernel: Kernel,
    lengthscale: float,
    ridge: float,
    k: int,
    localisation: Localisation,
) -> LocalWeights:
    """Weights of known neighbours by the compiled loops; arguments as in :func:`ridge_weights`.

    Args:
        queries: [S, B, d].
        features: [S, M, d].
        found: the min(k, M) neighbours, or one more for windows, [S, B, ·] or, of one set, [B, ·].
        present: where a neighbour exists, likewise.
        kernel: a radial kernel.
        lengthscale: ℓ.
        ridge: λ.
        k: neighbours per query.
        localisation: hard or continuous.
    """
    continuous = localisation == "continuous"
    sets, rows = queries.shape[:2]
    k, flat = min(k, features.shape[1]), sets * rows
    indices, mask = (values.reshape(flat, values.shape[-1]).contiguous().numpy() for values in (found, present))
    flattened = queries.reshape(flat, queries.shape[-1])
    points, centres = (values.detach().contiguous().numpy() for values in (features, flattened))
    weights, variance = np.empty((flat, k), points.dtype), np.empty(flat, points.dtype)
    jittered, failed = np.empty((2, flat), np.bool_)
    answers = weights, variance, jittered, failed
    jitters, columns = np.array(JITTERS, points.dtype), k + k * (k - 1) // 2
    code = CODES.get(type(kernel))
    if code is not None and flat * columns <= MAX_DISTANCES:
        few = centres, points, rows, indices, mask, jitters, continuous
        solve_few(code, lengthscale, ridge, *few, *answers)
        return _assembled(found, answers, centres, (sets, rows), k)

    def solve(start: int, stop: int) -> None:
        chunk_rows = max(1, MAX_GRAM // max(1, columns))
        for first in range(start, stop, chunk_rows):
            chunk = slice(first, min(first + chunk_rows, stop))
            count = chunk.stop - first
            distances = np.empty((count, columns), points.dtype)
            windows = np.empty((count, k if continuous else 0), points.dtype)
            compiled_solve.measure_rows(centres, points, rows, first, indices, mask, distances, windows)
            # The kernel keeps its one formula; torch evaluates it for all systems at once.
            values = kernel(torch.from_numpy(distances).div_(lengthscale)).detach().numpy()
            part = (answer[chunk] for answer in answers)
            compiled_solve.solve_rows(values, windows, mask[chunk], kernel.prior_variance, ridge, jitters, *part)

    over_rows(solve, flat, k * k * (5e-9 + 3e-11 * (points.shape[-1] + k)))
    return _assembled(found, answers, centres, (sets, rows), k)


def _one_query(
    queries: Tensor,
    features: Tensor,
    half_norms: Tensor,
    kernel: Kernel,
    lengthscale: float,
    ridge: float,
    k: int,
    localisation: Localisation,
) -> LocalWeights:
    """One query in every set, as when an agent acts, with as few calls as possible."""
    points, query, continuous = features.detach().numpy(), queries.detach().numpy()[:, 0], localisation == "continuous"
    sets, count, dim = points.shape
    if queries.stride(0) == 0 or sets == 1:
        products = inner_products(points.reshape(-1, dim), query[:1]).reshape(sets, count)
    else:
        products = np.concatenate([inner_products(points[s], query[s : s + 1]) for s in range(sets)])
    k, wanted = min(k, count), min(k + continuous, count)
    indices, mask = np.empty((sets, wanted), np.int64), np.empty((sets, wanted), np.bool_)
    weights, variance = np.empty((sets, k), points.dtype), np.empty(sets, points.dtype)
    jittered, failed = np.empty((2, sets), np.bool_)
    jitters: Array = np.array(JITTERS, points.dtype)
    answers = weights, variance, jittered, failed
    localise_one(
        CODES[type(kernel)], lengthscale, ridge, query, products, half_norms.numpy(), points, jitters, continuous,
        indices, mask, *answers,
    )  # fmt: skip
    return _assembled(torch.from_numpy(indices), answers, query, (sets, 1), k)


def _assembled(
    found: Tensor, answers: tuple[Array, Array, Array, Array], queries: Array, shape: tuple[int, int], k: int
) -> LocalWeights:
    weights, variance, jittered, failed = answers
    # Such a query has no neighbours, or scores that no solve survives.
    failed |= ~np.isfinite(queries).all(-1)
    return LocalWeights(
        (found if found.shape[-1] == k else found[..., :k]).reshape(*shape, k),
        torch.from_numpy(weights).view(*shape, k),
        torch.from_numpy(variance).view(shape),
        torch.from_numpy(jittered).view(shape),
        torch.from_numpy(failed).view(shape),
    )

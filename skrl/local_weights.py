"""How queries read their support sets: neighbours, ridge weights and variance.

The weights depend on positions alone, not on targets, so agents compute them once and reuse them while targets change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from skrl import compiled
from skrl.distances import ranking_scores
from skrl.kernels import Kernel
from skrl.local_solve import JITTERS, factorise
from skrl.neighbors import ExactSearch, NeighborSearch
from skrl.shapes import Bool, Float, Int, Tensor

MAX_SCORES = 1 << 20
"""Scores of one chunk: small enough to stay in a processor's cache between the product and the selection."""


class LocalWeights(NamedTuple):
    """How a batch of queries reads S support sets.

    Attributes:
        indices: support slots, [S, B, k].
        weights: their weights, zero where a neighbour is missing, [S, B, k].
        variance: posterior variance, 1 where nothing is known, [S, B].
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
    half_norms: Float[Tensor, "sets points"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""],
    ridge: float,
    k: int,
    search: NeighborSearch | None = None,
) -> LocalWeights:
    """Neighbours, weights and variance of every query in every set.

    On a CPU, with exact search and no gradient asked for, compiled loops do the work; elsewhere plain torch does, to
    the same numbers.

    Args:
        queries: [S, B, d].
        features: [S, M, d], roughly centred.
        half_norms: ½‖x‖², +∞ for an empty slot, [S, M].
        kernel: a radial kernel.
        lengthscale: ℓ.
        ridge: λ.
        k: neighbours per query, at most M.
        search: how neighbours are found; exact when left out.
    """
    search = search or ExactSearch()
    if _compiles(queries, features, lengthscale) and isinstance(search, ExactSearch):
        rows = max(1, MAX_SCORES // half_norms.numel())
        parts = [
            _compiled_chunk(chunk, features, half_norms, kernel, lengthscale, ridge, k)
            for chunk in torch.split(queries, rows, dim=1)
        ]
        if len(parts) == 1:
            return parts[0]
        return LocalWeights(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))
    neighbors = search(queries, features, k, half_norms)
    system = factorise(neighbors, features, kernel, lengthscale, ridge)
    weights = system.weights()
    return LocalWeights(neighbors.indices, weights, system.variance(weights), system.jittered, system.failed)


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
    if _compiles(weights, residuals, residuals):
        corrections = weights.new_empty(weights.shape[:2])
        compiled.read_blocks(indices.numpy(), weights.numpy(), residuals.numpy(), corrections.numpy())
        return corrections
    local = residuals.gather(1, indices.flatten(1).long()).view_as(weights)
    low, high = torch.aminmax(local, dim=-1)
    total = (weights * local).sum(-1)
    return torch.minimum(torch.maximum(total, low.clamp(max=0.0)), high.clamp(min=0.0))


def _compiles(queries: Tensor, features: Tensor, lengthscale: Tensor) -> bool:
    wants_gradient = queries.requires_grad or features.requires_grad or lengthscale.requires_grad
    plain = queries.device.type == "cpu" and queries.dtype in (torch.float32, torch.float64)
    return compiled.AVAILABLE and plain and not (wants_gradient and torch.is_grad_enabled())


@torch.no_grad()
def _compiled_chunk(
    queries: Tensor,
    features: Tensor,
    half_norms: Tensor,
    kernel: Kernel,
    lengthscale: Tensor,
    ridge: float,
    k: int,
) -> LocalWeights:
    scores = ranking_scores(queries, features, half_norms)
    sets, rows = queries.shape[:2]
    dtype = scores.numpy().dtype
    indices = np.empty((sets, rows, k), np.int64)
    counts = np.empty((sets, rows), np.int64)
    distances = np.empty((sets, rows, k + k * (k - 1) // 2), dtype)
    compiled.nearest_blocks(scores.numpy(), queries.numpy(), features.numpy(), indices, counts, distances)
    # The kernel keeps its one formula; torch evaluates it for all systems at once.
    values = kernel(torch.from_numpy(distances).div_(lengthscale))
    weights = np.empty((sets, rows, k), dtype)
    variance = np.empty((sets, rows), dtype)
    jittered, failed = np.empty((2, sets, rows), np.bool_)
    compiled.solve_blocks(values.numpy(), counts, ridge, np.array(JITTERS, dtype), weights, variance, jittered, failed)
    # No score of such a query is below +∞, so the loops saw a query without neighbours.
    failed |= ~queries.isfinite().all(-1).numpy()
    return LocalWeights(*map(torch.from_numpy, (indices, weights, variance, jittered, failed)))

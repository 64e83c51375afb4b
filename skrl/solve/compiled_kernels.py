"""Compiled kernel values and whole systems of few queries, where a call into torch costs more than the values.

The formulas repeat those of :mod:`skrl.kernels.formulas`; a test holds the two together. Larger batches let torch
evaluate the kernel on all their distances at once, with vector instructions.
"""

from __future__ import annotations

import math

import numpy as np

from skrl.compiling import Array, compiled, compiled_exactly
from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import Gaussian, InverseMultiquadric, Laplace, Matern32, Matern52
from skrl.search.compiled_search import search_rows, select_rows
from skrl.solve.compiled_solve import mean_rows, measure_rows, solve_rows

CODES: dict[type[Kernel], int] = {Gaussian: 0, Laplace: 1, Matern32: 2, Matern52: 3, InverseMultiquadric: 4}
"""Kernels with a compiled formula."""

MAX_DISTANCES = 8192
"""Distances up to which the compiled values, one at a time, beat torch's vector instructions and their calls."""


@compiled
def kernel_value(code: int, r: float) -> float:
    """κ(r) of a scaled distance, by the code of the kernel."""
    if code == 0:
        return math.exp(-0.5 * r * r)
    if code == 1:
        return math.exp(-r)
    if code == 2:
        scaled = math.sqrt(3.0) * r
        return (1.0 + scaled) * math.exp(-scaled)
    if code == 3:
        half = math.exp(-0.5 * math.sqrt(5.0) * r)
        linear = math.sqrt(5.0) * (r * half)
        return (half + linear) * half + linear * linear / 3.0
    return 1.0 / math.sqrt(1.0 + r * r)


@compiled
def solve_few(
    code: int,
    lengthscale: float,
    ridge: float,
    queries: Array,
    features: Array,
    rows_per_set: int,
    indices: Array,
    mask: Array,
    jitters: Array,
    windowed: bool,
    weights: Array,
    variance: Array,
    jittered: Array,
    failed: Array,
) -> None:
    """Measure, evaluate and solve the systems of few queries; arguments as in :mod:`skrl.solve.compiled_solve`."""
    rows, k = weights.shape
    distances = np.empty((rows, k + k * (k - 1) // 2), weights.dtype)
    windows = np.empty((rows, k if windowed else 0), weights.dtype)
    measure_rows(queries, features, rows_per_set, 0, indices, mask, distances, windows)
    for row in distances:
        for i in range(row.shape[0]):
            row[i] = kernel_value(code, row[i] / lengthscale)
    solve_rows(distances, windows, mask, 1.0, ridge, jitters, weights, variance, jittered, failed)


@compiled_exactly
def scale_rows(queries: Array, origin: Array, scale: Array, scaled: Array) -> None:
    """Queries in units of the lengthscale; what exceeds the precision is infinite, without the warnings of numpy.

    Args:
        queries: [B, d].
        origin: [d].
        scale: ℓ, [d].
        scaled: receives (z − origin) / ℓ in its first d columns, [B, ≥ d].
    """
    for b in range(queries.shape[0]):
        for c in range(queries.shape[1]):
            scaled[b, c] = (queries[b, c] - origin[c]) / scale[c]


@compiled
def predict_few(
    code: int,
    ridge: float,
    k: int,
    windowed: bool,
    queries: Array,
    products: Array,
    columns: Array,
    half_norms: Array,
    points: Array,
    targets: Array,
    jitters: Array,
    mean: Array,
    variance: Array,
) -> bool:
    """Search, solve and predict few queries; false when one is not finite.

    Args:
        code: of the kernel.
        ridge: λ.
        k: neighbours, at most M.
        windowed: whether localisation is continuous.
        queries: in units of the lengthscale, padded to the width of ``columns`` where these are used, [B, ≥ d].
        products: z·x of all points, overwritten by their scores, [B, M]; empty when ``columns`` are searched.
        columns: see :func:`skrl.search.compiled_search.search_rows`.
        half_norms: ½‖x‖², in tiles, or [1, 1, M].
        points: [M, d].
        targets: [M, c].
        jitters: see :func:`skrl.solve.compiled_solve.solve_rows`.
        mean: receives Σ_i w_i y_i, [B, c].
        variance: receives σ², [B].
    """
    rows = queries.shape[0]
    for b in range(rows):
        for c in range(queries.shape[1]):
            if not np.isfinite(queries[b, c]):
                return False
    found = min(k + windowed, points.shape[0])
    indices, mask = np.empty((rows, found), np.int64), np.empty((rows, found), np.bool_)
    if products.shape[0] == 0:
        search_rows(queries, columns, half_norms, 0, rows, indices, mask)
    else:
        norms = half_norms[0, 0]
        for b in range(rows):
            scores = products[b]
            for j in range(scores.shape[0]):
                scores[j] = norms[j] - scores[j]
        shape = (1, rows, found)
        select_rows(products.reshape(1, rows, -1), 0, 0, rows, indices.reshape(shape), mask.reshape(shape))
    weights = np.empty((rows, k), points.dtype)
    jittered, failed = np.empty(rows, np.bool_), np.empty(rows, np.bool_)
    sets = points.reshape(1, points.shape[0], points.shape[1])
    solve_few(
        code, 1.0, ridge, queries[:, : points.shape[1]], sets, rows, indices, mask, jitters, windowed,
        weights, variance, jittered, failed,
    )  # fmt: skip
    mean_rows(indices, weights, targets, 0, rows, mean)
    return True


@compiled
def localise_one(
    code: int,
    lengthscale: float,
    ridge: float,
    queries: Array,
    products: Array,
    half_norms: Array,
    features: Array,
    jitters: Array,
    windowed: bool,
    indices: Array,
    mask: Array,
    weights: Array,
    variance: Array,
    jittered: Array,
    failed: Array,
) -> None:
    """Search and solve one query in every set.

    Args:
        code: of the kernel.
        lengthscale: ℓ.
        ridge: λ.
        queries: the query of each set, [S, d].
        products: z·x of all points, overwritten by their scores, [S, M].
        half_norms: ½‖x‖², +∞ for empty slots, [S, M].
        features: [S, M, d].
        jitters: see :func:`skrl.solve.compiled_solve.solve_rows`.
        windowed: whether localisation is continuous.
        indices: receives the neighbours, [S, k], or one more for windows.
        mask: receives where a neighbour exists, likewise.
        weights: receives w, [S, k].
        variance: receives σ², [S].
        jittered: receives whether jitter was needed, [S].
        failed: receives whether the query falls back to the prior, [S].
    """
    sets, points = products.shape
    for s in range(sets):
        scores, norms = products[s], half_norms[s]
        for j in range(points):
            scores[j] = norms[j] - scores[j]
    shape = (sets, 1, indices.shape[1])
    select_rows(products.reshape(sets, 1, points), 0, 0, sets, indices.reshape(shape), mask.reshape(shape))
    solve_few(
        code, lengthscale, ridge, queries, features, 1, indices, mask, jitters, windowed,
        weights, variance, jittered, failed,
    )  # fmt: skip

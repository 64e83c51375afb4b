"""Compiled loops of a local query on a CPU, where many small tensor operations would cost more than their arithmetic.

numba translates them at the first call and keeps the result on disk. Without numba, and wherever gradients or an
accelerator are involved, :mod:`skrl.local_weights` takes the plain torch path, which gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

try:
    import numba

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

BLOCK = 16
"""Scores compared with the threshold at once."""


def _compile(function: Function) -> Function:
    """Reassociation lets reductions use vector units; NaN and infinity keep their meaning."""
    if not AVAILABLE:
        return function
    flags = {"reassoc", "contract", "nsz", "arcp"}
    return cast(Function, numba.njit(cache=True, fastmath=flags, error_model="numpy", nogil=True)(function))


@_compile
def _select_row(scores: Array, k: int, best: Array, positions: Array) -> int:
    """Find the k smallest scores below +∞ of one row, ascending, by insertion; returns how many there are."""
    count = 0
    threshold = np.inf
    points = scores.shape[0]
    for start in range(0, points, BLOCK):
        stop = min(start + BLOCK, points)
        nearer = 0
        for i in range(start, stop):
            nearer += scores[i] < threshold
        if nearer == 0:
            continue
        for i in range(start, stop):
            value = scores[i]
            if value < threshold:
                j = count if count < k else k - 1
                while j > 0 and best[j - 1] > value:
                    best[j] = best[j - 1]
                    positions[j] = positions[j - 1]
                    j -= 1
                best[j] = value
                positions[j] = i
                if count < k:
                    count += 1
                if count == k:
                    threshold = best[k - 1]
    return count


@_compile
def nearest_blocks(
    scores: Array, queries: Array, features: Array, indices: Array, counts: Array, distances: Array
) -> None:
    """Select the k nearest points of every query and measure all distances that a local system needs.

    Args:
        scores: ranking scores, +∞ for empty slots, [S, B, M].
        queries: [S, B, d].
        features: [S, M, d].
        indices: receives the neighbours, nearest first, zero beyond their count, [S, B, k].
        counts: receives the number of neighbours, [S, B].
        distances: receives d(z, x_i) in the first k columns, then d(x_i, x_j) for j < i row by row,
            [S, B, k + k(k − 1)/2].
    """
    sets, rows, _ = scores.shape
    k = indices.shape[2]
    dim = queries.shape[2]
    best = np.empty(k, scores.dtype)
    for s in range(sets):
        for b in range(rows):
            positions = indices[s, b]
            count = _select_row(scores[s, b], k, best, positions)
            counts[s, b] = count
            positions[count:] = 0
            row = distances[s, b]
            row[:] = 0.0
            at = k
            for i in range(count):
                point = features[s, positions[i]]
                total = row[i]
                for c in range(dim):
                    difference = queries[s, b, c] - point[c]
                    total += difference * difference
                row[i] = np.sqrt(total)
                for j in range(i):
                    other = features[s, positions[j]]
                    total = row[at]
                    for c in range(dim):
                        difference = point[c] - other[c]
                        total += difference * difference
                    row[at] = np.sqrt(total)
                    at += 1


@_compile
def read_blocks(indices: Array, weights: Array, residuals: Array, corrections: Array) -> None:
    """Weighted residuals of the neighbours, kept between the smallest and the largest of them and zero.

    Args:
        indices: positions in each set, [S, B, k].
        weights: [S, B, k].
        residuals: [S, M].
        corrections: receives the result, [S, B].
    """
    sets, rows, k = weights.shape
    for s in range(sets):
        for b in range(rows):
            low = high = total = residuals[s, 0] * 0
            for i in range(k):
                residual = residuals[s, indices[s, b, i]]
                total += weights[s, b, i] * residual
                low = min(low, residual)
                high = max(high, residual)
            corrections[s, b] = min(max(total, low), high)


@_compile
def _cholesky(values: Array, first: int, count: int, diagonal: float, factor: Array) -> bool:
    """Factor the local system whose kernel values start at ``first``; false when it is not positive definite."""
    at = first
    for i in range(count):
        for j in range(i):
            total = values[at]
            at += 1
            for c in range(j):
                total -= factor[i, c] * factor[j, c]
            factor[i, j] = total / factor[j, j]
        pivot = diagonal
        for c in range(i):
            pivot -= factor[i, c] * factor[i, c]
        if not pivot > 0.0:
            return False
        factor[i, i] = np.sqrt(pivot)
    return True


@_compile
def solve_blocks(
    values: Array,
    counts: Array,
    ridge: float,
    jitters: Array,
    weights: Array,
    variance: Array,
    jittered: Array,
    failed: Array,
) -> None:
    """Weights and posterior variance of every local system, from one Cholesky factor each.

    Args:
        values: kernel values, laid out as the distances of :func:`nearest_blocks`, [S, B, k + k(k − 1)/2].
        counts: neighbours of each query, [S, B].
        ridge: λ.
        jitters: diagonal terms to try in turn when a factorisation fails.
        weights: receives w, zero beyond the count, [S, B, k].
        variance: receives σ², [S, B].
        jittered: receives whether jitter was needed, [S, B].
        failed: receives whether the query falls back to the prior, [S, B].
    """
    sets, rows, k = weights.shape
    factor = np.zeros((k, k), values.dtype)
    for s in range(sets):
        for b in range(rows):
            count = counts[s, b]
            row = values[s, b]
            solution = weights[s, b]
            solution[:] = 0.0
            variance[s, b] = 1.0
            jittered[s, b] = False
            solved = True
            for i in range(count):
                solved = solved and np.isfinite(row[i])
            if solved:
                solved = _cholesky(row, k, count, 1.0 + ridge, factor)
                for jitter in jitters:
                    if not solved:
                        solved = _cholesky(row, k, count, 1.0 + ridge + jitter, factor)
                        jittered[s, b] = solved
            failed[s, b] = not solved
            if not solved:
                continue
            reduction = 0.0
            for i in range(count):
                total = row[i]
                for c in range(i):
                    total -= factor[i, c] * solution[c]
                solution[i] = total / factor[i, i]
                reduction += solution[i] * solution[i]
            for i in range(count - 1, -1, -1):
                total = solution[i]
                for c in range(i + 1, count):
                    total -= factor[c, i] * solution[c]
                solution[i] = total / factor[i, i]
            variance[s, b] = min(max(1.0 - reduction, 0.0), 1.0)

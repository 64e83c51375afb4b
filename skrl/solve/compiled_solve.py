"""Compiled local systems: distances, Cholesky factors, weights, variance and means."""

from __future__ import annotations

import numpy as np

from skrl.compiling import Array, compiled


@compiled
def measure_rows(
    queries: Array,
    features: Array,
    rows_per_set: int,
    offset: int,
    indices: Array,
    mask: Array,
    distances: Array,
    windows: Array,
) -> None:
    """Measure all distances that the systems of a chunk of queries need.

    Args:
        queries: those of S sets one after the other, [S·B, d].
        features: [S, M, d].
        rows_per_set: B.
        offset: position of the chunk's first query.
        indices: the neighbours, nearest first, [S·B, k], or [S·B, k + 1] for windows.
        mask: true where a neighbour exists, like ``indices``.
        distances: receives d(z, x_i) in the first k columns, then d(x_i, x_j) for j < i row by row,
            [R, k + k(k − 1)/2]; zero where a neighbour is missing.
        windows: receives the roots of the windows, [R, k]; [R, 0] when localisation is hard.
    """
    k, dim = _neighbors_of(distances.shape[1]), queries.shape[1]
    for r in range(distances.shape[0]):
        b = offset + r
        points, neighbors, row = features[b // rows_per_set], indices[b], distances[r]
        row[:] = 0.0
        at = k
        for i in range(k):
            if not mask[b, i]:
                break
            point = points[neighbors[i]]
            total = row[i]
            for c in range(dim):
                difference = queries[b, c] - point[c]
                total += difference * difference
            row[i] = np.sqrt(total)
            for j in range(i):
                other = points[neighbors[j]]
                total = row[at]
                for c in range(dim):
                    difference = point[c] - other[c]
                    total += difference * difference
                row[at] = np.sqrt(total)
                at += 1
        if windows.shape[1] == 0:
            continue
        windows[r, :] = 1.0
        if indices.shape[1] > k and mask[b, k]:
            point = points[neighbors[k]]
            total = row.dtype.type(0)
            for c in range(dim):
                difference = queries[b, c] - point[c]
                total += difference * difference
            radius = np.sqrt(total)
            for i in range(k):
                if 0.0 < radius < np.inf:
                    gap = max((radius - row[i]) / radius, 0.0)
                    windows[r, i] = gap * (2.0 - gap)


@compiled
def _neighbors_of(columns: int) -> int:
    """Neighbours k of a layout with k + k(k − 1)/2 = k(k + 1)/2 columns."""
    return int((np.sqrt(8.0 * columns + 1.0) - 1.0) / 2.0 + 0.5)


@compiled
def _fill(values: Array, windows: Array, count: int, prior: float, ridge: float, upper: Array) -> None:
    """Write S K S + λI into the upper triangle; K's lower triangle stands row by row after the k values of κ_z.

    A neighbour whose window has ended is decoupled: zeros, whatever K says, and a one on the diagonal.
    """
    at = upper.shape[0]
    for i in range(count):
        for j in range(i):
            upper[j, i] = values[at]
            at += 1
        upper[i, i] = prior + ridge
    if windows.shape[0] == 0:
        return
    for i in range(count):
        for j in range(i):
            scale = windows[i] * windows[j]
            upper[j, i] = upper[j, i] * scale if scale > 0.0 else scale
        upper[i, i] = prior * windows[i] * windows[i] + ridge if windows[i] > 0.0 else 1.0


@compiled
def _largest(windows: Array, count: int) -> float:
    """Largest root of a window among ``count`` neighbours; one when localisation is hard."""
    if windows.shape[0] == 0:
        return 1.0
    largest = 0.0
    for i in range(count):
        largest = max(largest, windows[i])
    return largest


@compiled
def _factor(count: int, upper: Array) -> bool:
    """Factor the upper triangle into Uᵀ U in place, row by row; false when it is not positive definite."""
    for j in range(count):
        row = upper[j, j:count]
        length = count - j
        c = 0
        # Four earlier rows at once, each a view from zero: only such loops become vector code.
        while c + 4 <= j:
            a0, a1, a2, a3 = upper[c, j], upper[c + 1, j], upper[c + 2, j], upper[c + 3, j]
            r0, r1, r2, r3 = upper[c, j:], upper[c + 1, j:], upper[c + 2, j:], upper[c + 3, j:]
            for i in range(length):
                row[i] -= a0 * r0[i] + a1 * r1[i] + a2 * r2[i] + a3 * r3[i]
            c += 4
        while c < j:
            a0, r0 = upper[c, j], upper[c, j:]
            for i in range(length):
                row[i] -= a0 * r0[i]
            c += 1
        if not 0.0 < row[0] < np.inf:
            return False
        scale = 1.0 / np.sqrt(row[0])
        for i in range(length):
            row[i] *= scale
    return True


@compiled
def factor_row(
    values: Array, windows: Array, count: int, prior: float, ridge: float, jitters: Array, upper: Array
) -> tuple[bool, bool]:
    """Fill and factor one system, with jitter when it has to be.

    Args:
        values: kernel values of one row of :func:`measure_rows`, [k + k(k − 1)/2].
        windows: [k] or [0].
        count: neighbours that exist.
        prior: κ(z, z).
        ridge: λ.
        jitters: see :func:`solve_rows`.
        upper: receives U, [k, k].

    Returns:
        Whether it could be factored, and whether that took jitter.
    """
    for attempt in range(1 + jitters.shape[0]):
        jitter = 0.0
        if attempt > 0:
            # Rounding scales with the largest diagonal term.
            jitter = jitters[attempt - 1] * (prior * _largest(windows, count) ** 2 + ridge)
        _fill(values, windows, count, prior, ridge + jitter, upper)
        if _factor(count, upper):
            return True, attempt > 0
    return False, False


@compiled
def substitute(count: int, upper: Array, solution: Array) -> float:
    """Solve Uᵀ U x = b in place; returns ‖U⁻ᵀ b‖² = bᵀ x."""
    reduction = solution.dtype.type(0)
    for c in range(count):
        value = solution[c] / upper[c, c]
        solution[c] = value
        reduction += value * value
        below, row = solution[c + 1 :], upper[c, c + 1 :]
        for i in range(count - c - 1):
            below[i] -= value * row[i]
    for i in range(count - 1, -1, -1):
        total = solution[i]
        below, row = solution[i + 1 :], upper[i, i + 1 :]
        for c in range(count - i - 1):
            total -= row[c] * below[c]
        solution[i] = total / upper[i, i]
    return float(reduction)


@compiled
def solve_rows(
    values: Array,
    windows: Array,
    mask: Array,
    prior: float,
    ridge: float,
    jitters: Array,
    weights: Array,
    variance: Array,
    jittered: Array,
    failed: Array,
) -> None:
    """Weights and posterior variance of local systems, from one Cholesky factor each.

    Args:
        values: kernel values, laid out as the distances of :func:`measure_rows`, [R, k + k(k − 1)/2].
        windows: their windows, [R, k] or [R, 0].
        mask: true where a neighbour exists, at least k columns.
        prior: κ(z, z).
        ridge: λ.
        jitters: diagonal terms to try in turn when a factorisation fails, in units of the largest one there.
        weights: receives w, zero where a neighbour is missing, [R, k].
        variance: receives σ², [R].
        jittered: receives whether jitter was needed, [R].
        failed: receives whether the query falls back to the prior, [R].
    """
    rows, k = weights.shape
    upper = np.zeros((k, k), values.dtype)
    for b in range(rows):
        row, solution, window = values[b], weights[b], windows[b]
        solution[:] = 0.0
        variance[b] = prior
        jittered[b] = False
        solved = True
        count = 0
        for i in range(k):
            if mask[b, i]:
                count += 1
                ended = windows.shape[1] > 0 and window[i] == 0.0
                solved = solved and (ended or np.isfinite(row[i]))
        if solved and count > 0:
            solved, jittered[b] = factor_row(row, window, count, prior, ridge, jitters, upper)
        failed[b] = not solved
        if not solved or count == 0:
            continue
        for i in range(count):
            if windows.shape[1] == 0:
                solution[i] = row[i]
            elif window[i] > 0.0:
                solution[i] = row[i] * window[i]
        reduction = substitute(count, upper, solution)
        for i in range(windows.shape[1]):
            solution[i] *= window[i]
        variance[b] = min(max(prior - reduction, 0.0), prior)


@compiled
def mean_rows(indices: Array, weights: Array, targets: Array, start: int, stop: int, means: Array) -> None:
    """Weighted targets of rows ``start`` to ``stop``.

    Args:
        indices: neighbours, at least k columns, [R, ≥ k].
        weights: [R, k].
        targets: [M, c].
        start: first row.
        stop: row after the last.
        means: receives Σ_i w_i y_i, [R, c].
    """
    k, width = weights.shape[1], targets.shape[1]
    for b in range(start, stop):
        means[b, :] = 0.0
        for i in range(k):
            weight, target = weights[b, i], targets[indices[b, i]]
            if weight != 0.0:
                for c in range(width):
                    means[b, c] += weight * target[c]


@compiled
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
            low = high = total = residuals.dtype.type(0)
            for i in range(k):
                residual = residuals[s, indices[s, b, i]]
                total += weights[s, b, i] * residual
                low = min(low, residual)
                high = max(high, residual)
            corrections[s, b] = min(max(total, low), high)

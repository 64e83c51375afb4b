"""Compiled gradients of local predictions: the adjoint of :mod:`skrl.solve.compiled_solve`, a system at a time.

With A = S K S + λI, u = s ⊙ κ_z, v = A⁻¹ u, w = s ⊙ v, f = Σ_i w_i y_i and σ² = κ(z, z) − κ_zᵀ w, a bar for the
gradient of the loss in a quantity, and q = A⁻¹ (s ⊙ w̄):

    ȳ_i = w_i f̄          w̄_i = f̄ · y_i − σ̄² κ_i          λ̄ = −qᵀ v
    κ̄ = s ⊙ q − σ̄² w     K̄_ij = −s_i s_j (q_i v_j + q_j v_i)
    s̄ = v ⊙ w̄ + κ ⊙ q − 2 κ(z, z) s ⊙ q ⊙ v − Σ_{j ≠ i} K_ij s_j (q_i v_j + q_j v_i)

For the adjoint of a linear solve see M. Giles, *Collected Matrix Derivative Results for Forward and Reverse Mode
Algorithmic Differentiation*, 2008.
"""

from __future__ import annotations

import numpy as np

from skrl.compiling import Array, compiled
from skrl.solve.compiled_solve import factor_row, substitute


@compiled
def _pull_pairs(
    count: int,
    neighbors: Array,
    points: Array,
    row: Array,
    value: Array,
    slope: Array,
    window: Array,
    solved: Array,
    forward: Array,
    window_bar: Array,
    near_bar: Array,
) -> None:
    """Add what the Gram matrix of one system passes on to its windows, [k], and to its neighbours, [k, d].

    ``solved`` is q and ``forward`` v; the rest is one row of what :func:`adjoint_rows` gets.
    """
    at = forward.shape[0]
    for i in range(count):
        for j in range(i):
            product = solved[i] * forward[j] + solved[j] * forward[i]
            if window.shape[0] > 0:
                window_bar[i] -= value[at] * window[j] * product
                window_bar[j] -= value[at] * window[i] * product
                product *= window[i] * window[j]
            if row[at] > 0.0:
                pull = -product * slope[at] / row[at]
                for c in range(points.shape[1]):
                    step = pull * (points[neighbors[i], c] - points[neighbors[j], c])
                    near_bar[i, c] += step
                    near_bar[j, c] -= step
            at += 1


@compiled
def _pull_query(
    count: int,
    neighbors: Array,
    mask: Array,
    query: Array,
    points: Array,
    row: Array,
    slope: Array,
    window: Array,
    cross_bar: Array,
    window_bar: Array,
    query_bar: Array,
    near_bar: Array,
    points_bar: Array,
) -> None:
    """Add what κ_z and the windows of one system pass on to the query, [d], its neighbours, [k, d], and the one after.

    Arguments are one row of what :func:`adjoint_rows` gets.
    """
    k, dim = cross_bar.shape[0], points.shape[1]
    radius, radius_bar, last = 0.0, 0.0, neighbors[0]
    if window.shape[0] > 0 and neighbors.shape[0] > k and mask[k]:
        last = neighbors[k]
        total = row.dtype.type(0)
        for c in range(dim):
            difference = query[c] - points[last, c]
            total += difference * difference
        radius = np.sqrt(total)
    for i in range(count):
        distance_bar = cross_bar[i] * slope[i]
        if 0.0 < radius < np.inf and window[i] > 0.0:
            ratio = row[i] / radius
            distance_bar -= 2.0 * window_bar[i] * ratio / radius
            radius_bar += 2.0 * window_bar[i] * ratio * ratio / radius
        if row[i] > 0.0:
            pull = distance_bar / row[i]
            for c in range(dim):
                step = pull * (query[c] - points[neighbors[i], c])
                query_bar[c] += step
                near_bar[i, c] -= step
    if radius_bar != 0.0:
        pull = radius_bar / radius
        for c in range(dim):
            step = pull * (query[c] - points[last, c])
            query_bar[c] += step
            if points_bar.shape[0] > 0:
                points_bar[last, c] -= step


@compiled
def adjoint_rows(
    queries: Array,
    points: Array,
    targets: Array,
    indices: Array,
    mask: Array,
    offset: int,
    distances: Array,
    values: Array,
    slopes: Array,
    windows: Array,
    prior: float,
    ridge: float,
    jitters: Array,
    weights: Array,
    variance: Array,
    failed: Array,
    mean_bar: Array,
    variance_bar: Array,
    queries_bar: Array,
    points_bar: Array,
    targets_bar: Array,
) -> float:
    """Add the gradients of a chunk of queries; returns that of the ridge.

    Args:
        queries: in units of the lengthscale, [B, d].
        points: likewise, [M, d].
        targets: [M, c].
        indices: neighbours, nearest first, [B, k], or [B, k + 1] for windows.
        mask: true where a neighbour exists, like ``indices``.
        offset: position of the chunk's first query.
        distances: see :func:`skrl.solve.compiled_solve.measure_rows`, [R, k + k(k − 1)/2].
        values: κ of them, like ``distances``.
        slopes: κ' of them, like ``distances``.
        windows: their roots, [R, k] or [R, 0].
        prior: κ(z, z).
        ridge: λ.
        jitters: see :func:`skrl.solve.compiled_solve.solve_rows`.
        weights: w, [B, k].
        variance: σ², [B].
        failed: queries that read the prior, [B].
        mean_bar: gradient of the means, [B, c].
        variance_bar: of the variances, [B].
        queries_bar: receives the gradient of the queries, [B, d].
        points_bar: gradient of the points, to be added to, [M, d]; [0, d] where nobody asks.
        targets_bar: likewise of the targets, [M, c] or [0, c].
    """
    k, dim, width = weights.shape[1], queries.shape[1], targets.shape[1]
    windowed = windows.shape[1] > 0
    upper = np.zeros((k, k), values.dtype)
    solved, forward, outer = np.zeros(k, values.dtype), np.zeros(k, values.dtype), np.zeros(k, values.dtype)
    cross_bar, window_bar = np.zeros(k, values.dtype), np.zeros(k, values.dtype)
    near_bar = np.zeros((k, dim), values.dtype)
    ridge_bar = 0.0
    for r in range(distances.shape[0]):
        b = offset + r
        row, value, slope, window, neighbors = distances[r], values[r], slopes[r], windows[r], indices[b]
        count = 0
        for i in range(k):
            if mask[b, i]:
                count += 1
        if failed[b] or count == 0:
            continue
        # Clamped variances pass no gradient on.
        spread = variance_bar[b] if variance[b] > 0.0 else 0.0
        for i in range(count):
            neighbor, total = neighbors[i], values.dtype.type(0)
            for c in range(width):
                total += mean_bar[b, c] * targets[neighbor, c]
            outer[i] = total - spread * value[i]
            if targets_bar.shape[0] > 0 and weights[b, i] != 0.0:
                for c in range(width):
                    targets_bar[neighbor, c] += weights[b, i] * mean_bar[b, c]
        if not factor_row(value, window, count, prior, ridge, jitters, upper)[0]:
            continue
        for i in range(count):
            scale = window[i] if windowed else 1.0
            forward[i] = weights[b, i] / scale if scale > 0.0 else 0.0
            solved[i] = scale * outer[i]
        substitute(count, upper, solved)
        for i in range(count):
            scale = window[i] if windowed else 1.0
            ridge_bar -= solved[i] * forward[i]
            cross_bar[i] = scale * solved[i] - spread * weights[b, i]
            window_bar[i] = 0.0
            if scale > 0.0:
                window_bar[i] = (
                    forward[i] * outer[i] + value[i] * solved[i] - 2.0 * prior * scale * solved[i] * forward[i]
                )
            near_bar[i, :] = 0.0
        _pull_pairs(count, neighbors, points, row, value, slope, window, solved, forward, window_bar, near_bar)
        _pull_query(
            count, neighbors, mask[b], queries[b], points, row, slope, window, cross_bar, window_bar,
            queries_bar[b], near_bar, points_bar,
        )  # fmt: skip
        if points_bar.shape[0] > 0:
            for i in range(count):
                for c in range(dim):
                    points_bar[neighbors[i], c] += near_bar[i, c]
    return ridge_bar

"""Compiled search: exact selection of the smallest scores, and a fused search in low dimensions."""

from __future__ import annotations

import numpy as np

from skrl.compiling import Array, compiled

GROUP = 16
"""Points that share one minimum in the first stage of the selection."""

MAX_LANES = 256
"""Groups of a tile at most: its coordinates and minima fit into the inner caches."""

MAX_DIM = 8
"""Largest dimension of the fused search; beyond it a matrix product takes over."""

BLOCK = 64
"""Values compared with the threshold at once."""


@compiled
def _insert(value: float, position: int, count: int, best: Array, positions: Array) -> int:
    """Insert into ascending ``best``, of which ``count`` are filled; returns the new count."""
    k = best.shape[0]
    j = count if count < k else k - 1
    while j > 0 and best[j - 1] > value:
        best[j] = best[j - 1]
        positions[j] = positions[j - 1]
        j -= 1
    best[j] = value
    positions[j] = position
    return count + 1 if count < k else k


@compiled
def _scan(values: Array, best: Array, positions: Array) -> int:
    """Find the smallest values below +∞, ascending; returns how many there are, at most the length of ``best``."""
    k, points = best.shape[0], values.shape[0]
    count = 0
    best[:] = np.inf
    for start in range(0, points, BLOCK):
        stop = min(start + BLOCK, points)
        # Read from the array, so that the comparison stays in its precision.
        threshold = best[k - 1]
        nearer = 0
        for i in range(start, stop):
            nearer += values[i] < threshold
        if nearer == 0:
            continue
        for i in range(start, stop):
            if values[i] < best[k - 1]:
                count = _insert(values[i], i, count, best, positions)
    return count


@compiled
def select(scores: Array, best: Array, positions: Array, minima: Array, group_best: Array, groups_found: Array) -> int:
    """Find the k smallest scores below +∞ of one row, ascending; returns how many there are.

    Two stages: the k smallest scores lie in the k groups with the smallest minima. A group is a strided column, so that
    the minima of all groups are taken by whole vectors.

    Args:
        scores: [M]; NaN counts as +∞.
        best: receives the scores, [k].
        positions: receives their positions, [k].
        minima: scratch, at least [M // GROUP].
        group_best: scratch, [k].
        groups_found: scratch, [k].
    """
    k, points = best.shape[0], scores.shape[0]
    groups = points // GROUP
    if groups < 2 * k:
        return _scan(scores, best, positions)
    minima = minima[:groups]
    minima[:] = np.inf
    for c in range(GROUP):
        column = scores[c * groups : (c + 1) * groups]
        for j in range(groups):
            value, least = column[j], minima[j]
            minima[j] = value if value < least else least
    found = _scan(minima, group_best, groups_found)
    count = 0
    best[:] = np.inf
    for g in range(found):
        for c in range(GROUP):
            i = groups_found[g] + c * groups
            if scores[i] < best[k - 1]:
                count = _insert(scores[i], i, count, best, positions)
    for i in range(GROUP * groups, points):
        if scores[i] < best[k - 1]:
            count = _insert(scores[i], i, count, best, positions)
    return count


@compiled
def select_rows(scores: Array, offset: int, start: int, stop: int, indices: Array, mask: Array) -> None:
    """Select the k nearest points of a chunk of queries, of which flat rows ``start`` to ``stop`` are done here.

    Args:
        scores: ranking scores of the chunk, +∞ for empty slots, [S, R, M].
        offset: position of the chunk's first query.
        start: first row among S·R.
        stop: row after the last.
        indices: receives the neighbours, nearest first, zero where one is missing, [S, B, k].
        mask: receives where a neighbour exists, [S, B, k].
    """
    _, rows, points = scores.shape
    k = indices.shape[2]
    best, group_best = np.empty(k, scores.dtype), np.empty(k, scores.dtype)
    minima, groups_found = np.empty(points // GROUP, scores.dtype), np.empty(k, np.int64)
    for row in range(start, stop):
        s, b = row // rows, row % rows
        positions = indices[s, offset + b]
        count = select(scores[s, b], best, positions, minima, group_best, groups_found)
        mask[s, offset + b, :count] = True
        mask[s, offset + b, count:] = False
        positions[count:] = 0


@compiled
def _minima_of_four(z: Array, x: Array, half_norms: Array, m0: Array, m1: Array, m2: Array, m3: Array) -> None:
    """Lower the minima of four queries by the scores ½‖x‖² − z·x of one point per lane, in four dimensions."""
    a0, a1, a2, a3 = z[0, 0], z[0, 1], z[0, 2], z[0, 3]
    b0, b1, b2, b3 = z[1, 0], z[1, 1], z[1, 2], z[1, 3]
    c0, c1, c2, c3 = z[2, 0], z[2, 1], z[2, 2], z[2, 3]
    d0, d1, d2, d3 = z[3, 0], z[3, 1], z[3, 2], z[3, 3]
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    for j in range(half_norms.shape[0]):
        u0, u1, u2, u3, h = x0[j], x1[j], x2[j], x3[j], half_norms[j]
        v0 = h - (a0 * u0 + a1 * u1 + a2 * u2 + a3 * u3)
        v1 = h - (b0 * u0 + b1 * u1 + b2 * u2 + b3 * u3)
        v2 = h - (c0 * u0 + c1 * u1 + c2 * u2 + c3 * u3)
        v3 = h - (d0 * u0 + d1 * u1 + d2 * u2 + d3 * u3)
        m0[j] = v0 if v0 < m0[j] else m0[j]
        m1[j] = v1 if v1 < m1[j] else m1[j]
        m2[j] = v2 if v2 < m2[j] else m2[j]
        m3[j] = v3 if v3 < m3[j] else m3[j]


@compiled
def _minima_of_two(z: Array, x: Array, half_norms: Array, m0: Array, m1: Array) -> None:
    """Lower the minima of two queries by the scores ½‖x‖² − z·x of one point per lane, in eight dimensions."""
    a0, a1, a2, a3 = z[0, 0], z[0, 1], z[0, 2], z[0, 3]
    a4, a5, a6, a7 = z[0, 4], z[0, 5], z[0, 6], z[0, 7]
    b0, b1, b2, b3 = z[1, 0], z[1, 1], z[1, 2], z[1, 3]
    b4, b5, b6, b7 = z[1, 4], z[1, 5], z[1, 6], z[1, 7]
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for j in range(half_norms.shape[0]):
        u0, u1, u2, u3, u4, u5, u6, u7 = x0[j], x1[j], x2[j], x3[j], x4[j], x5[j], x6[j], x7[j]
        h = half_norms[j]
        v0 = h - (a0 * u0 + a1 * u1 + a2 * u2 + a3 * u3) - (a4 * u4 + a5 * u5 + a6 * u6 + a7 * u7)
        v1 = h - (b0 * u0 + b1 * u1 + b2 * u2 + b3 * u3) - (b4 * u4 + b5 * u5 + b6 * u6 + b7 * u7)
        m0[j] = v0 if v0 < m0[j] else m0[j]
        m1[j] = v1 if v1 < m1[j] else m1[j]


@compiled
def search_rows(
    queries: Array, columns: Array, half_norms: Array, start: int, stop: int, indices: Array, mask: Array
) -> None:
    """Find the k nearest points of rows ``start`` to ``stop`` in four or eight dimensions, without storing scores.

    The points lie in tiles of ``GROUP`` strips of ``lanes`` points. A lane is a group of the two-stage selection: its
    minimum is taken while the scores are in registers; the scores of the few groups that matter are computed again.

    Args:
        queries: padded with zeros, [R, D], D is 4 or 8.
        columns: coordinates of the points, padded with zeros, [T, GROUP, D, lanes].
        half_norms: ½‖x‖², +∞ for padding, [T, GROUP, lanes].
        start: first row.
        stop: row after the last.
        indices: receives the neighbours, nearest first, zero where one is missing, [R, k].
        mask: receives where a neighbour exists, [R, k].
    """
    tiles, _, dim, lanes = columns.shape
    k, groups, at_once = indices.shape[1], tiles * lanes, 16 // dim
    minima, block = np.empty((at_once, groups), queries.dtype), np.empty((at_once, dim), queries.dtype)
    scratch, group_best = np.empty(groups // GROUP, queries.dtype), np.empty(k, queries.dtype)
    best, found_best = np.empty(k, queries.dtype), np.empty(k, queries.dtype)
    groups_found, found = np.empty(k, np.int64), np.empty(k, np.int64)
    for first in range(start, stop, at_once):
        for i in range(at_once):
            block[i] = queries[min(first + i, stop - 1)]
        minima[:] = np.inf
        for t in range(tiles):
            begin, end = t * lanes, (t + 1) * lanes
            m0, m1 = minima[0, begin:end], minima[1, begin:end]
            for g in range(GROUP):
                if dim == 4:
                    m2, m3 = minima[2, begin:end], minima[3, begin:end]
                    _minima_of_four(block, columns[t, g], half_norms[t, g], m0, m1, m2, m3)
                else:
                    _minima_of_two(block, columns[t, g], half_norms[t, g], m0, m1)
        for row in range(first, min(first + at_once, stop)):
            chosen = select(minima[row - first], found_best, found, scratch, group_best, groups_found)
            count = 0
            best[:] = np.inf
            for group in found[:chosen]:
                t, j = group // lanes, group % lanes
                for g in range(GROUP):
                    score = half_norms[t, g, j]
                    for c in range(dim):
                        score -= queries[row, c] * columns[t, g, c, j]
                    if score < best[k - 1]:
                        count = _insert(score, (t * GROUP + g) * lanes + j, count, best, indices[row])
            mask[row, :count] = True
            mask[row, count:] = False
            indices[row, count:] = 0

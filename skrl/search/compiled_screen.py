"""Compiled loops of a screened search: rough scores leave few candidates, exact distances rank them."""

from __future__ import annotations

import numpy as np

from skrl.compiling import Array, compiled
from skrl.search.compiled_search import BLOCK, GROUP, _insert

LANES = 128
"""Groups of a block: long enough for vector loops, short enough for its members to lie close together."""


@compiled
def _keep_within(bound: float, count: int, scores: Array, positions: Array) -> int:
    """Drop the candidates whose score exceeds the bound; returns how many remain."""
    kept = 0
    for i in range(count):
        if scores[i] <= bound:
            scores[kept] = scores[i]
            positions[kept] = positions[i]
            kept += 1
    return kept


@compiled
def _group_minima(products: Array, half_norms: Array, scores: Array, minima: Array) -> None:
    """Rough scores ½‖x‖² − z·x and their minima over groups.

    Args:
        products: [N, GROUP, LANES]: blocks of consecutive points, whose columns are the groups.
        half_norms: likewise.
        scores: receives the scores, likewise.
        minima: receives one minimum per column, [N, LANES].
    """
    for n in range(products.shape[0]):
        least = minima[n]
        least[:] = np.inf
        for c in range(GROUP):
            column, norms, kept = products[n, c], half_norms[n, c], scores[n, c]
            for j in range(LANES):
                value = norms[j] - column[j]
                kept[j] = value
                least[j] = value if value < least[j] else least[j]


@compiled
def _lower(values: Array, least: Array) -> None:
    """Merge values into the ascending smallest ones so far."""
    k, count = least.shape[0], values.shape[0]
    for first in range(0, count, BLOCK):
        block = values[first : first + BLOCK]
        threshold = least[k - 1]
        nearer = 0
        for i in range(block.shape[0]):
            nearer += block[i] < threshold
        if nearer == 0:
            continue
        for i in range(block.shape[0]):
            value = block[i]
            if value < least[k - 1]:
                j = k - 1
                while j > 0 and least[j - 1] > value:
                    least[j] = least[j - 1]
                    j -= 1
                least[j] = value


@compiled
def _collect(
    tile: Array, minima: Array, ceiling: float, offset: int, count: int, scores: Array, positions: Array
) -> int:
    """Append the points of a tile that score below the ceiling; returns the new count, −1 when they are too many."""
    capacity = scores.shape[0]
    for n in range(minima.shape[0]):
        for j in range(LANES):
            if not minima[n, j] <= ceiling or minima[n, j] == np.inf:
                continue
            for c in range(GROUP):
                score = tile[n, c, j]
                if not score <= ceiling:
                    continue
                if count == capacity:
                    count = _keep_within(ceiling, count, scores, positions)
                    if count > capacity - capacity // 4:
                        return -1
                scores[count] = score
                positions[count] = offset + (n * GROUP + c) * LANES + j
                count += 1
    return count


@compiled
def screen_rows(
    products: Array,
    half_norms: Array,
    offset: int,
    slack: Array,
    rounding: float,
    largest_half_norm: float,
    least: Array,
    ceilings: Array,
    scores: Array,
    positions: Array,
    counts: Array,
) -> None:
    """Collect candidates from one tile of points.

    The k-th smallest minimum of disjoint groups is a score that k points do not exceed. With errors of at most e, no
    neighbour scores more than that plus 2e; this ceiling falls from tile to tile. Part of the error is relative to the
    product z·x = ½‖x‖² − score, which below the ceiling lies between −ceiling and ½‖x‖² − the smallest score.

    Args:
        products: rough z·x of a tile, in blocks of consecutive points whose columns are the groups,
            [R, N, GROUP, LANES].
        half_norms: ½‖x‖² of the tile, +∞ for empty slots, [N, GROUP, LANES].
        offset: position of the tile's first point.
        slack: twice the largest absolute error of a rough score, [R].
        rounding: the error relative to the product.
        largest_half_norm: of all points.
        least: the k smallest minima so far, ascending, +∞ before, [R, k].
        ceilings: receives the ceiling, [R].
        scores: rough scores of the candidates, [R, C].
        positions: of the candidates, [R, C].
        counts: candidates of each row so far, [R]; −1 once there were too many to keep.
    """
    k = least.shape[1]
    tile, minima = np.empty(half_norms.shape, products.dtype), np.empty((half_norms.shape[0], LANES), products.dtype)
    for r in range(counts.shape[0]):
        if counts[r] < 0:
            continue
        _group_minima(products[r], half_norms, tile, minima)
        _lower(minima.reshape(-1), least[r])
        largest = max(largest_half_norm - least[r, 0], abs(least[r, k - 1]))
        ceilings[r] = least[r, k - 1] + slack[r] + 2.0 * rounding * largest
        counts[r] = _collect(tile, minima, ceilings[r], offset, counts[r], scores[r], positions[r])


@compiled
def rank_rows(
    queries: Array,
    features: Array,
    ceilings: Array,
    scores: Array,
    positions: Array,
    counts: Array,
    indices: Array,
    mask: Array,
) -> None:
    """Rank the candidates by their exact distances.

    Args:
        queries: [R, d].
        features: [M, d].
        ceilings: see :func:`screen_rows`, [R].
        scores: rough scores of the candidates, [R, C].
        positions: of the candidates, [R, C].
        counts: candidates of each row, [R]; rows with −1 are left alone.
        indices: receives the neighbours, nearest first, zero where one is missing, [R, k].
        mask: receives where a neighbour exists, [R, k].
    """
    k, dim = indices.shape[1], queries.shape[1]
    best = np.empty(k, queries.dtype)
    for r in range(counts.shape[0]):
        if counts[r] < 0:
            continue
        best[:] = np.inf
        found = 0
        for i in range(counts[r]):
            if scores[r, i] > ceilings[r]:
                continue
            point = features[positions[r, i]]
            total = scores[r, i] * 0
            for c in range(dim):
                difference = queries[r, c] - point[c]
                total += difference * difference
            if total < best[k - 1]:
                found = _insert(total, positions[r, i], found, best, indices[r])
        mask[r, :found] = True
        mask[r, found:] = False
        indices[r, found:] = 0

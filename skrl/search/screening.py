"""Exact search through rough scores: one product in half precision, then exact distances of the few candidates.

A processor with bfloat16 instructions multiplies several times faster in that precision than in float32. The error of
such a product is bounded by the rounding errors of its factors, so the points that may be among the k nearest are known
for certain; only their distances are computed exactly. Neighbours are those of an exhaustive search in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch.nn.functional import pad

from skrl.compiling import Array, over_rows
from skrl.search import compiled_screen
from skrl.search.compiled_screen import LANES
from skrl.search.compiled_search import GROUP
from skrl.shapes import Float, Tensor

MIN_POINTS = 4096
"""Smaller sets are searched by whole products."""

MIN_DIM = 12
"""In fewer dimensions the product is not what costs."""

MIN_ROWS, MAX_ROWS = 32, 256
"""Queries of one product: enough that reading the points anew for the next ones does not matter."""

MIN_TILE, MAX_TILE = 1 << 13, 1 << 14
"""Points of one product, whole blocks of the compiled loops."""

MAX_PRODUCTS = 1 << 20
"""Entries of one product: small enough to stay in a cache until it is screened."""

OUTPUT_ROUNDING = 2.0**-8 * 1.01
"""Relative error of rounding to bfloat16, relative to the rounded value."""


class Screen:
    """Support points in half precision with what bounds their errors.

    Args:
        features: [M, d], centred, float32, zero where a slot is empty.
        half_norms: ½‖x‖², +∞ for an empty slot, [M].
    """

    def __init__(self, features: Float[Tensor, "points dim"], half_norms: Float[Tensor, " points"]) -> None:
        padding = -features.shape[0] % (GROUP * LANES)
        self.features, self.half_norms = features, pad(half_norms, (0, padding), value=torch.inf)
        self.rough = pad(features.to(torch.bfloat16), (0, 0, 0, padding))
        self.largest_norm = float(features.norm(dim=1).max())
        self.largest_error = float((features - self.rough[: len(features)].float()).norm(dim=1).max())

    def nearest(self, queries: Float[Tensor, "queries dim"], k: int) -> tuple[Array, Array, Array]:
        """Neighbours of every query, [B, k], where they exist, and the rows that had too many candidates."""
        rows = queries.shape[0]
        indices, mask = np.empty((rows, k), np.int64), np.empty((rows, k), np.bool_)
        given_up = np.zeros(rows, np.bool_)
        tile = min(max(MAX_PRODUCTS // max(1, min(rows, MAX_ROWS)), MIN_TILE), MAX_TILE)

        def search(start: int, stop: int) -> None:
            for first in range(start, stop, MAX_ROWS):
                chunk = slice(first, min(first + MAX_ROWS, stop))
                given_up[chunk] = self._search(queries[chunk], tile, indices[chunk], mask[chunk])

        points, dim = self.features.shape
        # Fewer rows would not repay reading all points once more on another thread.
        over_rows(search, rows, points * (2e-10 + 1e-11 * dim) if rows >= 2 * MIN_ROWS else 0.0)
        return indices, mask, given_up

    def _search(self, queries: Tensor, tile: int, indices: Array, mask: Array) -> Array:
        rows, k = indices.shape
        rough = queries.to(torch.bfloat16)
        slack = self._slack(queries, rough).numpy()
        capacity = 4 * k + 128
        least, scores = np.full((rows, k), np.inf, np.float32), np.empty((rows, capacity), np.float32)
        positions, counts = np.empty((rows, capacity), np.int64), np.zeros(rows, np.int64)
        ceilings, largest = np.full(rows, np.inf, np.float32), 0.5 * self.largest_norm**2
        for offset in range(0, self.half_norms.shape[0], tile):
            norms = self.half_norms[offset : offset + tile].view(-1, GROUP, LANES).numpy()
            products = torch.mm(rough, self.rough[offset : offset + tile].T).float().view(rows, *norms.shape).numpy()
            compiled_screen.screen_rows(
                products, norms, offset, slack, OUTPUT_ROUNDING, largest, least, ceilings, scores, positions, counts
            )
        compiled_screen.rank_rows(
            queries.numpy(), self.features.numpy(), ceilings, scores, positions, counts, indices, mask
        )
        return counts < 0

    def _slack(self, queries: Tensor, rough: Tensor) -> Tensor:
        """Twice the largest error of a rough score before its product is rounded, [R].

        By Cauchy and Schwarz |z·x − z̃·x̃| ≤ ‖z − z̃‖ ‖x‖ + ‖z̃‖ ‖x − x̃‖; sums are taken in float32.
        """
        norms, errors = rough.float().norm(dim=1), (queries - rough.float()).norm(dim=1)
        factors = errors * self.largest_norm + norms * self.largest_error
        largest = norms * (self.largest_norm + self.largest_error) + 0.5 * self.largest_norm**2
        summing = (queries.shape[1] + 8) * torch.finfo(torch.float32).eps * largest
        slack: Tensor = 2.001 * (factors + summing)
        return slack


@cache
def half_precision_pays() -> bool:
    """Whether this processor multiplies faster in bfloat16 than in float32, by one measurement."""
    left, right = torch.ones(128, 64), torch.ones(2048, 64)
    rough_left, rough_right = left.to(torch.bfloat16), right.to(torch.bfloat16)
    plain = _fastest(lambda: torch.mm(left, right.T))
    return _fastest(lambda: torch.mm(rough_left, rough_right.T).float()) < 0.8 * plain


def _fastest(call: Callable[[], object]) -> float:
    call()
    durations = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return min(durations)

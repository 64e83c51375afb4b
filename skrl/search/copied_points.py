"""Indexes over copies of the support points, for libraries that know neither empty slots nor batches nor duplicates.

A :class:`CopiedIndex` holds one index per set of a batch; each is made by whoever calls, from finite, centred points.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from skrl.kernels.distances import median_point
from skrl.search.neighbors import NeighborIndex
from skrl.shapes import Bool, Float, Int, Tensor

IndexPoints = Callable[[Float[Tensor, "points dim"]], NeighborIndex]
"""Makes the index of one set of finite, centred points in float32, [M, d]."""


class CopiedIndex(NeighborIndex):
    """Copies of the support points in one index per batch element; slots that were empty stay so.

    Args:
        features: [*batch, M, d].
        half_norms: ½‖x‖², [*batch, M]; +∞ marks an empty slot.
        index_points: makes the index of one set of finite, centred points.
    """

    def __init__(
        self,
        features: Float[Tensor, "*batch points dim"],
        half_norms: Float[Tensor, "*batch points"] | None,
        index_points: IndexPoints,
    ) -> None:
        self.batch, (self.points, self.dim) = features.shape[:-2], features.shape[-2:]
        if half_norms is None:
            filled = features.new_ones(features.shape[:-1], dtype=torch.bool)
        else:
            filled = half_norms < float("inf")
        sets = self.batch.numel()
        parts = zip(features.reshape(sets, self.points, self.dim), filled.reshape(sets, self.points), strict=True)
        self.sets = [_FilledSlots(points, slots, index_points) for points, slots in parts]

    def nearest(
        self, queries: Float[Tensor, "*batch queries dim"], k: int
    ) -> tuple[Int[Tensor, "*batch queries k"], Bool[Tensor, "*batch queries k"]]:
        """See :class:`NeighborIndex`; a query that is not finite has no neighbours.

        Raises:
            ValueError: the queries' batch or width is not that of the points.
        """
        *batch, count, dim = queries.shape
        if (*batch, dim) != (*self.batch, self.dim):
            raise ValueError(
                f"queries have shape {tuple(queries.shape)}, but must be {[*self.batch, 'B', self.dim]} like the points"
            )
        shape = (len(self.sets), count, min(k, self.points))
        indices = torch.zeros(shape, dtype=torch.long, device=queries.device)
        mask = torch.zeros(shape, dtype=torch.bool, device=queries.device)
        rows = queries.detach().reshape(len(self.sets), count, dim)
        for s, points in enumerate(self.sets):
            found, exists = points.nearest(rows[s], k)
            indices[s, :, : found.shape[-1]], mask[s, :, : found.shape[-1]] = found, exists
        return indices.view(*batch, *shape[1:]), mask.view(*batch, *shape[1:])


class _FilledSlots(NeighborIndex):
    """One set, centred, in float32, without its empty slots and without rows whose norm is not finite there."""

    def __init__(self, features: Tensor, filled: Tensor, index_points: IndexPoints) -> None:
        precise = features.to(torch.promote_types(features.dtype, torch.float32))
        filled = filled & precise.float().square().sum(-1).isfinite()
        points = precise[filled]
        # A mean would follow one far point, and float32 would lose the digits that tell all others apart. NaN without
        # points: then no query is finite.
        self.centre = median_point(points).squeeze(0) if len(points) else points.new_full(points.shape[1:], torch.nan)
        self.slots = filled.nonzero().squeeze(-1)
        self.index = index_points((points - self.centre).float())

    def nearest(
        self, queries: Float[Tensor, "queries dim"], k: int
    ) -> tuple[Int[Tensor, "queries k"], Bool[Tensor, "queries k"]]:
        """See :class:`NeighborIndex`."""
        centred = (queries.to(self.centre.dtype) - self.centre).float()
        finite = centred.isfinite().all(-1, keepdim=True)
        indices, mask = self.index.nearest(torch.where(finite, centred, 0.0), k)
        mask = mask & finite
        slots = self.slots[indices] if len(self.slots) else indices
        return torch.where(mask, slots, 0), mask


class SharedPlaces(NeighborIndex):
    """Points of which some coincide: their distinct places are indexed, and all points of a place handed out together.

    A graph of neighbours falls apart among duplicates: with 10,000 points on 100 places, FAISS's missed a third of the
    true ones.

    Args:
        places: index of the distinct places, [P, d].
        place_of_point: the place of each point, [M].
        counts: points of each place, [P].
    """

    def __init__(self, places: NeighborIndex, place_of_point: Tensor, counts: Tensor) -> None:
        self.places, self.counts = places, counts
        self.points = place_of_point.argsort(stable=True)  # those of one place behind each other
        self.starts = counts.cumsum(0) - counts

    def nearest(
        self, queries: Float[Tensor, "queries dim"], k: int
    ) -> tuple[Int[Tensor, "queries k"], Bool[Tensor, "queries k"]]:
        """See :class:`NeighborIndex`."""
        places, exist = self.places.nearest(queries, k)
        counts = torch.where(exist, self.counts[places], 0)
        ends = counts.cumsum(-1)
        columns = torch.arange(min(k, len(self.points)), device=queries.device).repeat(len(queries), 1)
        rank = torch.searchsorted(ends, columns, right=True)
        mask = rank < ends.shape[-1]
        rank = rank.clamp(max=ends.shape[-1] - 1)
        at = self.starts[places.gather(-1, rank)] + columns - (ends - counts).gather(-1, rank)
        return self.points[torch.where(mask, at, 0)], mask

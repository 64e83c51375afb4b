"""Nearest-neighbour search over support points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from skrl.distances import cross_distances, ranking_scores
from skrl.shapes import Bool, Float, Int, Tensor

MAX_SCORES = 1 << 24
"""Scores that one chunk of queries may hold at once (64 MiB in float32), unless a single query needs more."""

GROUP_SIZE = 16
"""Strided columns that share one minimum in the first stage of the selection."""


class Neighbors(NamedTuple):
    """The k nearest support points of each query, nearest first up to rounding.

    Attributes:
        indices: positions in the support set, [*batch, B, k]; 0 where the mask is false, so any gather is legal.
        distances: Euclidean distances, [*batch, B, k]; differentiable in queries and features, 0 where masked.
        mask: true where a neighbour exists, [*batch, B, k]; a set with fewer than k points leaves the rest false.
    """

    indices: Int[Tensor, "*batch neighbors"]
    distances: Float[Tensor, "*batch neighbors"]
    mask: Bool[Tensor, "*batch neighbors"]


class NeighborSearch(ABC):
    """Finds neighbours; subclasses decide how."""

    @abstractmethod
    def __call__(
        self,
        queries: Float[Tensor, "*batch queries dim"],
        features: Float[Tensor, "*batch points dim"],
        k: int,
        half_norms: Float[Tensor, "*batch points"] | None = None,
    ) -> Neighbors:
        """The min(k, M) nearest features of each query.

        Args:
            queries: [*batch, B, d].
            features: [*batch, M, d].
            k: neighbours per query.
            half_norms: ½‖x‖² of the features, [*batch, M], when the caller keeps them; +∞ marks an empty slot.

        Returns:
            Neighbours of each query; gradients flow through the distances.
        """


class ExactSearch(NeighborSearch):
    """Exhaustive search by one matrix product and a two-stage selection, chunked over the queries.

    Without ``half_norms`` the features are centred first: far from the origin the product would lose its digits.
    """

    def __call__(
        self,
        queries: Float[Tensor, "*batch queries dim"],
        features: Float[Tensor, "*batch points dim"],
        k: int,
        half_norms: Float[Tensor, "*batch points"] | None = None,
    ) -> Neighbors:
        """See :class:`NeighborSearch`."""
        with torch.no_grad():
            centred_queries, centred = queries, features
            if half_norms is None:
                centre = features.mean(-2, keepdim=True) if features.shape[-2] else features.new_zeros(())
                centred_queries, centred = queries - centre, features - centre
                half_norms = 0.5 * centred.square().sum(-1)
            indices, mask = _search(centred_queries, centred, half_norms, min(k, features.shape[-2]))
        distances = cross_distances(queries, gather_points(features, indices))
        return Neighbors(indices, torch.where(mask, distances, 0.0), mask)


def gather_points(
    values: Float[Tensor, "*batch points width"], indices: Int[Tensor, "*batch queries neighbors"]
) -> Float[Tensor, "*batch queries neighbors width"]:
    """Rows of ``values`` per query: [*batch, M, w] and [*batch, B, k] give [*batch, B, k, w]."""
    width = values.shape[-1]
    if values.dim() == 2:
        return values[indices]
    flat = indices.flatten(-2).unsqueeze(-1)
    rows = values.gather(-2, flat.expand(*flat.shape[:-1], width))
    return rows.reshape(*indices.shape, width)


def smallest(
    scores: Float[Tensor, "*batch points"], k: int
) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """The k smallest entries of every row and their positions, exact, ascending.

    Two stages: the row is viewed as ``GROUP_SIZE`` strided columns and the minimum of every group is taken; the k
    smallest entries lie in the k groups with the smallest minima, so one selection among the minima and one among the
    k · ``GROUP_SIZE`` members suffice.

    Args:
        scores: [*batch, M] with M ≥ k.
        k: entries per row.

    Returns:
        Values and positions, [*batch, k] each.
    """
    points = scores.shape[-1]
    groups = points // GROUP_SIZE
    if groups < 2 * k or groups == 0:
        values, positions = torch.topk(scores, k, dim=-1, largest=False, sorted=True)
        return values, positions
    body = groups * GROUP_SIZE
    columns = scores[..., :body].reshape(*scores.shape[:-1], GROUP_SIZE, groups)
    nearest_groups = torch.topk(columns.amin(-2), k, dim=-1, largest=False, sorted=False).indices
    offsets = torch.arange(0, body, groups, device=scores.device)
    members = (nearest_groups.unsqueeze(-1) + offsets).flatten(-2)
    candidates = scores.gather(-1, members)
    if body < points:
        rest = torch.arange(body, points, device=scores.device).expand(*scores.shape[:-1], points - body)
        members = torch.cat([members, rest], dim=-1)
        candidates = torch.cat([candidates, scores[..., body:]], dim=-1)
    values, winners = torch.topk(candidates, k, dim=-1, largest=False, sorted=True)
    return values, members.gather(-1, winners)


def _search(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and mask of the k best scores, a chunk of queries at a time."""
    count, points = queries.shape[-2], features.shape[-2]
    batch = queries.shape[:-2].numel()
    rows = max(1, MAX_SCORES // max(1, batch * points))
    if count <= rows:
        return _search_chunk(queries, features, half_norms, k)
    parts = [_search_chunk(chunk, features, half_norms, k) for chunk in torch.split(queries, rows, dim=-2)]
    return torch.cat([indices for indices, _ in parts], dim=-2), torch.cat([mask for _, mask in parts], dim=-2)


def _search_chunk(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, indices = smallest(ranking_scores(queries, features, half_norms), k)
    mask = scores != float("inf")
    return torch.where(mask, indices, 0), mask

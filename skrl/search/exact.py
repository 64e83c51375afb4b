"""Exact nearest-neighbour search: exhaustive, by the shortest way for the shape of the problem."""

from __future__ import annotations

import math

import numpy as np
import torch

from skrl.compiling import Array, compiles, over_rows
from skrl.kernels.distances import centred_points, ranking_scores
from skrl.modes import full_precision, precise, traced
from skrl.search import compiled_search
from skrl.search.neighbors import NeighborIndex, NeighborSearch
from skrl.search.screening import MIN_DIM, MIN_POINTS, Screen, half_precision_pays
from skrl.shapes import Bool, Float, Int, Tensor

MAX_SCORES = 1 << 24
"""Scores that one chunk of queries may hold at once (64 MiB in float32), unless a single query needs more."""

MAX_DEVICE_SCORES = 1 << 26
"""The same on a GPU (256 MiB), whose products are slow where a chunk has few queries: 256 of
them among 10⁶ points took 6.3 ms in chunks of 2²⁴ scores, 3.7 ms in these and 2.7 ms in one (H100)."""

MAX_COMPILED_SCORES = 1 << 20
"""The same on a CPU: small enough to stay in a cache between the product and the selection."""

GROUP_SIZE = 16
"""Strided columns that share one minimum in the first stage of the selection."""


class ExactIndex(NeighborIndex):
    """Support points, centred, with their half-norms.

    Args:
        features: [*batch, M, d]; a point that is not finite, or whose norm is not, counts as an empty slot.
        half_norms: ½‖x‖² of features that the caller centred, [*batch, M]; +∞ marks an empty slot. When left out the
            features are centred here: far from the origin the product would lose its digits. Half precision is computed
            with in float32.
    """

    def __init__(
        self,
        features: Float[Tensor, "*batch points dim"],
        half_norms: Float[Tensor, "*batch points"] | None = None,
    ) -> None:
        # Distances in half precision overflow, and lose the digits that tell neighbours apart.
        features, half_norms = precise(features), None if half_norms is None else precise(half_norms)
        self.centre: Tensor | None = None
        if half_norms is None:
            features, self.centre, half_norms = centred_points(features)
        self.features, self.half_norms = features, half_norms
        self._tiles: tuple[Tensor, Tensor] | None = None
        self._screen: Screen | None = None

    def nearest(
        self, queries: Float[Tensor, "*batch queries dim"], k: int
    ) -> tuple[Int[Tensor, "*batch queries k"], Bool[Tensor, "*batch queries k"]]:
        """See :class:`NeighborIndex`."""
        queries = queries.to(self.features.dtype)
        centred = queries if self.centre is None else queries - self.centre
        with full_precision(queries.device.type):
            indices, mask = self._nearest(centred, min(k, self.features.shape[-2]))
        # An infinite query has scores of minus infinity as well, which are the smallest.
        finite = queries.isfinite().all(-1, keepdim=True)
        return torch.where(finite, indices, 0), mask & finite

    def _nearest(self, centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not compiles(centred, self.features, self.half_norms):
            return _search(centred, self.features, self.half_norms, k)
        if self.features.dim() == 2:
            if self.is_tiled:
                return self._search_tiles(centred, k)
            if self._screens(centred, k):
                return self._search_screened(centred, k)
        return _compiled_search(centred, self.features, self.half_norms, k)

    @property
    def is_tiled(self) -> bool:
        """Whether the compiled search reads tiles: few dimensions and one set."""
        return self.features.dim() == 2 and self.features.shape[-1] <= compiled_search.MAX_DIM

    def tiles(self) -> tuple[Tensor, Tensor]:
        """Coordinates and half-norms in tiles for :func:`skrl.search.compiled_search.search_rows`."""
        if self._tiles is None:
            self._tiles = _tiles(self.features, self.half_norms)
        return self._tiles

    def _screens(self, queries: Tensor, k: int) -> bool:
        points, dim = self.features.shape
        large = points >= max(MIN_POINTS, 16 * k) and dim >= MIN_DIM and len(queries) > 1
        return large and queries.dtype == torch.float32 and half_precision_pays()

    def _search_screened(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._screen is None:
            self._screen = Screen(self.features, self.half_norms)
        found, present, given_up = self._screen.nearest(queries, k)
        indices, mask = torch.from_numpy(found), torch.from_numpy(present)
        if given_up.any():
            rows = torch.from_numpy(given_up)
            indices[rows], mask[rows] = _compiled_search(queries[rows], self.features, self.half_norms, k)
        return indices, mask

    def _search_tiles(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        columns, half_norms = self.tiles()
        rows, points = queries.shape[0], self.features.shape[0]
        padded = torch.nn.functional.pad(queries, (0, columns.shape[2] - queries.shape[1])).contiguous().numpy()
        indices, mask = np.empty((rows, k), np.int64), np.empty((rows, k), np.bool_)
        if k:
            over_rows(
                lambda start, stop: compiled_search.search_rows(
                    padded, columns.numpy(), half_norms.numpy(), start, stop, indices, mask
                ),
                rows,
                1e-7 * k + 2e-10 * points,
            )
        return torch.from_numpy(indices), torch.from_numpy(mask)


class ExactSearch(NeighborSearch):
    """Exhaustive search by one matrix product and a two-stage selection, chunked over the queries."""

    def index(
        self, features: Float[Tensor, "*batch points dim"], half_norms: Float[Tensor, "*batch points"] | None = None
    ) -> ExactIndex:
        """See :class:`NeighborSearch`."""
        return ExactIndex(features, half_norms)


def as_search(search: object) -> NeighborSearch:
    """A search as it is given, exact search where none is.

    Raises:
        TypeError: it is no search.
    """
    if search is None:
        return ExactSearch()
    if not isinstance(search, NeighborSearch):
        raise TypeError(
            f"search is {search!r}, but must be a NeighborSearch, such as ExactSearch() or HnswSearch(), or None for "
            "the exact one"
        )
    return search


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


def _tiles(features: Tensor, half_norms: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [T, GROUP, D, lanes] and half-norms [T, GROUP, lanes] of points [M, d], padded, D being 4 or 8."""
    points, dim = features.shape
    group = compiled_search.GROUP
    lanes = min(compiled_search.MAX_LANES, group * max(1, math.ceil(points / group**2)))
    tiles = max(1, math.ceil(points / (group * lanes)))
    rest = tiles * group * lanes - points
    columns = torch.nn.functional.pad(features, (0, (4 if dim <= 4 else 8) - dim, 0, rest))
    columns = columns.view(tiles, group, lanes, -1).mT.contiguous()
    return columns, torch.nn.functional.pad(half_norms, (0, rest), value=torch.inf).view(tiles, group, lanes)


def _compiled_search(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and mask of the k best scores by a product and a compiled selection, a chunk of queries at a time."""
    batch, rows = queries.shape[:-2], queries.shape[-2]
    sets = batch.numel()
    queries, features = (values.reshape(sets, *values.shape[-2:]) for values in (queries, features))
    half_norms = half_norms.reshape(features.shape[:2])
    indices, mask = np.empty((sets, rows, k), np.int64), np.empty((sets, rows, k), np.bool_)
    chunk_rows = max(1, MAX_COMPILED_SCORES // max(1, half_norms.numel()))
    for offset in range(0, rows if k else 0, chunk_rows):
        chunk = queries[:, offset : offset + chunk_rows]
        scores = _scores(chunk, features, half_norms)
        over_rows(
            lambda start, stop, scores=scores, offset=offset: compiled_search.select_rows(  # type: ignore[misc]
                scores, offset, start, stop, indices, mask
            ),
            sets * chunk.shape[1],
            1e-7 * k + 1e-10 * features.shape[1],
        )
    shape = (*batch, rows, k)
    return torch.from_numpy(indices).view(shape), torch.from_numpy(mask).view(shape)


def inner_products(points: Array, queries: Array) -> Array:
    """Products [B, n] of points [n, d] with few queries [B, d], on all threads; torch multiplies a vector on one."""
    with np.errstate(invalid="ignore", over="ignore"):
        products: Array = np.dot(points, queries[0])[None] if len(queries) == 1 else np.dot(queries, points.T)
    return products


def _scores(queries: Tensor, features: Tensor, half_norms: Tensor) -> Array:
    if queries.shape[:2] == (1, 1):
        products = inner_products(features[0].numpy(), queries[0].numpy())
        with np.errstate(invalid="ignore"):
            scores: Array = (half_norms.numpy() - products)[None]
        return scores
    return ranking_scores(queries, features, half_norms).numpy()


def _search(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and mask of the k best scores, a chunk of queries at a time."""
    count, points = queries.shape[-2], features.shape[-2]
    batch = queries.shape[:-2].numel()
    rows = max(1, (MAX_DEVICE_SCORES if queries.is_cuda else MAX_SCORES) // max(1, batch * points))
    if traced() or count <= rows:
        return _search_chunk(queries, features, half_norms, k)
    parts = [_search_chunk(chunk, features, half_norms, k) for chunk in torch.split(queries, rows, dim=-2)]
    return torch.cat([indices for indices, _ in parts], dim=-2), torch.cat([mask for _, mask in parts], dim=-2)


def _search_chunk(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, indices = smallest(ranking_scores(queries, features, half_norms), k)
    # Neither an empty slot nor, for a query that is not finite, NaN.
    mask = scores < float("inf")
    return torch.where(mask, indices, 0), mask

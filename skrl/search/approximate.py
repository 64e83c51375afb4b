"""Approximate nearest-neighbour search through FAISS, for supports too many to compare one by one.

Two ways to look at few points per query, behind the interface of exact search. **Inverted lists** (:class:`IvfSearch`)
sort the points into cells once and read the cells nearest to a query. A **graph** (:class:`HnswSearch`; Y. A. Malkov
and D. A. Yashunin, *Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs*, 2018, arXiv 1603.09320) links every point to near and far ones and walks towards the query.

Both pay a build for every set of points, so make an index once, ``search.index(features)``, and ask it often; calling
the search itself builds anew each time. FAISS computes on the CPU in float32 with as many threads as torch has: points
and queries on an accelerator travel there and the answer travels back. The same points give the same index.

When to take which (:func:`choose_search`), from ``benchmarks/results/search.md``: one thread, k = 32, batches of 128
queries, points in 64 clumps on a four-dimensional sheet, and Gaussian noise, which has no structure to exploit.

- Up to 10,000 points the searches differ by a few milliseconds a batch, which no build is sure to earn back.
- From 30,000 points of 8 features, inverted lists find at least 98 % of the neighbours in both data and earn their
  build back within 6 to 26 batches: at 100,000 points 0.35 s, then 4 ms a batch against 18 to 61 ms of exact search.
- With more features the share that lists find hangs on the data: all in clumps, but at 100,000 points 75 % in
  16-dimensional noise and 30 % in 64-dimensional. A graph finds 98 % and 69 % there, but takes 6 to 19 s to build,
  which 90 to 440 batches earn back; at 30,000 points it takes 190 at least. For known clumps take lists at any width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from skrl.search.copied_points import CopiedIndex, SharedPlaces
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import NeighborIndex, NeighborSearch
from skrl.shapes import Bool, Float, Int, Tensor

try:
    import faiss

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

POINTS_PER_LIST = 39
"""Fewer points per inverted list than this are too few to place its centre, by FAISS's own reckoning."""

WIDEST_FOR_LISTS = 8
"""Features up to which inverted lists find nearly every neighbour, whatever the data."""

FEWEST_FOR_LISTS = 30_000
"""Points from which inverted lists earn their build back."""

FEWEST_FOR_GRAPH = 100_000
"""Points from which a graph earns its build back."""

Array = npt.NDArray[Any]


class ApproximateSearch(NeighborSearch):
    """Search that may miss a neighbour; holds settings only, so it copies and pickles, while indexes live outside."""

    def index(
        self, features: Float[Tensor, "*batch points dim"], half_norms: Float[Tensor, "*batch points"] | None = None
    ) -> CopiedIndex:
        """Copy the points, centred, into one FAISS index per batch element.

        Args:
            features: [*batch, M, d]; a row whose squared norm is not finite in float32 is never returned.
            half_norms: see :class:`NeighborSearch`; only the mark of an empty slot, +∞, is read.

        Raises:
            ImportError: FAISS is not installed.
        """
        _require_faiss()
        return CopiedIndex(features.detach(), half_norms, self._index_points)

    def _index_points(self, points: Tensor) -> NeighborIndex:
        """Index centred, finite points, [M, d] in float32; exactly where leaving some out would save nothing."""
        if not self._saves_work(len(points)):
            return ExactSearch().index(points, 0.5 * points.square().sum(-1))
        places, place_of_point, counts = torch.unique(points, dim=0, return_inverse=True, return_counts=True)
        if len(places) == len(points):
            return self._index_places(points.cpu().numpy())
        return SharedPlaces(self._index_points(places), place_of_point, counts)

    @abstractmethod
    def _saves_work(self, points: int) -> bool:
        """Whether a query would look at fewer points than there are."""

    @abstractmethod
    def _index_places(self, places: Array) -> _FaissIndex:
        """Index distinct points, [M, d]."""


@dataclass(frozen=True)
class HnswSearch(ApproximateSearch):
    """A graph of points: slow to build, quick to ask, the better of the two when neighbours lie in many dimensions.

    It is built by one thread, since several would link the points in an order that differs from run to run.

    Args:
        links: links per point (FAISS's M); more of them find more neighbours and take more memory, 8 · links bytes a
            point.
        ef_search: candidates that the walk of a query keeps, never fewer than k; more of them are slower and miss less.
        ef_construction: candidates kept while a point is linked; more of them build slower and miss less.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: a setting is too small.
    """

    links: int = 32
    ef_search: int = 64
    ef_construction: int = 100

    def __post_init__(self) -> None:
        _require_faiss()
        _at_least(2, links=self.links)  # with one link FAISS divides by log 1
        _at_least(1, ef_search=self.ef_search, ef_construction=self.ef_construction)

    def _saves_work(self, points: int) -> bool:
        return points > self.ef_search

    def _index_places(self, places: Array) -> _FaissIndex:
        graph = faiss.IndexHNSWFlat(places.shape[1], self.links)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = self.ef_construction, self.ef_search
        with _threads(1):
            graph.add(places)
        return _FaissIndex(graph, lambda queries, k: graph.storage.search(queries, k)[1])


@dataclass(frozen=True)
class IvfSearch(ApproximateSearch):
    """Inverted lists: quick to build, the better of the two when points change often or lie in clumps.

    Args:
        lists: cells that the points are sorted into (FAISS's nlist); 4·√M when left out, and never so many that fewer
            than ``POINTS_PER_LIST`` points fall to each.
        probes: cells that a query reads (FAISS's nprobe); more of them are slower and miss less. Where it reaches the
            number of cells, search is exact.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: a setting is not positive.
    """

    lists: int | None = None
    probes: int = 32

    def __post_init__(self) -> None:
        _require_faiss()
        _at_least(1, lists=1 if self.lists is None else self.lists, probes=self.probes)

    def _saves_work(self, points: int) -> bool:
        return self.probes < self._lists(points)

    def _lists(self, points: int) -> int:
        return min(int(4 * points**0.5) if self.lists is None else self.lists, points // POINTS_PER_LIST)

    def _index_places(self, places: Array) -> _FaissIndex:
        points, dim = places.shape
        lists = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, self._lists(points))
        lists.nprobe = self.probes
        with _threads(torch.get_num_threads()):
            lists.train(places)
            lists.add(places)
        every_list = faiss.SearchParametersIVF()
        every_list.nprobe = lists.nlist
        return _FaissIndex(lists, lambda queries, k: lists.search(queries, k, params=every_list)[1])


def choose_search(points: int, dim: int, approximate: bool = False) -> NeighborSearch:
    """The search that is worth its build when one index answers a few hundred batches of queries.

    Args:
        points: M, support points.
        dim: d, width of the features.
        approximate: whether a missed neighbour is acceptable; if not, search is exact at any size.

    Raises:
        ImportError: approximate search is wanted and worth it, and FAISS is not installed.
    """
    narrow = dim <= WIDEST_FOR_LISTS
    if not approximate or points < (FEWEST_FOR_LISTS if narrow else FEWEST_FOR_GRAPH):
        return ExactSearch()
    return IvfSearch() if narrow else HnswSearch()


class _FaissIndex(NeighborIndex):
    """One FAISS index; a query that its short cut leaves with fewer than k neighbours is searched exhaustively.

    Args:
        index: over all points.
        exhaustive: positions of the k nearest of all points, for queries [B, d].
    """

    def __init__(self, index: faiss.Index, exhaustive: Callable[[Array, int], Array]) -> None:
        self.index, self.exhaustive = index, exhaustive

    def nearest(
        self, queries: Float[Tensor, "queries dim"], k: int
    ) -> tuple[Int[Tensor, "queries k"], Bool[Tensor, "queries k"]]:
        """See :class:`NeighborIndex`."""
        rows, k = queries.cpu().numpy(), min(k, self.index.ntotal)
        with _threads(torch.get_num_threads()):
            positions = self.index.search(rows, k)[1]
            short = (positions < 0).any(1)
            if short.any():
                positions[short] = self.exhaustive(rows[short], k)
        indices = torch.from_numpy(positions).to(queries.device)
        return indices.clamp(min=0), indices >= 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let FAISS compute with so many threads: by itself it would take every core, beside those of torch."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _require_faiss() -> None:
    if not AVAILABLE:
        raise ImportError('approximate search needs FAISS: run pip install -e ".[faiss]", or take ExactSearch')


def _at_least(limit: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < limit:
            raise ValueError(f"{name} is {value}, but must be at least {limit}")

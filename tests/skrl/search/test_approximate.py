"""What FAISS adds to the laws of every search, which are in ``tests/contracts``."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import skrl.search.approximate as approximate_search
from skrl import SparseKernel
from skrl.kernels.distances import median_point
from skrl.search.approximate import (
    FEWEST_FOR_GRAPH,
    FEWEST_FOR_LISTS,
    WIDEST_FOR_LISTS,
    ApproximateSearch,
    HnswSearch,
    IvfSearch,
    choose_search,
)
from skrl.search.copied_points import SharedPlaces
from skrl.search.exact import ExactIndex, ExactSearch
from skrl.search.neighbors import local_neighbors

if approximate_search.AVAILABLE:
    import faiss

needs_faiss = pytest.mark.skipif(not approximate_search.AVAILABLE, reason="FAISS is not installed")
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=[HnswSearch, IvfSearch], ids=["hnsw", "ivf"])
def search(request: pytest.FixtureRequest) -> ApproximateSearch:
    if not approximate_search.AVAILABLE:
        pytest.skip("FAISS is not installed")
    return request.param()


def exact_distances(queries: Tensor, features: Tensor, k: int) -> Tensor:
    every = torch.cdist(queries.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return torch.topk(every, k, largest=False).values


def part(search: ApproximateSearch, features: Tensor) -> Any:
    """The index behind the one set."""
    (points,) = search.index(features).sets
    return points.index


def test_many_points_reach_faiss_and_few_do_not(search: ApproximateSearch) -> None:
    kinds = {HnswSearch: "IndexHNSWFlat", IvfSearch: "IndexIVFFlat"}
    assert type(part(search, torch.randn(2000, 3)).index).__name__ == kinds[type(search)]
    assert isinstance(part(search, torch.randn(50, 3)), ExactIndex)


def test_an_index_records_no_gradient(search: ApproximateSearch) -> None:
    queries, features = torch.randn(4, 3), torch.randn(2000, 3)
    expected = search.index(features).nearest(queries, 5)[0]
    indices, _ = search.index(features.requires_grad_()).nearest(queries.requires_grad_(), 5)
    assert torch.equal(indices, expected)


@needs_faiss
def test_reading_every_list_is_left_to_exact_search() -> None:
    features = torch.randn(1000, 3)
    assert isinstance(part(IvfSearch(lists=10, probes=10), features), ExactIndex)
    assert not isinstance(part(IvfSearch(lists=10, probes=9), features), ExactIndex)


@needs_faiss
def test_settings_reach_faiss() -> None:
    graph = part(HnswSearch(links=7, ef_search=11, ef_construction=13), torch.randn(100, 3)).index
    assert (graph.hnsw.nb_neighbors(0), graph.hnsw.nb_neighbors(1)) == (14, 7)
    assert (graph.hnsw.efSearch, graph.hnsw.efConstruction) == (11, 13)
    lists = part(IvfSearch(lists=9, probes=4), torch.randn(1000, 3)).index
    assert (lists.nlist, lists.nprobe) == (9, 4)


@needs_faiss
@pytest.mark.parametrize(
    ("points", "lists", "expected"), [(2000, None, 51), (2000, 500, 51), (2000, 40, 40), (10_000, None, 256)]
)
def test_lists_are_never_short_of_points(points: int, lists: int | None, expected: int) -> None:
    assert part(IvfSearch(lists), torch.randn(points, 2)).index.nlist == expected


@needs_faiss
def test_default_lists_are_four_times_the_square_root() -> None:
    assert IvfSearch()._lists(1_000_000) == 4000


@pytest.mark.parametrize("points", [0, 1, 10, 80, 1300, 3000])
def test_it_is_silent(search: ApproximateSearch, points: int, capfd: pytest.CaptureFixture[str]) -> None:
    for chosen in (search, IvfSearch(lists=1000, probes=1)):
        chosen(torch.randn(4, 2), torch.randn(points, 2), 100)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("points", range(41))
def test_small_sets_with_duplicates(search: ApproximateSearch, points: int) -> None:
    queries, features = torch.randn(6, 2), torch.randint(0, 3, (points, 2)).float()
    neighbors = search(queries, features, 7)
    expected = exact_distances(queries, features, min(7, points))
    assert neighbors.mask.all()
    assert (neighbors.indices.sort(-1).values.diff() > 0).all()
    torch.testing.assert_close(neighbors.distances.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("places", [1, 3, 70, 1600])
def test_many_points_on_few_places(search: ApproximateSearch, places: int) -> None:
    queries = torch.randn(40, 4)
    features = torch.randn(places, 4)[torch.arange(4000) % places]
    assert isinstance(part(search, features), SharedPlaces)
    neighbors = search(queries, features, 20)
    assert neighbors.mask.all()
    assert (neighbors.indices.sort(-1).values.diff() > 0).all()
    right = neighbors.distances <= exact_distances(queries, features, 20)[:, -1:] * (1 + 1e-5)
    assert right.float().mean() >= 0.95


def test_empty_slots_and_broken_rows_among_many(search: ApproximateSearch) -> None:
    """They lie nearest to every query, and nothing else may be missed for them."""
    queries, features = 0.1 * torch.randn(2, 30, 3), torch.randn(2, 2500, 3)
    slots = torch.rand(2, 2500) < 0.2
    features[slots] = 0.0
    half_norms = torch.where(slots, INF, 0.5 * features.square().sum(-1))
    broken = torch.rand(2, 2500) < 0.1
    features[broken] = torch.tensor([NAN, 0.0, INF])
    neighbors = search(queries, features, 12, half_norms)
    absent = slots | broken
    assert neighbors.mask.all()
    assert not absent.gather(1, neighbors.indices.flatten(1)).any()
    for s in range(2):
        expected = exact_distances(queries[s], features[s][~absent[s]], 12)
        assert (neighbors.distances[s] <= expected[:, -1:] * (1 + 1e-5)).float().mean() >= 0.95


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_query_that_is_not_finite(search: ApproximateSearch, bad: float) -> None:
    queries, features = torch.randn(3, 2), torch.randn(2000, 2)
    whole = search.index(features).nearest(queries, 4)
    queries[1, 0] = bad
    indices, mask = search.index(features).nearest(queries, 4)
    assert mask.all(-1).tolist() == [True, False, True]
    assert not mask[1].any()
    assert torch.equal(indices[::2], whole[0][::2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(search: ApproximateSearch, dtype: torch.dtype) -> None:
    queries, features = torch.randn(5, 3).to(dtype), torch.randn(2000, 3).to(dtype)
    indices, mask = search.index(features).nearest(queries, 6)
    assert mask.all()
    found = (features[indices].double() - queries.double().unsqueeze(1)).norm(dim=-1)
    assert (found <= exact_distances(queries, features, 6)[:, -1:] * (1 + 1e-4)).float().mean() >= 0.95


def test_far_from_the_origin(search: ApproximateSearch) -> None:
    queries, features = 1e4 + torch.randn(40, 3), 1e4 + torch.randn(2000, 3)
    found = search(queries, features, 8).distances
    assert (found <= exact_distances(queries, features, 8)[:, -1:] * (1 + 1e-4)).float().mean() >= 0.95


@needs_faiss
def test_a_query_whose_lists_are_short_reads_them_all() -> None:
    """One list of twenty holds far fewer than 200 points."""
    queries, features = torch.randn(10, 3), torch.randn(1000, 3)
    neighbors = IvfSearch(lists=20, probes=1)(queries, features, 200)
    assert neighbors.mask.all()
    torch.testing.assert_close(
        neighbors.distances.double(), exact_distances(queries, features, 200), rtol=1e-4, atol=1e-5
    )


def test_the_exhaustive_search_is_exact(search: ApproximateSearch) -> None:
    queries, features = torch.randn(10, 3), torch.randn(2000, 3)
    features -= median_point(features)  # as the index does, so that its points are these
    positions = torch.from_numpy(part(search, features).exhaustive(queries.numpy(), 9))
    found = (features[positions] - queries.unsqueeze(1)).norm(dim=-1).double()
    torch.testing.assert_close(found, exact_distances(queries, features, 9), rtol=1e-4, atol=1e-5)


def index_that_misses(threads: list[int]) -> Any:
    """Five points, of which every query but the first misses one; notes FAISS's threads."""

    def search(queries: np.ndarray, k: int) -> tuple[None, np.ndarray]:
        threads.append(faiss.omp_get_max_threads())
        positions = np.tile(np.arange(k), (len(queries), 1))
        positions[1:, -1] = -1
        return None, positions

    index = faiss.IndexFlatL2(1)
    index.add(np.zeros((5, 1), np.float32))
    index.search = search
    return index


@needs_faiss
def test_padding() -> None:
    """FAISS writes −1 where it found nothing: such queries are searched again, and what is still missing is masked."""
    asked = []

    def exhaustive(queries: np.ndarray, k: int) -> np.ndarray:
        asked.append(queries.tolist())
        return np.array([[4, 3, 2], [1, -1, -1]])

    index = approximate_search._FaissIndex(index_that_misses([]), exhaustive)
    indices, mask = index.nearest(torch.tensor([[0.0], [1.0], [2.0]]), 3)
    assert asked == [[[1.0], [2.0]]]
    assert indices.tolist() == [[0, 1, 2], [4, 3, 2], [1, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert index.nearest(torch.zeros(1, 1), 9)[0].shape == (1, 5)


@pytest.fixture
def three_threads_of_faiss() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    yield
    faiss.omp_set_num_threads(before)


@needs_faiss
@pytest.mark.usefixtures("three_threads_of_faiss")
def test_faiss_takes_the_threads_of_torch_and_gives_its_own_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads: list[int] = []
    index = approximate_search._FaissIndex(index_that_misses(threads), lambda queries, k: np.zeros((len(queries), k)))
    index.nearest(torch.zeros(1, 1), 2)
    assert threads == [2]
    for search in (HnswSearch(), IvfSearch()):
        search.index(torch.randn(1500, 2))
    assert faiss.omp_get_max_threads() == 3
    with pytest.raises(ZeroDivisionError), approximate_search._threads(1):
        _ = 1 / 0
    assert faiss.omp_get_max_threads() == 3


def test_builds_are_alike_at_any_number_of_threads(search: ApproximateSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, features = torch.randn(200, 6), torch.randn(4000, 6)
    alone = search.index(features).nearest(queries, 10)
    assert torch.equal(search.index(features).nearest(queries, 10)[0], alone[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(search.index(features).nearest(queries, 10)[0], alone[0])


@needs_faiss
def test_a_graph_is_built_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    add = faiss.IndexHNSWFlat.add
    monkeypatch.setattr(
        faiss.IndexHNSWFlat, "add", lambda graph, x: (counts.append(faiss.omp_get_max_threads()), add(graph, x))
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    HnswSearch().index(torch.randn(100, 2))
    assert counts == [1]


def test_an_index_answers_with_a_radius(search: ApproximateSearch) -> None:
    queries, features = torch.randn(5, 2), torch.randn(2000, 2)
    neighbors, radius = local_neighbors(search.index(features), queries, features, 6, "continuous")
    expected = exact_distances(queries, features, 7)
    torch.testing.assert_close(neighbors.distances.double(), expected[:, :6], rtol=1e-5, atol=1e-6)
    assert radius is not None
    torch.testing.assert_close(radius.double(), expected[:, 6], rtol=1e-5, atol=1e-6)


def test_a_sparse_kernel_predicts_with_it(search: ApproximateSearch, tmp_path: Path) -> None:
    features, queries = torch.rand(2000, 2), torch.rand(50, 2)
    targets = torch.sin(4.0 * features[:, :1])
    kernel = SparseKernel(features, targets, k=16, search=search)
    exact = SparseKernel(features, targets, k=16)
    mean, variance = kernel.predict(queries)
    torch.testing.assert_close(mean, exact(queries), rtol=1e-3, atol=1e-3)
    assert (mean - torch.sin(4.0 * queries[:, :1])).abs().max() < 0.05
    torch.save(kernel, tmp_path / "kernel.pt")
    loaded = torch.load(tmp_path / "kernel.pt", weights_only=False)
    for twin in (loaded, copy.deepcopy(kernel)):
        assert twin.search == search
        assert torch.equal(twin.predict(queries).mean, mean)
        assert torch.equal(twin.predict(queries).variance, variance)


@needs_faiss
def test_settings_copy_pickle_and_print() -> None:
    for chosen in (HnswSearch(links=8), IvfSearch(lists=20, probes=3)):
        assert copy.deepcopy(chosen) == chosen == pickle.loads(pickle.dumps(chosen))
    assert repr(IvfSearch(20)) == "IvfSearch(lists=20, probes=32)"


@needs_faiss
@pytest.mark.parametrize(
    ("cls", "name", "value", "limit"),
    [
        (HnswSearch, "links", 1, 2),
        (HnswSearch, "ef_search", 0, 1),
        (HnswSearch, "ef_construction", -3, 1),
        (IvfSearch, "lists", 0, 1),
        (IvfSearch, "probes", 0, 1),
    ],
)
def test_settings_that_are_too_small(cls: type[ApproximateSearch], name: str, value: int, limit: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be at least {limit}"):
        cls(**{name: value})


@needs_faiss
def test_choice() -> None:
    narrow, wide = WIDEST_FOR_LISTS, WIDEST_FOR_LISTS + 1
    assert isinstance(choose_search(10 * FEWEST_FOR_GRAPH, narrow), ExactSearch)
    assert isinstance(choose_search(FEWEST_FOR_LISTS - 1, narrow, approximate=True), ExactSearch)
    assert isinstance(choose_search(FEWEST_FOR_LISTS, narrow, approximate=True), IvfSearch)
    assert isinstance(choose_search(FEWEST_FOR_GRAPH - 1, wide, approximate=True), ExactSearch)
    assert isinstance(choose_search(FEWEST_FOR_GRAPH, wide, approximate=True), HnswSearch)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module imports, and whoever wants FAISS is told how to get it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    spec = importlib.util.spec_from_file_location("without_faiss", approximate_search.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "without_faiss", module)
    spec.loader.exec_module(module)
    assert not module.AVAILABLE
    for cls in (module.HnswSearch, module.IvfSearch):
        with pytest.raises(ImportError, match=r'pip install -e "\.\[faiss\]"'):
            cls()
    assert isinstance(module.choose_search(1_000_000, 4), ExactSearch)


def test_a_search_that_outlived_faiss(search: ApproximateSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate_search, "AVAILABLE", False)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[faiss\]"'):
        search.index(torch.zeros(3, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_points_and_queries_on_an_accelerator(search: ApproximateSearch) -> None:
    queries, features = torch.randn(2, 20, 3), torch.randn(2, 2000, 3)
    features[:, 500:] = features[:, :1500]
    features[1, 40:] = features[1, 0]
    here = search.index(features).nearest(queries, 8)
    there = search.index(features.cuda()).nearest(queries.cuda(), 8)
    assert there[0].device.type == there[1].device.type == "cuda"
    assert torch.equal(there[1].cpu(), here[1])
    found = search(queries.cuda(), features.cuda(), 8).distances.cpu()
    torch.testing.assert_close(found, search(queries, features, 8).distances, rtol=1e-4, atol=1e-5)

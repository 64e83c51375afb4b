"""Compiled search against torch and brute force, also as the plain Python that it is without numba."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

from skrl import compiling
from skrl.search import compiled_search
from skrl.search.compiled_search import GROUP
from skrl.search.exact import _tiles

INF, NAN = float("inf"), float("nan")
needs_numba = pytest.mark.skipif(not compiling.AVAILABLE, reason="too slow without numba")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop as the plain Python function that is left without numba."""
    for name, function in inspect.getmembers(compiled_search, lambda member: hasattr(member, "py_func")):
        monkeypatch.setattr(compiled_search, name, function.py_func)


def check_selection(scores: Tensor, k: int) -> None:
    """The k smallest values below +∞, bit for bit as torch.topk's, at distinct positions that hold them."""
    values = scores.numpy()
    best, positions, groups_found = np.full(k, 7.0, values.dtype), np.full(k, 7), np.full(k, 7)
    scratch = np.full(len(scores) // GROUP, 7.0, values.dtype), np.full(k, 7.0, values.dtype), groups_found
    count = compiled_search.select(values, best, positions, *scratch)
    expected = torch.topk(scores.nan_to_num(INF, INF, -INF), k, largest=False).values
    assert count == int((expected < INF).sum())
    assert best[:count].tolist() == expected[:count].tolist()
    assert values[positions[:count]].tolist() == expected[:count].tolist()
    assert len(set(positions[:count].tolist())) == count


def shapes() -> list[tuple[int, int]]:
    """Points and k: fewer than two groups per neighbour, where one stage serves, just as many, and more."""
    edges = [(2 * k * GROUP + more, k) for k in (1, 3, 16, 31, 100) for more in (-1, 0, 1, GROUP - 1, GROUP)]
    return [(1, 1), (5, 5), (16, 3), (17, 17), (100, 100), (1003, 16), (5000, 32), *edges]


@needs_numba
@DTYPES
@pytest.mark.parametrize(("points", "k"), shapes())
def test_selection_equals_topk(points: int, k: int, dtype: torch.dtype) -> None:
    normal = torch.randn(points, dtype=dtype)
    check_selection(normal, k)
    check_selection(torch.randint(0, 3, (points,)).to(dtype), k)
    check_selection(torch.zeros(points, dtype=dtype), k)
    check_selection(normal.sort().values, k)
    check_selection(normal.sort(descending=True).values, k)
    for value in (INF, NAN, -INF):
        check_selection(normal.masked_fill(torch.rand(points) < 0.9, value), k)
        check_selection(normal.masked_fill(torch.rand(points) < 0.1, value), k)
        check_selection(torch.full((points,), value, dtype=dtype), k)


@needs_numba
@pytest.mark.parametrize("where", ["one group", "first strip", "rest"])
def test_neighbours_that_share_one_place_are_all_found(where: str) -> None:
    k, points = 16, 64 * GROUP + 9
    groups = points // GROUP
    positions = {
        "one group": torch.arange(k) * groups + 5,
        "first strip": torch.arange(k),
        "rest": torch.cat([torch.arange(9) + groups * GROUP, torch.arange(7)]),
    }[where]
    scores = torch.rand(points)
    scores[positions] -= 10.0
    check_selection(scores, k)


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize(("points", "k"), [(1, 1), (20, 3), (2 * 2 * GROUP + 3, 2)])
def test_selection_without_numba(points: int, k: int) -> None:
    for scores in (
        torch.randn(points),
        torch.zeros(points),
        torch.randn(points).masked_fill(torch.rand(points) < 0.5, NAN),
    ):
        check_selection(scores, k)


@needs_numba
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_of_selected_rows(threads: int) -> None:
    """Three chunks of two sets, each row written once, whoever does it, and no other row touched."""
    scores = torch.randn(2, 9, 200)
    scores[1, :, 3:] = INF
    indices, mask = np.full((2, 9, 5), -7), np.ones((2, 9, 5), np.bool_)
    for offset in (0, 4, 8):
        chunk = scores[:, offset : offset + 4].contiguous().numpy()
        rows = 2 * chunk.shape[1]
        for thread in range(threads):
            start, stop = rows * thread // threads, rows * (thread + 1) // threads
            compiled_search.select_rows(chunk, offset, start, stop, indices, mask)
        assert (indices[:, offset + 4 :] == -7).all()
    nearest = torch.topk(scores, 5, largest=False).indices
    assert indices[0].tolist() == nearest[0].tolist()
    assert indices[1, :, :3].tolist() == nearest[1, :, :3].tolist()
    assert (indices[1, :, 3:] == 0).all()
    assert mask[0].all()
    assert mask[1].tolist() == [[True, True, True, False, False]] * 9


def search(queries: Tensor, features: Tensor, half_norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The fused search as the index calls it, in two ranges of rows."""
    columns, tiled_norms = (values.numpy() for values in _tiles(features, half_norms))
    padded = torch.nn.functional.pad(queries, (0, columns.shape[2] - queries.shape[1])).numpy()
    indices, mask = np.full((len(queries), k), -7), np.zeros((len(queries), k), np.bool_)
    middle = len(queries) // 3
    for start, stop in ((middle, len(queries)), (0, middle)):
        compiled_search.search_rows(padded, columns, tiled_norms, start, stop, indices, mask)
    return torch.from_numpy(indices), torch.from_numpy(mask)


def check_search(queries: Tensor, features: Tensor, filled: Tensor, k: int) -> None:
    """Against all distances; coordinates are small integers, so that every score is exact and ties abound."""
    half_norms = torch.where(filled, 0.5 * features.square().sum(-1), INF)
    indices, mask = search(queries, features, half_norms, k)
    squares = (queries.unsqueeze(1) - features).square().sum(-1).masked_fill(~filled, INF)
    expected = torch.topk(squares, k, largest=False).values
    assert torch.equal(mask, expected < INF)
    assert torch.equal(torch.where(mask, squares.gather(1, indices), INF), expected)
    assert (indices[~mask] == 0).all()
    count = int(mask[0].sum())
    assert (indices[:, :count].sort(-1).values.diff() > 0).all()


@needs_numba
@DTYPES
@pytest.mark.parametrize("dim", range(1, 9))
@pytest.mark.parametrize(
    ("points", "k"), [(1, 1), (5, 5), (17, 4), (255, 3), (256, 8), (257, 100), (4096, 16), (4097, 31), (5000, 100)]
)
def test_fused_search_equals_brute_force(points: int, k: int, dim: int, dtype: torch.dtype) -> None:
    features = torch.randint(-9, 10, (points, dim)).to(dtype)
    queries = torch.cat([torch.randint(-9, 10, (6, dim)).to(dtype), features[-1:]])
    check_search(queries, features, torch.ones(points, dtype=torch.bool), k)
    check_search(queries, features, torch.rand(points) < 0.5, k)
    check_search(queries, features[:1].expand(points, dim).contiguous(), torch.rand(points) < 0.9, k)


@needs_numba
@pytest.mark.parametrize("dim", [2, 7])
def test_nothing_is_found_among_empty_slots_or_by_a_query_that_is_no_number(dim: int) -> None:
    features = torch.randn(300, dim)
    half_norms = 0.5 * features.square().sum(-1)
    queries = torch.zeros(5, dim)
    queries[1, 0], queries[3, dim - 1] = NAN, NAN
    indices, mask = search(queries, features, half_norms, 4)
    assert mask.all(-1).tolist() == [True, False, True, False, True]
    assert not mask[1].any()
    assert not mask[3].any()
    assert (indices[[1, 3]] == 0).all()
    _, mask = search(queries, features, torch.full((300,), INF), 4)
    assert not mask.any()


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize("dim", [1, 6])
def test_fused_search_without_numba(dim: int) -> None:
    features = torch.randint(-3, 4, (40, dim)).double()
    check_search(features[:3], features, torch.rand(40) < 0.7, 4)


@pytest.mark.usefixtures("_interpreted")
def test_selected_rows_without_numba() -> None:
    scores = torch.randn(1, 3, 70)
    indices, mask = np.zeros((1, 3, 2), np.int64), np.zeros((1, 3, 2), np.bool_)
    compiled_search.select_rows(scores.numpy(), 0, 0, 3, indices, mask)
    assert indices.tolist() == torch.topk(scores, 2, largest=False).indices.tolist()
    assert mask.all()


@pytest.mark.usefixtures("_interpreted")
def test_the_interpreted_loops_are_plain_functions() -> None:
    assert inspect.isfunction(compiled_search.select)
    assert inspect.isfunction(compiled_search.search_rows)

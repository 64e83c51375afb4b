"""Novelty selection against dense solves: who enters, who makes room, what that is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import Matern
from sklearn.neighbors import NearestNeighbors

from skrl.memory import SupportMemory
from skrl.memory.novelty import Novelty
from skrl.memory.subsets import p_greedy

LENGTHSCALE, RIDGE, THRESHOLD = 0.7, 1e-2, 0.05


def gram(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """κ of the default kernel, by scikit-learn."""
    return Matern(LENGTHSCALE, nu=1.5)(left, right)


def variance(query: np.ndarray, points: np.ndarray, k: int) -> float:
    """σ² of one query from its k nearest points, by a dense solve."""
    if not len(points):
        return 1.0
    nearest = NearestNeighbors(n_neighbors=min(k, len(points))).fit(points).kneighbors(query[None])[1][0]
    cross = gram(query[None], points[nearest])[0]
    block = gram(points[nearest], points[nearest]) + RIDGE * np.eye(len(nearest))
    return float(1.0 - cross @ np.linalg.solve(block, cross))


def information(points: np.ndarray) -> float:
    """log det(K + λI)."""
    return float(np.linalg.slogdet(gram(points, points) + RIDGE * np.eye(len(points)))[1])


def make(capacity: int, k: int = 16, dim: int = 2, **settings: float) -> Novelty:
    memory = SupportMemory(1, capacity, dim).double()
    settings = {"threshold": THRESHOLD, "lengthscale": LENGTHSCALE, "ridge": RIDGE, **settings}
    return Novelty(memory, k=k, **settings)


def insert(rule: Novelty, points: torch.Tensor) -> torch.Tensor:
    return rule.insert(points, points.sum(-1, keepdim=True))


def supports(rule: Novelty) -> np.ndarray:
    return rule.memory.features[rule.memory.mask].numpy().copy()


@pytest.mark.parametrize("k", [1, 4, 300])
def test_rows_enter_where_the_local_variance_exceeds_the_threshold(k: int) -> None:
    points, rule = torch.randn(150, 2, dtype=torch.float64), make(150, k)
    slots = insert(rule, points).tolist()
    kept: list[int] = []
    for row, point in enumerate(points.numpy()):
        enters = variance(point, points.numpy()[kept], k) > THRESHOLD
        assert (slots[row] >= 0) == enters
        if enters:
            kept.append(row)
    assert 20 < len(kept) < 140
    np.testing.assert_array_equal(supports(rule), points.numpy()[kept])


@pytest.mark.parametrize("capacity", [15, 400])
@pytest.mark.parametrize("k", [3, 16])
def test_every_two_supports_are_novel_to_each_other(capacity: int, k: int) -> None:
    rule = make(capacity, k)
    insert(rule, torch.randn(400, 2, dtype=torch.float64))
    stored = supports(rule)
    pairwise = 1.0 - np.square(gram(stored, stored)) / (1.0 + RIDGE)
    np.fill_diagonal(pairwise, 1.0)
    assert pairwise.min() > THRESHOLD
    assert (len(stored) == capacity) == (capacity == 15)


def test_a_full_memory_changes_only_where_its_information_grows() -> None:
    rule = make(12, k=12)
    exchanges = 0
    for point in torch.randn(300, 1, 2, dtype=torch.float64):
        before = supports(rule)
        slot = int(insert(rule, point))
        if len(before) < 12:
            continue
        after = supports(rule)
        assert (before != after).any(-1).nonzero()[0].tolist() == ([slot] if slot >= 0 else [])
        if slot >= 0:
            exchanges += 1
            assert information(after) > information(before)
    assert exchanges > 10


def test_the_most_redundant_makes_room() -> None:
    """1.3 lies between others; 1.32 tells less than 1.3 did, 20 more than any."""
    rule = make(5, dim=1, threshold=0.0)
    points = torch.tensor([[0.0], [1.0], [1.3], [2.0], [9.0]], dtype=torch.float64)
    assert insert(rule, points).tolist() == [0, 1, 2, 3, 4]
    assert information(np.array([[0.0], [1.0], [1.2], [2.0], [9.0]])) < information(points.numpy())
    assert insert(rule, points.new_tensor([[1.2]])).tolist() == [-1]
    assert insert(rule, points.new_tensor([[20.0]])).tolist() == [2]
    assert supports(rule).flatten().tolist() == [0.0, 1.0, 20.0, 2.0, 9.0]


def test_a_row_that_does_not_enter_changes_nothing_stored() -> None:
    rule = make(30)
    points = torch.randn(30, 2, dtype=torch.float64)
    insert(rule, points)
    before = {name: buffer.clone() for name, buffer in rule.memory.named_buffers()}
    known = rule.memory.features[0, :10] + 1e-3
    assert rule.insert(known, torch.full((10, 1), 99.0, dtype=torch.float64)).tolist() == [-1] * 10
    for name, buffer in before.items():
        assert torch.equal(rule.memory.get_buffer(name), buffer), name


@pytest.mark.parametrize("k", [16, 40])
def test_a_stream_keeps_about_as_much_information_as_p_greedy(k: int) -> None:
    """P-greedy sees all rows at once, the stream each row once."""
    points, rule = torch.randn(400, 2, dtype=torch.float64), make(40, k)
    insert(rule, points)
    batch = information(points[p_greedy(points, 40, "matern32", LENGTHSCALE, RIDGE)].numpy())
    uniform = information(points[:40].numpy())
    assert uniform < batch - 10.0
    assert information(supports(rule)) > batch - 0.1 * (batch - uniform)


def test_a_low_threshold_averages_the_noise_of_duplicates() -> None:
    """The variance on top of m duplicates is λ / (m + λ): 0.0244 on top of 4, 0.0196 on top of 5."""
    rule = make(20, ridge=0.1, threshold=0.02)
    assert (insert(rule, torch.ones(12, 2, dtype=torch.float64)) >= 0).tolist() == [True] * 5 + [False] * 7


def test_adopted_supports_are_measured_one_against_all_others() -> None:
    points = torch.randn(2, 20, 2, dtype=torch.float64)
    memory = SupportMemory(2, 20, 2).double()
    memory.write(points, torch.tensor([20, 7]))
    rule = Novelty(memory, lengthscale=LENGTHSCALE, ridge=RIDGE, k=20)
    for set_index, size in enumerate((20, 7)):
        block = gram(points[set_index, :size].numpy(), points[set_index, :size].numpy()) + RIDGE * np.eye(size)
        expected = 1.0 / np.diag(np.linalg.inv(block)) - RIDGE
        np.testing.assert_allclose(rule.bounds[set_index, :size].numpy(), expected, rtol=1e-8)
        assert (rule.bounds[set_index, size:] == torch.inf).all()
    rule.lengthscale.mul_(100.0)
    rule.adopt()
    assert rule.bounds[0].max() < 0.05


def test_bounds_around_a_newcomer_are_its_neighbours_variances() -> None:
    rule = make(12, k=12)
    slots = insert(rule, torch.randn(40, 2, dtype=torch.float64)[:12])
    stored = supports(rule)
    assert len(stored) == (slots >= 0).sum()
    exact = 1.0 / np.diag(np.linalg.inv(gram(stored, stored) + RIDGE * np.eye(len(stored)))) - RIDGE
    np.testing.assert_allclose(rule.bounds[0, : len(stored)].numpy(), exact, rtol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, r"threshold is 1.0, but must lie in \[0, 1.0\)"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"lengthscale": 0.0}, "lengthscale is 0.0"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"k": 0}, "k is 0"),
        ({"kernel": "polynomial"}, "needs a radial kernel"),
        ({"kernel": "matrn32"}, "did you mean 'matern32'"),
        ({"lengthscale": float("inf")}, "lengthscale is inf"),
        ({"ridge": float("nan")}, "ridge is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Novelty(SupportMemory(1, 4, 2), **settings)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_lengthscale_per_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lengthscale has shape \(2,\), but must be one number here; divide"):
        Novelty(SupportMemory(1, 4, 2), lengthscale=torch.ones(2))  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_shape_checks")
def test_a_fraction_of_a_neighbour_is_refused() -> None:
    with pytest.raises(TypeError, match=r"k is 2.5, but must be a whole number"):
        Novelty(SupportMemory(1, 4, 2), k=2.5)  # type: ignore[arg-type]

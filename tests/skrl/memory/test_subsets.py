"""Positions of a batch that become supports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skrl.kernels import KERNELS, Kernel, make_kernel
from skrl.memory.subsets import newest_and_uniform, newest_of_each, p_greedy


def choose(count: int, capacity: int, fraction: float, seed: int = 0) -> list[int]:
    """Chosen positions of candidates 100, 101, …, given oldest first."""
    generator = torch.Generator().manual_seed(seed)
    chosen = newest_and_uniform(100 + torch.arange(count), capacity, fraction, generator)
    return [int(candidate) - 100 for candidate in chosen]


@pytest.mark.parametrize(("count", "capacity"), [(0, 3), (1, 3), (3, 3)])
def test_few_candidates_are_all_chosen(count: int, capacity: int) -> None:
    assert choose(count, capacity, 0.5) == list(range(count))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("count", "capacity"), [(5, 4), (100, 40), (41, 40), (1000, 1)])
def test_choice_is_distinct_ordered_and_keeps_the_newest(count: int, capacity: int, fraction: float) -> None:
    chosen = choose(count, capacity, fraction)
    newest = round(capacity * fraction)
    assert len(set(chosen)) == capacity
    assert chosen == sorted(chosen)
    assert set(range(count - newest, count)) <= set(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < count


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_none_and_all(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"newest_fraction is {fraction}"):
        choose(20, 10, fraction)


def test_choice_repeats_with_its_generator_only() -> None:
    assert choose(200, 20, 0.5, seed=1) == choose(200, 20, 0.5, seed=1)
    assert choose(200, 20, 0.5, seed=1) != choose(200, 20, 0.5, seed=2)


def test_older_points_are_drawn_uniformly() -> None:
    """Each of 30 older candidates is chosen with probability 1/3: 200 of 600 draws, standard deviation 11.5."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(600):
        counts[newest_and_uniform(torch.arange(40), 20, 0.5, generator)] += 1
    assert (counts[30:] == 600).all()
    assert (counts[:30] - 200).abs().max() < 60


def dense_variance(
    kernel: Kernel, points: torch.Tensor, chosen: list[int], lengthscale: float, ridge: float
) -> np.ndarray:
    """σ² at every point given the chosen ones, by one full solve."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / lengthscale
    gram = kernel(distances).numpy()
    block = gram[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
    cross = gram[chosen]
    return np.diag(gram) - (cross * np.linalg.solve(block, cross)).sum(0)


@pytest.mark.parametrize("name", [name for name in KERNELS if make_kernel(name).is_radial])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_p_greedy_equals_a_full_solve_at_every_step(name: str, ridge: float) -> None:
    points = torch.rand(80, 2, dtype=torch.float64)
    kernel, lengthscale = make_kernel(name, 2), 0.4
    chosen = p_greedy(points, 12, name, lengthscale, ridge).tolist()
    assert chosen[0] == 0
    assert len(set(chosen)) == 12
    for step in range(1, 12):
        variance = dense_variance(kernel, points, chosen[:step], lengthscale, ridge)
        variance[chosen[:step]] = -np.inf
        assert variance.argmax() == chosen[step]


def test_p_greedy_variances_fall_and_beat_a_random_choice() -> None:
    points, kernel = torch.rand(400, 2, dtype=torch.float64), make_kernel("matern52")
    chosen = p_greedy(points, 30, kernel, 0.5).tolist()
    largest = [dense_variance(kernel, points, chosen[:step], 0.5, 0.0).max() for step in range(1, 31)]
    assert (np.diff(largest) <= 1e-9).all()
    random = [dense_variance(kernel, points, torch.randperm(400)[:30].tolist(), 0.5, 0.0).max() for _ in range(5)]
    assert largest[-1] < 0.5 * min(random)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_p_greedy_stops_where_only_duplicates_are_left(dtype: torch.dtype) -> None:
    distinct = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 4.0]], dtype=dtype)
    chosen = p_greedy(distinct.repeat(4, 1), 20, "gaussian")
    assert sorted((chosen % 5).tolist()) == [0, 1, 2, 3, 4]


def test_p_greedy_with_ridge_comes_back_to_duplicates_last() -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [50.0], [100.0]])
    assert p_greedy(points, 5, ridge=0.1).tolist() == [0, 3, 4, 1, 2]


@pytest.mark.parametrize("capacity", [1, 3, 10])
def test_p_greedy_chooses_at_most_what_there_is(capacity: int) -> None:
    points = 10.0 * torch.randn(4, 3)
    assert len(p_greedy(points, capacity)) == min(capacity, 4)
    assert p_greedy(points[:0], capacity).shape == (0,)


def test_p_greedy_does_not_depend_on_the_origin_or_on_autocast() -> None:
    points = (256.0 * torch.randn(400, 3)).round() / 256.0
    chosen = p_greedy(points, 60, "matern32", 2.0)
    assert torch.equal(p_greedy(points + 4096.0, 60, "matern32", 2.0), chosen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(p_greedy(points, 60, "matern32", 2.0), chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"lengthscale": 0.0}, "lengthscale is 0.0"),
        ({"lengthscale": float("nan")}, "lengthscale is nan"),
        ({"ridge": -0.1}, "ridge is -0.1"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"lengthscale": float("inf")}, "lengthscale is inf"),
        ({"kernel": "polynomial"}, "needs a radial kernel"),
        ({"kernel": "matern"}, "did you mean 'matern"),
        ({"features": torch.tensor([[0.0], [float("nan")]])}, "features row 1 is not finite"),
    ],
)
def test_p_greedy_refuses_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        p_greedy(**{"features": torch.randn(5, 2), "capacity": 3, **settings})


@pytest.mark.usefixtures("without_shape_checks")
def test_p_greedy_refuses_a_lengthscale_per_dimension() -> None:
    with pytest.raises(ValueError, match=r"lengthscale has shape \(2,\), but must be one number here; divide"):
        p_greedy(torch.randn(5, 2), 3, lengthscale=torch.ones(2))


@pytest.mark.usefixtures("without_shape_checks")
def test_greedy_choice_among_whole_numbers() -> None:
    points = torch.randint(0, 50, (40, 2))
    assert p_greedy(points, 7, lengthscale=20.0).tolist() == p_greedy(points.float(), 7, lengthscale=20.0).tolist()


def test_every_label_keeps_its_newest_first() -> None:
    labels = torch.tensor([7.0, 2.0, 2.0, 5.0, 2.0, 5.0, 2.0])
    candidates = 100 + torch.arange(7)
    chosen = [newest_of_each(candidates, labels, capacity, 4).tolist() for capacity in (1, 3, 5, 6, 7, 9)]
    assert chosen[0] == [106]
    assert chosen[1] == [100, 105, 106]
    assert chosen[2] == [100, 103, 104, 105, 106]
    assert chosen[3] == [100, 102, 103, 104, 105, 106]
    assert chosen[4] == chosen[5] == candidates.tolist()
    assert newest_of_each(candidates, labels, 7, 2).tolist() == [100, 103, 104, 105, 106]
    assert newest_of_each(candidates[:0], labels[:0], 7, 2).tolist() == []

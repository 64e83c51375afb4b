"""Online k-means against loops in numpy and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from skrl.memory import SupportMemory
from skrl.memory.kmeans import KMeansCentres


def make(capacity: int, mini_batch: int = 64) -> KMeansCentres:
    return KMeansCentres(SupportMemory(1, capacity, 3, 2).double(), mini_batch=mini_batch)


def blobs(rows: int, groups: int, seed: int, sort: bool = False) -> torch.Tensor:
    points, labels = make_blobs(rows, 3, centers=groups, random_state=seed)
    return torch.from_numpy(points[np.argsort(labels, kind="stable")] if sort else points)


def inertia(points: torch.Tensor, rule: KMeansCentres) -> float:
    return float(torch.cdist(points, rule.memory.features[0]).amin(1).square().sum())


def merge_costs(centres: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rise of the inertia by merging each two centres, +∞ on the diagonal."""
    shares = counts[:, None] * counts / (counts[:, None] + counts)
    costs = shares * np.square(centres[:, None] - centres).sum(-1)
    np.fill_diagonal(costs, np.inf)
    return costs


def reference(points: np.ndarray, capacity: int, mini_batch: int) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """The rule by brute force: centres, counts, and which rows each of them stands for."""
    centres, counts = points[:capacity].copy(), np.ones(capacity)
    members = [{row} for row in range(capacity)]
    for start in range(capacity, len(points), mini_batch):
        joining = []
        batch = range(start, min(start + mini_batch, len(points)))
        far = [rise(points[row], centres, counts) > merge_costs(centres, counts).min() for row in batch]
        for row, is_far in zip(batch, far, strict=True):
            costs = merge_costs(centres, counts)
            if not is_far or costs.min() >= rise(points[row], centres, counts):
                joining.append(row)
                continue
            a, b = np.unravel_index(costs.argmin(), costs.shape)
            centres[a] = (counts[a] * centres[a] + counts[b] * centres[b]) / (counts[a] + counts[b])
            counts[a] += counts[b]
            members[a] |= members[b]
            centres[b], counts[b], members[b] = points[row], 1.0, {row}
        nearest = [int(np.square(points[row] - centres).sum(-1).argmin()) for row in joining]
        for row, centre in zip(joining, nearest, strict=True):
            counts[centre] += 1
            centres[centre] += (points[row] - centres[centre]) / counts[centre]
            members[centre].add(row)
    return centres, counts, members


def rise(point: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> float:
    """Rise of the inertia when a point joins its nearest centre."""
    squared = np.square(point - centres).sum(-1)
    count = counts[squared.argmin()]
    return float(count / (count + 1) * squared.min())


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("mini_batch", [1, 16])
def test_equals_brute_force_when_every_centre_is_measured(
    mini_batch: int, sort: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KMeansCentres, "CANDIDATES", 12)
    points = blobs(150, 5, 1, sort)
    centres, counts, members = reference(points.numpy(), 12, mini_batch)
    rule = make(12, mini_batch)
    slots = rule.insert(points, torch.zeros(150, 2, dtype=torch.float64))
    found = {frozenset((slots == slot).nonzero().flatten().tolist()): slot for slot in range(12)}
    assert set(found) == set(map(frozenset, members))
    order = [found[frozenset(rows)] for rows in members]
    np.testing.assert_array_equal(rule.counts[0, order].numpy(), counts)
    np.testing.assert_allclose(rule.memory.features[0, order].numpy(), centres, rtol=1e-9)


@pytest.mark.parametrize("mini_batch", [1, 16])
def test_centres_and_targets_are_the_means_of_the_rows_that_joined(mini_batch: int) -> None:
    points, values = blobs(200, 4, 0), torch.randn(200, 2, dtype=torch.float64)
    rule = make(10, mini_batch)
    slots = rule.insert(points, values)
    assert torch.equal(rule.counts[0], slots.bincount(minlength=10))
    for centre in range(10):
        joined = slots == centre
        torch.testing.assert_close(rule.memory.features[0, centre], points[joined].mean(0))
        torch.testing.assert_close(rule.memory.targets[0, centre], values[joined].mean(0))


@pytest.mark.parametrize("mini_batch", [1, 16])
def test_no_merger_is_cheaper_than_its_bound(mini_batch: int) -> None:
    points, rule = blobs(300, 5, 2), make(20, mini_batch)
    for chunk in points.split(37):
        rule.insert(chunk, chunk[:, :2])
        size = int(rule.memory.sizes)
        costs = merge_costs(rule.memory.features[0, :size].numpy(), rule.counts[0, :size].double().numpy())
        assert (rule.bounds[0, :size].numpy() <= costs.min(1) + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("groups", "capacity"), [(5, 5), (5, 40)])
def test_one_pass_comes_within_a_tenth_of_k_means(groups: int, capacity: int, seed: int) -> None:
    """The best of ten k-means++ starts, each iterated over all rows until it converges."""
    points, rule = blobs(3000, groups, seed), make(capacity)
    rule.insert(points, points[:, :2])
    best = KMeans(capacity, n_init=10, random_state=0).fit(points.numpy()).inertia_
    assert inertia(points, rule) < 1.1 * best


def test_a_stream_through_one_region_after_another_is_covered() -> None:
    """Without mergers all centres but a few stay in the first region, at ten times the inertia of k-means here."""
    points, rule = blobs(1500, 5, 1, sort=True), make(40)
    rule.insert(points, points[:, :2])
    best = KMeans(40, n_init=1, random_state=0).fit(points.numpy()).inertia_
    assert inertia(points, rule) < 2.0 * best


def test_a_far_row_costs_the_others_no_digits() -> None:
    """Around a mean that it carries away the clumps would be points in float32."""
    clumps = torch.rand(20, 3, dtype=torch.float64)
    points = clumps.repeat(50, 1) + 0.01 * torch.randn(1000, 3, dtype=torch.float64)
    points[7] = 1e5
    rule = KMeansCentres(SupportMemory(1, 30, 3, 2))
    rule.insert(points.float(), points[:, :2].float())
    nearest = torch.cdist(points, rule.memory.features[0].double()).amin(1)
    assert nearest.square().mean().sqrt() < 0.02


def test_duplicates_of_a_centre_join_it() -> None:
    rule = KMeansCentres(SupportMemory(1, 3, 1))
    rows = torch.tensor([[1.0], [1.0], [2.0], [1.0]])
    assert rule.insert(rows, torch.tensor([[0.0], [6.0], [5.0], [0.0]])).tolist() == [0, 0, 1, 0]
    assert rule.memory.sizes.tolist() == [2]
    assert rule.counts.tolist() == [[3, 1, 0]]
    assert rule.memory.targets[0, :2].flatten().tolist() == [2.0, 5.0]


def test_a_far_row_takes_the_second_slot_of_the_cheapest_merger() -> None:
    rule = KMeansCentres(SupportMemory(1, 3, 1))
    rows = torch.tensor([[0.0], [1.0], [10.0], [30.0]])
    slots = rule.insert(rows, rows)
    assert slots.tolist() == [0, 0, 2, 1]  # Of the two that merge the first is kept, whichever found the other.
    assert rule.memory.features.flatten().tolist() == [0.5, 30.0, 10.0]
    assert rule.counts[0, slots].tolist() == [2, 2, 1, 1]


def test_a_single_centre_is_the_mean() -> None:
    rule, rows = KMeansCentres(SupportMemory(1, 1, 1)), torch.tensor([[0.0], [4.0], [100.0], [0.0]])
    assert rule.insert(rows, -rows).tolist() == [0, 0, 0, 0]
    assert rule.memory.features.flatten().tolist() == [26.0]
    assert rule.memory.targets.flatten().tolist() == [-26.0]


def test_a_mini_batch_needs_a_row() -> None:
    with pytest.raises(ValueError, match="mini_batch is 0"):
        KMeansCentres(SupportMemory(1, 3, 1), mini_batch=0)

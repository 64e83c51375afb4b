"""Support memory: written in place, loadable at any fill; and the rule that chooses its points."""

from __future__ import annotations

import pytest
import torch

from skrl.memory import SupportMemory, newest_and_uniform
from skrl.neighbors import ExactSearch

SETS, CAPACITY, DIM = 3, 5, 2


def filled_memory(sizes: list[int]) -> SupportMemory:
    memory = SupportMemory(SETS, CAPACITY, DIM)
    memory.write(torch.randn(SETS, CAPACITY, DIM), torch.tensor(sizes), torch.randn(SETS, CAPACITY, 1))
    return memory


def test_a_new_memory_is_empty() -> None:
    memory = SupportMemory(SETS, CAPACITY, DIM, target_dim=4)
    assert (memory.sets, memory.capacity) == (SETS, CAPACITY)
    assert memory.targets.shape == (SETS, CAPACITY, 4)
    assert not memory.mask.any()
    assert memory.sizes.tolist() == [0, 0, 0]


def test_write_fills_from_the_front_and_ignores_the_rest() -> None:
    memory = SupportMemory(2, 3, 2)
    features = torch.tensor([[[3.0, 4.0], [1.0, 1.0], [9.0, 9.0]], [[5.0, 0.0], [9.0, 9.0], [9.0, float("nan")]]])
    targets = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [9.0], [9.0]]])
    memory.write(features, torch.tensor([2, 1]), targets)
    inf = float("inf")
    assert memory.mask.tolist() == [[True, True, False], [True, False, False]]
    assert memory.sizes.tolist() == [2, 1]
    assert memory.half_norms.tolist() == [[12.5, 1.0, inf], [12.5, inf, inf]]
    assert memory.features.tolist() == [[[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]], [[5.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    assert memory.targets.squeeze(-1).tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]


def test_write_without_targets_sets_them_to_zero() -> None:
    memory = filled_memory([5, 5, 5])
    memory.write(torch.randn(SETS, CAPACITY, DIM), torch.tensor([5, 2, 0]))
    assert memory.targets.abs().max() == 0.0


def test_write_targets_keeps_features_and_empty_slots() -> None:
    memory = filled_memory([5, 2, 0])
    features = memory.features.clone()
    memory.write_targets(torch.ones(SETS, CAPACITY, 1))
    assert memory.targets.squeeze(-1).tolist() == [[1.0] * 5, [1.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5]
    assert torch.equal(memory.features, features)


def test_every_write_is_in_place() -> None:
    memory = filled_memory([5, 2, 0])
    addresses = {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}
    memory.write(torch.randn(SETS, CAPACITY, DIM), torch.tensor([1, 2, 3]), torch.randn(SETS, CAPACITY, 1))
    memory.write_targets(torch.randn(SETS, CAPACITY, 1))
    memory.clear()
    assert addresses == {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}


def test_a_smaller_write_leaves_nothing_behind() -> None:
    memory = filled_memory([5, 5, 5])
    again, targets = torch.randn(SETS, CAPACITY, DIM), torch.randn(SETS, CAPACITY, 1)
    memory.write(again, torch.tensor([1, 0, 4]), targets)
    fresh = SupportMemory(SETS, CAPACITY, DIM)
    fresh.write(again, torch.tensor([1, 0, 4]), targets)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(memory.get_buffer(name), buffer), name


def test_clear_equals_new() -> None:
    memory = filled_memory([5, 2, 0])
    memory.clear()
    for name, buffer in SupportMemory(SETS, CAPACITY, DIM).named_buffers():
        assert torch.equal(memory.get_buffer(name), buffer), name


def test_memory_keeps_no_gradient_and_no_view() -> None:
    memory = SupportMemory(1, 2, 1)
    features, targets = torch.ones(1, 2, 1, requires_grad=True), torch.ones(1, 2, 1, requires_grad=True)
    memory.write(features, torch.tensor([2]), targets)
    assert not any(buffer.requires_grad for buffer in memory.buffers())
    with torch.no_grad():
        features.zero_()
    assert memory.features.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("source", [[0, 0, 0], [1, 0, 5], [5, 5, 5]])
@pytest.mark.parametrize("target", [[0, 0, 0], [2, 3, 1], [5, 5, 5]])
def test_state_loads_at_any_fill(source: list[int], target: list[int]) -> None:
    memory, other = filled_memory(source), filled_memory(target)
    other.load_state_dict(memory.state_dict())
    assert set(memory.state_dict()) == {"features", "targets", "half_norms", "sizes"}
    for name, buffer in memory.named_buffers():
        assert torch.equal(other.get_buffer(name), buffer), name
    assert torch.equal(other.mask, memory.mask)


@pytest.mark.parametrize("name", ["sets", "capacity", "feature_dim"])
def test_nothing_may_be_empty_by_construction(name: str) -> None:
    settings = {"sets": 1, "capacity": 1, "feature_dim": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SupportMemory(**settings)


def test_a_support_that_is_not_finite_is_left_empty() -> None:
    memory = SupportMemory(1, 64, 1)
    features = torch.arange(64.0).view(1, 64, 1)
    features[0, 4] = float("nan")
    memory.write(features, torch.tensor([64]))
    near = torch.tensor([[[12.1]]])
    assert ExactSearch()(near, memory.features, 2, memory.half_norms).indices.flatten().tolist() == [12, 13]
    assert memory.mask.sum() == 63
    assert memory.features.isfinite().all()


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

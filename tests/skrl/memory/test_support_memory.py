"""Support memory: written in place, as a whole or by slots, loadable at any fill."""

from __future__ import annotations

import pytest
import torch

from skrl.memory import SupportMemory
from skrl.search.exact import ExactSearch

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


def test_a_support_whose_norm_overflows_is_left_empty() -> None:
    memory = SupportMemory(1, 2, 1)
    memory.write(torch.tensor([[[1e30], [2.0]]]), torch.tensor([2]), torch.ones(1, 2, 1))
    assert memory.mask.tolist() == [[False, True]]
    assert memory.features.flatten().tolist() == [0.0, 2.0]
    assert memory.targets.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("sizes", "message"), [([0, 6, 5], r"sizes\[1\] is 6.*0 to 5"), ([0, 0, -1], r"sizes\[2\] is -1")]
)
def test_write_refuses_impossible_sizes(sizes: list[int], message: str) -> None:
    memory = filled_memory([1, 2, 3])
    before = memory.features.clone()
    with pytest.raises(ValueError, match=message):
        memory.write(torch.randn(SETS, CAPACITY, DIM), torch.tensor(sizes))
    assert torch.equal(memory.features, before)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("features", "sizes", "targets", "message"),
    [
        ((SETS, CAPACITY - 1, DIM), (SETS,), (SETS, CAPACITY, 1), r"features have shape \(3, 4, 2\).*\(3, 5, 2\)"),
        ((CAPACITY, DIM), (SETS,), (SETS, CAPACITY, 1), r"features have shape \(5, 2\)"),
        ((SETS, CAPACITY, DIM), (), (SETS, CAPACITY, 1), r"sizes have shape \(\), but must have \(3,\)"),
        ((SETS, CAPACITY, DIM), (SETS,), (SETS, CAPACITY), r"targets have shape \(3, 5\), but must have \(3, 5, 1\)"),
    ],
)
def test_write_refuses_wrong_shapes(
    features: tuple[int, ...], sizes: tuple[int, ...], targets: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        filled_memory([1, 2, 3]).write(torch.randn(features), torch.ones(sizes, dtype=torch.long), torch.randn(targets))


def test_write_slots_replaces_and_fills_up() -> None:
    memory = filled_memory([3, 5, 0])
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    addresses = {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}
    memory.write_slots(torch.tensor([4, 1, 3]), torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]]), torch.ones(3, 1))
    assert memory.sizes.tolist() == [5, 5, 0]
    assert memory.features[0, [4, 1, 3]].tolist() == [[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]]
    assert memory.half_norms[0, [4, 1, 3]].tolist() == [12.5, 1.0, 2.0]
    assert memory.targets[0, [4, 1, 3], 0].tolist() == [1.0, 1.0, 1.0]
    for name in ("features", "targets", "half_norms"):
        assert torch.equal(memory.get_buffer(name)[0, [0, 2]], before[name][0, [0, 2]]), name
        assert torch.equal(memory.get_buffer(name)[1:], before[name][1:]), name
    assert addresses == {name: buffer.data_ptr() for name, buffer in memory.named_buffers()}


def test_write_slots_to_a_set_per_row_equals_a_loop() -> None:
    together, loop = filled_memory([3, 5, 0]), SupportMemory(SETS, CAPACITY, DIM)
    loop.load_state_dict(together.state_dict())
    sets, slots = torch.tensor([2, 0, 2, 1]), torch.tensor([1, 3, 0, 4])
    features, targets = torch.randn(4, DIM), torch.randn(4, 1)
    together.write_slots(slots, features, targets, sets)
    for row in (2, 0, 1, 3):
        loop.write_slots(slots[row : row + 1], features[row : row + 1], targets[row : row + 1], int(sets[row]))
    assert together.sizes.tolist() == [4, 5, 2]
    for name, buffer in loop.named_buffers():
        assert torch.equal(together.get_buffer(name), buffer), name


def test_write_slots_of_everything_equals_write() -> None:
    features, targets = torch.randn(SETS, CAPACITY, DIM), torch.randn(SETS, CAPACITY, 1)
    whole, slotwise = filled_memory([1, 2, 3]), filled_memory([1, 2, 3])
    features[1, 2, 0] = float("inf")
    whole.write(features, torch.tensor([CAPACITY] * SETS), targets)
    sets = torch.arange(SETS).repeat_interleave(CAPACITY)
    slotwise.write_slots(torch.arange(CAPACITY).repeat(SETS), features.flatten(0, 1), targets.flatten(0, 1), sets)
    assert not whole.mask[1, 2]
    for name, buffer in whole.named_buffers():
        assert torch.equal(slotwise.get_buffer(name), buffer), name


@pytest.mark.parametrize(
    ("slots", "set_index", "message"),
    [
        ([4], 0, "slot 4 of set 0 would leave a gap after its 3 supports"),
        ([3, 4, 1], 2, "slot 1 of set 2 would leave a gap after its 0 supports"),
        ([5], 1, "slot 5 does not exist; a set has 5 slots"),
        ([-1], 1, "slot -1 does not exist"),
        ([0, 2, 0], 1, "slot 0 of set 1 is given twice"),
        ([0], 3, "set_index is 3, but the memory has 3 sets"),
        ([0], -1, "set_index is -1"),
    ],
)
def test_write_slots_refuses_places_that_make_no_sense(slots: list[int], set_index: int, message: str) -> None:
    memory = filled_memory([3, 5, 0])
    before = memory.features.clone()
    with pytest.raises(ValueError, match=message):
        memory.write_slots(torch.tensor(slots), torch.randn(len(slots), DIM), torch.randn(len(slots), 1), set_index)
    assert torch.equal(memory.features, before)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ((1, DIM), (2, 1), r"features have shape \(1, 2\), but must have \(2, 2\)"),
        ((2, DIM), (2,), r"targets have shape \(2,\), but must have \(2, 1\)"),
    ],
)
def test_write_slots_refuses_wrong_shapes(features: tuple[int, ...], targets: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled_memory([3, 5, 0]).write_slots(torch.tensor([0, 1]), torch.randn(features), torch.randn(targets))


def test_append_goes_on_until_full_and_says_where() -> None:
    memory, features, targets = SupportMemory(2, 3, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [6.0]])
    assert memory.append(features, targets, 1).tolist() == [0, 1]
    assert memory.append(features, targets, 1).tolist() == [2, -1]
    assert memory.append(features, targets, 1).tolist() == [-1, -1]
    assert memory.append(features[:0], targets[:0]).tolist() == []
    assert memory.sizes.tolist() == [0, 3]
    assert memory.features[1].flatten().tolist() == [1.0, 2.0, 1.0]
    assert memory.targets[1].flatten().tolist() == [5.0, 6.0, 5.0]
    with pytest.raises(ValueError, match="set_index is 2"):
        memory.append(features, targets, 2)


def test_append_fills_the_slot_of_a_support_that_was_not_finite() -> None:
    memory = SupportMemory(1, 4, 1)
    memory.write(torch.tensor([[[1.0], [float("nan")], [3.0], [9.0]]]), torch.tensor([3]))
    assert memory.append(torch.tensor([[2.0], [4.0]]), torch.zeros(2, 1)).tolist() == [1, 3]
    assert memory.features.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_slots_hold_no_gradient_and_keep_the_memory_s_dtype() -> None:
    memory = SupportMemory(1, 2, 1).half()
    memory.append(torch.ones(1, 1, dtype=torch.float64, requires_grad=True), torch.ones(1, 1, requires_grad=True))
    dtypes = {name: buffer.dtype for name, buffer in memory.named_buffers()}
    half, full = torch.float16, torch.float32
    assert dtypes == {"features": half, "targets": half, "half_norms": full, "sizes": torch.long}
    assert not any(buffer.requires_grad for buffer in memory.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_features_stay_in_half_precision(dtype: torch.dtype) -> None:
    """Half of the square of their norm, 125,000, is more than float16 holds."""
    features = torch.full((4, 3), 250.0) + torch.arange(4).unsqueeze(1)
    memory = SupportMemory(1, 6, 3)
    memory.append(features[:2], torch.ones(2, 1))
    memory.to(dtype).append(features[2:].to(dtype), torch.ones(2, 1, dtype=dtype))
    assert memory.mask.tolist() == [[True] * 4 + [False] * 2]
    rounded = features.to(dtype).float()
    torch.testing.assert_close(memory.half_norms[0, :4], 0.5 * rounded.square().sum(-1))
    torch.set_default_dtype(dtype)
    try:
        made_so = SupportMemory(1, 6, 3)
        made_so.append(features.to(dtype), torch.ones(4, 1))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(made_so.half_norms, memory.half_norms)


def clumps(dtype: torch.dtype) -> torch.Tensor:
    """A set of 60 points in six clumps that lie 3,000 times as far apart as they are wide, [1, 60, 3]."""
    return (3000.0 * torch.randn(6, 1, 3, dtype=torch.float64) + torch.randn(6, 10, 3)).view(1, 60, 3).to(dtype)


def assert_ready(memory: SupportMemory, filled: int = 60) -> None:
    """Half-norms are those of the features, so that the nearest are found in float64."""
    expected = torch.full_like(memory.half_norms, float("inf"))
    expected[0, :filled] = 0.5 * memory.features[0, :filled].square().sum(-1)
    torch.testing.assert_close(memory.half_norms, expected, rtol=torch.finfo(expected.dtype).eps, atol=0.0)
    if memory.features.dtype == torch.float64:
        points = memory.features[:, :filled]
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        found = ExactSearch()(points, memory.features, 8, memory.half_norms).indices
        nearest = distances.topk(8, largest=False).values
        torch.testing.assert_close(distances.gather(2, found), nearest, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("to", [torch.float32, torch.float64])
@pytest.mark.parametrize("of", [torch.float16, torch.float32, torch.float64])
def test_half_norms_follow_the_features_into_another_precision(of: torch.dtype, to: torch.dtype) -> None:
    memory = SupportMemory(1, 64, 3).to(of)
    memory.append(clumps(of)[0], torch.ones(60, 1, dtype=of))
    assert_ready(memory.to(to))
    assert memory.half_norms.dtype == to
    other = SupportMemory(1, 64, 3).to(to)
    before = other.half_norms
    given = SupportMemory(1, 64, 3).to(of)
    given.append(clumps(of)[0], torch.ones(60, 1, dtype=of))
    other.load_state_dict(given.state_dict())
    assert_ready(other)
    assert other.half_norms is before  # where a graph that was captured reads


def test_a_support_that_overflows_in_another_precision_is_an_empty_slot() -> None:
    memory = SupportMemory(1, 4, 2).double()
    memory.append(torch.tensor([[1.0, 2.0], [1e200, 0.0], [1e25, 0.0]]), torch.ones(3, 1))
    assert memory.mask.tolist() == [[True, False, True, False]]
    loaded = SupportMemory(1, 4, 2)
    loaded.load_state_dict(memory.state_dict())
    for single in (loaded, memory.float()):
        assert single.mask.tolist() == [[True, False, False, False]]
        assert single.features.tolist() == [[[1.0, 2.0], [0.0] * 2, [0.0] * 2, [0.0] * 2]]

"""The laws of every selection rule. A new rule in ``SELECTIONS`` inherits them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from skrl.memory import SupportMemory
from skrl.memory.selection import SELECTIONS, SelectionRule
from skrl.modes import precise

SETS, CAPACITY, DIM, WIDTH = 2, 6, 3, 2

AVERAGES = {"kmeans_centres"}
"""Rules whose supports are means of rows, not rows."""

ROW_BY_ROW: dict[str, dict[str, Any]] = {"kmeans_centres": {"mini_batch": 1}}
"""Settings with which a batch does the same as its rows one by one, for rules that look at a batch as a whole."""

Rows = tuple[torch.Tensor, torch.Tensor]
Make = Callable[..., SelectionRule]


@pytest.fixture(params=SELECTIONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Make:
    """The rule over an empty memory, or over a given one."""

    def rule(memory: SupportMemory | None = None, **settings: Any) -> SelectionRule:
        return SELECTIONS[name](memory or SupportMemory(SETS, CAPACITY, DIM, WIDTH), **settings)

    return rule


@pytest.fixture
def rule(make: Make) -> SelectionRule:
    return make()


def stream(rows: int, seed: int = 0) -> Rows:
    """Distinct rows on a grid of 1/256, wide enough that most are novel; half precision holds neither."""
    generator = torch.Generator().manual_seed(seed)
    features = (768.0 * torch.randn(rows, DIM, generator=generator)).round() / 256.0
    return features, torch.randn(rows, WIDTH, generator=generator)


def state(rule: SelectionRule) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in rule.state_dict().items()}


def assert_same(rule: SelectionRule, expected: dict[str, torch.Tensor]) -> None:
    for key, value in rule.state_dict().items():
        assert torch.equal(value, expected[key]), key


def assert_consistent(memory: SupportMemory) -> None:
    """Filled from the front, half-norms those of the features, empty slots empty."""
    front = torch.arange(memory.capacity) < memory.sizes.unsqueeze(1)
    assert torch.equal(memory.mask, front)
    norms = 0.5 * precise(memory.features).square().sum(-1)
    assert torch.equal(memory.half_norms, torch.where(front, norms, torch.inf))
    assert (memory.features[~front] == 0.0).all()
    assert (memory.targets[~front] == 0.0).all()
    assert memory.features.isfinite().all()
    assert memory.targets.isfinite().all()


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_never_more_than_the_capacity_and_always_consistent(rule: SelectionRule, batch: int) -> None:
    features, targets = stream(30)
    for start in range(0, 30, batch):
        rule.insert(features[start : start + batch], targets[start : start + batch], set_index=1)
        assert_consistent(rule.memory)
        assert 0 < rule.memory.sizes[1] <= min(CAPACITY, start + batch)
    assert rule.memory.sizes.tolist() == [0, CAPACITY]
    assert rule.seen.tolist() == [0, 30]
    assert rule.refused.tolist() == [0, 0]


def test_slots_say_where_every_row_is(name: str, rule: SelectionRule) -> None:
    features, targets = stream(24)
    slots = rule.insert(features, targets)
    memory, kept = rule.memory, slots >= 0
    assert slots.shape == (24,)
    assert set(slots[kept].tolist()) == set(range(CAPACITY))
    if name in AVERAGES:
        assert kept.all()
        return
    assert kept.sum() == CAPACITY
    assert torch.equal(memory.features[0, slots[kept]], features[kept])
    assert torch.equal(memory.targets[0, slots[kept]], targets[kept])


def test_the_first_rows_all_enter(rule: SelectionRule) -> None:
    """As many far rows as there are slots."""
    features = 50.0 * torch.arange(float(CAPACITY)).unsqueeze(1).expand(CAPACITY, DIM)
    targets = torch.randn(CAPACITY, WIDTH)
    assert rule.insert(features, targets).tolist() == list(range(CAPACITY))
    assert torch.equal(rule.memory.features[0], features)
    assert torch.equal(rule.memory.targets[0], targets)


def test_other_sets_are_left_alone(rule: SelectionRule) -> None:
    rule.insert(*stream(30, seed=1), set_index=1)
    before = {name: buffer[1].clone() for name, buffer in rule.named_buffers() if buffer.dim()}
    rule.insert(*stream(30, seed=2), set_index=0)
    assert len(before) >= 6
    for name, buffer in rule.named_buffers():
        if buffer.dim():
            assert torch.equal(buffer[1], before[name]), name


def test_rows_one_by_one_equal_a_batch(name: str, make: Make) -> None:
    features, targets = stream(30)
    settings = ROW_BY_ROW.get(name, {})
    together, singly, chunked = make(**settings), make(**settings), make(**settings)
    together.insert(features, targets)
    for row in range(30):
        singly.insert(features[row : row + 1], targets[row : row + 1])
    for chunk in torch.arange(30).split([1, 12, 0, 7, 10]):
        chunked.insert(features[chunk], targets[chunk])
    assert_same(singly, state(together))
    assert_same(chunked, state(together))


def test_same_seed_same_result(make: Make) -> None:
    first, second = make(), make()
    torch.manual_seed(1)
    first.insert(*stream(24))
    torch.manual_seed(2)
    second.insert(*stream(24))
    assert_same(first, state(second))


def test_rows_that_are_not_finite_never_existed_but_are_counted(name: str, make: Make) -> None:
    settings = ROW_BY_ROW.get(name, {})
    clean, dirty = make(**settings), make(**settings)
    features, targets = stream(24)
    clean.insert(features, targets)
    spoilt_features, spoilt_targets = features.repeat_interleave(2, 0), targets.repeat_interleave(2, 0)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e30)):
        spoilt_features[1 + 2 * row :: 8, row % DIM] = value
    spoilt_features[1::16] = features[:1]
    spoilt_targets[1::16, 1] = torch.nan
    slots = dirty.insert(spoilt_features, spoilt_targets)
    assert (slots[1::2] == -1).all()
    assert dirty.seen.tolist() == [24, 0]
    assert dirty.refused.tolist() == [24, 0]
    dirty.refused.zero_()
    assert_same(dirty, state(clean))


def test_only_bad_rows_leave_an_empty_memory(rule: SelectionRule) -> None:
    features, targets = torch.full((5, DIM), torch.nan), torch.zeros(5, WIDTH)
    assert rule.insert(features, targets).tolist() == [-1] * 5
    assert rule.refused.tolist() == [5, 0]
    assert rule.memory.sizes.tolist() == [0, 0]


def test_an_empty_batch_changes_nothing(rule: SelectionRule) -> None:
    features, targets = stream(20)
    for filled in (False, True):
        before = state(rule)
        assert rule.insert(features[:0], targets[:0]).shape == (0,)
        assert_same(rule, before)
        if not filled:
            rule.insert(features, targets)


@pytest.mark.parametrize("batch", [1, 24])
def test_duplicates_are_fine(rule: SelectionRule, batch: int) -> None:
    row, target = torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    for _ in range(24 // batch):
        rule.insert(row.expand(batch, DIM), target.expand(batch, WIDTH))
    memory = rule.memory
    assert_consistent(memory)
    assert memory.sizes[0] >= 1
    assert (memory.features[memory.mask] == row).all()
    assert (memory.targets[memory.mask] == target).all()
    rule.insert(*stream(24))
    assert_consistent(memory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_memory_s_dtype_is_kept(make: Make, dtype: torch.dtype) -> None:
    rule = make(SupportMemory(SETS, CAPACITY, DIM, WIDTH).to(dtype))
    features, targets = stream(24)
    rule.insert(features, targets)
    rule.insert(features.half(), targets.double())
    assert_consistent(rule.memory)
    assert rule.memory.sizes.tolist() == [CAPACITY, 0]
    dtypes = {name: buffer.dtype for name, buffer in rule.memory.named_buffers()}
    norms = torch.promote_types(dtype, torch.float32)  # in half precision those of large features would overflow
    assert dtypes == {"features": dtype, "targets": dtype, "half_norms": norms, "sizes": torch.long}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", ["memory", "rule"])
def test_a_memory_in_half_precision_takes_what_it_holds(make: Make, dtype: torch.dtype, cast: str) -> None:
    """Squares beyond float16 are no reason to refuse a row."""
    rule = make(SupportMemory(SETS, CAPACITY, DIM, WIDTH).to(dtype)) if cast == "memory" else make().to(dtype)
    features, targets = stream(24)
    rule.insert(1000.0 * features, targets)
    assert rule.refused.tolist() == [0, 0]
    assert rule.seen.tolist() == [24, 0]
    assert rule.memory.sizes.tolist() == [CAPACITY, 0]
    assert_consistent(rule.memory)
    assert rule.insert(torch.full((1, DIM), 1e20), targets[:1]).tolist() == [-1]
    assert rule.refused.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rule_cast_to_half_precision_chooses_as_one_over_such_a_memory(make: Make, dtype: torch.dtype) -> None:
    """Its own numbers keep float32, be they small or large."""
    cast, over = make().to(dtype), make(SupportMemory(SETS, CAPACITY, DIM, WIDTH).to(dtype))
    features, targets = stream(24)
    for rule in (cast, over):
        torch.manual_seed(0)
        rule.insert(1000.0 * features, targets)
    assert_same(cast, state(over))
    for buffer in ("bounds", "lengthscale"):
        assert getattr(cast, buffer, torch.zeros(())).dtype == torch.float32


def test_casting_the_rule_casts_its_memory(rule: SelectionRule) -> None:
    rule.double().insert(*stream(20))
    assert rule.memory.features.dtype == torch.float64
    assert rule.seen.dtype == torch.long
    assert_consistent(rule.memory)


def test_everything_is_written_in_place_and_without_gradient(rule: SelectionRule) -> None:
    addresses = {name: (buffer.data_ptr(), buffer.shape) for name, buffer in rule.named_buffers()}
    features, targets = stream(24)
    rule.insert(features.requires_grad_(), targets.requires_grad_())
    rule.clear()
    rule.insert(features, targets)
    assert addresses == {name: (buffer.data_ptr(), buffer.shape) for name, buffer in rule.named_buffers()}
    assert not any(buffer.requires_grad for buffer in rule.buffers())
    kept = rule.memory.features.clone()
    with torch.no_grad():
        features.zero_()
    assert torch.equal(rule.memory.features, kept)


def saved_and_loaded(rule: SelectionRule, make: Make) -> SelectionRule:
    file = io.BytesIO()
    torch.save(rule.state_dict(), file)
    file.seek(0)
    other = make()
    other.insert(*stream(15, seed=9))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("rows", [0, 5, 20])
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_copy_carries_on_the_same_stream(make: Make, rows: int, way: str) -> None:
    rule = make()
    rule.insert(*stream(rows))
    if way == "state_dict":
        other = saved_and_loaded(rule, make)
    else:
        other = pickle.loads(pickle.dumps(rule)) if way == "pickle" else copy.deepcopy(rule)
    before = state(rule)
    assert_same(other, before)
    other.insert(*stream(25, seed=1))
    assert_same(rule, before)
    rule.insert(*stream(25, seed=1))
    assert_same(other, state(rule))


@pytest.mark.parametrize("filled", [3, CAPACITY])
def test_content_of_the_memory_is_adopted(make: Make, filled: int) -> None:
    features, targets = stream(CAPACITY)
    memory = SupportMemory(SETS, CAPACITY, DIM, WIDTH)
    memory.write(features.repeat(SETS, 1, 1), torch.tensor([filled, 0]), targets.repeat(SETS, 1, 1))
    rule = make(memory)
    assert rule.seen.tolist() == [filled, 0]
    assert torch.equal(memory.features[0, :filled], features[:filled])
    before = memory.features.clone()
    rule.insert(*stream(30, seed=1))
    assert_consistent(memory)
    assert memory.sizes.tolist() == [CAPACITY, 0]
    assert not torch.equal(memory.features[0], before[0])


def test_a_write_past_the_rule_is_adopted_on_request(make: Make) -> None:
    rule, fresh = make(), make()
    rule.insert(*stream(24))
    for each in (rule, fresh):
        features, targets = stream(SETS * CAPACITY, seed=3)
        shape = (SETS, CAPACITY, -1)
        each.memory.write(features.view(shape), torch.tensor([2, CAPACITY]), targets.view(shape))
        each.adopt()
    expected = state(fresh)
    expected["_extra_state"] = rule.state_dict().get("_extra_state", torch.empty(0))
    assert_same(rule, expected)


def test_clear_forgets_everything(make: Make) -> None:
    rule = make()
    rule.insert(*stream(24))
    rule.clear()
    expected = state(make())
    expected["_extra_state"] = rule.state_dict().get("_extra_state", torch.empty(0))
    assert_same(rule, expected)


def test_a_slot_left_empty_by_a_bad_support_does_no_harm(make: Make) -> None:
    memory = SupportMemory(1, CAPACITY, DIM, WIDTH)
    features, targets = stream(CAPACITY)
    features[2] = torch.nan
    memory.write(features[None], torch.tensor([CAPACITY]), targets[None])
    rule = make(memory)
    rule.insert(*stream(40, seed=1))
    assert_consistent(memory)


def test_an_offset_changes_no_choice(make: Make) -> None:
    """So far from the origin that inner products hold no digit of the differences."""
    features, targets = stream(24)
    near, far = make().double(), make().double()
    assert torch.equal(near.insert(features, targets), far.insert(features.double() + 2.0**30, targets))


def test_autocast_changes_nothing(make: Make) -> None:
    inside, outside = make(), make()
    outside.insert(*stream(24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.insert(*stream(24))
    assert_same(inside, state(outside))


class Traffic(TorchFunctionMode):
    """Counts the elements that torch operations read and write."""

    elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements += sum(leaf.numel() for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor))
        return result


def costs(rule: SelectionRule, rows: Rows) -> Iterator[int]:
    """Elements moved by every insertion of one row."""
    for feature, target in zip(*rows, strict=True):
        with Traffic() as traffic:
            rule.insert(feature.unsqueeze(0), target.unsqueeze(0))
        yield traffic.elements


@pytest.mark.usefixtures("without_shape_checks")
def test_cost_does_not_depend_on_the_rows_seen(rule: SelectionRule) -> None:
    rule.insert(*stream(2 * CAPACITY))
    early = max(costs(rule, stream(15, seed=1)))
    rule.insert(*stream(25 * CAPACITY, seed=2))
    late = max(costs(rule, stream(15, seed=3)))
    assert early > 0
    assert late <= early


@pytest.mark.usefixtures("without_shape_checks")
def test_cost_grows_at_most_linearly_with_the_capacity(make: Make) -> None:
    highest = []
    for capacity in (100, 400):
        features, targets = stream(capacity)
        memory = SupportMemory(1, capacity, DIM, WIDTH)
        memory.write(features[None], torch.tensor([capacity]), targets[None])
        highest.append(max(costs(make(memory), stream(10, seed=1))))
    assert highest[1] < 4.2 * highest[0]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ((4, DIM + 1), (4, WIDTH), r"features have shape \(4, 4\).*must be \[rows, 3\] and \[rows, 2\]"),
        ((4, DIM), (3, WIDTH), "equally many rows"),
        ((4, DIM), (4,), r"targets \(4,\)"),
        ((DIM,), (WIDTH,), r"a single row needs \[None\]"),
    ],
)
def test_wrong_shapes_are_refused(
    rule: SelectionRule, features: tuple[int, ...], targets: tuple[int, ...], message: str
) -> None:
    before = state(rule)
    with pytest.raises(ValueError, match=message):
        rule.insert(torch.randn(features), torch.randn(targets))
    assert_same(rule, before)


@pytest.mark.parametrize("set_index", [-1, SETS])
def test_a_set_that_does_not_exist_is_refused(rule: SelectionRule, set_index: int) -> None:
    with pytest.raises(ValueError, match=f"set_index is {set_index}, but the memory has 2 sets"):
        rule.insert(*stream(4), set_index=set_index)


def test_abstract_rule_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        SelectionRule(SupportMemory(1, 2, 1))  # type: ignore[abstract]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_s_device_is_kept_and_chooses_alike(make: Make) -> None:
    on_cpu, on_device = make().double(), make().double().cuda()
    features, targets = stream(24)
    slots = on_cpu.insert(features, targets)
    assert on_device.insert(features.cuda(), targets).tolist() == slots.tolist()
    assert all(buffer.device.type == "cuda" for buffer in on_device.buffers())
    torch.testing.assert_close(on_device.memory.features.cpu(), on_cpu.memory.features)

"""The laws of every value head, with either localisation where it has a solve; ``HEADS`` inherit them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from skrl import compiling
from skrl.value_heads import HEADS, NetworkFreeHead, ResidualHead, ValueHead

Kind = Callable[..., ValueHead]

KINDS: dict[str, Kind] = {
    **HEADS,
    **{
        f"{name}-continuous": partial(head, localisation="continuous")
        for name, head in HEADS.items()
        if issubclass(head, ResidualHead)
    },
}

ACTIONS, CAPACITY, DIM, K = 4, 24, 3, 6
SIZES = [24, 10, 2, 0]
"""A full set, a part-filled one, one with fewer supports than k, and an action never taken."""


@pytest.fixture(params=[False, True], ids=["compiled", "torch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds with the compiled loops and without."""
    if request.param:
        monkeypatch.setattr(compiling, "AVAILABLE", False)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def head(kind: Kind) -> ValueHead:
    made = new_head(kind)
    fill(made)
    return made


def new_head(kind: Kind, k: int = K) -> ValueHead:
    return kind(ACTIONS, CAPACITY, DIM, k=k, ridge=0.3)


def fill(head: ValueHead, sizes: list[int] | None = None) -> None:
    features, targets = torch.randn(ACTIONS, CAPACITY, DIM), torch.randn(ACTIONS, CAPACITY, 1)
    head.memory.write(features.to(head.lengthscale), torch.tensor(sizes or SIZES), targets.to(head.lengthscale))
    head.lengthscale.fill_(1.5)


def prior_part(head: ValueHead, prior: Tensor) -> Tensor:
    """What the head starts from: the network's values, or nothing."""
    return torch.zeros_like(prior) if isinstance(head, NetworkFreeHead) else prior


def test_shape_and_dtype_of_the_answer(head: ValueHead) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        values = head(torch.randn(7, DIM), torch.randn(7, ACTIONS).to(dtype))
        assert values.shape == (7, ACTIONS)
        assert values.dtype == dtype
    assert head(torch.zeros(0, DIM), torch.zeros(0, ACTIONS)).shape == (0, ACTIONS)


def test_empty_memory_gives_exactly_the_prior(kind: Kind) -> None:
    head, prior = new_head(kind), torch.randn(7, ACTIONS)
    assert torch.equal(head(torch.randn(7, DIM), prior), prior_part(head, prior))
    assert (head.localise(torch.randn(7, DIM)).variance == 1.0).all()
    assert int(head.fallbacks) == 0


def test_a_cleared_memory_gives_exactly_the_prior(head: ValueHead) -> None:
    queries, prior = torch.randn(7, DIM), torch.randn(7, ACTIONS)
    assert not torch.equal(head(queries, prior), prior_part(head, prior))
    head.memory.clear()
    assert torch.equal(head(queries, prior), prior_part(head, prior))


def test_an_action_never_taken_keeps_the_prior(head: ValueHead) -> None:
    prior = torch.randn(7, ACTIONS)
    corrected = head(torch.randn(7, DIM), prior) != prior_part(head, prior)
    assert corrected[:, :3].all()
    assert not corrected[:, 3].any()


def test_far_from_every_support_the_prior_remains(head: ValueHead) -> None:
    queries, prior = 1e4 + torch.randn(7, DIM), torch.randn(7, ACTIONS)
    assert torch.equal(head(queries, prior), prior_part(head, prior))
    assert (head.localise(queries).variance == 1.0).all()


def test_on_top_of_supports_the_variance_is_small(head: ValueHead) -> None:
    head.memory.write(torch.zeros(ACTIONS, CAPACITY, DIM), torch.tensor(SIZES))
    variance = head.localise(torch.zeros(1, DIM)).variance
    assert variance[0, 0] < 0.1
    assert variance[2, 0] < 0.2
    assert variance[3, 0] == 1.0


def test_zero_residuals_correct_nothing(head: ValueHead) -> None:
    head.memory.write_targets(torch.zeros(ACTIONS, CAPACITY, 1))
    assert head.correction(torch.randn(7, DIM)).abs().max() == 0.0


def test_correction_is_proportional_to_the_residuals(head: ValueHead) -> None:
    queries = torch.randn(7, DIM)
    before = head.correction(queries)
    head.memory.write_targets(-4.0 * head.memory.targets)
    assert torch.equal(head.correction(queries), -4.0 * before)


def test_correction_is_bounded_by_the_residuals_and_zero(head: ValueHead) -> None:
    queries = torch.randn(200, DIM)
    for sign in (1.0, -1.0):
        targets = sign * torch.rand(ACTIONS, CAPACITY, 1)
        head.memory.write_targets(targets)
        correction = sign * head.correction(queries)
        assert correction.min() >= 0.0
        assert (correction <= (sign * head.memory.targets).amax((1, 2))).all()


def test_one_query_equals_its_row_in_a_batch(head: ValueHead) -> None:
    queries, prior = torch.randn(9, DIM), torch.randn(9, ACTIONS)
    together, local = head(queries, prior), head.localise(queries)
    for b in range(9):
        alone = head(queries[b : b + 1], prior[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-6, atol=1e-6)
        variance = head.localise(queries[b : b + 1]).variance
        torch.testing.assert_close(variance[:, 0], local.variance[:, b], rtol=1e-6, atol=1e-6)


def test_actions_do_not_see_each_other(head: ValueHead) -> None:
    queries = torch.randn(7, DIM)
    before = head.correction(queries)
    features, targets = head.memory.features.clone(), head.memory.targets.clone()
    features[1], targets[1] = torch.randn(CAPACITY, DIM), torch.randn(CAPACITY, 1)
    head.memory.write(features, torch.tensor([24, 20, 2, 0]), targets)
    after = head.correction(queries)
    others = [0, 2, 3]
    assert torch.equal(after[:, others], before[:, others])
    assert (after[:, 1] != before[:, 1]).all()


def test_only_filled_slots_are_read(head: ValueHead) -> None:
    local = head.localise(torch.randn(50, DIM))
    sizes = torch.tensor(SIZES).view(-1, 1, 1)
    assert (local.indices >= 0).all()
    assert (local.indices < sizes.clamp(min=1)).all()
    assert ((local.weights != 0.0).sum(-1) == torch.tensor([6, 6, 2, 0]).view(-1, 1)).all()


@pytest.mark.parametrize("k", [1, CAPACITY, 1000])
def test_any_k_is_served(kind: Kind, k: int) -> None:
    head = new_head(kind, k)
    fill(head)
    local = head.localise(torch.randn(5, DIM))
    assert local.weights.shape == (ACTIONS, 5, min(k, CAPACITY))
    assert local.weights.isfinite().all()
    fill(head, [1, 1, 1, 1])
    assert head.correction(torch.randn(5, DIM)).isfinite().all()


def test_known_weights_read_new_targets(head: ValueHead) -> None:
    queries = torch.randn(7, DIM)
    local = head.localise(queries)
    head.memory.write_targets(torch.randn(ACTIONS, CAPACITY, 1))
    assert torch.equal(head.read(local).mT, head.correction(queries))


def test_head_writes_residuals_and_their_amplitude(head: ValueHead) -> None:
    head.write_targets(torch.full((ACTIONS, CAPACITY), -3.0))
    assert (head.memory.targets[head.memory.mask] == -3.0).all()
    assert (head.memory.targets[~head.memory.mask] == 0.0).all()
    if isinstance(head, NetworkFreeHead):
        return  # whose amplitude is another; tests/skrl/test_value_heads.py has it
    assert head.amplitude.item() == 3.0
    fill(head, [0, 0, 2, 0])
    head.write_targets(torch.tensor([[1.0, 7.0] + [100.0] * (CAPACITY - 2)]).expand(ACTIONS, CAPACITY))
    assert head.amplitude.item() == 5.0


def test_amplitude_of_an_empty_memory_is_zero(kind: Kind) -> None:
    head = new_head(kind)
    head.write_targets(torch.ones(ACTIONS, CAPACITY))
    assert head.amplitude.item() == 0.0
    queries, prior = torch.randn(7, DIM), prior_part(head, torch.randn(7, ACTIONS))
    assert torch.equal(head.optimistic(queries, prior, 2.0), prior)


def test_optimism_grows_with_the_deviation(head: ValueHead) -> None:
    head.write_targets(torch.randn(ACTIONS, CAPACITY))
    queries, prior = torch.randn(7, DIM), torch.zeros(7, ACTIONS)
    bonus = head.optimistic(queries, prior, 2.0) - head(queries, prior)
    deviation = head.localise(queries).variance.sqrt().mT
    torch.testing.assert_close(head.deviation(queries), head.amplitude * deviation)
    torch.testing.assert_close(bonus, 2.0 * head.amplitude * deviation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bonus[:, 3], (2.0 * head.amplitude).expand(7))
    assert (bonus[:, 0] < bonus[:, 3]).all()


def test_without_bonus_optimism_is_the_value(head: ValueHead) -> None:
    head.write_targets(torch.randn(ACTIONS, CAPACITY))
    queries, prior = torch.randn(7, DIM), torch.randn(7, ACTIONS)
    assert torch.equal(head.optimistic(queries, prior, 0.0), head(queries, prior))


def test_nan_query_keeps_the_prior_and_is_counted(head: ValueHead) -> None:
    queries, prior = torch.randn(5, DIM), torch.randn(5, ACTIONS)
    healthy = head(queries, prior)
    assert int(head.fallbacks) == 0
    queries[2, 0] = float("nan")
    values = head(queries, prior)
    assert torch.equal(values[2], prior_part(head, prior)[2])
    torch.testing.assert_close(values[[0, 1, 3, 4]], healthy[[0, 1, 3, 4]], rtol=1e-6, atol=1e-6)
    assert int(head.fallbacks) == ACTIONS
    head(queries, prior)
    assert int(head.fallbacks) == 2 * ACTIONS


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e30])
def test_endless_query_keeps_the_prior(head: ValueHead, value: float) -> None:
    queries, prior = torch.full((1, DIM), value), torch.randn(1, ACTIONS)
    assert torch.equal(head(queries, prior), prior_part(head, prior))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_of_any_precision(head: ValueHead, dtype: torch.dtype) -> None:
    queries, prior = torch.randn(7, DIM).to(dtype), torch.randn(7, ACTIONS)
    assert torch.equal(head(queries, prior), head(queries.float(), prior))


def test_duplicates_and_constant_features_are_finite(kind: Kind) -> None:
    for ridge in (0.0, 1e-6, 1.0):
        head = kind(ACTIONS, CAPACITY, DIM, k=K, ridge=ridge)
        head.memory.write(torch.ones(ACTIONS, CAPACITY, DIM), torch.tensor(SIZES), torch.randn(ACTIONS, CAPACITY, 1))
        correction = head.correction(torch.tensor([[1.0] * DIM, [0.0] * DIM]))
        assert correction.isfinite().all()
        assert (correction.abs() <= head.memory.targets.abs().amax((1, 2))).all()


def test_gradient_in_the_queries(kind: Kind) -> None:
    head = new_head(kind).double()
    fill(head)
    queries = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head.correction, (queries,))
    on_support = head.memory.features[0, :2].clone().requires_grad_()
    head.correction(on_support).sum().backward()
    assert on_support.grad is not None
    assert on_support.grad.isfinite().all()


def test_gradient_of_the_prior_is_one_unless_ignored(head: ValueHead) -> None:
    prior = torch.randn(7, ACTIONS, requires_grad=True)
    values = head(torch.randn(7, DIM), prior)
    if isinstance(head, NetworkFreeHead):
        assert not values.requires_grad
    else:
        values.sum().backward()
        assert prior.grad is not None
        assert (prior.grad == 1.0).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_predicts_without_gradients(head: ValueHead, mode: type[torch.no_grad] | type[torch.inference_mode]) -> None:
    queries = torch.randn(7, DIM, requires_grad=True)
    expected = head.correction(queries)
    with mode():
        torch.testing.assert_close(head.correction(queries), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [[0, 0, 0, 0], [24, 24, 24, 24], [1, 2, 3, 4]])
def test_state_round_trip_to_the_last_bit(kind: Kind, head: ValueHead, before: list[int]) -> None:
    queries, prior = torch.randn(7, DIM), torch.randn(7, ACTIONS)
    other = new_head(kind)
    fill(other, before)
    other.lengthscale.fill_(0.2)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(queries, prior), head(queries, prior))
    assert torch.equal(other.localise(queries).variance, head.localise(queries).variance)
    empty = new_head(kind)
    other.load_state_dict(empty.state_dict())
    assert torch.equal(other(queries, prior), prior_part(head, prior))


def test_state_holds_everything_and_no_counter(head: ValueHead) -> None:
    assert set(head.state_dict()) == {
        "optimistic_targets",
        "ridge_scale",
        "lengthscale",
        "amplitude",
        "memory.features",
        "memory.targets",
        "memory.half_norms",
        "memory.sizes",
    }
    assert list(head.parameters()) == []


def test_copies_are_equal_and_independent(head: ValueHead) -> None:
    queries = torch.randn(7, DIM)
    expected = head.correction(queries)
    copies = [copy.deepcopy(head), pickle.loads(pickle.dumps(head))]
    head.memory.clear()
    head.lengthscale.fill_(9.0)
    for other in copies:
        assert torch.equal(other.correction(queries), expected)

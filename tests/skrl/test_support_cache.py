"""What depends on supports alone is made once, and again after any change that can be seen."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skrl.support_cache
from skrl import ExactSearch, NetworkFreeHead, Prediction, SparseKernel, sparse_kernel
from skrl.search.exact import ExactIndex

QUERIES = torch.linspace(-1.0, 1.0, 21).view(7, 3)


class FarthestIndex(ExactIndex):
    """Answers with the farthest points."""

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        indices, mask = super().nearest(queries, self.features.shape[-2])
        return indices[..., -k:], mask[..., -k:]


class FarthestSearch(ExactSearch):
    """A search that nobody takes for the exact one."""

    def index(self, features: Tensor, half_norms: Tensor | None = None) -> FarthestIndex:
        return FarthestIndex(features, half_norms)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("skrl.compiling.AVAILABLE", False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry whenever supports are made ready."""
    calls: list[int] = []
    make = skrl.support_cache.make_support
    monkeypatch.setattr(skrl.support_cache, "make_support", lambda *args: calls.append(1) or make(*args))
    return calls


def sparse_module(**keywords: Any) -> SparseKernel:
    chosen: dict[str, Any] = {"k": 6, "lengthscale": 1.3, "ridge": 0.1} | keywords
    return SparseKernel(torch.randn(40, 3), torch.randn(40, 2), **chosen)


@torch.no_grad()
def assert_fresh(sparse: SparseKernel, queries: Tensor = QUERIES) -> None:
    """The module answers as the function does, which keeps nothing."""
    features, targets, lengthscale, ridge = sparse.features, sparse.targets, sparse.lengthscale, sparse.ridge
    assert features is not None
    assert targets is not None
    assert lengthscale is not None
    assert ridge is not None
    expected = sparse_kernel(queries, features, targets, k=6, lengthscale=lengthscale, ridge=ridge)
    answer = sparse.predict(queries)
    # To rounding: each has compiled loops of its own.
    torch.testing.assert_close(answer.mean, expected.mean)
    torch.testing.assert_close(answer.variance, expected.variance)


def test_supports_are_made_ready_once(made: list[int]) -> None:
    sparse = sparse_module()
    for _ in range(3):
        assert_fresh(sparse)
        sparse.leave_one_out(QUERIES)
        with torch.inference_mode():
            sparse(QUERIES)
        with torch.no_grad():
            sparse.targets.add_(1.0)  # type: ignore[union-attr]
            sparse.ridge.mul_(2.0)  # type: ignore[union-attr]
    assert len(made) == 1


CHANGES: dict[str, Callable[[SparseKernel], object]] = {
    "in place": lambda sparse: sparse.features.mul_(2.0),  # type: ignore[union-attr]
    "one row": lambda sparse: sparse.features[3].zero_(),  # type: ignore[index]
    "copied": lambda sparse: sparse.features.copy_(torch.randn(40, 3)),  # type: ignore[union-attr]
    "replaced": lambda sparse: setattr(sparse, "features", torch.randn(40, 3)),
    "loaded": lambda sparse: sparse.load_state_dict(sparse_module().state_dict()),
    "loaded another size": lambda sparse: sparse.load_state_dict(
        SparseKernel(torch.randn(9, 3), torch.randn(9, 2), lengthscale=0.5, ridge=0.1).state_dict()
    ),
    "other precision": lambda sparse: sparse.double(),
    "there and back": lambda sparse: sparse.bfloat16().float(),
    "another lengthscale": lambda sparse: sparse.lengthscale.fill_(0.4),  # type: ignore[union-attr]
    "a lengthscale per dimension": lambda sparse: setattr(sparse, "fixed_lengthscale", torch.tensor([0.5, 1.0, 2.0])),
    "in inference mode": torch.inference_mode()(lambda sparse: sparse.features.add_(1.0)),
}


ONCE = {"other precision", "another lengthscale", "a lengthscale per dimension"}
"""What changes nothing when it is done again."""


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(made: list[int], change: str) -> None:
    sparse = sparse_module()
    assert_fresh(sparse)
    for count in (2, 3):
        CHANGES[change](sparse)
        queries = QUERIES.to(sparse.features.dtype)  # type: ignore[union-attr]
        assert_fresh(sparse, queries)
        assert len(made) == (2 if change in ONCE else count)


OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "neighbours": {"k": 2},
    "kernel": {"kernel": "gaussian"},
    "localisation": {"localisation": "continuous"},
    "search": {"search": FarthestSearch()},
    "prior mean": {"prior_mean": lambda points: points[:, :2]},
}


@pytest.mark.parametrize("change", OTHER_SETTINGS)
@pytest.mark.parametrize("count", [1, 7])
def test_another_setting_is_seen(change: str, count: int) -> None:
    """However few queries were answered before."""
    sparse = sparse_module()
    sparse(QUERIES[:count])
    for name, value in OTHER_SETTINGS[change].items():
        setattr(sparse, name, value)
    fresh = SparseKernel(
        sparse.features, sparse.targets, **{"k": 6, "lengthscale": 1.3, "ridge": 0.1} | OTHER_SETTINGS[change]
    )
    torch.testing.assert_close(sparse(QUERIES[:count]), fresh(QUERIES[:count]))


WRONG_SETTINGS: dict[str, tuple[Callable[[SparseKernel], Any], str]] = {
    "negative ridge": (lambda sparse: sparse.ridge.fill_(-5.0), "ridge is -5.0, but must not be negative"),  # type: ignore[union-attr]
    "ridge that is no number": (lambda sparse: sparse.ridge.fill_(torch.nan), "ridge is nan"),  # type: ignore[union-attr]
    "unknown localisation": (lambda sparse: setattr(sparse, "localisation", "soft"), "localisation is 'soft'"),
    "no neighbours": (lambda sparse: setattr(sparse, "k", 0), "k is 0, but must be positive"),
    "fewer than none": (lambda sparse: setattr(sparse, "k", -2), "k is -2, but must be positive"),
    "fewer targets": (lambda sparse: setattr(sparse, "targets", torch.zeros(3, 2)), "equally many points"),
}


@pytest.mark.parametrize("change", WRONG_SETTINGS)
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.usefixtures("without_shape_checks")
def test_a_wrong_setting_is_refused_whenever_it_came(change: str, count: int) -> None:
    sparse = sparse_module()
    sparse(QUERIES[:count])
    spoil, message = WRONG_SETTINGS[change]
    spoil(sparse)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            sparse(QUERIES[:count])


def test_another_tensor_at_the_same_address_is_another_tensor() -> None:
    """Memory that is let go is soon handed out again."""
    sparse = sparse_module()
    for _ in range(20):
        assert_fresh(sparse)
        sparse.features = None
        sparse.features = torch.randn(40, 3)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_steps_of_a_learned_kernel_are_seen(made: list[int], optimizer: type[torch.optim.Optimizer]) -> None:
    """Each step makes a new lengthscale, often at the address of the last one."""
    sparse = sparse_module(learn_kernel=True)
    steps = optimizer(sparse.parameters(), lr=0.1)  # type: ignore[call-arg]
    for step in range(6):
        steps.zero_grad()
        sparse(QUERIES).square().sum().backward()
        steps.step()
        assert_fresh(sparse)
        assert_fresh(sparse)
        assert len(made) == step + 2
    with torch.no_grad():
        sparse.log_lengthscale.data.add_(1.0)  # type: ignore[union-attr]
    assert_fresh(sparse)


def test_learned_features_are_seen_however_they_are_written() -> None:
    """Polyak updates write to ``.data``, which counts no version."""
    sparse = SparseKernel(nn.Parameter(torch.randn(40, 3)), torch.randn(40, 2), k=6, lengthscale=1.3, ridge=0.1)
    for freeze in (False, True):
        sparse.features.requires_grad_(not freeze)  # type: ignore[union-attr]
        assert_fresh(sparse)
        sparse.features.data.mul_(0.5)  # type: ignore[union-attr]
        assert_fresh(sparse)


def test_a_prediction_in_inference_mode_does_not_hinder_training() -> None:
    data = torch.randn(40, 3), torch.randn(40, 2)
    with torch.inference_mode():
        inside = SparseKernel(*data, k=6, lengthscale=1.3, ridge=0.1)
        inside(QUERIES)
    for sparse in (inside, sparse_module(), sparse_module(learn_kernel=True), sparse_module(lengthscale=None)):
        with torch.inference_mode():
            before = sparse(QUERIES.clone())
        if sparse is inside:
            torch.testing.assert_close(sparse(QUERIES), before)
            continue
        queries = QUERIES.clone().requires_grad_()
        sparse(queries).sum().backward()
        assert queries.grad is not None
        torch.testing.assert_close(sparse(queries).detach(), before.clone())


@pytest.mark.parametrize("learned", [False, True])
def test_copies_and_pickles_hold_no_index(learned: bool) -> None:
    sparse = sparse_module(learn_kernel=learned)
    empty = len(pickle.dumps(sparse))
    assert_fresh(sparse)
    assert sparse._supports._known is not None
    assert len(pickle.dumps(sparse)) == empty
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert other._supports is not sparse._supports
        assert other._supports._known is None
        assert_fresh(other)
        with torch.no_grad():
            other.features.add_(1.0)
        assert_fresh(other)
        assert_fresh(sparse)


def test_an_empty_module_serves() -> None:
    sparse = SparseKernel(torch.zeros(0, 3), torch.zeros(0, 2), k=6)
    assert_fresh(sparse)
    sparse.load_state_dict(sparse_module().state_dict())
    assert_fresh(sparse)


def test_a_call_with_other_features_leaves_the_own_ones_ready(made: list[int]) -> None:
    sparse = sparse_module()
    assert_fresh(sparse)
    other = torch.randn(9, 3)
    answer = sparse.predict(QUERIES, features=other, targets=other)
    assert isinstance(answer, Prediction)
    assert_fresh(sparse)
    assert len(made) == 1


# Probes of a value head


RESIDUALS = torch.linspace(-1.0, 2.0, 120).sin().view(2, 60)


class CountingSearch(ExactSearch):
    """Counts how often it makes an index."""

    def __init__(self) -> None:
        self.made = 0

    def index(self, features: Tensor, half_norms: Tensor | None = None) -> ExactIndex:
        self.made += 1
        return ExactIndex(features, half_norms)


def probed_head(search: ExactSearch | None = None) -> NetworkFreeHead:
    head = NetworkFreeHead(2, 60, 3, k=6, search=search)
    head.memory.write(torch.randn(2, 60, 3), torch.tensor([60, 30]))
    return head


def assert_fresh_amplitude(head: NetworkFreeHead, residuals: Tensor = RESIDUALS) -> None:
    """A head that has kept nothing says the same to the last bit."""
    head.write_targets(residuals)
    fresh = NetworkFreeHead(2, 60, 3, k=head.k, search=head.search).to(head.amplitude.dtype)
    for name in ("features", "targets", "half_norms", "sizes"):
        setattr(fresh.memory, name, getattr(head.memory, name).clone())
    fresh.write_targets(residuals)
    assert torch.equal(head.amplitude, fresh.amplitude)


def test_probes_find_their_neighbours_once() -> None:
    search = CountingSearch()
    head = probed_head(search)
    amplitudes = set()
    for factor in (1.0, 2.0, 5.0):
        head.write_targets(factor * RESIDUALS)
        with torch.inference_mode():
            head.write_optimistic_targets(RESIDUALS)
            head.write_targets(RESIDUALS + factor * RESIDUALS.square())
        amplitudes.add(head.amplitude.item())
    assert search.made == 1
    assert len(amplitudes) == 3


MEMORY_CHANGES: dict[str, Callable[[NetworkFreeHead], object]] = {
    "written": lambda head: head.memory.write(torch.randn(2, 60, 3), torch.tensor([40, 60])),
    "fewer": lambda head: head.memory.write(head.memory.features.clone(), torch.tensor([5, 2])),
    "one row": lambda head: head.memory.write_slots(torch.tensor([3]), torch.randn(1, 3), torch.zeros(1, 1), 1),
    "a row more": lambda head: head.memory.append(torch.zeros(1, 3), torch.zeros(1, 1), 1),
    "cleared": lambda head: head.memory.clear(),
    "in inference mode": torch.inference_mode()(
        lambda head: head.memory.write(torch.randn(2, 60, 3), torch.tensor([60, 60]))
    ),
    "loaded": lambda head: head.load_state_dict(probed_head().state_dict()),
    "loaded into its place": lambda head: head.load_state_dict(probed_head().state_dict(), assign=True),
    "other precision": lambda head: head.double(),
    "there and back": lambda head: head.half().float(),
    "another k": lambda head: setattr(head, "k", 3),
    "another search": lambda head: setattr(head, "search", FarthestSearch()),
}


@pytest.mark.parametrize("change", MEMORY_CHANGES)
def test_every_change_of_a_memory_is_seen(change: str) -> None:
    head = probed_head()
    for _ in range(2):
        assert_fresh_amplitude(head)
        MEMORY_CHANGES[change](head)
        assert_fresh_amplitude(head)


def test_copies_and_pickles_of_a_head_hold_no_probes() -> None:
    head = probed_head()
    empty = len(pickle.dumps(head))
    assert_fresh_amplitude(head)
    assert len(pickle.dumps(head)) == empty
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other._near is not head._near
        other.memory.write(torch.randn(2, 60, 3), torch.tensor([60, 60]))
        assert_fresh_amplitude(other)
        assert_fresh_amplitude(head)


def test_a_memory_made_in_inference_mode_is_probed_at_every_write() -> None:
    with torch.inference_mode():
        head = probed_head()
        for _ in range(2):
            assert_fresh_amplitude(head)
            head.memory.features.mul_(-2.0)

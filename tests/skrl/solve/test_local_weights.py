"""The compiled and the plain torch path of a local query give the same numbers, and bad queries the prior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skrl.search.exact
import skrl.solve.local_weights
from skrl import compiling
from skrl.kernels import KERNELS, Kernel, Matern32, make_kernel
from skrl.memory import SupportMemory
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation, NeighborIndex
from skrl.solve.local_weights import LocalWeights, bounded_correction, ridge_weights

both_paths = pytest.mark.parametrize("plain", [False, True], ids=["compiled", "torch"])
needs_numba = pytest.mark.skipif(not compiling.AVAILABLE, reason="numba is not installed")


def memory(capacity: int, sizes: list[int], dim: int = 3, dtype: torch.dtype = torch.float64) -> SupportMemory:
    filled = SupportMemory(len(sizes), capacity, dim).to(dtype)
    filled.write(torch.randn(len(sizes), capacity, dim, dtype=dtype), torch.tensor(sizes))
    return filled


def read(
    queries: Tensor,
    supports: SupportMemory,
    k: int,
    ridge: float = 0.1,
    kernel: Kernel | None = None,
) -> LocalWeights:
    repeated = queries.expand(supports.sets, *queries.shape)
    lengthscale = torch.tensor(0.9, dtype=supports.features.dtype)
    index = ExactSearch().index(supports.features, supports.half_norms)
    return ridge_weights(repeated, supports.features, index, kernel or Matern32(), lengthscale, ridge, k)


def in_plain_torch(monkeypatch: pytest.MonkeyPatch, *args: object, **kwargs: object) -> LocalWeights:
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "AVAILABLE", False)
        patch.setattr(skrl.solve.local_weights, "compiled_weights", None)
        return read(*args, **kwargs)  # type: ignore[arg-type]


def by_slot(local: LocalWeights, capacity: int) -> Tensor:
    """Weights per support slot, so that the order among equal distances does not matter."""
    slots = local.weights.new_zeros(*local.weights.shape[:2], capacity)
    return slots.scatter_add(-1, local.indices, local.weights)


@needs_numba
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(("capacity", "sizes", "k"), [(1, [1, 0], 1), (12, [12, 5, 1, 0], 6), (600, [600, 431], 16)])
def test_both_paths_agree(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    dtype: torch.dtype,
    tolerance: float,
    capacity: int,
    sizes: list[int],
    k: int,
) -> None:
    supports = memory(capacity, sizes, dtype=dtype)
    queries = torch.cat([torch.randn(9, 3, dtype=dtype), supports.features[0, :1]])
    fast = read(queries, supports, k, kernel=make_kernel(kernel))
    plain = in_plain_torch(monkeypatch, queries, supports, k, kernel=make_kernel(kernel))
    torch.testing.assert_close(by_slot(fast, capacity), by_slot(plain, capacity), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fast.variance, plain.variance, rtol=tolerance, atol=tolerance)
    assert [values.dtype for values in fast] == [values.dtype for values in plain]
    assert [values.shape for values in fast] == [values.shape for values in plain]
    assert torch.equal(fast.jittered, plain.jittered)
    assert torch.equal(fast.failed, plain.failed)
    assert not fast.failed.any()


@needs_numba
def test_both_paths_repair_the_same_singular_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    supports = memory(4, [4, 4])
    supports.write(
        torch.tensor([[[0.0], [0.0], [50.0], [53.0]], [[0.0], [1.0], [50.0], [50.0]]]).double().expand(2, 4, 3),
        supports.sizes,
    )
    queries = torch.tensor([[0.1], [51.0]], dtype=torch.float64).expand(2, 3)
    fast, plain = read(queries, supports, 2, ridge=0.0), in_plain_torch(monkeypatch, queries, supports, 2, ridge=0.0)
    assert fast.jittered.tolist() == plain.jittered.tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(by_slot(fast, 4), by_slot(plain, 4), rtol=0.0, atol=1e-8)
    assert fast.weights.isfinite().all()


@both_paths
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [[40, 3], [0, 40]])
def test_nan_query_falls_back_alone(
    monkeypatch: pytest.MonkeyPatch, plain: bool, kernel: str, sizes: list[int]
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    supports = memory(40, sizes)
    queries = torch.randn(4, 3, dtype=torch.float64)
    healthy = read(queries, supports, 4, kernel=make_kernel(kernel))
    broken = queries.clone()
    broken[2, 1] = float("nan")
    local = read(broken, supports, 4, kernel=make_kernel(kernel))
    assert local.failed.tolist() == [[False, False, True, False]] * 2
    assert local.weights[:, 2].abs().max() == 0.0
    assert (local.variance[:, 2] == 1.0).all()
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(local.weights[:, others], healthy.weights[:, others], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(local.variance[:, others], healthy.variance[:, others], rtol=0.0, atol=1e-12)


@both_paths
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e30])
def test_endless_query_reads_the_prior(monkeypatch: pytest.MonkeyPatch, plain: bool, kernel: str, value: float) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    supports = memory(40, [40, 3], dtype=torch.float32)
    queries = torch.zeros(2, 3)
    queries[1, 0] = value
    local = read(queries, supports, 4, kernel=make_kernel(kernel))
    assert local.weights[:, 1].abs().max() == 0.0
    assert (local.variance[:, 1] == 1.0).all()
    assert local.weights[:, 0].abs().max() > 0.0


@both_paths
def test_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    supports = memory(30, [30, 2])
    queries = torch.randn(5, 3, dtype=torch.float64)
    together = read(queries, supports, 4)
    for b in range(5):
        alone = read(queries[b : b + 1], supports, 4)
        torch.testing.assert_close(together.weights[:, b], alone.weights[:, 0], rtol=1e-12, atol=1e-13)
    nobody = read(queries[:0], supports, 4)
    assert nobody.weights.shape == nobody.indices.shape == (2, 0, 4)


@needs_numba
@pytest.mark.parametrize("limit", [1, 100, 250])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    supports = memory(50, [50, 20])
    queries = torch.randn(7, 3, dtype=torch.float64)
    whole = read(queries, supports, 4)
    monkeypatch.setattr(skrl.search.exact, "MAX_COMPILED_SCORES", limit)
    monkeypatch.setattr(skrl.solve.local_weights, "MAX_GRAM", limit)
    chunked = read(queries, supports, 4)
    assert torch.equal(chunked.indices, whole.indices)
    torch.testing.assert_close(chunked.weights, whole.weights, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(chunked.variance, whole.variance, rtol=1e-12, atol=1e-13)


def test_gradients_are_there_when_wanted() -> None:
    """The compiled loops know no gradient, so a query that wants one takes the torch path."""
    supports = memory(20, [20, 7])
    queries = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: read(z, supports, 4)[1:3], (queries,))
    with torch.no_grad():
        assert not read(queries, supports, 4).weights.requires_grad


@needs_numba
def test_which_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    supports = memory(20, [20, 7])
    queries = torch.randn(3, 3, dtype=torch.float64)
    calls = []
    chunk = skrl.solve.local_weights.compiled_weights
    monkeypatch.setattr(skrl.solve.local_weights, "compiled_weights", lambda *args: calls.append(1) or chunk(*args))
    read(queries, supports, 4)
    assert len(calls) == 1
    read(queries.requires_grad_(), supports, 4)
    assert len(calls) == 1
    with torch.no_grad():
        read(queries, supports, 4)
    assert len(calls) == 2


# Reading residuals through weights


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_bounded_correction_by_hand(
    monkeypatch: pytest.MonkeyPatch, plain: bool, dtype: torch.dtype, index: torch.dtype
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    residuals = torch.tensor([[1.0, 2.0, -1.0, -3.0], [4.0, 5.0, 0.0, 0.0]], dtype=dtype)
    cases = [
        # set, neighbours, weights, the correction
        (0, (0, 1), (0.5, 0.25), 1.0),
        (0, (0, 1), (2.0, 3.0), 2.0),
        (0, (2, 3), (1.0, 1.0), -3.0),
        (0, (2, 1), (0.0, 9.0), 2.0),
        (0, (2, 1), (9.0, 0.0), -1.0),
        (1, (0, 1), (-1.0, 0.0), 0.0),
        (1, (1, 0), (0.5, 0.5), 4.5),
        (1, (2, 3), (7.0, 7.0), 0.0),
    ]
    for chosen, neighbors, weights, expected in cases:
        indices = torch.tensor([[neighbors]] * 2, dtype=index)
        corrections = bounded_correction(indices, torch.tensor([[weights]] * 2, dtype=dtype), residuals)
        assert corrections.dtype == dtype
        assert corrections.shape == (2, 1)
        assert corrections[chosen].item() == expected


@both_paths
def test_bounded_correction_never_leaves_its_bounds(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    weights, residuals = torch.randn(2, 500, 7, dtype=torch.float64), torch.randn(2, 30, dtype=torch.float64)
    indices = torch.randint(0, 30, (2, 500, 7))
    corrections = bounded_correction(indices, weights, residuals)
    local = torch.stack([residuals[s][indices[s]] for s in range(2)])
    low, high = local.amin(-1).clamp(max=0.0), local.amax(-1).clamp(min=0.0)
    assert ((corrections >= low) & (corrections <= high)).all()
    total = (weights * local).sum(-1)
    inside = (total > low) & (total < high)
    assert 100 < inside.sum() < 900
    torch.testing.assert_close(corrections[inside], total[inside])


@both_paths
def test_a_repeated_backup_cannot_diverge(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Weights of absolute sum 10 would multiply values at every sweep; the bound keeps the largest one."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    indices, weights = torch.arange(4).expand(1, 4, 4).contiguous(), torch.full((1, 4, 4), 2.5)
    values = torch.tensor([[1.0, -0.5, 0.25, 0.75]])
    for _ in range(100):
        values = bounded_correction(indices, weights, values)
    assert values.tolist() == [[1.0] * 4]


@both_paths
def test_bounded_correction_of_no_query(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    indices = torch.zeros(2, 0, 3, dtype=torch.long)
    assert bounded_correction(indices, torch.zeros(2, 0, 3), torch.zeros(2, 5)).shape == (2, 0)


def test_bounded_correction_gradients() -> None:
    weights = torch.tensor([[[0.5, 0.25], [9.0, 9.0]]], dtype=torch.float64, requires_grad=True)
    residuals = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[[0, 1], [0, 1]]])
    assert torch.autograd.gradcheck(lambda w, r: bounded_correction(indices, w, r), (weights, residuals))
    with torch.no_grad():
        assert bounded_correction(indices, weights, residuals).tolist() == [[1.0, 2.0]]


@both_paths
@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_localisation_is_an_error(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    supports = memory(10, [10])
    index = ExactSearch().index(supports.features, supports.half_norms)
    with pytest.raises(ValueError, match="localisation is 'soft', but must be one of hard, continuous"):
        ridge_weights(
            supports.features,
            supports.features,
            index,
            Matern32(),
            1.0,
            0.1,
            3,
            "soft",  # type: ignore[arg-type]
        )


@needs_numba
@pytest.mark.parametrize("localisation", ["hard", "continuous"])
def test_an_index_may_answer_in_any_layout(localisation: Localisation) -> None:
    """Such as columns of a larger answer."""

    class Strided(NeighborIndex):
        def __init__(self, index: NeighborIndex) -> None:
            self.index = index

        def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
            return tuple(torch.stack([values, values], -1)[..., 1] for values in self.index.nearest(queries, k))  # type: ignore[return-value]

    supports = memory(30, [30, 2])
    index = ExactSearch().index(supports.features, supports.half_norms)
    queries = torch.randn(3, 5, dtype=torch.float64).T.expand(2, 5, 3)
    both = [
        ridge_weights(queries, supports.features, chosen, Matern32(), 0.9, 0.1, 4, localisation)
        for chosen in (index, Strided(index))
    ]
    for ours, theirs in zip(*both, strict=True):
        assert torch.equal(ours, theirs)


@both_paths
def test_ended_windows_need_no_jitter(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Neighbours as far as the one behind them have no say, also without a ridge, where their rows would be zero."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    features = torch.tensor([[[0.5], [1.0], [-1.0], [1.0]]], dtype=torch.float64)
    index = ExactSearch().index(features)
    local = ridge_weights(torch.zeros(1, 1, 1).double(), features, index, Matern32(), 1.0, 0.0, 3, "continuous")
    assert local.jittered.tolist() == local.failed.tolist() == [[False]]
    assert local.indices[0, 0, 0] == 0
    expected = Matern32()(torch.tensor(0.5, dtype=torch.float64)) / 1.0
    torch.testing.assert_close(local.weights[0, 0], torch.tensor([expected, 0.0, 0.0], dtype=torch.float64))

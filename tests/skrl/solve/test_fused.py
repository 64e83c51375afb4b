"""The fused kernel, run by Triton's interpreter on a CPU: the numbers, the flags and the edges of the torch path."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from skrl import ResidualHead, compiling, sparse_kernel
from skrl.kernels import Gaussian, InverseMultiquadric, Kernel, Laplace, Matern32, Wendland, make_kernel
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation, NeighborIndex, local_neighbors
from skrl.solve import fused, local_weights
from skrl.solve.cholesky import JITTERS
from skrl.solve.local_solve import factorise
from skrl.solve.local_weights import LocalWeights, fused_weights, ridge_weights

# The interpreter computes with NumPy, which warns where a GPU just returns infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning")

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(fused.FORMULAS.values())
LENGTHSCALE, RIDGE = 0.9, 0.1

needs_triton = pytest.mark.skipif(not fused.AVAILABLE, reason="Triton is not installed: pip install '.[triton]'")
needs_interpreter = pytest.mark.skipif(
    not fused.AVAILABLE or os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton is not installed, or runs on a GPU here: pip install '.[triton]', TRITON_INTERPRET=1",
)
both_localisations = pytest.mark.parametrize("localisation", ["hard", "continuous"])


@pytest.fixture
def _fuses_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(compiling, "AVAILABLE", False)


def solve(
    queries: Tensor,
    features: Tensor,
    index: NeighborIndex,
    k: int,
    localisation: Localisation = "hard",
    kernel: Kernel | None = None,
    lengthscale: Tensor | float = LENGTHSCALE,
    ridge: Tensor | float = RIDGE,
) -> LocalWeights:
    found, present = index.nearest(queries, k + (localisation == "continuous"))
    return fused_weights(queries, features, found, present, kernel or Matern32(), lengthscale, ridge, k, localisation)


def in_torch(
    queries: Tensor,
    features: Tensor,
    index: NeighborIndex,
    k: int,
    localisation: Localisation = "hard",
    kernel: Kernel | None = None,
    ridge: float = RIDGE,
) -> LocalWeights:
    neighbors, radius = local_neighbors(index, queries, features, k, localisation)
    system = factorise(neighbors, features, kernel or Matern32(), LENGTHSCALE, ridge, radius)
    weights = system.weights()
    failed = system.failed | ~queries.isfinite().all(-1)
    return LocalWeights(neighbors.indices, weights, system.variance(weights), system.jittered, failed)


def assert_same(actual: LocalWeights, expected: LocalWeights, tolerance: float = 1e-5) -> None:
    assert torch.equal(actual.indices, expected.indices)
    for name in ("weights", "variance"):
        values, reference = getattr(actual, name), getattr(expected, name)
        torch.testing.assert_close(values, reference.to(values.dtype), rtol=0.0, atol=tolerance)
    assert torch.equal(actual.jittered, expected.jittered)
    assert torch.equal(actual.failed, expected.failed)


@needs_interpreter
@both_localisations
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_torch_path_in_both_precisions(name: str, localisation: Localisation) -> None:
    features, queries = torch.randn(1, 30, 3), torch.randn(1, 2, 3)
    queries[0, 1] = features[0, 4]
    kernel, k = make_kernel(name), 5
    actual = solve(queries, features, ExactSearch().index(features), k, localisation, kernel)
    assert actual.weights.abs().amax(-1).min() > 0.1
    for dtype in (torch.float32, torch.float64):
        converted = features.to(dtype)
        index = ExactSearch().index(converted)
        assert_same(actual, in_torch(queries.to(dtype), converted, index, k, localisation, kernel))


@needs_interpreter
def test_more_neighbours_than_a_warp_has_lanes_and_more_dimensions_than_one_block() -> None:
    features, queries = torch.randn(1, 60, 45), torch.randn(1, 1, 45)
    index = ExactSearch().index(features)
    actual = solve(queries, features, index, 33, "continuous", Gaussian(), torch.tensor(LENGTHSCALE * 9.0))
    expected = in_torch(
        queries / 9.0, features / 9.0, ExactSearch().index(features / 9.0), 33, "continuous", Gaussian()
    )
    assert_same(actual, expected)


@needs_interpreter
@both_localisations
def test_sets_of_unequal_fill_and_a_setting_in_memory(localisation: Localisation) -> None:
    features = torch.randn(3, 7, 2)
    filled = torch.arange(7) < torch.tensor([[7], [3], [0]])
    half_norms = torch.where(filled, 0.5 * features.square().sum(-1), torch.inf)
    index = ExactSearch().index(features, half_norms)
    queries = torch.randn(2, 2).expand(3, 2, 2)
    actual = solve(queries, features, index, 4, localisation, None, torch.tensor(LENGTHSCALE), torch.tensor(RIDGE))
    assert_same(actual, in_torch(queries, features, index, 4, localisation))
    assert actual.weights[2].abs().max() == 0.0
    assert (actual.variance[2] == 1.0).all()


@needs_interpreter
@pytest.mark.parametrize("k", [1, 9])
def test_as_many_neighbours_as_supports_have_no_window(k: int) -> None:
    features, queries = torch.randn(1, k, 2), torch.randn(1, 2, 2)
    index = ExactSearch().index(features)
    actual = solve(queries, features, index, 9, "continuous")
    assert_same(actual, in_torch(queries, features, index, 9, "continuous"))
    assert_same(actual, in_torch(queries, features, index, 9, "hard"))


@needs_interpreter
def test_only_singular_systems_get_jitter() -> None:
    features = torch.tensor([[[0.0], [0.0], [50.0], [51.0]]])
    queries = torch.tensor([[[50.2], [0.1]]])
    index = ExactSearch().index(features)
    actual = solve(queries, features, index, 2, ridge=0.0)
    expected = in_torch(queries, features, index, 2, ridge=0.0)
    assert actual.jittered.tolist() == expected.jittered.tolist() == [[False, True]]
    assert not actual.failed.any()
    torch.testing.assert_close(actual.weights[0, 0], expected.weights[0, 0], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(actual.weights.sum(-1), expected.weights.sum(-1), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(actual.variance, expected.variance, rtol=0.0, atol=1e-5)
    assert (actual.weights[0, 1] > 0.0).all()


@needs_interpreter
@pytest.mark.parametrize(("ridge", "jitter"), [(0.0, JITTERS[1]), (0.0, JITTERS[2]), (1.0, JITTERS[2]), (0.0, None)])
def test_the_least_jitter_that_works_is_taken(ridge: float, jitter: float | None) -> None:
    """exp(+r), a negative lengthscale, exceeds the diagonal; the weights then differ by Δκ / (1 + λ + jitter − κ)."""
    largest = 1.0 + ridge
    value = largest * (1.0 + 0.75 * (jitter or 10.0 * JITTERS[-1]))
    features, queries = torch.tensor([[[0.0], [math.log(value)]]]), torch.tensor([[[-1.0]]])
    local = solve(queries, features, ExactSearch().index(features), 2, kernel=Laplace(), lengthscale=-1.0, ridge=ridge)
    assert local.jittered.item() == (jitter is not None)
    assert local.failed.item() == (jitter is None)
    if jitter is not None:
        difference = (local.weights[0, 0, 1] - local.weights[0, 0, 0]).item()
        assert difference == pytest.approx(math.e * (value - 1.0) / (largest * (1.0 + jitter) - value), rel=0.2)


@needs_interpreter
def test_hopeless_systems_and_strange_queries_answer_with_the_prior() -> None:
    """exp(+r), a negative lengthscale, is no kernel: no jitter makes its matrix positive definite."""
    features, queries = torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[[0.2], [float("nan")]]])
    index = ExactSearch().index(features)
    hopeless = solve(queries, features, index, 2, kernel=Laplace(), lengthscale=-1.0)
    strange = solve(queries, features, index, 2, kernel=Laplace())
    assert hopeless.failed.tolist() == [[True, True]]
    assert strange.failed.tolist() == [[False, True]]
    assert not hopeless.jittered.any()
    for local in (hopeless, strange):
        assert local.weights[0, 1].tolist() == [0.0, 0.0]
        assert local.variance[0, 1] == 1.0
    assert hopeless.weights[0, 0].tolist() == [0.0, 0.0]


@needs_interpreter
def test_distances_that_overflow_answer_with_the_prior() -> None:
    features, queries = torch.tensor([[[0.0], [1.0], [1e30]]]), torch.tensor([[[0.2], [0.3], [torch.inf]]])
    found = torch.tensor([[[0, 1], [1, 2], [0, 1]]])
    present = torch.ones(1, 3, 2, dtype=torch.bool)
    local = fused_weights(queries, features, found, present, Matern32(), LENGTHSCALE, RIDGE, 2, "hard")
    assert local.failed.tolist() == [[False, True, True]]
    assert local.weights[0, 1:].tolist() == [[0.0, 0.0]] * 2
    assert local.variance[0, 1:].tolist() == [1.0, 1.0]
    assert local.weights[0, 0, 0] > local.weights[0, 0, 1] > 0.0


@needs_interpreter
@pytest.mark.parametrize("ridge", [0.0, RIDGE])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_more_duplicates_than_neighbours_in_windows(offset: float, ridge: float) -> None:
    """On them all have their full say; beside them all windows have ended, exactly."""
    features = torch.full((1, 5, 3), 0.7)
    queries = features[:, :1] + offset
    index = ExactSearch().index(features)
    actual = solve(queries, features, index, 3, "continuous", ridge=ridge)
    assert_same(actual, in_torch(queries, features, index, 3, "continuous", ridge=ridge))
    assert (actual.variance.item() == 1.0) == (offset > 0.0)


@needs_interpreter
def test_no_query_at_all() -> None:
    features = torch.randn(1, 5, 3)
    local = solve(torch.empty(1, 0, 3), features, ExactSearch().index(features), 3)
    assert local.weights.shape == (1, 0, 3)


@needs_interpreter
@both_localisations
@pytest.mark.usefixtures("_fuses_on_cpu")
def test_queries_without_gradient_are_fused(monkeypatch: pytest.MonkeyPatch, localisation: Localisation) -> None:
    queries, features, targets = torch.randn(2, 3), torch.randn(9, 3), torch.randn(9, 2)
    settings = {"k": 3, "lengthscale": torch.tensor([0.8, 0.9, 1.0]), "ridge": RIDGE, "localisation": localisation}
    expected = sparse_kernel(queries.requires_grad_(), features, targets, **settings)
    monkeypatch.setattr("skrl.functional.local_systems", None)
    monkeypatch.setattr(local_weights, "factorise", None)
    with torch.no_grad():
        actual = sparse_kernel(queries, features, targets, **settings)
    torch.testing.assert_close(actual.mean, expected.mean.detach(), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(actual.variance, expected.variance.detach(), rtol=0.0, atol=1e-5)
    with pytest.raises(TypeError):
        sparse_kernel(queries, features, targets, **settings)


@needs_interpreter
@pytest.mark.usefixtures("_fuses_on_cpu")
def test_heads_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    head = ResidualHead(2, 9, 3, k=3)
    head.memory.write(torch.randn(2, 9, 3), torch.tensor([9, 2]), torch.randn(2, 9, 1))
    queries = torch.randn(2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "AVAILABLE", False)
        expected = head.correction(queries)
    monkeypatch.setattr(local_weights, "factorise", None)
    torch.testing.assert_close(head.correction(queries), expected, rtol=0.0, atol=1e-5)


@needs_triton
def test_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    features = torch.randn(100, 3)
    learned = torch.ones((), requires_grad=True)
    assert fused.fuses(InverseMultiquadric(), 64, features, 1.0, torch.ones(()))
    assert not fused.fuses(Gaussian(), 65, features)
    assert fused.fuses(Gaussian(), 65, features[:64])
    assert not fused.fuses(Gaussian(), 5, features[:0])
    assert not fused.fuses(Gaussian(), 5, features[:, :0])
    assert not fused.fuses(Gaussian(), 5, features.double())
    assert not fused.fuses(Gaussian(), 5, features, torch.ones((), dtype=torch.float64))
    assert not fused.fuses(Gaussian(), 5, features, torch.ones(3))
    assert not fused.fuses(Gaussian() + Laplace(), 5, features)
    assert not any(fused.fuses(kernel(), 5, features) for kernel in Wendland.__subclasses__())
    assert not fused.fuses(Gaussian(), 5, features, learned)
    with torch.no_grad():
        assert fused.fuses(Gaussian(), 5, features, learned)
    monkeypatch.setattr(fused, "DEVICE", "cuda")
    assert not fused.fuses(Gaussian(), 5, features)


def test_ridge_weights_need_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(fused, "AVAILABLE", False)
    monkeypatch.setattr(compiling, "AVAILABLE", False)
    features, queries = torch.randn(1, 9, 3), torch.randn(1, 2, 3)
    index = ExactSearch().index(features)
    local = ridge_weights(queries, features, index, Matern32(), LENGTHSCALE, RIDGE, 3)
    assert_same(local, in_torch(queries, features, index, 3))


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from skrl.solve import fused_kernels

types = {"found": "*i64", "present": "*i1", "lengthscale": "fp32", "jittered": "*i1", "failed": "*i1"}
pointers = ("queries", "features", "ridge", "weights", "variance")
sizes = ("rows_per_set", "entries_per_set", "dim", "k", "columns")
signature = types | dict.fromkeys(pointers, "*fp32") | dict.fromkeys(sizes, "i32")
ones = {"rows_per_set": 1, "dim": 1, "k": 1, "columns": 1}  # Triton makes constants of arguments that are one
for name, width, depth, warps, architecture, specialised in (
    ("matern52", 32, 4, 1, 80, {}),
    ("gaussian", 64, 4, 2, 90, {}),
    ("laplace", 1, 1, 1, 90, ones),
):
    constants = dict(kernel=name, windowed=True, lengthscale_is_pointer=False, ridge_is_pointer=True,
                     first_jitter=1e-6, attempts=4, width=width, depth=depth) | specialised
    source = ASTSource(fused_kernels.solve_query, signature | dict.fromkeys(constants, "constexpr"), constants)
    code = compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps}).asm
    assert ".local" not in code["ptx"], "a matrix left the registers"
    print(name, len(code["cubin"]))
"""


@needs_triton
def test_compiles_for_a_gpu_without_one(tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler does; another process, since this one interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["matern52", "gaussian", "laplace"]

"""Queries on a GPU: fused, captured and compiled they equal the plain ones, and none waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from skrl import KERNELS, ResidualHead, SparseKernel, sparse_kernel
from skrl.cuda_graph import CapturedQuery, capture, errors_for_waiting
from skrl.kernels import Matern32
from skrl.search import exact
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation
from skrl.solve import fused
from skrl.solve.cholesky import invert, solve
from skrl.solve.local_weights import ridge_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

both_localisations = pytest.mark.parametrize("localisation", ["hard", "continuous"])


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fused" and not fused.AVAILABLE:
        pytest.skip("Triton is not installed: pip install '.[triton]'")
    monkeypatch.setattr(fused, "AVAILABLE", request.param == "fused")
    return str(request.param)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.cpu().double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
@both_localisations
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_cpu(path: str, kernel: str, localisation: Localisation) -> None:
    queries, features, targets = torch.randn(300, 5), torch.randn(2000, 5), torch.randn(2000, 2)
    settings = {"kernel": kernel, "k": 12, "ridge": 0.1, "localisation": localisation}
    expected = sparse_kernel(queries.double(), features.double(), targets.double(), **settings)
    with torch.no_grad():
        actual = sparse_kernel(queries.cuda(), features.cuda(), targets.cuda(), **settings)
    assert_near(actual.mean, expected.mean)
    assert_near(actual.variance, expected.variance)


@pytest.mark.parametrize("path", ["fused"], indirect=True)
@pytest.mark.parametrize("dim", [1, 3, 64, 200])
@pytest.mark.parametrize("k", [1, 2, 5, 16, 32, 33, 64])
def test_every_size_of_the_fused_kernel_equals_float64(path: str, k: int, dim: int) -> None:
    features, queries = torch.randn(2, 500, dim), torch.randn(2, 40, dim)
    lengthscale = 2.0 * dim**0.5
    for localisation in ("hard", "continuous"):
        arguments = Matern32(), lengthscale, 0.5, k, localisation
        exact = ridge_weights(queries.double(), features.double(), ExactSearch().index(features.double()), *arguments)
        on_device = features.cuda()
        actual = ridge_weights(queries.cuda(), on_device, ExactSearch().index(on_device), *arguments)
        assert_near(actual.variance, exact.variance)
        assert_near(actual.weights.sort(-1).values, exact.weights.sort(-1).values)
        assert not actual.failed.any()
        assert not actual.jittered.any()


@pytest.mark.parametrize("k", [0, 1, 5, 64])
def test_factors_solve_and_invert_as_on_the_cpu(k: int) -> None:
    root = torch.randn(20, k, k, dtype=torch.float64)
    root = root @ root.mT + torch.eye(k)
    factor, right = torch.linalg.cholesky_ex(root).L, torch.randn(20, k, 3, dtype=torch.float64)
    assert_near(solve(factor.cuda(), right.cuda()), solve(factor, right), 1e-9)
    assert_near(invert(factor.cuda()), invert(factor), 1e-9)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_near(solve(factor.cuda().float(), right.cuda().float()), solve(factor, right), 1e-4)
        assert_near(invert(factor.cuda().float()), invert(factor), 1e-4)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_many_queries_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, features = torch.randn(100, 3, dtype=torch.float64), torch.randn(500, 3, dtype=torch.float64)
    monkeypatch.setattr(exact, "MAX_DEVICE_SCORES", 3500)
    found = ExactSearch()(queries.cuda(), features.cuda(), 5).indices
    assert torch.equal(found.cpu(), torch.cdist(queries, features).topk(5, largest=False).indices)


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
def test_singular_and_strange_systems_are_flagged(path: str) -> None:
    features = torch.tensor([[[0.0], [0.0], [50.0], [51.0]]], device="cuda")
    queries = torch.tensor([[[50.2], [0.1], [float("nan")]]], device="cuda")
    local = ridge_weights(queries, features, ExactSearch().index(features), Matern32(), 1.0, 0.0, 2)
    assert local.jittered.tolist() == [[False, True, False]]
    assert local.failed.tolist() == [[False, False, True]]
    assert local.weights[0, 2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
def test_beside_more_duplicates_than_neighbours_every_window_has_ended(path: str) -> None:
    features = torch.full((1, 9, 40), 0.7, device="cuda")
    index = ExactSearch().index(features)
    queries = features[:, :1] + torch.linspace(0.1, 1.0, 50, device="cuda").view(1, 50, 1)
    local = ridge_weights(queries, features, index, Matern32(), 1.0, 0.1, 8, "continuous")
    assert_near(local.variance, torch.ones(1, 50), 1e-6)
    assert_near(local.weights, torch.zeros(1, 50, 8), 1e-6)


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
@both_localisations
def test_no_query_waits_for_the_device(path: str, localisation: Localisation) -> None:
    module = SparseKernel(
        torch.randn(500, 4), torch.randn(500, 2), k=8, lengthscale=1.0, ridge=0.1, localisation=localisation
    ).cuda()
    head = ResidualHead(3, 200, 4, k=8).cuda()
    queries = torch.randn(50, 4, device="cuda")
    learned = queries.clone().requires_grad_()
    with errors_for_waiting():
        with torch.no_grad():
            module.predict(queries)
            head(queries, queries[:, :3])
        module(learned).sum().backward()
    assert learned.grad is not None


def test_waiting_is_an_error() -> None:
    with errors_for_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device="cuda").item()


def rewritten(captured: CapturedQuery[Tensor], plain: Callable[..., Tensor], rewrite: Callable[[], None]) -> None:
    """The captured query equals the plain one, also after its supports were rewritten in place."""
    for _ in range(3):
        inputs = [torch.randn_like(values) for values in captured.inputs]
        with torch.no_grad():
            torch.testing.assert_close(captured(*inputs), plain(*inputs), rtol=1e-5, atol=1e-5)
        rewrite()


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
def test_captured_head_equals_the_plain_one(path: str) -> None:
    head = ResidualHead(2, 1000, 4, k=8).cuda()

    def rewrite() -> None:
        sizes = torch.randint(0, 1001, (2,)).cuda()
        head.memory.write(torch.randn(2, 1000, 4, device="cuda"), sizes, torch.randn(2, 1000, 1, device="cuda"))

    rewrite()
    rewritten(capture(head, torch.randn(32, 4).cuda(), torch.randn(32, 2).cuda()), head, rewrite)
    assert head.fallbacks.item() == 0


@pytest.mark.parametrize("path", ["torch", "fused"], indirect=True)
@both_localisations
def test_captured_module_equals_the_plain_one(path: str, localisation: Localisation) -> None:
    module = SparseKernel(
        torch.randn(500, 4), torch.randn(500, 2), k=8, lengthscale=1.0, ridge=0.1, localisation=localisation
    ).cuda()

    def rewrite() -> None:
        for values in (module.features, module.targets):
            values.copy_(torch.randn_like(values))

    rewritten(capture(module, torch.randn(32, 4).cuda()), module, rewrite)


def halfway(queries: Tensor) -> Tensor:
    """Waits in a capture alone, which nothing sees beforehand."""
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    return queries


@pytest.mark.parametrize("waits", [lambda queries: queries * queries.max().item(), halfway], ids=["always", "halfway"])
def test_what_waits_cannot_be_captured(waits: Callable[[Tensor], Tensor]) -> None:
    head = ResidualHead(2, 100, 4, k=8).cuda()
    queries, stream = torch.randn(32, 4).cuda(), torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="cannot be captured"):
        capture(waits, queries)
    assert torch.cuda.current_stream() == stream
    assert torch.randn(1000, device="cuda").std() > 0.8
    with torch.no_grad():
        torch.testing.assert_close(capture(head.correction, queries)(queries), head.correction(queries))


@both_localisations
@pytest.mark.usefixtures("without_shape_checks")
def test_gradients_equal_those_on_the_cpu(localisation: Localisation) -> None:
    network = nn.Sequential(
        nn.Linear(4, 3),
        SparseKernel(
            torch.randn(500, 3), torch.randn(500, 2), k=8, lengthscale=1.0, ridge=0.1, localisation=localisation
        ),
    )
    queries = torch.randn(40, 4)
    expected = torch.autograd.grad(network(queries).square().sum(), list(network.parameters()))
    network.cuda()
    actual = torch.autograd.grad(network(queries.cuda()).square().sum(), list(network.parameters()))
    for mine, theirs in zip(actual, expected, strict=True):
        assert_near(mine, theirs, 1e-3)

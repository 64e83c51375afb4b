"""Sparse Kernels under torch.compile, torch.export, torch.func and checkpointing: the numbers of a plain call."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Raised by torch about its own code when it loads forward-mode derivatives.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

DIM, TARGETS = 3, 2

both_localisations = pytest.mark.parametrize("localisation", ["hard", "continuous"])


def modules_of_package() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "skrl"}


@pytest.fixture(scope="module")
def skrl() -> Iterator[ModuleType]:
    """The package without the checker of shape annotations, which no compiler can read: loaded again for this file."""
    checked, finders = modules_of_package(), sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in finders if not type(finder).__module__.startswith("jaxtyping")]
    for name in checked:
        del sys.modules[name]
    try:
        yield importlib.import_module("skrl")
    finally:
        sys.meta_path[:] = finders
        for name in modules_of_package():
            del sys.modules[name]
        sys.modules.update(checked)


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def fixed_kernel(skrl: ModuleType, localisation: str = "hard") -> nn.Module:
    return skrl.SparseKernel(
        torch.randn(200, DIM), torch.randn(200, TARGETS), k=5, lengthscale=1.0, ridge=0.05, localisation=localisation
    )


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def answers_and_gradients(function: Callable[..., Tensor], queries: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    queries = queries.detach().requires_grad_()
    answers = function(queries)
    return [answers, *torch.autograd.grad(answers.square().sum(), [queries, *parameters])]


# torch.compile


@pytest.mark.parametrize(("backend", "batches"), [("eager", (3, 7, 50)), ("aot_eager", (7,))])
@both_localisations
def test_compiled_network_equals_the_plain_one_at_every_batch_size(
    skrl: ModuleType, localisation: str, backend: str, batches: tuple[int, ...]
) -> None:
    network = nn.Sequential(nn.Linear(4, DIM), fixed_kernel(skrl, localisation), nn.Linear(TARGETS, 1))
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=len(batches) > 1)
    parameters = list(network.parameters())
    for batch in batches:
        queries = torch.randn(batch, 4)
        with torch.compiler.set_stance("default" if batch == batches[0] else "fail_on_recompile"):
            results = answers_and_gradients(compiled, queries, parameters)
        for actual, expected in zip(results, answers_and_gradients(network, queries, parameters), strict=True):
            assert_near(actual, expected, 1e-4)


def test_a_learned_kernel_trains_when_compiled(skrl: ModuleType) -> None:
    module = skrl.SparseKernel(
        nn.Parameter(torch.randn(20, DIM)),
        nn.Parameter(torch.randn(20, TARGETS)),
        nn.Parameter(torch.randn(6, DIM)),
        k=5,
        lengthscale=1.0,
        ridge=0.1,
        learn_kernel=True,
        prior_mean=nn.Linear(DIM, TARGETS),
    )
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    parameters = list(module.parameters())
    assert len(parameters) == 7
    for actual, expected in zip(
        torch.autograd.grad(compiled().square().sum(), parameters),
        torch.autograd.grad(module().square().sum(), parameters),
        strict=True,
    ):
        assert expected.abs().max() > 0.0
        assert_near(actual, expected)


def test_compiled_module_sees_supports_that_are_rewritten_in_place(skrl: ModuleType) -> None:
    module, other = fixed_kernel(skrl), fixed_kernel(skrl)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    queries = torch.randn(6, DIM)
    with torch.no_grad():
        before = compiled(queries)
        module.load_state_dict(other.state_dict())
        assert_near(compiled(queries), other(queries))
        assert (compiled(queries) - before).abs().max() > 0.1


def test_compiled_module_heeds_autocast(skrl: ModuleType) -> None:
    module = fixed_kernel(skrl)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    queries = torch.randn(6, DIM)
    expected = module(queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(compiled(queries), expected)
        assert_near(module(queries), expected)


def test_products_that_may_be_rounded_break_no_graph(skrl: ModuleType) -> None:
    """A program multiplies as the process says when it runs."""
    module, queries = fixed_kernel(skrl), torch.randn(6, DIM)
    expected = module(queries)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_near(torch.compile(module, backend="eager", fullgraph=True)(queries), expected, 0.1)
        exported_and_loaded(module, queries)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["ResidualHead", "AveragingHead"])
def test_compiled_head_equals_the_plain_one(skrl: ModuleType, name: str) -> None:
    """Its counters, which are written in place, count alike."""
    head = getattr(skrl, name)(2, 40, DIM, k=4)
    compiled = torch.compile(head, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch in (6, 9):
            head.memory.write(torch.randn(2, 40, DIM), torch.tensor([40, 3]), torch.randn(2, 40, 1))
            queries, prior_mean = torch.randn(batch, DIM), torch.randn(batch, 2)
            queries[2] = float("nan")
            assert_near(compiled(queries, prior_mean), head(queries, prior_mean))
            assert_near(compiled.optimistic(queries, prior_mean, 0.5), head.optimistic(queries, prior_mean, 0.5))
    assert head.fallbacks.item() == 2 * 2 * 2 * 2


# torch.export


def exported_and_loaded(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """The exported program with an open batch size, and the same after a round trip through a file."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return [program.module(), torch.export.load(file).module()]


@both_localisations
def test_exported_program_equals_the_module_at_every_batch_size(skrl: ModuleType, localisation: str) -> None:
    module = fixed_kernel(skrl, localisation)
    programs = exported_and_loaded(module, torch.randn(4, DIM))
    for batch in (1, 2, 7, 50):
        queries = torch.randn(batch, DIM)
        for program in programs:
            assert_near(program(queries), module(queries))


def test_exported_program_repairs_the_same_systems(skrl: ModuleType) -> None:
    """Equal supports without ridge are singular; the program cannot look whether one is."""
    features, targets = torch.randn(20, DIM, dtype=torch.float64), torch.randn(20, TARGETS, dtype=torch.float64)
    features[1], targets[1] = features[0], targets[0]
    module = skrl.SparseKernel(features, targets, k=4, lengthscale=1.0, ridge=0.0)
    queries = features[:6] + 0.01
    neighbors = skrl.ExactSearch()(queries, features, 4)
    system = skrl.factorise(neighbors, features, skrl.Matern32(), 1.0, 0.0)
    assert 2 <= system.jittered.sum() < 6
    for program in exported_and_loaded(module, queries):
        assert_near(program(queries), module(queries), 1e-6)


def test_exported_head_equals_the_head(skrl: ModuleType) -> None:
    head = skrl.ResidualHead(2, 40, DIM, k=4)
    head.memory.write(torch.randn(2, 40, DIM), torch.tensor([40, 3]), torch.randn(2, 40, 1))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        head, (torch.randn(4, DIM), torch.randn(4, 2)), dynamic_shapes=({0: batch}, {0: batch}), strict=False
    )
    for count in (1, 9):
        queries, prior_mean = torch.randn(count, DIM), torch.randn(count, 2)
        assert_near(program.module()(queries, prior_mean), head(queries, prior_mean))


# torch.func and checkpoints


@both_localisations
def test_vmap_equals_a_batch(skrl: ModuleType, localisation: str) -> None:
    module = fixed_kernel(skrl, localisation)
    queries = torch.randn(6, DIM)
    assert_near(torch.func.vmap(lambda query: module(query.unsqueeze(0))[0])(queries), module(queries))


def test_derivatives_of_both_modes_equal_those_of_autograd(skrl: ModuleType) -> None:
    features, targets = torch.randn(30, DIM, dtype=torch.float64), torch.randn(30, TARGETS, dtype=torch.float64)
    queries = torch.randn(4, DIM, dtype=torch.float64)

    def predict(query: Tensor, lengthscale: Tensor) -> Tensor:
        return skrl.sparse_kernel(query.unsqueeze(0), features, targets, lengthscale=lengthscale, k=5).mean[0]

    one = torch.ones((), dtype=torch.float64)
    for argument in (0, 1):
        expected = torch.stack(
            [torch.autograd.functional.jacobian(predict, (query, one))[argument] for query in queries]
        )
        for mode in (torch.func.jacrev, torch.func.jacfwd):
            jacobian = torch.func.vmap(mode(predict, argnums=argument), in_dims=(0, None))
            assert_near(jacobian(queries, one), expected, 1e-9)


@pytest.mark.parametrize("name", ["ResidualHead", "AveragingHead", "NetworkFreeHead"])
def test_transforms_of_a_head_equal_loops(skrl: ModuleType, name: str) -> None:
    """Its counters are not written from within."""
    head = getattr(skrl, name)(2, 40, DIM, k=4).double()
    head.memory.write(torch.randn(2, 40, DIM), torch.tensor([40, 3]), torch.randn(2, 40, 1))
    head.amplitude.fill_(2.0)
    queries = torch.randn(5, DIM, dtype=torch.float64)
    one = lambda query: head.correction(query.unsqueeze(0))[0]  # noqa: E731
    slopes = torch.stack([torch.autograd.functional.jacobian(one, query) for query in queries])
    assert slopes.abs().amax((0, 2)).min() > 1e-3
    assert_near(torch.func.vmap(one)(queries), head.correction(queries), 1e-12)
    assert_near(torch.func.grad(lambda rows: head.correction(rows).sum())(queries), slopes.sum(1), 1e-9)
    assert_near(torch.func.vmap(torch.func.grad(lambda query: one(query).sum()))(queries), slopes.sum(1), 1e-9)
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        assert_near(torch.stack([mode(one)(query) for query in queries]), slopes, 1e-9)
        assert_near(torch.func.vmap(mode(one))(queries), slopes, 1e-9)
    queries[0] = float("nan")
    assert not torch.func.grad(lambda rows: head.correction(rows).sum())(queries)[0].any()
    assert head.fallbacks.item() == 0


def test_checkpointing_changes_nothing(skrl: ModuleType) -> None:
    network = nn.Sequential(nn.Linear(4, DIM), fixed_kernel(skrl))
    queries, parameters = torch.randn(6, 4), list(network.parameters())
    again = answers_and_gradients(lambda values: checkpoint(network, values, use_reentrant=False), queries, parameters)
    for actual, expected in zip(again, answers_and_gradients(network, queries, parameters), strict=True):
        assert torch.equal(actual, expected)

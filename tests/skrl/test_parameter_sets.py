"""Features, targets and points: fixed, learned or given at call time; what is chosen, stored and loaded."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from skrl import KERNELS, ExactSearch, Prediction, SparseKernel, sparse_kernel, tune
from skrl.checks import check_tensor
from skrl.tuning.leave_one_out import leave_one_out_loss

INF, NAN = float("inf"), float("nan")
KERNEL = {"k": 6, "lengthscale": 1.3, "ridge": 0.1}
WAYS = ("fixed", "learned", "given")


class Sets(NamedTuple):
    features: Tensor
    targets: Tensor
    points: Tensor


def sets(
    points: int = 25, dim: int = 3, queries: int = 7, targets: int = 2, dtype: torch.dtype = torch.float64
) -> Sets:
    shapes = (points, dim), (points, targets), (queries, dim)
    return Sets(*(torch.randn(*shape, dtype=torch.float64).to(dtype) for shape in shapes))


def module(data: Sets, points: bool = True, **keywords: object) -> SparseKernel:
    return SparseKernel(*data[: 3 if points else 2], **(KERNEL | keywords))  # type: ignore[arg-type]


def expected(data: Sets, **keywords: object) -> Prediction:
    return sparse_kernel(data.points, data.features, data.targets, **(KERNEL | keywords))  # type: ignore[arg-type]


def assert_near(actual: Prediction, wanted: Prediction, tolerance: float = 1e-10) -> None:
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Fixed, learned, given


@pytest.mark.parametrize("ways", list(itertools.product(WAYS, repeat=3)), ids="-".join)
def test_every_way_for_every_set(ways: tuple[str, str, str]) -> None:
    """One answer, a gradient for what is learned and for nothing else, and no record where nothing is."""
    data = sets()
    own = {name: value for name, value, way in zip(Sets._fields, data, ways, strict=True) if way != "given"}
    for name in [name for name, way in zip(Sets._fields, ways, strict=True) if way == "learned"]:
        own[name] = nn.Parameter(own[name].clone())
    sparse = SparseKernel(**own, **KERNEL)  # type: ignore[arg-type]
    at_call = {name: getattr(data, name) for name in Sets._fields if name not in own}
    queries = at_call.pop("points", None)
    prediction = sparse.predict(queries, **at_call)
    # Without features of its own a module keeps its settings in torch's default dtype.
    assert_near(prediction, expected(data), 1e-6 if ways[0] == "given" else 1e-10)
    torch.testing.assert_close(sparse(queries, **at_call), prediction.mean)
    learned = {name for name, way in zip(Sets._fields, ways, strict=True) if way == "learned"}
    assert set(dict(sparse.named_parameters())) == learned
    assert prediction.mean.requires_grad == bool(learned)
    assert set(sparse.state_dict()) == {*own, "fixed_lengthscale", "fixed_ridge"}
    if learned:
        prediction.mean.square().sum().backward()
        for parameter in sparse.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0.0


@pytest.mark.parametrize("lengthscale", [0.7, torch.tensor([0.5, 1.0, 2.0])])
@pytest.mark.parametrize("localisation", ["hard", "continuous"])
def test_everything_can_be_learned_at_once(lengthscale: Tensor | float, localisation: str) -> None:
    data, network = sets(dtype=torch.float32), nn.Linear(3, 2)
    sparse = SparseKernel(
        *(nn.Parameter(value) for value in data),
        k=6,
        lengthscale=lengthscale,
        ridge=0.2,
        learn_kernel=True,
        prior_mean=network,
        localisation=localisation,  # type: ignore[arg-type]
    )
    names = {"features", "targets", "points", "log_lengthscale", "log_ridge", "prior_mean.weight", "prior_mean.bias"}
    assert set(dict(sparse.named_parameters())) == names
    assert set(dict(sparse.named_buffers())) == set()
    prediction = sparse.predict()
    (prediction.mean.square().sum() + prediction.variance.sum()).backward()
    for name, parameter in sparse.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0.0).any(), name
        assert parameter.grad.isfinite().all(), name
    for parameter in (sparse.points, sparse.log_lengthscale):
        assert (parameter.grad != 0.0).all()  # type: ignore[union-attr]
    assert_near(
        Prediction(*(value.detach() for value in prediction)),
        sparse_kernel(
            *(value.detach() for value in (sparse.points, sparse.features, sparse.targets)),  # type: ignore[union-attr]
            k=6,
            lengthscale=torch.as_tensor(lengthscale),
            ridge=0.2,
            prior_mean=lambda x: network(x).detach(),
            localisation=localisation,  # type: ignore[arg-type]
        ),
        1e-4,
    )


def test_what_is_given_goes_before_what_the_module_has() -> None:
    own, data = sets(), sets(40)
    sparse = module(own)
    assert_near(sparse.predict(data.points, features=data.features, targets=data.targets), expected(data))
    assert_near(sparse.predict(data.points), expected(own._replace(points=data.points)))
    assert_near(sparse.predict(targets=-own.targets), expected(own._replace(targets=-own.targets)))
    assert_near(sparse.predict(), expected(own))


@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_given_has_to_fit_what_the_module_has() -> None:
    sparse, data = module(sets()), sets(40, dim=4)
    for keywords, message in (
        ({"features": data.features}, r"features have shape \(40, 4\) and targets \(25, 2\)"),
        ({"targets": data.targets}, r"features have shape \(25, 3\) and targets \(40, 2\)"),
        ({"queries": data.points}, r"queries have shape \(7, 4\), but must be \[batch, 3\] like the features"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse.predict(**keywords)


def test_a_set_that_nobody_gives_is_named() -> None:
    data = sets()
    for sparse, keywords, message in (
        (module(data, points=False), {}, "no points: give them to the constructor, or as `queries` at every call"),
        (SparseKernel(points=data.points), {"targets": data.targets}, "no features: .* as `features` at every call"),
        (SparseKernel(data.features), {"queries": data.points}, "no targets: .* as `targets` at every call"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse.predict(**keywords)  # type: ignore[arg-type]


def test_learned_sets_fit_by_any_optimizer() -> None:
    data = sets(dtype=torch.float32)
    sparse = SparseKernel(*(nn.Parameter(value) for value in data), **KERNEL, learn_kernel=True)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(sparse.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = (sparse() - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# Settings


def test_settings_are_chosen_at_the_call_where_the_supports_come_with_it() -> None:
    data = sets(60)
    at_call = SparseKernel(k=6)
    assert at_call.lengthscale is at_call.ridge is None
    chosen = SparseKernel(data.features, data.targets, k=6)
    for sparse in (at_call, SparseKernel(k=6, kernel=at_call.kernel)):
        assert_near(
            sparse.predict(data.points, features=data.features, targets=data.targets), chosen.predict(data.points)
        )
    few = sparse_kernel(data.points, data.features[:1], data.targets[:1], k=6)
    for own in (SparseKernel(k=6), SparseKernel(data.features[:1], k=6), SparseKernel(data.features[:0], k=6)):
        features = None if own.features is not None and len(own.features) else data.features[:1]
        assert_near(own.predict(data.points, features=features, targets=data.targets[:1]), few)


def test_only_what_is_left_out_is_chosen() -> None:
    data = sets(60)
    both = SparseKernel(data.features, data.targets, k=6)
    assert both.lengthscale is not None
    assert both.ridge is not None
    assert SparseKernel(data.features, data.targets, k=6, ridge=0.37).ridge.item() == 0.37  # type: ignore[union-attr]
    half = SparseKernel(data.features, data.targets, k=6, lengthscale=both.lengthscale)
    assert torch.equal(half.ridge, both.ridge)  # type: ignore[arg-type]


def test_a_learned_kernel_starts_at_its_settings() -> None:
    data = sets(dtype=torch.float32)
    sparse = module(data, learn_kernel=True)
    torch.testing.assert_close(sparse.lengthscale, torch.tensor(1.3))
    torch.testing.assert_close(sparse.ridge, torch.tensor(0.1))
    assert module(data, ridge=0.0, learn_kernel=True).ridge.item() == pytest.approx(1e-8)  # type: ignore[union-attr]
    for keywords in ({}, {"lengthscale": 1.0}, {"ridge": 1.0}):
        with pytest.raises(ValueError, match="learn_kernel needs a start: give lengthscale and ridge, or features and"):
            SparseKernel(data.features, learn_kernel=True, **keywords)  # type: ignore[arg-type]


# Inputs of every kind


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_and_booleans_are_cast(dtype: torch.dtype) -> None:
    data = Sets(*((3.0 * value.abs()).to(dtype) for value in sets()))
    # All neighbours: among whole numbers many are equally near.
    sparse = module(data, k=25)
    assert all(value.dtype == torch.float32 for value in sparse.buffers())
    assert_near(sparse.predict(), expected(Sets(*(value.float() for value in data)), k=25), 1e-5)
    assert_near(sparse.predict(data.points), sparse.predict(), 1e-5)
    assert SparseKernel(data.features, data.targets).predict(data.points).mean.isfinite().all()
    assert SparseKernel().predict(data.points, features=data.features, targets=data.targets).mean.isfinite().all()


def test_memory_layout_does_not_matter() -> None:
    data = sets()
    transposed = Sets(*(value.t().contiguous().t() for value in data))
    sparse = module(transposed)
    assert all(value.is_contiguous() for value in sparse.buffers())
    assert_near(sparse.predict(), expected(data))


@pytest.mark.parametrize("name", Sets._fields)
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_row_that_is_not_finite_is_named_at_the_start(name: str, value: float) -> None:
    data = sets()
    getattr(data, name)[5, 1] = value
    with pytest.raises(ValueError, match=f"{name} row 5 is not finite: {value} in column 1; drop it or repair it"):
        module(data)


@pytest.mark.parametrize(("name", "shown"), [("features", "features"), ("targets", "targets"), ("points", "query")])
def test_learned_rows_that_are_no_longer_numbers_are_named(name: str, shown: str) -> None:
    """As after a step with an infinite gradient; a prediction would be silent about it."""
    sparse = SparseKernel(*(nn.Parameter(value) for value in sets()), **{**KERNEL, "k": 25})  # type: ignore[arg-type]
    sparse()
    with torch.no_grad():
        getattr(sparse, name)[4, 0] = NAN
    for ask in (sparse.predict, torch.no_grad()(sparse.predict)):
        with pytest.raises(ValueError, match=f"{shown} row 4 is not finite: nan in column 0"):
            ask()


@pytest.mark.parametrize("name", ["lengthscale", "ridge"])
def test_learned_settings_that_are_no_longer_numbers_are_named(name: str) -> None:
    for value, shown in ((NAN, "nan"), (1e3, "inf")):
        sparse = module(sets(), learn_kernel=True)
        sparse()
        with torch.no_grad():
            getattr(sparse, f"log_{name}").fill_(value)
        with pytest.raises(
            ValueError, match=f"{name} is {shown}, but must .* or lower the rate at which it is learned"
        ):
            sparse()


@pytest.mark.parametrize("name", ["queries", "features", "targets"])
def test_devices_that_differ_are_named(name: str) -> None:
    data = sets()
    given_ = {"queries": data.points, "features": data.features, "targets": data.targets}
    given_[name] = given_[name].to("meta")
    for sparse in (module(data), SparseKernel()):
        with pytest.raises(ValueError, match=r"lie on .* and features on .*; move both to one with .to\(device\)"):
            sparse.predict(**given_)


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_beginnings_are_explained() -> None:
    data = sets()
    for keywords, message in (
        ({"points": data.points[:, :2]}, r"queries have shape \(7, 2\), but must be \[batch, 3\] like the features"),
        ({"features": data.features[0]}, "with equally many points"),
        ({"targets": data.targets[:3]}, "with equally many points"),
        ({"lengthscale": torch.ones(2)}, r"lengthscale has shape \(2,\), but must be one number, or one .* \[3\]"),
        ({"lengthscale": INF}, "lengthscale is inf, but must be positive and finite"),
        ({"ridge": INF}, "ridge is inf"),
        ({"localisation": "soft"}, "localisation is 'soft', but must be one of hard, continuous"),
        ({"features": None, "kernel": "gausian"}, "did you mean 'gaussian'"),
        ({"features": None, "k": 0}, "k is 0, but must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseKernel(**(data._asdict() | KERNEL | keywords))  # type: ignore[arg-type]


def test_leave_one_out_of_own_points_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = module(sets())
    whole = sparse.leave_one_out()
    assert whole.shape == (7, 6, 2)
    monkeypatch.setattr("skrl.functional.MAX_GATHERED", 100)
    torch.testing.assert_close(sparse.leave_one_out(sparse.points), whole)


def test_autocast_leaves_the_answer_alone() -> None:
    data = sets(dtype=torch.float32)
    for sparse in (module(data), module(data, learn_kernel=True), SparseKernel(*data, k=6)):
        before = sparse.predict()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_near(sparse.predict(), before, 1e-5)
            fresh = SparseKernel(*data, k=6)
        torch.testing.assert_close(fresh.lengthscale, SparseKernel(*data, k=6).lengthscale)


# State


@pytest.mark.parametrize("fill", [0, 1, 2, 25])
@pytest.mark.parametrize("other", [0, 1, 25, 40])
@pytest.mark.parametrize("learned", [False, True])
def test_state_loads_at_any_fill(fill: int, other: int, learned: bool) -> None:
    """The number of rows is the state's, whatever the module had."""

    def made(count: int) -> SparseKernel:
        data = sets(count, queries=count + 1)
        chosen = [nn.Parameter(value) for value in data] if learned else data
        return SparseKernel(*chosen, **KERNEL, learn_kernel=learned)  # type: ignore[arg-type]

    source, target = made(fill), made(other)
    with torch.no_grad():
        target.predict()
    before = dict(target.named_parameters())
    target.load_state_dict(source.state_dict())
    assert_near(target.predict(), source.predict())
    assert all(value is before[name] for name, value in target.named_parameters())
    if learned:
        target().sum().backward()
        assert all(value.grad is not None and value.grad.shape == value.shape for value in target.parameters())


def test_state_of_another_width_is_refused() -> None:
    sparse = module(sets())
    for other in (sets(dim=4), sets(targets=1)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            sparse.load_state_dict(module(other).state_dict())


def test_state_loads_inside_another_module_and_by_assignment() -> None:
    source, target = module(sets(9)), module(sets(12))
    nn.Sequential(target).load_state_dict(nn.Sequential(source).state_dict())
    assert_near(target.predict(), source.predict())
    target = module(sets(12))
    target.load_state_dict(source.state_dict(), assign=True)
    assert_near(target.predict(), source.predict())


@pytest.mark.parametrize("learned", [False, True])
def test_copies_are_equal_and_independent(learned: bool) -> None:
    data = sets()
    chosen = [nn.Parameter(value.clone()) for value in data] if learned else data
    sparse = SparseKernel(*chosen, **KERNEL, learn_kernel=learned, prior_mean=nn.Linear(3, 2).double())  # type: ignore[arg-type]
    before = Prediction(*(value.detach() for value in sparse.predict()))
    copies = [copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))]
    with torch.no_grad():
        sparse.features.add_(1.0)  # type: ignore[union-attr]
    for other in copies:
        assert_near(Prediction(*(value.detach() for value in other.predict())), before)
        assert type(other) is SparseKernel


# Whatever the supports


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    points=st.integers(0, 40),
    distinct=st.integers(1, 40),
    constant=st.booleans(),
    scale=st.sampled_from([1.0, 2.0**-66, 2.0**66, 1e-20, 1e20]),
    offset=st.sampled_from([0.0, 100.0]),
    k=st.sampled_from([1, 6, 50]),
    kernel=st.sampled_from(sorted(KERNELS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_chosen_settings_follow_the_units(
    points: int,
    distinct: int,
    constant: bool,
    scale: float,
    offset: float,
    k: int,
    kernel: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Supports in any unit have their lengthscale in that unit, and the same answers: to the bit where it is exact."""
    generator = torch.Generator().manual_seed(seed)
    pool = offset + torch.randn(distinct, 3, generator=generator, dtype=torch.float64)
    pool[:, 0] = torch.where(torch.tensor(constant), 1.0, pool[:, 0])
    features = pool[torch.randint(0, distinct, (points,), generator=generator)].to(dtype)
    targets = torch.randn(points, 2, generator=generator, dtype=torch.float64).to(dtype)
    queries = torch.cat([pool[:3], pool[:3] + 0.1]).to(dtype)
    plain = SparseKernel(features, targets, k=k, kernel=kernel)
    scaled = SparseKernel(scale * features, scale * targets, k=k, kernel=kernel)
    assert plain.lengthscale is not None
    assert scaled.lengthscale is not None
    mean = scaled(scale * queries)
    assert mean.isfinite().all()
    spread = len(features.unique(dim=0)) > 1
    if spread and math.frexp(scale)[0] == 0.5:
        assert torch.equal(scaled.lengthscale, scale * plain.lengthscale)
        assert torch.equal(scaled.ridge, plain.ridge)  # type: ignore[arg-type]
        assert torch.equal(mean, scale * plain(queries))
    elif spread:
        # Targets are noise, to which many settings fit about equally; rounding may decide among them.
        assert 1e-3 < scaled.lengthscale / (scale * plain.lengthscale) < 1e3


def test_what_is_no_tensor_is_refused_by_name() -> None:
    # Straight at the check: under test the shape checker is quicker to complain.
    with pytest.raises(TypeError, match=r"queries: got ndarray, but need a torch\.Tensor; wrap"):
        check_tensor(sets().points.numpy(), "queries")


@pytest.mark.parametrize("k", [(4, 8), [4, 8], np.array([4, 8]), np.int64(8)])
@pytest.mark.usefixtures("without_shape_checks")
def test_a_kernel_is_learned_whatever_k_is_given_as(k: object) -> None:
    data = sets()
    kernel = SparseKernel(data.features, k=k, lengthscale=1.3, ridge=0.1, learn_kernel=True)  # type: ignore[arg-type]
    for answer in (kernel(data.points, targets=data.targets).sum(), kernel.leave_one_out_loss(targets=data.targets)):
        kernel.zero_grad()
        answer.backward()
        assert kernel.log_lengthscale.grad.abs() > 0.0
        assert kernel.log_ridge.grad.abs() > 0.0


@pytest.mark.parametrize("k", [8.0, "8", (4, 8.5), None])
@pytest.mark.usefixtures("without_shape_checks")
def test_neighbours_that_are_no_whole_number_are_refused(k: object) -> None:
    with pytest.raises(TypeError, match=r"k is .*, but must be a whole number of neighbours, or several"):
        SparseKernel(k=k)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [np.array(4), torch.tensor(4), np.int64(4)], ids=repr)
@pytest.mark.usefixtures("without_shape_checks")
def test_one_whole_number_may_come_in_an_array_without_dimensions(k: object) -> None:
    data = sets()
    assert SparseKernel(k=k).k == 4  # type: ignore[arg-type]
    for answer, expected in zip(
        sparse_kernel(data.points, data.features, data.targets, k=k),  # type: ignore[arg-type]
        sparse_kernel(data.points, data.features, data.targets, k=4),
        strict=True,
    ):
        assert torch.equal(answer, expected)
    loss = [leave_one_out_loss(data.features, data.targets, "matern32", 1.0, 0.1, number) for number in (k, 4)]  # type: ignore[arg-type]
    assert torch.equal(*loss)
    assert tune(data.features, data.targets, "matern32", k=k).k == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], "auto", np.ones(3), np.array(1.0), 1j], ids=repr)
@pytest.mark.parametrize("name", ["lengthscale", "ridge"])
@pytest.mark.usefixtures("without_shape_checks")
def test_a_setting_of_a_foreign_type_is_named_with_a_remedy(name: str, value: object) -> None:
    data = sets()
    given = {"lengthscale": 1.0, "ridge": 0.1, name: value}
    calls: list[Callable[[], object]] = [
        lambda: SparseKernel(data.features, data.targets, **given),  # type: ignore[arg-type]
        lambda: SparseKernel(**given),  # type: ignore[arg-type]
        lambda: sparse_kernel(data.points, data.features, data.targets, **given),  # type: ignore[arg-type]
        lambda: leave_one_out_loss(data.features, data.targets, "matern32", k=4, **given),  # type: ignore[arg-type]
        lambda: tune(data.features, data.targets, "matern32", **given),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(
            TypeError, match=re.escape(f"{name} is {value!r}, of type {type(value).__name__}, but must")
        ):
            call()
        with pytest.raises(TypeError, match=r"wrap with torch\.as_tensor\(…\), or leave it out"):
            call()


@pytest.mark.usefixtures("without_shape_checks")
def test_numbers_of_numpy_are_numbers() -> None:
    data = sets()
    expected = sparse_kernel(data.points, data.features, data.targets, lengthscale=2.0, ridge=0.5)
    for kind in (np.float32, np.float64, np.float16):
        answer = sparse_kernel(data.points, data.features, data.targets, lengthscale=kind(2.0), ridge=kind(0.5))
        assert torch.equal(answer.mean, expected.mean)


@pytest.mark.parametrize("k", [(4, 8), [4]])
@pytest.mark.usefixtures("without_shape_checks")
def test_a_function_chooses_among_no_neighbours(k: object) -> None:
    data = sets()
    with pytest.raises(TypeError, match=r"k is [(\[]4.*, but must be one whole number here; .* choose one of several"):
        sparse_kernel(data.points, data.features, data.targets, k=k)  # type: ignore[arg-type]


def test_a_module_without_features_keeps_its_settings_in_the_default_dtype() -> None:
    data, keywords = sets(), {"k": 6, "lengthscale": 0.3, "ridge": 0.01}
    exact = expected(data, **keywords).mean
    torch.set_default_dtype(torch.float64)
    try:
        wide = SparseKernel(**keywords)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)
    for stateless, tolerance in ((SparseKernel(**keywords), 1e-6), (wide, 1e-14)):  # type: ignore[arg-type]
        answer = stateless(data.points, features=data.features, targets=data.targets)
        torch.testing.assert_close(answer, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["lengthscale", "ridge"])
def test_a_setting_that_wants_a_gradient_is_refused(name: str) -> None:
    """A module would keep it fixed without a word."""
    with pytest.raises(ValueError, match=rf"{name} wants a gradient, .* learn_kernel=True"):
        module(sets(), **{name: nn.Parameter(torch.tensor(0.5))})
    with torch.no_grad():
        assert float(getattr(module(sets(), **{name: nn.Parameter(torch.tensor(0.5))}), name)) == 0.5


@pytest.mark.parametrize("name", ["features", "targets", "points"])
def test_a_set_that_wants_a_gradient_is_refused(name: str) -> None:
    """Neither a fixed nor a learned set could hand it on to what it was computed from."""
    data = sets()
    data = data._replace(**{name: 2.0 * getattr(data, name).clone().requires_grad_()})
    with pytest.raises(ValueError, match=rf"{name} want a gradient, .* {name}.detach\(\)"):
        module(data)
    with torch.no_grad():
        assert torch.equal(getattr(module(data), name), getattr(data, name))


def test_a_learned_kernel_begins_where_another_ended() -> None:
    first = module(sets(), learn_kernel=True)
    second = module(sets(), lengthscale=first.lengthscale, ridge=first.ridge, learn_kernel=True)
    torch.testing.assert_close(second.lengthscale, first.lengthscale)
    assert second.log_lengthscale.is_leaf


@pytest.mark.usefixtures("without_shape_checks")
def test_mismatched_sets_have_no_leave_one_out_loss() -> None:
    data = sets()
    kernel = SparseKernel(**KERNEL)  # type: ignore[arg-type]
    for features, targets in ((data.features[:9], data.targets), (data.features, data.targets[:, 0])):
        with pytest.raises(ValueError, match=r"with equally many points"):
            kernel.leave_one_out_loss(features=features, targets=targets)
    data.targets[3, 1] = NAN
    with pytest.raises(ValueError, match=r"row 3 is not finite: nan in column 1"):
        kernel.leave_one_out_loss(features=data.features, targets=data.targets)


def test_few_queries_see_targets_that_are_not_finite() -> None:
    data = sets(dtype=torch.float32)
    kernel = module(data)
    with torch.no_grad():
        kernel.targets.fill_(NAN)
        for rows in (1, 7):
            with pytest.raises(ValueError, match=r"targets row 0 is not finite"):
                kernel(data.points[:rows])


class Raised(nn.Module):
    """Of every number so much more."""

    def forward(self, value: Tensor) -> Tensor:
        return value + 0.25


@pytest.mark.parametrize("name", ["features", "targets", "fixed_lengthscale", "fixed_ridge"])
@pytest.mark.parametrize("learned", [False, True])
def test_what_is_parametrised_is_read_anew(name: str, learned: bool) -> None:
    features, targets, queries = sets()
    first = nn.Parameter(features) if learned else features
    model = SparseKernel(first, targets, **KERNEL)
    model(queries)  # which prepares the shortest way for the buffers of now
    parametrize.register_parametrization(model, name, Raised())
    for _ in range(2):
        expected = sparse_kernel(
            queries, model.features, model.targets, k=6, lengthscale=model.lengthscale, ridge=model.ridge
        )
        torch.testing.assert_close(model(queries), expected.mean)
        with torch.no_grad():
            model.parametrizations[name].original.mul_(1.5)
    assert model(queries).requires_grad == learned


@pytest.mark.parametrize("name", ["lengthscale", "ridge"])
def test_a_learned_setting_can_be_parametrised_or_pruned(name: str) -> None:
    features, targets, queries = sets()
    model = SparseKernel(features, targets, learn_kernel=True, **KERNEL)
    expected = KERNEL | {name: math.exp(math.log(KERNEL[name]) + 0.25)}
    parametrize.register_parametrization(model, f"log_{name}", Raised())
    torch.testing.assert_close(model(queries), sparse_kernel(queries, features, targets, **expected).mean)
    pruned = SparseKernel(features, targets, learn_kernel=True, **KERNEL)
    prune.custom_from_mask(pruned, f"log_{name}", torch.zeros(()))
    torch.testing.assert_close(
        pruned(queries), sparse_kernel(queries, features, targets, **(KERNEL | {name: 1.0})).mean
    )


def test_supports_that_another_network_gives_carry_its_gradient() -> None:
    features, targets, queries = sets()
    model = SparseKernel(features, targets, **KERNEL)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    del model.features
    model.features = features + shift
    model(queries).sum().backward()
    assert shift.grad is not None
    assert shift.grad.abs().sum() > 0.0


@pytest.mark.parametrize("name", ["features", "targets"])
def test_a_state_whose_sets_do_not_belong_together_leaves_the_own_ones_usable(name: str) -> None:
    features, targets, queries = sets()
    model = SparseKernel(features, targets, **KERNEL)
    state = SparseKernel(torch.rand(40, 3).double(), torch.rand(40, 2).double(), **KERNEL).state_dict()
    state[name] = state[name][:25]
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state)
    assert model(queries).shape == (7, 2)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("search", ["hnsw", ExactSearch])
def test_a_search_that_is_none_is_refused(search: object) -> None:
    features, targets, queries = sets()
    with pytest.raises(TypeError, match="must be a NeighborSearch"):
        SparseKernel(features, targets, search=search, **KERNEL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a NeighborSearch"):
        sparse_kernel(queries, features, targets, search=search, **KERNEL)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a NeighborSearch"):
        tune(features, targets, "matern32", search=search)  # type: ignore[arg-type]


def test_a_ridge_in_a_tensor_is_tuned_beside() -> None:
    features, targets, _ = sets()
    as_tensor, as_number = (tune(features, targets, "matern32", k=6, ridge=r) for r in (torch.tensor(0.125), 0.125))
    assert as_tensor == as_number


def test_another_default_device_changes_nothing() -> None:
    features, targets, queries = sets()
    model = SparseKernel(features, targets, **KERNEL)
    with torch.device("meta"):
        answer, row = model(queries), model(queries[:1])
    torch.testing.assert_close(answer, sparse_kernel(queries, features, targets, **KERNEL).mean)
    torch.testing.assert_close(row, answer[:1])


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_traced_kernel_answers_other_queries() -> None:
    features, targets, queries = sets()
    model = SparseKernel(features, targets, **KERNEL)
    program = torch.jit.trace(model, (queries,))
    others = torch.randn(9, 3, dtype=torch.float64)
    torch.testing.assert_close(program(others), model(others))

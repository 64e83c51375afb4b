"""The function on both of its paths against a dense oracle in float64, and whatever it may be given."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skrl.functional
import skrl.search.exact
from skrl import KERNELS, Prediction, SparseKernel, compiling, make_kernel, sparse_kernel
from skrl.functional import make_support
from skrl.kernels import Kernel
from skrl.kernels.distances import DIFFERENCES_DIM
from skrl.search.neighbors import Localisation

INF, NAN = float("inf"), float("nan")
LOCALISATIONS: tuple[Localisation, ...] = ("hard", "continuous")
HUGE = pytest.mark.parametrize("value", [NAN, INF, -INF])


class Sets(NamedTuple):
    queries: Tensor
    features: Tensor
    targets: Tensor

    def to(self, *dtypes: torch.dtype) -> Sets:
        """All in one dtype, or each in its own."""
        return Sets(*(value.to(dtype) for value, dtype in zip(self, dtypes * (3 // len(dtypes)), strict=True)))


def sets(points: int = 25, dim: int = 3, queries: int = 7, targets: int = 2) -> Sets:
    shapes = (queries, dim), (points, dim), (points, targets)
    return Sets(*(torch.randn(*shape, dtype=torch.float64) for shape in shapes))


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both paths of the function."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and request.param == "compiled")
    return str(request.param)


def oracle(
    data: Sets, kernel: str, lengthscale: Tensor | float, ridge: float, k: int, localisation: Localisation
) -> Prediction:
    """One dense solve per query in float64, from all distances, without anything of the package but the formula κ."""
    formula = make_kernel(kernel, data.features.shape[1])
    queries, features = (value.double() / lengthscale for value in data[:2])
    means, variances = [], []
    for query in queries:
        distances = (features - query).norm(dim=1)
        order = distances.argsort()
        nearest = order[:k]
        root = torch.ones(len(nearest), dtype=torch.float64)
        if localisation == "continuous" and len(order) > k:
            root = 1.0 - (distances[nearest] / distances[order[k]]).square()
        pairs = (features[nearest].unsqueeze(1) - features[nearest]).norm(dim=2)
        cross, gram = formula.blocks(distances[nearest], pairs)
        system = root.unsqueeze(1) * gram * root + ridge * torch.eye(len(nearest), dtype=torch.float64)
        weights = root * torch.linalg.solve(system, root * cross)
        means.append(weights @ data.targets[nearest].double())
        variances.append((formula.prior_variance - weights @ cross).clamp(0.0, formula.prior_variance))
    return Prediction(torch.stack(means), torch.stack(variances))


def assert_near(actual: Prediction, expected: Prediction, tolerance: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


# Both paths, one oracle


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.parametrize("dim", [1, 4, 8, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.usefixtures("path")
def test_equals_dense_solves(
    kernel: str, localisation: Localisation, dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Fused search up to eight dimensions, a product beyond them; M around k."""
    for points in (5, 6, 7, 60):
        data = sets(points, dim).to(dtype)
        expected = oracle(data, kernel, 1.5, 0.3, 6, localisation)
        actual = sparse_kernel(*data, kernel=kernel, lengthscale=1.5, ridge=0.3, k=6, localisation=localisation)
        assert_near(actual, expected, tolerance)


@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.usefixtures("path")
def test_a_lengthscale_per_dimension_equals_dense_solves(localisation: Localisation) -> None:
    data, lengthscale = sets(60), torch.tensor([0.3, 1.0, 40.0], dtype=torch.float64)
    actual = sparse_kernel(*data, lengthscale=lengthscale, ridge=0.1, k=6, localisation=localisation)
    assert_near(actual, oracle(data, "matern32", lengthscale, 0.1, 6, localisation), 1e-9)


@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("limit", [1, 40, 300])
def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch, path: str, dim: int, limit: int) -> None:
    data = sets(60, dim)
    whole = sparse_kernel(*data, k=5, localisation="continuous")
    chunks = []
    factorise = skrl.functional.factorise
    monkeypatch.setattr(skrl.functional, "factorise", lambda *args: chunks.append(1) or factorise(*args))
    monkeypatch.setattr(skrl.functional, "MAX_GATHERED", limit)
    monkeypatch.setattr(skrl.search.exact, "MAX_SCORES", limit)
    monkeypatch.setattr(skrl.search.exact, "MAX_COMPILED_SCORES", limit)
    monkeypatch.setattr(skrl.solve.local_weights, "MAX_GRAM", limit)
    assert_near(sparse_kernel(*data, k=5, localisation="continuous"), whole, 1e-12)
    assert len(chunks) == (
        0
        if path == "compiled" and compiling.AVAILABLE
        else math.ceil(7 / max(1, limit // (5 * dim if dim > DIFFERENCES_DIM else 25 * dim)))
    )


def test_a_chunk_holds_what_its_neighbours_need_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large k is: there are only M neighbours; and however wide the targets."""
    monkeypatch.setattr(compiling, "AVAILABLE", False)
    rows = []
    factorise = skrl.functional.factorise
    monkeypatch.setattr(skrl.functional, "factorise", lambda *args: rows.append(len(args[0].mask)) or factorise(*args))
    monkeypatch.setattr(skrl.functional, "MAX_GATHERED", 1000)
    sparse_kernel(*sets(5, queries=60), k=10**9)
    sparse_kernel(*sets(5, queries=60, targets=100), k=5)
    assert rows == [13, 13, 13, 13, 8] + [2] * 30


# Precisions


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("queries", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("features", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("targets", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 12])
def test_precisions_may_differ(queries: torch.dtype, features: torch.dtype, targets: torch.dtype, dim: int) -> None:
    """The answer has that of the queries, the work that of the features, float32 at least."""
    data = sets(40, dim).to(queries, features, targets)
    prediction = sparse_kernel(*data, ridge=0.3, k=6)
    assert prediction.mean.dtype == prediction.variance.dtype == queries
    eps = max(torch.finfo(queries).eps, 1e-6)
    assert_near(prediction, oracle(data, "matern32", 1.0, 0.3, 6, "hard"), 4 * eps)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_and_booleans_are_numbers(dtype: torch.dtype) -> None:
    data = Sets(*((3.0 * value.abs()) for value in sets(40, dim=4, targets=1))).to(dtype)
    expected = sparse_kernel(*data.to(torch.float32), ridge=0.1, k=6)
    prediction = sparse_kernel(*data, ridge=0.1, k=6)
    assert prediction.mean.dtype == prediction.variance.dtype == torch.float32
    assert_near(prediction, expected, 1e-6)
    network = nn.Linear(4, 1)
    assert_near(
        sparse_kernel(*data, prior_mean=network), sparse_kernel(*data.to(torch.float32), prior_mean=network), 1e-6
    )
    mixed = sparse_kernel(data.queries, data.features.double(), data.targets, ridge=0.1, k=40)
    assert_near(mixed, sparse_kernel(*data.to(torch.float32), ridge=0.1, k=40), 1e-4)


@pytest.mark.parametrize("name", Sets._fields)
def test_complex_numbers_are_refused(name: str) -> None:
    data = sets()
    with pytest.raises(ValueError, match=r"dtype is torch.complex128, but must be real; split it"):
        sparse_kernel(*data._replace(**{name: getattr(data, name).to(torch.complex128)}))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dim", [3, 12])
def test_memory_layout_does_not_matter(dim: int) -> None:
    data = sets(60, dim)
    expected = sparse_kernel(*data, k=6, localisation="continuous")
    strided = Sets(*(torch.stack([value, value], 1)[:, 0] for value in data))
    transposed = Sets(*(value.t().contiguous().t() for value in data))
    for other in (strided, transposed):
        assert not any(value.is_contiguous() for value in other)
        assert_near(sparse_kernel(*other, k=6, localisation="continuous"), expected, 1e-12)
    repeated = Sets(data.queries[:1].expand(7, -1), data.features[:1].expand(60, -1), data.targets[:1].expand(60, -1))
    assert_near(sparse_kernel(*repeated, k=6), sparse_kernel(*(value.clone() for value in repeated), k=6), 1e-12)


# Gradients


def wanting(data: Sets) -> Sets:
    return Sets(*(value.clone().requires_grad_() for value in data))


@pytest.mark.parametrize("limit", [1, 1 << 24])
@pytest.mark.usefixtures("path")
def test_gradients_go_through_chunks(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(skrl.functional, "MAX_GATHERED", limit)
    settings_ = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in ([0.8, 1.4], 0.2)]

    def outputs(*inputs: Tensor) -> Prediction:
        return sparse_kernel(
            *inputs[:3], lengthscale=inputs[3], ridge=inputs[4], k=4, kernel="gaussian", localisation="continuous"
        )

    assert torch.autograd.gradcheck(outputs, [*wanting(sets(9, dim=2, queries=3)), *settings_])


def test_a_product_with_all_targets_keeps_one_that_is_not_finite_to_its_readers() -> None:
    data = sets(30, dim=2, queries=9, targets=20)
    nearest = torch.cdist(data.queries, data.features).argsort(1)[:, :4]
    unread = next(row for row in range(30) if row not in nearest)
    data.targets[unread] = INF
    learned = data._replace(targets=data.targets.clone().requires_grad_())
    assert sparse_kernel(*learned, k=4, ridge=0.1).mean.isfinite().all()


def test_torch_func_differentiates_it() -> None:
    data = sets(9, dim=2, queries=3)

    def loss(queries: Tensor, features: Tensor) -> Tensor:
        return sparse_kernel(queries, features, data.targets, k=4).mean.square().sum()

    leaves = wanting(data)
    expected = torch.autograd.grad(loss(leaves.queries, leaves.features), leaves[:2])
    for ours, theirs in zip(torch.func.grad(loss, (0, 1))(*data[:2]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_gradient_is_recorded_where_one_is_wanted_and_nowhere_else() -> None:
    data = sets()
    assert not sparse_kernel(*data).mean.requires_grad
    for name in Sets._fields:
        learned = data._replace(**{name: getattr(data, name).clone().requires_grad_()})
        assert sparse_kernel(*learned).mean.requires_grad
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert_near(sparse_kernel(*learned), sparse_kernel(*data), 1e-12)
                assert not sparse_kernel(*learned).mean.requires_grad


def test_the_gradient_of_a_lengthscale_is_finite_beside_a_point_too_far_to_index() -> None:
    data = sets(9).to(torch.float32)
    data.features[4] = 3e37
    lengthscale = torch.tensor(1e-3, requires_grad=True)
    features = data.features.requires_grad_()
    sparse_kernel(data.queries, features, data.targets, lengthscale=lengthscale).mean.sum().backward()
    assert lengthscale.grad is not None
    assert lengthscale.grad.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


# The prior mean


@pytest.mark.parametrize("prior", [lambda x: x.sum(-1), lambda x: x[:, :1], lambda x: x.new_zeros(()), lambda x: x.T])
def test_a_prior_mean_of_another_shape_is_refused(prior: Callable[[Tensor], Tensor]) -> None:
    """Subtraction would broadcast [M, 1] and [M] to [M, M]."""
    with pytest.raises(ValueError, match=r"prior_mean returned shape .* but must return \(25, 2\) like the targets"):
        sparse_kernel(*sets(), prior_mean=prior)


@HUGE
def test_a_prior_mean_that_is_not_finite_is_named(value: float) -> None:
    data = sets()
    data.queries[3], data.features[5] = 100.0, -100.0
    for edge, name, row in ((50.0, "query", 3), (-50.0, "features", 5)):

        def prior(x: Tensor, edge: float = edge) -> Tensor:
            spoilt = (x[:, :2] - edge) * edge > 0
            return torch.where(spoilt, value, 0.0)

        with pytest.raises(ValueError, match=f"prior_mean at {name} row {row} is not finite"):
            sparse_kernel(*data, prior_mean=prior, k=25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_prior_mean_is_asked_in_the_precision_of_the_features(dtype: torch.dtype) -> None:
    data, network = sets(), nn.Linear(3, 2, dtype=dtype)
    given = Sets(data.queries.double(), data.features.to(dtype), data.targets.to(dtype))
    answer = sparse_kernel(*given, prior_mean=network)
    assert answer.mean.dtype is torch.float64
    expected = sparse_kernel(*given.to(torch.float64), prior_mean=nn.Linear.double(copy.deepcopy(network)))
    assert_near(answer, expected, 1e-2 if dtype is torch.float16 else 1e-4)
    assert SparseKernel(*given[1:], prior_mean=network)(given.queries).dtype is torch.float64


class Counting(nn.Linear):
    """A prior mean that remembers how many rows it was asked for."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.rows: list[int] = []

    def forward(self, features: Tensor) -> Tensor:
        self.rows.append(len(features))
        return super().forward(features).sin()


@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_a_prior_mean_is_asked_at_the_neighbours_alone_where_they_are_few(
    monkeypatch: pytest.MonkeyPatch, path: str, localisation: Localisation
) -> None:
    data, prior = sets(1000, queries=3), Counting(3, 2).double()
    answers = []
    for looks in (True, False):
        leaves = wanting(data)
        monkeypatch.setattr(skrl.functional, "looks_at", lambda values, looks=looks: looks)
        answers.append(sparse_kernel(*data, k=4, localisation=localisation, prior_mean=prior.requires_grad_(False)))
        answer = sparse_kernel(*leaves, k=4, localisation=localisation, prior_mean=prior.requires_grad_())
        gradients = torch.autograd.grad(answer.mean.square().sum(), [*leaves, *prior.parameters()], create_graph=True)
        again = torch.autograd.grad(gradients[0].sum(), [leaves.targets, prior.weight])
        answers.append((*answer, *gradients, *again))
    few, whole = prior.rows[:4], prior.rows[4:]
    assert whole == [1000, 3] * 2
    assert few[1::2] == [3, 3]
    assert 5 <= max(few[::2]) <= 3 * 5
    assert_near(answers[0], answers[2], 1e-12)  # type: ignore[arg-type]
    for ours, theirs in zip(answers[1], answers[3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_prior_mean_of_another_shape_at_the_queries_is_refused() -> None:
    """It would be broadcast to as many answers as it has rows."""
    data = sets(40, queries=1, targets=1)
    with pytest.raises(ValueError, match=r"shape \(40, 1\) for queries of shape \(1, 3\), but must return \(1, 1\)"):
        sparse_kernel(*data, prior_mean=lambda x: x.new_zeros(40, 1))


def test_a_prior_mean_works_under_autocast() -> None:
    data, network = sets().to(torch.float32), nn.Linear(3, 2)
    expected = sparse_kernel(*data, prior_mean=network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(sparse_kernel(*data, prior_mean=network), expected, 0.05)


# What cannot be answered is explained


@HUGE
@pytest.mark.parametrize("name", ["queries", "features", "targets"])
@pytest.mark.usefixtures("path")
def test_a_row_that_is_not_finite_is_named(name: str, value: float) -> None:
    data = sets()
    getattr(data, name)[5, 1] = value
    shown = {"queries": "query"}.get(name, name)
    with pytest.raises(ValueError, match=f"^{shown} row 5 is not finite: {value} in column 1; drop it or repair it$"):
        sparse_kernel(*data, k=25)


@HUGE
@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.usefixtures("path")
def test_where_nobody_looks_such_rows_read_the_prior_or_are_left_out(
    monkeypatch: pytest.MonkeyPatch, value: float, localisation: Localisation
) -> None:
    """As on an accelerator; also with a gradient, which stays finite."""
    monkeypatch.setattr("skrl.checks.looks_at", lambda values: False)
    data = sets(12)
    spoilt = Sets(*(values.clone() for values in data))
    spoilt.queries[3, 1], spoilt.features[0, 1] = value, value
    kept = Sets(data.queries, data.features[1:], data.targets[1:])
    expected = oracle(kept, "matern32", 1.0, 1e-2, 8, localisation)
    expected.mean[3], expected.variance[3] = 0.0, 1.0
    assert_near(sparse_kernel(*spoilt, k=8, localisation=localisation), expected, 1e-9)
    leaves, lengthscale = wanting(spoilt), torch.ones(3, dtype=torch.float64, requires_grad=True)
    answer = sparse_kernel(*leaves, k=8, localisation=localisation, lengthscale=lengthscale)
    assert_near(answer, expected, 1e-9)
    answer.mean.sum().backward()
    for leaf in (*leaves, lengthscale):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().max() > 0.0


@pytest.mark.usefixtures("path")
def test_a_target_that_nobody_reads_disturbs_nobody() -> None:
    data = sets()
    data.features[5], data.targets[5] = 1e3, NAN
    assert sparse_kernel(*data, k=8).mean.isfinite().all()


@pytest.mark.usefixtures("path")
def test_an_answer_beyond_its_dtype_is_explained() -> None:
    data = sets()
    half = Sets(data.queries.half(), data.features, 1e6 * data.targets)
    with pytest.raises(
        ValueError, match=r"query row \d exceeds torch.float16, which ends at 6.55e\+04, from targets up to"
    ):
        sparse_kernel(*half, k=25)
    assert sparse_kernel(half.queries.float(), *half[1:], k=25).mean.isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "k is 0, but must be positive: a prediction needs at least 1 neighbour"),
        ({"k": -1}, "k is -1, but must be positive"),
        ({"lengthscale": 0.0}, r"lengthscale is 0.0, but must be positive and finite, from 2.2e-308 to 1.8e\+308"),
        ({"lengthscale": -1.0}, "lengthscale is -1.0"),
        ({"lengthscale": INF}, "lengthscale is inf"),
        ({"lengthscale": torch.tensor(NAN)}, "lengthscale is nan"),
        ({"lengthscale": torch.tensor([1.0, 0.0, 1.0])}, r"lengthscale is \[1.0, 0.0, 1.0\], but must be positive"),
        ({"lengthscale": torch.ones(2)}, r"lengthscale has shape \(2,\), but must be one number, or .* \[3\]"),
        ({"lengthscale": torch.ones(7, 3)}, r"lengthscale has shape \(7, 3\), but must be one number"),
        ({"ridge": -0.1}, "ridge is -0.1, but must not be negative"),
        ({"ridge": NAN}, "ridge is nan"),
        ({"ridge": INF}, r"ridge is inf, but must not be negative, and at most 3.4e\+38"),
        ({"ridge": torch.tensor(-1.0)}, "ridge is -1.0"),
        ({"ridge": torch.ones(1)}, r"ridge has shape \(1,\), but must be one number; call .squeeze\(\)"),
        ({"kernel": "gausian"}, "unknown kernel 'gausian'; did you mean 'gaussian'"),
        ({"localisation": "soft"}, "localisation is 'soft', but must be one of hard, continuous"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks", "path")
def test_settings_out_of_range_are_explained(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparse_kernel(*sets(), **keywords)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_shapes_are_explained() -> None:
    data = sets()
    for queries in (data.queries[0], data.queries[:, :2], data.queries[None], torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"queries have shape .* but must be \[batch, 3\] like the features"):
            sparse_kernel(queries, *data[1:])
    for features in (data.features[0], data.features[:4], data.features[None]):
        with pytest.raises(ValueError, match=r"must be .* with equally many points"):
            sparse_kernel(data.queries, features, data.targets)
    for targets in (data.targets[:, 0], data.targets[:4], data.targets[None]):
        with pytest.raises(ValueError, match=r"must be .* with equally many points"):
            sparse_kernel(*data[:2], targets)


@pytest.mark.parametrize("name", Sets._fields)
def test_devices_that_differ_are_named(name: str) -> None:
    data = sets()
    elsewhere = data._replace(**{name: getattr(data, name).to("meta")})
    with pytest.raises(ValueError, match=r"lie on .*meta.*; move both to one with .to\(device\)"):
        sparse_kernel(*elsewhere)


def test_a_support_of_other_features_is_refused() -> None:
    data = sets()
    with pytest.raises(
        ValueError, match=r"support was made of \(10, 3\) features, but these are \(25, 3\); make it again"
    ):
        sparse_kernel(*data, support=make_support(data.features[:10], 1.0))


def test_more_neighbours_than_memory_holds_are_refused() -> None:
    points = torch.zeros(20_000, 1)
    with pytest.raises(ValueError, match=r"k is 20000 for 20000 points, .* at most 16384 neighbours are taken"):
        sparse_kernel(points[:1], points, points, k=20_000)
    assert sparse_kernel(points[:1], points[:9], points[:9], k=10**12).mean.tolist() == [[0.0]]


# Whatever is asked


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dim", [0, 3, 12])
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_nothing_may_be_empty_or_everything(dim: int, localisation: Localisation) -> None:
    for points, queries, targets in ((0, 4, 2), (4, 0, 2), (0, 0, 2), (4, 4, 0), (1, 1, 1)):
        prediction = sparse_kernel(*sets(points, dim, queries, targets), localisation=localisation)
        assert (prediction.mean.shape, prediction.variance.shape) == ((queries, targets), (queries,))
        assert prediction.mean.isfinite().all()
        if points == 0:
            assert (prediction.variance == 1.0).all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_as_far_as_floating_point_reaches(dtype: torch.dtype) -> None:
    """Far points beyond any square change nothing for the near ones, whose mean they would carry away."""
    near = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=dtype)
    far = torch.full((2, 2), torch.finfo(dtype).max, dtype=dtype) * torch.tensor([[1.0], [-1.0]], dtype=dtype)
    targets = torch.tensor([[1.0], [2.0], [100.0], [100.0]], dtype=dtype)
    alone = sparse_kernel(near, near, targets[:2], ridge=0.1)
    beside = sparse_kernel(torch.cat([near, far]), torch.cat([near, far]), targets, ridge=0.1)
    assert_near(Prediction(beside.mean[:2], beside.variance[:2]), alone, 1e-6)
    assert beside.mean.isfinite().all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("far", [1e8, 1e15, 1e37])
def test_one_point_far_away_costs_the_others_no_digits(dim: int, far: float) -> None:
    data = sets(60, dim)
    data.features[17] = far
    prediction = sparse_kernel(*data.to(torch.float32), ridge=0.3, k=6)
    assert_near(prediction, oracle(data, "matern32", 1.0, 0.3, 6, "hard"), 1e-5)


class Drawn(NamedTuple):
    """Sets with duplicates and constant columns, drawn by hypothesis."""

    points: int
    distinct: int
    dim: int
    constant: bool
    seed: int

    def sets(self) -> Sets:
        generator = torch.Generator().manual_seed(self.seed)
        pool = torch.randn(self.distinct, self.dim, generator=generator, dtype=torch.float64)
        pool[:, 0] = torch.where(torch.tensor(self.constant), 1.0, pool[:, 0])
        chosen = torch.randint(0, self.distinct, (self.points,), generator=generator)
        queries = torch.cat([pool[:2], torch.randn(3, self.dim, generator=generator, dtype=torch.float64)])
        return Sets(queries, pool[chosen], torch.randn(self.points, 2, generator=generator, dtype=torch.float64))


DRAWN = st.builds(
    Drawn, st.integers(0, 40), st.integers(1, 40), st.sampled_from([1, 3, 12]), st.booleans(), st.integers(0, 2**16)
)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def on_both_paths(ask: Callable[[], Prediction]) -> list[Prediction]:
    answers = [ask()]
    if compiling.AVAILABLE:
        compiling.AVAILABLE = False
        try:
            answers.append(ask())
        finally:
            compiling.AVAILABLE = True
    return answers


@SETTINGS
@given(
    drawn=DRAWN,
    k=st.sampled_from([1, 2, 6, 39, 40, 41, 10**9]),
    kernel=st.sampled_from(sorted(KERNELS)),
    ridge=st.sampled_from([1e-3, 1e-2, 1.0]),
    localisation=st.sampled_from(LOCALISATIONS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_corrections_are_bounded(
    drawn: Drawn, k: int, kernel: str, ridge: float, localisation: Localisation, dtype: torch.dtype
) -> None:
    """‖w‖ ≤ √κ(z, z) / (2 √λ), since κ_z = K^½ v with ‖v‖² ≤ κ(z, z); duplicates, constants and any fill included."""
    data = drawn.sets().to(dtype)
    for prediction in on_both_paths(
        lambda: sparse_kernel(*data, kernel=kernel, ridge=ridge, k=k, localisation=localisation)
    ):
        bound = data.targets.norm(dim=0) / (2.0 * math.sqrt(ridge))
        assert (prediction.mean.abs() <= 1.01 * bound).all()
        assert ((prediction.variance >= 0.0) & (prediction.variance <= 1.0)).all()


@SETTINGS
@given(
    drawn=DRAWN,
    k=st.sampled_from([1, 2, 6, 40]),
    kernel=st.sampled_from(sorted(KERNELS)),
    scale=st.sampled_from([2.0**-66, 2.0**66, 1e-20, 1e20]),
    ridge=st.sampled_from([0.0, 1e-2, 1.0]),
    localisation=st.sampled_from(LOCALISATIONS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_answers_do_not_depend_on_the_units(
    drawn: Drawn, k: int, kernel: str, scale: float, ridge: float, localisation: Localisation, dtype: torch.dtype
) -> None:
    """Features, queries and lengthscale in other units give the same answer, targets in other units the scaled one."""
    data = drawn.sets().to(dtype)
    scaled = Sets(*(scale * value for value in data))
    keywords = {"kernel": kernel, "ridge": ridge, "k": k, "localisation": localisation}
    expected = on_both_paths(lambda: sparse_kernel(*data, **keywords))  # type: ignore[arg-type]
    actual = on_both_paths(lambda: sparse_kernel(*scaled, lengthscale=scale, **keywords))  # type: ignore[arg-type]
    # Other rounding may choose among points that are equally far, such as duplicates with targets of their own.
    unambiguous = k >= drawn.points and localisation == "hard" and ridge > 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if math.frexp(scale)[0] == 0.5:
            assert torch.equal(ours.mean, scale * theirs.mean)
            assert torch.equal(ours.variance, theirs.variance)
        elif unambiguous:
            tolerance = 1e-10 if dtype == torch.float64 else 1e-3
            assert_near(Prediction(ours.mean / scale, ours.variance), theirs, tolerance)
        assert ours.mean.isfinite().all()


@SETTINGS
@given(
    drawn=DRAWN,
    k=st.sampled_from([1, 6, 40]),
    kernel=st.sampled_from(sorted(KERNELS)),
    scale=st.sampled_from([1e-30, 1e-20, 1e20, 1e37]),
    localisation=st.sampled_from(LOCALISATIONS),
    ridge=st.sampled_from([0.0, 1e-6, 1.0]),
)
def test_answers_are_finite_at_scales_that_do_not_fit(
    drawn: Drawn, k: int, kernel: str, scale: float, localisation: Localisation, ridge: float
) -> None:
    """Features and queries whose squares overflow or vanish beside the lengthscale, ridge zero with duplicates."""
    data = Sets(*(value.float() for value in drawn.sets()))
    given_ = data._replace(queries=scale * data.queries, features=scale * data.features)
    for prediction in on_both_paths(
        lambda: sparse_kernel(*given_, kernel=kernel, k=k, localisation=localisation, ridge=ridge)
    ):
        assert prediction.mean.isfinite().all()
        assert ((prediction.variance >= 0.0) & (prediction.variance <= 1.0)).all()


class Tailed(Kernel):
    """A kernel with a parameter of its own."""

    def __init__(self) -> None:
        self.tail = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def __call__(self, r: Tensor) -> Tensor:
        return 1.0 / (1.0 + self.tail.exp() * r.square())


def test_a_kernels_own_parameters_are_learned() -> None:
    data, kernel = sets(), Tailed()
    assert torch.autograd.gradcheck(
        lambda tail: sparse_kernel(*data, kernel=_with_tail(tail), k=5).mean, (kernel.tail,), fast_mode=True
    )
    sparse_kernel(*data, kernel=kernel, k=5).mean.square().sum().backward()
    assert kernel.tail.grad is not None
    assert kernel.tail.grad.abs() > 0.0


def test_a_kernel_with_parameters_answers_on_many_threads() -> None:
    """Gradients are switched off per thread, and those that share out the rows have them on."""
    data, kernel = sets(points=300, queries=4000), Tailed()
    with torch.no_grad():
        expected = sparse_kernel(*data, kernel=kernel)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            torch.testing.assert_close(sparse_kernel(*data, kernel=kernel).mean, expected.mean)
    finally:
        torch.set_num_threads(threads)


def _with_tail(tail: Tensor) -> Tailed:
    kernel = Tailed()
    kernel.tail = tail
    return kernel


@pytest.mark.parametrize("plain", [True, False])
def test_a_far_support_among_the_neighbours_changes_no_digit(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Where k reaches all supports it is a neighbour of everybody."""
    given = sets(points=20, dim=12)
    given.features[7] += 1e5
    expected = sparse_kernel(*given, k=32, lengthscale=2.0, ridge=0.1)
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    answer = sparse_kernel(*given.to(torch.float32), k=32, lengthscale=2.0, ridge=0.1)
    torch.testing.assert_close(answer.mean.double(), expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.variance.double(), expected.variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [DIFFERENCES_DIM, 12])
def test_systems_across_clumps_are_right_in_single_precision(path: str, dim: int) -> None:
    centres, clump = 1600.0 * torch.randn(6, dim), torch.arange(60) % 6
    features = centres[clump] + torch.randn(60, dim)
    queries, targets = centres + torch.randn(6, dim), torch.randn(60, 1)
    answer = sparse_kernel(queries, features, targets, lengthscale=2.0 * math.sqrt(dim), ridge=0.01, k=60)
    exact = oracle(Sets(queries, features, targets), "matern32", 2.0 * math.sqrt(dim), 0.01, 60, "hard")
    assert_near(answer, exact, 1e-3)


@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [1e20, -3e38])
@pytest.mark.usefixtures("path")
def test_what_is_too_far_for_a_square_leaves_the_gradient_alone(
    kernel: str, localisation: Localisation, value: float
) -> None:
    """As if the query, the support, and two supports that are too far from each other, were not there."""
    whole, far = sets(12).to(torch.float32), torch.full((1, 3), value)
    opposite = torch.tensor([[1.3e19, 0.0, 0.0], [-1.3e19, 0.0, 0.0]])
    spoilt = Sets(
        torch.cat([whole.queries, far]),
        torch.cat([whole.features, far, opposite]),
        torch.cat([whole.targets, torch.ones(3, 2)]),
    )
    few, many = (
        (wanting(data), torch.ones(3, requires_grad=True), torch.tensor(0.1, requires_grad=True))
        for data in (whole, spoilt)
    )
    for leaves, lengthscale, ridge in (few, many):
        answer = sparse_kernel(
            *leaves, kernel=kernel, k=32, localisation=localisation, lengthscale=lengthscale, ridge=ridge
        )
        (answer.mean.sum() + answer.variance.sum()).backward()
    for ours, theirs in zip((*many[0], *many[1:]), (*few[0], *few[1:]), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        there = ours.grad[: len(theirs)] if theirs.dim() == 2 else ours.grad
        torch.testing.assert_close(there, theirs.grad, rtol=1e-3, atol=1e-3)
        assert there is ours.grad or not ours.grad[len(theirs) :].any()

"""Sparse Kernels against independent oracles: dense solves, scikit-learn, finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor, nn

from skrl import KERNELS, Prediction, SparseKernel, sparse_kernel
from skrl.kernels import Kernel

LENGTHSCALE, RIDGE = 1.3, 0.1
SCIKIT: dict[str, sklearn_kernels.Kernel] = {
    "gaussian": sklearn_kernels.RBF(LENGTHSCALE),
    "laplace": sklearn_kernels.Matern(LENGTHSCALE, nu=0.5),
    "matern32": sklearn_kernels.Matern(LENGTHSCALE, nu=1.5),
    "matern52": sklearn_kernels.Matern(LENGTHSCALE, nu=2.5),
    "inverse_multiquadric": sklearn_kernels.RationalQuadratic(LENGTHSCALE, alpha=0.5),
}


def wendland_c2(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Wendland (2005), table 9.1, φ₃,₁; the radius √20 ℓ gives it the curvature −1/ℓ² at zero."""
    t = np.minimum(cdist(left, right) / (LENGTHSCALE * np.sqrt(20.0)), 1.0)
    return (1.0 - t) ** 4 * (4.0 * t + 1.0)


def wendland_c4(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same table, φ₃,₂; the radius is √(56/3) ℓ."""
    t = np.minimum(cdist(left, right) / (LENGTHSCALE * np.sqrt(56.0 / 3.0)), 1.0)
    return (1.0 - t) ** 6 * (35.0 * t**2 + 18.0 * t + 3.0) / 3.0


ORACLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    **SCIKIT,
    "wendland_c2": wendland_c2,
    "wendland_c4": wendland_c4,
}


class Data(NamedTuple):
    queries: Tensor
    features: Tensor
    targets: Tensor


def data(
    points: int = 25, queries: int = 7, dim: int = 3, targets: int = 2, dtype: torch.dtype = torch.float64
) -> Data:
    shapes = (queries, dim), (points, dim), (points, targets)
    return Data(*(torch.randn(*shape, dtype=torch.float64).to(dtype) for shape in shapes))


def assert_near(actual: Tensor, expected: Tensor | np.ndarray, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


@pytest.fixture(params=ORACLES)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def oracle_matrix(kernel: str, left: Tensor, right: Tensor) -> Tensor:
    """Kernel values by scikit-learn, or by the formula."""
    return torch.from_numpy(ORACLES[kernel](left.numpy(), right.numpy()))


def predict(given: Data, k: int, kernel: str = "matern32", ridge: float = RIDGE) -> Prediction:
    return sparse_kernel(*given, kernel=kernel, lengthscale=LENGTHSCALE, ridge=ridge, k=k)


# Oracles with k = M


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_equals_a_dense_ridge_solve(kernel: str, ridge: float) -> None:
    given = data()
    gram = oracle_matrix(kernel, given.features, given.features)
    cross = oracle_matrix(kernel, given.queries, given.features)
    weights = torch.linalg.solve(gram + ridge * torch.eye(25, dtype=torch.float64), cross.mT).mT
    prediction = predict(given, 25, kernel, ridge)
    assert_near(prediction.mean, weights @ given.targets)
    assert_near(prediction.variance, 1.0 - (weights * cross).sum(-1))


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
def test_equals_kernel_ridge_of_scikit_learn(kernel: str, ridge: float) -> None:
    given = data()
    oracle = KernelRidge(alpha=ridge, kernel="precomputed")
    oracle.fit(oracle_matrix(kernel, given.features, given.features).numpy(), given.targets.numpy())
    expected = oracle.predict(oracle_matrix(kernel, given.queries, given.features).numpy())
    assert_near(predict(given, 25, kernel, ridge).mean, expected)


def test_equals_kernel_ridge_with_its_own_gaussian_kernel() -> None:
    given = data()
    oracle = KernelRidge(alpha=RIDGE, kernel="rbf", gamma=1.0 / (2.0 * LENGTHSCALE**2))
    oracle.fit(given.features.numpy(), given.targets.numpy())
    assert_near(predict(given, 25, "gaussian").mean, oracle.predict(given.queries.numpy()))


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("kernel", SCIKIT)
def test_equals_a_gaussian_process_of_scikit_learn(kernel: str, ridge: float) -> None:
    given = data(targets=1)
    given = given._replace(queries=torch.cat([given.queries, given.features[:2], 50.0 + given.queries[:1]]))
    process = GaussianProcessRegressor(SCIKIT[kernel], alpha=ridge, optimizer=None)
    process.fit(given.features.numpy(), given.targets[:, 0].numpy())
    mean, covariance = process.predict(given.queries.numpy(), return_cov=True)
    prediction = predict(given, 25, kernel, ridge)
    assert_near(prediction.mean[:, 0], mean)
    assert_near(prediction.variance, np.diag(covariance).copy())


@pytest.mark.parametrize("k", [5, 25])
def test_polynomial_equals_a_ridge_regression_around_every_query(k: int) -> None:
    given = data()
    prediction = predict(given, k, "polynomial")
    for b, query in enumerate(given.queries):
        nearest = (given.features - query).norm(dim=-1).argsort()[:k]
        oracle = KernelRidge(alpha=RIDGE, kernel="poly", degree=2, gamma=1.0 / LENGTHSCALE**2, coef0=1.0)
        oracle.fit((given.features[nearest] - query).numpy(), given.targets[nearest].numpy())
        assert_near(prediction.mean[b : b + 1], oracle.predict(np.zeros((1, 3))), 1e-8)


def test_every_kernel_has_an_oracle() -> None:
    """A kernel that scikit-learn lacks needs its formula written out here, or a test of its own as above."""
    assert {*ORACLES, "polynomial"} == set(KERNELS)


def test_one_support_by_hand() -> None:
    """w = κ/(1 + λ): on the support 1/1.25 = 0.8 of its target, and variance 1 − 0.8."""
    prediction = sparse_kernel(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([[5.0]]), ridge=0.25)
    assert_near(prediction.mean, torch.tensor([[4.0]]), 1e-6)
    assert_near(prediction.variance, torch.tensor([0.2]), 1e-6)


# k < M, k > M, M = 0


@pytest.mark.parametrize("k", [1, 2, 8, 24])
def test_localised_equals_a_loop_of_dense_solves(kernel: str, k: int) -> None:
    given = data()
    prediction = predict(given, k, kernel)
    for b, query in enumerate(given.queries):
        nearest = (given.features - query).norm(dim=-1).argsort()[:k]
        gram = oracle_matrix(kernel, given.features[nearest], given.features[nearest])
        cross = oracle_matrix(kernel, query[None], given.features[nearest])[0]
        weights = torch.linalg.solve(gram + RIDGE * torch.eye(k, dtype=torch.float64), cross)
        assert_near(prediction.mean[b], weights @ given.targets[nearest])
        assert_near(prediction.variance[b], 1.0 - weights @ cross)


@pytest.mark.parametrize("points", [1, 3, 25])
def test_more_neighbours_than_points_is_all_points(points: int) -> None:
    given = data(points)
    for left, right in zip(predict(given, points), predict(given, 1000), strict=True):
        assert torch.equal(left, right)


def test_no_support_is_the_prior() -> None:
    prediction = predict(data(points=0), 8)
    assert prediction.mean.abs().max() == 0.0
    assert (prediction.variance == 1.0).all()
    network = nn.Linear(3, 2).double()
    given = data(points=0)
    prior = sparse_kernel(*given, prior_mean=network)
    assert torch.equal(prior.mean, network(given.queries))


def test_no_query_is_no_answer() -> None:
    prediction = predict(data(queries=0), 8)
    assert (prediction.mean.shape, prediction.variance.shape) == ((0, 2), (0,))


def test_batch_equals_loop() -> None:
    given = data()
    together = predict(given, 8)
    for b in range(7):
        alone = predict(given._replace(queries=given.queries[b : b + 1]), 8)
        assert_near(together.mean[b], alone.mean[0], 1e-12)
        assert_near(together.variance[b], alone.variance[0], 1e-12)


# Prior mean


def test_prior_mean_is_corrected_by_its_residuals() -> None:
    given, network = data(), nn.Linear(3, 2).double()
    with_prior = sparse_kernel(*given, lengthscale=LENGTHSCALE, ridge=RIDGE, k=8, prior_mean=network)
    residuals = given.targets - network(given.features)
    of_residuals = sparse_kernel(given.queries, given.features, residuals, lengthscale=LENGTHSCALE, ridge=RIDGE, k=8)
    assert_near(with_prior.mean, network(given.queries) + of_residuals.mean, 1e-12)
    far = given._replace(queries=1e5 + given.queries)
    assert torch.equal(sparse_kernel(*far, prior_mean=network).mean, network(far.queries))


def test_a_perfect_prior_needs_no_correction() -> None:
    given, network = data(), nn.Linear(3, 2).double()
    given = given._replace(targets=network(given.features).detach())
    assert_near(sparse_kernel(*given, prior_mean=network).mean, network(given.queries), 1e-12)


def test_gradient_reaches_the_prior_mean() -> None:
    given, network = data(), nn.Linear(3, 2).double()
    sparse_kernel(*given, prior_mean=network).mean.square().sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().min() > 0.0


# Gradients


def check_gradients(given: Data, kernel: str, k: int) -> None:
    """Finite differences in z, X, Y, ℓ and λ of mean and variance."""
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (LENGTHSCALE, RIDGE)]

    def outputs(*args: Tensor) -> Prediction:
        return sparse_kernel(*args[:3], kernel=kernel, lengthscale=args[3], ridge=args[4], k=k)

    inputs = [value.clone().requires_grad_() for value in given] + scalars
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-5, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [3, 6])
def test_gradients(kernel: str, k: int) -> None:
    check_gradients(data(points=6, queries=2, dim=2), kernel, k)


def test_gradients_at_coincident_points(kernel: str) -> None:
    """A query on a support, a query on two equal supports, and equal supports seen from elsewhere."""
    given = data(points=6, queries=3, dim=2)
    given.features[4] = given.features[1]
    given.queries[0], given.queries[1] = given.features[0], given.features[1]
    check_gradients(given, kernel, 6)


def test_gradient_is_finite_where_everything_coincides(kernel: str) -> None:
    inputs = [torch.zeros(4, 2, requires_grad=True) for _ in range(3)]
    prediction = sparse_kernel(*inputs, kernel=kernel, k=4)
    (prediction.mean.sum() + prediction.variance.sum()).backward()
    for value in inputs:
        assert value.grad is not None
        assert value.grad.isfinite().all()


# Numbers that must not surprise


def test_duplicates_share_what_one_point_would_say() -> None:
    """n equal supports with equal targets act as one with ridge λ/n."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    queries = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    targets = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    many = sparse_kernel(queries, features.repeat(5, 1), targets.repeat(5, 1), ridge=0.5, k=10)
    one = sparse_kernel(queries, features, targets, ridge=0.1, k=2)
    assert_near(many.mean, one.mean)
    assert_near(many.variance, one.variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_without_ridge_are_finite_and_disturb_nobody(dtype: torch.dtype) -> None:
    queries = torch.tensor([[0.1], [50.4], [100.3]], dtype=dtype)
    features = torch.tensor([[0.0], [1.0], [50.0], [50.0], [100.0], [102.0]], dtype=dtype)
    targets = torch.tensor([[1.0], [2.0], [3.0], [3.0], [5.0], [6.0]], dtype=dtype)
    given = Data(queries, features, targets)
    prediction = predict(given, 2, ridge=0.0)
    assert prediction.mean.isfinite().all()
    single = predict(Data(queries[1:2], features[2:3], targets[2:3]), 1, ridge=0.0)
    assert_near(prediction.mean[1], single.mean[0], 1e-3)
    for b in (0, 2):
        alone = predict(given._replace(queries=queries[b : b + 1]), 2, ridge=0.0)
        assert_near(prediction.mean[b], alone.mean[0], 1e-12)


def test_constant_features_give_a_shrunken_average() -> None:
    """K = 1·1ᵀ, hence f = Σ y / (n + λ)."""
    targets = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    features = torch.full((3, 2), 4.0, dtype=torch.float64)
    prediction = sparse_kernel(features[:1], features, targets, ridge=0.5)
    assert_near(prediction.mean, torch.tensor([[9.0 / 3.5]], dtype=torch.float64))
    assert_near(prediction.variance, torch.tensor([1.0 - 3.0 / 3.5], dtype=torch.float64))


def test_variance_is_one_far_away_and_small_on_top_of_many() -> None:
    features = torch.randn(200, 2, dtype=torch.float64)
    far = sparse_kernel(1e3 + features[:5], features, features[:, :1])
    near = sparse_kernel(features[:50], features, features[:, :1], ridge=1e-3)
    assert (far.variance == 1.0).all()
    assert (far.mean == 0.0).all()
    assert near.variance.max() < 1e-3


def test_offset_features_keep_their_digits_in_float32() -> None:
    given = data(points=200, dtype=torch.float32)
    moved = given._replace(queries=1e4 + given.queries, features=1e4 + given.features)
    exact = predict(Data(*(value.double() for value in moved)), 16)
    actual = predict(moved, 16)
    assert_near(actual.mean.double(), exact.mean, 1e-4)
    assert_near(actual.variance.double(), exact.variance, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_queries_answer_in_half_precision(dtype: torch.dtype) -> None:
    given = data(points=50, dtype=torch.float32)
    given = given._replace(queries=given.queries.to(dtype))
    prediction = predict(given, 8)
    expected = predict(given._replace(queries=given.queries.float()), 8)
    assert prediction.mean.dtype == prediction.variance.dtype == dtype
    assert_near(prediction.mean, expected.mean.to(dtype), 1e-2)
    assert_near(prediction.variance, expected.variance.to(dtype), 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_everywhere(dtype: torch.dtype) -> None:
    given = data(points=50, dtype=dtype)
    prediction = predict(given, 50)
    expected = predict(Data(*(value.float() for value in given)), 50)
    assert prediction.mean.dtype == prediction.variance.dtype == dtype
    tolerance = 30 * torch.finfo(dtype).eps
    assert_near(prediction.mean.float(), expected.mean, tolerance)
    assert_near(prediction.variance.float(), expected.variance, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_answer(dtype: torch.dtype) -> None:
    prediction = predict(data(dtype=dtype), 8)
    assert prediction.mean.dtype == prediction.variance.dtype == dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    points=st.integers(0, 40),
    k=st.integers(1, 45),
    kernel=st.sampled_from(sorted(KERNELS)),
    ridge=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    distinct=st.integers(1, 8),
    constant=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**16),
)
def test_predictions_are_finite(
    points: int, k: int, kernel: str, ridge: float, distinct: int, constant: bool, scale: float, seed: int
) -> None:
    """Whatever the fill, with duplicates, constant features, tiny or large scales: finite, and a variance in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    pool = scale * torch.randn(distinct, 2, generator=generator)
    if constant:
        pool[:, 0] = scale
    chosen = torch.randint(0, distinct, (points,), generator=generator)
    queries = torch.cat([pool, scale * torch.randn(3, 2, generator=generator)])
    prediction = sparse_kernel(
        queries, pool[chosen], torch.randn(points, 1, generator=generator), kernel=kernel, ridge=ridge, k=k
    )
    assert prediction.mean.isfinite().all()
    assert ((prediction.variance >= 0.0) & (prediction.variance <= 1.0)).all()


# The module


def module(given: Data, **keywords: object) -> SparseKernel:
    chosen: dict[str, object] = {"k": 8, "lengthscale": LENGTHSCALE, "ridge": RIDGE} | keywords
    return SparseKernel(given.features, given.targets, **chosen)  # type: ignore[arg-type]


def test_module_equals_function(kernel: str) -> None:
    given = data()
    expected = predict(given, 8, kernel)
    sparse = module(given, kernel=kernel)
    # Other loops are compiled for supports at hand; compilers round a sum in an order of their own.
    assert_near(sparse(given.queries), expected.mean, 1e-12)
    for left, right in zip(sparse.predict(given.queries), expected, strict=True):
        assert_near(left, right, 1e-12)


def test_tensors_are_fixed_and_parameters_learned() -> None:
    given = data()
    fixed = module(given)
    assert dict(fixed.named_parameters()) == {}
    assert set(dict(fixed.named_buffers())) == {"features", "targets", "fixed_lengthscale", "fixed_ridge"}
    learned = module(given._replace(targets=nn.Parameter(given.targets)))
    assert set(dict(learned.named_parameters())) == {"targets"}
    learned(given.queries).square().sum().backward()
    assert learned.targets.grad is not None
    assert learned.targets.grad.abs().max() > 0.0


def test_learned_supports_fit_a_function() -> None:
    features = torch.linspace(-2.0, 2.0, 9).unsqueeze(1)
    sparse = SparseKernel(nn.Parameter(features), nn.Parameter(torch.zeros(9, 1)), k=9, lengthscale=0.7, ridge=1e-2)
    queries = torch.linspace(-2.0, 2.0, 64).unsqueeze(1)
    optimizer = torch.optim.Adam(sparse.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = (sparse(queries) - torch.sin(3.0 * queries)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.3
    assert losses[-1] < 0.01


def test_fixed_supports_are_a_copy() -> None:
    given = data()
    sparse = module(given)
    before = sparse(given.queries)
    given.features.zero_()
    assert torch.equal(sparse(given.queries), before)


def test_settings_are_tuned_when_left_out() -> None:
    features = torch.rand(300, 1, dtype=torch.float64)
    smooth = SparseKernel(features, torch.sin(6.0 * features), k=16)
    noise = SparseKernel(features, torch.randn(300, 1, dtype=torch.float64), k=16)
    assert smooth.ridge < 1e-4
    assert noise.ridge >= 1.0
    error = smooth(features + 1e-3) - torch.sin(6.0 * (features + 1e-3))
    assert error.abs().max() < 0.05


@pytest.mark.parametrize("points", [0, 1])
def test_settings_of_too_few_points_are_the_defaults(points: int) -> None:
    sparse = SparseKernel(torch.zeros(points, 2), torch.ones(points, 1))
    assert (sparse.lengthscale.item(), sparse.ridge.item()) == (1.0, pytest.approx(1e-2))
    assert sparse(torch.zeros(1, 2)).isfinite().all()


def test_constant_features_can_be_tuned() -> None:
    sparse = SparseKernel(torch.full((20, 3), 7.0), torch.randn(20, 1))
    assert sparse.lengthscale.item() == 2.0
    assert sparse(torch.randn(4, 3)).isfinite().all()


def test_module_with_a_prior_mean() -> None:
    given, network = data(), nn.Linear(3, 2).double()
    sparse = module(given, prior_mean=network)
    expected = sparse_kernel(*given, lengthscale=LENGTHSCALE, ridge=RIDGE, k=8, prior_mean=network)
    assert_near(sparse(given.queries), expected.mean, 1e-12)
    assert set(dict(sparse.named_parameters())) == {"prior_mean.weight", "prior_mean.bias"}


def test_leave_one_out_of_the_module_equals_refits() -> None:
    given, network = data(points=9), nn.Linear(3, 2).double()
    sparse = module(given, k=9, prior_mean=network)
    errors = sparse.leave_one_out(given.queries[:1])[0]
    order = sparse.search(given.queries[:1], sparse.features, 9).indices[0]
    for position, i in enumerate(order.tolist()):
        rest = torch.arange(9) != i
        refit = module(Data(given.queries, given.features[rest], given.targets[rest]), k=8, prior_mean=network)
        assert_near(errors[position], given.targets[i] - refit(given.features[i : i + 1])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_in_other_precisions(dtype: torch.dtype) -> None:
    given = data(points=40, dtype=dtype)
    sparse = SparseKernel(given.features, given.targets, k=8)
    assert sparse(given.queries).dtype == dtype
    assert sparse.leave_one_out(given.queries).dtype == dtype
    assert sparse(given.queries).isfinite().all()


def test_state_round_trip() -> None:
    given = data()
    sparse = module(given, lengthscale=0.7, ridge=0.3)
    other = module(data())
    assert not torch.equal(other(given.queries), sparse(given.queries))
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(given.queries), sparse(given.queries))
    assert torch.equal(copy.deepcopy(sparse)(given.queries), sparse(given.queries))


def test_module_shows_its_settings() -> None:
    text = repr(module(data()))
    assert "supports=25, dim=3, kernel=Matern32(), k=8, localisation=hard, lengthscale=1.3, ridge=0.1" in text
    per_dimension = repr(module(data(), lengthscale=torch.ones(3), localisation="continuous", learn_kernel=True))
    assert "localisation=continuous, lengthscale=3 values, ridge=0.1" in per_dimension
    assert "(kernel=matern32, k=5, localisation=hard)" in repr(SparseKernel(k=5))


@pytest.mark.parametrize("learn", [False, True])
def test_text_of_what_lies_on_no_cpu(learn: bool) -> None:
    text = repr(module(data(), learn_kernel=learn).to("meta"))
    assert "lengthscale on meta, ridge on meta" in text


# Bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_query_that_is_not_finite_is_named(value: float) -> None:
    given = data()
    given.queries[3, 1] = value
    sparse = module(given)
    for ask in (sparse, sparse.predict, sparse.leave_one_out):
        with pytest.raises(ValueError, match=f"query row 3 is not finite: {value} in column 1; drop it or repair it"):
            ask(given.queries)


@pytest.mark.parametrize("name", ["features", "targets"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_support_that_is_not_finite_is_rejected(name: str, value: float) -> None:
    given = data()
    getattr(given, name)[5, 0] = value
    with pytest.raises(ValueError, match=f"{name} row 5 is not finite: {value} in column 0; drop it or repair it"):
        module(given)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "k is 0, but must be positive"),
        ({"k": -3}, "k is -3"),
        ({"lengthscale": 0.0}, "lengthscale is 0.0, but must be positive"),
        ({"lengthscale": float("nan")}, "lengthscale is nan"),
        ({"ridge": -0.1}, "ridge is -0.1, but must not be negative"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"kernel": "mattern32"}, "did you mean 'matern32'"),
    ],
)
def test_bad_settings_are_rejected(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(data(), **keywords)


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_shapes_are_explained() -> None:
    given = data()
    for queries in (given.queries[0], given.queries[:, :2], given.queries[None]):
        with pytest.raises(ValueError, match=r"queries have shape .* but must be \[batch, 3\] like the features"):
            module(given)(queries)
    for targets in (given.targets[:4], given.targets[:, 0]):
        with pytest.raises(ValueError, match="with equally many points"):
            module(given._replace(targets=targets))


def test_a_query_far_beyond_floating_point_reads_the_prior() -> None:
    given = data(dtype=torch.float32)
    given.queries[2] = 1e30
    network = nn.Linear(3, 2)
    prediction = sparse_kernel(*given, k=8, prior_mean=network)
    assert torch.equal(prediction.mean[2], network(given.queries)[2])
    assert prediction.variance[2] == 1.0


def test_half_precision_features_of_large_norm() -> None:
    given = data(points=50, dtype=torch.float16)
    given = given._replace(queries=200.0 * given.queries, features=200.0 * given.features)
    upcast = Data(*(value.float() for value in given))
    actual = sparse_kernel(*given, lengthscale=300.0, ridge=RIDGE, k=8)
    expected = sparse_kernel(*upcast, lengthscale=300.0, ridge=RIDGE, k=8)
    assert_near(actual.mean.float(), expected.mean, 1e-2)


def test_solves_run_outside_autocast() -> None:
    given = data(points=50, dtype=torch.float32)
    expected = predict(given, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = predict(given, 16)
    assert_near(actual.mean, expected.mean, 1e-5)


# The short way for few queries


@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("rows", [1, 4, 500])
@pytest.mark.parametrize("name", ["features", "targets", "fixed_lengthscale", "fixed_ridge"])
def test_gradients_reach_what_stands_in_for_a_buffer(name: str, rows: int, dim: int) -> None:
    given = data(40, rows, dim)
    sparse = module(given, k=8)
    stand_in = getattr(sparse, name).clone().requires_grad_()
    answer = torch.func.functional_call(sparse, {name: stand_in}, (given.queries,))
    torch.testing.assert_close(answer.detach(), sparse(given.queries))
    (gradient,) = torch.autograd.grad(answer.sum(), stand_in)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0.0


@pytest.mark.parametrize("dim", [3, 12])
def test_no_query_of_a_module_is_no_answer(dim: int) -> None:
    given = data(60, 0, dim)
    sparse = module(given, k=8)
    assert sparse(given.queries).shape == (0, 2)
    assert sparse.predict(given.queries).variance.shape == (0,)


def test_a_kernel_that_holds_a_tensor_can_be_exchanged() -> None:
    class Bent(Kernel):
        def __init__(self, powers: list[float]) -> None:
            self.powers = torch.tensor(powers, dtype=torch.float64)

        def __call__(self, r: Tensor) -> Tensor:
            return torch.exp(-r.unsqueeze(-1) * self.powers).mean(-1)

        def __hash__(self) -> int:
            return id(self)

    given = data()
    sparse = module(given, kernel=Bent([1.0, 2.0]), k=8)
    before = sparse(given.queries)
    sparse.kernel = Bent([3.0, 4.0])
    assert not torch.equal(sparse(given.queries), before)
    torch.testing.assert_close(sparse(given.queries), module(given, kernel=sparse.kernel, k=8)(given.queries))


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_settings_keep_their_precision(convert: Callable[[nn.Module], nn.Module], learn: bool) -> None:
    given = data(dtype=torch.float32)
    sparse = module(given, lengthscale=1e5, ridge=1e-8, learn_kernel=learn)
    if learn:
        sparse(given.queries).sum().backward()
    sparse = convert(sparse)
    assert all(parameter.grad is None for parameter in sparse.parameters())
    assert (sparse.features.dtype, sparse.lengthscale.dtype) == (
        sparse(given.queries.to(sparse.features)).dtype,
        torch.float32,
    )
    assert sparse.lengthscale.item() == pytest.approx(1e5, rel=1e-5)
    assert sparse.ridge.item() == pytest.approx(1e-8, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dim", [3, 12])
def test_queries_beyond_the_precision_read_the_prior_without_a_warning(dim: int, rows: int) -> None:
    sparse = SparseKernel(torch.randn(30, dim), torch.randn(30, 2), lengthscale=1e-3, ridge=0.1)
    mean, variance = sparse.predict(torch.full((rows, dim), 3e38))
    assert not mean.any()
    assert (variance == 1.0).all()

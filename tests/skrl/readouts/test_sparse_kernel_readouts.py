"""Sparse Kernel readouts: what they are worth, their oracles, what they choose, and what can be learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from skrl import LinearRegressor, SparseKernelClassifier, SparseKernelRegressor
from skrl.readouts.sparse_kernel_readouts import SHARPNESSES, likeliest_sharpness

# Readouts from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


def digits(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test data, with so many labels of each class."""
    X, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    chosen = np.concatenate([generator.permutation(np.flatnonzero(y == label))[:per_class] for label in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), chosen)
    return X[chosen], y[chosen], X[rest], y[rest]


def tensors(*arrays: np.ndarray, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.from_numpy(array).to(dtype if array.dtype.kind == "f" else torch.long) for array in arrays]


# What it is worth


def test_few_labelled_digits_are_read_better_than_by_logistic_regression() -> None:
    """Raw pixels, 50 labels of each class; logistic regression gets the penalty that suits the test data best."""
    ours, theirs = [], []
    for seed in range(3):
        X, y, X_test, y_test = digits(50, seed)
        ours.append(SparseKernelClassifier().fit(X, y).score(X_test, y_test))
        linear = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000)) for C in (0.01, 0.1, 1.0)]
        theirs.append(max(model.fit(X, y).score(X_test, y_test) for model in linear))
    assert np.mean(ours) >= np.mean(theirs) - 0.01
    assert np.mean(ours) >= 0.97


def test_probabilities_are_calibrated() -> None:
    """A cross entropy that raw scores, clipped and normalised, do not reach by far."""
    X, y, X_test, y_test = digits(50, seed=0)
    model = SparseKernelClassifier(scaling="isotropic").fit(X, y)
    scores = (model.sparse_kernel_(model.scaling_(torch.from_numpy(X_test))) + model.class_prior_).clamp(min=1e-3)
    clipped = scores / scores.sum(-1, keepdim=True)
    labels = torch.from_numpy(y_test)
    loss = functional.nll_loss(torch.from_numpy(model.predict_proba(X_test)).log(), labels)
    assert float(loss) < 0.1
    assert float(loss) < 0.5 * float(functional.nll_loss(clipped.log(), labels))


def test_diabetes_is_regressed_about_as_well_as_by_ridge_with_honest_deviations() -> None:
    X, y = DIABETES
    scores, linear_scores, ratios = [], [], []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(y))
        train, test = order[:300], order[300:]
        model = SparseKernelRegressor().fit(X[train], y[train])
        mean, std = model.predict(X[test], return_std=True)
        scores.append(r2_score(y[test], mean))
        assert model.score(X[test], y[test]) == pytest.approx(scores[-1], abs=1e-9)
        linear_scores.append(LinearRegressor().fit(X[train], y[train]).score(X[test], y[test]))
        ratios.append(np.sqrt(np.mean(((y[test] - mean) / std) ** 2)))
    assert np.mean(scores) > np.mean(linear_scores) - 0.05
    assert 0.85 < np.mean(ratios) < 1.15


# Oracles


def test_regressor_is_a_gaussian_process_whose_scale_leaves_one_out() -> None:
    """Mean and deviation of scikit-learn's process, with the scale from refits without each sample in turn."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(40, 3)), generator.normal(size=40)
    queries = generator.normal(size=(9, 3))
    model = SparseKernelRegressor(scaling="none", k=40, lengthscale=1.5, ridge=0.1).fit(X, y)
    offset, spread = y.mean(), y.std()
    standard = (y - offset) / spread

    def process(rows: np.ndarray) -> GaussianProcessRegressor:
        return GaussianProcessRegressor(Matern(1.5, nu=1.5), alpha=0.1, optimizer=None).fit(X[rows], standard[rows])

    squares = []
    for i in range(40):
        left_out, deviation = process(np.delete(np.arange(40), i)).predict(X[i : i + 1], return_std=True)
        squares.append((standard[i] - left_out) ** 2 / (deviation**2 + 0.1))
    expected, deviation = process(np.arange(40)).predict(queries, return_std=True)
    mean, std = model.predict(queries, return_std=True)
    np.testing.assert_allclose(mean, offset + spread * expected, rtol=1e-9)
    np.testing.assert_allclose(std, spread * np.sqrt(np.mean(squares) * (deviation**2 + 0.1)), rtol=1e-7)


def test_classifier_is_a_regression_of_one_hot_labels_around_the_prior() -> None:
    X, y = IRIS
    X, y = X[:120], y[:120]  # 50, 50 and 20 of a class
    model = SparseKernelClassifier(scaling="none", k=120, lengthscale=2.0, ridge=0.1).fit(X, y)
    prior = np.array([50, 50, 20]) / 120
    process = GaussianProcessRegressor(Matern(2.0, nu=1.5), alpha=0.1, optimizer=None).fit(X, np.eye(3)[y] - prior)
    logits = np.log(prior) + float(model.sharpness_) * process.predict(IRIS[0])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(IRIS[0]), probabilities, rtol=1e-7)
    np.testing.assert_allclose(model(torch.from_numpy(IRIS[0])).numpy(), logits, rtol=1e-7)


def test_sharpness_minimises_the_cross_entropy() -> None:
    prior, labels = torch.tensor([0.5, 0.5]), torch.tensor([0, 1, 0, 1])
    sure = torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]])
    assert likeliest_sharpness(sure, prior, labels) == SHARPNESSES[-1]
    misled = torch.cat([sure[:1], -sure[1:]])
    assert likeliest_sharpness(misled, prior, labels) == SHARPNESSES[0]
    # Three of four right at scores ±1/2: log-odds β = log 3 ≈ 1.1.
    mixed = torch.cat([sure[:3], -sure[3:]])
    assert likeliest_sharpness(mixed, prior, labels) == 1.0
    assert likeliest_sharpness(mixed[:0], prior, labels[:0]) == 1.0


def test_far_from_all_supports_is_the_prior() -> None:
    X, y = IRIS
    classifier = SparseKernelClassifier(scaling="standard").fit(X[:120], y[:120])
    far = np.full((1, 4), 1e6)
    np.testing.assert_allclose(classifier.predict_proba(far)[0], np.array([50, 50, 20]) / 120, rtol=1e-12)
    regressor = SparseKernelRegressor(scaling="standard").fit(X[:120], y[:120])
    assert regressor.predict(far)[0] == pytest.approx(y[:120].mean(), rel=1e-12)


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_targets_of_any_size_are_regressed_alike(factor: float) -> None:
    """Squares of float32 numbers beyond 2⁶⁴ overflow."""
    features = torch.rand(60, 3)
    targets = torch.sin(4.0 * features[:, :2])
    plain, scaled = (SparseKernelRegressor().fit(features, size * targets) for size in (1.0, factor))
    torch.testing.assert_close(scaled.predict(features) / factor, plain.predict(features))


def test_an_answer_beyond_half_precision_is_refused() -> None:
    features, targets = torch.rand(60, 3), 1e6 + torch.rand(60, 1)
    regressor = SparseKernelRegressor().fit(features, targets)
    with pytest.raises(
        ValueError,
        match=r"query row 0 exceeds torch.float16, which ends at 6.55e\+04, from targets up to 1e\+06; scale",
    ):
        regressor(features.half())
    assert regressor(features.bfloat16()).isfinite().all()
    assert regressor.predict(features.half()).isfinite().all()
    with pytest.raises(ValueError, match=r"query row 0 exceeds torch.float16, .* from targets up to 1e\+06; scale"):
        regressor.half()(features.half())


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_deviations_of_large_targets_in_half_precision(convert: Callable[[nn.Module], SparseKernelRegressor]) -> None:
    features = torch.rand(60, 3)
    regressor = SparseKernelRegressor(ridge=0.1).fit(features, 1e6 * torch.sin(4.0 * features[:, 0]))
    queries = torch.rand(20, 3)
    _, exact = regressor.predict(queries, return_std=True)
    _, half = convert(regressor).predict(queries, return_std=True)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.0)


# Settings that choose themselves


def test_scaling_follows_the_data() -> None:
    X, y = load_wine(return_X_y=True)  # one feature in the thousands, others about one
    wine = SparseKernelClassifier().fit(X, y)
    chosen = SparseKernelClassifier(scaling="standard").fit(X, y)
    np.testing.assert_allclose(wine.scaling_.scale, chosen.scaling_.scale)
    X, y, *_ = digits(20, seed=0)  # the pixels at the rim are dark but for accidents
    scale = SparseKernelClassifier().fit(X, y).scaling_.scale
    assert torch.equal(scale, scale[:1].expand(64))


def test_weak_directions_of_deep_features_count() -> None:
    """Two strong directions that say nothing, as those that a network was trained for, and weak ones that do."""
    X = torch.randn(600, 12) * torch.tensor([20.0, 20.0] + [1.0] * 10)
    y = (X[:, 2:5].sum(-1) > 0).long()
    X = X @ torch.linalg.qr(torch.randn(12, 12)).Q
    model = SparseKernelClassifier(k=32).fit(X[:300], y[:300])
    assert model.scaling_.rotation is not None
    isotropic = SparseKernelClassifier(k=32, scaling="isotropic").fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > isotropic.score(X[300:], y[300:]) + 0.05
    wide = torch.randn(20, 2049)
    assert SparseKernelClassifier(ridge=0.1).fit(wide, (wide[:, 0] > 0).long()).scaling_.rotation is None


def test_supports_are_a_seeded_share_of_every_class() -> None:
    X = np.random.default_rng(0).normal(size=(1000, 2))
    y = np.repeat([0, 1, 2], [799, 200, 1])
    fitted = SparseKernelClassifier(max_supports=100, scaling="none", learn_targets=False).fit(X, y)
    supports, targets = fitted.sparse_kernel_.features, fitted.sparse_kernel_.targets
    counts = (targets + fitted.class_prior_).round().sum(0)
    assert counts.sum() == 100
    assert counts[2] == 1
    assert abs(float(counts[1]) - 20) <= 1
    np.testing.assert_allclose(fitted.class_prior_, [0.799, 0.2, 0.001])
    rows = {tuple(row) for row in X}
    assert len({tuple(row) for row in supports.tolist()} & rows) == 100
    again = clone(fitted).fit(X, y).sparse_kernel_.features
    other = clone(fitted).set_params(random_state=1).fit(X, y).sparse_kernel_.features
    assert torch.equal(again, supports)
    assert not torch.equal(other, supports)
    regressor = SparseKernelRegressor(max_supports=100).fit(X, X[:, 0])
    assert len(regressor.sparse_kernel_.features) == 100
    assert regressor.score(X, X[:, 0]) > 0.9


def test_settings_reach_the_kernel() -> None:
    X, y = IRIS
    model = SparseKernelClassifier(kernel="gaussian", k=7, lengthscale=0.3, ridge=0.2, scaling="isotropic").fit(X, y)
    kernel = model.sparse_kernel_
    assert (repr(kernel.kernel), kernel.k) == ("Gaussian()", 7)
    assert (float(kernel.lengthscale), float(kernel.ridge)) == pytest.approx((0.3, 0.2))
    assert "kernel='gaussian', k=7, lengthscale=0.3, ridge=0.2, scaling='isotropic'" in repr(model)


# scikit-learn around it


# Learned parts


@pytest.mark.parametrize(("supports", "targets"), [(False, False), (True, False), (False, True), (True, True)])
def test_gradients_reach_what_is_learned(supports: bool, targets: bool) -> None:
    X, y = tensors(*IRIS, dtype=torch.float64)
    model = SparseKernelClassifier(learn_supports=supports, learn_targets=targets, ridge=0.1).fit(X, y)
    names = {name.removeprefix("sparse_kernel_.") for name, _ in model.named_parameters()}
    assert names == {name for name, learned in (("features", supports), ("targets", targets)) if learned}
    queries = X[::10].clone().requires_grad_()
    functional.cross_entropy(model(queries), y[::10]).backward()
    for tensor in (queries, *model.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0.0


def test_a_learned_kernel_is_a_nonlinear_probe() -> None:
    """Frozen features; lengthscale and ridge follow the loss, and survive a state dict."""
    X, y = tensors(*IRIS, dtype=torch.float64)
    model = SparseKernelClassifier(scaling="standard", learn_kernel=True).fit(X[::2], y[::2])
    assert len(list(model.parameters())) == 2
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(X[1::2]), y[1::2])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    fresh = SparseKernelClassifier(learn_kernel=True)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), model(X))


def test_continuous_localisation_does_not_jump() -> None:
    X = torch.rand(200, 2, dtype=torch.float64)
    y = torch.sin(6.0 * X).sum(-1)
    line = torch.linspace(0.1, 0.9, 20_001, dtype=torch.float64).unsqueeze(-1).expand(-1, 2)
    jumps = [
        float(SparseKernelRegressor(k=6, ridge=0.1, localisation=kind).fit(X, y).predict(line).diff().abs().max())
        for kind in ("hard", "continuous")
    ]
    assert jumps[1] < 0.1 * jumps[0]


def test_logits_have_the_gradient_of_finite_differences() -> None:
    X, y = (values[::3] for values in tensors(*IRIS, dtype=torch.float64))
    for model in (SparseKernelClassifier(scaling="cosine", ridge=0.1, k=50), SparseKernelRegressor(ridge=0.1, k=50)):
        queries = (X[[0, 20, 40]] + 0.05).requires_grad_()
        assert torch.autograd.gradcheck(model.fit(X, y), queries, eps=1e-6, atol=1e-5)


def test_a_backbone_learns_through_learned_supports() -> None:
    X, y = tensors(*digits(10, seed=0)[:2])
    backbone = nn.Sequential(nn.Linear(64, 16), nn.Tanh())
    head = SparseKernelClassifier(k=16, ridge=0.1, scaling="isotropic", learn_supports=True, learn_targets=True)
    model = nn.Sequential(backbone, head)
    head.fit_loader(DataLoader(TensorDataset(X, y), 25), model)
    X_new, y_new = tensors(*digits(20, seed=1)[:2])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(X_new), y_new)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]

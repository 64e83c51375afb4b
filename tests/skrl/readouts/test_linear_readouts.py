"""Linear readouts against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skrl import LinearClassifier, LinearRegressor
from skrl.readouts.linear_readouts import LOGISTIC_PENALTIES, ridge_regression, stratified_folds

DIGITS = load_digits(return_X_y=True)


def centred(samples: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(samples, dim, dtype=torch.float64)
    targets = features @ torch.randn(dim, 2, dtype=torch.float64) + torch.randn(samples, 2, dtype=torch.float64)
    return features - features.mean(0), targets - targets.mean(0)


@pytest.mark.parametrize("dim", [5, 60])
@pytest.mark.parametrize("relative", [1e-4, 1e-1])
def test_ridge_equals_scikit_learn(dim: int, relative: float) -> None:
    """With fewer and with more features than samples."""
    features, targets = centred(30, dim)
    penalty = relative * float(torch.linalg.matrix_norm(features, 2) ** 2)
    expected = Ridge(alpha=penalty).fit(features.numpy(), targets.numpy()).coef_
    np.testing.assert_allclose(ridge_regression(features, targets, (relative,))[0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", [3, 12])
def test_ridge_penalty_has_the_smallest_leave_one_out_error(dim: int) -> None:
    """Few samples, so that the leverage of the mean matters, and candidates so dense that it tells."""
    features, targets = centred(8, dim)
    candidates, scale = tuple(np.logspace(-4, 1, 40)), float(torch.linalg.matrix_norm(features, 2) ** 2)
    errors = [
        np.mean((cross_val_predict(Ridge(alpha=c * scale), features, targets, cv=LeaveOneOut()) - targets.numpy()) ** 2)
        for c in candidates
    ]
    weight, error = ridge_regression(features, targets, candidates)
    assert error == pytest.approx(min(errors))
    assert torch.equal(weight, ridge_regression(features, targets, (candidates[int(np.argmin(errors))],))[0])


def test_constant_features_leave_the_mean() -> None:
    model = LinearRegressor().fit(np.ones((5, 3)), np.arange(5.0))
    np.testing.assert_allclose(model.predict(np.ones((2, 3))), [2.0, 2.0])


def test_logistic_regression_equals_scikit_learn() -> None:
    X, y = DIGITS[0][:300], DIGITS[1][:300]
    penalty = 1e-3
    model = LinearClassifier(penalty=penalty, max_iterations=2000).fit(X, y)
    varying = int((X.std(0) > 0).sum())
    # Features are divided by √d here, so weights are √d larger: penalty/2 · d ‖W‖² per sample is ‖W‖²/(2 C).
    oracle = LogisticRegression(C=1.0 / (penalty * varying * len(X)), max_iter=5000, tol=1e-8)
    expected = make_pipeline(StandardScaler(), oracle).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-4)


def test_logistic_penalty_chooses_itself_well() -> None:
    """Not far from the best of scikit-learn's penalties, chosen on the test data."""
    order = np.random.default_rng(0).permutation(len(DIGITS[1]))
    train, test = order[:300], order[300:1000]
    X, y = DIGITS
    model = LinearClassifier().fit(X[train], y[train])
    oracles = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000)) for C in (0.01, 0.1, 1.0)]
    best = max(oracle.fit(X[train], y[train]).score(X[test], y[test]) for oracle in oracles)
    assert model.score(X[test], y[test]) > best - 0.015


def test_scaling_is_chosen_too() -> None:
    """Faint features that are noise: standardised they drown the one that tells."""
    X = torch.randn(60, 40) * torch.tensor([1.0] + [1e-2] * 39)
    y = (X[:, 0] > 0).long()
    test = torch.randn(500, 40) * torch.tensor([1.0] + [1e-2] * 39)
    labels = (test[:, 0] > 0).long()
    for cls, targets in ((LinearClassifier, (y, labels)), (LinearRegressor, (X[:, 0], test[:, 0]))):
        chosen = cls().fit(X, targets[0])
        assert (chosen.scaling_.scale == chosen.scaling_.scale[0]).all()
        assert chosen.score(test, targets[1]) > 0.95


def test_noise_gets_a_strong_penalty() -> None:
    """Labels that no feature tells: probabilities stay near the class frequencies."""
    X, y = torch.randn(200, 20), torch.arange(200) % 2
    probabilities = LinearClassifier().fit(X, y).predict_proba(torch.randn(500, 20))
    assert (probabilities - 0.5).abs().max() < 0.3
    wild = LinearClassifier(penalty=LOGISTIC_PENALTIES[-1]).fit(X, y).predict_proba(torch.randn(500, 20))
    assert (wild - 0.5).abs().max() > 0.4


def test_one_sample_of_a_class_cannot_be_held_out() -> None:
    model = LinearClassifier().fit(np.array([[0.0]]), np.array(["only"]))
    assert model.predict(np.array([[5.0]])) == ["only"]


def test_folds_have_their_share_of_every_class() -> None:
    labels = torch.cat([torch.zeros(50), torch.ones(25)]).long()[torch.randperm(75)]
    folds = stratified_folds(labels, 5, seed=0)
    for fold in range(5):
        assert labels[folds == fold].bincount().tolist() == [10, 5]
    assert torch.equal(folds, stratified_folds(labels, 5, seed=0))
    assert not torch.equal(folds, stratified_folds(labels, 5, seed=1))


def test_diabetes() -> None:
    X, y = load_diabetes(return_X_y=True)
    assert LinearRegressor().fit(X[:300], y[:300]).score(X[300:], y[300:]) > 0.45

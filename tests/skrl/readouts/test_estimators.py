"""Estimators that are modules: scikit-learn's checks, state dicts, copies, frozen backbones, errors."""

from __future__ import annotations

import ast
import copy
import io
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skrl import LinearClassifier, LinearRegressor, SparseKernelClassifier, SparseKernelRegressor
from skrl.readouts.estimators import Readout

# Readouts from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

ESTIMATORS = [
    # How ridge and penalty choose themselves is tested beside their sources; in every check it would cost a minute.
    SparseKernelClassifier(ridge=0.1),
    SparseKernelRegressor(ridge=0.1),
    LinearClassifier(penalty=1e-3),
    LinearRegressor(),
]
IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)


def sklearn_checks() -> Iterator[Any]:
    """Every check of scikit-learn for every estimator."""
    with warnings.catch_warnings():
        # We keep its conventions without its base class, of which it warns while it lists the checks.
        warnings.filterwarnings("ignore", message=".*does not inherit from `sklearn.base.BaseEstimator`")
        for estimator in ESTIMATORS:
            for instance, check in estimator_checks_generator(estimator):
                name = (check.func if isinstance(check, partial) else check).__name__
                if name == "check_array_api_input":
                    continue  # runs only where SCIPY_ARRAY_API was set before scipy was imported
                yield pytest.param(instance, check, id=f"{type(estimator).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(sklearn_checks()))
def test_scikit_learn_accepts_it(estimator: Readout, check: Callable[[Readout], None]) -> None:
    check(estimator)


def tensors(*arrays: np.ndarray, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.from_numpy(array).to(dtype if array.dtype.kind == "f" else torch.long) for array in arrays]


def saved(module: nn.Module) -> dict[str, Any]:
    """A state dict that went through a file without pickled code."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def test_tags() -> None:
    assert is_classifier(SparseKernelClassifier())
    assert is_regressor(SparseKernelRegressor())


def test_grid_search_and_cross_validation() -> None:
    X, y = IRIS
    pipeline = make_pipeline(StandardScaler(), SparseKernelClassifier(scaling="none", ridge=0.1))
    search = GridSearchCV(pipeline, {"sparsekernelclassifier__k": [1, 16]}, cv=3, n_jobs=1).fit(X, y)
    assert search.best_score_ > 0.9
    scores = cross_val_score(SparseKernelClassifier(scaling="standard"), X, y, cv=3, scoring="neg_log_loss")
    assert scores.mean() > -0.3


def test_sample_weights_weigh_the_score() -> None:
    X, y = IRIS
    model = SparseKernelClassifier(scaling="standard").fit(X, y)
    wrong = model.predict(X) != y
    assert model.score(X, y, sample_weight=~wrong) == 1.0
    X, y = DIABETES
    regressor, weights = SparseKernelRegressor(scaling="standard").fit(X, y), np.arange(len(y)) % 2
    assert regressor.score(X, y, weights) == pytest.approx(r2_score(y, regressor.predict(X), sample_weight=weights))


def test_several_targets_and_constant_ones() -> None:
    X, y = DIABETES
    targets = np.stack([y, 2.0 * y + 1.0, np.full_like(y, 3.0)], axis=1)
    model = SparseKernelRegressor(scaling="standard", ridge=0.1).fit(X, targets)
    mean, std = model.predict(X[:9], return_std=True)
    assert mean.shape == std.shape == (9, 3)
    np.testing.assert_allclose(mean[:, 1], 2.0 * mean[:, 0] + 1.0)
    np.testing.assert_allclose(std[:, 1], 2.0 * std[:, 0])
    np.testing.assert_allclose(mean[:, 2], 3.0)
    np.testing.assert_allclose(std[:, 2], 0.0)
    assert model.score(X, targets) == pytest.approx(r2_score(targets, model.predict(X)))
    column = SparseKernelRegressor(scaling="standard", ridge=0.1).fit(X, y[:, None]).predict(X[:9])
    np.testing.assert_allclose(column, mean[:, :1])


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_tensors_in_tensors_out(estimator: Readout) -> None:
    X, y = tensors(*IRIS)
    model = clone(estimator).fit(X, y)
    answers = model.predict(X)
    assert isinstance(answers, Tensor)
    assert answers.shape == y.shape
    np.testing.assert_allclose(answers, clone(estimator).fit(X.numpy(), y.numpy()).predict(X.numpy()), rtol=1e-4)


def test_names_as_labels() -> None:
    X, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SparseKernelClassifier(scaling="standard").fit(X, names)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert (model.predict(torch.from_numpy(X)) == names).mean() > 0.95
    fresh = SparseKernelClassifier()
    fresh.load_state_dict(saved(model))
    assert (fresh.predict(X) == model.predict(X)).all()


# A module among modules


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("supports", [0, 30, 90])
def test_state_dict_loads_at_any_fill(estimator: Readout, supports: int) -> None:
    """Into a fresh module, and into one with fewer or equally many supports."""
    X, y = tensors(*IRIS, dtype=torch.float64)
    X, y = X[::1], y
    order = torch.randperm(150)
    model = nn.Sequential(nn.Tanh(), clone(estimator))
    model[1].fit(X[order[:90]].tanh(), y[order[:90]])
    other = nn.Sequential(nn.Tanh(), clone(estimator))
    if supports:
        other[1].fit(X[order[-supports:]].tanh(), y[order[-supports:]])
    other.load_state_dict(saved(model))
    assert torch.equal(other(X), model(X))
    assert (other[1].predict(X) == model[1].predict(X)).all()
    assert other[1].n_features_in_ == 4


def test_learned_parts_survive_a_state_dict() -> None:
    X, y = tensors(*IRIS)
    model = SparseKernelClassifier(learn_supports=True, learn_targets=True).fit(X, y)
    with torch.no_grad():
        model.sparse_kernel_.targets.mul_(0.5)
    fresh = SparseKernelClassifier(learn_supports=True, learn_targets=True)
    fresh.load_state_dict(saved(model))
    assert torch.equal(fresh(X), model(X))
    assert {name for name, _ in fresh.named_parameters()} == {"sparse_kernel_.features", "sparse_kernel_.targets"}
    kept = fresh.sparse_kernel_.targets
    fresh.load_state_dict(saved(model))
    assert fresh.sparse_kernel_.targets is kept  # equal shapes are filled in place: an optimizer stays valid


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_copies_and_pickles_answer_alike(estimator: Readout) -> None:
    X, y = IRIS
    model = clone(estimator).fit(X, y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        assert other.get_params() == model.get_params()
    with pytest.raises(NotFittedError, match="fit_loader"):
        clone(model).predict(X)


def test_precision_follows_the_module_and_answers_follow_the_input() -> None:
    X, y = IRIS
    model = SparseKernelClassifier(scaling="standard").fit(X, y)
    exact = model.predict_proba(X)
    assert exact.dtype == np.float64
    model.float()
    assert model.sparse_kernel_.features.dtype == torch.float32
    np.testing.assert_allclose(model.predict_proba(X), exact, atol=1e-4)
    queries = torch.from_numpy(X)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = model(queries.to(dtype))
        assert logits.dtype == dtype
        assert (logits.argmax(-1) == torch.from_numpy(exact).argmax(-1)).float().mean() > 0.97
    with torch.autocast("cpu", torch.bfloat16):
        hidden = nn.Linear(4, 4)(queries.float())
        assert model(hidden).dtype == hidden.dtype == torch.bfloat16


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
@pytest.mark.parametrize(("unit", "offset"), [(1.0, 300.0), (1e-6, 0.0), (1e6, 0.0)])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_half_precision_costs_the_digits_of_the_supports_alone(
    estimator: Readout, unit: float, offset: float, convert: Callable[[nn.Module], Readout]
) -> None:
    """Not those of what features and targets are scaled by, be they small, large or far from zero."""
    X = unit * torch.rand(120, 3) + offset
    level = torch.sin(4.0 * (X[:, 0] - offset) / unit)
    y = 1e5 * level + 3e5 if is_regressor(estimator) else (level > 0.5).long()
    model = clone(estimator).fit(X, y)
    exact = model.predict(X)
    half = convert(copy.deepcopy(model))
    again = convert(clone(estimator).fit(X[:60], y[:60]))
    again.load_state_dict(saved(half))
    for readout in (half, again, copy.deepcopy(half).float()):
        if is_regressor(estimator):
            assert (readout.predict(X) - exact).abs().max() < 0.02 * 1e5
        else:
            assert (readout.predict(X) == exact).float().mean() > 0.98
    with torch.no_grad():
        wide = half(X)
    assert wide.dtype is torch.float32
    assert wide.isfinite().all()


def test_training_mode_is_a_module_s() -> None:
    model = nn.Sequential(nn.Dropout(), SparseKernelClassifier())
    assert model[1].training
    assert not model.eval()[1].training
    assert copy.deepcopy(model)[1].training is False


# Behind a backbone


def backbone() -> nn.Module:
    """Modes matter to it: dropout, running statistics."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5))


def test_loader_through_a_frozen_backbone() -> None:
    X, y = tensors(*IRIS)
    network = backbone().train()
    network[1].eval()  # a mode of its own
    before = copy.deepcopy(network.state_dict())
    loader = DataLoader(TensorDataset(X, y), 32)
    model = SparseKernelClassifier().fit_loader(loader, network)
    assert [module.training for module in network] == [True, False, True, True]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        features = network.eval()(X)
    expected = SparseKernelClassifier().fit(features, y)
    assert torch.equal(model.predict_proba(features), expected.predict_proba(features))


def test_loader_without_a_backbone() -> None:
    X, y = tensors(*DIABETES)
    model = SparseKernelRegressor().fit_loader(DataLoader(TensorDataset(X, y), 100))
    assert torch.equal(model.predict(X), SparseKernelRegressor().fit(X, y).predict(X))


def test_a_head_is_fitted_to_what_reaches_it() -> None:
    """``model.fc = head`` and then the whole model as the backbone."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = backbone(), SparseKernelClassifier()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.body(x))
            return logits

    X, y = tensors(*IRIS)
    model = Network()
    model.fc.fit_loader(DataLoader(TensorDataset(X, y), 32), model)
    with torch.no_grad():
        expected = SparseKernelClassifier().fit(model.eval().body(X), y)
        torch.testing.assert_close(model(X), expected(model.body(X)))
    assert not model.fc._forward_pre_hooks


def test_modes_return_after_a_failure() -> None:
    network = backbone().train()
    with pytest.raises(ValueError, match=r"a batch is a list of 1, but must be a pair \(x, y\)"):
        SparseKernelClassifier().fit_loader(DataLoader(TensorDataset(torch.rand(4, 4)), 2), network)
    with pytest.raises(ValueError, match="gave no batch"):
        SparseKernelClassifier().fit_loader([], network)
    assert all(module.training for module in network.modules())


def test_a_head_that_is_never_reached_says_so() -> None:
    network = nn.ModuleDict({"head": SparseKernelClassifier()})
    network.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="its forward pass never reaches it"):
        network["head"].fit_loader([(torch.rand(4, 2), torch.arange(4))], network)
    assert not network["head"]._forward_pre_hooks


# Errors that teach


def test_errors_name_value_and_remedy() -> None:
    X, y = IRIS
    with pytest.raises(
        ValueError, match="scaling is 'minmax', but must be one of standard, isotropic, cosine, whitened, none"
    ):
        SparseKernelClassifier(scaling="minmax").fit(X, y)
    with pytest.raises(ValueError, match="max_supports is 0, but at least one support is needed"):
        SparseKernelClassifier(max_supports=0).fit(X, y)
    with pytest.raises(ValueError, match="unknown kernel 'matern'; did you mean 'matern"):
        SparseKernelClassifier(kernel="matern").fit(X, y)
    with pytest.raises(ValueError, match=r"Invalid parameter 'lenghtscale'.*did you mean 'lengthscale'"):
        SparseKernelClassifier().set_params(lenghtscale=1.0)
    with pytest.raises(ValueError, match="Input X contains NaN, first in row 2"):
        SparseKernelClassifier().fit(np.where(np.arange(150)[:, None] == 2, np.nan, X), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples: X has 150, y has 149"):
        SparseKernelRegressor().fit(X, y[:-1])
    with pytest.raises(NotFittedError, match="not fitted yet; call fit"):
        SparseKernelClassifier()(torch.rand(2, 4))
    model = SparseKernelClassifier().fit(X, y)
    with pytest.raises(ValueError, match=r"features have shape \(2, 5\), but must be \[batch, 4\]"):
        model(torch.rand(2, 5))
    with pytest.raises(ValueError, match=r"features have shape \(2, 4, 3\)"):
        model(torch.rand(2, 4, 3))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        SparseKernelClassifier().fit(torch.rand(5, 2), torch.rand(5))
    with pytest.raises(ValueError, match="Complex data not supported"):
        SparseKernelClassifier().fit(torch.rand(5, 2) * 1j, torch.arange(5))
    with pytest.raises(ValueError, match="y should be a 1d or 2d array"):
        SparseKernelRegressor().fit(X, np.zeros((150, 2, 2)))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn")
    with pytest.raises(ValueError, match="not fitted yet") as caught:
        SparseKernelClassifier().predict(IRIS[0])
    assert type(caught.value) is ValueError
    with pytest.warns(UserWarning, match="column-vector y"):
        SparseKernelClassifier(scaling="standard").fit(IRIS[0], IRIS[1][:, None])


@pytest.mark.parametrize("name", ["checked_input", "estimators", "probe"])
def test_importing_needs_neither_scikit_learn_nor_matplotlib(name: str) -> None:
    """Both are imported inside the functions that need them, never at the top of a file."""
    tree = ast.parse(Path(sys.modules[f"skrl.readouts.{name}"].__file__ or "").read_text(encoding="utf-8"))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "torch" in names
    assert not {"sklearn", "matplotlib"} & {module.partition(".")[0] for module in names}


@pytest.mark.parametrize("make", [SparseKernelClassifier, LinearClassifier])
def test_a_module_reads_pictures_in_bytes(make: type[Readout]) -> None:
    """Answers in the precision of the pixels would be logits modulo 256."""
    pictures = torch.randint(0, 256, (120, 1, 3, 3), dtype=torch.uint8)
    labels = (pictures.float().mean((1, 2, 3)) > 128).long()
    readout = make().fit(pictures.flatten(1), labels)
    network = nn.Sequential(nn.Flatten(), readout)
    with torch.no_grad():
        torch.testing.assert_close(network(pictures), network(pictures.float()))
        assert network(pictures).argmax(1).tolist() == readout.predict(pictures.flatten(1)).tolist()


@pytest.mark.parametrize("make", [SparseKernelRegressor, LinearRegressor])
def test_a_module_answers_integers_with_fractions(make: type[Readout]) -> None:
    X = torch.arange(40).reshape(-1, 1)
    readout = make().fit(X, X.flatten() / 7.0)
    with torch.no_grad():
        torch.testing.assert_close(readout(X).flatten(), readout.predict(X))


def test_neighbours_come_as_numpy_counts_them() -> None:
    search = GridSearchCV(SparseKernelClassifier(ridge=0.1, scaling="standard"), {"k": np.arange(4, 12, 4)}, cv=2)
    assert search.fit(*IRIS).best_score_ > 0.9
    with pytest.raises(TypeError, match=r"k is 8.0, but must be a whole number of neighbours"):
        SparseKernelClassifier(k=8.0).fit(*IRIS)


def test_scores_of_targets_of_another_kind_are_refused() -> None:
    X, y = DIABETES
    both = np.stack([y, -y], axis=1)
    for fitted, scored in ((y, both), (both, y)):
        with pytest.raises(ValueError, match=r"y has \d columns, but LinearRegressor was fitted to \d"):
            LinearRegressor().fit(X, fitted).score(X, scored)


def test_digits_of_targets_that_the_features_precision_lacks_count() -> None:
    """Seconds since 1970 in float64 beside features in float32, which holds multiples of 64 there."""
    x = np.random.default_rng(0).random((60, 2), dtype=np.float32)
    y = 1e9 + 50.0 * np.sin(4.0 * x[:, 0].astype(np.float64))
    with pytest.warns(UserWarning, match=r"y is rounded to torch.float32, the precision of X, by up to \d+.\d%"):
        rounded = LinearRegressor().fit(x, y)
    assert rounded.score(x, y) == pytest.approx(r2_score(y, rounded.predict(x).astype(np.float64)))
    with pytest.raises(ValueError, match=r"y reaches 1e\+303, but torch.float32, the precision of X, ends at 3.4"):
        LinearRegressor().fit(x, y * 1e294)
    LinearRegressor().fit(x, np.stack([np.full(60, 0.7), x[:, 0]], axis=1))  # a constant that float32 lacks
    wide = x.astype(np.float64)
    assert LinearRegressor().fit(wide, y).score(wide, y) > rounded.score(x, y)


@pytest.mark.parametrize("estimator", [SparseKernelClassifier(), LinearClassifier()], ids=repr)
def test_a_state_of_something_else_is_said_to_be_one(estimator: Readout) -> None:
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"not of a fitted .* holds bias, weight"):
            estimator.load_state_dict(nn.Linear(3, 2).state_dict(), strict=strict)


def test_a_state_of_another_readout_or_of_other_settings_takes_nothing_from_what_is_fitted() -> None:
    X, y = IRIS
    features = torch.from_numpy(X).float()
    fitted = SparseKernelClassifier(scaling="standard").fit(X, y)
    learned = SparseKernelClassifier(scaling="standard", learn_kernel=True).fit(X[:60], y[:60])
    logits, lengthscale = fitted(features), fitted.sparse_kernel_.lengthscale
    for other in (SparseKernelRegressor().fit(X[:, :2], y), LinearClassifier().fit(X, y), learned):
        for strict in (True, False):
            with pytest.raises(RuntimeError, match="not of a fitted SparseKernelClassifier with these settings"):
                fitted.load_state_dict(saved(other), strict=strict)
        assert torch.equal(fitted(features), logits)
        assert fitted.sparse_kernel_.lengthscale is lengthscale
        fresh = SparseKernelClassifier()
        with suppress(RuntimeError):
            fresh.load_state_dict(saved(other), strict=False)
        with pytest.raises(ValueError, match="not fitted yet"):
            fresh.predict(X)
    with pytest.raises(RuntimeError, match="1 is not of a fitted SparseKernelRegressor"):
        nn.Sequential(nn.Identity(), SparseKernelRegressor()).load_state_dict(
            {f"1.{k}": v for k, v in saved(fitted).items()}
        )


def test_a_state_of_another_size_is_taken_over_by_the_parameters_that_an_optimizer_has() -> None:
    X, y = IRIS
    features, labels = torch.from_numpy(X).float(), torch.from_numpy(y)
    settings: dict[str, Any] = {"k": 8, "scaling": "standard", "learn_supports": True}
    model, smaller = (
        SparseKernelClassifier(**settings).fit(features[rows], labels[rows]) for rows in (..., slice(0, 120))
    )
    model.requires_grad_(False)
    model.load_state_dict(saved(smaller))
    assert torch.equal(model(features), smaller(features))
    supports = model.sparse_kernel_.features
    assert isinstance(supports, nn.Parameter)
    assert not supports.requires_grad
    optimizer = torch.optim.SGD(model.requires_grad_().parameters(), lr=1.0)
    model.load_state_dict(saved(SparseKernelClassifier(**settings).fit(features[30:], labels[30:])))
    before = model.sparse_kernel_.features.detach().clone()
    nn.functional.cross_entropy(model(features), labels).backward()
    optimizer.step()
    assert not torch.equal(model.sparse_kernel_.features, before)


def test_columns_of_a_table_are_known_by_name() -> None:
    pandas = pytest.importorskip("pandas")
    X, y = IRIS
    table = pandas.DataFrame(X, columns=list("abcd"))
    model = LinearClassifier().fit(table, y)
    assert list(model.feature_names_in_) == list("abcd")
    assert model.score(table[model.feature_names_in_], y) == model.score(X, y)
    with pytest.raises(
        ValueError, match=r"The feature names should match .* in another order: .* fitted to a, b, c, d"
    ):
        model.predict(table[list("dcba")])
    with pytest.raises(ValueError, match="they differ"):
        model.predict(table.rename(columns={"a": "e"}))
    assert not hasattr(model.fit(X, y), "feature_names_in_")


def test_targets_near_the_end_of_the_precision() -> None:
    X, _ = IRIS
    features = torch.from_numpy(X).float()
    large = features[:, 0] * 1e37
    assert SparseKernelRegressor().fit(features, large).score(features, large) > 0.99


@pytest.mark.parametrize("estimator", [SparseKernelRegressor(), LinearRegressor()], ids=repr)
def test_complex_targets_are_refused_as_a_tensor_too(estimator: Readout) -> None:
    X = torch.rand(20, 2)
    with pytest.raises(ValueError, match="Complex data not supported"):
        estimator.fit(X, torch.complex(X[:, 0], X[:, 1]))


@pytest.mark.parametrize("first", ["labels", "numbers"])
def test_a_fit_that_fails_leaves_what_was_fitted_as_it_was(first: str) -> None:
    X, y = IRIS
    if first == "labels":
        model: Readout = SparseKernelClassifier(k=8).fit(X, y)
        others = np.array(["some", "other"])[y % 2]
    else:
        model, others = SparseKernelRegressor(k=8).fit(X, y), np.stack([y, y], 1).astype(float)
    before, state = model.predict(X), list(model.state_dict())
    for spoilt in ({"max_supports": 0}, {"kernel": "unknown"}, {"ridge": -1.0}):
        model.set_params(**spoilt)
        with pytest.raises(ValueError, match=r"max_supports is 0|unknown kernel|ridge is -1"):
            model.fit(X, others)
        model.set_params(max_supports=None, kernel="matern32", ridge=None)
        np.testing.assert_array_equal(model.predict(X), before)
        assert list(model.state_dict()) == state
    assert model.fit(X, others).predict(X).shape == others.shape

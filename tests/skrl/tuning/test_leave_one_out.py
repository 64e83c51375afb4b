"""Leave-one-out losses against refits without the point, and against the closed forms of Rasmussen and Williams."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import skrl.tuning.leave_one_out
from skrl.functional import sparse_kernel
from skrl.kernels import Gaussian, Kernel, Matern32, Matern52, Polynomial
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation
from skrl.sparse_kernel import SparseKernel
from skrl.tuning import tune
from skrl.tuning.leave_one_out import (
    Objective,
    affordable_probes,
    column_scales,
    leave_one_out_loss,
    nearest_others,
    probe_rows,
)

OBJECTIVES = get_args(Objective)
LOCALISATIONS = get_args(Localisation)


def data(points: int = 20, dim: int = 3, targets: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(points, dim, dtype=torch.float64), torch.randn(points, targets, dtype=torch.float64)


def nearest(features: Tensor, rows: Tensor, k: int) -> list[list[int]]:
    others = nearest_others(ExactSearch().index(features), features, rows, k)
    return [row[mask].tolist() for row, mask in zip(others.indices, others.mask, strict=True)]


# Probes and their neighbours


def test_probes_are_bounded_and_spread_over_the_set() -> None:
    rows = probe_rows(1537, 512)
    assert len(rows) == 512
    assert (rows[0], rows[-1]) == (0, 1536)
    assert set(rows.diff().tolist()) == {3, 4}
    assert probe_rows(7, 512).tolist() == list(range(7))
    assert probe_rows(7, 1).tolist() == [0]
    assert probe_rows(0).tolist() == []


@pytest.mark.parametrize(("k", "probes"), [(8, 512), (64, 512), (128, 128), (2048, 64), (8192, 4), (16384, 1)])
def test_many_neighbours_leave_room_for_fewer_probes(k: int, probes: int) -> None:
    assert affordable_probes(512, k) == probes
    assert affordable_probes(1, k) == 1


@pytest.mark.parametrize("k", [1, 4, 19, 30])
def test_neighbours_are_the_nearest_others(k: int) -> None:
    features, _ = data()
    rows = torch.tensor([0, 7, 19])
    distances = torch.cdist(features[rows], features)
    distances[range(3), rows] = torch.inf
    assert nearest(features, rows, k) == distances.argsort(-1)[:, : min(k, 19)].tolist()


def test_a_duplicate_is_another_point() -> None:
    features = torch.tensor([[0.0], [0.0], [5.0], [7.0]])
    assert nearest(features, torch.arange(4), 1) == [[1], [0], [3], [2]]


def test_a_point_under_many_duplicates_drops_itself_or_one_of_them() -> None:
    features = torch.zeros(10, 2)
    for row, others in enumerate(nearest(features, torch.arange(10), 3)):
        assert len(set(others)) == 3
        assert row not in others


@pytest.mark.parametrize("points", [0, 1])
def test_without_others_there_is_no_neighbour(points: int) -> None:
    assert nearest(torch.zeros(points, 2), torch.arange(points), 4) == [[]] * points


# The loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.parametrize("k", [1, 6, 19, 40])
def test_equals_refits_without_each_point(objective: Objective, localisation: Localisation, k: int) -> None:
    features, targets = data()
    lengthscale, ridge = torch.tensor([1.5, 0.9, 2.0], dtype=torch.float64), 0.1
    settings = {"lengthscale": lengthscale, "ridge": ridge, "k": k, "localisation": localisation}
    errors, variances = np.zeros((20, 2)), np.zeros((20, 1))
    for i in range(20):
        rest = torch.arange(20) != i
        prediction = sparse_kernel(features[i : i + 1], features[rest], targets[rest], **settings)  # type: ignore[arg-type]
        errors[i] = (targets[i] - prediction.mean[0]) / targets.std(0, correction=0)
        variances[i] = prediction.variance[0] + ridge
    expected = np.mean(errors**2)
    if objective == "likelihood":
        amplitude = np.mean(errors**2 / variances, axis=0)
        expected = -stats.norm(scale=np.sqrt(amplitude * variances)).logpdf(errors).mean()
    loss = leave_one_out_loss(
        features, targets, Matern32(), lengthscale, ridge, k, objective=objective, localisation=localisation
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_all_neighbours_give_the_closed_forms_of_rasmussen_and_williams() -> None:
    """Equations 5.10–5.12: error [K⁻¹y]_i / [K⁻¹]_ii and variance 1 / [K⁻¹]_ii with the noise in K."""
    features, targets = data(targets=1)
    gram = Gaussian()(torch.cdist(features, features) / 1.7).numpy()
    inverse = np.linalg.inv(gram + 0.2 * np.eye(20))
    variances = 1.0 / np.diag(inverse)
    errors = inverse @ targets[:, 0].numpy() * variances / targets.numpy().std()
    amplitude = np.mean(errors**2 / variances)
    expected = {
        "error": np.mean(errors**2),
        "likelihood": -stats.norm(scale=np.sqrt(amplitude * variances)).logpdf(errors).mean(),
    }
    for objective in OBJECTIVES:
        loss = leave_one_out_loss(features, targets, Gaussian(), 1.7, 0.2, 19, objective=objective)
        assert loss.item() == pytest.approx(expected[objective], rel=1e-9)


def test_the_loss_of_a_hopeless_kernel_is_that_of_the_mean() -> None:
    """Far apart, every support is predicted as zero, which is the columns' mean: 1 − R² = 1."""
    targets = torch.tensor([[1.0, 300.0], [-1.0, -300.0], [2.0, 0.0], [-2.0, 0.0]])
    loss = leave_one_out_loss(1e4 * torch.arange(4.0).unsqueeze(1), targets, Matern32(), 1.0, 0.1, 3)
    assert loss.item() == pytest.approx(1.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scale_of_the_targets_and_of_the_features_does_not_matter(objective: Objective) -> None:
    features, targets = data()
    features, targets = features.float(), targets.float()
    plain = leave_one_out_loss(features, targets, Matern32(), 1.5, 0.1, 8, objective=objective)
    for scale in (2.0**-66, 2.0**66):
        units = torch.tensor([scale, 1.0 / scale])
        scaled = leave_one_out_loss(
            scale * features, units * targets, Matern32(), scale * 1.5, 0.1, 8, objective=objective
        )
        torch.testing.assert_close(scaled, plain)


def test_a_half_precision_input_is_upcast() -> None:
    features, targets = data()
    half = [values.half() for values in (features, targets)]
    expected = leave_one_out_loss(half[0].float(), half[1].float(), Matern32(), 1.5, 0.1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(leave_one_out_loss(*half, Matern32(), 1.5, 0.1, 8), expected)


def test_precisions_may_differ() -> None:
    features, targets = data()
    expected = leave_one_out_loss(features.float(), targets.float(), Matern32(), 1.5, 0.1, 8)
    for mixed in ((features.float(), targets), (features, targets.float())):
        torch.testing.assert_close(leave_one_out_loss(*mixed, Matern32(), 1.5, 0.1, 8), expected, check_dtype=False)


def test_column_scales_by_hand() -> None:
    """A deviation where there is one; else the size of the constant; else one."""
    columns = torch.tensor([[101.0, 5.0, 0.0, -3e20, 1e-25], [99.0, 5.0, 0.0, 3e20, -1e-25]])
    torch.testing.assert_close(column_scales(columns), torch.tensor([1.0, 5.0, 1.0, 3e20, 1e-25]), atol=0.0, rtol=1e-5)
    assert column_scales(columns[:0]).tolist() == [1.0] * 5
    assert not column_scales(columns.requires_grad_()).requires_grad


def test_fewer_probes_are_a_part_of_the_sum() -> None:
    features, targets = data(31)
    few = leave_one_out_loss(features, targets, Matern32(), 1.5, 0.1, 8, probes=4)
    whole = [leave_one_out_loss(features, targets, Matern32(), 1.5, 0.1, 8, probes=most) for most in (31, 1000)]
    assert torch.equal(*whole)
    assert few != whole[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_few_supports(objective: Objective) -> None:
    features, targets = data()
    loss = [
        leave_one_out_loss(features[:n], targets[:n], Matern32(), 1.5, 0.1, 8, objective=objective) for n in range(4)
    ]
    assert torch.stack(loss).isfinite().all()
    assert loss[0] == 0.0
    if objective == "error":
        assert loss[1].item() == pytest.approx(1.0), "predicted as zero, in units of its own size"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_fit_without_ridge_is_finite(objective: Objective) -> None:
    features = torch.zeros(12, 2)
    loss = leave_one_out_loss(features, torch.ones(12, 1), Matern32(), 1.0, 0.0, 4, objective=objective)
    assert loss.isfinite()


@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_names_are_explained() -> None:
    features, targets = data()
    for name, expected in (("objective", "error, likelihood"), ("localisation", "hard, continuous")):
        with pytest.raises(ValueError, match=f"{name} is 'x', but must be one of {expected}"):
            leave_one_out_loss(features, targets, Matern32(), 1.0, 0.1, 4, **{name: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("probes", [0, -1])
def test_a_loss_needs_probes(probes: int) -> None:
    features, targets = data()
    with pytest.raises(ValueError, match=f"probes is {probes}, but must be at least 1"):
        leave_one_out_loss(features, targets, Matern32(), 1.0, 0.1, 4, probes=probes)
    with pytest.raises(ValueError, match=f"probes is {probes}, but must be at least 1"):
        SparseKernel(features, targets, lengthscale=1.0, ridge=0.1).leave_one_out_loss(probes=probes)


# Gradients


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.parametrize("kernel", [Matern52(), Polynomial(2)], ids=str)
@pytest.mark.parametrize("relevance", [False, True], ids=["one lengthscale", "one per dimension"])
def test_gradients(
    monkeypatch: pytest.MonkeyPatch, objective: Objective, localisation: Localisation, kernel: Kernel, relevance: bool
) -> None:
    features, targets = data(9)
    lengthscale = torch.tensor([1.5, 0.9, 2.0] if relevance else 1.4, dtype=torch.float64)
    # The unit of a column counts as constant, which finite differences do not know.
    scales = column_scales(targets)
    monkeypatch.setattr(skrl.tuning.leave_one_out, "column_scales", lambda residuals: scales)

    def loss(lengthscale: Tensor, ridge: Tensor, features: Tensor, targets: Tensor) -> Tensor:
        return leave_one_out_loss(
            features, targets, kernel, lengthscale, ridge, 5, objective=objective, localisation=localisation
        )

    settings = [lengthscale, torch.tensor(0.3, dtype=torch.float64), features, targets]
    for value in settings:
        value.requires_grad_()
    assert torch.autograd.gradcheck(loss, settings)


@pytest.mark.parametrize("k", [16, 128])
def test_the_loss_is_the_score_of_tune(k: int) -> None:
    """Also where many neighbours leave room for fewer probes."""
    features, targets = data(700)
    tuned = tune(features, targets, "matern32", k=k, lengthscale=2.0, ridge=0.1)
    loss = leave_one_out_loss(features, targets, "matern32", 2.0, 0.1, k)
    assert loss.item() == pytest.approx(tuned.score, rel=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_a_support_that_is_left_out_is_no_probe_and_spoils_no_gradient(
    objective: Objective, localisation: Localisation
) -> None:
    features, targets = (values.float() for values in data())
    spoilt = torch.cat([features[:5], torch.full((1, 3), 1e25), features[5:]])
    residuals = torch.cat([targets[:5], torch.full((1, 2), 30.0), targets[5:]])
    losses, gradients = [], []
    for values in ((features, targets), (spoilt, residuals)):
        lengthscale, points = torch.full((3,), 1.5, requires_grad=True), values[0].clone().requires_grad_()
        loss = leave_one_out_loss(
            points, values[1], Matern32(), lengthscale, 0.1, 8, objective=objective, localisation=localisation
        )
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, [lengthscale, points]))
        tuned = tune(
            *values, "matern32", k=8, lengthscale=1.5, ridge=0.1, objective=objective, localisation=localisation
        )
        assert loss.item() == pytest.approx(tuned.score, rel=1e-5)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-4, atol=1e-6)
    others = torch.arange(21) != 5
    torch.testing.assert_close(gradients[1][1][others], gradients[0][1], rtol=1e-4, atol=1e-6)
    assert not gradients[1][1][5].any()


def test_where_nobody_looks_a_support_that_is_left_out_reads_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator; the gradient stays finite."""
    monkeypatch.setattr(skrl.tuning.leave_one_out, "looks_at", lambda values: False)
    features, targets = (values.float() for values in data(targets=1))
    expected = 20 * column_scales(targets).square() * leave_one_out_loss(features, targets, Matern32(), 1.5, 0.1, 8)
    spoilt, residuals = torch.cat([features, torch.full((1, 3), 1e25)]), torch.cat([targets, torch.full((1, 1), 3.0)])
    lengthscale = torch.tensor(1.5, requires_grad=True)
    loss = leave_one_out_loss(spoilt, residuals, Matern32(), lengthscale, 0.1, 8)
    torch.testing.assert_close(21 * column_scales(residuals).square() * loss, expected + 3.0**2)
    loss.backward()
    assert lengthscale.grad is not None
    assert lengthscale.grad.isfinite()

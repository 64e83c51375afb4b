"""Scalings of features against hand-computed answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from skrl import FeatureScaling
from skrl.readouts.feature_scaling import SCALINGS, Scaling

FEATURES = torch.tensor([[0.0, 10.0, 7.0], [2.0, 30.0, 7.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        # Deviations 1, 10 and 0: the constant feature counts as nothing.
        ("standard", [[-(0.5**0.5), -(0.5**0.5), 0.0], [0.5**0.5, 0.5**0.5, 0.0]]),
        ("isotropic", [[-1 / 101**0.5, -10 / 101**0.5, 0.0], [1 / 101**0.5, 10 / 101**0.5, 0.0]]),
        ("cosine", [[-1 / 101**0.5, -10 / 101**0.5, 0.0], [1 / 101**0.5, 10 / 101**0.5, 0.0]]),
        ("none", FEATURES.tolist()),
    ],
)
def test_by_hand(scaling: Scaling, expected: list[list[float]]) -> None:
    scaled = FeatureScaling.fit(FEATURES, scaling)(FEATURES)
    torch.testing.assert_close(scaled, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scaling", SCALINGS[:4])
def test_mean_square_length_is_one(scaling: Scaling) -> None:
    features = 5.0 + torch.randn(200, 7) * torch.arange(1.0, 8.0)
    scaled = FeatureScaling.fit(features, scaling)(features)
    torch.testing.assert_close(scaled.square().sum(-1).mean(), torch.tensor(1.0))
    if scaling == "cosine":
        torch.testing.assert_close(scaled.norm(dim=-1), torch.ones(200))
    else:
        torch.testing.assert_close(scaled.mean(0), torch.zeros(7), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("scaling", SCALINGS[:4])
def test_constant_features_stay_finite(scaling: Scaling) -> None:
    features = torch.full((5, 3), 0.1)
    scaled = FeatureScaling.fit(features, scaling)(features)
    torch.testing.assert_close(scaled, torch.zeros(5, 3), atol=1e-6, rtol=0.0)
    one = FeatureScaling.fit(features[:1], scaling)
    assert one(torch.rand(4, 3)).isfinite().all()


def test_rounding_is_no_variation() -> None:
    """Five times 0.1 has not the mean 0.1 in single precision; that rest must not be blown up."""
    features = torch.cat([torch.randn(999, 1), torch.full((999, 1), 1234.1)], dim=1)
    assert FeatureScaling.fit(features, "standard").scale[1] == 0.0


def test_directions_do_not_see_lengths() -> None:
    scaling = FeatureScaling(torch.tensor([1.0, 1.0]), torch.ones(2), unit_length=True)
    torch.testing.assert_close(scaling(torch.tensor([[4.0, 5.0], [7.0, 9.0]])), torch.tensor([[0.6, 0.8]] * 2))
    assert torch.equal(scaling(torch.ones(1, 2)), torch.zeros(1, 2))


def test_state_dict_keeps_the_kind() -> None:
    fitted = FeatureScaling.fit(FEATURES, "cosine")
    other = FeatureScaling(torch.zeros(3).double(), torch.ones(3).double())
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other(FEATURES), fitted(FEATURES))
    whitened = FeatureScaling.fit(FEATURES, "whitened")
    room = FeatureScaling.room_for({f"a.{name}": torch.zeros_like(value) for name, value in tensors_of(whitened)}, "a.")
    room.load_state_dict(whitened.state_dict())
    assert torch.equal(room(FEATURES), whitened(FEATURES))


def tensors_of(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)]


def test_whitening_divides_by_the_root_of_variance_and_floor() -> None:
    """Along principal axes that lie askew, with variances 100 and 1: the floor is (0.1 + 0.3 · 2/4) · 50.5 = 12.625."""
    axes = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    along = torch.tensor([[10.0, 1.0], [10.0, -1.0], [-10.0, 1.0], [-10.0, -1.0]], dtype=torch.float64)
    features = 3.0 + along @ axes.mT
    scaled = FeatureScaling.fit(features, "whitened")(features)
    expected = along / torch.tensor([112.625, 13.625]).sqrt()
    expected = expected / expected.square().sum(-1).mean().sqrt()
    torch.testing.assert_close(torch.cdist(scaled, scaled), torch.cdist(expected, expected))


def test_whitening_does_not_blow_up_directions_that_few_samples_never_showed() -> None:
    features, unseen = torch.randn(5, 40), torch.randn(9, 40)
    whitened, isotropic = FeatureScaling.fit(features, "whitened"), FeatureScaling.fit(features, "isotropic")
    torch.testing.assert_close(whitened(features).square().sum(-1).mean(), torch.tensor(1.0))
    assert whitened(unseen).norm(dim=-1).mean() < 3.0 * isotropic(unseen).norm(dim=-1).mean()


@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_scaling() -> None:
    with pytest.raises(
        ValueError, match="scaling is 'unit', but must be one of standard, isotropic, cosine, whitened, none"
    ):
        FeatureScaling.fit(FEATURES, "unit")  # type: ignore[arg-type]


@pytest.mark.parametrize("scaling", ["standard", "isotropic", "cosine", "whitened"])
@pytest.mark.parametrize("unit", [2.0**80, 2.0**-80])
def test_the_unit_of_the_features_does_not_matter(scaling: Scaling, unit: float) -> None:
    features = torch.randn(50, 4)
    plain = FeatureScaling.fit(features, scaling)(features)
    scaled = FeatureScaling.fit(unit * features, scaling)(unit * features)
    torch.testing.assert_close(scaled, plain)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("scaling", SCALINGS)
def test_whole_numbers_are_scaled(scaling: Scaling) -> None:
    whole = FEATURES.long()
    scaled = FeatureScaling.fit(whole, scaling)(whole)
    torch.testing.assert_close(scaled.double(), FeatureScaling.fit(FEATURES, scaling)(FEATURES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_half_precision_is_scaled(scaling: Scaling, dtype: torch.dtype) -> None:
    """In float32, since in half precision an offset would hide the rest."""
    features = (300.0 + torch.randn(50, 4)).to(dtype)
    scaled = FeatureScaling.fit(features, scaling)(features)
    assert torch.equal(scaled, FeatureScaling.fit(features.float(), scaling)(features.float()))


def test_autocast_changes_nothing() -> None:
    features = torch.randn(50, 4)
    expected = FeatureScaling.fit(features, "whitened")(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FeatureScaling.fit(features, "whitened")(features), expected)


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_a_conversion_to_half_precision_changes_nothing(
    scaling: Scaling, unit: float, convert: Callable[[torch.nn.Module], FeatureScaling]
) -> None:
    features = unit * (300.0 + torch.randn(50, 4))
    fitted = FeatureScaling.fit(features, scaling)
    expected = fitted(features)
    assert torch.equal(convert(fitted)(features), expected)
    room = FeatureScaling.room_for(
        {f"a.{name}": torch.zeros_like(value).half() for name, value in tensors_of(fitted)}, "a."
    )
    room.load_state_dict(fitted.state_dict())
    assert torch.equal(room(features), expected)
    assert fitted.double().shift.dtype is torch.float64


def test_many_constant_features_can_be_whitened() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        inputs = torch.rand(1000, 3) * 2.0 - 1.0
        hidden = torch.relu(torch.nn.Linear(256, 256)(torch.relu(torch.nn.Linear(3, 256)(inputs))) * 3.0).detach()
        hidden[:, torch.rand(256) < 0.7] = 0.0  # units that died
        scaled = FeatureScaling.fit(hidden, "whitened")(hidden)
        assert scaled.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-3)

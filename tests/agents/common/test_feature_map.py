"""Standardised features of observations, of the last hidden layer, and of both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents import KernelDDQN
from agents.common.feature_map import FeatureMap


def _feature_map(features: str, projection_dim: int = 64, width: int = 16) -> FeatureMap:
    kernel = {"features": features, "projection_dim": projection_dim}
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, policy_kwargs={"net_arch": [8, width]}, seed=0)
    return model.q_net.feature_map


@pytest.mark.parametrize(
    ("features", "projection_dim", "dim"),
    [("observation", 64, 4), ("observation", 3, 3), ("penultimate", 64, 16), ("penultimate", 5, 5), ("both", 5, 4 + 5)],
)
def test_wide_features_are_projected(features: str, projection_dim: int, dim: int) -> None:
    feature_map = _feature_map(features, projection_dim)
    raw = feature_map.raw(torch.randn(6, 4))
    assert raw.shape == (6, dim)
    assert feature_map.dim == dim
    assert feature_map.is_learned == (features != "observation")
    assert not any("projection" in name for name in feature_map.state_dict())


@pytest.mark.parametrize("features", ["observation", "penultimate"])
def test_entries_have_zero_mean_and_unit_deviation(features: str) -> None:
    feature_map, observations = _feature_map(features), 5.0 + 3.0 * torch.randn(200, 4)
    raw = feature_map.raw(observations)
    feature_map.fit(raw)
    standardised = feature_map(observations)
    varies = raw.std(0) > 1e-4
    assert varies.sum() >= 4
    assert torch.allclose(standardised.mean(0), torch.zeros(feature_map.dim), atol=1e-4)
    assert torch.allclose(standardised[:, varies].std(0, correction=0), torch.tensor(1.0), atol=1e-4)


@pytest.mark.parametrize("width", [16, 48])
def test_both_groups_contribute_equally_to_squared_distances(width: int) -> None:
    """However wide the layer is, and although some of its units are dead."""
    feature_map, observations = _feature_map("both", width=width), torch.randn(300, 4)
    assert feature_map.penultimate is not None
    last = feature_map.penultimate.trunk[-2]
    assert isinstance(last, nn.Linear)
    last.bias[:7] = -1e3
    feature_map.fit(feature_map.raw(observations))
    features = feature_map(observations)
    assert (feature_map.raw(observations)[:, 4:11] == 0.0).all()
    fixed, learned = (torch.cdist(group, group).square().mean() for group in features.split([4, width], dim=1))
    assert learned.item() == pytest.approx(fixed.item(), rel=1e-3)


def test_penultimate_features_are_what_the_last_layer_reads() -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel={"features": "penultimate"}, seed=0)
    observations = torch.randn(6, 4)
    activations = model.q_net.trunk()(observations)
    assert torch.equal(model.q_net.q_net[-1](activations), model.q_net.prior_mean(observations))
    penultimate = model.q_net.feature_map.penultimate
    assert penultimate is not None
    assert penultimate.projection is not None
    assert torch.equal(model.q_net.feature_map.raw(observations), activations.detach() @ penultimate.projection)

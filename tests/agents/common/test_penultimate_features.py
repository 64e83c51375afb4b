"""Learned features stand still between two rebuilds, and travel with the supports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents import KernelDDQN, KernelDQNPolicy
from agents.common.penultimate_features import PenultimateFeatures
from agents.common.schema import ConfigError

KERNEL = {"capacity": 100, "k": 4, "refresh_interval": 60, "features": "penultimate"}
SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "policy_kwargs": {"net_arch": [16, 12]},
    "kernel": KERNEL,
    "seed": 0,
    "device": "cpu",
}


def _trained(steps: int = 300, **settings: Any) -> KernelDDQN:
    return KernelDDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, **settings}).learn(steps)


def _module(trunk: nn.Module, width: int = 5) -> PenultimateFeatures:
    return PenultimateFeatures(spaces.Box(-1, 1, (3,)), trunk, width, 64)


def test_the_copy_has_buffers_only_and_follows_when_it_is_told_to() -> None:
    trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    features, observations = _module(trunk), torch.randn(4, 3)
    before = features.raw(observations)
    assert list(features.parameters()) == []
    assert set(features.state_dict()) == {"trunk.0.weight", "trunk.0.bias"}
    assert not before.requires_grad
    assert torch.equal(before, trunk(observations))
    with torch.no_grad():
        trunk[0].weight.add_(1.0)
    assert torch.equal(features.raw(observations), before)
    features.freeze(trunk)
    assert torch.equal(features.raw(observations), trunk(observations))
    assert isinstance(trunk[0].weight, nn.Parameter)


def test_dropout_and_batch_statistics_stay_off() -> None:
    trunk = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    features, observations = _module(trunk), torch.randn(8, 3)
    features.train()
    assert torch.equal(features.raw(observations), features.raw(observations))
    assert torch.equal(features.raw(observations), trunk.eval()(observations))
    assert features.trunk[1].num_batches_tracked == 0


@pytest.mark.parametrize("features", ["penultimate", "both"])
def test_features_move_at_a_rebuild_and_not_while_the_network_learns(features: str) -> None:
    model = _trained(kernel={**KERNEL, "features": features})
    kernel, network, observations = model.replay_kernel, model.q_net, torch.randn(10, 4)
    assert kernel is not None
    before, trunk, rebuilt_at = (
        network.feature_map(observations),
        network.trunk()(observations),
        kernel.steps_at_rebuild,
    )
    model.learn(12, reset_num_timesteps=False)
    assert kernel.steps_at_rebuild == rebuilt_at
    assert not torch.equal(network.trunk()(observations), trunk)
    assert torch.equal(network.feature_map(observations), before)
    model.q_net_target.load_state_dict(network.state_dict())
    kernel.rebuild()
    assert not torch.equal(network.feature_map(observations), before)
    penultimate = network.feature_map.penultimate
    assert penultimate is not None
    assert torch.equal(penultimate.raw(observations), network.trunk()(observations))


def test_the_layer_is_that_of_the_target_network() -> None:
    model = _trained(tau=0.05)
    assert model.replay_kernel is not None
    model.replay_kernel.rebuild()
    observations = torch.randn(10, 4)
    learned = model.q_net.feature_map.raw(observations)
    assert torch.equal(learned, model.q_net_target.trunk()(observations))
    assert not torch.equal(learned, model.q_net.trunk()(observations))


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_the_target_network_has_the_same_features_to_the_last_bit(tau: float) -> None:
    model = _trained(320, tau=tau)
    observations = torch.randn(10, 4)
    assert model.q_net.head.memory.sizes.sum() == 100
    assert torch.equal(model.q_net.feature_map(observations), model.q_net_target.feature_map(observations))
    optimised = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in model.q_net.parameters()}
    assert all(parameter.requires_grad for parameter in model.q_net.parameters())
    if tau == 1.0:
        model.q_net_target.set_training_mode(False)
        model.q_net_target.q_net.load_state_dict(model.q_net.q_net.state_dict())
        assert torch.equal(model.q_net(observations), model.q_net_target(observations))


@pytest.mark.parametrize("features", ["penultimate", "both"])
def test_features_survive_saving_and_loading_to_the_last_bit(features: str, tmp_path) -> None:
    model = _trained(310, kernel={**KERNEL, "features": features})
    observations = 0.1 * torch.randn(10, 4)  # where supports are
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    loaded = KernelDDQN.load(tmp_path / "model.zip", device="cpu").policy
    for policy in (loaded, KernelDQNPolicy.load(tmp_path / "policy.pt", device="cpu")):
        for name in ("q_net", "q_net_target"):
            mine, theirs = getattr(model.policy, name), getattr(policy, name)
            assert torch.equal(mine.feature_map(observations), theirs.feature_map(observations))
            assert torch.equal(mine(observations), theirs(observations))
    assert not torch.equal(model.q_net(observations), model.q_net.prior_mean(observations))


@pytest.mark.parametrize("features", ["penultimate", "both"])
def test_a_network_without_a_hidden_layer_is_refused(features: str) -> None:
    with pytest.raises(ConfigError, match=rf"kernel.features is {features}, but the network has no hidden layer"):
        KernelDDQN(
            "MlpPolicy", "CartPole-v1", kernel={"features": features}, policy_kwargs={"net_arch": []}, device="cpu"
        )

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from agents import DoubleDQN
from agents.common.input_statistics import SAMPLE, InputStatistics
from agents.common.normalized_network import CLIP, NormalizedDQNPolicy, has_real_numbers

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
THREE = spaces.Discrete(3)


def _policy(space: spaces.Space = VECTOR, **settings) -> NormalizedDQNPolicy:
    torch.manual_seed(0)
    return NormalizedDQNPolicy(space, THREE, lambda _: 1e-3, net_arch=[16, 16], **settings)


def _observations(count: int = 200) -> torch.Tensor:
    """Coordinates in three very different units."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 0.01, 300.0]) + torch.tensor([5.0, 0.0, 1e3])


def test_inputs_have_mean_zero_and_deviation_one() -> None:
    policy, observations = _policy(), _observations()
    policy.fit_inputs(observations)
    for network in (policy.q_net, policy.q_net_target):
        read = network.extract_features(observations, network.features_extractor)
        assert torch.allclose(read.mean(0), torch.zeros(3), atol=1e-4)
        assert torch.allclose(read.std(0, correction=0), torch.ones(3), atol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_new_statistics_change_no_value(layer_norm) -> None:
    policy, observations = _policy(layer_norm=layer_norm), _observations()
    policy.fit_inputs(observations)
    first_layer = policy.q_net.q_net[0].weight.clone()
    before = policy.q_net(observations), policy.q_net_target(observations)
    policy.fit_inputs(1.3 * _observations(50))
    after = policy.q_net(observations), policy.q_net_target(observations)
    assert not torch.equal(first_layer, policy.q_net.q_net[0].weight)
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, atol=1e-4)


def test_the_first_statistics_leave_the_initial_weights_alone() -> None:
    policy = _policy()
    weight = policy.q_net.q_net[0].weight.clone()
    policy.fit_inputs(_observations())
    assert torch.equal(weight, policy.q_net.q_net[0].weight)


def test_a_constant_coordinate_and_an_outlier_stay_bounded() -> None:
    policy, observations = _policy(), _observations()
    observations[:, 1] = 7.0
    policy.fit_inputs(observations)
    assert policy.q_net.input_scale[1] == 1.0
    far = torch.tensor([[1e6, 7.0, -1e9]])
    read = policy.q_net.extract_features(far, policy.q_net.features_extractor)
    assert torch.equal(read, torch.tensor([[CLIP, 0.0, -CLIP]]))


def test_layers_are_normalised_before_their_activations() -> None:
    kinds = [type(layer) for layer in _policy().q_net.q_net]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    plain = _policy(normalize_inputs=False, layer_norm=False)
    torch.manual_seed(0)
    theirs = DQNPolicy(VECTOR, THREE, lambda _: 1e-3, net_arch=[16, 16])
    assert torch.equal(plain.q_net(_observations()), theirs.q_net(_observations()))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (VECTOR, True),
        (spaces.Box(-1, 1, (4, 2), np.float64), True),
        (spaces.Box(0, 255, (36, 36, 1), np.uint8), False),
        (spaces.Box(0, 1, (10, 10, 4), np.int8), False),
        (spaces.Discrete(5), False),
        (spaces.MultiBinary(4), False),
    ],
)
def test_only_real_numbers_are_standardised(space, expected) -> None:
    assert has_real_numbers(space) is expected


def test_the_policy_is_saved_and_loaded_with_its_statistics(tmp_path) -> None:
    policy, observations = _policy(layer_norm=False), _observations()
    policy.fit_inputs(observations)
    policy.save(tmp_path / "policy.zip")
    loaded = NormalizedDQNPolicy.load(tmp_path / "policy.zip")
    assert loaded.normalization == {"normalize_inputs": True, "layer_norm": False}
    assert torch.equal(policy.q_net(observations), loaded.q_net(observations))


def _filled_buffer(rows: int, capacity: int = 50_000) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, VECTOR, THREE, device="cpu")
    buffer.observations[:rows, 0] = _observations(rows).numpy()
    buffer.pos = rows
    return buffer


def test_statistics_are_renewed_as_the_buffer_grows_by_a_tenth() -> None:
    policy, statistics = _policy(), InputStatistics()
    taken = []
    for rows in (1000, 1050, 1100, 1150, 1210):
        statistics.renew(policy, _filled_buffer(rows), None)
        taken.append(statistics.rows)
    assert taken == [1000, 1000, 1100, 1100, 1210]
    expected = _observations(1210)
    assert torch.allclose(policy.q_net.input_mean, expected.mean(0), rtol=1e-3, atol=1e-3)
    statistics.renew(policy, _filled_buffer(500), None)
    assert statistics.rows == 500


def test_statistics_of_a_long_buffer_come_from_a_sample_of_all_of_it() -> None:
    policy, statistics = _policy(), InputStatistics()
    buffer = _filled_buffer(4 * SAMPLE)
    statistics.renew(policy, buffer, None)
    everything = torch.from_numpy(buffer.observations[: buffer.pos, 0])
    assert torch.allclose(policy.q_net.input_scale, everything.std(0), rtol=0.03)


def test_observations_that_are_not_finite_are_left_out() -> None:
    policy, statistics = _policy(), InputStatistics()
    buffer = _filled_buffer(1000)
    buffer.observations[:3] = [[[np.nan, 0, 0]], [[np.inf, 0, 0]], [[0, 0, -np.inf]]]
    statistics.renew(policy, buffer, None)
    expected = torch.from_numpy(buffer.observations[3:1000, 0]).mean(0)
    assert torch.allclose(policy.q_net.input_mean, expected, rtol=1e-4, atol=1e-4)
    nothing = _filled_buffer(1)
    nothing.observations[0] = np.nan
    InputStatistics().renew(policy, nothing, None)
    assert torch.allclose(policy.q_net.input_mean, expected, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_normalised_observations() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = DoubleDQN("MlpPolicy", env, learning_starts=50, seed=0, device="cpu").learn(400)
    assert model.input_statistics.rows > 50
    assert torch.all(model.q_net.input_scale > 0.2)  # raw angles deviate by 0.1
    assert torch.equal(model.q_net.input_mean, model.q_net_target.input_mean)

"""The scale of λ from visits to the same state, where noise and what is to be known are given."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces

from agents import DoubleDQN, KernelConfig, KernelDDQN, attach_kernel_head
from agents.common.lengthscale import LengthscaleRule
from agents.common.replicates import SCALES, ReplicateRule
from skrl.value_heads import NetworkFreeHead, ResidualHead

STATES, VISITS = 100, 8


def _rule(noise: float, gap: float | None = 1.0, kind: type[ResidualHead] = ResidualHead) -> ReplicateRule:
    """One action, eight visits to each of a hundred states, residuals of deviation 1 between states."""
    torch.manual_seed(0)
    head = kind(1, STATES * VISITS, 1, k=VISITS, ridge=1.0)
    states = torch.arange(STATES, dtype=torch.float32).repeat_interleave(VISITS)
    residuals = torch.randn(STATES).repeat_interleave(VISITS) + noise * torch.randn(STATES * VISITS)
    head.memory.write(states.view(1, -1, 1), torch.tensor([STATES * VISITS]), residuals.view(1, -1, 1))
    lengthscale = LengthscaleRule(head, KernelConfig(k=VISITS), torch.Generator().manual_seed(0))
    lengthscale.apply(None if gap is None else torch.tensor(gap))
    return ReplicateRule(lengthscale)


@pytest.mark.parametrize(("noise", "scales"), [(0.0, [1.0]), (1.0, [1.0]), (3.0, [10.0]), (30.0, [100.0])])
def test_it_is_the_ratio_of_noise_to_knowledge(noise: float, scales: list[float]) -> None:
    rule = _rule(noise)
    head = rule.lengthscale.head
    rule.judge()
    assert float(head.ridge_scale) == 1.0  # weights were made with this one
    rule.apply()
    assert float(head.ridge_scale) in scales
    assert head.scaled_ridge == float(head.ridge_scale)


def test_where_distances_mean_something_lambda_is_what_was_configured() -> None:
    rule = _rule(30.0, gap=None)
    rule.judge()
    rule.apply()
    assert float(rule.lengthscale.head.ridge_scale) == SCALES[0]


def test_the_mean_of_own_visits_depends_on_no_ridge() -> None:
    rule = _rule(30.0, kind=NetworkFreeHead)
    rule.judge()
    rule.apply()
    assert float(rule.lengthscale.head.ridge_scale) == SCALES[0]


class Lottery(gym.Env):
    """Ten states, whatever is done: all that differs is luck."""

    observation_space, action_space = spaces.Discrete(10), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return int(self.np_random.integers(10)), {}

    def step(self, action):
        return int(self.np_random.integers(10)), float(self.np_random.normal()), True, False, {}


@pytest.mark.parametrize("from_buffer", [False, True])
def test_agents_and_attached_heads_follow_the_noise(from_buffer: bool) -> None:
    settings = {"learning_starts": 50, "target_update_interval": 20, "seed": 0, "device": "cpu"}
    model = KernelDDQN("MlpPolicy", Lottery(), kernel={"refresh_interval": 60}, **settings).learn(400)
    policy = model.policy
    if from_buffer:
        plain = DoubleDQN("MlpPolicy", Lottery(), device="cpu")
        policy = attach_kernel_head(plain, model.replay_buffer)
    assert policy.online.head.scaled_ridge >= 10.0


def test_a_loaded_agent_acts_with_the_scale_of_its_file(tmp_path) -> None:
    settings = {"learning_starts": 50, "target_update_interval": 20, "seed": 0, "device": "cpu"}
    kernel = {"capacity": 200, "refresh_interval": 60}
    model = KernelDDQN("MlpPolicy", "FrozenLake-v1", kernel=kernel, **settings).learn(100)
    model.policy.online.head.ridge_scale.fill_(30.0)
    model.save(tmp_path / "model")
    loaded = KernelDDQN.load(tmp_path / "model", env=model.get_env())
    assert loaded.policy.online.head.scaled_ridge == 30.0
    assert loaded._kernel().ridge.scale == 30.0
    state = {name: value for name, value in model.policy.state_dict().items() if not name.endswith("ridge_scale")}
    loaded.policy.load_state_dict(state)  # of before there was one
    assert loaded.policy.online.head.scaled_ridge == 1.0


def test_averaged_neighbours_have_no_ridge_to_judge() -> None:
    model = KernelDDQN("MlpPolicy", "FrozenLake-v1", learning_starts=10, seed=0, device="cpu").learn(60)
    policy = attach_kernel_head(model, model.replay_buffer, kernel={"head": "averaging", "capacity": 100}, seed=0)
    assert policy.q_net.head.memory.mask.any()
    assert float(policy.q_net.head.ridge_scale) == SCALES[0]

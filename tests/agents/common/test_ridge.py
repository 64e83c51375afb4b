"""What λ is multiplied by, where noise and what is to be known are given."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces

from agents import DoubleDQN, KernelConfig, KernelDDQN, attach_kernel_head
from agents.common.lengthscale import LengthscaleRule
from agents.common.ridge import MULTIPLES, RidgeRule
from skrl.value_heads import NetworkFreeHead, ResidualHead

STATES, VISITS = 100, 8


EPISODES = torch.arange(STATES * VISITS).view(1, -1)
"""Every visit is of an episode of its own."""


def _rule(noise: float, kind: type[ResidualHead] = ResidualHead, fixed: bool = False) -> RidgeRule:
    """One action, eight visits to each of a hundred numbered states, residuals of deviation 1 between states."""
    torch.manual_seed(0)
    head = kind(1, STATES * VISITS, 1, k=VISITS, ridge=1.0)
    states = torch.arange(STATES, dtype=torch.float32).repeat_interleave(VISITS)
    residuals = torch.randn(STATES).repeat_interleave(VISITS) + noise * torch.randn(STATES * VISITS)
    head.memory.write(states.view(1, -1, 1), torch.tensor([STATES * VISITS]), residuals.view(1, -1, 1))
    lengthscale = LengthscaleRule(head, KernelConfig(k=VISITS), torch.Generator().manual_seed(0))
    lengthscale.apply(torch.tensor(1.0))
    return RidgeRule(lengthscale, fixed)


@pytest.mark.parametrize(("noise", "multiple"), [(0.0, 1.0), (1.0, 1.0), (3.0, 10.0), (30.0, 100.0)])
def test_it_is_the_ratio_of_noise_to_knowledge(noise: float, multiple: float) -> None:
    rule = _rule(noise)
    head = rule.lengthscale.head
    rule.judge(EPISODES)
    assert float(head.ridge_scale) == 1.0  # weights were made with this one
    rule.apply()
    assert float(head.ridge_scale) == multiple
    assert head.scaled_ridge == float(head.ridge_scale)


def _rule_of_trajectories(noise: float) -> tuple[RidgeRule, torch.Tensor]:
    """Forty trajectories side by side; residuals are a sine of how far they came, and what each has for itself."""
    torch.manual_seed(0)
    length = 20
    head = ResidualHead(1, 40 * length, 2, k=8, ridge=0.1)
    along, lane = torch.linspace(0.0, 1.0, length).expand(40, -1), torch.linspace(0.0, 4.0, 40).unsqueeze(1)
    residuals = torch.sin(3.0 * along) + noise * torch.randn(40, 1)
    states = torch.stack([along, lane.expand_as(along)], dim=-1)
    head.memory.write(states.view(1, -1, 2), torch.tensor([residuals.numel()]), residuals.reshape(1, -1, 1))
    lengthscale = LengthscaleRule(head, KernelConfig(k=8), torch.Generator().manual_seed(0))
    lengthscale.apply()
    return RidgeRule(lengthscale), torch.arange(40).repeat_interleave(length).view(1, -1)


@pytest.mark.parametrize(("noise", "multiple"), [(0.0, 1.0), (5.0, 30.0)])
def test_trajectories_are_judged_by_each_other(noise: float, multiple: float) -> None:
    rule, episodes = _rule_of_trajectories(noise)
    rule.judge(episodes)
    assert rule.multiple == multiple


def test_a_trajectory_that_is_taken_apart_hides_what_it_shares() -> None:
    """Why episodes are told apart: with those of its own trajectory a support is predicted all too well."""
    rule, episodes = _rule_of_trajectories(5.0)
    rule.judge(torch.arange(episodes.numel()).view(1, -1))
    assert rule.multiple == MULTIPLES[0]


def test_one_episode_alone_has_no_say() -> None:
    rule, episodes = _rule_of_trajectories(5.0)
    rule.multiple = 3.0
    rule.judge(torch.zeros_like(episodes))
    assert rule.multiple == 3.0


def test_a_fixed_ridge_is_what_was_configured() -> None:
    rule = _rule(30.0, fixed=True)
    rule.judge(EPISODES)
    rule.apply()
    assert float(rule.lengthscale.head.ridge_scale) == MULTIPLES[0]


def test_the_mean_of_own_visits_depends_on_no_ridge() -> None:
    rule = _rule(30.0, kind=NetworkFreeHead)
    rule.judge(EPISODES)
    rule.apply()
    assert float(rule.lengthscale.head.ridge_scale) == MULTIPLES[0]


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
    assert policy.online.head.scaled_ridge == 10.0


def test_a_loaded_agent_acts_with_the_scale_of_its_file(tmp_path) -> None:
    settings = {"learning_starts": 50, "target_update_interval": 20, "seed": 0, "device": "cpu"}
    kernel = {"capacity": 200, "refresh_interval": 60}
    model = KernelDDQN("MlpPolicy", "FrozenLake-v1", kernel=kernel, **settings).learn(100)
    model.policy.online.head.ridge_scale.fill_(30.0)
    model.save(tmp_path / "model")
    loaded = KernelDDQN.load(tmp_path / "model", env=model.get_env())
    assert loaded.policy.online.head.scaled_ridge == 30.0 * KernelConfig().ridge
    assert loaded._kernel().ridge.multiple == 30.0
    state = {name: value for name, value in model.policy.state_dict().items() if not name.endswith("ridge_scale")}
    loaded.policy.load_state_dict(state)  # of before there was one
    assert loaded.policy.online.head.scaled_ridge == KernelConfig().ridge


def test_averaged_neighbours_have_no_ridge_to_judge() -> None:
    model = KernelDDQN("MlpPolicy", "FrozenLake-v1", learning_starts=10, seed=0, device="cpu").learn(60)
    policy = attach_kernel_head(model, model.replay_buffer, kernel={"head": "averaging", "capacity": 100}, seed=0)
    assert policy.q_net.head.memory.mask.any()
    assert float(policy.q_net.head.ridge_scale) == MULTIPLES[0]

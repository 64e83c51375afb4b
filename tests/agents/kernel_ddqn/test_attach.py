from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from sb3_contrib.qrdqn.policies import QuantileNetwork
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.dqn.policies import QNetwork

from agents import DoubleDQN, KernelDDQN, KernelDQNPolicy, KernelQ, attach_kernel_head
from agents.common.replay_view import ReplayView
from agents.kernel_ddqn.experience import Experience
from agents.kernel_ddqn.prior_network import copy_network, policy_arguments
from agents.kernel_qrdqn import KernelQRDQN
from envs.tabular import LEFT, RIGHT, ChainEnv

SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "buffer_size": 2000,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}
KERNEL = {"capacity": 200, "k": 5}


def _trained(cls: Any = DQN, env: Any = "CartPole-v1", steps: int = 400, policy: str = "MlpPolicy", **own: Any) -> Any:
    return cls(policy, env, **{**SETTINGS, **own}).learn(steps)


def _chain_model(gamma: float = 0.9) -> DQN:
    """A model that goes left wherever it is, away from the reward, and is sure of it."""
    model = DQN("MlpPolicy", gym.make("Chain-v0", n_states=5), gamma=gamma, **SETTINGS)
    with torch.no_grad():
        model.q_net.q_net[-1].bias.copy_(torch.tensor([3.0, 0.0]))
    return model


def _random_steps(env: gym.Env, count: int) -> ReplayBuffer:
    buffer = ReplayBuffer(count, env.observation_space, env.action_space, device="cpu")
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(count):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        info = {"TimeLimit.truncated": truncated and not terminated}
        done = terminated or truncated
        buffer.add(observation, following, np.array([action]), np.array([reward]), np.array([done]), [info])
        observation = env.reset()[0] if done else following
    return buffer


class LateReward(gym.Env):
    """Pays at step 150 and ends at 200."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps / 200, np.float32), 100.0 * (self.steps == 150), self.steps == 200, False, {}


@pytest.mark.parametrize("copies", [1, 5])
def test_episodes_shorter_than_the_steps_are_not_cut(copies) -> None:
    model = DQN("MlpPolicy", LateReward(), **SETTINGS)
    reports = []
    env = DummyVecEnv([LateReward] * copies)
    attach_kernel_head(model, env, 200, kernel=KERNEL, seed=0, report=lambda *given: reports.append(given))
    assert len(reports) >= 2
    assert {mean_return for _, mean_return in reports} == {100.0}


def test_a_buffer_of_another_device_is_read_on_the_models() -> None:
    buffer = _random_steps(gym.make("Chain-v0", n_states=5), 200)
    buffer.device = "meta"
    policy = attach_kernel_head(_chain_model(), buffer, kernel=KERNEL, seed=0)
    assert int(policy.q_net.head.memory.mask.sum()) > 100
    assert buffer.device == "meta"


def _states(count: int = 5) -> torch.Tensor:
    return torch.eye(count)


def _is_the_network_up_to_a_constant(policy: KernelDQNPolicy, model: Any, observations: torch.Tensor) -> bool:
    with torch.no_grad():
        shift = policy.q_net.prior_mean(observations) - model.q_net.q_net(observations)
    return torch.allclose(shift, shift[0, 0].expand_as(shift), atol=1e-4)


def test_a_buffer_corrects_a_wrong_network_to_the_optimal_values() -> None:
    gamma = 0.9
    model = _chain_model(gamma)
    env = gym.make("Chain-v0", n_states=5)
    kernel = {"capacity": 4000, "k": 8, "ridge": 1e-4, "kernel": "laplace", "sweeps": 60}
    assert (model.predict(_states().numpy(), deterministic=True)[0] == LEFT).all()
    policy = attach_kernel_head(model, _random_steps(env, 3000), kernel=kernel, n_steps=1, seed=0)
    with torch.no_grad():
        values = policy.q_net(_states())[:4]
    optimal = torch.from_numpy(ChainEnv(5).optimal_q(gamma)[:4]).float()
    assert (values - optimal).abs().max() < 0.01
    assert (policy.predict(_states()[:4].numpy(), deterministic=True)[0] == RIGHT).all()


def test_rounds_in_the_environment_find_the_reward_and_report_it() -> None:
    model = _chain_model()
    reports: list[tuple[int, float]] = []
    policy = attach_kernel_head(
        model,
        model.get_env(),
        2000,
        kernel={"k": 8, "ridge": 0.01},
        n_steps=1,
        exploration_rate=0.5,
        seed=0,
        report=lambda *record: reports.append(record),
    )
    assert reports[0] == (500, 0.0)  # five episodes of a hundred steps
    assert reports[-1][0] >= 2000
    assert max(mean_return for _, mean_return in reports) == 1.0
    returns, lengths = evaluate_policy(
        policy, gym.make("Chain-v0", n_states=5), n_eval_episodes=3, return_episode_rewards=True, warn=False
    )
    assert returns == [1.0] * 3
    assert lengths == [4] * 3


def test_the_model_is_left_as_it_was_and_the_copy_shifted_by_one_constant() -> None:
    model = _trained(steps=600)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    observations = torch.from_numpy(model.replay_buffer.observations[:200, 0])
    policy = attach_kernel_head(model, model.replay_buffer, kernel=KERNEL, seed=0)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert _is_the_network_up_to_a_constant(policy, model, observations)
    assert policy.q_net.head.memory.sizes.max() == 100
    with torch.no_grad():
        assert not torch.allclose(policy.q_net(observations), policy.q_net.prior_mean(observations))
        far = 1e4 * torch.ones(3, 4)
        assert torch.equal(policy.q_net(far), policy.q_net.prior_mean(far))


def test_the_shift_takes_away_what_the_network_is_wrong_about_everywhere() -> None:
    model = _trained(steps=600)
    shifted = _trained(steps=600)
    with torch.no_grad():
        shifted.q_net.q_net[-1].bias += 500.0
    kernel = {**KERNEL, "sweeps": 30}
    for each in (model, shifted):
        policy = attach_kernel_head(each, each.replay_buffer, kernel=kernel, seed=0)
        memory = policy.q_net.head.memory
        residuals = memory.targets.squeeze(-1)[memory.mask]
        assert residuals.median().abs() < 0.1 * residuals.abs().max()
        with torch.no_grad():
            # Far from all experience, too; a return of CartPole is at most 100 at this discount.
            assert policy.q_net(torch.tensor([[0.0, 0.0, 3.0, 0.0]])).max() < 150.0


def test_a_network_that_nothing_beats_is_returned_as_it_is() -> None:
    class Indifferent(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            super().reset(seed=seed)
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.steps += 1
            return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, self.steps == 10, {}

    model = DQN("MlpPolicy", Indifferent(), **SETTINGS)
    policy = attach_kernel_head(model, Indifferent(), 200, kernel=KERNEL)
    observations = torch.randn(20, 2)
    with torch.no_grad():
        assert torch.equal(policy.q_net(observations), model.q_net(observations))
    assert policy.q_net.head.memory.sizes.sum() == 0


def test_save_and_load_keep_the_corrected_values(tmp_path) -> None:
    model = _trained()
    policy = attach_kernel_head(model, model.replay_buffer, kernel=KERNEL)
    policy.save(tmp_path / "policy.pt")
    loaded = KernelDQNPolicy.load(tmp_path / "policy.pt", device="cpu")
    observations = torch.randn(6, 4)
    with torch.no_grad():
        assert torch.equal(loaded.q_net(observations), policy.q_net(observations))
    assert loaded.kernel == policy.kernel
    # SB3 asks policies without saying deterministic, and its own DQN's are greedy even so.
    many = torch.randn(300, 4).numpy()
    for answer in (policy, loaded):
        assert answer.q_net.bonus == answer.q_net_target.bonus == 0.0
        assert np.array_equal(answer.predict(many)[0], answer.predict(many, deterministic=True)[0])


def test_one_seed_gives_one_policy() -> None:
    model = _trained()
    observations = torch.randn(20, 4)
    values = []
    for seed in (3, 3, 4):
        policy = attach_kernel_head(model, "CartPole-v1", 300, kernel=KERNEL, seed=seed)
        with torch.no_grad():
            values.append(policy.q_net(observations))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("cls", [QRDQN, KernelQRDQN])
def test_the_mean_over_quantiles_is_the_prior_mean_without_a_kernel_that_was_there(cls) -> None:
    model = _trained(cls, policy_kwargs={"net_arch": [16, 8], "n_quantiles": 7})
    policy = KernelDQNPolicy(
        model.observation_space, model.action_space, lambda _: 0.0, kernel=KERNEL, **policy_arguments(model)
    )
    copy_network(model, policy)
    observations = torch.randn(9, 4)
    with torch.no_grad():
        means = QuantileNetwork.forward(model.policy.quantile_net, observations).mean(1)
        for network in (policy.q_net, policy.q_net_target):
            torch.testing.assert_close(network.prior_mean(observations), means)
    assert attach_kernel_head(model, model.replay_buffer, kernel=KERNEL).q_net.head.memory.sizes.max() == 100


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN])
def test_our_own_models_are_attached_to_anew(cls) -> None:
    model = _trained(cls, n_steps=3)
    policy = attach_kernel_head(model, model.replay_buffer, kernel=KERNEL)
    observations = torch.randn(9, 4)
    assert _is_the_network_up_to_a_constant(policy, model, observations)
    assert policy.kernel.capacity == 200


def test_statistics_of_vec_normalize_stand_still_and_are_needed() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2))
    model = _trained(env=env)
    mean = env.obs_rms.mean.copy()
    reports: list[tuple[int, float]] = []
    attach_kernel_head(model, env, 300, kernel=KERNEL, seed=0, report=lambda *record: reports.append(record))
    assert np.array_equal(env.obs_rms.mean, mean)
    assert env.training
    assert reports[0][1] >= 5  # steps upright, not normalised rewards
    assert attach_kernel_head(model, model.replay_buffer, kernel=KERNEL).q_net.head.memory.sizes.max() == 100
    with pytest.raises(ValueError, match=r"trained in VecNormalize.*get_env"):
        attach_kernel_head(model, "CartPole-v1", 300)
    fresh = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(ValueError, match=r"has seen no observation.*VecNormalize\.load"):
        attach_kernel_head(model, fresh, 300)
    untrained = KernelDDQN("MlpPolicy", fresh, device="cpu")
    assert attach_kernel_head(untrained, fresh, 300, kernel=KERNEL, seed=0).q_net.head.memory.mask.any()


class Counting(gym.Env):
    """Counts its steps, so that a transition that never was is seen; an episode takes 30."""

    observation_space, action_space = spaces.Box(-100, 100, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, False, self.steps == 30, {}


@pytest.mark.parametrize("played", ["its own", "what it wraps", "normalised", "interrupted", "another"])
@pytest.mark.parametrize("cls", [DQN, DoubleDQN])
def test_a_model_whose_environment_was_played_learns_on_in_a_new_episode(cls, played: str) -> None:
    raw, other = Counting(), played == "another"
    model = _trained(cls, VecNormalize(DummyVecEnv([lambda: raw])) if played == "normalised" else raw, 72, n_steps=3)
    env = {"what it wraps": raw, "another": Counting()}.get(played, model.get_env())

    def report(steps: int, mean_return: float) -> None:
        if played == "interrupted" and steps > 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if played == "interrupted" else nullcontext():
        attach_kernel_head(model, env, 100, kernel=KERNEL, report=report)
    model.learn(20, reset_num_timesteps=False)
    buffer = model.replay_buffer
    begun, reached = buffer.observations[:92, 0, 0], buffer.next_observations[:92, 0, 0]
    assert np.array_equal(reached, begun + 1)
    assert begun[72] == (12.0 if other else 0.0)
    # No return runs on from before.
    assert bool(buffer.dones[71, 0]) == bool(buffer.timeouts[71, 0]) == (not other)


def test_rewards_of_another_scale_than_the_values_are_refused(tmp_path) -> None:
    """SB3's way to evaluate in VecNormalize gives raw rewards, which a network of normalised ones knows nothing of."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = _trained(env=env)
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "statistics.pkl"))
    played = VecNormalize.load(str(tmp_path / "statistics.pkl"), DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    played.training = played.norm_reward = False
    with pytest.raises(ValueError, match=r"norm_reward is False .* True in the model's own.*; set it to True"):
        attach_kernel_head(model, played, 100, kernel=KERNEL)
    plain = DQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    scaled = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    with pytest.raises(ValueError, match=r"norm_reward is True .* False in the model's own.*; set it to False"):
        attach_kernel_head(plain, scaled, 100, kernel=KERNEL)
    # What a model was trained in that is loaded without an environment, nobody knows.
    for each, norm_reward in ((model, True), (DQN.load(tmp_path / "model.zip", device="cpu"), False)):
        played.norm_reward = norm_reward
        assert attach_kernel_head(each, played, 100, kernel=KERNEL).q_net.head.memory.capacity == 100


class Pictures(gym.Env):
    observation_space, action_space = spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action == 1), False, self.steps == 10, {}

    def observe(self) -> Any:
        return self.np_random.integers(0, 256, (36, 36, 1), dtype=np.uint8)


class Dicts(Pictures):
    observation_space = spaces.Dict({"vector": spaces.Box(-1, 1, (3,)), "colour": spaces.Discrete(4)})

    def observe(self) -> Any:
        vector = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"vector": vector, "colour": int(self.np_random.integers(4))}


@pytest.mark.parametrize(("policy", "env"), [("CnnPolicy", Pictures), ("MultiInputPolicy", Dicts)])
def test_pictures_and_dicts_are_served(policy: str, env: type[gym.Env]) -> None:
    extractor = {"features_extractor_kwargs": {"features_dim": 16}} if policy == "CnnPolicy" else {}
    model = _trained(env=env(), policy=policy, steps=80, policy_kwargs=extractor)
    attached = attach_kernel_head(model, env(), 120, kernel={**KERNEL, "projection_dim": 16}, seed=0)
    observation, _ = env().reset(seed=0)
    assert env.action_space.contains(int(attached.predict(observation, deterministic=True)[0]))
    returns, _ = evaluate_policy(attached, env(), n_eval_episodes=2, warn=False)
    assert 0.0 <= returns <= 10.0


def test_no_return_runs_on_from_one_play_into_the_next() -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", **SETTINGS, n_steps=5, gamma=1.0)
    experience = Experience(model, limit=40, seed=0)
    experience.explore(7, lambda: None)
    experience.measure(1)
    view = ReplayView.of(model)
    steps = view.n_step(view.slots()[:7])
    assert steps.last_slots.max() == 6
    assert steps.rewards.tolist() == [5, 5, 5, 4, 3, 2, 1]
    assert (steps.discounts > 0).all()


def test_an_episode_without_end_is_cut() -> None:
    model = KernelDDQN("MlpPolicy", ChainEnv(5), **SETTINGS)
    with torch.no_grad():
        model.q_net.q_net[-1].bias.copy_(torch.tensor([3.0, 0.0]))
    experience = Experience(model, limit=40, seed=0)
    assert experience.measure(1) == 0.0
    assert experience.steps == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, but at least 1"),
        ({"n_steps": 0}, "n_steps is 0, but at least 1"),
        ({"exploration_rate": 1.5}, "exploration_rate is 1.5, but must be a probability"),
        ({"kernel": {"head": "network_free"}}, "leave the network out; take 'residual'"),
        ({"kernel": {"applies_to": "targets"}}, "by the network alone; take 'both' or 'acting'"),
        ({"kernel": {"bonus_fraction": 0.5}}, "kernel.bonus_fraction is 0.5, but attaching is no training"),
        ({"kernel": {"refresh_interval": 9}}, "kernel.refresh_interval is 9, but supports are chosen once in every"),
        ({"kernel": "gaussian"}, "kernel is a str, but must be a KernelConfig or a mapping"),
        ({"kernel": {"capcity": 3}}, "did you mean 'kernel.capacity'"),
        ({"env_or_buffer": "Acrobot-v1"}, r"environment has observations in Box.* trained on Box"),
        ({"env_or_buffer": "Pendulum-v1"}, "discrete action space"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_advice(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"env_or_buffer": "CartPole-v1", "steps": 100, **change}
    with pytest.raises(ValueError, match=message):
        attach_kernel_head(DQN("MlpPolicy", "CartPole-v1", **SETTINGS), **arguments)


def test_models_and_buffers_that_do_not_fit_are_refused_with_advice() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    with pytest.raises(ValueError, match=r"holds 0 transitions.*load_replay_buffer"):
        attach_kernel_head(model, model.replay_buffer)
    with pytest.raises(ValueError, match=r"steps is 50, but a replay buffer is read whole"):
        attach_kernel_head(model, model.replay_buffer, 50)
    with pytest.raises(ValueError, match="replay buffer has observations in"):
        attach_kernel_head(model, _random_steps(gym.make("Chain-v0"), 5))
    with pytest.raises(ValueError, match="PPO has no action values"):
        attach_kernel_head(PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu"), "CartPole-v1")
    with pytest.raises(ValueError, match="KernelQ has a kernel and no network"):
        attach_kernel_head(KernelQ("MlpPolicy", "CartPole-v1", kernel=KERNEL), "CartPole-v1")

    class Dueling(QNetwork):
        pass

    model.policy.q_net.__class__ = Dueling
    with pytest.raises(ValueError, match=r"the network is a Dueling.*QNetwork only"):
        attach_kernel_head(model, "CartPole-v1")


@pytest.mark.parametrize("cls", [QRDQN, KernelQRDQN])
def test_quantiles_of_another_network_are_refused_with_advice(cls) -> None:
    """Their mean would be read from the last layer as if they were quantiles of the return."""
    model = cls("MlpPolicy", "CartPole-v1", **{**SETTINGS, "policy_kwargs": {"net_arch": [16]}})
    network = model.policy.quantile_net

    class Expectiles(type(network)):
        def forward(self, obs):
            return super().forward(obs).square()

    network.__class__ = Expectiles
    with pytest.raises(ValueError, match=r"the network is a Expectiles.*QuantileNetwork of sb3_contrib"):
        attach_kernel_head(model, "CartPole-v1")

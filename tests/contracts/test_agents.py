"""Laws that every agent obeys; a new agent adds one line to AGENTS.

The two laws that train longest go without checks of shapes, which double their time and see nothing that the others do
not see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import DQK, DoubleDQN, KernelDDQN, KernelPPO, KernelQ
from agents.common.lasting_exploration import LastingExploration
from agents.kernel_ddqn.kernel_deep_q import KernelDeepQ
from agents.kernel_ddqn.kernel_q import GRADIENT_SETTINGS
from agents.kernel_qrdqn import KernelQRDQN
from agents.normalized_ppo import NormalizedPPO

SMALL: dict[str, Any] = {
    "learning_starts": 60,
    "batch_size": 16,
    "train_freq": 4,
    "gradient_steps": 2,
    "target_update_interval": 20,
    "buffer_size": 2000,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
}
KERNEL: dict[str, Any] = {"capacity": 100, "k": 4, "refresh_interval": 60, "projection_dim": 16}

ABLATED = {"features": "both", "localisation": "continuous", "lengthscale_rule": "leave_one_out"}

ROLLOUTS: dict[str, Any] = {
    "n_steps": 20,
    "batch_size": 20,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
}

Factory = Callable[..., Any]


def _off_policy(cls: type[DQN] | type[QRDQN], **own: Any) -> Factory:
    return lambda policy, env, **kwargs: cls(policy, env, **{**SMALL, **own, **kwargs})


def _ppo(normalize: bool) -> Factory:
    def make(policy: str, env: Any, **kwargs: Any) -> NormalizedPPO:
        shared = {name: value for name, value in kwargs.items() if name in ("seed", "learning_rate", "gamma")}
        return NormalizedPPO(policy, env, normalize=normalize, **{**ROLLOUTS, **shared})

    return make


def _kernel_ppo(policy: str, env: Any, **kwargs: Any) -> KernelPPO:
    shared = {name: value for name, value in kwargs.items() if name in ("seed", "learning_rate", "gamma")}
    return KernelPPO(policy, env, kernel={"capacity": 100, "k": 4, "projection_dim": 16}, **{**ROLLOUTS, **shared})


def _kernel(cls: type[KernelDeepQ], head: str, **own: Any) -> Factory:
    def make(policy: str, env: Any, **kwargs: Any) -> Any:
        settings = {**SMALL, **kwargs}
        if cls is KernelQRDQN:
            settings["policy_kwargs"] = {**settings["policy_kwargs"], "n_quantiles": 5}
        if cls is KernelQ:
            settings = {name: value for name, value in settings.items() if name not in GRADIENT_SETTINGS}
        return cls(policy, env, kernel={**KERNEL, "head": head, **own}, **settings)

    return make


AGENTS: dict[str, tuple[type[BaseAlgorithm], Factory]] = {
    "zoo_dqn": (DQN, _off_policy(DQN)),
    "qrdqn": (QRDQN, _off_policy(QRDQN, policy_kwargs={"net_arch": [16], "n_quantiles": 5})),
    "ppo": (NormalizedPPO, _ppo(normalize=False)),
    "normalized_ppo": (NormalizedPPO, _ppo(normalize=True)),
    "kernel_ppo": (KernelPPO, _kernel_ppo),
    "ddqn_1step": (DoubleDQN, _off_policy(DoubleDQN)),
    "ddqn": (DoubleDQN, _off_policy(DoubleDQN, n_steps=3)),
    "kernel_ddqn": (KernelDDQN, _kernel(KernelDDQN, "residual")),
    "kernel_ddqn_ablated": (KernelDDQN, _kernel(KernelDDQN, "residual", **ABLATED)),
    "kernel_ddqn_continue": (KernelDDQN, _kernel(KernelDDQN, "residual", backup="continue", exploration="lookahead")),
    "knn_ddqn": (KernelDDQN, _kernel(KernelDDQN, "averaging")),
    "kernel_qrdqn": (KernelQRDQN, _kernel(KernelQRDQN, "residual")),
    "kernel_qrdqn_ablated": (
        KernelQRDQN,
        _kernel(KernelQRDQN, "residual", backup="continue", exploration="lookahead", **ABLATED),
    ),
    "dqk": (DQK, _off_policy(DQK, kernel={"capacity": 40, "k": 4, "projection_dim": 16})),
    "kernel_q": (KernelQ, _kernel(KernelQ, "network_free")),
}
KERNEL_AGENTS = [name for name, (cls, _) in AGENTS.items() if issubclass(cls, KernelDeepQ)]
OUR_AGENTS = [name for name, (cls, _) in AGENTS.items() if issubclass(cls, LastingExploration)]


class PictureEnv(gym.Env):
    """Random pictures, episodes of ten steps."""

    observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(action == 1), False, self.steps == 10, {}

    def _observe(self):
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


class DictEnv(PictureEnv):
    """A vector and a number in one observation."""

    observation_space = spaces.Dict({"vector": spaces.Box(-1, 1, (3,)), "colour": spaces.Discrete(4)})

    def _observe(self):
        vector = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"vector": vector, "colour": int(self.np_random.integers(4))}


@pytest.fixture(params=AGENTS)
def agent(request: pytest.FixtureRequest) -> tuple[type[BaseAlgorithm], Factory]:
    return AGENTS[request.param]


def _observations(model: BaseAlgorithm, count: int = 7) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *model.observation_space.shape)).astype(np.float32)


def _preferences(model: Any, observations: np.ndarray) -> torch.Tensor:
    """What the greedy action maximises, [B, A]: action values, or the logits of a policy."""
    inputs = torch.from_numpy(observations)
    with torch.no_grad():
        if isinstance(model, QRDQN):
            return model.policy.quantile_net(inputs).mean(1)
        if isinstance(model, NormalizedPPO):
            if model.normalize:
                inputs = torch.from_numpy(model.observation_statistics.normalize(observations))
            return model.policy.get_distribution(inputs).distribution.logits
        return model.policy.q_net(inputs)


@pytest.mark.filterwarnings("ignore:the kernel remembers")  # and forgets, for the buffer is not loaded
def test_save_and_load_keep_preferences_to_the_last_bit(agent, tmp_path) -> None:
    cls, make = agent
    model = make("MlpPolicy", "CartPole-v1", seed=0).learn(200)
    observations = _observations(model)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"), device="cpu")
    assert torch.equal(_preferences(model, observations), _preferences(loaded, observations))
    assert not list(tmp_path.glob(".*partial"))
    loaded.learn(120, reset_num_timesteps=False)
    assert loaded.num_timesteps == 320


def test_set_parameters_transfers_preferences(agent, tmp_path) -> None:
    _, make = agent
    model = make("MlpPolicy", "CartPole-v1", seed=0).learn(200)
    other = make("MlpPolicy", "CartPole-v1", seed=1)
    observations = _observations(model)
    model.save(tmp_path / "model.zip")
    other.set_parameters(tmp_path / "model.zip", device="cpu")
    assert torch.equal(_preferences(model, observations), _preferences(other, observations))


@pytest.mark.usefixtures("without_shape_checks")
def test_same_seed_gives_equal_parameters_and_another_seed_does_not(agent) -> None:
    _, make = agent
    first, second, third = (make("MlpPolicy", "CartPole-v1", seed=seed).learn(240) for seed in (5, 5, 6))
    observations = _observations(first)
    assert torch.equal(_preferences(first, observations), _preferences(second, observations))
    assert not torch.equal(_preferences(first, observations), _preferences(third, observations))
    for mine, same in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(mine, same)


def test_predict_serves_single_and_batched_observations(agent) -> None:
    _, make = agent
    model = make("MlpPolicy", "CartPole-v1", seed=0).learn(160)
    observations = _observations(model)
    batched, _ = model.predict(observations, deterministic=True)
    single = [model.predict(observation, deterministic=True)[0] for observation in observations]
    assert batched.shape == (7,)
    assert np.array_equal(batched, np.array(single))
    assert np.array_equal(batched, _preferences(model, observations).argmax(1).numpy())
    model.exploration_rate = 0.5
    explored, _ = model.predict(observations)
    assert explored.shape == (7,)
    assert model.action_space.contains(model.predict(observations[0])[0])


def test_learns_from_several_environments_with_callbacks_and_schedules(agent) -> None:
    cls, make = agent
    env = make_vec_env("CartPole-v1", n_envs=3, seed=0)
    model = make("MlpPolicy", env, seed=0, learning_rate=lambda progress: 1e-3 * progress)
    calls = []
    model.learn(300, callback=lambda local, _: calls.append(local["self"].num_timesteps) or True)
    assert calls[-1] == 300
    assert len(calls) == 100
    if cls is not KernelQ:
        assert model.lr_schedule(0.5) == 5e-4
        assert model.policy.optimizer.param_groups[0]["lr"] < 5e-5


@pytest.mark.parametrize("name", ["kernel_ddqn", "kernel_ddqn_ablated", "kernel_ddqn_continue", "kernel_qrdqn", "dqk"])
@pytest.mark.parametrize(("policy", "env_class"), [("CnnPolicy", PictureEnv), ("MultiInputPolicy", DictEnv)])
def test_learns_from_pictures_and_dicts_and_keeps_q_when_saved(name, policy, env_class, tmp_path) -> None:
    if policy == "MultiInputPolicy":
        settings = {"policy_kwargs": {"net_arch": [16]}}
    else:
        settings = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}}
    cls, make = AGENTS[name]
    # SB3's buffer, from which all but KernelDDQN learn, has no n-step returns of dicts.
    n_steps = 1 if policy == "MultiInputPolicy" and not issubclass(cls, KernelDDQN) else 3
    model = make(policy, env_class(), seed=0, n_steps=n_steps, **settings).learn(150)
    assert model.q_net.is_placed if cls is DQK else model.policy.online.head.memory.sizes.sum() > 0
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    model.save(tmp_path / "model.zip")
    loaded = cls.load(tmp_path / "model.zip", device="cpu")
    observation, _ = model.policy.obs_to_tensor(model.env.reset())
    with torch.no_grad():
        networks = [getattr(part.policy, "quantile_net", None) or part.policy.q_net for part in (model, loaded)]
        assert torch.equal(networks[0](observation), networks[1](observation))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "normalized_ppo"])
def test_solves_the_identity_toy(name) -> None:
    """Its observations are categories, which nothing normalises."""
    model = AGENTS[name][1](
        "MlpPolicy",
        DummyVecEnv([lambda: IdentityEnv(4)]),
        seed=0,
        learning_rate=5e-3,
        gamma=0.5,
        n_steps=1,
        gradient_steps=4,
        exploration_fraction=0.5,
    ).learn(1200)
    mean_return, _ = evaluate_policy(model, DummyVecEnv([lambda: IdentityEnv(4)]), n_eval_episodes=5, warn=False)
    assert mean_return >= 90  # of 100, random play gets 25


@pytest.mark.parametrize("name", KERNEL_AGENTS)
def test_target_network_receives_the_kernel(name) -> None:
    model = AGENTS[name][1]("MlpPolicy", "CartPole-v1", seed=0).learn(200)
    online, target = model.policy.online, model.policy.target
    assert online.head.memory.sizes.sum() > 0
    assert online.head.memory.targets.abs().sum() > 0
    for mine, theirs in zip(online.head.buffers(), target.head.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(online.feature_map.buffers(), target.feature_map.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["kernel_ddqn", "kernel_qrdqn", "dqk"])
def test_a_model_that_has_learned_goes_on_from_parameters_of_another(name) -> None:
    make = AGENTS[name][1]
    model, other = (make("MlpPolicy", "CartPole-v1", seed=seed).learn(200) for seed in (0, 1))
    model.set_parameters(other.get_parameters(), device="cpu")
    observations = _observations(model)
    assert torch.equal(_preferences(model, observations), _preferences(other, observations))
    model.learn(60, reset_num_timesteps=False)
    if name != "dqk":
        kernel, head = model.replay_kernel, model.policy.online.head
        supports = model.policy.online.feature_map(kernel.supports.observations)
        difference = head.memory.features.flatten(0, 1) - supports
        assert difference[kernel.supports.filled].abs().max() < 1e-5


@pytest.mark.parametrize("name", OUR_AGENTS)
def test_a_continuous_action_space_is_refused_with_advice(name) -> None:
    with pytest.raises(ValueError, match=r"discrete action space.*SAC or TD3"):
        AGENTS[name][1]("MlpPolicy", "Pendulum-v1")

"""The registry builds what a configuration says, and nothing that an algorithm would ignore."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agents import DoubleDQN, KernelDDQN, KernelQ
from agents.common.schema import ConfigError
from agents.kernel_ddqn import KernelConfig
from agents.training.command_line import split_flags
from agents.training.config import KernelTrainConfig, RunConfig, TrainConfig
from agents.training.registry import AGENTS, build_model, find_agent, fitting_policy
from agents.training.settings import resolve

SMALL = ("--buffer-size", "200", "--learning-starts", "10")


class SpacesEnv(gym.Env[Any, Any]):
    """Any spaces, nothing happens, over after five steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == 5, False, {}


def vec_env(observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None) -> VecEnv:
    return make_vec_env(lambda: SpacesEnv(observation_space, action_space or spaces.Discrete(2)))


VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
DICT = spaces.Dict({"position": VECTOR, "flag": spaces.Discrete(2)})


def test_known_agents_and_their_classes() -> None:
    assert list(AGENTS) == ["dqn", "ddqn", "kernel_ddqn", "knn_ddqn", "kernel_q"]
    assert [AGENTS[name].algorithm for name in ("ddqn", "kernel_ddqn", "kernel_q")] == [DoubleDQN, KernelDDQN, KernelQ]


def test_unknown_agent_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown agent 'knn'; did you mean 'knn_ddqn'"):
        find_agent("knn")


@pytest.mark.parametrize("agent", AGENTS)
def test_model_honours_every_setting(agent: str) -> None:
    words = ["--agent", agent, *SMALL, "--gamma", "0.7", "--n-steps", "2", "--train-freq", "3"]
    words += ["--target-update-interval", "60", "--exploration-fraction", "0.3", "--verbose", "0", "--seed", "5"]
    gradients = AGENTS[agent].config is not AGENTS["kernel_q"].config
    if gradients:
        words += ["--net-arch", "16", "--batch-size", "8", "--tau", "0.5", "--max-grad-norm", "2"]
        words += ["--gradient-steps", "2", "--learning-rate", "1e-3"]
    config = resolve(split_flags(words))
    model: Any = build_model(config, vec_env(VECTOR))
    assert type(model) is AGENTS[agent].algorithm
    names = {field.name for field in dataclasses.fields(config)} - {
        field.name for field in dataclasses.fields(RunConfig)
    }
    for name in names - {"policy", "net_arch", "kernel", "train_freq"}:
        assert getattr(model, name) == getattr(config, name), name
    assert model.train_freq.frequency == 3
    assert model.seed == 5
    if gradients:
        assert [p.shape[0] for n, p in model.q_net.named_parameters() if n.endswith("weight")] == [16, 2]


@pytest.mark.parametrize("agent", ["kernel_ddqn", "knn_ddqn", "kernel_q"])
def test_kernel_settings_reach_the_policy(agent: str) -> None:
    config = resolve(split_flags(["--agent", agent, *SMALL, "--kernel.k", "3", "--kernel.capacity", "50"]))
    model: Any = build_model(config, vec_env(VECTOR))
    kernel = KernelConfig.from_mapping(model.policy_kwargs["kernel"])
    assert (kernel.k, kernel.capacity, kernel.head) == (3, 50, AGENTS[agent].head)


@pytest.mark.parametrize("agent", AGENTS)
def test_settings_are_arguments_of_the_algorithm(agent: str) -> None:
    """An argument that is accepted and ignored would be worse than an error."""
    spec = AGENTS[agent]
    known: set[str] = set()
    for base in spec.algorithm.__mro__:
        known |= set(inspect.signature(base.__init__).parameters)
    of_the_run = {field.name for field in dataclasses.fields(RunConfig)}
    assert {field.name for field in dataclasses.fields(spec.config)} - of_the_run - {"net_arch"} <= known


@pytest.mark.parametrize(
    ("policy", "space", "chosen"),
    [
        ("auto", VECTOR, "MlpPolicy"),
        ("auto", IMAGE, "CnnPolicy"),
        ("auto", DICT, "MultiInputPolicy"),
        ("auto", spaces.Discrete(4), "MlpPolicy"),
        ("auto", spaces.Box(0.0, 1.0, (10, 10, 4), np.bool_), "MlpPolicy"),
        ("MlpPolicy", IMAGE, "MlpPolicy"),
    ],
)
def test_policy_fits_the_observations(policy: str, space: spaces.Space[Any], chosen: str) -> None:
    assert fitting_policy(policy, space) == chosen


@pytest.mark.parametrize(("policy", "space"), [("CnnPolicy", VECTOR), ("MlpPolicy", DICT), ("MultiInputPolicy", IMAGE)])
def test_policy_that_cannot_fit_is_an_error(policy: str, space: spaces.Space[Any]) -> None:
    with pytest.raises(ConfigError, match=f"policy is '{policy}'"):
        fitting_policy(policy, space)


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (VECTOR, VECTOR, "SAC or TD3"),
        (VECTOR, spaces.MultiDiscrete([2, 3]), "wrap it into a Discrete one"),
        (VECTOR, spaces.Discrete(2, start=1), "count from 0"),
        (spaces.Tuple((VECTOR, spaces.Discrete(2))), spaces.Discrete(2), "which no agent serves"),
    ],
)
def test_spaces_that_no_agent_serves(observations: spaces.Space[Any], actions: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(TrainConfig(agent="ddqn", env="Made-v0"), vec_env(observations, actions))


def test_dict_observations_need_one_step_returns_in_the_plain_agents() -> None:
    env = vec_env(DICT)
    with pytest.raises(ConfigError, match="--n-steps 1"):
        build_model(TrainConfig(agent="ddqn", buffer_size=100), env)
    build_model(TrainConfig(agent="ddqn", buffer_size=100, n_steps=1), env).learn(8)
    build_model(KernelTrainConfig(agent="kernel_ddqn", buffer_size=100, learning_starts=4), env).learn(16)


def test_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="device is 'gpu', but this machine has auto, cpu"):
        build_model(TrainConfig(agent="ddqn", device="gpu"), vec_env(VECTOR))


def test_configuration_of_another_agent_is_an_error() -> None:
    with pytest.raises(ConfigError, match="takes a KernelTrainConfig, not a TrainConfig"):
        build_model(TrainConfig(agent="kernel_ddqn"), vec_env(VECTOR))
    with pytest.raises(ConfigError, match="use --agent kernel_ddqn"):
        build_model(KernelTrainConfig(agent="knn_ddqn"), vec_env(VECTOR))

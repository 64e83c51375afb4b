"""The registry builds what a configuration says, and nothing that an algorithm would ignore."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agents import DQK, DoubleDQN, KernelDDQN, KernelPPO, KernelQ, KernelSAC, KernelTD3
from agents.common.schema import ConfigError
from agents.kernel_ddqn.kernel_deep_q import KernelDeepQ
from agents.kernel_qrdqn import KernelQRDQN
from agents.normalized_ppo import NormalizedPPO
from agents.training.command_line import split_flags
from agents.training.config import (
    DoubleDQNConfig,
    DQNConfig,
    KernelDDQNConfig,
    KernelSACConfig,
    PPOConfig,
    QLearningConfig,
    QuantileConfig,
    RunConfig,
)
from agents.training.registry import AGENTS, OF_THE_NETWORK, build_model, find_agent
from agents.training.served_spaces import fitting_policy, observation_fault
from agents.training.settings import resolve

Q_LEARNERS = [name for name, spec in AGENTS.items() if issubclass(spec.config, QLearningConfig)]
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
SMALL_IMAGE = spaces.Box(0, 255, (35, 40, 3), np.uint8)
DICT = spaces.Dict({"position": VECTOR, "flag": spaces.Discrete(2)})


def test_known_agents_and_their_classes() -> None:
    expected = {
        "dqn": DQN,
        "zoo_dqn": DQN,
        "qrdqn": QRDQN,
        "ppo": NormalizedPPO,
        "ddqn": DoubleDQN,
        "ddqn_1step": DoubleDQN,
        "ddqn_more": DoubleDQN,
        "kernel_ddqn": KernelDDQN,
        "knn_ddqn": KernelDDQN,
        "dqk": DQK,
        "qrdqn_3step": QRDQN,
        "kernel_qrdqn": KernelQRDQN,
        "kernel_q": KernelQ,
        "kernel_ppo": KernelPPO,
        "sac": SAC,
        "kernel_sac": KernelSAC,
        "td3": TD3,
        "kernel_td3": KernelTD3,
    }
    assert {name: spec.algorithm for name, spec in AGENTS.items()} == expected
    assert all(spec.name == name for name, spec in AGENTS.items())


@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "kernel_qrdqn"])
def test_class_alone_has_the_settings_of_the_command(agent: str) -> None:
    """Gymnasium's smallest environments are what both defaults are for."""
    config = resolve(split_flags(["--agent", agent, "--env", "CartPole-v1"]))
    commanded = build_model(config, make_vec_env("CartPole-v1"))
    alone = find_agent(agent).algorithm("MlpPolicy", "CartPole-v1", device="cpu")
    assert isinstance(commanded, KernelDeepQ)
    assert isinstance(alone, KernelDeepQ)
    assert alone.policy.kernel == commanded.policy.kernel
    assert alone.defaults
    for name in alone.defaults:
        # Schedules are functions, made anew for every model.
        if not callable(value := getattr(alone, name)):
            assert getattr(commanded, name) == value, name
    assert alone.lr_schedule(0.5) == commanded.lr_schedule(0.5)
    assert alone.exploration_schedule(0.95) == commanded.exploration_schedule(0.95)
    shapes = [[parameter.shape for parameter in model.policy.parameters()] for model in (alone, commanded)]
    assert shapes[0] == shapes[1]
    assert alone.policy.net_arch == commanded.policy.net_arch


def test_agent_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ConfigError, match=r'agent \'qrdqn\' needs sb3_contrib.*pip install -e "\.\[zoo\]"'):
        build_model(QuantileConfig(agent="qrdqn", buffer_size=100), vec_env(VECTOR))


@pytest.mark.parametrize(("given", "nearest"), [("KernelDDQN", "kernel_ddqn"), ("Kernel-PPO", "kernel_ppo")])
def test_a_class_is_told_the_name_of_its_agent(given: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        find_agent(given)


def test_unknown_agent_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown agent 'knn'; did you mean 'knn_ddqn'"):
        find_agent("knn")


@pytest.mark.parametrize("agent", Q_LEARNERS)
def test_model_honours_every_setting(agent: str) -> None:
    words = ["--agent", agent, *SMALL, "--gamma", "0.7", "--n-steps", "2", "--train-freq", "3"]
    words += ["--target-update-interval", "60", "--exploration-fraction", "0.3", "--verbose", "0", "--seed", "5"]
    quantiles = issubclass(AGENTS[agent].config, QuantileConfig)
    gradients = AGENTS[agent].config is not AGENTS["kernel_q"].config
    if gradients:
        words += ["--net-arch", "16", "--batch-size", "8", "--tau", "0.5"]
        words += ["--gradient-steps", "2", "--learning-rate", "1e-3"]
        words += ["--n-quantiles", "5"] if quantiles else ["--max-grad-norm", "2"]
    config = resolve(split_flags(words))
    model: Any = build_model(config, vec_env(VECTOR))
    assert type(model) is AGENTS[agent].algorithm
    names = {field.name for field in dataclasses.fields(config)} - {
        field.name for field in dataclasses.fields(RunConfig)
    }
    for name in names - OF_THE_NETWORK - {"kernel", "train_freq", "learning_rate_schedule"}:
        assert getattr(model, name) == getattr(config, name), name
    assert model.train_freq.frequency == 3
    assert model.seed == 5
    if gradients:
        network = model.quantile_net if quantiles else model.q_net
        outputs = 2 * 5 if quantiles else 2
        assert [p.shape[0] for n, p in network.named_parameters() if n.endswith("weight")] == [16, outputs]


def test_ppo_honours_every_setting() -> None:
    words = ["--agent", "ppo", "--net-arch", "16", "--batch-size", "8", "--learning-rate", "1e-3", "--n-steps", "16"]
    words += ["--n-epochs", "3", "--gamma", "0.7", "--gae-lambda", "0.6", "--clip-range", "0.1", "--ent-coef", "0.2"]
    words += ["--vf-coef", "0.3", "--max-grad-norm", "2", "--normalize", "--seed", "5"]
    config = resolve(split_flags([*words, "--env", "Other-v0"]))
    model: Any = build_model(config, vec_env(VECTOR))
    assert type(model) is NormalizedPPO
    for name in ("batch_size", "learning_rate", "n_steps", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef"):
        assert getattr(model, name) == getattr(config, name), name
    assert (model.max_grad_norm, model.normalize, model.seed) == (2.0, True, 5)
    assert model.clip_range(0.5) == 0.1
    assert [layer.out_features for layer in model.policy.mlp_extractor.policy_net if hasattr(layer, "bias")] == [16]


@pytest.mark.parametrize("agent", ["ddqn", "qrdqn", "ppo"])
def test_linear_schedule_ends_at_zero_with_the_budget(agent: str) -> None:
    words = ["--agent", agent, "--learning-rate", "1e-2", "--learning-rate-schedule", "linear", "--env", "Other-v0"]
    words += ["--clip-range", "0.4", "--clip-range-schedule", "linear"] if agent == "ppo" else [*SMALL]
    model: Any = build_model(resolve(split_flags(words)), vec_env(VECTOR))
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == [1e-2, 5e-3, 0.0]
    if agent == "ppo":
        assert [model.clip_range(left) for left in (1.0, 0.5, 0.0)] == [0.4, 0.2, 0.0]


@pytest.mark.parametrize("space", [IMAGE, DICT, spaces.Discrete(4), spaces.Box(-9, 9, (3,), np.int64)])
def test_observations_that_are_no_vectors_of_real_numbers_are_not_normalised(space: spaces.Space[Any]) -> None:
    with pytest.raises(ConfigError, match="add --no-normalize"):
        build_model(PPOConfig(agent="ppo", normalize=True), vec_env(space))


@pytest.mark.parametrize("agent", ["kernel_ddqn", "knn_ddqn", "kernel_q"])
def test_kernel_settings_reach_the_policy(agent: str) -> None:
    config = resolve(split_flags(["--agent", agent, *SMALL, "--kernel.k", "3", "--kernel.capacity", "50"]))
    model: Any = build_model(config, vec_env(VECTOR))
    kernel = model.policy.kernel
    assert (kernel.k, kernel.capacity, kernel.head) == (3, 50, AGENTS[agent].head)


@pytest.mark.parametrize("agent", AGENTS)
def test_settings_are_arguments_of_the_algorithm(agent: str) -> None:
    """An argument that is accepted and ignored would be worse than an error."""
    spec = AGENTS[agent]
    known: set[str] = set()
    for base in spec.algorithm.__mro__:
        known |= set(inspect.signature(base.__init__).parameters)
    of_the_run = {field.name for field in dataclasses.fields(RunConfig)}
    names = {field.name for field in dataclasses.fields(spec.config)} - of_the_run - OF_THE_NETWORK
    names -= {"action_noise_std"}  # becomes an object, see test_exploration_noise_of_actor_critics
    assert {name.removesuffix("_schedule") for name in names} <= known


@pytest.mark.parametrize(
    ("policy", "space", "chosen"),
    [
        ("auto", VECTOR, "MlpPolicy"),
        ("auto", IMAGE, "CnnPolicy"),
        ("auto", DICT, "MultiInputPolicy"),
        ("auto", spaces.Discrete(4), "MlpPolicy"),
        ("auto", spaces.Box(0.0, 1.0, (10, 10, 4), np.bool_), "MlpPolicy"),
        ("MlpPolicy", IMAGE, "MlpPolicy"),
        ("auto", SMALL_IMAGE, "MlpPolicy"),
        ("auto", spaces.Box(0, 255, (3, 36, 36), np.uint8), "CnnPolicy"),
    ],
)
def test_policy_fits_the_observations(policy: str, space: spaces.Space[Any], chosen: str) -> None:
    assert fitting_policy(policy, space) == chosen


@pytest.mark.parametrize(("policy", "space"), [("CnnPolicy", VECTOR), ("MlpPolicy", DICT), ("MultiInputPolicy", IMAGE)])
def test_policy_that_cannot_fit_is_an_error(policy: str, space: spaces.Space[Any]) -> None:
    with pytest.raises(ConfigError, match=f"policy is '{policy}'"):
        fitting_policy(policy, space)
    with pytest.raises(ConfigError, match=r"MlpPolicy \(or auto\); it is a picture with less than the 36 x 36 pixels"):
        fitting_policy("CnnPolicy", SMALL_IMAGE)


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (VECTOR, VECTOR, "needs Discrete actions; use --agent ppo or kernel_ppo or sac or kernel_sac or td3"),
        (VECTOR, spaces.MultiDiscrete([2, 3]), "use --agent ppo or kernel_ppo$"),
        (VECTOR, spaces.Text(3), "no agent serves it: wrap it into a Discrete or a Box"),
        (VECTOR, spaces.Discrete(2, start=1), "counts from 1, but must count from 0"),
        (
            spaces.Tuple((VECTOR, spaces.Discrete(2))),
            None,
            "which ddqn does not serve: it is a Tuple; wrap it into a Box",
        ),
        (spaces.Discrete(4, start=1), None, "it counts from 1, but must count from 0"),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), None, "but must count from 0"),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), None, "is no vector; flatten it"),
        (spaces.Box(-1.0, 1.0, ()), None, "it is a bare number; show it as a vector"),
        (spaces.Box(-1.0, 1.0, (0,)), None, "it holds no number"),
        (spaces.Dict({"v": VECTOR, "n": spaces.Discrete(4, start=1)}), None, "its entry 'n' counts from 1"),
        (
            spaces.Dict({"small": SMALL_IMAGE, "v": VECTOR}),
            None,
            "its entry 'small' is a picture with less than the 36 x 36",
        ),
        (spaces.Dict({}), None, "it has no entry"),
    ],
)
def test_spaces_that_an_agent_does_not_serve(
    observations: spaces.Space[Any], actions: spaces.Space[Any] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(DoubleDQNConfig(agent="ddqn", env="Made-v0"), vec_env(observations, actions))


def test_dicts_within_dicts_are_not_served() -> None:
    """Of which Stable-Baselines3 makes no vectorised environment either."""
    fault = observation_fault(spaces.Dict({"outer": DICT}))
    assert fault is not None
    assert fault.startswith("its entry 'outer' is a Dict; wrap it into a Box")


@pytest.mark.parametrize(
    ("agent", "actions", "message"),
    [
        ("ppo", spaces.Box(-np.inf, np.inf, (2,)), "it has no finite bounds; give it some"),
        ("sac", spaces.Box(np.float32([0, 0]), np.float32([1, np.inf])), "it has no finite bounds"),
        ("ppo", spaces.Box(-1.0, 1.0, (0,)), "it holds no number"),
        ("ppo", spaces.MultiBinary([2, 2]), "it is no vector; flatten it"),
        ("ppo", spaces.MultiDiscrete([2, 3], start=[1, 1]), "but must count from 0"),
        *((agent, spaces.Box(-2, 2, (2,), np.int64), "it holds whole numbers") for agent in ("td3", "sac", "ppo")),
    ],
)
def test_actions_that_an_agent_does_not_serve(agent: str, actions: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(resolve(split_flags(["--agent", agent])), vec_env(VECTOR, actions))


def test_a_kernel_alone_reads_numbers_from_wherever_they_count() -> None:
    space = spaces.Discrete(4, start=1)
    words = ["--agent", "kernel_q", *SMALL, "--target-update-interval", "10"]
    build_model(resolve(split_flags(words)), vec_env(space)).learn(30)
    with pytest.raises(ConfigError, match="it counts from 1, but must count from 0"):
        build_model(resolve(split_flags([*words, "--kernel.kernel", "inverse_multiquadric"])), vec_env(space))


@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "kernel_ppo"])
@pytest.mark.parametrize(("name", "value"), [("lengthscale_factor", "2"), ("lengthscale_rule", "leave_one_out")])
def test_distances_of_numbered_states_mean_nothing(agent: str, name: str, value: str) -> None:
    setting = f"--kernel.{name.replace('_', '-')}"
    small = ["--n-steps", "256"] if agent == "kernel_ppo" else ["--buffer-size", "100"]
    config = resolve(split_flags(["--agent", agent, *small, setting, value]))
    with pytest.raises(ConfigError, match=f"kernel.{name} is .*, but the states of CartPole-v1 are numbers"):
        build_model(config, vec_env(spaces.Discrete(4)))
    build_model(config, vec_env(VECTOR))
    if agent != "kernel_q":
        words = ["--agent", agent, *small, setting, value, "--kernel.kernel", "inverse_multiquadric"]
        build_model(resolve(split_flags(words)), vec_env(spaces.Discrete(4)))


@pytest.mark.parametrize("agent", ["td3", "kernel_td3"])
def test_actions_may_be_a_matrix(agent: str) -> None:
    words = ["--agent", agent, *SMALL, "--batch-size", "4", "--net-arch", "8"]
    for shape in ((2, 2), ()):
        model = build_model(resolve(split_flags(words)), vec_env(VECTOR, spaces.Box(-1.0, 1.0, shape)))
        assert model.learn(20).num_timesteps == 20


@pytest.mark.parametrize("agent", ["td3", "kernel_td3"])
def test_exploration_noise_of_actor_critics(agent: str) -> None:
    words = ["--agent", agent, "--buffer-size", "100", "--action-noise-std", "0.3"]
    model: Any = build_model(resolve(split_flags(words)), vec_env(VECTOR, spaces.Box(-1.0, 1.0, (2,))))
    assert model.action_noise._sigma.tolist() == [0.3, 0.3]
    silent: Any = build_model(resolve(split_flags([*words[:-1], "0"])), vec_env(VECTOR, VECTOR))
    assert silent.action_noise is None


def test_actor_critics_refuse_discrete_actions() -> None:
    with pytest.raises(ConfigError, match="kernel_sac needs Box actions; use --agent dqn or"):
        build_model(KernelSACConfig(agent="kernel_sac"), vec_env(VECTOR))


def test_dict_observations_need_one_step_returns_in_the_plain_agents() -> None:
    env = vec_env(DICT)
    with pytest.raises(ConfigError, match="--n-steps 1"):
        build_model(DoubleDQNConfig(agent="ddqn", buffer_size=100), env)
    build_model(DoubleDQNConfig(agent="ddqn", buffer_size=100, n_steps=1), env).learn(8)
    build_model(KernelDDQNConfig(agent="kernel_ddqn", buffer_size=100, learning_starts=4), env).learn(16)


def test_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="device is 'gpu', but this machine has auto, cpu"):
        build_model(DoubleDQNConfig(agent="ddqn", device="gpu"), vec_env(VECTOR))


def test_configuration_of_another_agent_is_an_error() -> None:
    with pytest.raises(ConfigError, match="takes a KernelDDQNConfig, not a DQNConfig"):
        build_model(DQNConfig(agent="kernel_ddqn"), vec_env(VECTOR))
    with pytest.raises(ConfigError, match="use --agent kernel_ddqn"):
        build_model(KernelDDQNConfig(agent="knn_ddqn"), vec_env(VECTOR))

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from agents import DoubleDQN, KernelDDQN, KernelQ, NormalizedPPO, probe_agent, ram_variables
from envs import make_env
from skrl import LinearRegressor

# Programs from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

SMALL = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}
LINEAR = {"linear": LinearRegressor()}


def test_the_input_knows_itself_and_noise_hides_it() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SMALL)
    clean = probe_agent(model, "CartPole-v1", steps=300, readouts=LINEAR)
    assert list(clean.reports) == ["x0", "x1", "x2", "x3"]
    layers = clean.reports["x0"].layers
    assert layers == ["features_extractor.flatten", "q_net.0", "q_net.1", "q_net.2"]
    assert clean.scores("linear").shape == (4, 4)
    assert clean.scores("linear")[:, 0] == pytest.approx(1.0, abs=1e-3)
    noisy = probe_agent(model, "CartPole-v1", steps=300, readouts=LINEAR, noise=2.0)
    assert (noisy.scores("linear")[:, 0] < 0.8).all()


def test_the_same_seed_gives_the_same_scores_and_leaves_the_model_alone() -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", learning_starts=20, kernel={"capacity": 50}, **SMALL).learn(150)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    probes = [probe_agent(model, "CartPole-v1", steps=90, noise=0.1, readouts=LINEAR, seed=seed) for seed in (0, 0, 1)]
    first, second, other = (probe.scores("linear") for probe in probes)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert all(torch.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_layers_see_what_they_see_while_acting() -> None:
    model = NormalizedPPO("MlpPolicy", gym.make("CartPole-v1"), **SMALL)
    model.observation_statistics.running.mean = np.full(4, 5.0)
    model.observation_statistics.running.var = np.full(4, 4.0)
    seen: list[torch.Tensor] = []
    first = model.policy.mlp_extractor.policy_net[0]
    hook = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    probe_agent(model, gym.make("CartPole-v1"), steps=90, exploration_rate=0.0, readouts=LINEAR)
    hook.remove()
    acting, probed = torch.cat(seen[:90]), torch.cat(seen[90:])
    assert (acting < 0.0).all()
    assert torch.isin(probed, acting).all()


def test_statistics_of_vec_normalize_stand_still_and_are_needed() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 1, seed=0))
    model = DoubleDQN("MlpPolicy", env, learning_starts=20, **SMALL).learn(60)
    before = vars(env.obs_rms).copy(), vars(env.ret_rms).copy()
    probe_agent(model, model.get_env(), steps=90, readouts=LINEAR)
    for running, known in zip((env.obs_rms, env.ret_rms), before, strict=True):
        assert all(np.array_equal(getattr(running, name), value) for name, value in known.items())
    assert env.training
    for other in ("CartPole-v1", gym.make("CartPole-v1"), make_vec_env("CartPole-v1", 1)):
        with pytest.raises(ValueError, match=r"trained in VecNormalize.*get_env"):
            probe_agent(model, other, steps=90, readouts=LINEAR)


@pytest.mark.parametrize("cls", [QRDQN, PPO])
def test_other_algorithms_and_variables_of_ones_own(cls) -> None:
    model = cls("MlpPolicy", "CartPole-v1", **SMALL)

    def variables(env, observation):
        return {"x + angle": observation[0] + env.state[2], "constant": 1.0}

    probe = probe_agent(model, make_vec_env("CartPole-v1", 1), variables, steps=120, readouts=LINEAR)
    assert list(probe.reports) == ["x + angle"]
    assert probe.scores("linear")[0].max() > 0.99


@pytest.mark.parametrize("cls", [DoubleDQN, PPO])
def test_a_model_whose_environment_was_played_learns_on_in_a_new_episode(cls) -> None:
    """Not from where it stood: its next step would lead to where the probe left the environment."""
    settings = {"n_steps": 16, "batch_size": 16} if cls is PPO else {"n_steps": 1, "learning_starts": 100}
    model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **settings).learn(48)
    begun: list[np.ndarray] = []
    env = model.get_env()
    env.env_method("reset", seed=3)
    probe_agent(model, env, steps=30)
    learn, setup = model.learn, model._setup_learn

    def watched(*args, **kwargs):
        result = setup(*args, **kwargs)
        begun.append(model._last_obs.copy())
        return result

    model._setup_learn = watched
    learn(16, reset_num_timesteps=False)
    # Where an episode of CartPole begins, and where its environment really stands.
    assert np.abs(begun[0]).max() <= 0.05
    if cls is DoubleDQN:
        assert model.replay_buffer.dones[47, 0]


def test_true_and_false_are_numbers() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SMALL)
    right = lambda env, observation: {"right": observation[3] > 0.0, "never": False}  # noqa: E731
    assert list(probe_agent(model, "CartPole-v1", right, steps=90, readouts=LINEAR).reports) == ["right"]


def test_table_and_figure(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SMALL)
    probe = probe_agent(model, "CartPole-v1", lambda _, observation: {"x3": float(observation[3])}, steps=90)
    table = probe.to_markdown()
    assert "**sparse kernel**" in table
    assert "**linear**" in table
    assert table.count("| x3 |") == 2
    probe.plot(tmp_path / "probe.png")
    assert (tmp_path / "probe.png").stat().st_size > 1000


def test_the_memory_of_an_atari_game() -> None:
    env = make_env("ALE/Pong-v5", seed=0)
    model = DoubleDQN("CnnPolicy", env, buffer_size=10, device="cpu", seed=0)
    with pytest.raises(ValueError, match="ram_variables"):
        probe_agent(model, env, steps=30)
    variables = ram_variables({"player": 51, "ball": 49})
    probe = probe_agent(model, env, variables, steps=200, exploration_rate=1.0, readouts=LINEAR)
    assert "player" in probe.reports
    assert probe.reports["player"].layers[0].startswith("features_extractor.cnn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "steps is 3"),
        ({"exploration_rate": 2.0}, "exploration_rate is 2.0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"variables": lambda env, observation: {"one": 1.0}}, "none of the variables one ever changed"),
        ({"variables": lambda env, _: {"x": env.state[0], "odd": np.nan}}, "odd is nan at step 0, but a readout needs"),
    ],
)
def test_what_makes_no_sense_is_an_error(settings, message) -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match=message):
        probe_agent(model, "CartPole-v1", **{"steps": 40, **settings})
    with pytest.raises(ValueError, match="2 copies"):
        probe_agent(model, make_vec_env("CartPole-v1", 2), steps=40)


def test_addresses_outside_the_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="player is at 128"):
        ram_variables({"player": 128})


def test_an_agent_without_a_network_is_refused() -> None:
    model = KernelQ("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
    with pytest.raises(ValueError, match="KernelQ has no network with layers to probe"):
        probe_agent(model, "CartPole-v1", steps=40, readouts=LINEAR)

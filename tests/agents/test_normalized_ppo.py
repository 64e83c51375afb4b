"""PPO with its own normalisation equals PPO in SB3's wrapper, and hides it from callers."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from agents import KernelPPO
from agents.common.nonfinite import NonFiniteError
from agents.common.schema import ConfigError
from agents.normalized_ppo import NormalizedPPO, ObservationStatistics, can_normalize

SMALL = {"n_steps": 20, "batch_size": 20, "n_epochs": 2, "gamma": 0.9, "seed": 0, "device": "cpu"}


def test_training_is_that_of_ppo_in_vec_normalize() -> None:
    wrapped = VecNormalize(make_vec_env("Acrobot-v1", n_envs=2), gamma=0.9)
    theirs = PPO("MlpPolicy", wrapped, **SMALL).learn(400)
    ours = NormalizedPPO("MlpPolicy", make_vec_env("Acrobot-v1", n_envs=2), **SMALL).learn(400)
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert ours.observation_statistics.running.count == wrapped.obs_rms.count
    assert ours.observation_statistics.returns.var == wrapped.ret_rms.var != 1.0
    observations = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    assert np.array_equal(ours.observation_statistics.normalize(observations), wrapped.normalize_obs(observations))
    expected, _ = theirs.predict(wrapped.normalize_obs(observations), deterministic=True)
    assert np.array_equal(ours.predict(observations, deterministic=True)[0], expected)


def test_without_normalisation_it_is_ppo() -> None:
    ours = NormalizedPPO("MlpPolicy", "CartPole-v1", normalize=False, **SMALL).learn(200)
    theirs = PPO("MlpPolicy", "CartPole-v1", **SMALL).learn(200)
    for mine, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_callers_see_the_environment_as_they_gave_it() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    model = NormalizedPPO("MlpPolicy", env, **SMALL)
    assert model.get_env() is env
    assert isinstance(model.env, VecNormalize)
    count = model.observation_statistics.running.count
    evaluate_policy(model, model.get_env(), n_eval_episodes=1)
    assert model.observation_statistics.running.count == count


def test_another_environment_goes_on_with_the_statistics(tmp_path: Path) -> None:
    model = NormalizedPPO("MlpPolicy", make_vec_env("CartPole-v1"), **SMALL).learn(100)
    model.save(tmp_path / "model")
    loaded = NormalizedPPO.load(tmp_path / "model", device="cpu")
    before = loaded.observation_statistics.running.count
    assert before == model.observation_statistics.running.count > 100
    other = make_vec_env("CartPole-v1")
    loaded.set_env(other)
    assert loaded.get_env() is other
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.observation_statistics.running.count == pytest.approx(before + 41)  # one more from the reset


@pytest.mark.parametrize("cls", [NormalizedPPO, KernelPPO])
def test_rewards_keep_their_scale_in_another_environment(cls: type[NormalizedPPO], tmp_path: Path) -> None:
    model = cls("MlpPolicy", make_vec_env("CartPole-v1"), normalize=True, **SMALL).learn(100)
    trained = model.env.ret_rms
    assert trained.var > 2.0
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=make_vec_env("CartPole-v1", n_envs=2), device="cpu")
    assert vars(loaded.env.ret_rms) == vars(trained)
    model.set_env(make_vec_env("CartPole-v1"))
    assert model.env.ret_rms is trained
    count = trained.count
    model.learn(40, reset_num_timesteps=False)
    assert trained.count == pytest.approx(count + 40)


def test_statistics_survive_a_state_dict() -> None:
    one, two = ObservationStatistics((3,)), ObservationStatistics((3,))
    one.running.update(np.random.default_rng(0).normal(2.0, 3.0, size=(50, 3)))
    one.returns.update(np.random.default_rng(1).normal(5.0, 4.0, size=50))
    two.load_state_dict(one.state_dict())
    assert vars(two.returns) == vars(one.returns) != vars(ObservationStatistics((3,)).returns)
    point = np.array([[1.0, -2.0, 30.0]])
    assert np.array_equal(one.normalize(point), two.normalize(point))
    assert not np.array_equal(one.normalize(point), ObservationStatistics((3,)).normalize(point))


def test_a_file_without_statistics_of_returns_leaves_the_present_ones() -> None:
    one = ObservationStatistics((3,))
    one.returns.update(np.full(9, 5.0))
    var = one.returns.var
    one.load_state_dict({"_extra_state": {"mean": [1.0] * 3, "var": [4.0] * 3, "count": 7.0}})
    assert one.running.mean.tolist() == [1.0] * 3
    assert one.returns.var == var


def test_what_cannot_be_normalised_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="give normalize=False"):
        NormalizedPPO("MlpPolicy", IdentityEnv(3), **SMALL)
    with pytest.raises(ValueError, match="has one already"):
        NormalizedPPO("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1")), **SMALL)
    assert can_normalize(gym.make("CartPole-v1").observation_space)
    assert not can_normalize(spaces.Box(0, 255, (36, 36, 1), np.uint8))


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (3,), np.bool_), spaces.Box(-3, 3, (3,), np.int64)])
def test_counts_and_flags_are_not_learned_from_scaled(space, tmp_path) -> None:
    """A rollout would store what is left of -0.7 and 1.3 in these types; acting on scaled ones is no harm."""

    class Counts(IdentityEnv):
        def __init__(self) -> None:
            super().__init__(3)
            self.observation_space = space

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return space.sample(), {}

        def step(self, action):
            return space.sample(), 1.0, False, True, {}

    model = NormalizedPPO("MlpPolicy", Counts(), **SMALL)
    with pytest.raises(ConfigError, match=r"a rollout stores them as (bool|int64), .* give normalize=False"):
        model.learn(8)
    model.save(tmp_path / "model")
    assert NormalizedPPO.load(tmp_path / "model").predict(space.sample())[0] in range(3)
    NormalizedPPO("MlpPolicy", Counts(), normalize=False, **SMALL).learn(8)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_model_cannot_be_loaded_otherwise_normalised(normalize, tmp_path) -> None:
    NormalizedPPO("MlpPolicy", "CartPole-v1", normalize=normalize, **SMALL).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"normalize is False, but a saved NormalizedPPO knows .* leave it out"):
        NormalizedPPO.load(tmp_path / "model", normalize=False)
    assert NormalizedPPO.load(tmp_path / "model").normalize is normalize


def test_an_environment_that_is_refused_changes_nothing() -> None:
    model = NormalizedPPO("MlpPolicy", make_vec_env("CartPole-v1"), **SMALL)
    before = model.env
    with pytest.raises(ValueError, match="brings its own VecNormalize"):
        model.set_env(VecNormalize(make_vec_env("CartPole-v1")))
    assert model.env is before
    assert model.get_vec_normalize_env() is None


@pytest.mark.parametrize("normalize", [True, False])
def test_observations_may_be_lists_and_tuples_as_in_sb3(normalize: bool) -> None:
    model = NormalizedPPO("MlpPolicy", "CartPole-v1", normalize=normalize, **SMALL).learn(100)
    for observation in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32):
        expected, _ = model.predict(observation, deterministic=True)
        for same in (observation.tolist(), tuple(observation)):
            assert model.predict(same, deterministic=True)[0] == expected


@pytest.mark.parametrize("normalize", [True, False])
def test_an_observation_that_is_not_finite_is_named(normalize: bool, poisoned) -> None:
    copies = iter([gym.make("CartPole-v1"), poisoned(range(8, 9), "observation")])
    env = make_vec_env(lambda: next(copies), 2)
    model = NormalizedPPO("MlpPolicy", env, normalize=normalize, n_steps=32, batch_size=32, seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.policy.parameters()]
    message = "stopped at step 16: environment 1 of CartPole-v1 sent an observation that is not finite"
    with pytest.raises(NonFiniteError, match=message) as caught:
        model.learn(64)
    assert ("statistics of observations" in str(caught.value)) == normalize
    assert all(torch.equal(*pair) for pair in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("normalize", [True, False])
def test_other_errors_of_a_rollout_stay_what_they_are(normalize: bool) -> None:
    class Refuses(gym.Wrapper):
        def step(self, action):
            raise ValueError("no such move")

    env = make_vec_env(lambda: Refuses(gym.make("CartPole-v1")), 1)
    with pytest.raises(ValueError, match="no such move"):
        NormalizedPPO("MlpPolicy", env, normalize=normalize, n_steps=32, batch_size=32, device="cpu").learn(64)


@pytest.mark.parametrize("shape", [(4, 1), (1,), (2, 1), ()])
def test_an_observation_of_another_shape_is_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    model = NormalizedPPO("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(shape, np.float32))

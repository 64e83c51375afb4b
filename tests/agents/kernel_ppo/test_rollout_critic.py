from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from agents.common.nonfinite import NonFiniteError
from agents.common.schema import ConfigError
from agents.kernel_ppo import CriticConfig, KernelPPO
from agents.kernel_ppo.kernel_ppo import _reward_scale
from agents.kernel_ppo.rollout_critic import Cuts, RolloutCritic
from agents.normalized_ppo import NormalizedPPO

SPACE = spaces.Box(-3.0, 3.0, (2,))
STEPS, EXACT = 40, {"trace_decay": 1.0, "capacity": 400}
"""Along whole trajectories returns do not depend on values."""


def rollout(n_envs: int, seed: int = 0, gamma: float = 0.9) -> RolloutBuffer:
    """States drawn at random, one-step episodes: the return is the reward, x₀² and a little noise."""
    rng = np.random.default_rng(seed)
    buffer = RolloutBuffer(STEPS, SPACE, spaces.Discrete(2), gae_lambda=0.8, gamma=gamma, n_envs=n_envs)
    for _ in range(STEPS):
        states = rng.uniform(-2, 2, (n_envs, 2)).astype(np.float32)
        rewards = states[:, 0] ** 2 + 0.1 * rng.normal(size=n_envs)
        buffer.add(states, np.zeros((n_envs, 1)), rewards, np.ones(n_envs), torch.zeros(n_envs), torch.zeros(n_envs))
    return buffer


def critic(**settings) -> RolloutCritic:
    config = CriticConfig(**{**EXACT, **settings})
    return RolloutCritic(SPACE, config, True, torch.device("cpu"), np.random.default_rng(0))


def nothing(observations) -> torch.Tensor:
    return torch.zeros(len(observations), 1)


def correct(judge: RolloutCritic, buffer: RolloutBuffer, network=nothing) -> np.ndarray:
    """Corrected values, [T, E]."""
    last = torch.zeros(buffer.n_envs, 2)
    judge.correct(buffer, network, last, np.ones(buffer.n_envs, dtype=bool))
    return buffer.returns - buffer.advantages


@pytest.mark.parametrize("n_envs", [1, 2, 5])
def test_values_approach_the_expected_returns(n_envs) -> None:
    judge, errors = critic(), []
    for seed in range(6):
        buffer = rollout(n_envs, seed)
        errors.append(np.abs(correct(judge, buffer) - buffer.observations[..., 0] ** 2).mean())
    assert errors[-1] < 0.6 * errors[0]
    assert errors[-1] < 0.35  # of returns between 0 and 4
    assert judge.scalars["explained_variance"] > 0.85


@pytest.mark.parametrize("n_envs", [2, 3])
def test_no_return_enters_the_baseline_of_its_own_fold(n_envs) -> None:
    plain, changed = rollout(n_envs), rollout(n_envs)
    changed.rewards[:, ::2] += np.random.default_rng(1).normal(size=changed.rewards[:, ::2].shape)
    before, after = correct(critic(), plain), correct(critic(), changed)
    assert np.allclose(before[:, ::2], after[:, ::2], atol=1e-5)
    assert not np.allclose(before[:, 1::2], after[:, 1::2], atol=0.05)


@pytest.mark.parametrize("n_envs", [2, 3, 8])
@pytest.mark.parametrize("reaches_the_end", [False, True])
def test_none_enters_by_way_of_bootstraps_either(n_envs, reaches_the_end) -> None:
    """Default settings, episodes that outlast the rollout: returns are made of values, and those of returns."""

    def values(bonus: float) -> np.ndarray:
        buffer = rollout(n_envs)
        buffer.episode_starts[1:] = 0.0
        buffer.rewards[:, ::2] += bonus
        judge = RolloutCritic(SPACE, CriticConfig(), True, torch.device("cpu"), np.random.default_rng(0))
        judge.correct(buffer, nothing, torch.zeros(n_envs, 2), np.full(n_envs, reaches_the_end))
        return buffer.returns - buffer.advantages

    before, after = values(0.0), values(1.0)
    assert np.allclose(before[:, ::2], after[:, ::2], atol=1e-4)
    assert not np.allclose(before[:, 1::2], after[:, 1::2], atol=0.5)


def test_a_single_environment_is_valued_by_every_other_episode() -> None:
    plain, changed = rollout(1), rollout(1)
    lengths = np.repeat(np.arange(8), STEPS // 8)  # the number of the episode
    for buffer in (plain, changed):
        buffer.episode_starts[:, 0] = np.diff(lengths, prepend=-1)
    changed.rewards[lengths % 2 == 0] += 1.0
    before, after = correct(critic(), plain), correct(critic(), changed)
    assert np.allclose(before[lengths % 2 == 0], after[lengths % 2 == 0], atol=1e-5)
    assert not np.allclose(before[lengths % 2 == 1], after[lengths % 2 == 1], atol=0.05)


def test_an_episode_keeps_its_fold_from_one_rollout_to_the_next() -> None:
    judge, first, second = critic(), rollout(1), rollout(1, seed=1)
    first.episode_starts[:] = 0.0
    first.episode_starts[[0, 20, 30]] = 1.0
    second.episode_starts[:] = 0.0
    second.episode_starts[10] = 1.0
    correct(judge, first)
    correct(judge, second)
    known = zip(judge.remembered.observations.tolist(), judge.remembered.folds.tolist(), strict=True)
    fold_of = {tuple(state): fold for state, fold in known}
    folds = [[fold_of[tuple(state)] for state in buffer.observations[:, 0].tolist()] for buffer in (first, second)]
    assert folds == [[1] * 20 + [0] * 10 + [1] * 10, [1] * 10 + [0] * 30]


def test_remembered_returns_follow_the_scale_of_rewards() -> None:
    judge, last = critic(), (torch.zeros(2, 2), np.ones(2, dtype=bool))
    judge.correct(rollout(2), nothing, *last, reward_scale=1.0)
    before = judge.remembered.returns.clone()
    judge.correct(rollout(2, seed=1), nothing, *last, reward_scale=4.0)
    kept = torch.isin(judge.remembered.returns, before / 4.0)
    assert kept.sum() == len(before)


def test_a_network_that_is_right_is_left_alone() -> None:
    buffer = rollout(4)
    buffer.rewards = buffer.observations[..., 0] ** 2
    values = buffer.values = buffer.rewards.copy()
    corrected = correct(critic(), buffer, lambda states: states[:, :1] ** 2)
    assert np.allclose(corrected, values, atol=1e-5)
    assert np.allclose(buffer.advantages, 0.0, atol=1e-5)


def test_only_advantages_and_returns_change() -> None:
    buffer = rollout(3)
    kept = {name: getattr(buffer, name).copy() for name in ("observations", "rewards", "values", "episode_starts")}
    correct(critic(), buffer)
    assert all(np.array_equal(getattr(buffer, name), value) for name, value in kept.items())
    assert buffer.gae_lambda == 0.8


def test_advantages_are_those_of_the_corrected_values() -> None:
    """The λ of PPO, not that of the regression, along episodes of several steps."""
    buffer = rollout(2, gamma=0.5)
    buffer.episode_starts[:] = 0.0
    values = correct(critic(), buffer)
    following = np.concatenate([values[1:], np.zeros((1, 2))])
    errors = buffer.rewards + 0.5 * following - values
    expected = np.zeros_like(errors)
    for step in reversed(range(STEPS)):
        expected[step] = errors[step] + (0.5 * 0.8 * expected[step + 1] if step + 1 < STEPS else 0.0)
    assert np.allclose(buffer.advantages, expected, atol=1e-4)


@pytest.mark.parametrize("n_envs", [1, 2, 5])
def test_a_cut_episode_is_valued_beyond_its_cut(n_envs) -> None:
    """Episodes of several steps, cut in states that the rollout holds elsewhere, so that their values are known."""
    buffer = rollout(n_envs, gamma=0.5)
    buffer.gae_lambda = 0.0
    buffer.episode_starts[:] = 0.0
    buffer.episode_starts[[0, 20]] = 1.0
    rows, copies = np.array([19] * n_envs), np.arange(n_envs)
    # Of the episode before the cut, hence of its fold.
    cuts = Cuts(rows, copies, torch.from_numpy(buffer.observations[7, copies]))
    kept, judge = buffer.rewards.copy(), critic()
    judge.correct(buffer, nothing, torch.zeros(n_envs, 2), np.ones(n_envs, dtype=bool), cuts=cuts)
    values = buffer.returns - buffer.advantages
    expected = kept[19] + 0.5 * values[7] - values[19]
    assert np.abs(values[7]).min() > 0.01
    assert np.allclose(buffer.advantages[19], expected, atol=1e-4)
    assert np.array_equal(buffer.rewards, kept)


@pytest.mark.parametrize("normalize", [False, True])
def test_time_limits_are_noted_as_the_policy_sees_them(normalize, monkeypatch) -> None:
    class Counter(gym.Env):
        """Observes how many steps it took."""

        observation_space, action_space = spaces.Dict({"steps": spaces.Box(0, 9, (1,))}), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return {"steps": np.zeros(1, np.float32)}, {}

        def step(self, action):
            self.steps += 1
            return {"steps": np.full(1, self.steps, np.float32)}, 1.0, self.steps == 5 and bool(action), False, {}

    def make() -> gym.Env:
        env = Counter()
        return gym.wrappers.TimeLimit(gym.wrappers.FlattenObservation(env) if normalize else env, 5)

    found = []
    correct = RolloutCritic.correct
    monkeypatch.setattr(
        RolloutCritic,
        "correct",
        lambda self, *given: (found.append((given[0].actions.copy(), given[5])), correct(self, *given)),
    )
    policy = "MlpPolicy" if normalize else "MultiInputPolicy"
    model = KernelPPO(policy, make_vec_env(make, 3), n_steps=10, batch_size=30, seed=0, normalize=normalize)
    model.learn(30)
    ((actions, cuts),) = found
    ended = np.argwhere(actions[[4, 9], :, 0] == 0)  # with action 1 the last step is an end of its own
    assert 0 < len(ended) < 6
    assert sorted(zip(cuts.rows.tolist(), cuts.copies.tolist(), strict=True)) == sorted(
        (4 + 5 * row, copy) for row, copy in ended.tolist()
    )
    if normalize:
        assert (cuts.observations.abs() < 10).all()
        assert (cuts.observations > 0).all()
    else:
        assert cuts.observations["steps"].tolist() == [[5.0]] * len(ended)


def test_other_parameters_begin_without_the_returns_of_the_old_policy() -> None:
    one, other = (
        KernelPPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=seed, device="cpu").learn(32)
        for seed in (0, 1)
    )
    assert one.critic.remembered is not None
    one.set_parameters(other.get_parameters(), device="cpu")
    assert one.critic.remembered is None
    one.learn(32, reset_num_timesteps=False)


def test_a_seed_that_is_given_later_decides_what_is_remembered() -> None:
    models = [
        KernelPPO(
            "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, kernel={"capacity": 40}, seed=seed, device="cpu"
        )
        for seed in (1, 2)
    ]
    models[1].set_parameters(models[0].get_parameters(), device="cpu")
    for model in models:
        model.set_random_seed(7)
        model.learn(128)
    assert all(map(torch.equal, models[0].policy.parameters(), models[1].policy.parameters()))


def test_memory_stays_within_its_capacity_and_balanced() -> None:
    judge = critic(capacity=100)
    for seed in range(3):
        correct(judge, rollout(3, seed))
    assert judge.remembered is not None
    assert len(judge.remembered.returns) == 100
    assert judge.remembered.folds.bincount().tolist() == [50, 50]
    assert judge.head.memory.sizes.tolist() == [50, 50]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_saved_model_goes_on_with_its_settings(env, tmp_path) -> None:
    model = KernelPPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, kernel={"k": 4}).learn(96)
    assert model.critic.remembered is not None
    model.save(tmp_path / "model.zip")
    loaded = KernelPPO.load(tmp_path / "model.zip", env=model.get_env())
    assert loaded.critic.config.k == 4
    loaded.learn(64)


def test_runs_are_named_after_the_algorithm(tmp_path) -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, tensorboard_log=str(tmp_path))
    for name in ("PPO", "mine"):
        model.learn(32, tb_log_name=name)
        model.logger.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["KernelPPO_1", "mine_1"]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"kernel.sweeps"):
        KernelPPO("MlpPolicy", "CartPole-v1", kernel={"sweeps": 0})
    with pytest.raises(ConfigError, match=r"did you mean 'kernel.capacity'"):
        KernelPPO("MlpPolicy", "CartPole-v1", kernel={"capacty": 10})


def test_rewards_are_scaled_wherever_they_are_normalised() -> None:
    """SB3 itself puts its transposition of images around a VecNormalize."""
    plain = make_vec_env("CartPole-v1", 2)
    normalised = VecNormalize(plain, norm_obs=False)
    normalised.ret_rms.var = 4.0
    assert _reward_scale(plain) == 1.0
    assert _reward_scale(normalised) == pytest.approx(2.0)
    assert _reward_scale(VecFrameStack(normalised, 2)) == pytest.approx(2.0)
    normalised.norm_reward = False
    assert _reward_scale(VecFrameStack(normalised, 2)) == 1.0


def test_a_loaded_model_may_get_another_kernel(tmp_path) -> None:
    KernelPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "model")
    for given in ({"k": 7}, CriticConfig(k=7)):
        assert KernelPPO.load(tmp_path / "model", kernel=given).critic.config.k == 7


def test_another_kernel_keeps_the_saved_settings_that_it_does_not_name(tmp_path) -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", kernel={"sweeps": 2})
    model.save(tmp_path / "model")
    assert KernelPPO.load(tmp_path / "model", kernel={"k": 7}).critic.config == CriticConfig(k=7, sweeps=2)


def test_another_environment_begins_without_the_returns_of_the_old_one() -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, device="cpu", seed=0).learn(16)
    assert model.critic.remembered is not None
    model.set_env(make_vec_env("CartPole-v1"))
    assert model.critic.remembered is None


def test_an_interrupted_correction_leaves_the_buffer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, buffer = critic(trace_decay=0.5), rollout(2)
    correct(judge, buffer)
    values, rewards = buffer.values.copy(), buffer.rewards.copy()
    write_targets, calls = judge.head.write_targets, []

    def interrupt(residuals: torch.Tensor) -> None:
        calls.append(not np.array_equal(buffer.values, values) and not np.array_equal(buffer.rewards, rewards))
        if len(calls) > 1:
            raise KeyboardInterrupt
        write_targets(residuals)

    monkeypatch.setattr(judge.head, "write_targets", interrupt)
    cuts = Cuts(np.array([3]), np.array([1]), torch.ones(1, 2))
    with pytest.raises(KeyboardInterrupt):
        judge.correct(buffer, nothing, torch.zeros(2, 2), np.ones(2, dtype=bool), cuts=cuts)
    assert calls == [False, True]  # in the second sweep both hold corrections
    assert buffer.gae_lambda == 0.8
    assert np.array_equal(buffer.values, values)
    assert np.array_equal(buffer.rewards, rewards)


class _AddsReward(BaseCallback):
    """As callbacks of intrinsic rewards do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.seen = buffer.advantages.copy()
        buffer.advantages += 1000.0
        buffer.returns += 1000.0


def test_callbacks_see_corrected_advantages_and_may_change_them() -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    written = []
    correct = model.critic.correct

    def noted(buffer: RolloutBuffer, *rest: object) -> None:
        before = buffer.advantages.copy()
        correct(buffer, *rest)
        written.append((before, buffer.advantages.copy()))

    model.critic.correct = noted
    callback = _AddsReward()
    model.learn(128, callback=callback)
    (_, _), (uncorrected, corrected) = written
    assert not np.allclose(uncorrected, corrected)
    assert np.array_equal(callback.seen, corrected)
    assert np.array_equal(model.rollout_buffer.advantages.flatten(), (corrected + 1000.0).flatten())


def test_a_callback_still_stops_a_rollout() -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, seed=0, device="cpu")
    model.learn(640, callback=ConvertCallback(lambda locals_, _: locals_["self"].num_timesteps < 70))
    assert model.num_timesteps == 70


@pytest.mark.parametrize(
    ("what", "at", "message"),
    [
        (
            "inf",
            4,
            "stopped at step 60: the rollout holds a reward that is not finite, inf at step 12 from environment 1",
        ),
        ("observation", 20, "step 60: environment 1 of CartPole-v1 sent an observation that is not finite"),
    ],
)
def test_a_rollout_that_is_not_finite_is_refused_before_it_is_learned_from(what, at, message, poisoned) -> None:
    copies = iter(range(3))

    def make() -> gym.Env:
        return poisoned(range(at, at + 1), what) if next(copies) == 1 else gym.make("CartPole-v1")

    model = KernelPPO("MlpPolicy", make_vec_env(make, 3), n_steps=20, batch_size=30, seed=0, device="cpu")
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(NonFiniteError, match=message):
        model.learn(120)
    assert all(torch.equal(*pair) for pair in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(("twin", "normalize"), [(PPO, False), (NormalizedPPO, False), (NormalizedPPO, True)])
def test_a_saved_model_runs_without_a_kernel(twin, normalize, tmp_path) -> None:
    model = KernelPPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=8, normalize=normalize, device="cpu", seed=0)
    model.learn(64).save(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert set(expected) == {0, 1}
    loaded = twin.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)

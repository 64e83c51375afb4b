"""Copies that have played their episodes rest, and the episodes are those that they would have played anyway."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents.training.evaluation import evaluate_greedily
from envs import EpisodeQuota, make_env


class Counted(gym.Wrapper):  # type: ignore[type-arg]
    """Counts steps and resets."""

    steps, resets = 0, 0

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:  # type: ignore[override]
        self.steps += 1
        return super().step(action)  # type: ignore[return-value]

    def reset(self, **keywords: object) -> tuple[object, dict[str, object]]:  # type: ignore[override]
        self.resets += 1
        return super().reset(**keywords)  # type: ignore[arg-type]


def play(env: EpisodeQuota, steps: int, seed: int | None = None) -> list[tuple[list[float], float, bool]]:
    """Steps of action 1, with a reset whenever an episode ends, as a vectorised environment does."""
    env.reset(seed=seed)
    seen = []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(1)
        seen.append((np.asarray(observation).tolist(), float(reward), terminated or truncated))
        if terminated or truncated:
            env.reset()
    return seen


def test_rests_after_its_episodes() -> None:
    counted = Counted(Monitor(gym.make("CartPole-v1")))
    env = EpisodeQuota(counted)
    env.set_quota(2)
    seen = play(env, 60, seed=0)
    assert [ended for *_, ended in seen].count(True) == 2
    at_rest = seen[counted.steps :]
    assert len(at_rest) > 20
    assert all(step == (seen[counted.steps - 1][0], 0.0, False) for step in at_rest)
    assert counted.resets == 2
    env.set_quota(1)
    assert [ended for *_, ended in play(env, 60, seed=0)].count(True) == 1


def test_without_a_quota_nothing_changes() -> None:
    plain = gym.make("CartPole-v1")
    assert play(EpisodeQuota(Monitor(gym.make("CartPole-v1"))), 60, seed=3) == play(plain, 60, seed=3)  # type: ignore[arg-type]


def test_no_episode_at_all() -> None:
    """A copy beyond the number of episodes has to answer resets and steps too."""
    env = EpisodeQuota(Monitor(gym.make("CartPole-v1")))
    env.set_quota(0)
    seen = play(env, 30, seed=0)
    assert not any(ended for *_, ended in seen)
    start, _ = gym.make("CartPole-v1").reset(seed=0)
    assert all(observation == start.tolist() for observation, *_ in seen)


@pytest.mark.parametrize("episodes", [2, 3, 7])
def test_an_evaluation_plays_the_episodes_that_it_would_without(episodes: int) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", seed=0)
    env = make_env("CartPole-v1", n_envs=3, evaluation=True)
    for _ in range(2):
        rested = evaluate_greedily(model, env, episodes, seed=5)
        plain = make_env("CartPole-v1", n_envs=3)
        plain.seed(5)
        expected = evaluate_policy(model, plain, n_eval_episodes=episodes, return_episode_rewards=True)
        assert (rested.returns, rested.lengths) == expected

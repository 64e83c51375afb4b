"""Fixtures that tests of several agents share."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.kernel_ddqn.replay_kernel import ReplayKernel


@pytest.fixture
def networks_equal_at_refresh(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether online and target network were equal, for every refresh that follows.

    They are between a target update and the next gradient step. Residuals against the old target network would count
    every correction twice.
    """
    equal: list[bool] = []
    original = ReplayKernel.refresh

    def spy(self: ReplayKernel, steps: int) -> None:
        pairs = zip(self.q_net.layers.parameters(), self.q_net_target.layers.parameters(), strict=True)
        equal.append(all(torch.equal(online, target) for online, target in pairs))
        original(self, steps)

    monkeypatch.setattr(ReplayKernel, "refresh", spy)
    return equal


class Poisoned(gym.Wrapper):
    """CartPole that sends a value which is not finite at given steps, or where an episode begins or ends."""

    def __init__(self, bad_steps: range, what: str, max_episode_steps: int | None = None) -> None:
        super().__init__(gym.make("CartPole-v1", max_episode_steps=max_episode_steps))
        self.bad_steps, self.what, self.count = bad_steps, what, 0

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return (np.full_like(observation, np.nan) if self.what == "first observation" else observation), info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.count += 1
        if self.count in self.bad_steps:
            if self.what == "observation":
                observation = np.full_like(observation, np.nan)
            else:
                reward = float(self.what)
        if self.what == "last observation" and (terminated or truncated):
            observation = np.full_like(observation, np.nan)
        return observation, reward, terminated, truncated, info


@pytest.fixture
def poisoned() -> type[Poisoned]:
    """Class of an environment that sends what is not finite."""
    return Poisoned

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from agents.common.replay_view import ReplayView
from agents.kernel_actor_critic import ActionKernelConfig
from agents.kernel_actor_critic.action_kernel import ActionKernel

STATES, ACTIONS = spaces.Box(-2.0, 2.0, (2,)), spaces.Box(-1.0, 1.0, (1,))


def view(count: int = 400, ends: bool = True, gamma: float = 0.9) -> ReplayView:
    """Random pairs whose reward is x₀ + 2a; one-step episodes where they end."""
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(1000, STATES, ACTIONS, device="cpu")
    for _ in range(count):
        state, following = rng.uniform(-2, 2, (2, 1, 2)).astype(np.float32)
        action = rng.uniform(-1, 1, (1, 1)).astype(np.float32)
        reward = state[:, 0] + 2 * action[:, 0]
        buffer.add(state, following, action, reward, np.array([float(ends)]), [{}])
    return ReplayView(buffer, 1, gamma)


def make(**settings: Any) -> ActionKernel:
    config = ActionKernelConfig(**{"ridge": 1e-3, "capacity": 400, **settings})
    return ActionKernel(STATES, 1, config, True, torch.device("cpu"), np.random.default_rng(0))


def zero(observations: Any, actions: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(actions))


def resting(observations: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(observations), 1), torch.zeros(len(observations))


QUERIES = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
DONE = torch.tensor([[0.5], [-0.5], [0.0]])


def test_corrections_approach_what_the_critics_miss() -> None:
    kernel = make()
    assert torch.equal(kernel.correction(QUERIES, DONE), torch.zeros(3, 1))
    kernel.refresh(view(), zero, resting, 0.0, 400, 400)
    expected = QUERIES[:, :1] + 2 * DONE
    assert torch.allclose(kernel.correction(QUERIES, DONE), expected, atol=0.3)


def test_critics_that_are_right_are_left_alone() -> None:
    kernel = make()
    kernel.refresh(view(), lambda states, actions: states[:, 0] + 2 * actions[:, 0], resting, 0.0, 400, 400)
    assert kernel.correction(QUERIES, DONE).abs().max() < 1e-4


def test_values_are_backed_up_through_the_kernel() -> None:
    """Without ends, resting for ever from random states: every sweep adds a step, and entropy counts."""
    values = []
    for sweeps in (1, 2, 3):
        kernel = make(sweeps=sweeps, ridge=1.0)
        drawn = lambda states: (torch.zeros(len(states), 1), torch.ones(len(states)))  # noqa: E731
        kernel.refresh(view(ends=False), zero, drawn, -1.0, 400, 400)
        values.append(float(kernel.head.memory.targets.mean()))
    reward = float(view().buffer.rewards[:400].mean())
    assert values[0] == pytest.approx(reward + 0.9, abs=1e-3)
    assert 0.6 < values[1] - values[0] < 0.9  # 0.81, less what the ridge keeps back
    assert 0.3 < values[2] - values[1] < values[1] - values[0]


def test_residuals_follow_moving_critics_between_choices_of_supports() -> None:
    kernel, replay = make(refresh_interval=500, rebase_interval=50), view()
    kernel.refresh(replay, zero, resting, 0.0, 400, 400)
    supports = kernel.head.memory.features.clone()
    moved = lambda states, actions: torch.full((len(actions),), 5.0)  # noqa: E731
    before = kernel.correction(QUERIES, DONE)
    kernel.refresh(replay, moved, resting, 0.0, 440, 440)
    assert torch.equal(kernel.correction(QUERIES, DONE), before)  # too early
    kernel.refresh(replay, moved, resting, 0.0, 450, 450)
    assert torch.allclose(kernel.correction(QUERIES, DONE), before - 5.0, atol=0.6)  # the ridge keeps a little back
    assert torch.equal(kernel.head.memory.features, supports)
    replay.buffer.observations[:400] += 1.0
    kernel.refresh(replay, moved, resting, 0.0, 900, 900)
    assert kernel.steps_at_rebuild == 900


def test_a_bad_transition_is_no_support_and_harms_no_other() -> None:
    clean, spoilt = make(), make()
    replay = view()
    clean.refresh(replay, zero, resting, 0.0, 400, 400)
    replay.buffer.rewards[7], replay.buffer.observations[9] = np.nan, np.inf
    spoilt.refresh(replay, zero, resting, 0.0, 400, 400)
    assert spoilt.head.memory.targets.isfinite().all()
    assert torch.allclose(spoilt.correction(QUERIES, DONE), clean.correction(QUERIES, DONE), atol=0.3)

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from agents.common.replay_view import ReplayView

OBSERVATION = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Discrete(5)


def _fill(buffer: ReplayBuffer, rows: int, ends: dict[int, str] | None = None) -> None:
    """Row i: observation i, next i + 1, reward 10^i-like distinct values; ``ends`` says where episodes end and how."""
    count = buffer.n_envs
    for i in range(rows):
        kind = (ends or {}).get(i)
        offsets = np.arange(count)[:, None] * 1000
        buffer.add(
            (offsets + i).astype(np.float32),
            (offsets + i + 1).astype(np.float32),
            np.full((count, 1), i % 5),
            np.arange(count) * 1000.0 + i,
            np.full(count, kind is not None),
            [{"TimeLimit.truncated": kind == "timeout"} for _ in range(count)],
        )


def test_n_step_returns_by_hand() -> None:
    buffer = ReplayBuffer(20, OBSERVATION, ACTION, device="cpu")
    _fill(buffer, 8, {2: "terminal", 5: "timeout"})
    steps = ReplayView(buffer, n_steps=3, gamma=0.5).n_step(np.array([0, 1, 2, 3, 4, 6, 7]))
    expected = [0 + 0.5 + 0.5, 1 + 1, 2, 3 + 2 + 1.25, 4 + 2.5, 6 + 3.5, 7]
    assert np.allclose(steps.rewards, expected)
    assert np.allclose(steps.discounts, [0, 0, 0, 0.125, 0.25, 0.25, 0.5])
    assert steps.last_slots.tolist() == [2, 2, 2, 5, 5, 7, 7]


@pytest.mark.parametrize("rows", [7, 10, 13, 25])
@pytest.mark.parametrize("n_steps", [1, 3, 5])
def test_n_step_returns_equal_sb3s(rows, n_steps, monkeypatch) -> None:
    buffer = NStepReplayBuffer(10, OBSERVATION, ACTION, device="cpu", n_steps=n_steps, gamma=0.9)
    _fill(buffer, rows, {3: "terminal", 6: "timeout", 11: "terminal", 17: "timeout", 21: "terminal"})
    view = ReplayView(buffer, n_steps, 0.9)
    slots = view.slots()
    theirs = buffer._get_samples(slots)
    ours = view.n_step(slots)
    assert np.allclose(ours.rewards, theirs.rewards.numpy().ravel(), rtol=1e-6)
    assert np.allclose(ours.discounts, (theirs.discounts * (1 - theirs.dones)).numpy().ravel(), rtol=1e-6)
    assert torch.equal(view.next_observations(ours.last_slots), theirs.next_observations)
    assert torch.equal(view.observations(slots), theirs.observations)
    assert torch.equal(view.actions(slots), theirs.actions.long().ravel())


@pytest.mark.parametrize("rows", [4, 10, 17])
def test_slots_run_from_oldest_to_newest_in_every_environment(rows) -> None:
    buffer = ReplayBuffer(20, OBSERVATION, ACTION, device="cpu", n_envs=2)
    _fill(buffer, rows)
    view = ReplayView(buffer, 3, 0.9)
    kept = np.arange(max(0, rows - 10), rows)
    expected = (kept[:, None] + np.array([0, 1000])).ravel()
    assert view.observations(view.slots()).ravel().tolist() == expected.tolist()
    assert view.observations(view.newest(2)).ravel().tolist() == expected[-4:].tolist()


def test_returns_stay_within_their_environment() -> None:
    buffer = ReplayBuffer(20, OBSERVATION, ACTION, device="cpu", n_envs=2)
    _fill(buffer, 6)
    steps = ReplayView(buffer, 2, 1.0).n_step(np.array([0, 1]))
    assert steps.rewards.tolist() == [0 + 1, 1000 + 1001]
    assert steps.last_slots.tolist() == [2, 3]


@pytest.mark.parametrize("rows", [6, 14])
def test_the_memory_saving_buffer_reads_the_same_transitions(rows) -> None:
    saving = ReplayBuffer(
        10, OBSERVATION, ACTION, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False
    )
    _fill(saving, rows)
    view = ReplayView(saving, 1, 0.9)
    observations = view.observations(view.slots()).ravel()
    assert torch.equal(view.next_observations(view.slots()).ravel(), observations + 1)
    sampled = view.observations(view.sample(500, np.random.default_rng(0))).ravel()
    assert set(sampled.tolist()) == set(observations.tolist())


def test_sampling_reaches_every_slot_and_no_other() -> None:
    buffer = ReplayBuffer(20, OBSERVATION, ACTION, device="cpu", n_envs=2)
    _fill(buffer, 4)
    slots = ReplayView(buffer, 1, 0.9).sample(1000, np.random.default_rng(0))
    assert sorted(set(slots.tolist())) == list(range(8))


def test_dict_observations_are_read_by_key() -> None:
    space = spaces.Dict({"a": OBSERVATION, "b": spaces.Box(0, 1, (2,), np.float32)})
    buffer = DictReplayBuffer(10, space, ACTION, device="cpu")
    for i in range(3):
        observation = {"a": np.full((1, 1), i, np.float32), "b": np.full((1, 2), 0.1 * i, np.float32)}
        buffer.add(observation, observation, np.array([[1]]), np.array([1.0]), np.array([False]), [{}])
    read = ReplayView(buffer, 3, 0.9).observations(np.array([2, 0]))
    assert read["a"].ravel().tolist() == [2.0, 0.0]
    assert read["b"].shape == (2, 2)


def test_a_buffer_that_makes_up_transitions_is_refused() -> None:
    class Relabelling(ReplayBuffer):
        pass

    with pytest.raises(ValueError, match="Relabelling does not allow"):
        ReplayView(Relabelling(10, OBSERVATION, ACTION, device="cpu"), 1, 0.9)


def test_a_reward_that_is_not_finite_spoils_nothing_before_its_episode() -> None:
    buffer = ReplayBuffer(20, OBSERVATION, ACTION, device="cpu")
    _fill(buffer, 5, {2: "terminal"})
    buffer.rewards[3] = np.nan
    steps = ReplayView(buffer, n_steps=3, gamma=0.5).n_step(np.array([0, 1, 2, 3, 4]))
    assert np.allclose(steps.rewards[[0, 1, 2, 4]], [1, 2, 2, 4])
    assert np.isnan(steps.rewards[3])

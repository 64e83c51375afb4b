"""No return runs on from an episode that a reset broke off into the next one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.her import HerReplayBuffer

from agents import DQK, DoubleDQN, KernelDDQN, KernelQ, KernelSAC, KernelTD3
from agents.common.cut_at_reset import cut_episodes
from agents.common.replay_view import ReplayView
from agents.kernel_qrdqn import KernelQRDQN

FIRST = 7
"""Steps of the first learning; no episode of either environment is as short."""

SETTINGS: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [8]},
    "learning_starts": 1000,
    "buffer_size": 100,
    "train_freq": 1,
    "n_steps": 5,
    "gamma": 1.0,
    "seed": 0,
    "device": "cpu",
}


def _begun(cls: Any) -> Any:
    """A model that was stopped in the middle of its first episode."""
    env = "Pendulum-v1" if cls in (KernelSAC, KernelTD3) else "CartPole-v1"
    # Algorithms write into the policy's arguments, so they are new ones each time.
    return cls("MlpPolicy", env, **{**SETTINGS, "policy_kwargs": {"net_arch": [8]}}).learn(FIRST)


@pytest.mark.parametrize("cls", [DQK, DoubleDQN, KernelDDQN, KernelQ, KernelQRDQN, KernelSAC, KernelTD3])
@pytest.mark.parametrize("how", ["learns_again", "new_env", "new_buffer"])
def test_returns_end_where_learning_resets_the_environment(cls: Any, how: str, tmp_path: Path) -> None:
    model = _begun(cls)
    if how == "new_env":
        model.set_env(gym.make(model.env.get_attr("spec")[0].id))
    if how == "new_buffer":
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.learn(6, reset_num_timesteps=how == "learns_again")
    steps = ReplayView.of(model).n_step(np.arange(FIRST))
    assert steps.last_slots.tolist() == [4, 5, 6, 6, 6, 6, 6]
    assert (steps.discounts > 0).all()
    rewards = model.replay_buffer.rewards[:, 0]
    assert steps.rewards[-2:] == pytest.approx([rewards[5] + rewards[6], rewards[6]])


@pytest.mark.parametrize("cls", [KernelDDQN, KernelSAC])
@pytest.mark.parametrize("loads", [False, True])
def test_returns_run_on_where_learning_goes_on(cls: Any, loads: bool, tmp_path: Path) -> None:
    model = _begun(cls)
    if loads:
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        model.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=False)
    model.learn(6, reset_num_timesteps=False)
    assert not model.replay_buffer.dones[FIRST - 1].any()
    assert ReplayView.of(model).n_step(np.arange(4)).last_slots.tolist() == [4, 5, 6, 7]


def _buffer(**settings: Any) -> ReplayBuffer:
    """Two environments; the episode of the first ends with the newest row, in a terminal state."""
    space = spaces.Box(-1, 1, (1,))
    buffer = ReplayBuffer(10, space, spaces.Discrete(2), device="cpu", n_envs=2, **settings)
    for last in (False, False, True):
        zeros = np.zeros((2, 1), np.float32)
        buffer.add(zeros, zeros, np.zeros(2), np.ones(2), np.array([last, False]), [{}, {}])
    return buffer


def test_what_has_ended_keeps_its_end() -> None:
    buffer = _buffer()
    cut_episodes(buffer)
    assert buffer.dones[:3].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert buffer.timeouts[:3].tolist() == [[0, 0], [0, 0], [0, 1]]


def test_a_buffer_without_the_last_state_does_not_bootstrap_from_it() -> None:
    buffer = _buffer(optimize_memory_usage=True, handle_timeout_termination=False)
    cut_episodes(buffer)
    assert buffer.dones[2].tolist() == [1, 1]
    assert not buffer.timeouts.any()


def test_a_buffer_that_does_not_handle_time_limits_notes_none() -> None:
    """It would never be cleared, and a terminal state that is stored there later would be bootstrapped from."""
    buffer = _buffer(handle_timeout_termination=False)
    cut_episodes(buffer)
    assert buffer.dones[2].tolist() == [1, 1]
    assert not buffer.timeouts.any()


def test_hindsight_takes_no_goal_from_beyond_a_reset() -> None:
    longest = 4
    env = BitFlippingEnv(n_bits=longest, max_steps=longest)
    settings = {**SETTINGS, "policy_kwargs": {"net_arch": [8]}, "n_steps": 1}
    model = DoubleDQN("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **settings)
    for _ in range(5):
        model.learn(longest + 2)
    assert model.replay_buffer.size() == 5 * (longest + 2)
    assert model.replay_buffer.ep_length.max() <= longest


def test_an_empty_buffer_is_left_alone() -> None:
    buffer = _buffer()
    buffer.reset()
    before = buffer.dones.copy()
    cut_episodes(buffer)
    assert np.array_equal(buffer.dones, before)


@pytest.mark.parametrize("cls", [DQK, DoubleDQN, KernelDDQN, KernelQ, KernelQRDQN, KernelSAC, KernelTD3])
@pytest.mark.parametrize("stops", ["callback", "exception"])
def test_returns_end_where_a_step_was_taken_and_never_stored(cls: Any, stops: str) -> None:
    """SB3 asks callbacks between the step of the environment and the storing of its transition."""

    def stop(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        if locals_["self"].num_timesteps < 2 * FIRST:
            return True
        if stops == "exception":
            raise KeyboardInterrupt
        return False

    model = _begun(cls)
    with pytest.raises(KeyboardInterrupt) if stops == "exception" else nullcontext():
        model.learn(100, reset_num_timesteps=False, callback=ConvertCallback(stop))
    assert model.replay_buffer.size() == 2 * FIRST - 1
    model.learn(6, reset_num_timesteps=False)
    assert ReplayView.of(model).n_step(np.arange(10, 13)).last_slots.tolist() == [12, 12, 12]

"""Reads an SB3 replay buffer by slot, with n-step returns for any observation space."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize

READABLE_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)

Slots = npt.NDArray[np.int64]


class NStep(NamedTuple):
    """n-step transitions that begin in given slots.

    Attributes:
        rewards: Σ_{j<h} γʲ r_j over the h ≤ n steps before the episode or the buffer ends, [m].
        discounts: γʰ, zero where the last step terminated the episode, [m].
        last_slots: slots whose next observation is the state to bootstrap from, [m].
    """

    rewards: npt.NDArray[np.float32]
    discounts: npt.NDArray[np.float32]
    last_slots: Slots


class ReplayView:
    """Addresses every stored transition by one number: slot = row · n_envs + environment.

    SB3's own n-step buffer is not available for dict observations and hides which transitions it sampled; reading by
    slot serves every observation space and lets an agent keep values per transition.

    Args:
        buffer: an SB3 ReplayBuffer, DictReplayBuffer or NStepReplayBuffer.
        n_steps: steps of a return.
        gamma: discount of one step.
        vec_normalize: normalises observations and rewards when they are read, as SB3 does on sampling.

    Raises:
        ValueError: the buffer is of another class, which may not store what it samples, or no reward is to be summed.
    """

    def __init__(
        self, buffer: ReplayBuffer, n_steps: int, gamma: float, vec_normalize: VecNormalize | None = None
    ) -> None:
        if type(buffer) not in READABLE_BUFFERS:
            names = ", ".join(cls.__name__ for cls in READABLE_BUFFERS)
            raise ValueError(
                f"the kernel reads transitions by slot, which {type(buffer).__name__} does not allow; "
                f"leave replay_buffer_class out or use one of {names}"
            )
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}, but at least 1 reward must be summed; 3 is usual")
        self.buffer, self.n_steps, self.gamma, self.vec_normalize = buffer, n_steps, gamma, vec_normalize

    @classmethod
    def of(cls, model: OffPolicyAlgorithm) -> ReplayView:
        """The replay buffer that a model learns from, with its n-step returns, discount and normalisation."""
        assert model.replay_buffer is not None
        return cls(model.replay_buffer, model.n_steps, model.gamma, model._vec_normalize_env)

    def reads(self, buffer: ReplayBuffer | None, vec_normalize: VecNormalize | None) -> bool:
        """Whether this is the view of a buffer as given statistics normalise it, and of no other."""
        return self.buffer is buffer and self.vec_normalize is vec_normalize

    @property
    def capacity(self) -> int:
        """Slots of the buffer."""
        return self.buffer.buffer_size * self.buffer.n_envs

    @property
    def size(self) -> int:
        """Filled slots."""
        return self.buffer.size() * self.buffer.n_envs

    def slots(self) -> Slots:
        """Filled slots from oldest to newest."""
        buffer = self.buffer
        rows = np.arange(buffer.size(), dtype=np.int64)
        if buffer.full:
            rows = (rows + buffer.pos) % buffer.buffer_size
            if buffer.optimize_memory_usage:
                rows = rows[1:]  # the oldest row's observation was overwritten by the newest next observation
        return (rows[:, None] * buffer.n_envs + np.arange(buffer.n_envs)).reshape(-1)

    def newest(self, rows: int) -> Slots:
        """Slots of the ``rows`` newest rows, oldest first."""
        filled = min(rows, self.buffer.size())
        last = (self.buffer.pos + np.arange(-filled, 0, dtype=np.int64)) % self.buffer.buffer_size
        return (last[:, None] * self.buffer.n_envs + np.arange(self.buffer.n_envs)).reshape(-1)

    def sample(self, count: int, rng: np.random.Generator) -> Slots:
        """Slots drawn uniformly with replacement."""
        buffer = self.buffer
        skip = int(buffer.full and buffer.optimize_memory_usage)
        rows = rng.integers(skip, buffer.size(), size=count)
        if buffer.full:
            rows = (rows + buffer.pos) % buffer.buffer_size
        if buffer.n_envs == 1:
            return rows
        return rows * buffer.n_envs + rng.integers(buffer.n_envs, size=count)

    def stored_actions(self, slots: Slots) -> npt.NDArray[np.int64]:
        """Discrete actions as the buffer holds them, [m]."""
        row, env = np.divmod(slots, self.buffer.n_envs)
        return np.asarray(self.buffer.actions[row, env, 0], dtype=np.int64)

    def actions(self, slots: Slots) -> torch.Tensor:
        """Discrete actions on the agent's device, [m]."""
        return torch.as_tensor(self.stored_actions(slots), device=self.buffer.device)

    def action_vectors(self, slots: Slots) -> torch.Tensor:
        """Continuous actions as the buffer holds them, scaled to −1 … 1, on the agent's device, [m, d_a]."""
        row, env = np.divmod(slots, self.buffer.n_envs)
        return torch.as_tensor(self.buffer.actions[row, env], dtype=torch.float32, device=self.buffer.device)

    def observations(self, slots: Slots) -> PyTorchObs:
        """Observations in which the transitions began, [m, ...], normalised as for the network."""
        row, env = np.divmod(slots, self.buffer.n_envs)
        return self._read(self.buffer.observations, row, env)

    def next_observations(self, slots: Slots) -> PyTorchObs:
        """Observations in which the transitions ended, [m, ...], normalised as for the network."""
        row, env = np.divmod(slots, self.buffer.n_envs)
        if self.buffer.optimize_memory_usage:
            return self._read(self.buffer.observations, (row + 1) % self.buffer.buffer_size, env)
        return self._read(self.buffer.next_observations, row, env)

    def n_step(self, slots: Slots) -> NStep:
        """Returns over at most ``n_steps`` steps, cut where an episode or the stored experience ends.

        A time-limit truncation ends the sum but not the value: its discount stays positive.
        """
        buffer = self.buffer
        row, env = np.divmod(slots, buffer.n_envs)
        if self.n_steps == 1:
            terminal = buffer.dones[row, env] * (1.0 - buffer.timeouts[row, env])
            rewards = self._rewards(buffer.rewards[row, env])
            return NStep(rewards, (self.gamma * (1.0 - terminal)).astype(np.float32), slots)
        window = (row[:, None] + np.arange(self.n_steps)) % buffer.buffer_size
        column = env[:, None]
        dones = buffer.dones[window, column] > 0
        ends = dones | (window == (buffer.pos - 1) % buffer.buffer_size)
        last = np.where(ends.any(axis=1), ends.argmax(axis=1), self.n_steps - 1)
        every = np.arange(len(slots))
        powers = self.gamma ** np.arange(self.n_steps)
        kept = np.arange(self.n_steps) <= last[:, None]
        # Not by a product with zero, which of a reward that is not finite makes none.
        rewards = np.where(kept, self._rewards(buffer.rewards[window, column]) * powers, 0.0).sum(axis=1)
        last_rows = window[every, last]
        terminal = dones[every, last] & (buffer.timeouts[last_rows, env] == 0)
        discounts = np.where(terminal, 0.0, self.gamma ** (last + 1))
        return NStep(rewards.astype(np.float32), discounts.astype(np.float32), last_rows * buffer.n_envs + env)

    def _rewards(self, rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.buffer._normalize_reward(rewards, self.vec_normalize)

    def _read(self, stored: Any, row: Slots, env: Slots) -> PyTorchObs:
        if isinstance(stored, dict):
            chosen: Any = {key: values[row, env] for key, values in stored.items()}
        else:
            chosen = stored[row, env]
        return obs_as_tensor(self.buffer._normalize_obs(chosen, self.vec_normalize), self.buffer.device)


def check_returns(model: OffPolicyAlgorithm) -> None:
    """Make sure that SB3's own update learns from the n-step returns that the kernel regresses.

    Raises:
        ValueError: the replay buffer sums other rewards than the model's ``n_steps`` and ``gamma`` say.
    """
    buffer = model.replay_buffer
    summed, gamma = (buffer.n_steps, buffer.gamma) if isinstance(buffer, NStepReplayBuffer) else (1, model.gamma)
    if summed != model.n_steps:
        raise ValueError(
            f"n_steps is {model.n_steps}, but SB3's update learns from a {type(buffer).__name__} that sums {summed}; "
            f"leave replay_buffer_class out, or give n_steps={summed} too"
        )
    if gamma != model.gamma:
        raise ValueError(
            f"gamma is {model.gamma}, but the {type(buffer).__name__} discounts its sums by {gamma}; "
            "leave replay_buffer_class out, or give both the same"
        )

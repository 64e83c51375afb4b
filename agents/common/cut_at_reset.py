"""Episodes that a reset of the environment breaks off, ended in the replay buffer too."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.her import HerReplayBuffer


def cut_episodes(buffer: ReplayBuffer) -> None:
    """End the stored episodes at the newest row as a time limit does, so that no return runs on into what follows.

    A buffer that saves memory loses the state to bootstrap from, and one that does not handle time limits never clears
    what is noted of them, so there they end as in a terminal state, which is how SB3 ends them.

    Args:
        buffer: the replay buffer; an empty one is left alone.
    """
    if buffer.size() == 0:
        return
    if isinstance(buffer, HerReplayBuffer):
        # It finds episodes by their lengths, and warns that it does what it is asked for.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The last trajectory in the replay buffer will be truncated")
            buffer.truncate_last_trajectory()
        return
    newest = (buffer.pos - 1) % buffer.buffer_size
    if buffer.handle_timeout_termination and not buffer.optimize_memory_usage:
        buffer.timeouts[newest] = np.where(buffer.dones[newest] > 0, buffer.timeouts[newest], 1.0)
    buffer.dones[newest] = 1.0


@contextmanager
def lent(model: BaseAlgorithm, env: VecEnv) -> Iterator[None]:
    """Play an environment that may be a model's own, which then learns on in a new episode and not where it stood.

    Args:
        model: whose stored episodes end, if it stores any, and whose environment SB3 resets before it learns on, if it
            is this one.
        env: what is reset and played meanwhile.
    """
    try:
        yield
    finally:
        own = model.get_env()
        if own is not None and not _copies(own).isdisjoint(_copies(env)):
            model._last_obs = None
            if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
                cut_episodes(model.replay_buffer)


def _copies(env: VecEnv) -> set[int]:
    """Identities of the environments inside all wrappers."""
    base = env.unwrapped
    return {id(copy.unwrapped) for copy in (base.envs if isinstance(base, DummyVecEnv) else [base])}


class CutAtReset(OffPolicyAlgorithm):
    """Mixed in before one of SB3's algorithms, whose n-step returns then end where learning resets the environment."""

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a replay buffer as SB3 does.

        Args:
            path: file name or an open binary file.
            truncate_last_traj: end the episodes that the buffer ends with; false where learning goes on in them.
        """
        super().load_replay_buffer(path, truncate_last_traj)
        assert self.replay_buffer is not None
        if truncate_last_traj:
            cut_episodes(self.replay_buffer)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Collect as SB3 does; the environment is reset before learning goes on after a rollout that was broken off.

        A callback that stops learning, or an exception, comes between a step of the environment and its transition,
        which is never stored. What SB3 would go on from lies a step behind, perhaps in the episode before.
        """
        completed = False
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
            completed = rollout.continue_training
            return rollout
        finally:
            if not completed:
                self._last_obs = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        # SB3 resets on the same two conditions.
        if reset_num_timesteps or self._last_obs is None:
            self._break_off()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _break_off(self) -> None:
        """Called before learning resets the environment, whose episodes go no further."""
        if self.replay_buffer is not None:
            cut_episodes(self.replay_buffer)

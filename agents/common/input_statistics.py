"""When a network's input statistics are taken from the replay buffer, and from which of its rows."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from agents.common.normalized_network import NormalizedDQNPolicy

GROWTH = 0.1
"""Share by which the stored rows have to grow before the statistics are taken anew."""

SAMPLE = 10_000
"""Rows at most from which they are taken, evenly spaced."""


class InputStatistics:
    """Keeps the input statistics of a :class:`NormalizedDQNPolicy` in step with a replay buffer.

    Call :meth:`renew` before gradient steps. The statistics settle as the buffer grows: from n rows to the capacity it
    takes some 10 ln(capacity / n) renewals.
    """

    def __init__(self) -> None:
        self.rows = 0

    def renew(self, policy: BasePolicy, buffer: ReplayBuffer, vec_normalize: VecNormalize | None) -> None:
        """Take statistics of the stored observations when enough are new; other policies have none.

        Observations that are not finite are left out.

        Args:
            policy: whose networks read the observations.
            buffer: where they are stored.
            vec_normalize: normalises them before the networks do, if anything does.
        """
        stored = buffer.size()
        if not isinstance(policy, NormalizedDQNPolicy) or not policy.standardises:
            return
        if self.rows <= stored < (1.0 + GROWTH) * self.rows:
            return
        rows = np.linspace(0, stored - 1, min(stored, SAMPLE)).astype(np.int64)
        observations = buffer._normalize_obs(buffer.observations[rows].reshape(-1, *buffer.obs_shape), vec_normalize)
        assert isinstance(observations, np.ndarray)
        finite = np.isfinite(observations).all(axis=tuple(range(1, observations.ndim)))
        if finite.any():
            policy.fit_inputs(torch.as_tensor(observations[finite], device=buffer.device))
            self.rows = stored

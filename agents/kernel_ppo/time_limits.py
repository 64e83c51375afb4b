"""Where a rollout's episodes were cut by a time limit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class Cuts(NamedTuple):
    """States in which episodes were cut.

    Attributes:
        rows: steps of the rollout that led there, [n].
        copies: copies of the environment, [n].
        observations: as the policy sees them, [n, ...].
    """

    rows: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    observations: PyTorchObs


class TimeLimits(VecEnvWrapper):
    """Around the environment of one rollout: notes what PPO bootstraps from where it adds m(s) to a reward.

    Args:
        venv: the environment as PPO steps it, normalisation included.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps = 0
        self.found: list[tuple[int, int, Any]] = []
        """Row, copy and observation of every cut so far."""

    def reset(self) -> VecEnvObs:
        """As the environment."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """As the environment."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for copy in np.flatnonzero(dones):
            last = infos[copy].get("terminal_observation")
            # As OnPolicyAlgorithm.collect_rollouts asks.
            if last is not None and infos[copy].get("TimeLimit.truncated", False):
                self.found.append((self.steps, int(copy), last))
        self.steps += 1
        return observations, rewards, dones, infos

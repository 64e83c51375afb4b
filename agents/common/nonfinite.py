"""Guard against rewards, observations and losses that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

Observation = npt.NDArray[np.generic] | dict[str, npt.NDArray[np.generic]]


class NonFiniteError(RuntimeError):
    """Training cannot go on because every update meets values that are not finite."""


def env_name(env: VecEnv) -> str:
    """The id of an environment, where it has one."""
    specs = env.get_attr("spec", indices=0) if env.has_attr("spec") else [None]
    return specs[0].id if specs[0] is not None else type(env).__name__


@dataclass
class NonFiniteGuard:
    """Counts skipped updates, remembers where the first bad value came from, and stops a hopeless run.

    One bad transition poisons only the minibatches that draw it, so skips are allowed; many in a row mean that nothing
    is learned any more.
    """

    complaint: str = "updates in a row had a loss or gradient that is not finite"
    """What is said of skipped updates when the run stops."""

    limit: int = 100
    """Consecutive skipped updates after which the run stops."""

    skipped: int = 0
    """Updates skipped so far."""

    consecutive: int = 0
    """Updates skipped since the last good one."""

    transitions: int = 0
    """Transitions with a reward that was not finite, or such an observation at either end."""

    source: str = "no reward or observation was at fault: the loss itself diverged (try a smaller learning rate)"
    """Where the first bad value came from."""

    def check_transition(
        self, step: int, env: VecEnv, reward: npt.NDArray[np.generic], observations: Sequence[Observation]
    ) -> None:
        """Look at one vectorised transition.

        Args:
            step: environment steps so far.
            env: where it comes from, whose name is asked for only when it is needed.
            reward: one per environment, [n_envs].
            observations: in which it began and ended, one per environment, [n_envs, ...], or a dict of such arrays.
        """
        bad_reward = ~np.isfinite(reward)
        bad = np.logical_or.reduce([bad_reward, *(nonfinite_rows(seen, len(reward)) for seen in observations)])
        if not bad.any():
            return
        if self.transitions == 0:
            index = int(bad.argmax())
            what = f"reward {reward[index]}" if bad_reward[index] else "an observation that is not finite"
            self.source = f"first seen at step {step}: {what} from environment {index} of {env_name(env)}"
        self.transitions += int(bad.sum())

    def check_update(self, step: int, finite: bool) -> bool:
        """Count one update.

        Args:
            step: environment steps so far.
            finite: whether loss and gradient norm are finite.

        Returns:
            Whether the update may be applied.

        Raises:
            NonFiniteError: ``limit`` updates in a row were skipped.
        """
        if finite:
            self.consecutive = 0
            return True
        self.skipped += 1
        self.consecutive += 1
        if self.consecutive >= self.limit:
            self.consecutive = 0  # learning may be called again
            raise NonFiniteError(
                f"stopped at step {step}: {self.limit} {self.complaint}; {self.source}. The parameters are unharmed."
            )
        return False


def reached(
    observation: Observation, dones: npt.NDArray[np.generic], infos: Sequence[Mapping[str, Any]]
) -> Observation:
    """Observations in which a transition ended, where SB3 gives those of the next episode.

    Args:
        observation: one per environment, [n_envs, ...], or a dict of such arrays.
        dones: where an episode ended, [n_envs].
        infos: those of the step, which hold ``terminal_observation`` there.
    """
    if not dones.any():
        return observation
    parts = observation if isinstance(observation, dict) else {"": observation}
    ended = {key: part.copy() for key, part in parts.items()}
    for row in np.flatnonzero(dones).tolist():
        last = infos[row].get("terminal_observation", {})
        for key, value in (last if isinstance(last, dict) else {"": last}).items():
            ended[key][row] = value
    return ended if isinstance(observation, dict) else ended[""]


def nonfinite_rows(observation: Observation, rows: int) -> npt.NDArray[np.bool_]:
    """Which environments sent an observation with NaN or infinite entries, [n_envs].

    Args:
        observation: one per environment, [n_envs, ...], or a dict of such arrays.
        rows: n_envs.
    """
    bad = np.zeros(rows, dtype=bool)
    for array in observation.values() if isinstance(observation, dict) else (observation,):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad |= ~np.isfinite(array).reshape(rows, -1).all(axis=1)
    return bad

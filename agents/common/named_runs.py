"""TensorBoard runs named after the algorithm that made them, not after the one of SB3 that it extends."""

from __future__ import annotations

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback


class NamedRuns(BaseAlgorithm):
    """Mixed in before one of SB3's algorithms, whose ``learn`` gives its own name when the user gives none."""

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        inherited = {base.__name__ for base in type(self).__mro__}
        name = type(self).__name__ if tb_log_name in inherited else tb_log_name
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, name, progress_bar)

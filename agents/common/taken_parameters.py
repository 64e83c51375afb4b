"""What an algorithm does once it has taken over parameters."""

from __future__ import annotations

from abc import abstractmethod

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TensorDict


class TakenParameters(BaseAlgorithm):
    """Mixed in before an algorithm that keeps something made with the parameters of until now."""

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over parameters as SB3 does; what was made with the old ones follows."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._after_new_parameters()

    @abstractmethod
    def _after_new_parameters(self) -> None:
        """Bring along what the parameters of until now were used for."""

"""Target critics whose values a kernel corrects."""

from __future__ import annotations

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from agents.kernel_actor_critic.action_kernel import ActionKernel
from skrl.shapes import Float, Tensor


class CorrectedCritic(nn.Module):
    """Stands where SB3's algorithms ask the target critics: each value plus R(s, a).

    All critics get the same correction, so that the smallest stays the smallest. Its parameters are the network's own,
    which polyak averaging moves.

    Args:
        network: the target critics.
        kernel: R.
    """

    def __init__(self, network: ContinuousCritic, kernel: ActionKernel) -> None:
        super().__init__()
        self.network, self.kernel = network, kernel

    def forward(self, observations: PyTorchObs, actions: Tensor) -> tuple[Float[Tensor, "batch 1"], ...]:
        """Corrected values of every critic, [B, 1] each."""
        correction = self.kernel.correction(observations, actions)
        return tuple(values + correction for values in self.network(observations, actions))

    def smallest(self, observations: PyTorchObs, actions: Tensor) -> Float[Tensor, " batch"]:
        """The network's smallest value without the correction, [B]."""
        return torch.cat(self.network(observations, actions), dim=1).amin(1)

"""A network as it was, after its parameters have moved on."""

from __future__ import annotations

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from agents.kernel_ddqn.kernel_network import KernelNetwork, state_without_head
from skrl.shapes import Float, Tensor
from skrl.value_heads import NetworkFreeHead


class PastNetwork:
    """The prior mean of a network by the parameters that it had when they were last kept.

    Values that a kernel corrects are those of the network that its residuals are relative to. A target update replaces
    that network, and what the old residuals add to the new one counts twice what it has learned of them.

    Args:
        network: whose parameters move; its head and its features are not kept.
    """

    def __init__(self, network: KernelNetwork) -> None:
        self.network = network
        self._prior = _PriorMean(network)
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the parameters of now, and what a normalisation layer has seen; none of a network that nobody asks."""
        if isinstance(self.network.head, NetworkFreeHead):
            return
        self._kept = {f"network.{name}": value.clone() for name, value in state_without_head(self.network).items()}

    @torch.no_grad()
    def prior_mean(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values that the kept network predicts without its head, [B, A]; that of now until one is kept."""
        values: Tensor = torch.func.functional_call(self._prior, self._kept, (obs,))
        return values


class _PriorMean(nn.Module):
    """A network whose forward pass leaves its head out."""

    def __init__(self, network: KernelNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        return self.network.prior_mean(obs)

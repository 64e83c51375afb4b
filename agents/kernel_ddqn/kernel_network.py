"""A value head beside the network of a deep Q-learning policy, whatever that network predicts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from typing_extensions import Self

from agents.common.feature_map import FeatureMap
from agents.common.features import ObservationFeatures
from agents.common.lengthscale import separates
from agents.common.penultimate_features import PenultimateFeatures
from agents.common.schema import ConfigError
from agents.kernel_ddqn.kernel_config import KernelConfig
from skrl.shapes import Float, Tensor
from skrl.value_heads import HEADS, NetworkFreeHead

OF_THE_HEAD = ("head.", "feature_map.")
COUNTERS = ("fallbacks", "jitters")
"""Buffers of a head that count its own queries."""


class KernelNetwork(BasePolicy):
    """Mixed in before a network m of SB3, whose action values a head corrects: Q(s, ·) = m(s) + R(s, ·).

    In training mode (SB3 enters it for the gradient steps) the head is off, as dropout is in evaluation mode: the
    network regresses on targets that contain the correction, and so absorbs it. In evaluation mode (acting, target
    values) the correction is added. With an empty memory it is exactly zero.

    Args:
        kernel: settings of the head.
        corrects: false leaves R out of the values in evaluation mode too; the exploration bonus stays.
        **kwargs: everything that the network takes.

    Raises:
        ConfigError: the features are those of the last hidden layer, and there is none.
    """

    action_space: spaces.Discrete
    net_arch: list[int]
    features_dim: int

    def __init__(self, *, kernel: KernelConfig, corrects: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel, self.corrects = kernel, corrects
        # What exploring adds, written by the algorithm as its schedule says; a policy alone is greedy, as SB3's are.
        self.bonus = 0.0
        self.feature_map = self._make_feature_map()
        self.head = kernel.make_head(int(self.action_space.n), self.feature_map.dim, HEADS[kernel.head])

    @property
    @abstractmethod
    def layers(self) -> nn.Sequential:
        """Everything behind the features extractor, the last layer included."""

    @abstractmethod
    def network_values(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values that the network predicts, [B, A]."""

    def trunk(self) -> nn.Sequential:
        """The network up to its last hidden layer, made of the network's own modules."""
        return nn.Sequential(self.features_extractor, *list(self.layers)[:-1])

    def prior_mean(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values m(s) of the network alone, [B, A]; zero when the head stands without a network."""
        if isinstance(self.head, NetworkFreeHead):
            first = next(iter(obs.values())) if isinstance(obs, dict) else obs
            return torch.zeros(len(first), self.head.memory.sets, device=first.device)
        return self.network_values(obs)

    def exploring_values(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """What exploring maximises, [B, A]: action values plus a bonus in standard deviations of the posterior.

        These are large for actions unlike all remembered ones. Optimism adds as many as :attr:`bonus` says; where it
        looks ahead, corrections are those of values that got the bonus wherever they bootstrapped. Thompson sampling
        (W. R. Thompson, 1933) multiplies them by normal draws, new for every state and action.
        """
        features, q_values = self.feature_map(obs), self.prior_mean(obs)
        sampled = self.kernel.exploration == "thompson"
        bonus = self.bonus * torch.randn_like(q_values) if sampled else self.bonus
        if self.corrects or self.kernel.exploration == "lookahead":
            return self.head.optimistic(features, q_values, bonus)
        return q_values + (bonus * self.head.deviation(features)).to(q_values.dtype)

    @torch.no_grad()
    def copy_kernel(self, other: Self) -> None:
        """Take over the other network's supports and features; SB3's target update copies neither."""
        for mine, theirs in ((self.head, other.head), (self.feature_map, other.feature_map)):
            for (name, buffer), source in zip(mine.named_buffers(), theirs.buffers(), strict=True):
                if name not in COUNTERS:
                    buffer.copy_(source)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": self.kernel, "corrects": self.corrects}

    def _make_feature_map(self) -> FeatureMap:
        kernel, observation, penultimate = self.kernel, None, None
        if kernel.features != "penultimate":
            observation = ObservationFeatures(
                self.observation_space, kernel.projection_dim, self.normalize_images, tabular=separates(kernel)
            )
        if kernel.features != "observation":
            trunk, width = self.trunk(), self.net_arch[-1] if self.net_arch else self.features_dim
            if next(trunk.parameters(), None) is None:
                raise ConfigError(
                    f"kernel.features is {kernel.features}, but the network has no hidden layer; "
                    "give net_arch at least one, or leave features out"
                )
            penultimate = PenultimateFeatures(
                self.observation_space, trunk, width, kernel.projection_dim, self.normalize_images
            )
        return FeatureMap(observation, penultimate)


def state_without_head(network: Any) -> dict[str, Tensor]:
    """Parameters and buffers of a network by name, but for those of a head and its features, if it has them."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith(OF_THE_HEAD)}

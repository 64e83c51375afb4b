"""Deep Q-network policies whose action values a kernel head corrects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from agents.common.feature_map import FeatureMap
from agents.common.features import ObservationFeatures
from agents.common.penultimate_features import PenultimateFeatures
from agents.common.schema import ConfigError
from agents.kernel_ddqn.kernel_config import KernelConfig
from skrl.shapes import Float, Tensor
from skrl.value_heads import HEADS, NetworkFreeHead


class KernelQNetwork(QNetwork):
    """A Q-network m with a value head: Q(s, ·) = m(s) + R(s, ·).

    In training mode (SB3 enters it for the gradient steps) the head is off, as dropout is in evaluation mode: the
    network regresses on targets that contain the correction, and so absorbs it. In evaluation mode (acting, target
    values) the correction is added. With an empty memory it is exactly zero.

    Args:
        kernel: settings of the head.
        corrects: false leaves R out of the values in evaluation mode too; the exploration bonus stays.
        **kwargs: everything :class:`stable_baselines3.dqn.policies.QNetwork` takes.

    Raises:
        ConfigError: the features are those of the last hidden layer, and there is none.
    """

    def __init__(self, *, kernel: KernelConfig, corrects: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel, self.corrects = kernel, corrects
        # What exploring adds; an algorithm with a schedule writes it.
        self.bonus = kernel.exploration_bonus
        actions = int(self.action_space.n)
        self.feature_map = self._make_feature_map()
        self.head = kernel.make_head(actions, self.feature_map.dim, HEADS[kernel.head])

    def trunk(self) -> nn.Sequential:
        """The network up to its last hidden layer, made of the network's own modules."""
        return nn.Sequential(self.features_extractor, *list(self.q_net)[:-1])

    def prior_mean(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values m(s) of the network alone, [B, A]; zero when the head stands without a network."""
        if isinstance(self.head, NetworkFreeHead):
            first = next(iter(obs.values())) if isinstance(obs, dict) else obs
            return torch.zeros(len(first), self.head.memory.sets, device=first.device)
        return super().forward(obs)

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values, [B, A]: the network's in training mode, the corrected ones in evaluation mode."""
        q_values = self.prior_mean(obs)
        if self.training or not self.corrects:
            return q_values
        return cast(Tensor, self.head(self.feature_map(obs), q_values))

    def optimistic(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values plus the exploration bonus, which is large for actions unlike all remembered ones, [B, A]."""
        features, q_values = self.feature_map(obs), self.prior_mean(obs)
        if self.corrects:
            return self.head.optimistic(features, q_values, self.bonus)
        return q_values + (self.bonus * self.head.deviation(features)).to(q_values.dtype)

    @torch.no_grad()
    def copy_kernel(self, other: KernelQNetwork) -> None:
        """Take over the other network's supports and features; SB3's target update copies neither."""
        for mine, theirs in ((self.head, other.head), (self.feature_map, other.feature_map)):
            for buffer, source in zip(mine.buffers(), theirs.buffers(), strict=True):
                buffer.copy_(source)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": self.kernel, "corrects": self.corrects}

    def _make_feature_map(self) -> FeatureMap:
        kernel, observation, penultimate = self.kernel, None, None
        if kernel.features != "penultimate":
            observation = ObservationFeatures(self.observation_space, kernel.projection_dim, self.normalize_images)
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


class KernelDQNPolicy(DQNPolicy):
    """SB3's :class:`DQNPolicy` with a kernel value head in the online and the target network.

    Works with SB3's own ``DQN`` too: add :class:`~agents.kernel_ddqn.callback.KernelRefreshCallback`, which keeps the
    memory fresh. Without it the memory stays empty and the policy behaves exactly as ``DQNPolicy``.

    Args:
        observation_space: vector, image or dict space.
        action_space: discrete.
        lr_schedule: learning rate over the remaining progress.
        kernel: settings of the head, as a :class:`KernelConfig` or a mapping of some of its fields.
        **kwargs: everything ``DQNPolicy`` takes.
    """

    q_net: KernelQNetwork
    q_net_target: KernelQNetwork

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        kernel: KernelConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Set first: the parent's constructor builds the networks.
        self.kernel = kernel if isinstance(kernel, KernelConfig) else KernelConfig.from_mapping(kernel or {})
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        # The online network acts, the target network gives the targets of SB3's own DQN.
        self.q_net.corrects = self.kernel.applies_to != "targets"
        self.q_net_target.corrects = self.kernel.applies_to != "acting"
        self.set_training_mode(False)

    def make_q_net(self) -> KernelQNetwork:
        """One network with its head."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return KernelQNetwork(kernel=self.kernel, **arguments).to(self.device)

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        """Greedy actions, [B]; by optimistic values when exploring."""
        if deterministic or self.q_net.bonus == 0.0:
            return super()._predict(obs, deterministic=deterministic)
        return self.q_net.optimistic(obs).argmax(dim=1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": asdict(self.kernel)}


class KernelCnnPolicy(KernelDQNPolicy):
    """:class:`KernelDQNPolicy` for images: the features extractor is ``NatureCNN`` unless another is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class KernelMultiInputPolicy(KernelDQNPolicy):
    """:class:`KernelDQNPolicy` for dict observations: ``CombinedExtractor`` unless another extractor is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)

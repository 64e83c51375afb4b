"""Deep Q-network policies with learned Sparse Kernels inside their networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import DQNPolicy

from agents.common.extractors import ReadsDicts, ReadsPictures
from agents.dqk.perturbation_config import PerturbationConfig
from agents.dqk.perturbed_q_network import PerturbedQNetwork


class DQKPolicy(DQNPolicy):
    """SB3's :class:`DQNPolicy` whose networks are :class:`PerturbedQNetwork`.

    Args:
        observation_space: vector, image or dict space.
        action_space: discrete.
        lr_schedule: learning rate over the remaining progress.
        kernel: settings of the kernel, as a :class:`PerturbationConfig` or a mapping of some of its fields.
        **kwargs: everything ``DQNPolicy`` takes.

    Raises:
        ConfigError: a setting of the kernel is unknown, of the wrong type or out of range.
    """

    q_net: PerturbedQNetwork
    q_net_target: PerturbedQNetwork

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        kernel: PerturbationConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Set first: the parent's constructor builds the networks.
        self.kernel = PerturbationConfig.read(kernel)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_q_net(self) -> PerturbedQNetwork:
        """One network with its kernel."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return PerturbedQNetwork(kernel=self.kernel, **arguments).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": asdict(self.kernel)}


class DQKCnnPolicy(ReadsPictures, DQKPolicy):
    """:class:`DQKPolicy` for images: the features extractor is ``NatureCNN`` unless another is given."""


class DQKMultiInputPolicy(ReadsDicts, DQKPolicy):
    """:class:`DQKPolicy` for dict observations: ``CombinedExtractor`` unless another extractor is given."""

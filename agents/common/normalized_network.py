"""Q-networks that standardise what they read and normalise what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from skrl.shapes import Float, Tensor

CLIP = 10.0
"""Standard deviations beyond which an input is cut, as in SB3's VecNormalize."""

MIN_SCALE = 1e-6
"""Standard deviations below which an input counts as constant."""


class NormalizedQNetwork(QNetwork):
    """A Q-network whose inputs have mean 0 and deviation 1, and whose hidden layers are normalised.

    Without it, a coordinate in small units (the velocity of MountainCar-v0, ±0.07) is all but invisible to the first
    layer, and values beyond the data grow without bound. Both in the manner of H. Lee et al., *SimBa: Simplicity Bias
    for Scaling Up Parameters in Deep Reinforcement Learning*, 2025; the bound that layer normalisation puts on
    extrapolated values is from P. Ball et al., *Efficient Online Reinforcement Learning with Offline Data*, 2023.

    New statistics change no value: the first layer is rescaled along with them, as H. van Hasselt et al., *Learning
    Values Across Many Orders of Magnitude*, 2016, rescale the last one. Only the first statistics replace the identity.

    Args:
        normalize_inputs: standardise observations that are boxes of floats and reach the first layer as they are;
            others (categories, pictures, what a features extractor makes of them) are left alone.
        layer_norm: normalise every hidden layer before its activation.
        **kwargs: everything :class:`stable_baselines3.dqn.policies.QNetwork` takes.
    """

    input_mean: Tensor
    input_scale: Tensor
    inputs_known: Tensor

    def __init__(self, *, normalize_inputs: bool, layer_norm: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalization = {"normalize_inputs": normalize_inputs, "layer_norm": layer_norm}
        if layer_norm:
            actions = int(self.action_space.n)
            layers = create_mlp(
                self.features_dim, actions, self.net_arch, self.activation_fn, post_linear_modules=[nn.LayerNorm]
            )
            self.q_net = nn.Sequential(*layers)
        flat = isinstance(self.features_extractor, FlattenExtractor)
        self.standardises = normalize_inputs and flat and has_real_numbers(self.observation_space)
        width = self.features_dim if self.standardises else 0
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_scale", torch.ones(width))
        self.register_buffer("inputs_known", torch.zeros((), dtype=torch.bool))

    def extract_features(
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor
    ) -> Float[Tensor, "batch dim"]:
        """What the first layer reads, [B, d]."""
        features = super().extract_features(obs, features_extractor)
        if not self.standardises:
            return features
        return ((features - self.input_mean) / self.input_scale).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def set_input_statistics(self, mean: Float[Tensor, " dim"], scale: Float[Tensor, " dim"]) -> None:
        """Standardise by other statistics from now on, without changing the network's values.

        Args:
            mean: subtracted from every observation, [d].
            scale: positive, divides the difference, [d].
        """
        first = next(layer for layer in self.q_net if isinstance(layer, nn.Linear))
        shift = torch.where(self.inputs_known, (mean - self.input_mean) / self.input_scale, 0.0)
        stretch = torch.where(self.inputs_known, scale / self.input_scale, 1.0)
        first.bias.add_(first.weight @ shift)
        first.weight.mul_(stretch)
        self.input_mean.copy_(mean)
        self.input_scale.copy_(scale)
        self.inputs_known.fill_(True)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.normalization}


class NormalizedDQNPolicy(DQNPolicy):
    """SB3's :class:`DQNPolicy` with a :class:`NormalizedQNetwork` as online and as target network.

    The statistics of the inputs come from whoever trains: until :meth:`fit_inputs` is called inputs stay as they are.

    Args:
        observation_space: vector, image or dict space.
        action_space: discrete.
        lr_schedule: learning rate over the remaining progress.
        normalize_inputs: see :class:`NormalizedQNetwork`.
        layer_norm: see :class:`NormalizedQNetwork`.
        **kwargs: everything ``DQNPolicy`` takes.
    """

    q_net: NormalizedQNetwork
    q_net_target: NormalizedQNetwork

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        normalize_inputs: bool = True,
        layer_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        # Set first: the parent's constructor builds the networks.
        self.normalization = {"normalize_inputs": normalize_inputs, "layer_norm": layer_norm}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @property
    def standardises(self) -> bool:
        """Whether the networks have any use for statistics of their inputs."""
        return self.q_net.standardises

    def make_q_net(self) -> NormalizedQNetwork:
        """One network."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return NormalizedQNetwork(**self.normalization, **arguments).to(self.device)

    @torch.no_grad()
    def fit_inputs(self, observations: Float[Tensor, "batch ..."]) -> None:
        """Standardise inputs by mean and deviation of these observations, in both networks; no value changes.

        Args:
            observations: a sample of those that the networks will read, [B, ...].
        """
        flat = observations.flatten(1).float()
        deviation, mean = torch.std_mean(flat, dim=0, correction=0)
        scale = torch.where(deviation > MIN_SCALE, deviation, 1.0)
        for network in (self.q_net, self.q_net_target):
            network.set_input_statistics(mean, scale)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.normalization}


class NormalizedCnnPolicy(NormalizedDQNPolicy):
    """:class:`NormalizedDQNPolicy` for images: the features extractor is ``NatureCNN`` unless another is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class NormalizedMultiInputPolicy(NormalizedDQNPolicy):
    """:class:`NormalizedDQNPolicy` for dicts: ``CombinedExtractor`` unless another extractor is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)


def has_real_numbers(space: spaces.Space[Any]) -> bool:
    """Whether observations are real numbers in units of their own: a box of floats, and no picture."""
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and not is_image_space(space)

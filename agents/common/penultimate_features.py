"""Features that a network has learned, held still while it learns on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from typing_extensions import Self

from agents.common.features import random_projection
from skrl.shapes import Float, Tensor


class PenultimateFeatures(nn.Module):
    """Activations of a network's last hidden layer, by a frozen copy of it; projected when wide.

    Neighbours of replayed states are cached until the next choice of supports, so the features must not move before:
    the copy takes over the network's weights in :meth:`freeze` alone. They are buffers: saved with the rest, and seen
    by no optimiser and no target update.

    Args:
        observation_space: any space that SB3 preprocesses, dict spaces included.
        trunk: the network up to its last hidden layer; copied.
        width: activations of that layer.
        projection_dim: more activations than this are mapped to this many, as wide observations are.
        normalize_images: divide image channels by 255, as the network does.
    """

    projection: Tensor | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        trunk: nn.Module,
        width: int,
        projection_dim: int,
        normalize_images: bool = True,
    ) -> None:
        super().__init__()
        self.observation_space, self.normalize_images = observation_space, normalize_images
        self.trunk = _without_parameters(trunk)
        self.dim = min(width, projection_dim)
        self.register_buffer("projection", random_projection(width, projection_dim), persistent=False)
        self.train(False)

    def raw(self, observations: PyTorchObs) -> Float[Tensor, "batch dim"]:
        """Activations of the frozen copy, projected, [B, d]."""
        prepared = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        activations: Tensor = self.trunk(prepared)
        return activations if self.projection is None else activations @ self.projection

    @torch.no_grad()
    def freeze(self, trunk: nn.Module) -> None:
        """Take over the present weights of a network of the same form."""
        self.trunk.load_state_dict(trunk.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the network around does: dropout would move the features."""
        return super().train(False)


def _without_parameters(module: nn.Module) -> nn.Module:
    """A copy with buffers in place of all parameters, by the same names."""
    frozen = copy.deepcopy(module)
    for part in frozen.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return frozen

"""Fixed features of an observation."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from skrl.shapes import Float, Tensor

PROJECTION_SEED = 0
MOST_NUMBERS = 4096
"""States beyond which a search in single precision would take neighbouring numbers for one."""


def is_numbered(space: spaces.Space[Any]) -> bool:
    """Whether states are numbered, and by no more than ``MOST_NUMBERS``."""
    return isinstance(space, spaces.Discrete) and bool(space.n <= MOST_NUMBERS)


class ObservationFeatures(nn.Module):
    """Flatten, project when wide.

    The features do not depend on learned weights, so that neighbours of replayed states stay valid while the network
    learns. Wide observations (images) go through a fixed Gaussian random projection, which keeps distances up to a
    factor (Johnson and Lindenstrauss, 1984) and served episodic control on Atari (C. Blundell et al., *Model-Free
    Episodic Control*, 2016).

    Args:
        observation_space: any space that SB3 preprocesses, dict spaces included.
        projection_dim: observations with more entries are mapped to this many.
        normalize_images: divide image channels by 255, as the network does.
        tabular: where states are numbered (see :func:`is_numbered`) give the number itself, to be told apart and no
            more; see :attr:`gap`.
    """

    projection: Tensor | None

    gap: float | None
    """Distance between the features of neighbouring numbers of states, which says nothing of how alike they are; None
    where distances between features mean something."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        projection_dim: int,
        normalize_images: bool = True,
        tabular: bool = False,
    ) -> None:
        super().__init__()
        self.observation_space, self.normalize_images = observation_space, normalize_images
        self.gap = 1.0 if tabular and is_numbered(observation_space) else None
        width = 1 if self.gap else get_flattened_obs_dim(observation_space)
        self.dim = min(width, projection_dim)
        # Regenerated from its seed, so it need not be in every checkpoint.
        self.register_buffer("projection", random_projection(width, projection_dim), persistent=False)

    def raw(self, observations: PyTorchObs) -> Float[Tensor, "batch dim"]:
        """Flattened and projected observations, [B, d]."""
        if self.gap:
            assert isinstance(observations, Tensor)
            assert isinstance(self.observation_space, spaces.Discrete)
            return (observations - int(self.observation_space.start)).reshape(len(observations), 1).float()
        prepared = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        # The order of the space, not of the caller's dict, decides which column is which.
        keys = self.observation_space.spaces if isinstance(self.observation_space, spaces.Dict) else ()
        parts = [prepared[key] for key in keys] if isinstance(prepared, dict) else [prepared]
        flat = torch.cat([part.flatten(1).float() for part in parts], dim=1)
        return flat if self.projection is None else flat @ self.projection


def random_projection(width: int, projection_dim: int) -> Float[Tensor, "width projection_dim"] | None:
    """A fixed Gaussian map of ``width`` numbers to ``projection_dim``, [w, d]; none where they are no more."""
    if width <= projection_dim:
        return None
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    projection: Tensor = torch.randn(width, projection_dim, generator=generator) / projection_dim**0.5
    return projection

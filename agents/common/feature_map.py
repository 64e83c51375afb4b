"""The space in which a value head measures distances."""

from __future__ import annotations

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from agents.common.features import ObservationFeatures
from agents.common.penultimate_features import PenultimateFeatures
from skrl.shapes import Bool, Float, Tensor

MIN_SCALE = 1e-6


def standardisation(
    raw: Float[Tensor, "batch dim"],
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"], Bool[Tensor, " dim"]]:
    """What to subtract from features and what to divide them by, so that each has mean 0 and deviation 1.

    Args:
        raw: features, [B, d].

    Returns:
        Means, standard deviations with 1 for an entry that never varies, and which entries vary, [d] each.
    """
    deviation = raw.std(0, correction=0)
    varies = deviation > MIN_SCALE
    return raw.mean(0), torch.where(varies, deviation, 1.0), varies


class FeatureMap(nn.Module):
    """Raw features of an observation, standardised by the statistics of those in the replay buffer.

    Args:
        observation: features that are fixed.
        penultimate: features that the network learns; one of the two may be left out. Beside each other both contribute
            equally to squared distances, however many entries they have.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, observation: ObservationFeatures | None, penultimate: PenultimateFeatures | None) -> None:
        super().__init__()
        self.observation, self.penultimate = observation, penultimate
        self.dims = [part.dim for part in (observation, penultimate) if part is not None]
        self.dim = sum(self.dims)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    @property
    def gap(self) -> Float[Tensor, ""] | None:
        """Distance between the features of neighbouring numbers of states; None where distances mean something."""
        gap = None if self.observation is None else self.observation.gap
        return None if gap is None else gap / self.scale[0]

    @property
    def is_learned(self) -> bool:
        """Whether :meth:`freeze` changes the features of an observation."""
        return self.penultimate is not None

    def freeze(self, trunk: nn.Module) -> None:
        """Take over what the network has learned; nothing where the features are fixed."""
        if self.penultimate is not None:
            self.penultimate.freeze(trunk)

    def raw(self, observations: PyTorchObs) -> Float[Tensor, "batch dim"]:
        """Features before standardisation, [B, d]."""
        parts = [part.raw(observations) for part in (self.observation, self.penultimate) if part is not None]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def standardise(self, raw: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Features from raw ones, by the statistics of the last :meth:`fit`, [B, d]."""
        return (raw - self.mean) / self.scale

    def forward(self, observations: PyTorchObs) -> Float[Tensor, "batch dim"]:
        """Features of a batch of observations, [B, d]."""
        return self.standardise(self.raw(observations))

    @torch.no_grad()
    def fit(self, raw: Float[Tensor, "batch dim"]) -> None:
        """Take mean and standard deviation from raw features; an entry that never varies keeps scale 1.

        Two groups beside each other are besides divided by the root of how many entries vary in them.
        """
        mean, scale, varies = standardisation(raw)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        if len(self.dims) > 1:
            groups = zip(torch.split(self.scale, self.dims), torch.split(varies, self.dims), strict=True)
            for scale, moving in groups:
                scale.mul_(moving.sum().clamp(min=1).sqrt())

"""Support memory of fixed capacity, written in place."""

from __future__ import annotations

import torch
from torch import nn

from skrl.shapes import Bool, Float, Int, Tensor


class SupportMemory(nn.Module):
    """``sets`` independent support sets of equal capacity, each filled from the front.

    All shapes are static and every write is in place, so that a memory can be captured by CUDA graphs and its
    ``state_dict`` loads at any fill. An empty slot has half-norm +∞, which no search returns.

    Args:
        sets: independent support sets, one per action in agents.
        capacity: slots of one set.
        feature_dim: width d of a feature.
        target_dim: width c of a target.
    """

    features: Tensor
    targets: Tensor
    half_norms: Tensor
    sizes: Tensor

    def __init__(self, sets: int, capacity: int, feature_dim: int, target_dim: int = 1) -> None:
        super().__init__()
        for name, value in (("sets", sets), ("capacity", capacity), ("feature_dim", feature_dim)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but a support memory needs at least 1")
        self.register_buffer("features", torch.zeros(sets, capacity, feature_dim))
        self.register_buffer("targets", torch.zeros(sets, capacity, target_dim))
        self.register_buffer("half_norms", torch.full((sets, capacity), float("inf")))
        self.register_buffer("sizes", torch.zeros(sets, dtype=torch.long))

    @property
    def sets(self) -> int:
        """Number of support sets."""
        return self.features.shape[0]

    @property
    def capacity(self) -> int:
        """Slots of one set."""
        return self.features.shape[1]

    @property
    def mask(self) -> Bool[Tensor, "sets capacity"]:
        """True where a slot is filled."""
        return self.half_norms.isfinite()

    @torch.no_grad()
    def write(
        self,
        features: Float[Tensor, "sets capacity dim"],
        sizes: Int[Tensor, " sets"],
        targets: Float[Tensor, "sets capacity targets"] | None = None,
    ) -> None:
        """Replace the whole content.

        Args:
            features: [S, C, d]; rows from ``sizes[s]`` on are ignored.
            sizes: filled slots of each set, [S].
            targets: [S, C, c]; zeros when left out.
        """
        filled = torch.arange(self.capacity, device=self.features.device) < sizes.unsqueeze(-1)
        filled = filled & features.isfinite().all(-1)
        self.features.copy_(torch.where(filled.unsqueeze(-1), features, 0.0))
        norms = 0.5 * self.features.square().sum(-1)
        self.half_norms.copy_(torch.where(filled, norms, float("inf")))
        self.sizes.copy_(sizes)
        self.targets.zero_()
        if targets is not None:
            self.write_targets(targets)

    @torch.no_grad()
    def write_targets(self, targets: Float[Tensor, "sets capacity targets"]) -> None:
        """Replace the targets of the filled slots and keep the features, [S, C, c]."""
        self.targets.copy_(torch.where(self.mask.unsqueeze(-1), targets, 0.0))

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        self.half_norms.fill_(float("inf"))
        for buffer in (self.features, self.targets, self.sizes):
            buffer.zero_()


def newest_and_uniform(
    candidates: Int[Tensor, " candidates"], capacity: int, newest_fraction: float, generator: torch.Generator
) -> Int[Tensor, " chosen"]:
    """Choose support points: the newest ones, and a uniform draw without replacement from the older ones.

    Args:
        candidates: positions ordered from oldest to newest, [n], on the generator's device.
        capacity: points to choose at most.
        newest_fraction: share of the capacity that goes to the newest.
        generator: source of the draw.

    Returns:
        Distinct candidates, oldest first, [min(n, capacity)].
    """
    count = candidates.shape[0]
    if count <= capacity:
        return candidates
    newest = round(capacity * newest_fraction)
    older = count - newest
    drawn = torch.randperm(older, generator=generator, device=candidates.device)[: capacity - newest]
    return torch.cat([candidates[drawn.sort().values], candidates[older:]])

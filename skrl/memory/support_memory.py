"""Support memory of fixed capacity, written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from skrl.modes import precise
from skrl.shapes import Bool, Float, Int, Tensor


class SupportMemory(nn.Module):
    """``sets`` independent support sets of equal capacity, each filled from the front.

    What is written is the caller's choice; the rules in :mod:`skrl.memory.selection` choose from a stream of any
    length.

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
        self.register_buffer("half_norms", precise(torch.full((sets, capacity), float("inf"))))
        self.register_buffer("sizes", torch.zeros(sets, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SupportMemory:
        """As in every module, but half-norms keep float32, and are those of the features in their new precision.

        In half precision half-norms of 362 and more mean empty slots; a search in float64 would rank by the rounding
        errors of half-norms in float32.
        """
        filled, before = self.mask, self.features.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.features.dtype != before:
            self.half_norms = precise(self.half_norms)
            self._measure(filled.to(self.features.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """As torch does, but half-norms of features in another precision are not those of the features here."""
        super()._load_from_state_dict(state_dict, prefix, *others)
        features = state_dict.get(f"{prefix}features")
        if features is not None and features.dtype != self.features.dtype:
            self._measure(self.mask)

    @torch.no_grad()
    def _measure(self, filled: Bool[Tensor, "sets capacity"]) -> None:
        """Half-norms of the features that lie in filled slots; a slot is empty whose features overflow."""
        norms = 0.5 * precise(self.features).square().sum(-1)
        filled = filled & norms.isfinite()
        self.features.copy_(torch.where(filled.unsqueeze(-1), self.features, 0.0))
        self.half_norms.copy_(torch.where(filled, norms, torch.inf))

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
            features: [S, C, d]; rows from ``sizes[s]`` on are ignored, and a row that is not finite leaves its slot
                empty.
            sizes: filled slots of each set, [S].
            targets: [S, C, c]; zeros when left out.

        Raises:
            ValueError: a shape is wrong, or a size is not between 0 and C. Sizes on an accelerator are not looked at,
                which would wait for the device.
        """
        self._check_shape("features", features, self.features.shape)
        self._check_shape("sizes", sizes, self.sizes.shape)
        self._check_sizes(sizes)
        rounded = features.to(self.features)
        norms = 0.5 * precise(rounded).square().sum(-1)
        filled = torch.arange(self.capacity, device=norms.device) < sizes.to(norms.device).unsqueeze(-1)
        filled = filled & norms.isfinite()
        self.features.copy_(torch.where(filled.unsqueeze(-1), rounded, 0.0))
        self.half_norms.copy_(torch.where(filled, norms, float("inf")))
        self.sizes.copy_(sizes)
        self.targets.zero_()
        if targets is not None:
            self.write_targets(targets)

    @torch.no_grad()
    def write_targets(self, targets: Float[Tensor, "sets capacity targets"]) -> None:
        """Replace the targets of the filled slots and keep the features, [S, C, c]; another shape is an error."""
        self._check_shape("targets", targets, self.targets.shape)
        self.targets.copy_(torch.where(self.mask.unsqueeze(-1), targets, 0.0))

    @torch.no_grad()
    def write_slots(
        self,
        slots: Int[Tensor, " rows"],
        features: Float[Tensor, "rows dim"],
        targets: Float[Tensor, "rows targets"],
        set_index: int | Int[Tensor, " rows"] = 0,
    ) -> None:
        """Replace single supports, or fill the slots that come next.

        Args:
            slots: where each row goes, distinct within a set, [n]. A slot is filled already, or the rows fill the front
                without a gap.
            features: [n, d]; a row that is not finite leaves its slot empty.
            targets: [n, c].
            set_index: the set of all rows, or of each, [n].

        Raises:
            ValueError: a shape is wrong, a slot or a set does not exist, a slot is given twice, or a gap would arise.
                Slots and sets on an accelerator are not looked at, which would wait for the device.
        """
        rows = len(slots)
        self._check_shape("features", features, (rows, self.features.shape[-1]))
        self._check_shape("targets", targets, (rows, self.targets.shape[-1]))
        sets = set_index if isinstance(set_index, Tensor) else torch.full_like(slots, set_index)
        self._check_shape("set_index", sets, (rows,))
        self._check_slots(slots, sets)
        sets, slots = sets.to(self.sizes.device), slots.to(self.sizes.device)
        rounded = features.to(self.features)
        norms = 0.5 * precise(rounded).square().sum(-1)
        filled = norms.isfinite()
        self.features[sets, slots] = torch.where(filled.unsqueeze(-1), rounded, 0.0)
        self.targets[sets, slots] = torch.where(filled.unsqueeze(-1), targets.to(self.targets), 0.0)
        self.half_norms[sets, slots] = torch.where(filled, norms, torch.inf).to(self.half_norms)
        self.sizes.scatter_reduce_(0, sets, slots + 1, "amax")

    def append(
        self,
        features: Float[Tensor, "rows dim"],
        targets: Float[Tensor, "rows targets"],
        set_index: int = 0,
    ) -> Int[Tensor, " rows"]:
        """Write rows to the empty slots of a set, lowest first, until it is full.

        Args:
            features: [n, d].
            targets: [n, c].
            set_index: the set.

        Returns:
            The slot of every row, −1 for the rows that found none, [n].

        Raises:
            ValueError: the set does not exist, or a shape is wrong.
        """
        self.check_set(set_index)
        free = (~self.mask[set_index]).nonzero().flatten()[: len(features)]
        fits = len(free)
        self.write_slots(free, features[:fits], targets[:fits], set_index)
        return torch.cat([free, free.new_full((len(features) - fits,), -1)])

    @torch.no_grad()
    def clear(self) -> None:
        """Forget everything."""
        self.half_norms.fill_(float("inf"))
        for buffer in (self.features, self.targets, self.sizes):
            buffer.zero_()

    def check_set(self, set_index: int) -> None:
        """Raise ``ValueError`` for a set that does not exist."""
        if not 0 <= set_index < self.sets:
            raise ValueError(f"set_index is {set_index}, but the memory has {self.sets} sets, counted from 0")

    def _check_shape(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"{name} have shape {tuple(value.shape)}, but must have {tuple(shape)} in a memory of {self.sets} "
                f"sets, {self.capacity} slots each, features of width {self.features.shape[-1]} and targets of width "
                f"{self.targets.shape[-1]}; pad or reshape them"
            )

    def _check_sizes(self, sizes: Tensor) -> None:
        if sizes.device.type != "cpu":
            return
        for index, size in enumerate(sizes.tolist()):
            if not 0 <= size <= self.capacity:
                raise ValueError(
                    f"sizes[{index}] is {size}, but a set holds 0 to {self.capacity} supports; choose fewer rows or "
                    "make the memory with a larger capacity"
                )

    def _check_slots(self, slots: Tensor, sets: Tensor) -> None:
        if slots.device.type != "cpu":
            return
        sizes = self.sizes.tolist()
        previous = None
        for place in sorted(zip(sets.tolist(), slots.tolist(), strict=True)):
            set_index, slot = place
            self.check_set(set_index)
            if not 0 <= slot < self.capacity:
                raise ValueError(f"slot {slot} does not exist; a set has {self.capacity} slots, counted from 0")
            if place == previous:
                raise ValueError(f"slot {slot} of set {set_index} is given twice; drop the row that is to be replaced")
            if slot > sizes[set_index]:
                raise ValueError(
                    f"slot {slot} of set {set_index} would leave a gap after its {sizes[set_index]} supports; a set is "
                    "filled from the front, as append() does"
                )
            sizes[set_index] = max(sizes[set_index], slot + 1)
            previous = place

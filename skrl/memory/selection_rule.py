"""What every rule for a streaming support memory shares: checking rows, refusing bad ones, counting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from skrl.memory.support_memory import SupportMemory
from skrl.modes import KeepsFloat32, full_precision, precise
from skrl.shapes import Float, Int, Tensor


class SelectionRule(KeepsFloat32, ABC):
    """Decides what a support memory keeps of a stream of (feature, target) rows.

    Content that the memory holds already counts as inserted, in the order of its slots. Whoever writes to the memory
    past the rule calls :meth:`adopt` afterwards.

    Args:
        memory: the memory that the rule fills from now on.
    """

    # Of some rules: in half precision the price of a merger of far centres is infinite.
    KEPT = ("bounds", "lengthscale")

    seen: Tensor
    refused: Tensor

    def __init__(self, memory: SupportMemory) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("seen", torch.zeros_like(memory.sizes))
        self.register_buffer("refused", torch.zeros_like(memory.sizes))

    @torch.no_grad()
    def insert(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int = 0
    ) -> Int[Tensor, " rows"]:
        """Offer rows to one support set, in order.

        A row that is not finite in the memory's precision, or whose squared norm is not in float32 at least, is refused
        and counted in ``refused``; for the rule it never existed. All others count in ``seen``.

        Args:
            features: [n, d].
            targets: [n, c].
            set_index: the support set.

        Returns:
            The slot that holds each row (or into which it was averaged) after the call, −1 where none does, [n].

        Raises:
            ValueError: a shape is wrong or the set does not exist.
        """
        self.memory.check_set(set_index)
        self._check_rows(features, targets)
        features, targets = features.to(self.memory.features), targets.to(self.memory.targets)
        # Norms as the memory takes them: in half precision those of 256 and more are infinite.
        usable = precise(features).square().sum(-1).isfinite() & targets.isfinite().all(-1)
        slots = torch.full_like(usable, -1, dtype=torch.long)
        if bool(usable.any()):
            with full_precision(features.device.type):
                slots[usable] = self.place(features[usable], targets[usable], set_index)
        accepted = usable.sum()
        self.seen[set_index] += accepted
        self.refused[set_index] += len(usable) - accepted
        return slots

    @abstractmethod
    def place(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int
    ) -> Int[Tensor, " rows"]:
        """Keep what deserves it of n ≥ 1 finite rows in the memory's dtype; returns as :meth:`insert` does."""

    def adopt(self) -> None:
        """Take the memory's present content as all that was ever inserted."""
        self.seen.copy_(self.memory.sizes)
        self.refused.zero_()

    def clear(self) -> None:
        """Forget the stream and empty the memory."""
        self.memory.clear()
        self.adopt()

    def write_in_order(self, slots: Tensor, features: Tensor, targets: Tensor, set_index: int) -> Tensor:
        """Write rows to slots that may repeat or be −1; the last row of a slot stays. Slots of the rows that stay."""
        slots = latest(slots, self.memory.capacity)
        stays = slots >= 0
        self.memory.write_slots(slots[stays], features[stays], targets[stays], set_index)
        return slots

    def _check_rows(self, features: Tensor, targets: Tensor) -> None:
        dim, width = self.memory.features.shape[-1], self.memory.targets.shape[-1]
        if features.shape[1:] != (dim,) or targets.shape[1:] != (width,) or len(features) != len(targets):
            raise ValueError(
                f"features have shape {tuple(features.shape)} and targets {tuple(targets.shape)}, but must be "
                f"[rows, {dim}] and [rows, {width}] with equally many rows; a single row needs [None]"
            )


def latest(slots: Int[Tensor, " rows"], capacity: int) -> Int[Tensor, " rows"]:
    """Slots of rows in order, −1 for every row whose slot a later row takes; [n]."""
    rows = torch.arange(len(slots), device=slots.device)
    owners = torch.where(slots < 0, capacity, slots)
    last = torch.zeros(capacity + 1, dtype=torch.long, device=slots.device).scatter_reduce(0, owners, rows, "amax")
    return torch.where(last[owners] == rows, slots, -1)


def chunks(values: Int[Tensor, " values"], size: int) -> Iterator[Int[Tensor, " chunk"]]:
    """Consecutive parts of at most ``size`` values, none of them empty."""
    return (values[start : start + size] for start in range(0, len(values), size))

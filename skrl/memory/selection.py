"""Rules that keep a support memory of fixed capacity while rows stream past: which are kept, which make room.

    memory = SupportMemory(sets=1, capacity=500, feature_dim=3)
    rule = Novelty(memory, threshold=0.1, lengthscale=0.5)
    for features, targets in stream:
        rule.insert(features, targets)

An insertion costs O(C d) time for a memory of C slots, and O(k³) where a variance is asked for, however many rows have
passed. What a rule has to remember lies in buffers beside the memory it owns, so ``state_dict`` and pickling carry on
the same stream.
"""

from __future__ import annotations

import torch

from skrl.memory.kmeans import KMeansCentres
from skrl.memory.novelty import Novelty
from skrl.memory.selection_rule import SelectionRule
from skrl.memory.support_memory import SupportMemory
from skrl.shapes import Float, Int, Tensor


class Newest(SelectionRule):
    """A ring buffer: each row takes the place of the oldest.

    Args:
        memory: the memory to fill.
    """

    cursor: Tensor

    def __init__(self, memory: SupportMemory) -> None:
        super().__init__(memory)
        self.register_buffer("cursor", torch.zeros_like(memory.sizes))
        self.adopt()

    def adopt(self) -> None:
        """See :class:`SelectionRule`."""
        super().adopt()
        self.cursor.copy_(self.memory.sizes % self.memory.capacity)

    def place(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int
    ) -> Int[Tensor, " rows"]:
        """See :class:`SelectionRule`."""
        steps = torch.arange(len(features), device=self.cursor.device)
        slots = (self.cursor[set_index] + steps) % self.memory.capacity
        self.cursor[set_index] = (self.cursor[set_index] + len(features)) % self.memory.capacity
        return self.write_in_order(slots, features, targets, set_index)


class UniformReservoir(SelectionRule):
    """A uniform sample of everything seen: after t rows each of them is kept with probability min(1, C/t).

    J. Vitter, *Random Sampling with a Reservoir*, 1985, algorithm R (due to A. Waterman).

    Args:
        memory: the memory to fill.
        seed: of the rule's own generator, whose state is saved with the rule.
    """

    def __init__(self, memory: SupportMemory, *, seed: int = 0) -> None:
        super().__init__(memory)
        # On the CPU whatever the device, so that one seed gives one sample everywhere.
        self.generator = torch.Generator().manual_seed(seed)
        self.adopt()

    def place(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int
    ) -> Int[Tensor, " rows"]:
        """See :class:`SelectionRule`."""
        capacity, seen = self.memory.capacity, int(self.seen[set_index])
        turns = torch.arange(seen, seen + len(features))
        later = turns[turns >= capacity]
        draws = torch.rand(len(later), dtype=torch.float64, generator=self.generator)
        drawn = (draws * (later + 1)).long()
        drawn = torch.where(drawn < capacity, drawn, -1)
        slots = torch.cat([turns[turns < capacity], drawn]).to(self.seen.device)
        return self.write_in_order(slots, features, targets, set_index)

    def get_extra_state(self) -> Tensor:
        """State of the generator, for ``state_dict``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator where it was."""
        self.generator.set_state(state.cpu())


SELECTIONS: dict[str, type[SelectionRule]] = {
    "newest": Newest,
    "uniform_reservoir": UniformReservoir,
    "novelty": Novelty,
    "kmeans_centres": KMeansCentres,
}

"""The selection rule that averages: supports are the centres of online k-means."""

from __future__ import annotations

from typing import NamedTuple

import torch

from skrl.kernels.distances import median_point, ranking_scores
from skrl.memory.selection_rule import SelectionRule, chunks
from skrl.memory.support_memory import SupportMemory
from skrl.modes import full_precision, precise
from skrl.search.exact import smallest
from skrl.shapes import Bool, Float, Int, Tensor


class Placed(NamedTuple):
    """Rows and the centres that they joined or opened."""

    rows: Tensor
    slots: Tensor


class Merged(NamedTuple):
    """A centre that took another's rows, and the other, whose slot became free."""

    kept: Tensor
    freed: Tensor


class KMeansCentres(SelectionRule):
    """Supports are means of the rows nearest to them, with the means of those rows' targets.

    The first C distinct rows open the centres. A later row joins the nearest one, which moves by 1/n towards it, n the
    rows that joined so far; that raises the inertia, the sum of squared distances to the centres, by n/(n+1) d². Where
    merging two centres a and b raises it less, by n_a n_b/(n_a + n_b) ‖a − b‖², these two merge and the row opens a
    centre in the free slot. That makes up for first rows that lie together, and follows a stream into new regions.

    J. MacQueen, *Some Methods for Classification and Analysis of Multivariate Observations*, 1967, with its merging and
    splitting of means; the price of a merger is J. Ward's, *Hierarchical Grouping to Optimize an Objective Function*,
    1963. Mini-batches are D. Sculley's, *Web-Scale K-Means Clustering*, 2010: their rows look for the nearest centre
    together, before any of them moves one. The cheapest of all mergers would cost O(C² d) to find; instead each centre
    carries a lower bound on its own, and only the ``CANDIDATES`` lowest are measured anew.

    Args:
        memory: the memory to fill.
        mini_batch: rows of one insertion that are assigned together; 1 is MacQueen's rule, more is faster.

    Raises:
        ValueError: the mini-batch is smaller than 1.
    """

    CANDIDATES = 4
    """Centres whose cheapest merger is measured anew before one of them merges."""

    counts: Tensor
    bounds: Tensor

    def __init__(self, memory: SupportMemory, *, mini_batch: int = 64) -> None:
        super().__init__(memory)
        if mini_batch < 1:
            raise ValueError(f"mini_batch is {mini_batch}, but at least 1 row is assigned at a time")
        self.mini_batch = mini_batch
        self.register_buffer("counts", torch.zeros_like(memory.mask, dtype=torch.long))
        self.register_buffer("bounds", torch.zeros_like(precise(memory.half_norms)))
        self.adopt()

    @torch.no_grad()
    def adopt(self) -> None:
        """See :class:`SelectionRule`; every support is a centre that one row has joined. O(C² d) time."""
        super().adopt()
        self.counts.copy_(self.memory.mask)
        self.bounds.fill_(torch.inf)
        for set_index, filled in enumerate(self.memory.mask):
            for members in chunks(filled.nonzero().flatten(), self.mini_batch):
                with full_precision(filled.device.type):
                    self._measure(members, set_index)

    def place(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int
    ) -> Int[Tensor, " rows"]:
        """See :class:`SelectionRule`."""
        events: list[Placed | Merged] = []
        rows = torch.arange(len(features), device=features.device)
        while len(rows) and not bool(self.memory.mask[set_index].all()):
            slots = self._open_or_join(features[rows[:1]], targets[rows[:1]], set_index)
            events.append(Placed(rows[:1], slots))
            rows = rows[1:]
        for batch in chunks(rows, self.mini_batch):
            joining = []
            may_merge = (self._rise(features[batch], set_index) > self.bounds[set_index].min()).tolist()
            for row, is_far in zip(chunks(batch, 1), may_merge, strict=True):
                merged = self._open_by_merging(features[row], targets[row], set_index) if is_far else None
                if merged is None:
                    joining.append(row)
                else:
                    events.extend([merged, Placed(row, merged.freed)])
            if joining:
                rest = torch.cat(joining)
                events.append(Placed(rest, self._join(features[rest], targets[rest], set_index)))
        return _final_slots(events, len(features), self.memory.capacity)

    def _open_or_join(self, row: Tensor, target: Tensor, set_index: int) -> Tensor:
        """While slots are free: open a centre, unless the row lies on one."""
        same = (self.memory.features[set_index] == row).all(-1) & self.memory.mask[set_index]
        if bool(same.any()):
            return self._join(row, target, set_index)
        slot = self.memory.append(row, target, set_index)
        self.counts[set_index, slot] = 1
        self._measure(slot, set_index)
        return slot

    def _open_by_merging(self, row: Tensor, target: Tensor, set_index: int) -> Merged | None:
        """Open a centre in the slot that the cheapest merger frees; None where joining is cheaper."""
        memory, bounds = self.memory, self.bounds[set_index]
        candidates = smallest(bounds, min(self.CANDIDATES, memory.capacity))[1]
        costs, partners = self._measure(candidates, set_index)
        best = costs.argmin()
        if not bool(costs[best] < self._rise(row, set_index)):
            return None
        centres, counts, _ = self._centres(set_index)
        # Either of the two may have found the other; which one keeps its slot must not hang on that.
        pair = torch.stack([partners[best], candidates[best]]).sort().values
        shares = counts[pair] / counts[pair].sum()
        centre = torch.cat([shares.unsqueeze(0) @ centres[pair], row.to(centres)])
        means = precise(memory.targets[set_index, pair])
        mean = torch.cat([shares.unsqueeze(0) @ means, target.to(means)])
        memory.write_slots(pair, centre, mean, set_index)
        self.counts[set_index, pair[0]] += self.counts[set_index, pair[1]]
        self.counts[set_index, pair[1]] = 1
        self._measure(pair, set_index)
        return Merged(pair[:1], pair[1:])

    def _join(self, rows: Tensor, values: Tensor, set_index: int) -> Tensor:
        """Move the nearest centre of every row towards it; the centres' slots."""
        memory, counts = self.memory, self.counts[set_index]
        centres, means = precise(memory.features[set_index]), precise(memory.targets[set_index])
        slots = _squared_distances(rows, centres, memory.mask[set_index]).argmin(-1)
        counts += slots.bincount(minlength=memory.capacity)
        touched = torch.unique(slots)
        moved = []
        for old, new in ((centres, rows), (means, values)):
            shift = torch.zeros_like(old).index_add(0, slots, new.to(old) - old[slots])
            moved.append((old + shift / counts.clamp(min=1).unsqueeze(-1))[touched])
        memory.write_slots(touched, moved[0], moved[1], set_index)
        self._measure(touched, set_index)
        return slots

    def _rise(self, rows: Tensor, set_index: int) -> Tensor:
        """Rise in inertia when each row alone joins its nearest centre."""
        centres, counts, filled = self._centres(set_index)
        squared, nearest = _squared_distances(rows, centres, filled).min(-1)
        return counts[nearest] / (counts[nearest] + 1.0) * squared

    def _measure(self, members: Tensor, set_index: int) -> tuple[Tensor, Tensor]:
        """Cheapest mergers of some centres and their partners; the bounds of these are renewed, of others lowered."""
        centres, counts, filled = self._centres(set_index)
        costs = _merge_costs(centres[members], counts[members], centres, counts, filled)
        costs = costs.scatter(1, members.unsqueeze(1), torch.inf)
        cheapest, partners = costs.min(-1)
        bounds = self.bounds[set_index]
        bounds.copy_(torch.minimum(bounds, costs.amin(0)))
        bounds[members] = cheapest.to(bounds)
        return cheapest, partners

    def _centres(self, set_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Centres, their counts as floating point numbers, and which exist."""
        centres = precise(self.memory.features[set_index])
        return centres, self.counts[set_index].to(centres), self.memory.mask[set_index]


def _merge_costs(
    points: Float[Tensor, "rows dim"],
    sizes: Float[Tensor, " rows"],
    centres: Float[Tensor, "capacity dim"],
    counts: Float[Tensor, " capacity"],
    filled: Bool[Tensor, " capacity"],
) -> Float[Tensor, "rows capacity"]:
    """Rise in inertia n m/(n + m) ‖p − c‖² when points that stand for n rows merge with centres of m, +∞ if empty."""
    left, right = sizes.unsqueeze(1), counts.clamp(min=1)
    return left * right / (left + right) * _squared_distances(points, centres, filled)


def _squared_distances(
    points: Float[Tensor, "rows dim"], centres: Float[Tensor, "capacity dim"], filled: Bool[Tensor, " capacity"]
) -> Float[Tensor, "rows capacity"]:
    """Squared distances by one product; +∞ to empty slots."""
    # A mean would follow one far centre, and the digits of all others would be lost.
    origin = median_point(centres[filled])
    shifted = torch.where(filled.unsqueeze(1), centres - origin, 0.0)
    half_norms = torch.where(filled, 0.5 * shifted.square().sum(-1), torch.inf)
    around = points.to(centres) - origin
    return 2.0 * (ranking_scores(around, shifted, half_norms) + 0.5 * around.square().sum(-1, keepdim=True)).clamp(
        min=0
    )


def _final_slots(events: list[Placed | Merged], rows: int, capacity: int) -> Tensor:
    """Where each row's centre is after all mergers, read backwards: what joined a freed centre is with the kept one."""
    device = events[0][0].device
    final = torch.arange(capacity, device=device)
    slots = torch.empty(rows, dtype=torch.long, device=device)
    for event in reversed(events):
        if isinstance(event, Merged):
            final[event.freed] = final[event.kept]
        else:
            slots[event.rows] = final[event.slots]
    return slots

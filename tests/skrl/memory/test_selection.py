"""What single selection rules promise beyond the laws of all: order and uniformity."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from skrl.memory import SupportMemory
from skrl.memory.selection import Newest, SelectionRule, UniformReservoir


@pytest.mark.parametrize("chunks", [[1] * 23, [23], [3, 20], [10, 0, 13]])
def test_newest_is_a_ring_buffer(chunks: list[int]) -> None:
    rule, queue, items = Newest(SupportMemory(1, 5, 1)), deque(maxlen=5), torch.arange(23.0).unsqueeze(1)
    for chunk in items.split(chunks):
        rule.insert(chunk, -chunk)
        queue.extend(chunk.flatten().tolist())
        stored = rule.memory.features[rule.memory.mask].flatten()
        assert sorted(stored.tolist()) == list(queue)
        assert torch.equal(rule.memory.targets[rule.memory.mask].flatten(), -stored)
    assert rule.memory.features.flatten().tolist() == [20.0, 21.0, 22.0, 18.0, 19.0]


def test_newest_adopts_what_the_memory_holds_as_the_oldest() -> None:
    memory = SupportMemory(1, 5, 1)
    memory.write(torch.arange(5.0).view(1, 5, 1), torch.tensor([3]))
    rule, rows = Newest(memory), torch.tensor([[10.0], [11.0], [12.0], [13.0]])
    assert rule.insert(rows, rows).tolist() == [3, 4, 0, 1]


def inclusions(rule: SelectionRule, items: int, chunks: list[int]) -> np.ndarray:
    """How often each item is kept, over independent sets."""
    rows = torch.arange(float(items)).unsqueeze(1)
    for set_index in range(rule.memory.sets):
        for chunk in rows.split(chunks):
            rule.insert(chunk, chunk, set_index)
    assert (rule.memory.sizes == rule.memory.capacity).all()
    return rule.memory.features.long().flatten().bincount(minlength=items).numpy()


def p_value(counts: np.ndarray, draws: int, capacity: int) -> float:
    """Of the chi-square test that each draw of ``capacity`` distinct items is uniform.

    Counts of such draws have covariance draws · p (1 − p) n/(n − 1) (I − 11ᵀ/n), p = capacity/n.
    """
    items = len(counts)
    share = capacity / items
    scale = draws * share * (1.0 - share) * items / (items - 1)
    return float(chi2.sf(np.square(counts - draws * share).sum() / scale, items - 1))


@pytest.mark.parametrize(
    ("items", "capacity", "chunks"), [(40, 8, [40]), (40, 8, [5, 7, 28]), (5, 2, [5]), (5, 2, [1, 1, 3])]
)
def test_reservoir_keeps_every_item_with_equal_probability(items: int, capacity: int, chunks: list[int]) -> None:
    draws = 600
    rule = UniformReservoir(SupportMemory(draws, capacity, 1))
    assert p_value(inclusions(rule, items, chunks), draws, capacity) > 1e-3


def test_the_chi_square_test_sees_a_rule_that_is_not_uniform() -> None:
    """Every later item replaces a slot with the same probability, so recent ones are kept too often."""

    class Recent(UniformReservoir):
        def place(self, features: torch.Tensor, targets: torch.Tensor, set_index: int) -> torch.Tensor:
            slots = torch.arange(len(features))
            slots[8:] = torch.randint(16, (len(features) - 8,), generator=self.generator)
            return self.write_in_order(torch.where(slots < 8, slots, -1), features, targets, set_index)

    rule = Recent(SupportMemory(200, 8, 1))
    assert p_value(inclusions(rule, 40, [40]), 200, 8) < 1e-6


def test_reservoir_s_seed_decides() -> None:
    items = torch.arange(500.0).unsqueeze(1)
    kept = []
    for seed in (1, 1, 2):
        rule = UniformReservoir(SupportMemory(1, 20, 1), seed=seed)
        rule.insert(items, items)
        kept.append(rule.memory.features.flatten().tolist())
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]

"""Kernel value iteration: the supports of a network-free head keep their values, and what these might be at best."""

from __future__ import annotations

from typing import Any

import torch

from agents.common.replay_view import NStep
from agents.kernel_ddqn.replay_kernel import ReplayKernel, Supports
from skrl.shapes import Float, Tensor
from skrl.solve.local_weights import bounded_correction
from skrl.value_heads import NetworkFreeHead


class ValueIteration(ReplayKernel):
    """Backs up the values of the supports through the kernel, and beside them optimistic ones for exploring.

    D. Ormoneit and Ś. Sen, *Kernel-Based Reinforcement Learning*, 2002. Sweeps begin with the values that the last ones
    ended with. Optimistic values get a bonus for what is not known wherever they bootstrap, so that exploring sets out
    for it many decisions ahead, while greedy actions stay free of it: O. Domingues et al., *Kernel-Based Reinforcement
    Learning: A Finite-Time Analysis*, 2021.

    Args:
        *args: as for :class:`ReplayKernel`, whose head must be a :class:`NetworkFreeHead`.
        **kwargs: likewise.
    """

    head: NetworkFreeHead

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the states that supports lead to, [A, m].
        self.next_values = self.next_optimistic = self.head.optimistic_targets.new_zeros(self.head.memory.sets, 0)

    def _place_supports(self, features: Float[Tensor, "actions points dim"], sizes: Tensor, steps: NStep) -> None:
        # The supports of until now know what the new ones lead to.
        self.next_values = self.table.read(steps.last_slots, self.head.memory.targets).mT
        self.next_optimistic = self.table.read(steps.last_slots, self.head.optimistic_targets).mT
        super()._place_supports(features, sizes, steps)

    def _rebase_over_n_steps(self, supports: Supports) -> None:
        head, before = self.head, self.next_values.argmax(0)
        nothing = torch.zeros_like(supports.next_variance)
        values, self.next_values = self._sweep(supports, self.next_values, nothing)
        bonus = nothing if self.config.exploration == "thompson" else self._bonus(supports)
        optimistic, self.next_optimistic = self._sweep(supports, self.next_optimistic, bonus)
        head.write_targets(values)
        head.write_optimistic_targets(optimistic)
        self.q_net_target.copy_kernel(self.q_net)
        changed = (self.next_values.argmax(0) != before) & supports.filled
        self.diagnostics.changed_share = changed.sum() / supports.filled.sum()

    def _bonus(self, supports: Supports) -> Float[Tensor, "actions points"]:
        return self.q_net.bonus * self.head.amplitude * supports.next_variance.sqrt()

    def _sweep(
        self,
        supports: Supports,
        next_values: Float[Tensor, "actions points"],
        bonus: Float[Tensor, "actions points"],
    ) -> tuple[Float[Tensor, "actions slots"], Float[Tensor, "actions points"]]:
        """Values of the supports and of the states they lead to, after ``sweeps`` backups from given ones."""
        targets = self.head.memory.targets.squeeze(-1)
        for _ in range(self.config.sweeps):
            improved = supports.rewards + supports.discounts * (next_values + bonus).amax(0)
            targets = self._residuals(improved, supports.filled).view(targets.shape)
            next_values = bounded_correction(supports.indices, supports.weights, targets)
        return targets, next_values

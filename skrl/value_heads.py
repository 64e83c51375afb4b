"""Value heads: kernel corrections R(s, a) beside the action values of a network.

A head keeps one support set per action. Its targets are residuals r_i = y_i − m(x_i) between improved estimates and the
network's values, and the corrected value is Q(s, a) = m(s)_a + R(s, a). Far from every support R vanishes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from skrl.checks import check_neighbors, check_queries, check_ridge, check_rows
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import safe_sqrt
from skrl.kernels.formulas import make_kernel
from skrl.memory.support_memory import SupportMemory
from skrl.modes import KeepsFloat32, full_precision, precise, traced, transformed
from skrl.search.exact import as_search
from skrl.search.neighbors import Localisation, NeighborSearch, check_localisation
from skrl.shapes import Float, Tensor
from skrl.solve.cholesky import invert
from skrl.solve.local_solve import LocalSystem, averaging_weights
from skrl.solve.local_weights import LocalWeights, bounded_correction, ridge_weights
from skrl.support_cache import ProbeCache

MIN_TOTAL = 1e-6
"""Sum of weights below which a query is too far from every support to be told their mean."""

MIN_DEVIATION = 1e-3
"""Of the root mean square of all values, and of itself where they are less: a network-free head's least amplitude."""

PROBES = 256
"""Supports per action at which a network-free head looks how much values differ inside neighbourhoods, at most."""


class ValueHead(KeepsFloat32, ABC):
    """A kernel correction per action over a support memory; subclasses say how neighbours are weighted.

    Args:
        actions: number of actions A, each with its own support set.
        capacity: support points per action.
        feature_dim: width d of a feature.
        k: neighbours per query and action.
        kernel: a kernel or its name.
        ridge: λ.
        search: how neighbours are found; exact by default. The memory changes under it, so that every query makes an
            index: no search whose index takes long to build.
        localisation: hard, or continuous, which frees the correction of jumps where neighbours change.

    Features should be standardised, or lie around the origin otherwise: far from it neighbours get lost to rounding,
    see :meth:`skrl.search.neighbors.NeighborSearch.index`.

    Raises:
        ValueError: a size is below 1, ridge is not a number from 0 on, or the localisation is unknown.
    """

    KEPT = ("lengthscale", "ridge_scale", "amplitude")

    lengthscale: Tensor
    ridge_scale: Tensor
    """What λ is multiplied by, 1 until somebody writes otherwise."""
    amplitude: Tensor
    optimistic_targets: Tensor
    fallbacks: Tensor
    jitters: Tensor

    def __init__(
        self,
        actions: int,
        capacity: int,
        feature_dim: int,
        *,
        k: int = 16,
        kernel: str | Kernel = "matern32",
        ridge: float = 1.0,
        search: NeighborSearch | None = None,
        localisation: Localisation = "hard",
    ) -> None:
        super().__init__()
        check_neighbors(k, capacity)
        check_ridge(ridge)
        check_localisation(localisation)
        self.memory = SupportMemory(actions, capacity, feature_dim)
        self.kernel, self.k, self.ridge = make_kernel(kernel, feature_dim), min(k, capacity), ridge
        self.search, self.localisation = as_search(search), localisation
        # How often a state was loaded, for whoever keeps something of the supports.
        self.loads = 0
        self.register_buffer("lengthscale", torch.ones(()))
        self.register_buffer("ridge_scale", torch.ones(()))
        self.register_buffer("amplitude", torch.zeros(()))
        self.register_buffer("optimistic_targets", torch.zeros(actions, capacity))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("jitters", torch.zeros((), dtype=torch.long), persistent=False)

    @property
    def scaled_ridge(self) -> Float[Tensor, ""] | float:
        """λ times its scale; a number where reading the scale costs nothing, so that 1 changes no digit."""
        if self.ridge_scale.is_cpu and not traced():
            return self.ridge * float(self.ridge_scale)
        return self.ridge * self.ridge_scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """As torch does; files of before there was a scale of λ are of 1."""
        if f"{prefix}lengthscale" in state_dict:
            state_dict.setdefault(f"{prefix}ridge_scale", torch.ones_like(self.ridge_scale))
        self.loads += 1
        super()._load_from_state_dict(state_dict, prefix, *others)

    @abstractmethod
    def weigh(self, queries: Float[Tensor, "actions queries dim"]) -> LocalWeights:
        """Neighbours, weights and variance of queries that are repeated for every action, [A, B, d]."""

    def base_values(self, prior_mean: Float[Tensor, "queries actions"]) -> Float[Tensor, "queries actions"]:
        """What the correction is added to, [B, A]: the prior mean."""
        return prior_mean

    def localise(self, queries: Float[Tensor, "queries dim"]) -> LocalWeights:
        """Neighbours and weights of every query for every action; independent of the targets, so worth caching.

        Args:
            queries: [B, d]; one that is not finite reads the prior and counts as a fallback, but within ``torch.func``,
                where nobody counts.

        Returns:
            Slots, weights and variance, actions first.

        Raises:
            ValueError: width or device differ from the memory's.
        """
        check_queries(queries, self.memory.features)
        with full_precision(queries.device.type):
            local = self.weigh(queries.to(self.memory.features.dtype).expand(self.memory.sets, *queries.shape))
        _add_count(self.fallbacks, local.failed)
        _add_count(self.jitters, local.jittered)
        return local

    def correction(self, queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries actions"]:
        """R(z, a) for every query and action, [B, A]."""
        return self.read(self.localise(queries)).mT

    def read(self, local: LocalWeights) -> Float[Tensor, "actions queries"]:
        """Corrections by the present targets through known weights, [A, B]."""
        return bounded_correction(local.indices, local.weights, self.memory.targets.squeeze(-1))

    @torch.no_grad()
    def write_targets(self, residuals: Float[Tensor, "actions points"]) -> None:
        """Renew the residuals of all supports, [A, C], and the amplitude, their root mean square.

        Optimistic residuals are the same from now on, until :meth:`write_optimistic_targets` says otherwise.

        Raises:
            ValueError: the residual of a filled slot is not finite; on an accelerator nobody looks.
        """
        filled = self._checked(residuals)
        self.memory.write_targets(filled.unsqueeze(-1))
        self.optimistic_targets.copy_(filled)
        self.amplitude.copy_(_root_mean_square(self.memory.targets, self.memory.mask.sum()))

    @torch.no_grad()
    def write_optimistic_targets(self, residuals: Float[Tensor, "actions points"]) -> None:
        """Residuals that :meth:`optimistic` reads in place of the others, [A, C].

        Raises:
            ValueError: the residual of a filled slot is not finite; on an accelerator nobody looks.
        """
        self.optimistic_targets.copy_(self._checked(residuals))

    def _checked(self, residuals: Float[Tensor, "actions points"]) -> Float[Tensor, "actions points"]:
        filled = torch.where(self.memory.mask, residuals, 0.0)
        check_rows("residuals", filled, "rows are actions; a residual of zero keeps the value of the network")
        return filled

    def optimistic(
        self,
        queries: Float[Tensor, "queries dim"],
        prior_mean: Float[Tensor, "queries actions"],
        bonus: float | Float[Tensor, "queries actions"],
    ) -> Float[Tensor, "queries actions"]:
        """Upper confidence bounds m + R + bonus · amplitude · σ, [B, A]; m alone before the first targets.

        N. Srinivas et al., *Gaussian Process Optimization in the Bandit Setting*, 2010, with the residuals' root mean
        square as the prior standard deviation. R is that of the optimistic residuals.

        Args:
            queries: [B, d].
            prior_mean: the network's action values at the queries, [B, A].
            bonus: posterior standard deviations to add: one number, or one per query and action, [B, A], such as draws
                of a standard normal for a sample of the posterior.
        """
        local = self.localise(queries)
        scale = bonus.mT if isinstance(bonus, Tensor) else bonus
        corrections = bounded_correction(local.indices, local.weights, self.optimistic_targets)
        bounds = corrections + (scale * self.amplitude) * safe_sqrt(local.variance)
        return self.base_values(prior_mean) + bounds.mT.to(prior_mean.dtype)

    def deviation(self, queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries actions"]:
        """Posterior standard deviations amplitude · σ of the corrections, [B, A]; zero before the first targets."""
        return (self.amplitude * safe_sqrt(self.localise(queries).variance)).mT

    def forward(
        self, queries: Float[Tensor, "queries dim"], prior_mean: Float[Tensor, "queries actions"]
    ) -> Float[Tensor, "queries actions"]:
        """Corrected action values m + R, [B, A].

        Args:
            queries: [B, d].
            prior_mean: the network's action values at the queries, [B, A].
        """
        return self.base_values(prior_mean) + self.correction(queries).to(prior_mean.dtype)


class ResidualHead(ValueHead):
    """Local kernel ridge regression of the residuals: a local Gaussian process whose mean function is the network."""

    def weigh(self, queries: Float[Tensor, "actions queries dim"]) -> LocalWeights:
        """Ridge weights from one Cholesky factor per query and action."""
        memory = self.memory
        index = self.search.index(memory.features, memory.half_norms)
        return ridge_weights(
            queries, memory.features, index, self.kernel, self.lengthscale, self.scaled_ridge, self.k, self.localisation
        )

    def leave_one_out(
        self, system: LocalSystem, residuals: Float[Tensor, "*batch k targets"]
    ) -> Float[Tensor, "*batch k targets"]:
        """Errors of predicting each of k neighbours from the others by this head's weights; zero where one is missing.

        Predictions are not bounded here, as corrections are.

        Args:
            system: local systems of some points.
            residuals: of their neighbours, [*batch, k, c].
        """
        return system.leave_one_out(residuals)


class AveragingHead(ValueHead):
    """Normalised kernel weights without a solve: the ablation that shows what the ridge solve is worth.

    A. Pritzel et al., *Neural Episodic Control*, 2017, equation 2, with residuals in place of values.

    Raises:
        ValueError: the kernel is not a function of the distance, or localisation is not hard.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.kernel.is_radial:
            raise ValueError(f"kernel is {self.kernel}, but an averaging head needs a radial one, such as matern32")
        if self.localisation != "hard":
            raise ValueError(
                f"localisation is '{self.localisation}', but its windows act through a ridge solve, which an averaging "
                "head lacks; take 'hard' or a ResidualHead"
            )

    def weigh(self, queries: Float[Tensor, "actions queries dim"]) -> LocalWeights:
        """Kernel values over their sum; the variance is that given the most similar neighbour alone, without noise."""
        neighbors = self.search(queries, self.memory.features, self.k, self.memory.half_norms)
        values = torch.where(neighbors.mask, self.kernel(neighbors.distances / self.lengthscale), 0.0)
        failed = ~(values.isfinite().all(-1) & queries.isfinite().all(-1))
        values = torch.where(failed.unsqueeze(-1), 0.0, values)
        weights = averaging_weights(values)
        prior = self.kernel.prior_variance
        variance = (prior - values.amax(-1).square() / prior).clamp(min=0.0)
        return LocalWeights(neighbors.indices, weights, variance, torch.zeros_like(failed), failed)


class NetworkFreeHead(ResidualHead):
    """The same regression without a network: the memory alone carries the values, the given prior mean is ignored.

    A ridge draws every value towards the mean function, and the more so the fewer neighbours agree. With zero as the
    only one left, differences of density would outweigh those between actions. So the mean of the neighbours is the
    mean function: what the weights lack of one is added to them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._near = ProbeCache()

    def weigh(self, queries: Float[Tensor, "actions queries dim"]) -> LocalWeights:
        """Ridge weights that sum to one; where they are nothing, as far from every support, they stay so.

        All neighbours get the same share of what lacks, but those that are missing or as good as infinitely far. With
        continuous localisation the share is in proportion to the weight, which fades before a neighbour leaves.
        """
        local = super().weigh(queries)
        total = local.weights.sum(-1, keepdim=True)
        near = total > MIN_TOTAL
        if self.localisation == "continuous":
            return local._replace(weights=local.weights / torch.where(near, total, 1.0))
        present = local.weights != 0.0
        share = torch.where(near, 1.0 - total, 0.0) / present.sum(-1, keepdim=True).clamp(min=1)
        return local._replace(weights=local.weights + share * present)

    def leave_one_out(
        self, system: LocalSystem, residuals: Float[Tensor, "*batch k targets"]
    ) -> Float[Tensor, "*batch k targets"]:
        """The same with weights that sum to one: what those of the others lack goes to their mean."""
        errors = system.leave_one_out(residuals)
        lack = system.leave_one_out(torch.ones_like(residuals[..., :1]))
        near = lack < 1.0 - MIN_TOTAL
        if self.localisation == "continuous":
            predicted = (residuals - errors) / torch.where(near, 1.0 - lack, 1.0)
            return torch.where(near & system.mask.unsqueeze(-1), residuals - predicted, errors)
        # As in the weights, whoever is as good as infinitely far has no share.
        others = (invert(system.factor) != 0.0).to(residuals.dtype)
        others = others - torch.diag_embed(others.diagonal(dim1=-2, dim2=-1))
        known = torch.where(system.mask.unsqueeze(-1), residuals, 0.0)
        with full_precision(known.device.type):
            mean = others @ known / others.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(near, errors - lack * mean, errors)

    @torch.no_grad()
    def write_targets(self, residuals: Float[Tensor, "actions points"]) -> None:
        """Renew the values of all supports, [A, C]; the amplitude is their deviation inside neighbourhoods.

        Raises:
            ValueError: the value of a filled slot is not finite; on an accelerator nobody looks.
        """
        super().write_targets(residuals)
        least = MIN_DEVIATION * self.amplitude.clamp(min=MIN_DEVIATION) * (self.memory.sizes.sum() > 0)
        self.amplitude.copy_(torch.maximum(self._local_deviation(self.memory.targets.squeeze(-1)), least))

    def base_values(self, prior_mean: Float[Tensor, "queries actions"]) -> Float[Tensor, "queries actions"]:
        """Zero, [B, A]; ``prior_mean`` gives shape and dtype only."""
        return torch.zeros_like(prior_mean)

    def _local_deviation(self, targets: Float[Tensor, "actions points"]) -> Float[Tensor, ""]:
        """Root mean square of what targets differ from the mean of their neighbours', at some of the supports."""
        memory = self.memory
        indices, counts = self._near.probes(memory, self.search, self.k, step=-(-memory.capacity // PROBES))
        values = precise(targets).gather(1, indices.flatten(1)).view(indices.shape)
        mean = (values * counts).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)
        return _root_mean_square((values - mean) * counts, counts.sum())


def _root_mean_square(values: Tensor, count: Tensor) -> Tensor:
    """Of so many values, all others zero, in float32 at least; where squares overflow, in units of the largest."""
    values, count = precise(values), count.clamp(min=1)
    plain = (values.square().sum() / count).sqrt()
    if plain.is_cpu and not traced() and math.isfinite(plain):
        return plain
    largest = values.abs().amax().clamp(min=torch.finfo(values.dtype).tiny)
    rescaled = largest * ((values / largest).square().sum() / count).sqrt()
    return torch.where(plain.isfinite(), plain, rescaled)


def _add_count(counter: Tensor, flags: Tensor) -> None:
    """Count what is true; on a CPU, where looking costs least, only when anything is.

    Not within a transform of ``torch.func``, which writes to nothing from outside it.
    """
    if transformed():
        return
    if not flags.is_cpu or traced() or flags.numpy().any():
        counter.add_(flags.sum())


HEADS: dict[str, type[ValueHead]] = {
    "residual": ResidualHead,
    "averaging": AveragingHead,
    "network_free": NetworkFreeHead,
}

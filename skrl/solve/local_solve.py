"""Local kernel ridge regression: one small system per query, factored once.

For a query z with neighbours x_1 … x_k, all predictions reuse one Cholesky factor of K + λI:

    w  = (K + λI)⁻¹ κ_z                      weights
    f  = m(z) + Σ_i w_i (y_i − m(x_i))       mean
    σ² = κ(z, z) − κ_zᵀ w                    posterior variance
    e_i = α_i / [(K + λI)⁻¹]_ii              leave-one-out errors, α = (K + λI)⁻¹ (y − m)

Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), equations 2.23–2.26 and 5.10–5.12.

*Hard* localisation gives the k neighbours equal say, so the prediction jumps where the neighbour set changes.
*Continuous* localisation gives neighbour i the window ω_i = (1 − (d_i/d_{k+1})²)², which falls to zero as it leaves:

    w = s ⊙ (S K S + λI)⁻¹ (s ⊙ κ_z)         s_i = √ω_i, S = diag(s)

which is the regression whose noise at neighbour i is λ/ω_i. The windows act through the ridge: without one they change
nothing, and the prediction jumps as the hard one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import block_distances
from skrl.modes import full_precision
from skrl.search.neighbors import Neighbors, gather_points
from skrl.shapes import Bool, Float, Tensor
from skrl.solve.cholesky import factor_with_jitter, invert, solve


class Prediction(NamedTuple):
    """Posterior mean and variance of a local kernel ridge regression.

    Attributes:
        mean: [*batch, B, c], in the units of the targets.
        variance: [*batch, B]: κ(z, z), which is 1 for every named kernel, far from all support points, towards 0 on top
            of many.
    """

    mean: Float[Tensor, "*batch targets"]
    variance: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class LocalSystem:
    """The factored systems of a batch of queries.

    Attributes:
        factor: lower Cholesky factors of S K S + λI, [*batch, B, k, k]; identity rows where a neighbour is missing.
        cross: κ_z, zero where a neighbour is missing, [*batch, B, k].
        window: s, the roots of the neighbours' windows, all one when localisation is hard, [*batch, B, k].
        mask: true where a neighbour exists and its window has not ended, [*batch, B, k].
        jittered: systems that needed jitter, [*batch, B].
        failed: systems that no jitter could factor or whose values are not finite; they answer with the prior,
            [*batch, B].
        prior_variance: κ(z, z).
    """

    factor: Float[Tensor, "*batch k k"]
    cross: Float[Tensor, "*batch k"]
    window: Float[Tensor, "*batch k"]
    mask: Bool[Tensor, "*batch k"]
    jittered: Bool[Tensor, "*batch"]
    failed: Bool[Tensor, "*batch"]
    prior_variance: float

    def weights(self) -> Float[Tensor, "*batch k"]:
        """Prediction weights w, [*batch, B, k]; zero where a neighbour is missing or its window has ended."""
        cross = (self.window * self.cross).unsqueeze(-1)
        return self.window * solve(self.factor, cross).squeeze(-1)

    def variance(self, weights: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Posterior variance κ(z, z) − κ_zᵀ w, [*batch, B], kept in [0, κ(z, z)] against rounding."""
        return (self.prior_variance - (self.cross * weights).sum(-1)).clamp(0.0, self.prior_variance)

    def leave_one_out(self, residuals: Float[Tensor, "*batch k targets"]) -> Float[Tensor, "*batch k targets"]:
        """Errors of predicting each neighbour from the other k − 1, without refitting.

        Args:
            residuals: y_i − m(x_i) of the neighbours, [*batch, B, k, c].

        Returns:
            Errors y_i − f₋ᵢ(x_i), [*batch, B, k, c]; zero where a neighbour is missing or its window has ended, the
            residuals themselves where no jitter could factor the system.
        """
        errors, _ = self.leave_one_out_with_precision(residuals)
        return errors

    def root_mean_square(self, errors: Float[Tensor, "*batch k targets"]) -> Float[Tensor, ""]:
        """Over the neighbours that are there; zero where there is none.

        Args:
            errors: of leaving each neighbour out, zero where one is missing, [*batch, B, k, c].
        """
        count = self.mask.sum().clamp(min=1) * errors.shape[-1]
        return (errors.square().sum() / count).sqrt()

    def leave_one_out_with_precision(
        self, residuals: Float[Tensor, "*batch k targets"]
    ) -> tuple[Float[Tensor, "*batch k targets"], Float[Tensor, "*batch k"]]:
        """Leave-one-out errors and the inverse of their predictive variances ω_i [(S K S + λI)⁻¹]_ii.

        Args:
            residuals: y_i − m(x_i) of the neighbours, [*batch, B, k, c].

        Returns:
            Errors, [*batch, B, k, c], and precisions, [*batch, B, k]; zero and one where a neighbour is missing or its
            window has ended.
        """
        inverse = invert(self.factor)
        present = self.mask.unsqueeze(-1)
        window = torch.where(self.mask, self.window, 1.0)
        scaled = window.unsqueeze(-1) * torch.where(present, residuals, 0.0)
        with full_precision(inverse.device.type):
            products = inverse @ scaled
        diagonal = window * inverse.diagonal(dim1=-2, dim2=-1)
        errors = torch.where(present, products / diagonal.unsqueeze(-1), 0.0)
        return errors, torch.where(self.mask, window * diagonal, 1.0)


def factorise(
    neighbors: Neighbors,
    features: Float[Tensor, "*support dim"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
    radius: Float[Tensor, "*batch"] | None = None,
) -> LocalSystem:
    """Build and factor the local system of every query.

    Args:
        neighbors: the k neighbours of each of B queries, [*batch, B, k].
        features: the support set they index, [*batch, M, d].
        kernel: a kernel.
        lengthscale: ℓ > 0, in the units of the features.
        ridge: λ ≥ 0, on the diagonal as it is, never multiplied by k.
        radius: distance d_{k+1} at which the windows of continuous localisation end, [*batch, B], +∞ where no further
            neighbour exists; localisation is hard when left out.

    Returns:
        The systems. Half-precision inputs are solved in float32.
    """
    points, distances, mask = gather_points(features, neighbors.indices), neighbors.distances, neighbors.mask
    if points.dtype in (torch.float16, torch.bfloat16):
        points, distances = points.float(), distances.float()
    cross, gram = kernel.blocks(distances / lengthscale, block_distances(points) / lengthscale)
    window = torch.ones_like(distances)
    if radius is not None:
        window = window_roots(distances, radius.to(distances.dtype))
        gram = window.unsqueeze(-1) * gram * window.unsqueeze(-2)
        mask = mask & (window != 0)  # unlike "> 0" true for NaN, which has to reach the check below
    cross = torch.where(mask, cross, 0.0)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    # A missing neighbour keeps a one on the diagonal: its row is decoupled and its weight is exactly zero.
    diagonal = torch.where(mask, ridge * torch.ones_like(cross), 1.0)
    factor, jittered, failed = factor_with_jitter(torch.where(pairs, gram, 0.0) + torch.diag_embed(diagonal))
    failed = failed | ~cross.isfinite().all(-1)
    cross, window = torch.where(failed.unsqueeze(-1), 0.0, cross), torch.where(failed.unsqueeze(-1), 1.0, window)
    return LocalSystem(factor, cross, window, mask, jittered, failed, kernel.prior_variance)


def window_roots(distances: Float[Tensor, "*batch k"], radius: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch k"]:
    """Roots s_i = 1 − (d_i / radius)² of the neighbours' windows, [*batch, B, k]; one where the radius is infinite.

    A radius of zero, more than k duplicates of the query, leaves all of them their full say. A query close to that many
    duplicates, and not on them, is as far from all of them: every window has ended, and the answer is the prior.
    """
    radius = radius.unsqueeze(-1)
    ends = radius.isfinite() & (radius > 0)
    width = torch.where(ends, radius, 1.0)
    # The difference of two near distances is exact, and that of their squares is not: 1 − q² = (1 − q)(2 − (1 − q)).
    gap = torch.where(ends, (width - distances) / width, 1.0).clamp(min=0.0)
    return gap * (2.0 - gap)


def averaging_weights(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """Normalised kernel weights κ_i / Σ_j κ_j (Nadaraya–Watson), [*batch, B, k].

    Args:
        values: κ_i of the neighbours, zero where one is missing, [*batch, B, k].
    """
    total = values.sum(-1, keepdim=True)
    return values / torch.where(total > 0, total, 1.0)

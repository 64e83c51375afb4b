"""Local kernel ridge regression: one small system per query, factored once.

For a query z with neighbours x_1 … x_k, all predictions reuse one Cholesky factor of K + λI:

    w  = (K + λI)⁻¹ κ_z                      weights
    f  = m(z) + Σ_i w_i (y_i − m(x_i))       mean
    σ² = κ(z, z) − κ_zᵀ w                    posterior variance
    e_i = α_i / [(K + λI)⁻¹]_ii              leave-one-out errors, α = (K + λI)⁻¹ (y − m)

Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), equations 2.23–2.26 and 5.10–5.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from skrl.distances import block_distances
from skrl.kernels import Kernel
from skrl.neighbors import Neighbors, gather_points
from skrl.shapes import Bool, Float, Tensor

JITTERS = (1e-6, 1e-5, 1e-4)
"""Diagonal terms tried in turn, in units of the prior variance, by the systems whose factorisation failed."""


class Prediction(NamedTuple):
    """Posterior mean and variance of a local kernel ridge regression.

    Attributes:
        mean: [*batch, B, c], in the units of the targets.
        variance: [*batch, B], in units of the prior variance: 1 far from every support point, towards 0 on top of many.
    """

    mean: Float[Tensor, "*batch targets"]
    variance: Float[Tensor, "*batch"]


@dataclass(frozen=True)
class LocalSystem:
    """The factored systems of a batch of queries.

    Attributes:
        factor: lower Cholesky factors of K + λI, [*batch, B, k, k]; identity rows where a neighbour is missing.
        cross: κ_z, zero where a neighbour is missing, [*batch, B, k].
        mask: true where a neighbour exists, [*batch, B, k].
        jittered: systems that needed jitter, [*batch, B].
        failed: systems that no jitter could factor or whose query is not finite; they answer with the prior,
            [*batch, B].
    """

    factor: Float[Tensor, "*batch k k"]
    cross: Float[Tensor, "*batch k"]
    mask: Bool[Tensor, "*batch k"]
    jittered: Bool[Tensor, "*batch"]
    failed: Bool[Tensor, "*batch"]

    def weights(self) -> Float[Tensor, "*batch k"]:
        """Prediction weights w = (K + λI)⁻¹ κ_z, [*batch, B, k]; zero where a neighbour is missing."""
        return torch.cholesky_solve(self.cross.unsqueeze(-1), self.factor).squeeze(-1)

    def variance(self, weights: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Posterior variance 1 − κ_zᵀ w, [*batch, B], kept in [0, 1] against rounding."""
        return (1.0 - (self.cross * weights).sum(-1)).clamp(0.0, 1.0)

    def leave_one_out(self, residuals: Float[Tensor, "*batch k targets"]) -> Float[Tensor, "*batch k targets"]:
        """Errors of predicting each neighbour from the other k − 1, without refitting.

        Args:
            residuals: y_i − m(x_i) of the neighbours, [*batch, B, k, c].

        Returns:
            Errors y_i − f₋ᵢ(x_i), [*batch, B, k, c]; zero where a neighbour is missing.
        """
        inverse = torch.cholesky_inverse(self.factor)
        present = self.mask.unsqueeze(-1)
        coefficients = inverse @ torch.where(present, residuals, 0.0)
        return torch.where(present, coefficients / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), 0.0)


def factorise(
    neighbors: Neighbors,
    features: Float[Tensor, "*support dim"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
) -> LocalSystem:
    """Build and factor the local system of every query.

    Args:
        neighbors: the k neighbours of each of B queries, [*batch, B, k].
        features: the support set they index, [*batch, M, d].
        kernel: a radial kernel.
        lengthscale: ℓ > 0, in the units of the features.
        ridge: λ ≥ 0, on the diagonal as it is, never multiplied by k.

    Returns:
        The systems. Half-precision inputs are solved in float32.
    """
    points = gather_points(features, neighbors.indices)
    distances = neighbors.distances
    if points.dtype in (torch.float16, torch.bfloat16):
        points, distances = points.float(), distances.float()
    mask = neighbors.mask
    cross = torch.where(mask, kernel(distances / lengthscale), 0.0)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    gram = torch.where(pairs, kernel(block_distances(points) / lengthscale), 0.0)
    # A missing neighbour keeps a one on the diagonal: its row is decoupled and its weight is exactly zero.
    gram = gram + torch.diag_embed(torch.where(mask, ridge * torch.ones_like(cross), 1.0))
    factor, jittered, failed = _cholesky_with_jitter(gram)
    failed = failed | ~cross.isfinite().all(-1)
    return LocalSystem(factor, torch.where(failed.unsqueeze(-1), 0.0, cross), mask, jittered, failed)


def averaging_weights(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """Normalised kernel weights κ_i / Σ_j κ_j (Nadaraya–Watson), [*batch, B, k].

    Args:
        values: κ_i of the neighbours, zero where one is missing, [*batch, B, k].
    """
    total = values.sum(-1, keepdim=True)
    return values / torch.where(total > 0, total, 1.0)


def _cholesky_with_jitter(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor every system; the ones that fail, and only they, get jitter, and at last the identity.

    On a CPU the common case, nothing failed, returns after one factorisation. On an accelerator looking at the outcome
    would synchronise, so the ladder is always climbed, branch-free.
    """
    factor, info = torch.linalg.cholesky_ex(gram)
    failed = info != 0
    none = torch.zeros_like(failed)
    if gram.device.type == "cpu" and not bool(failed.any()):
        return factor, none, none
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    needed = torch.zeros_like(info, dtype=gram.dtype)
    finite = gram.isfinite().flatten(-2).all(-1)
    with torch.no_grad():
        unsolved = failed & finite
        for jitter in JITTERS:
            needed = torch.where(unsolved, jitter, needed)
            _, info = torch.linalg.cholesky_ex(gram + needed[..., None, None] * identity)
            unsolved = (info != 0) & finite
    hopeless = unsolved | ~finite
    repaired = torch.where(hopeless[..., None, None], identity, gram + needed[..., None, None] * identity)
    factor, _ = torch.linalg.cholesky_ex(repaired)
    return factor, failed & ~hopeless, hopeless

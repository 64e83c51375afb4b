"""Cholesky factors of many small systems, on a device without waiting for it."""

from __future__ import annotations

import torch

from skrl.modes import full_precision, traced
from skrl.shapes import Bool, Float, Tensor

JITTERS = (1e-6, 1e-5, 1e-4)
"""Diagonal terms tried in turn, in units of the largest one there, by the systems whose factorisation failed."""


def factor_with_jitter(
    gram: Float[Tensor, "*batch k k"],
) -> tuple[Float[Tensor, "*batch k k"], Bool[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Factor every system; the ones that fail, and only they, get jitter, and at last the identity.

    On a CPU the common case, nothing failed, returns after one factorisation. Elsewhere looking at the outcome would
    synchronise: there all attempts are made at once, and each system takes its first success.

    Args:
        gram: symmetric systems, [*batch, k, k].

    Returns:
        Lower factors, [*batch, k, k]; which systems needed jitter, and which no jitter could factor, [*batch] each.
    """
    empty = gram.shape[-1] == 0
    if empty or (gram.device.type == "cpu" and not traced()):
        factor, info = torch.linalg.cholesky_ex(gram)
        if empty or not bool(info.any()):
            none = torch.zeros_like(info, dtype=torch.bool)
            return factor, none, none
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    with torch.no_grad():
        scale = gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        jitters = torch.stack([torch.zeros_like(scale), *(jitter * scale for jitter in JITTERS)])
        factors, info = torch.linalg.cholesky_ex(gram + jitters[..., None, None] * identity)
        solved = (info == 0) & gram.isfinite().flatten(-2).all(-1)
        attempt = solved.int().argmax(0, keepdim=True)
    hopeless = ~solved.any(0)
    if gram.requires_grad:
        repaired = gram + jitters.gather(0, attempt)[0, ..., None, None] * identity
        factor, _ = torch.linalg.cholesky_ex(torch.where(hopeless[..., None, None], identity, repaired))
    else:
        factor = factors.gather(0, attempt[..., None, None].expand(-1, *gram.shape))[0]
        factor = torch.where(hopeless[..., None, None], identity, factor)
    return factor, attempt[0] > 0, hopeless


def solve(
    factor: Float[Tensor, "*batch k k"], right: Float[Tensor, "*batch k columns"]
) -> Float[Tensor, "*batch k columns"]:
    """A⁻¹ b by the lower Cholesky factor of A.

    On a GPU by two triangular solves: `torch.cholesky_solve` may take them to MAGMA, which allocates memory on its own,
    so that no CUDA graph can capture it.

    Args:
        factor: [*batch, k, k].
        right: b, [*batch, k, n].
    """
    if factor.is_cpu:
        return torch.cholesky_solve(right, factor)
    with full_precision(factor.device.type):
        forward: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
        solution: Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution


def invert(factor: Float[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k k"]:
    """A⁻¹ by the lower Cholesky factor of A; on a GPU by a triangular solve, see :func:`solve`.

    Args:
        factor: [*batch, k, k].
    """
    if factor.is_cpu:
        return torch.cholesky_inverse(factor)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    with full_precision(factor.device.type):
        root: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return root.mT @ root

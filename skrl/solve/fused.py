"""Fused local systems: one launch of a Triton kernel takes neighbours to weights, in place of twenty of torch's.

Without Triton, with gradients, with another kernel or precision, plain torch does the same work to the same numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import Gaussian, InverseMultiquadric, Laplace, Matern32, Matern52
from skrl.modes import forwards, traced, wants_gradient
from skrl.shapes import Bool, Float, Int, Tensor
from skrl.solve.cholesky import JITTERS

try:
    from skrl.solve import fused_kernels

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

DEVICE = "cuda"
"""Type of device whose queries are fused; Triton's interpreter runs on "cpu", in tests."""

MAX_NEIGHBORS = 64
"""Largest k whose matrix fits into the registers of a few warps."""

MAX_DEPTH = 4
"""Dimensions whose loads are under way together; in 512 dimensions 1 takes up to 12 % longer, and 8 as long (H100)."""

FORMULAS: dict[type[Kernel], str] = {
    Gaussian: "gaussian",
    Laplace: "laplace",
    Matern32: "matern32",
    Matern52: "matern52",
    InverseMultiquadric: "inverse_multiquadric",
}
"""Kernels that :func:`skrl.solve.fused_kernels.kernel_value` knows."""


class FusedSolution(NamedTuple):
    """What one launch gives; see :class:`skrl.solve.local_weights.LocalWeights`."""

    weights: Float[Tensor, "sets queries neighbors"]
    variance: Float[Tensor, "sets queries"]
    jittered: Bool[Tensor, "sets queries"]
    failed: Bool[Tensor, "sets queries"]


def fuses(kernel: Kernel, k: int, features: Tensor, *settings: Tensor | float) -> bool:
    """Whether the fused kernel may read these features, for queries that want no gradient.

    Args:
        kernel: any kernel.
        k: neighbours per query.
        features: [*sets, M, d].
        settings: lengthscale and ridge, one number each.
    """
    if features.device.type != DEVICE or not AVAILABLE or traced() or forwards():
        return False
    tensors = [features, *(setting for setting in settings if isinstance(setting, Tensor))]
    if wants_gradient(*tensors):
        return False
    fits = 0 < min(k, features.shape[-2]) <= MAX_NEIGHBORS and features.shape[-1] > 0
    return (
        fits
        and type(kernel) in FORMULAS
        and all(tensor.dtype == torch.float32 and tensor.device == features.device for tensor in tensors)
        and all(tensor.dim() == 0 for tensor in tensors[1:])
    )


@torch.no_grad()
def solve(
    queries: Float[Tensor, "sets queries dim"],
    features: Float[Tensor, "sets points dim"],
    found: Int[Tensor, "*sets queries found"],
    present: Bool[Tensor, "*sets queries found"],
    kernel: Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
    k: int,
    windowed: bool,
) -> FusedSolution:
    """Weights of known neighbours in one launch; arguments as in :func:`skrl.solve.local_weights.compiled_weights`.

    A system that cannot be factored gets jitter as in :func:`skrl.solve.local_solve.factorise`, and at last the prior.
    The two factorisations round differently, so at the edge of singularity one may need a step more than the other.
    """
    sets, rows, dim = queries.shape
    k, columns = min(k, features.shape[1]), found.shape[-1]
    weights = queries.new_empty(sets, rows, k)
    variance = queries.new_empty(sets, rows)
    jittered, failed = torch.empty(2, sets, rows, dtype=torch.bool, device=queries.device)
    if sets * rows:
        width = _power_of_two(k)
        with _on(queries):
            fused_kernels.solve_query[(sets * rows,)](
                *(values.contiguous() for values in (queries, features, found, present)),
                *(lengthscale, ridge, weights, variance, jittered, failed),
                *(rows, features.shape[1] * dim, dim, k, columns),
                kernel=FORMULAS[type(kernel)],
                windowed=windowed,
                lengthscale_is_pointer=isinstance(lengthscale, Tensor),
                ridge_is_pointer=isinstance(ridge, Tensor),
                first_jitter=JITTERS[0],
                attempts=1 + len(JITTERS),
                width=width,
                depth=min(MAX_DEPTH, dim),
                num_warps=1 if width <= 32 else 2,
            )
    return FusedSolution(weights, variance, jittered, failed)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _on(values: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(values.device) if values.is_cuda else nullcontext()

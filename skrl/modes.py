"""Modes of torch that the code around it has switched on: reading it instead of running it, gradients, precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.autograd import forward_ad


def traced() -> bool:
    """Whether nobody may look at values: while torch.compile or torch.export reads the code, and within torch.func."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether a function transform such as ``torch.func.jvp`` calls, whose tensors do not say what they carry."""
    return traced() and not torch.compiler.is_compiling()


def batched(*values: torch.Tensor) -> bool:
    """Whether any is a batch in disguise, as in ``torch.autograd.grad(…, is_grads_batched=True)``."""
    return any(torch._C._functorch.is_legacy_batchedtensor(value) for value in values)


def forwards() -> bool:
    """Whether gradients may be carried forwards, by tangents that a tensor's storage does not show."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def wants_gradient(*values: object) -> bool:
    """Whether any of the values, as far as they are tensors, asks for a gradient that is recorded, or has a tangent."""
    if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in values):
        return True
    return forwards() and any(isinstance(value, torch.Tensor) and _has_tangent(value) for value in values)


def _has_tangent(value: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def full_precision(device: str) -> AbstractContextManager[None]:
    """Autocast off within the block, on a type of device; free where it is off already."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def precise(values: torch.Tensor) -> torch.Tensor:
    """At least float32: distances and solves in half precision overflow and lose their digits."""
    if values.dtype is torch.float32 or values.dtype is torch.float64:
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def kept_precise(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let a conversion of a module to half precision pass these settings by, as far as it has them.

    In half precision many are zero or infinite. Gradients of what would have been converted are dropped.
    """
    before = {name: getattr(module, name).detach() for name in names if getattr(module, name, None) is not None}
    yield
    for name, value in before.items():
        present = getattr(module, name)
        if present.dtype in (torch.float16, torch.bfloat16):
            present.data, present.grad = precise(value).to(present.device), None

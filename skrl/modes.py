"""Modes of torch that the code around it has switched on: reading it instead of running it, gradients, precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def traced() -> bool:
    """Whether nobody may look at values: while torch.compile or torch.export reads the code, and within torch.func."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def wants_gradient(*values: object) -> bool:
    """Whether a gradient is recorded and any of the values, as far as they are tensors, asks for it."""
    return torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


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

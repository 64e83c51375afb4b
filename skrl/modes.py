"""Modes of torch that the code around it has switched on: reading the code instead of running it, and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def traced() -> bool:
    """Whether nobody may look at values: while torch.compile or torch.export reads the code, and within torch.func."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def full_precision(device: str) -> AbstractContextManager[None]:
    """Autocast off within the block, on a type of device; free where it is off already."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()

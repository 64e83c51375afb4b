"""Modes of torch that the code around it has switched on: reading it instead of running it, gradients, precision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.autograd import forward_ad

M = TypeVar("M", bound="KeepsFloat32")


def traced() -> bool:
    """Whether nobody may look at values.

    While torch.compile, torch.export or torch.jit.trace reads the code, and within torch.func.
    """
    return torch.compiler.is_compiling() or torch._C._is_tracing() or transformed()


def transformed() -> bool:
    """Whether a function transform such as ``torch.func.jvp`` calls, whose tensors do not say what they carry."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


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
    """Within the block autocast is off, on a type of device, and products of float32 are not rounded to less.

    Free where that is so already. How products are rounded, :func:`torch.set_float32_matmul_precision`, is a setting of
    the process: while any thread is within such a block, those of the others are not rounded either. Out of reach are a
    program of torch.compile or torch.export, which multiplies as the process says when it runs, and the gradients that
    autograd takes after the block.
    """
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not torch.compiler.is_compiling() and (_PRODUCTS.within or rounds_products()):
        return _cast_and_rounded_nowhere(device) if casts else _PRODUCTS
    return torch.autocast(device, enabled=False) if casts else nullcontext()


def rounds_products() -> bool:
    """Whether torch may round the factors of a product of float32, to bfloat16 or TF32, by any of its settings."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # The settings of single backends say something else than the one for all.
        return True


@contextmanager
def _cast_and_rounded_nowhere(device: str) -> Iterator[None]:
    with _PRODUCTS, torch.autocast(device, enabled=False):
        yield


class _WholeProducts(AbstractContextManager[None]):
    """Products of float32 in float32 while any thread is within: the first in sets it, the last out undoes it."""

    def __init__(self) -> None:
        self.within = 0
        self._turn = threading.Lock()
        self._before: tuple[str, list[str]] = "highest", []

    def __enter__(self) -> None:
        with self._turn:
            # Counted before anything is set, since others look at the count first, and without waiting for their turn.
            self.within += 1
            if self.within == 1:
                self._before = _everywhere(), [backend.fp32_precision for backend in _backends()]
                torch.set_float32_matmul_precision("highest")

    def __exit__(self, *error: object) -> None:
        with self._turn:
            if self.within == 1:
                everywhere, single = self._before
                torch.set_float32_matmul_precision(everywhere)
                for backend, precision in zip(_backends(), single, strict=True):
                    if backend.fp32_precision != precision:
                        backend.fp32_precision = "none"  # as all backends are, unless that is not what it was
                    if backend.fp32_precision != precision:
                        backend.fp32_precision = precision
            self.within -= 1


_PRODUCTS = _WholeProducts()


def _everywhere() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _backends() -> tuple[Any, ...]:
    return torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]


def precise(values: torch.Tensor) -> torch.Tensor:
    """At least float32: distances and solves in half precision overflow and lose their digits."""
    if values.dtype is torch.float32 or values.dtype is torch.float64:
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32))


class KeepsFloat32(nn.Module):
    """A module of which a conversion to half precision passes some numbers by, in which they would be zero or infinite.

    Gradients of what would have been converted are dropped.
    """

    KEPT: ClassVar[tuple[str, ...]] = ()
    """Parameters and buffers that keep float32, as far as the module has them."""

    def _apply(self: M, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> M:
        """As in every module, but for :attr:`KEPT`."""
        before = {name: getattr(self, name).detach() for name in self.KEPT if getattr(self, name, None) is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            present = getattr(self, name)
            if present.dtype in (torch.float16, torch.bfloat16):
                present.data, present.grad = precise(value).to(present.device), None
        return self

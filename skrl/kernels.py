"""Radial kernels, each its formula in the scaled distance r = ‖x − x'‖ / ℓ.

Every kernel is normalised: κ(0) = 1. Formulas follow Rasmussen and Williams, *Gaussian Processes for Machine Learning*
(2006), chapter 4. Lengthscales, Gram matrices and batching are the caller's work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from difflib import get_close_matches

import torch

from skrl.shapes import Float, Tensor


class Kernel(ABC):
    """A stationary isotropic kernel, stateless; two kernels of one class are equal."""

    @abstractmethod
    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values κ(r) of scaled distances r ≥ 0, any shape."""

    def __eq__(self, other: object) -> bool:
        """Kernels carry no state, so their class decides."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash(type(self))

    def __repr__(self) -> str:
        """The constructor call."""
        return f"{type(self).__name__}()"


class Gaussian(Kernel):
    r"""κ(r) = exp(−r²/2)."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        return torch.exp(-0.5 * r.square())


class Laplace(Kernel):
    r"""κ(r) = exp(−r), also known as the exponential or Matérn-1/2 kernel."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        return torch.exp(-r)


class Matern32(Kernel):
    r"""κ(r) = (1 + √3 r) exp(−√3 r)."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        scaled = math.sqrt(3.0) * r
        return (1.0 + scaled) * torch.exp(-scaled)


class Matern52(Kernel):
    r"""κ(r) = (1 + √5 r + 5r²/3) exp(−√5 r)."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        scaled = math.sqrt(5.0) * r
        return (1.0 + scaled + scaled.square() / 3.0) * torch.exp(-scaled)


KERNELS: dict[str, type[Kernel]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "matern32": Matern32,
    "matern52": Matern52,
}


def make_kernel(kernel: str | Kernel) -> Kernel:
    """A kernel from its name, or the kernel itself.

    Raises:
        ValueError: the name is unknown; the message names the nearest one.
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        near = get_close_matches(kernel, KERNELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown kernel '{kernel}'; did you mean '{near}'? Known: {', '.join(KERNELS)}")
    return KERNELS[kernel]()

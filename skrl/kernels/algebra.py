"""What every kernel is, and how kernels are made of kernels: sums, products, scaled and stretched ones.

Positive definite functions are closed under these operations: Rasmussen and Williams, *Gaussian Processes for Machine
Learning* (2006), section 4.2.4.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import reduce
from typing import TypeVar

import numpy as np
from torch import nn

from skrl.shapes import Float, Tensor

Value = TypeVar("Value", float, Tensor)


class Kernel(ABC):
    """A positive definite function, evaluated on the distances of a local system.

    Kernels of equal class and fields are equal; one that holds tensors, or is a module, equals itself alone.
    ``a + b``, ``a * b``, ``0.3 * a`` and ``a.stretched(5.0)`` make new kernels of old ones.
    """

    prior_variance: float = 1.0
    """κ(z, z), the posterior variance far from every support point; of a radial kernel κ(0)."""

    parts: tuple[Kernel, ...] = ()
    """The kernels that it is made of."""

    is_radial: bool = True
    """Whether the kernel is a function of one distance, so that ``kernel(r)`` is defined."""

    @abstractmethod
    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values κ(r) of scaled distances r ≥ 0, any shape."""

    def blocks(
        self, cross: Float[Tensor, "*batch k"], pairs: Float[Tensor, "*batch k k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
        """κ_z and K of local systems.

        Args:
            cross: scaled distances of a query to its k points, [*batch, k].
            pairs: scaled distances among the points, [*batch, k, k].

        Returns:
            Values between the query and the points, [*batch, k], and among the points, [*batch, k, k].
        """
        return self(cross), self(pairs)

    @property
    def is_built_in(self) -> bool:
        """Whether it is made of kernels of this package alone, which hold no tensors and know their value at zero."""
        return type(self).__module__.startswith("skrl.") and all(part.is_built_in for part in self.parts)

    @classmethod
    def for_dimension(cls, dim: int) -> Kernel:
        """The kernel for points of ``dim`` dimensions; most serve any."""
        return cls()

    def stretched(self, factor: float) -> Kernel:
        """The kernel with its lengthscale multiplied by ``factor``, relative to the other terms of a sum or product."""
        return Stretched(self, factor)

    def __add__(self, other: Kernel) -> Kernel:
        """Sum of two kernels."""
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Kernel | float) -> Kernel:
        """Product with a kernel or with a positive number."""
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scaled(self, float(other)) if isinstance(other, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        """Class and fields decide, or identity."""
        if self is other or type(self) is not type(other) or _is_its_own(self) or _is_its_own(other):
            return self is other
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        """Consistent with equality."""
        if _is_its_own(self):
            return object.__hash__(self)
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        """The expression that makes the kernel."""
        return f"{type(self).__name__}()"


def _is_its_own(kernel: object) -> bool:
    """Whether identity decides: what is learned changes, and tensors have no one answer to whether they are equal."""
    return isinstance(kernel, nn.Module) or any(map(_holds_tensors, vars(kernel).values()))


def _holds_tensors(field: object) -> bool:
    if isinstance(field, (list, tuple)):
        return any(map(_holds_tensors, field))
    return isinstance(field, (Tensor, np.ndarray))


class Composite(Kernel):
    """A kernel made of others; subclasses say how two values combine.

    Args:
        first: a kernel.
        second: another.
        others: and so on. A part of the same class is replaced by its own parts, so that brackets do not matter.
    """

    symbol: str

    def __init__(self, first: Kernel, second: Kernel, *others: Kernel) -> None:
        parts: list[Kernel] = []
        for part in (first, second, *others):
            parts.extend(part.parts if isinstance(part, type(self)) else [part])
        self.parts = tuple(parts)
        self.is_radial = all(part.is_radial for part in parts)
        self.prior_variance = reduce(self.combine, [part.prior_variance for part in parts])

    @staticmethod
    @abstractmethod
    def combine(left: Value, right: Value) -> Value:
        """Value of the whole from the values of two parts."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        return reduce(self.combine, [part(r) for part in self.parts])

    def blocks(
        self, cross: Float[Tensor, "*batch k"], pairs: Float[Tensor, "*batch k k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
        """See :meth:`Kernel.blocks`."""
        crosses, grams = zip(*(part.blocks(cross, pairs) for part in self.parts), strict=True)
        return reduce(self.combine, crosses), reduce(self.combine, grams)

    def __repr__(self) -> str:
        """The expression."""
        return "(" + f" {self.symbol} ".join(map(repr, self.parts)) + ")"


class Sum(Composite):
    """κ = κ₁ + κ₂ + …"""

    symbol = "+"

    @staticmethod
    def combine(left: Value, right: Value) -> Value:
        """The sum."""
        return left + right


class Product(Composite):
    """κ = κ₁ κ₂ …"""

    symbol = "*"

    @staticmethod
    def combine(left: Value, right: Value) -> Value:
        """The product."""
        return left * right


class Scaled(Kernel):
    """c · κ.

    Args:
        kernel: κ.
        weight: c, positive and finite.

    Raises:
        ValueError: the weight is not.
    """

    def __init__(self, kernel: Kernel, weight: float) -> None:
        if not 0.0 < weight < math.inf:
            raise ValueError(f"weight is {weight}, but must be positive and finite; leave out a term of weight zero")
        self.kernel, self.weight = kernel, float(weight)
        self.is_radial, self.prior_variance = kernel.is_radial, self.weight * kernel.prior_variance

    @property
    def parts(self) -> tuple[Kernel, ...]:  # type: ignore[override]  # read alone, as everywhere
        """The kernel inside."""
        return (self.kernel,)

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        return self.weight * self.kernel(r)

    def blocks(
        self, cross: Float[Tensor, "*batch k"], pairs: Float[Tensor, "*batch k k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
        """See :meth:`Kernel.blocks`."""
        values, gram = self.kernel.blocks(cross, pairs)
        return self.weight * values, self.weight * gram

    def __repr__(self) -> str:
        """The expression."""
        return f"({self.weight!r} * {self.kernel!r})"


class Stretched(Kernel):
    """κ(r / factor): the kernel with its lengthscale multiplied.

    Args:
        kernel: κ.
        factor: multiple of the lengthscale, positive and finite.

    Raises:
        ValueError: the factor is not.
    """

    def __init__(self, kernel: Kernel, factor: float) -> None:
        if not 0.0 < factor < math.inf:
            raise ValueError(f"factor is {factor}, but must be positive and finite; 1 keeps the lengthscale")
        self.kernel, self.factor = kernel, float(factor)
        self.is_radial, self.prior_variance = kernel.is_radial, kernel.prior_variance

    @property
    def parts(self) -> tuple[Kernel, ...]:  # type: ignore[override]  # read alone, as everywhere
        """The kernel inside."""
        return (self.kernel,)

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        return self.kernel(r / self.factor)

    def blocks(
        self, cross: Float[Tensor, "*batch k"], pairs: Float[Tensor, "*batch k k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
        """See :meth:`Kernel.blocks`."""
        return self.kernel.blocks(cross / self.factor, pairs / self.factor)

    def __repr__(self) -> str:
        """The expression."""
        return f"{self.kernel!r}.stretched({self.factor!r})"

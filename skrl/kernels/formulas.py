"""Kernels, each its formula in the scaled distance r = ‖x − x'‖ / ℓ.

Every kernel here is normalised, κ(x, x) = 1 (the polynomial at the query), and one lengthscale means about the same
width for all of them. Formulas follow Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006),
chapter 4, and Wendland, *Scattered Data Approximation* (2005), chapter 9. Lengthscales, Gram matrices and batching are
the caller's work; sums and products are in :mod:`skrl.kernels.algebra`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from difflib import get_close_matches

import torch

from skrl.kernels.algebra import Kernel
from skrl.modes import traced
from skrl.shapes import Float, Tensor


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
        decay = torch.exp(-math.sqrt(3.0) * r)
        # The decay meets r first: √3 r may overflow, r · exp(−√3 r) cannot.
        return decay + math.sqrt(3.0) * (r * decay)


class Matern52(Kernel):
    r"""κ(r) = (1 + √5 r + 5r²/3) exp(−√5 r)."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        # Half of the exponential goes into each factor of the square, which would overflow on its own.
        half = torch.exp(-0.5 * math.sqrt(5.0) * r)
        linear = math.sqrt(5.0) * (r * half)
        return (half + linear) * half + linear.square() / 3.0


class InverseMultiquadric(Kernel):
    r"""κ(r) = (1 + r²)^(−1/2): its tail decays like 1/r, so far points keep a say."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        # The hypotenuse is taken without squaring, which would overflow where 1/r does not vanish yet.
        return torch.hypot(r, torch.ones_like(r)).reciprocal()


class Wendland(Kernel):
    r"""Wendland's compactly supported kernels of minimal degree, exactly zero from ``radius`` lengthscales on.

    Positive definite in at most ``dim`` dimensions. The support radius is chosen so that the curvature at zero is −1,
    like the Gaussian's: with the radius as the lengthscale the kernel would shrink to a spike as ``dim`` grows. So it
    tends to the Matérn kernel of the same smoothness.

    Args:
        dim: largest dimension of the points.

    Raises:
        ValueError: the dimension is below 1.
    """

    smoothness: int

    def __init__(self, dim: int = 3) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}, but must be at least 1; give the dimension of the points")
        self.dim = dim

    @classmethod
    def for_dimension(cls, dim: int) -> Kernel:
        """See :meth:`Kernel.for_dimension`."""
        return cls(dim)

    @property
    def order(self) -> int:
        """ℓ = ⌊dim/2⌋ + smoothness + 1, in Wendland's notation."""
        return self.dim // 2 + self.smoothness + 1

    @property
    @abstractmethod
    def radius(self) -> float:
        """Support radius in lengthscales."""

    def __repr__(self) -> str:
        """The constructor call."""
        return f"{type(self).__name__}(dim={self.dim})"


class WendlandC2(Wendland):
    r"""φ(t) = (1 − t)₊^(ℓ+1) ((ℓ + 1) t + 1) at t = r / radius, twice continuously differentiable."""

    smoothness = 1

    @property
    def radius(self) -> float:
        """√((ℓ + 1)(ℓ + 2)) lengthscales."""
        return math.sqrt((self.order + 1) * (self.order + 2))

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        power = self.order + 1
        t = (r / self.radius).clamp(max=1.0)
        return (1.0 - t).pow(power) * (power * t + 1.0)


class WendlandC4(Wendland):
    r"""φ(t) = (1 − t)₊^(ℓ+2) ((ℓ² + 4ℓ + 3) t² + (3ℓ + 6) t + 3) / 3 at t = r / radius, four times differentiable."""

    smoothness = 2

    @property
    def radius(self) -> float:
        """√((ℓ + 3)(ℓ + 4) / 3) lengthscales."""
        return math.sqrt((self.order + 3) * (self.order + 4) / 3.0)

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Values of scaled distances, any shape."""
        order = self.order
        t = (r / self.radius).clamp(max=1.0)
        quadratic, linear = (order**2 + 4 * order + 3) / 3.0, order + 2.0
        return (1.0 - t).pow(order + 2) * ((quadratic * t + linear) * t + 1.0)


class Polynomial(Kernel):
    r"""κ(x, x') = (1 + (x − z)·(x' − z) / ℓ²)^degree around the query z: ridge regression on local monomials.

    Centred at the query, so it does not depend on the origin; the query's own row is constant, κ(z, x) = 1. For
    local polynomial regression see W. Cleveland, *Robust Locally Weighted Regression and Smoothing Scatterplots*, 1979.

    Args:
        degree: highest degree of the monomials.

    Raises:
        ValueError: the degree is below 1.
    """

    is_radial = False

    def __init__(self, degree: int = 2) -> None:
        if degree < 1:
            raise ValueError(f"degree is {degree}, but must be at least 1; 1 is a local linear regression")
        self.degree = degree

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Undefined: raises ``TypeError``, since no single distance gives an inner product."""
        raise TypeError(f"{self} is not a function of one distance; use .blocks(cross, pairs)")

    def blocks(
        self, cross: Float[Tensor, "*batch k"], pairs: Float[Tensor, "*batch k k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k k"]]:
        """See :meth:`Kernel.blocks`; inner products follow from the three distances of each triangle."""
        squares = cross.square()
        products = 0.5 * (squares.unsqueeze(-1) + squares.unsqueeze(-2) - pairs.square())
        return torch.ones_like(cross), (1.0 + products).pow(self.degree)

    def __repr__(self) -> str:
        """The constructor call."""
        return f"Polynomial(degree={self.degree})"


KERNELS: dict[str, type[Kernel]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "matern32": Matern32,
    "matern52": Matern52,
    "inverse_multiquadric": InverseMultiquadric,
    "wendland_c2": WendlandC2,
    "wendland_c4": WendlandC4,
    "polynomial": Polynomial,
}


def make_kernel(kernel: str | Kernel, dim: int = 3) -> Kernel:
    """A kernel from its name, or the kernel itself.

    Args:
        kernel: a kernel or its name.
        dim: dimension of the points, for named kernels that are positive definite up to some dimension only.

    Raises:
        TypeError: it is neither a kernel nor a name.
        ValueError: the name is unknown; the message names the nearest one. The dimension is below 1. A kernel of the
            caller's own has another value at distance zero than it says.
    """
    if isinstance(kernel, Kernel):
        _check_prior_variance(kernel)
        return kernel
    if not isinstance(kernel, str):
        raise TypeError(f"kernel is {kernel!r}, but must be a name or a Kernel; a class is to be called, as Matern32()")
    if kernel not in KERNELS:
        near = get_close_matches(kernel, KERNELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown kernel '{kernel}'; did you mean '{near}'? Known: {', '.join(KERNELS)}")
    return KERNELS[kernel].for_dimension(dim)


def _check_prior_variance(kernel: Kernel) -> None:
    """A radial kernel of the caller's own is at distance zero what it says, else systems fail, or answer wrongly.

    Asked on a CPU, where nobody has to wait for the value; a kernel whose tensors lie elsewhere is not asked.
    """
    if kernel.is_built_in or not kernel.is_radial or traced():
        return
    with torch.no_grad():
        try:
            value = float(kernel(torch.zeros(1, device="cpu")))
        except Exception:  # whatever a formula for other devices says; a broken one says it again where it is used
            return
    if not 0.0 < value < math.inf:
        raise ValueError(
            f"{kernel!r} is {value:.4g} at distance zero, but must be positive and finite there; repair it"
        )
    if not math.isclose(value, kernel.prior_variance, rel_tol=1e-3):
        raise ValueError(
            f"{kernel!r} is {value:.4g} at distance zero, but its prior_variance is {kernel.prior_variance:.4g}; "
            "divide the formula by its value at zero, or set prior_variance to it"
        )

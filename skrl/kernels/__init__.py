"""Kernels: their formulas, sums and products of them, and the distances that they are functions of."""

from skrl.kernels.algebra import Kernel, Product, Scaled, Stretched, Sum
from skrl.kernels.formulas import (
    KERNELS,
    Gaussian,
    InverseMultiquadric,
    Laplace,
    Matern32,
    Matern52,
    Polynomial,
    Wendland,
    WendlandC2,
    WendlandC4,
    make_kernel,
)

__all__ = [
    "KERNELS",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Matern32",
    "Matern52",
    "Polynomial",
    "Product",
    "Scaled",
    "Stretched",
    "Sum",
    "Wendland",
    "WendlandC2",
    "WendlandC4",
    "make_kernel",
]

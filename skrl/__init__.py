"""Sparse Kernels: local, lazy, differentiable kernel ridge regression in PyTorch.

This is the kernel core of *sparse-kernel-rl*; the package of the same name on PyPI is another project.
"""

from skrl.kernels import KERNELS, Gaussian, Kernel, Laplace, Matern32, Matern52, make_kernel
from skrl.local_solve import LocalSystem, Prediction, factorise
from skrl.memory import SupportMemory
from skrl.neighbors import ExactSearch, Neighbors, NeighborSearch
from skrl.sparse_kernel import SparseKernel, sparse_kernel
from skrl.tuning import leave_one_out_ridge, leave_one_out_rmse, neighbor_lengthscale
from skrl.value_heads import AveragingHead, NetworkFreeHead, ResidualHead, ValueHead

DISTRIBUTION = "sparse-kernel-rl"
"""Marks this package as ours, where a foreign package of the same name may be installed."""

__all__ = [
    "DISTRIBUTION",
    "KERNELS",
    "AveragingHead",
    "ExactSearch",
    "Gaussian",
    "Kernel",
    "Laplace",
    "LocalSystem",
    "Matern32",
    "Matern52",
    "NeighborSearch",
    "Neighbors",
    "NetworkFreeHead",
    "Prediction",
    "ResidualHead",
    "SparseKernel",
    "SupportMemory",
    "ValueHead",
    "factorise",
    "leave_one_out_ridge",
    "leave_one_out_rmse",
    "make_kernel",
    "neighbor_lengthscale",
    "sparse_kernel",
]

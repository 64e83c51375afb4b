"""Sparse Kernels: local, lazy, differentiable kernel ridge regression in PyTorch.

This is the kernel core of *sparse-kernel-rl*; the package of the same name on PyPI is another project.
"""

from skrl.cuda_graph import CapturedQuery, capture
from skrl.kernels import (
    KERNELS,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplace,
    Matern32,
    Matern52,
    Polynomial,
    WendlandC2,
    WendlandC4,
    make_kernel,
)
from skrl.memory import SupportMemory
from skrl.memory.kmeans import KMeansCentres
from skrl.memory.novelty import Novelty
from skrl.memory.selection import SELECTIONS, Newest, UniformReservoir
from skrl.memory.selection_rule import SelectionRule
from skrl.memory.subsets import newest_and_uniform, p_greedy
from skrl.readouts import SparseKernelClassifier, SparseKernelRegressor
from skrl.readouts.feature_scaling import FeatureScaling
from skrl.readouts.linear_readouts import LinearClassifier, LinearRegressor
from skrl.readouts.probe import LayerScore, ProbeReport, probe_layers
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Neighbors, NeighborSearch
from skrl.solve.local_solve import LocalSystem, Prediction, factorise
from skrl.sparse_kernel import SparseKernel, sparse_kernel
from skrl.tuning import Tuned, leave_one_out_rmse, neighbor_lengthscale, tune
from skrl.tuning.leave_one_out import leave_one_out_loss
from skrl.value_heads import AveragingHead, NetworkFreeHead, ResidualHead, ValueHead

DISTRIBUTION = "sparse-kernel-rl"
"""Marks this package as ours, where a foreign package of the same name may be installed."""

__all__ = [
    "DISTRIBUTION",
    "KERNELS",
    "SELECTIONS",
    "AveragingHead",
    "CapturedQuery",
    "ExactSearch",
    "FeatureScaling",
    "Gaussian",
    "InverseMultiquadric",
    "KMeansCentres",
    "Kernel",
    "Laplace",
    "LayerScore",
    "LinearClassifier",
    "LinearRegressor",
    "LocalSystem",
    "Matern32",
    "Matern52",
    "NeighborSearch",
    "Neighbors",
    "NetworkFreeHead",
    "Newest",
    "Novelty",
    "Polynomial",
    "Prediction",
    "ProbeReport",
    "ResidualHead",
    "SelectionRule",
    "SparseKernel",
    "SparseKernelClassifier",
    "SparseKernelRegressor",
    "SupportMemory",
    "Tuned",
    "UniformReservoir",
    "ValueHead",
    "WendlandC2",
    "WendlandC4",
    "capture",
    "factorise",
    "leave_one_out_loss",
    "leave_one_out_rmse",
    "make_kernel",
    "neighbor_lengthscale",
    "newest_and_uniform",
    "p_greedy",
    "probe_layers",
    "sparse_kernel",
    "tune",
]

"""Readouts of features: sparse-kernel and linear ones, with the interface of scikit-learn, and probes of layers."""

from skrl.readouts.linear_readouts import LinearClassifier, LinearRegressor
from skrl.readouts.probe import LayerScore, ProbeReport, probe_layers
from skrl.readouts.sparse_kernel_readouts import (
    AUTOMATIC,
    SHARPNESSES,
    SparseKernelClassifier,
    SparseKernelReadout,
    SparseKernelRegressor,
    Trial,
    likeliest_sharpness,
)

__all__ = [
    "AUTOMATIC",
    "SHARPNESSES",
    "LayerScore",
    "LinearClassifier",
    "LinearRegressor",
    "ProbeReport",
    "SparseKernelClassifier",
    "SparseKernelReadout",
    "SparseKernelRegressor",
    "Trial",
    "likeliest_sharpness",
    "probe_layers",
]

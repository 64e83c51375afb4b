"""Lengthscale, ridge and number of neighbours from the data, by leave-one-out losses."""

from skrl.tuning.hyperparameters import (
    DEFAULT_RIDGE,
    FEWEST,
    LENGTHSCALE_STEP,
    RIDGE_STEP,
    ROUNDS,
    Tuned,
    leave_one_out_rmse,
    median_neighbor_distance,
    neighbor_lengthscale,
    tune,
)

__all__ = [
    "DEFAULT_RIDGE",
    "FEWEST",
    "LENGTHSCALE_STEP",
    "RIDGE_STEP",
    "ROUNDS",
    "Tuned",
    "leave_one_out_rmse",
    "median_neighbor_distance",
    "neighbor_lengthscale",
    "tune",
]

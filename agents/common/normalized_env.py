"""Environments for models that were trained in SB3's `VecNormalize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize


def require_normalized(model: BaseAlgorithm, env: VecEnv) -> None:
    """Make sure that an environment is normalised when the model's own is.

    Raises:
        ValueError: it is not.
    """
    if model.get_vec_normalize_env() is not None and unwrap_vec_normalize(env) is None:
        raise ValueError(
            "the model was trained in VecNormalize, but the environment is not in one; give model.get_env()"
        )


@contextmanager
def frozen_statistics(env: VecEnv) -> Iterator[None]:
    """Keep the statistics of `VecNormalize`, if there is one, where the network knows them."""
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        yield
        return
    training, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = training

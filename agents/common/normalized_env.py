"""Environments for models that were trained in SB3's `VecNormalize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize


def require_normalized(model: BaseAlgorithm, env: VecEnv) -> None:
    """Make sure that an environment is normalised when the model's own is, by statistics of something.

    What a model without an environment was trained in, nobody knows.

    Raises:
        ValueError: it is not.
    """
    own, normalize = model.get_vec_normalize_env(), unwrap_vec_normalize(env)
    if normalize is own:
        return
    if normalize is None:
        raise ValueError(
            "the model was trained in VecNormalize, but the environment is not in one; give model.get_env()"
        )
    if normalize.norm_obs and _observations_seen(normalize) < 1:
        raise ValueError(
            "the environment's VecNormalize has seen no observation, so that its statistics are not the model's; give "
            "model.get_env(), or VecNormalize.load(…) with the statistics that were saved beside the model"
        )


def require_same_rewards(model: BaseAlgorithm, env: VecEnv) -> None:
    """Make sure that an environment gives rewards in the scale of a model's values: normalised as the model's own does.

    What a model without an environment was trained in, nobody knows.

    Raises:
        ValueError: it gives rewards of another scale.
    """
    if model.get_env() is None:
        return
    own, given = _normalizes_rewards(model.get_vec_normalize_env()), _normalizes_rewards(unwrap_vec_normalize(env))
    if given != own:
        raise ValueError(
            f"norm_reward is {given} for the environment, but {own} in the model's own, so that rewards would have "
            f"another scale than the action values; set it to {own} in VecNormalize, or give model.get_env()"
        )


def _normalizes_rewards(normalize: VecNormalize | None) -> bool:
    return normalize is not None and normalize.norm_reward


def _observations_seen(normalize: VecNormalize) -> float:
    """How many observations the statistics are of, the fewest of any part."""
    statistics = normalize.obs_rms
    parts = statistics.values() if isinstance(statistics, dict) else [statistics]
    return min(float(part.count) for part in parts)


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

"""Environments: vectorised construction of any Gymnasium id, and small decision processes with known values."""

from envs.episode_quota import EpisodeQuota
from envs.make_env import ATARI_NAMESPACE, EnvironmentArgumentError, UnknownEnvironmentError, make_env
from envs.tabular import ChainEnv, DeepSeaEnv, GridWorldEnv, TabularEnv, value_iteration

__all__ = [
    "ATARI_NAMESPACE",
    "ChainEnv",
    "DeepSeaEnv",
    "EnvironmentArgumentError",
    "EpisodeQuota",
    "GridWorldEnv",
    "TabularEnv",
    "UnknownEnvironmentError",
    "make_env",
    "value_iteration",
]

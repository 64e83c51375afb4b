"""Whether the budget of a run lets its agent learn anything."""

from __future__ import annotations

from agents.common.schema import ConfigError
from agents.training.config import ActorCriticConfig, PPOConfig, QLearningConfig, RunConfig


def check_budget(config: RunConfig) -> None:
    """Make sure that an agent does not end as it began.

    Raises:
        ConfigError: the budget ends within the first rollout of an agent that learns from whole ones, or within the
            steps that a replay buffer is filled before the first update; or a rollout is a single step.
    """
    budget = f"total_timesteps is {config.total_timesteps}"
    if isinstance(config, PPOConfig):
        rollout = config.n_steps * config.n_envs
        if rollout < 2:
            raise ConfigError(
                f"n_steps is {config.n_steps} and n_envs {config.n_envs}, but a rollout of {config.agent} must hold at "
                "least 2 steps, whose advantages compare; raise --n-steps"
            )
        if rollout > config.total_timesteps:
            raise ConfigError(
                f"{budget}, but the first rollout of {config.agent} takes {rollout} steps (n_steps {config.n_steps} x "
                f"n_envs {config.n_envs}), so nothing would be learned; raise --total-timesteps or lower --n-steps"
            )
    if isinstance(config, QLearningConfig | ActorCriticConfig) and config.learning_starts >= config.total_timesteps:
        raise ConfigError(
            f"{budget}, but the first update of {config.agent} comes after learning_starts {config.learning_starts} "
            "steps, so nothing would be learned; raise --total-timesteps or lower --learning-starts"
        )

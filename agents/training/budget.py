"""Whether the budget of a run lets its agent learn anything."""

from __future__ import annotations

from collections.abc import Iterator

from agents.common.schema import ConfigError
from agents.training.command_line import spelled
from agents.training.config import (
    ActorCriticConfig,
    DeepQConfig,
    DQKConfig,
    KernelDDQNConfig,
    KernelQConfig,
    KernelQuantileConfig,
    PPOConfig,
    QLearningConfig,
    RunConfig,
)


def check_budget(config: RunConfig) -> None:
    """Make sure that an agent does not end as it began.

    Raises:
        ConfigError: the budget ends within the first rollout of an agent that learns from whole ones, or before the
            first update of one that fills a replay buffer first, of its network or of its kernel; or a rollout is a
            single step, a round of updates has none, or a replay buffer has no room for the supports that are drawn
            from it.
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
    if isinstance(config, DeepQConfig | ActorCriticConfig) and config.gradient_steps == 0:
        raise ConfigError(
            f"gradient_steps is 0, so {config.agent} would learn nothing; give --gradient-steps 1 or more, or -1 for "
            "as many as environment steps since the last round"
        )
    if isinstance(config, DQKConfig):
        _check_room(config)
    if isinstance(config, QLearningConfig | ActorCriticConfig):
        for learner, setting, period in _updates(config):
            first = (config.learning_starts // period + 1) * period
            if first > config.total_timesteps:
                copies = " or --n-envs" if config.n_envs > 1 else ""
                raise ConfigError(
                    f"{budget}, but the first update of {learner} comes after learning_starts "
                    f"{config.learning_starts} steps, at step {first}, since updates come every {period} steps "
                    f"({setting} {getattr(config, setting)}, n_envs {config.n_envs}), so nothing would be learned; "
                    f"raise --total-timesteps or lower --learning-starts or {spelled(setting)}{copies}"
                )


def _check_room(config: DQKConfig) -> None:
    room = config.buffer_size // config.n_envs * config.n_envs
    if room < config.kernel.capacity:
        raise ConfigError(
            f"buffer_size is {config.buffer_size}, room for {room} transitions of {config.n_envs} environments, but "
            f"{config.agent} draws {config.kernel.capacity} supports from them; raise --buffer-size or lower "
            "--kernel.capacity"
        )


def _updates(config: QLearningConfig | ActorCriticConfig) -> Iterator[tuple[str, str, int]]:
    """What learns, the setting that says how often, and the environment steps from one update to the next."""
    if not isinstance(config, KernelQConfig):
        yield config.agent, "train_freq", config.train_freq * config.n_envs
    if isinstance(config, KernelQConfig | KernelDDQNConfig | KernelQuantileConfig):
        learner = config.agent if isinstance(config, KernelQConfig) else f"the kernel of {config.agent}"
        period = max(config.target_update_interval // config.n_envs, 1) * config.n_envs
        yield learner, "target_update_interval", period

"""Settings of a training run: the single truth for the command line, the YAML files and the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from agents.common.schema import (
    CommandLineOnly,
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveFraction,
    Range,
    coerce_mapping,
)
from agents.kernel_ddqn.kernel_config import KernelConfig


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whichever the agent."""

    agent: str = "kernel_ddqn"
    """Learning algorithm: dqn, ddqn, kernel_ddqn, knn_ddqn or kernel_q."""

    env: str = "CartPole-v1"
    """Gymnasium id of the environment."""

    total_timesteps: Count = 10_000
    """Environment steps to learn from."""

    seed: NonNegative = 0
    """Seed of environments, network and exploration; evaluations derive theirs from it."""

    run_dir: str | None = None
    """Folder of the run; None for runs/AGENT/ENV/seedSEED."""

    n_envs: Count = 1
    """Copies of the environment stepped together."""

    device: str = "auto"
    """Torch device; auto takes a GPU when there is one."""

    threads: Count = 1
    """CPU threads of torch; small networks are fastest with one."""

    n_evaluations: Count = 10
    """Greedy evaluations during training, spread evenly over the budget of environment steps."""

    n_eval_episodes: Count = 10
    """Episodes of each evaluation during training."""

    n_final_eval_episodes: Count = 20
    """Episodes of the evaluation of the final model."""

    progress_bar: bool = True
    """Show a progress bar, and a line for every evaluation."""

    verbose: Annotated[int, Range(least=0, most=2)] = 0
    """Output of Stable-Baselines3: 0 nothing, 1 training figures, 2 details."""

    config: Annotated[str | None, CommandLineOnly()] = None
    """YAML file laid over the agent's own settings; the config.yaml of a run repeats that run."""

    force: Annotated[bool, CommandLineOnly()] = False
    """Overwrite the folder of a finished run."""

    def __post_init__(self) -> None:
        """Coerce every field to its type and reject what is out of range."""
        for name, value in coerce_mapping(type(self), vars(self)).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class QLearningConfig(RunConfig):
    """Settings of learning action values from replayed transitions, with or without a network."""

    buffer_size: Count = 100_000
    """Transitions that the replay buffer keeps."""

    learning_starts: NonNegative = 500
    """Environment steps of random actions before the first update."""

    gamma: Fraction = 0.99
    """Discount factor per environment step."""

    train_freq: Count = 4
    """Environment steps between two rounds of updates, per copy of the environment."""

    n_steps: Count = 3
    """Rewards summed before bootstrapping."""

    target_update_interval: Count = 100
    """Environment steps between two target updates; without a network, between two value sweeps."""

    exploration_fraction: Fraction = 0.12
    """Share of the budget over which the exploration rate falls."""

    exploration_initial_eps: Fraction = 1.0
    """Probability of a random action at the start."""

    exploration_final_eps: Fraction = 0.05
    """Probability of a random action after the fall."""


@dataclass(frozen=True)
class TrainConfig(QLearningConfig):
    """Settings of a deep Q-network, by the names of Stable-Baselines3's DQN."""

    policy: Literal["auto", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = "auto"
    """Kind of network; auto takes the one that fits the observation space."""

    net_arch: tuple[Count, ...] = (256, 256)
    """Units of the hidden layers; behind the convolutions when the observation is an image."""

    learning_rate: Positive = 5e-4
    """Step size of Adam."""

    batch_size: Count = 128
    """Transitions in a gradient step."""

    gradient_steps: Annotated[int, Range(least=-1)] = 4
    """Gradient steps in a round of updates; -1 for as many as environment steps since the last round."""

    tau: PositiveFraction = 1.0
    """Share of the online network in a target update; 1 copies it."""

    max_grad_norm: Positive = 10.0
    """Norm to which longer gradients are shortened."""


@dataclass(frozen=True)
class KernelTrainConfig(TrainConfig):
    """Settings of a deep Q-network with a kernel beside it."""

    kernel: KernelConfig = field(default_factory=KernelConfig)
    """What the value head remembers, how it predicts, and how often it is refreshed."""


@dataclass(frozen=True)
class KernelQConfig(QLearningConfig):
    """Settings of the kernel alone, without a network and without gradients."""

    kernel: KernelConfig = field(default_factory=lambda: KernelConfig(head="network_free"))
    """What the value head remembers, how it predicts, and how often it is refreshed."""

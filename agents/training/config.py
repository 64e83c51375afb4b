"""Settings of a training run: the single truth for the command line, the YAML files and the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from agents.common.schema import (
    CommandLineOnly,
    Count,
    Fraction,
    NonNegative,
    NonNegativeReal,
    Positive,
    PositiveFraction,
    Range,
    Seed,
    coerce_mapping,
)
from agents.dqk.perturbation_config import PerturbationConfig
from agents.kernel_actor_critic.action_kernel_config import ActionKernelConfig
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.kernel_q import KERNEL as NETWORK_FREE
from agents.kernel_ppo.critic_config import CriticConfig

ZetaExponent = Annotated[float, Range(above=1.0)]


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whichever the agent."""

    agent: str = "kernel_ddqn"
    """Learning algorithm: kernel_ddqn, kernel_ppo, kernel_sac, ddqn, ppo, sac, or another that the README lists."""

    env: str = "CartPole-v1"
    """Gymnasium id; module:Name-v0 imports what registers it, --env-kwargs.NAME VALUE is for its constructor."""

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor: --env-kwargs.is-slippery false."""

    max_episode_steps: Count | None = None
    """Actions after which an episode is cut; None leaves that to the environment."""

    total_timesteps: Count = 10_000
    """Environment steps to learn from."""

    seed: Seed = 0
    """Seed of environments, network and exploration; evaluations derive theirs from it."""

    run_dir: str | None = None
    """Folder of the run; None for runs/AGENT/ENV/seedSEED."""

    n_envs: Count = 1
    """Copies of the environment stepped together."""

    device: str = "auto"
    """Torch device; auto takes a GPU when there is one."""

    threads: Annotated[int, Range(least=1, most=1024)] = 1
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
    """Share of random actions at the start."""

    exploration_final_eps: Fraction = 0.05
    """Share of random actions after the fall."""


@dataclass(frozen=True)
class NetworkConfig(RunConfig):
    """Settings of whatever trains a network by gradient steps."""

    policy: Literal["auto", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = "auto"
    """Kind of network; auto takes the one that fits the observation space."""

    net_arch: tuple[Count, ...] = (256, 256)
    """Units of the hidden layers; behind the convolutions when the observation is an image."""

    learning_rate: Positive = 5e-4
    """Step size of Adam."""

    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """Course of the step size: constant, or linear to zero at the end of the budget."""

    batch_size: Count = 128
    """Transitions in a gradient step."""


@dataclass(frozen=True)
class DeepQConfig(QLearningConfig, NetworkConfig):
    """Settings that every deep Q-network has, by the names of Stable-Baselines3."""

    gradient_steps: Annotated[int, Range(least=-1)] = 4
    """Gradient steps in a round of updates; -1 for as many as environment steps since the last round."""

    tau: PositiveFraction = 1.0
    """Share of the online network in a target update; 1 copies it."""


@dataclass(frozen=True)
class DQNConfig(DeepQConfig):
    """Settings of a deep Q-network, by the names of Stable-Baselines3's DQN."""

    max_grad_norm: Positive = 10.0
    """Norm to which longer gradients are shortened."""


@dataclass(frozen=True)
class DoubleDQNConfig(DQNConfig):
    """Settings of Double DQN."""

    huber_threshold: NonNegativeReal = 0.0
    """Where the loss turns from quadratic to linear, in running means of the absolute TD error; 0 for SB3's fixed 1."""

    exploration_zeta: ZetaExponent | None = None
    """Exponent of the zeta distribution of how many steps a random action lasts: 2 is usual; None for one step."""


@dataclass(frozen=True)
class QuantileConfig(DeepQConfig):
    """Settings of quantile regression DQN, whose gradients nothing shortens."""

    n_quantiles: Count = 200
    """Quantiles of the return that the network predicts for every action."""


@dataclass(frozen=True)
class LastingActionsConfig(RunConfig):
    """Settings of random actions that last, as kernel agents explore."""

    exploration_final_eps: Fraction = 0.15
    """Share of random actions after the fall."""

    exploration_zeta: ZetaExponent | None = 2.0
    """Exponent of the zeta distribution of how many steps a random action lasts: 2 is usual; None for one step."""


@dataclass(frozen=True)
class DQKConfig(DoubleDQNConfig):
    """Settings of Double DQN with learned kernels inside the network."""

    kernel: PerturbationConfig = field(default_factory=PerturbationConfig)
    """The kernel of both perturbations; its supports and targets are learned."""


@dataclass(frozen=True)
class KernelQuantileConfig(LastingActionsConfig, QuantileConfig):
    """Settings of quantile regression DQN with a kernel beside the mean of its quantiles."""

    kernel: KernelConfig = field(default_factory=KernelConfig)
    """What the value head remembers, how it predicts, and how often it is refreshed."""


@dataclass(frozen=True)
class PPOConfig(NetworkConfig):
    """Settings of proximal policy optimisation, by the names of Stable-Baselines3's PPO."""

    n_steps: Count = 2048
    """Environment steps in a rollout, per copy of the environment."""

    batch_size: Annotated[int, Range(least=2)] = 64
    """Steps of a rollout in a gradient step; PPO scales advantages within these."""

    n_epochs: Count = 10
    """Passes over a rollout."""

    gamma: Fraction = 0.99
    """Discount factor per environment step."""

    gae_lambda: Fraction = 0.95
    """Weight of longer returns in the advantage; 1 takes the whole return."""

    clip_range: Positive = 0.2
    """Change of an action's probability ratio beyond which its gradient is cut."""

    clip_range_schedule: Literal["constant", "linear"] = "constant"
    """Course of the clip range: constant, or linear to zero at the end of the budget."""

    ent_coef: NonNegativeReal = 0.0
    """Weight of the policy's entropy in the objective."""

    vf_coef: NonNegativeReal = 0.5
    """Weight of the value function's loss in the objective."""

    max_grad_norm: Positive = 0.5
    """Norm to which longer gradients are shortened."""

    normalize: bool = False
    """Scale observations and rewards by running statistics; for observations that are vectors."""


@dataclass(frozen=True)
class ActorCriticConfig(NetworkConfig):
    """Settings of an actor-critic that learns continuous actions from replayed transitions."""

    net_arch: tuple[Count, ...] = (256, 256)
    """Units of the hidden layers of actor and critics; behind the convolutions when the observation is an image."""

    batch_size: Count = 256
    """Transitions in a gradient step."""

    buffer_size: Count = 1_000_000
    """Transitions that the replay buffer keeps."""

    learning_starts: NonNegative = 100
    """Environment steps of random actions before the first update."""

    gamma: Fraction = 0.99
    """Discount factor per environment step."""

    tau: PositiveFraction = 0.005
    """Share of the critics in an update of the target critics."""

    train_freq: Count = 1
    """Environment steps between two rounds of updates, per copy of the environment."""

    gradient_steps: Annotated[int, Range(least=-1)] = 1
    """Gradient steps in a round of updates; -1 for as many as environment steps since the last round."""

    n_steps: Count = 1
    """Rewards summed before bootstrapping."""


@dataclass(frozen=True)
class SACConfig(ActorCriticConfig):
    """Settings of soft actor-critic, by the names of Stable-Baselines3's SAC, which tunes its entropy weight itself."""

    learning_rate: Positive = 3e-4
    """Step size of Adam."""


@dataclass(frozen=True)
class TD3Config(ActorCriticConfig):
    """Settings of twin delayed policy gradients, by the names of Stable-Baselines3's TD3."""

    learning_rate: Positive = 1e-3
    """Step size of Adam."""

    policy_delay: Count = 2
    """Updates of the critics per update of the actor."""

    target_policy_noise: NonNegativeReal = 0.2
    """Standard deviation of the noise on the actions in targets, which run from -1 to 1."""

    target_noise_clip: NonNegativeReal = 0.5
    """Where that noise is cut."""

    action_noise_std: NonNegativeReal = 0.1
    """Standard deviation of the noise on the actions taken while learning, which run from -1 to 1."""


@dataclass(frozen=True)
class KernelSACConfig(SACConfig):
    """Settings of soft actor-critic with a kernel behind the target critics."""

    kernel: ActionKernelConfig = field(default_factory=ActionKernelConfig)
    """What is remembered of replayed transitions, how it predicts, and how often it is refreshed."""


@dataclass(frozen=True)
class KernelTD3Config(TD3Config):
    """Settings of twin delayed policy gradients with a kernel behind the target critics."""

    kernel: ActionKernelConfig = field(default_factory=ActionKernelConfig)
    """What is remembered of replayed transitions, how it predicts, and how often it is refreshed."""


@dataclass(frozen=True)
class KernelPPOConfig(PPOConfig):
    """Settings of proximal policy optimisation with a kernel beside the critic."""

    kernel: CriticConfig = field(default_factory=CriticConfig)
    """What the critic remembers of rollouts, and how it predicts."""


@dataclass(frozen=True)
class KernelDDQNConfig(LastingActionsConfig, DoubleDQNConfig):
    """Settings of a deep Q-network with a kernel beside it."""

    huber_threshold: NonNegativeReal = 4.0
    """Where the loss turns from quadratic to linear, in running means of the absolute TD error; 0 for SB3's fixed 1."""

    kernel: KernelConfig = field(default_factory=KernelConfig)
    """What the value head remembers, how it predicts, and how often it is refreshed."""


@dataclass(frozen=True)
class KernelQConfig(LastingActionsConfig, QLearningConfig):
    """Settings of the kernel alone, without a network and without gradients."""

    kernel: KernelConfig = field(default_factory=lambda: KernelConfig.from_mapping(NETWORK_FREE))
    """What the value head remembers, how it predicts, and how often it is refreshed."""

"""Greedy evaluation that leaves training as it would be without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.common.atomic_save import atomic_write
from agents.common.evaluation_mode import mode_dependent, running_statistics
from agents.common.nonfinite import NonFiniteError
from agents.training.config import RunConfig

PERIODIC_SEED_OFFSET = 10_000
FINAL_SEED_OFFSET = 20_000
MOST_COPIES = 10


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of the episodes of one evaluation, [episodes]."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the return over episodes."""
        return float(np.std(self.returns))


def evaluation_copies(config: RunConfig) -> int:
    """Copies of the environment that evaluations of a run step together: batched queries cost little more than one.

    The number depends on the settings alone, so that a later evaluation plays the very episodes of the run's own.
    """
    return min(config.n_eval_episodes, MOST_COPIES)


def evaluate_greedily(model: BaseAlgorithm | BasePolicy, env: VecEnv, episodes: int, seed: int) -> Evaluation:
    """Play greedy episodes that start from the same states whenever the seed is the same.

    Args:
        model: a trained algorithm, or its policy.
        env: an environment of its own, apart from the training one, as `make_env` makes for evaluation.
        episodes: how many to play.
        seed: seed of the environment's next reset.

    Returns:
        Returns and lengths, as `Monitor` counts them: undiscounted, in environment steps, of Atari in frames.
    """
    env.seed(seed)
    for copy in range(env.num_envs):
        # As evaluate_policy shares episodes out.
        env.env_method("set_quota", (episodes + copy) // env.num_envs, indices=copy)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=episodes, return_episode_rewards=True)
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return Evaluation([float(value) for value in returns], [int(value) for value in lengths])


def has_finite_parameters(model: BaseAlgorithm) -> bool:
    """Whether no parameter of a model's policy is NaN or infinite, and no statistic that its layers keep beside."""
    learned = [*model.policy.parameters(), *running_statistics(mode_dependent(model.policy))]
    return all(bool(tensor.isfinite().all()) for tensor in learned)


def bad_parameters(model: BaseAlgorithm) -> NonFiniteError:
    """What to say of a model whose parameters are not finite."""
    return NonFiniteError(
        f"stopped at step {model.num_timesteps}: the network's parameters are not finite. {type(model).__name__} does "
        "not skip bad updates; DoubleDQN, KernelDDQN and DQK do"
    )


class PeriodicEvaluation(BaseCallback):
    """Evaluate at even shares of the budget, log, and keep the best model.

    Every evaluation starts from the same states, so the scores of one run compare, and their number changes nothing in
    training. Steps beyond the budget, which an agent with long rollouts would take, end training unlearned: agents
    compare at equal steps.

    Args:
        env: environment for evaluation only.
        total_timesteps: budget in environment steps.
        n_evaluations: how many; the last comes with the last step.
        episodes: greedy episodes in each.
        seed: seed of the run.
        best_model: file for the model with the highest mean return.
        report: called with step and result after each.
    """

    def __init__(
        self,
        env: VecEnv,
        *,
        total_timesteps: int,
        n_evaluations: int,
        episodes: int,
        seed: int,
        best_model: Path,
        report: Callable[[int, Evaluation], None],
    ) -> None:
        super().__init__()
        self.eval_env = env
        self.total_timesteps = total_timesteps
        self.due = [-(-total_timesteps * share // n_evaluations) for share in range(1, n_evaluations + 1)]
        self.episodes = episodes
        self.seed = seed + PERIODIC_SEED_OFFSET
        self.best_model = best_model
        self.report = report
        self.timesteps: list[int] = []
        self.mean_returns: list[float] = []
        self.training_seconds: list[float] = []
        self.seconds = 0.0
        self.started = perf_counter()

    @property
    def best_mean_return(self) -> float:
        """Highest mean return so far."""
        return max(self.mean_returns)

    def _on_training_start(self) -> None:
        self.started = perf_counter()

    def _on_step(self) -> bool:
        if self.due and self.num_timesteps >= self.due[0]:
            self.due = [step for step in self.due if step > self.num_timesteps]
            start = perf_counter()
            self.training_seconds.append(start - self.started - self.seconds)
            self._evaluate()
            self.seconds += perf_counter() - start
        return self.num_timesteps <= self.total_timesteps

    def _evaluate(self) -> None:
        if not has_finite_parameters(self.model):
            raise bad_parameters(self.model)
        evaluation = evaluate_greedily(self.model, self.eval_env, self.episodes, self.seed)
        if not self.mean_returns or evaluation.mean > self.best_mean_return:
            atomic_write(self.best_model, self.model.save)
        self.timesteps.append(self.num_timesteps)
        self.mean_returns.append(evaluation.mean)
        self.logger.record("eval/mean_reward", evaluation.mean)
        self.logger.record("eval/mean_ep_length", float(np.mean(evaluation.lengths)))
        self.model.dump_logs()
        self.report(self.num_timesteps, evaluation)

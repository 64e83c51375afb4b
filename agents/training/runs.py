"""One training run: from settings to a result."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from agents.common.atomic_save import atomic_write, write_text
from agents.common.nonfinite import NonFiniteError
from agents.common.schema import ConfigError
from agents.training.budget import check_budget
from agents.training.config import ActorCriticConfig, PPOConfig, QLearningConfig, RunConfig
from agents.training.evaluation import (
    FINAL_SEED_OFFSET,
    Evaluation,
    PeriodicEvaluation,
    bad_parameters,
    evaluate_greedily,
    has_finite_parameters,
)
from agents.training.provenance import commit, machine, versions
from agents.training.registry import build_model
from agents.training.run_folder import RunFolder
from agents.training.settings import dump_config

MOST_LETTERS = 300
"""Of what torch says of a model that does not fit, which names every tensor."""


class InterruptedLearning(KeyboardInterrupt):
    """The user interrupted a run whose model has been saved."""


@dataclass(frozen=True)
class RunResult:
    """The content of `result.json`.

    Steps are environment steps, returns undiscounted. `eval_seconds` is the wall clock of training up to each
    evaluation, `train_seconds` that of all of it, both without the evaluations themselves; `wall_seconds` is the run's.
    """

    agent: str
    env: str
    seed: int
    total_timesteps: int
    eval_timesteps: list[int]
    eval_mean_returns: list[float]
    eval_seconds: list[float]
    final_mean_return: float
    final_std_return: float
    best_mean_return: float
    wall_seconds: float
    train_seconds: float
    versions: dict[str, str | None]
    machine: str
    commit: str | None


def train(config: RunConfig, env: VecEnv, eval_env: VecEnv, report: Callable[[int, Evaluation], None]) -> RunResult:
    """Learn, evaluate and save.

    Args:
        config: complete settings.
        env: training environment.
        eval_env: environment for evaluations only.
        report: called with step and result after every periodic evaluation.

    Returns:
        What `result.json` in the run folder holds.

    Raises:
        ConfigError: the agent does not serve the environment, the budget is too small for it to learn anything, or the
            run folder is taken.
        InterruptedLearning: the user interrupted learning, or the final evaluation; `model.zip` holds what was learned.
        NonFiniteError: training met values that are not finite; if the parameters are, `model.zip` holds them.
        Exception: whatever the environment raises, of which the same is true.
    """
    start = perf_counter()
    folder = RunFolder.of(config)
    folder.check_free(force=config.force)
    check_budget(config)
    source = commit()  # of the code that runs; what is committed meanwhile is not part of it
    torch.set_num_threads(config.threads)
    model = build_model(config, env)
    with folder.locked():
        folder.check_free(force=config.force)  # Another run may have ended here meanwhile.
        return _train(config, model, eval_env, folder, report, start, source)


def _train(
    config: RunConfig,
    model: BaseAlgorithm,
    eval_env: VecEnv,
    folder: RunFolder,
    report: Callable[[int, Evaluation], None],
    start: float,
    source: str | None,
) -> RunResult:
    folder.clear()
    # A folder of runs may be moved and shared, so its files do not say where it lay.
    write_text(folder.config, dump_config(replace(config, run_dir=None)))
    evaluation, learn_seconds = _learn(config, model, eval_env, folder, report)
    atomic_write(folder.model("final"), model.save)
    try:
        final = evaluate_greedily(model, eval_env, config.n_final_eval_episodes, config.seed + FINAL_SEED_OFFSET)
    except KeyboardInterrupt as interrupt:
        raise InterruptedLearning from interrupt
    result = RunResult(
        agent=config.agent,
        env=config.env,
        seed=config.seed,
        total_timesteps=config.total_timesteps,
        eval_timesteps=evaluation.timesteps,
        eval_mean_returns=evaluation.mean_returns,
        eval_seconds=evaluation.training_seconds,
        final_mean_return=final.mean,
        final_std_return=final.std,
        best_mean_return=evaluation.best_mean_return,
        wall_seconds=perf_counter() - start,
        train_seconds=learn_seconds - evaluation.seconds,
        versions=versions(),
        machine=machine(),
        commit=source,
    )
    write_text(folder.result, json.dumps(asdict(result), indent=2) + "\n")
    return result


def load_model(config: RunConfig, env: VecEnv, file: Path) -> BaseAlgorithm:
    """Rebuild a trained model from its settings and load its tensors, without unpickling anything.

    Args:
        config: settings of the run.
        env: environment to act in.
        file: saved model.

    Returns:
        The model.

    Raises:
        ConfigError: the file is missing, cannot be read, is no saved model, or does not fit the settings.
    """
    # Nothing is stored or updated while evaluating: reserve nothing, and spare the warnings on the number of copies.
    if isinstance(config, QLearningConfig):
        interval = max(config.target_update_interval, env.num_envs)
        config = replace(config, buffer_size=1, target_update_interval=interval)
    if isinstance(config, ActorCriticConfig):
        config = replace(config, buffer_size=env.num_envs)
    if isinstance(config, PPOConfig):
        config = replace(config, n_steps=2, batch_size=2 * env.num_envs)
    if not file.is_file():
        raise ConfigError(f"there is no {file.name} in {file.parent}; has the run come so far?")
    model = build_model(config, env)
    try:
        model.set_parameters(str(file), device=model.device)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        words = " ".join(str(error).split())[:MOST_LETTERS] or type(error).__name__
        raise ConfigError(f"{file} does not hold a model that fits its config.yaml: {words}") from error
    return model


def _learn(
    config: RunConfig,
    model: BaseAlgorithm,
    eval_env: VecEnv,
    folder: RunFolder,
    report: Callable[[int, Evaluation], None],
) -> tuple[PeriodicEvaluation, float]:
    """Run `learn` with its evaluations; the second value is its wall-clock time in seconds."""
    evaluation = PeriodicEvaluation(
        eval_env,
        total_timesteps=config.total_timesteps,
        n_evaluations=config.n_evaluations,
        episodes=config.n_eval_episodes,
        seed=config.seed,
        best_model=folder.model("best"),
        report=report,
    )
    outputs = ["tensorboard", "stdout"] if config.verbose else ["tensorboard"]
    model.set_logger(configure(str(folder.path), outputs))
    bars = [ProgressBarCallback()] if config.progress_bar else []
    start = perf_counter()
    try:
        model.learn(config.total_timesteps, callback=CallbackList([evaluation, *bars]))
        if not has_finite_parameters(model):  # since the last evaluation
            raise bad_parameters(model)
    except KeyboardInterrupt as interrupt:
        atomic_write(folder.model("final"), model.save)
        raise InterruptedLearning from interrupt
    except NonFiniteError as error:
        if not has_finite_parameters(model):
            raise
        atomic_write(folder.model("final"), model.save)
        raise NonFiniteError(f"{error} {folder.model('final').name} holds them.") from error
    except Exception as error:
        finite = has_finite_parameters(model)
        # Of torch, whose distributions refuse parameters that are not finite; which of the two depends on whether
        # anything in the process has switched their checks off.
        if not finite and isinstance(error, ValueError | RuntimeError):
            raise bad_parameters(model) from error
        if finite and model.num_timesteps:  # the fault is of the environment, the machine or the code
            atomic_write(folder.model("final"), model.save)
        raise
    finally:
        model.logger.close()
        for bar in bars:
            if hasattr(bar, "pbar"):  # SB3 closes it where learning ends well, and Python too late for its tools
                bar.pbar.close()
    return evaluation, perf_counter() - start

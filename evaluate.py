"""Score a saved run: python evaluate.py RUN_DIR --episodes 20 --video."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

try:
    from agents.startup import check_installation

    check_installation()
except ImportError as error:
    advice = "; use .venv/bin/python, which `make train` sets up" if isinstance(error, ModuleNotFoundError) else ""
    print(f"evaluate.py: {error}{advice}", file=sys.stderr)
    sys.exit(2)

import torch
from gymnasium.error import DependencyNotInstalled

from agents.common.schema import ConfigError, Range, Seed, construct
from agents.training.command_line import nest_flags, print_help, split_flags
from agents.training.evaluation import FINAL_SEED_OFFSET, evaluate_greedily, evaluation_copies
from agents.training.registry import present_device
from agents.training.report import show_evaluation, show_video
from agents.training.run_folder import Checkpoint, RunFolder
from agents.training.runs import load_model
from agents.training.settings import load_config
from agents.training.video import check_filming, film_writer, record_episode
from envs import ATARI_NAMESPACE, EnvironmentArgumentError, UnknownEnvironmentError, make_env

HELP = ("-h", "--help")


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how."""

    run_dir: str = ""
    """Folder of the run; may stand first on the command line, without the name."""

    episodes: Annotated[int, Range(least=1)] = 20
    """Greedy episodes to play."""

    checkpoint: Checkpoint = "final"
    """Which model: final, at the end of training, or best, at the highest evaluation during training."""

    seed: Seed | None = None
    """Seed of the episodes; None for those of the run's own final evaluation."""

    device: str | None = None
    """Where the networks live; None for that of the run, or for what there is where that is missing."""

    video: bool = False
    """Film one more greedy episode into the run folder."""


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 2 for bad input, 130 for an interrupted evaluation."""
    try:
        if any(word in HELP for word in argv):
            print_help(EvaluateOptions, EvaluateOptions(), "evaluate.py", "Score a saved run with greedy episodes.")
        else:
            run(read_options(argv))
    except (ConfigError, UnknownEnvironmentError, EnvironmentArgumentError, DependencyNotInstalled) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def read_options(argv: Sequence[str]) -> EvaluateOptions:
    """Options from a command line whose first word is the run folder.

    Raises:
        ConfigError: no folder is given, or a flag is unknown or has a wrong value.
    """
    named = ["--run-dir", *argv] if argv and not argv[0].startswith("--") else list(argv)
    options = construct(EvaluateOptions, nest_flags(EvaluateOptions, split_flags(named)))
    if not options.run_dir:
        raise ConfigError("which run? The folder comes first: python evaluate.py RUN_DIR [--episodes 20] [--video]")
    return options


def run(options: EvaluateOptions) -> None:
    """Rebuild the model, play, print the table, and film."""
    if options.video:
        film_writer()  # Said now, where it is missing, and not after the episodes.
    folder = RunFolder(Path(options.run_dir))
    folder.check_present()
    config = load_config(folder.config)
    config = replace(config, device=options.device or present_device(config.device))
    torch.set_num_threads(config.threads)
    seed = config.seed + FINAL_SEED_OFFSET if options.seed is None else options.seed
    limit = config.max_episode_steps
    make = partial(make_env, config.env, evaluation=True, max_episode_steps=limit, env_kwargs=config.env_kwargs)
    env = make(n_envs=evaluation_copies(config))
    try:
        if options.video:
            check_filming(env, folder.path)
        model = load_model(config, env, folder.model(options.checkpoint))
        evaluation = evaluate_greedily(model, env, options.episodes, seed)
    finally:
        env.close()
    kind = options.checkpoint if folder.result.exists() or options.checkpoint == "best" else "unfinished run's"
    title = f"{config.agent} on {config.env}, seed {config.seed}, {kind} model"
    show_evaluation(evaluation, title, unit="frames" if config.env.startswith(ATARI_NAMESPACE) else "steps")
    if options.video:
        env = make()
        try:
            show_video(record_episode(model, env, seed, folder.path, f"{options.checkpoint}-seed{seed}"))
        finally:
            env.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

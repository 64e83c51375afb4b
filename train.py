"""Train an agent: python train.py --agent kernel_ddqn --env CartPole-v1 --total-timesteps 10000 --seed 0."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import partial

try:
    from agents.startup import check_installation

    check_installation()
except ImportError as error:
    advice = "; use .venv/bin/python, which `make train` sets up" if isinstance(error, ModuleNotFoundError) else ""
    print(f"train.py: {error}{advice}", file=sys.stderr)
    sys.exit(2)

from gymnasium.error import DependencyNotInstalled

from agents.common.nonfinite import NonFiniteError
from agents.common.schema import ConfigError
from agents.training.command_line import print_help, split_flags
from agents.training.config import RunConfig
from agents.training.evaluation import evaluation_copies
from agents.training.registry import find_agent
from agents.training.report import report_evaluation, show_training
from agents.training.run_folder import RunFolder
from agents.training.runs import InterruptedLearning, train
from agents.training.settings import resolve
from envs import EnvironmentArgumentError, UnknownEnvironmentError, make_env

HELP = ("-h", "--help")


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 2 for bad input, 1 for a run that had to stop, 130 for an interrupted one."""
    try:
        config = resolve(split_flags([word for word in argv if word not in HELP]))
        if any(word in HELP for word in argv):
            description = f"{find_agent(config.agent).description} Values shown are those for {config.env}."
            print_help(type(config), config, "train.py", description)
        else:
            run(config)
    except (ConfigError, UnknownEnvironmentError, EnvironmentArgumentError, DependencyNotInstalled) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"train.py: out of memory: {error}; most of it goes to --buffer-size transitions", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        kept = "; model.zip holds what was learned so far" if isinstance(interrupt, InterruptedLearning) else ""
        print(f"train.py: interrupted, the run is unfinished and another may take its folder{kept}", file=sys.stderr)
        return 130
    return 0


def run(config: RunConfig) -> None:
    """Build the environments, train, and print the closing table."""
    folder = RunFolder.of(config)
    folder.check_free(force=config.force)
    make = partial(make_env, config.env, max_episode_steps=config.max_episode_steps, env_kwargs=config.env_kwargs)
    env = make(n_envs=config.n_envs, seed=config.seed)
    eval_env = make(n_envs=evaluation_copies(config), evaluation=True)
    report = report_evaluation if config.progress_bar else lambda step, evaluation: None
    try:
        result = train(config, env, eval_env, report)
    finally:
        env.close()
        eval_env.close()
    show_training(result, folder, config.n_final_eval_episodes)


def stop_as_ctrl_c_does() -> None:
    """Let whoever ends the job or closes its terminal keep what was learned; what `nohup` ignores stays ignored."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    stop_as_ctrl_c_does()
    sys.exit(main(sys.argv[1:]))

"""A grid of runs from its command line: variants × environments × seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from counts import check_counts
from grid_cells import ROOT, Cell
from grid_variants import read_settings, read_variants, split_pairs
from tasks import ENVIRONMENTS

from agents.common.schema import ConfigError
from agents.training.command_line import Flags
from envs import UnknownEnvironmentError
from envs.make_env import require_known

AGENTS = ("ddqn", "kernel_ddqn")
JOBS = 2


@dataclass(frozen=True)
class Grid:
    """Which runs to make, and where."""

    agents: tuple[str, ...] = ()
    """Agents by their `train.py` names, or variants of one as LABEL=AGENT,NAME=VALUE,…: `no_bonus=kernel_ddqn,
    kernel.exploration_bonus=0` (without the space). ddqn and kernel_ddqn when there are no variants either."""

    variants: Path | None = None
    """YAML file of further variants, each label with its settings: `benchmarks/ablations.yaml`."""

    envs: tuple[str, ...] = ENVIRONMENTS
    """Environments."""

    seeds: int = 5
    """How many seeds."""

    first_seed: int = 0
    """The first of them; the others follow."""

    total_timesteps: int | None = None
    """Environment steps of every run; what `configs/` says for its environment when left out."""

    budgets: tuple[str, ...] = ()
    """Environment steps by environment, as ENV=STEPS; they win over `total_timesteps`."""

    overrides: tuple[str, ...] = ()
    """Settings of every run, as NAME=VALUE: `kernel.k=32`; those of a variant win over them."""

    eval_episodes: int = 5
    """Greedy episodes of every evaluation during training; the final one has 20."""

    jobs: int | None = None
    """Runs at the same time on this machine, each with one thread; 2 when left out."""

    backend: Literal["processes", "dask"] = "processes"
    """Where the runs go: processes of this machine, or the workers of a dask cluster."""

    scheduler: str | None = None
    """Address of the dask scheduler, tcp://HOST:8786; needs the extra `cluster`."""

    folder: Path = ROOT / "runs" / "learning_curves"
    """Where the runs lie; a cell with a `result.json` of the same settings is finished."""

    redo: bool = False
    """Run cells again that finished with other settings, in place of refusing."""

    print_commands: bool = False
    """Print the commands of the unfinished cells, one a line, for a batch scheduler; run and write nothing. Call
    the grid again when they are done: it finds what is missing, and notes its own command for the report."""

    def __post_init__(self) -> None:
        """Refuse grids without cells and half an address."""
        if not self.envs:
            raise ConfigError("--envs names no environment; name one, or leave it out for the four of classic control")
        check_counts(self, "seeds", "jobs", "eval_episodes")
        if self.first_seed < 0:
            raise ConfigError(f"--first-seed is {self.first_seed}, but must be at least 0")
        if (self.backend == "dask") != (self.scheduler is not None):
            raise ConfigError("--backend dask and --scheduler tcp://HOST:8786 belong together; give both or neither")
        if self.backend == "dask" and self.jobs is not None:
            raise ConfigError(
                "with --backend dask the workers decide how many runs there are at once, so that --jobs has no effect; "
                "leave it out, and start as many workers (--nworkers)"
            )
        for name in ("scheduler", "jobs"):
            if self.print_commands and getattr(self, name) is not None:
                raise ConfigError(
                    f"--print-commands starts nothing, so that --{name} has no effect; leave one of them out"
                )

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an interrupted study compares every variant on the same seeds.

        Raises:
            ConfigError: an environment, a variant, a setting or a budget that `train.py` would refuse.
        """
        for env in self.envs:
            _check_known(env)
        agents = self.agents if self.agents or self.variants else AGENTS
        variants = read_variants(agents, self.variants)
        overrides = read_settings(self.overrides)
        if "total_timesteps" in overrides and (self.budgets or self.total_timesteps is not None):
            raise ConfigError(
                "total_timesteps is among --overrides, beside --total-timesteps or --budgets; keep one of them"
            )
        settings = {env: flags | overrides for env, flags in self._budgets().items()}
        cells = [
            Cell(variant, env, seed, self.folder.resolve(), settings[env])
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for env in settings
            for variant in variants
        ]
        for cell in cells:
            cell.check()
        return cells

    def _budgets(self) -> dict[str, Flags]:
        """Environment steps and evaluation episodes by environment."""
        budgets = split_pairs(self.budgets, "CartPole-v1=5000")
        if foreign := [env for env in budgets if env not in self.envs]:
            raise ConfigError(f"--budgets names {foreign[0]}, which is not among the environments")
        episodes = {"n_eval_episodes": [str(self.eval_episodes)]}
        everywhere = {} if self.total_timesteps is None else {"total_timesteps": [str(self.total_timesteps)]}
        own = {env: {"total_timesteps": [steps]} for env, steps in budgets.items()}
        return {env: episodes | everywhere | own.get(env, {}) for env in self.envs}


def _check_known(env: str) -> None:
    if ":" in env:
        return  # a module that lies beside train.py is found from there alone
    try:
        require_known(env)
    except UnknownEnvironmentError as error:
        raise ConfigError(str(error)) from error

"""What each layer of a trained agent knows about the state of its environment, seen through noise.

python examples/probe_agent.py runs/kernel_ddqn/CartPole-v1/seed0
python examples/probe_agent.py runs/ddqn/LunarLander-v3/seed0 --noise 1 --steps 6000
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from gymnasium.error import DependencyNotInstalled

from agents import AgentProbe, probe_agent
from agents.training.registry import present_device
from agents.training.run_folder import RunFolder
from agents.training.runs import load_model
from agents.training.settings import load_config
from envs import make_env


@dataclass(frozen=True)
class Settings:
    """What to probe."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as train.py leaves it; observations must be vectors."""

    steps: int = 3000
    """Environment steps to play: two thirds to fit readouts to, one to score them."""

    noise: float = 0.5
    """Standard deviation of the noise on what the network sees, in those of the observation's entries."""

    seed: int = 0
    """Of environment, exploration and noise."""


def main(settings: Settings) -> AgentProbe:
    """Probe, print the tables, draw the figure into the run folder, and give the scores back."""
    folder = RunFolder(settings.run_dir)
    config = load_config(folder.config)
    config = replace(config, device=present_device(config.device))
    limit, arguments = config.max_episode_steps, config.env_kwargs
    env = make_env(config.env, seed=settings.seed, max_episode_steps=limit, env_kwargs=arguments)
    model = load_model(config, env, folder.model("final"))
    probe = probe_agent(model, env, steps=settings.steps, noise=settings.noise, seed=settings.seed)
    print(probe.to_markdown())
    probe.plot(settings.run_dir / "probe.png")
    print(f"figure   {settings.run_dir / 'probe.png'}")
    return probe


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except (ValueError, DependencyNotInstalled) as error:
        sys.exit(f"probe_agent.py: {error}")

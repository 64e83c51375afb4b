"""A film of one greedy episode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.error import DependencyNotInstalled
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.common.extras import not_installed
from agents.common.schema import ConfigError

NO_PICTURES = "this environment renders no pictures (render mode rgb_array), so leave --video out"
FALLBACK_FRAMES_PER_SECOND = 30
SHORTEST_SIDE_PIXELS = 128
MOST_BYTES = 2 * 2**30
"""Of frames that wait in memory for the film to be written."""


def record_episode(model: BaseAlgorithm, env: VecEnv, seed: int, folder: Path, name: str) -> Path:
    """Film one greedy episode.

    Args:
        model: a trained algorithm.
        env: a single environment that renders to RGB arrays.
        seed: seed of the environment's next reset.
        folder: where the film goes.
        name: beginning of its file name.

    Returns:
        The mp4 file.

    Raises:
        ConfigError: the environment renders no RGB arrays, or the package that writes films is missing.
    """
    save_video = film_writer()
    frames = play_episode(model, env, seed)
    fps = env.get_attr("metadata", indices=0)[0].get("render_fps", FALLBACK_FRAMES_PER_SECOND)
    save_video(list(frames), str(folder), episode_trigger=lambda _: True, name_prefix=name, fps=fps)
    return folder / f"{name}-episode-0.mp4"


def check_filming(env: VecEnv, folder: Path) -> None:
    """Make sure, as far as can be known before an episode is played, that it can be filmed.

    Args:
        env: the environment.
        folder: where the film will go.

    Raises:
        ConfigError: the environment renders no RGB arrays, or the folder cannot be written.
    """
    modes = env.get_attr("metadata", indices=0)[0].get("render_modes") or ()
    if env.render_mode != "rgb_array" or "rgb_array" not in modes:
        raise ConfigError(NO_PICTURES)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"no film can be written into {folder}: {error.strerror}"
        raise ConfigError(f"{reason}; leave --video out, or copy the run to a folder that can be written") from error


def film_writer() -> Callable[..., None]:
    """Gymnasium's `save_video`, which can be had only where moviepy is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        from gymnasium.utils.save_video import save_video
    except (ImportError, DependencyNotInstalled) as error:
        raise ConfigError(not_installed("--video", "moviepy", "video")) from error
    return save_video


def play_episode(model: BaseAlgorithm, env: VecEnv, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Frames of one greedy episode, [height, width, 3] each.

    Args:
        model: a trained algorithm.
        env: a single environment that renders to RGB arrays, under SB3's `Monitor`.
        seed: seed of the environment's next reset.

    Returns:
        A frame per step, of the first steps alone where all would take more than :data:`MOST_BYTES`; the one after the
        last step is left out, for it shows the next episode already.

    Raises:
        ConfigError: the environment renders no RGB arrays.
    """
    env.seed(seed)
    observations: Any = env.reset()
    frames: list[npt.NDArray[np.uint8]] = []
    finished, size = False, 0
    while not finished and size < MOST_BYTES:
        frame = env.render()
        if frame is None:
            raise ConfigError(NO_PICTURES)
        frames.append(as_picture(frame))
        size += frames[-1].nbytes
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, infos = env.step(actions)
        finished = bool(dones[0]) and "episode" in infos[0]  # The monitor tells a game that is over from a lost life.
    if not finished:
        warnings.warn(f"the film ends after {len(frames):,} steps, for memory; the episode goes on", stacklevel=2)
    return frames


def as_picture(frame: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A frame as every player shows it: in uint8, tiny ones enlarged, sides even as the H.264 codec wants them.

    Args:
        frame: [height, width, 3], in uint8 or in floats between 0 and 1.

    Returns:
        The picture, [height, width, 3].
    """
    pixels = np.round(frame * 255.0) if np.issubdtype(frame.dtype, np.floating) else frame
    factor = -(-SHORTEST_SIDE_PIXELS // min(frame.shape[:2]))
    enlarged = pixels.astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (side - side % 2 for side in enlarged.shape[:2])
    return enlarged[:height, :width]

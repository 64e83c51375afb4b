"""One door to every environment: classic control, Box2D, Atari, MinAtar, and whatever else Gymnasium knows."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import ale_py
import gymnasium as gym
from ale_py import ALEInterface, LoggerMode
from gymnasium import spaces
from gymnasium.envs.registration import registry
from gymnasium.error import DependencyNotInstalled
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from envs import tabular
from envs.episode_quota import EpisodeQuota
from envs.forgetful_reset import ForgetfulReset

ATARI_NAMESPACE = "ALE/"
"""Beginning of the ids that come with Atari's preprocessing; what `Monitor` counts of them are emulator frames."""

MINATAR_NAMESPACE = "MinAtar/"
STACKED_FRAMES = 4
REPEATED_FRAMES = 4
FRAMES_PER_SECOND = 60
"""Of an Atari console; ale_py says 30, whatever its frame skip is."""

EVALUATION_LIMIT = 10_000
"""Steps after which an evaluation cuts an episode of an environment without a time limit of its own."""

ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

# SB3's wrapper repeats each action over four frames, so the emulator must not do it as well. Sticky actions stay at the
# 0.25 per frame that a v5 id promises: the stochastic protocol of Machado et al., *Revisiting the Arcade Learning
# Environment*, 2018, section 5. The emulator draws them per frame, so where the frames are skipped changes nothing.
ATARI_KWARGS = {"frameskip": 1, "obs_type": "rgb", "repeat_action_probability": 0.25}
OF_THE_PREPROCESSING = ("frameskip", "obs_type")
"""Arguments of an Atari game that SB3's wrapper counts on: it repeats actions and greys frames by itself."""

gym.register_envs(ale_py)
gym.register_envs(tabular)


class UnknownEnvironmentError(ValueError):
    """No environment can be made under this id; the message names the nearest one that can, or says what to do."""


class EnvironmentArgumentError(ValueError):
    """An environment's constructor does not take an argument or its value; the message is its own."""


def make_env(
    env_id: str,
    *,
    n_envs: int = 1,
    seed: int | None = None,
    evaluation: bool = False,
    max_episode_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """Build vectorised copies of an environment, each under SB3's `Monitor`.

    Atari ids (`ALE/...-v5`) come with SB3's preprocessing (Mnih et al., *Human-level control through deep reinforcement
    learning*, 2015): at most 30 no-ops, an action for 4 frames, 84 x 84 grey pixels, 4 frames stacked.

    Args:
        env_id: any Gymnasium id, of Atari games those above; `module:Name-v0` imports the module first.
        n_envs: copies stepped together in this process.
        seed: seed of the first copy, the next ones count up; None for an arbitrary one.
        evaluation: whether the return is to be the game's own: Atari rewards are then not clipped to their sign. The
            loss of a life ends what the agent sees as an episode, as in training, since some games wait for a button
            then, which the wrappers press; what `Monitor` reports, and SB3's `evaluate_policy` counts, are whole games.
            Each copy then is an :class:`EpisodeQuota`, too.
        max_episode_steps: actions after which an episode is cut, of an Atari game a quarter of its frames with the
            no-ops at its beginning; None for the environment's own limit, and where it has none for
            :data:`EVALUATION_LIMIT` in evaluations: a greedy policy that runs into a wall never ends one.
        env_kwargs: arguments of the environment's constructor.

    Returns:
        The vectorised environment.

    Raises:
        UnknownEnvironmentError: no such id, or another one of an Atari game, and the message names the nearest one; or
            what it needs is not installed, or Stable-Baselines3 cannot batch its observations.
        DependencyNotInstalled: likewise, in Gymnasium's own words.
        EnvironmentArgumentError: the constructor does not take an argument or its value, or Atari's preprocessing
            cannot follow it.
    """
    require_known(env_id)
    kwargs, is_atari = env_kwargs or {}, env_id.startswith(ATARI_NAMESPACE)
    if is_atari:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        kwargs = {**ATARI_KWARGS, **kwargs}
        _check_preprocessed(env_id, kwargs)
    elif evaluation and max_episode_steps is None and registry[env_id.rpartition(":")[2]].max_episode_steps is None:
        kwargs = {"max_episode_steps": EVALUATION_LIMIT, **kwargs}
    if max_episode_steps is not None:
        # The limit lies inside of the wrapper that repeats actions, beside the monitor that has to see its cut.
        kwargs = {**kwargs, "max_episode_steps": max_episode_steps * (REPEATED_FRAMES if is_atari else 1)}

    def wrapped(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        _check_batched(env_id, env.observation_space)
        if max_episode_steps is None and env.spec is not None and isinstance(env.unwrapped, tabular.TabularEnv):
            _check_limit(env.unwrapped, env.spec.max_episode_steps)
        if is_atari:
            env = AtariWrapper(env, frame_skip=REPEATED_FRAMES, clip_reward=not evaluation)
            env.metadata = {**env.metadata, "render_fps": FRAMES_PER_SECOND // REPEATED_FRAMES}
        elif env_id.startswith(MINATAR_NAMESPACE):
            env = ForgetfulReset(env)
        return EpisodeQuota(env) if evaluation else env

    try:
        env = make_vec_env(env_id, n_envs=n_envs, seed=seed, wrapper_class=wrapped, env_kwargs=kwargs)
    except (DependencyNotInstalled, UnknownEnvironmentError):
        raise
    except ImportError as error:
        raise UnknownEnvironmentError(
            f"environment '{env_id}' needs what is not installed: {_in_one_line(error)}"
        ) from error
    except Exception as error:  # constructors refuse arguments by any exception, an assertion or a KeyError among them
        if env_kwargs:
            raise EnvironmentArgumentError(f"{env_id} does not take {env_kwargs}: {_in_one_line(error)}") from error
        if isinstance(error, TypeError) and "required" in str(error):
            raise EnvironmentArgumentError(
                f"{env_id} cannot be made without arguments: {_in_one_line(error)}; give --env-kwargs.NAME VALUE"
            ) from error
        raise
    return VecFrameStack(env, n_stack=STACKED_FRAMES) if is_atari else env


def require_known(env_id: str) -> None:
    """Make sure that an id can be built, after registering the optional package that it needs.

    Raises:
        UnknownEnvironmentError: no such id, the package that provides it is not installed, or it is an Atari game's but
            does not begin with the namespace by which preprocessing and settings know one.
    """
    if env_id.lower().startswith(MINATAR_NAMESPACE.lower()):
        _register_minatar()
    module, colon, name = env_id.rpartition(":")
    if colon:
        _import_registering(module, env_id)
    if name not in registry:
        raise UnknownEnvironmentError(f"unknown environment '{env_id}'; did you mean '{nearest_id(name)}'?")
    if _is_of_ale(name) and not env_id.startswith(ATARI_NAMESPACE):
        raise UnknownEnvironmentError(
            f"environment '{env_id}' is an Atari game, but only an id that begins with '{ATARI_NAMESPACE}' brings the "
            f"preprocessing and the settings for one; use '{_preprocessed_id(name)}'"
        )


def _in_one_line(error: Exception) -> str:
    """What an exception says; its name too where that is no sentence."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__} {words}".rstrip() if isinstance(error, LookupError) or not words else words


def _check_batched(env_id: str, space: spaces.Space[Any]) -> None:
    """Refuse observations that Stable-Baselines3 cannot batch: it takes arrays, and a Dict or a Tuple of arrays."""
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    parts = list(space.spaces) if isinstance(space, spaces.Tuple) else parts
    for part in parts:
        if not isinstance(part, ARRAYS):
            raise UnknownEnvironmentError(
                f"{env_id} has the observation space {space}, but Stable-Baselines3 can batch no {type(part).__name__} "
                "in it; wrap it, for example with gymnasium.wrappers.FlattenObservation"
            )


def _check_preprocessed(env_id: str, kwargs: dict[str, Any]) -> None:
    """Refuse arguments of an Atari game whose frames the preprocessing could not take."""
    for name in OF_THE_PREPROCESSING:
        if kwargs[name] != ATARI_KWARGS[name]:
            raise EnvironmentArgumentError(
                f"{env_id} does not take {name}={kwargs[name]!r}: SB3's preprocessing repeats actions and greys frames "
                f"by itself, and needs {name}={ATARI_KWARGS[name]!r}; leave it out"
            )


def _check_limit(env: tabular.TabularEnv, limit: int | None) -> None:
    """Refuse a size whose end no episode reaches; who gives a limit of their own has chosen it."""
    if limit is not None and (steps := env.steps_to_end()) > limit:
        raise ValueError(
            f"its end is {steps} steps away, but an episode has {limit}; give max_episode_steps of {steps} or more, "
            "or a smaller size"
        )


def nearest_id(name: str) -> str:
    """The id closest to a name, letter case aside, of those that `make_env` takes."""
    by_lower = {known.lower(): known for known in sorted(registry)}
    nearest = by_lower[get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)[0]]
    return _preprocessed_id(nearest) if _is_of_ale(nearest) else nearest


def _is_of_ale(name: str) -> bool:
    """Whether ale_py makes the environment, which has old ids (`PongNoFrameskip-v4`), too."""
    return str(registry[name].entry_point).startswith(f"{ale_py.__name__}.")


def _preprocessed_id(name: str) -> str:
    """The id with the namespace of Atari for the game that another one plays."""
    game = registry[name].kwargs.get("game")
    own = (known for known in registry if known.startswith(ATARI_NAMESPACE))
    return next((known for known in own if registry[known].kwargs.get("game") == game), f"{ATARI_NAMESPACE}GAME-v5")


def _import_registering(module: str, env_id: str) -> None:
    if not module:
        raise UnknownEnvironmentError(f"environment '{env_id}' names no module before its colon; leave the colon out")
    if module.startswith("."):
        raise UnknownEnvironmentError(
            f"environment '{env_id}' imports '{module}', but relative to what? Give the module's whole name"
        )
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UnknownEnvironmentError(f"environment '{env_id}' imports a module that is missing: {error}") from error


def _register_minatar() -> None:
    """Register the MinAtar games, which their package does only when asked."""
    if find_spec("minatar") is None:
        raise UnknownEnvironmentError(
            "MinAtar is not installed; in the folder of this project run: pip install -e '.[minatar]'"
        )
    if not any(known.startswith(MINATAR_NAMESPACE) for known in registry):
        importlib.import_module("minatar.gym").register_envs()

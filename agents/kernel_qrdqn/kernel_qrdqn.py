"""Quantile regression DQN whose values a kernel corrects by local regression of Bellman residuals."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agents.common.atomic_save import AtomicSave
from agents.common.derived_settings import DerivedSettings
from agents.common.lasting_exploration import LastingExploration
from agents.common.named_runs import NamedRuns
from agents.common.replay_view import check_returns
from agents.kernel_ddqn.kernel_ddqn import DEFAULTS as KERNEL_DDQN
from agents.kernel_ddqn.kernel_deep_q import KernelDeepQ
from agents.kernel_ddqn.live_kernel import LiveKernel
from agents.kernel_qrdqn.policies import KernelQRDQNCnnPolicy, KernelQRDQNMultiInputPolicy, KernelQRDQNPolicy

DEFAULTS: dict[str, Any] = {name: value for name, value in KERNEL_DDQN.items() if name != "huber_threshold"}
"""Settings in place of those of sb3-contrib's QRDQN, which are for millions of steps of Atari; those of KernelDDQN."""

QUANTILES = 25
"""Of every action's return, in place of QRDQN's 200, likewise."""


class KernelQRDQN(KernelDeepQ, AtomicSave, DerivedSettings, LastingExploration, NamedRuns, QRDQN):
    """Quantile regression DQN with a residual head on the mean of its quantiles.

    W. Dabney, M. Rowland, M. G. Bellemare and R. Munos, *Distributional Reinforcement Learning with Quantile
    Regression*, 2018, as sb3-contrib has it, whose update stays as it is: its target network answers with the quantiles
    moved by R(s', ·), and with an empty memory the two are equal bit for bit.

    Takes every argument of :class:`sb3_contrib.QRDQN`, by name and with other :attr:`defaults`, ``kernel`` and
    ``bonus_schedule`` of :class:`KernelDeepQ`, which says what is refused, and ``exploration_zeta`` of
    :class:`LastingExploration`. The policy is ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy`` or a subclass of
    :class:`KernelQRDQNPolicy`. For dict observations ``n_steps`` is 1 when left out, since SB3 sums no rewards of them.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": KernelQRDQNPolicy,
        "CnnPolicy": KernelQRDQNCnnPolicy,
        "MultiInputPolicy": KernelQRDQNMultiInputPolicy,
    }
    defaults: ClassVar[dict[str, Any]] = DEFAULTS
    needed_policy: ClassVar[type[BasePolicy]] = KernelQRDQNPolicy

    policy: KernelQRDQNPolicy
    replay_kernel: LiveKernel | None

    def __init__(
        self,
        policy: str | type[KernelQRDQNPolicy],
        env: GymEnv | str | None,
        *,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        env = maybe_make_env(env, kwargs.get("verbose", 0)) if env is not None else None  # load() passes None
        if env is not None and isinstance(env.observation_space, spaces.Dict):
            kwargs.setdefault("n_steps", 1)
        super().__init__(policy, env, _init_setup_model=False, **kwargs)
        # Without the optimizer that QRDQN writes in, and would find as the user's own when it is loaded.
        self.policy_kwargs = dict(kwargs.get("policy_kwargs") or {})
        if _init_setup_model:
            self._setup_model()

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps towards targets that contain the kernel's correction; arguments as in QRDQN."""
        kernel = self._kernel()
        assert isinstance(kernel, LiveKernel)
        kernel.after_rollout()
        super().train(gradient_steps, batch_size)
        # QRDQN leaves training mode on, in which the head is off.
        self.policy.set_training_mode(False)

    def _policy_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """With the optimizer of QRDQN, unless another is given, and fewer quantiles than it has."""
        if "optimizer_class" not in given:
            settings = {"eps": 0.01 / self.batch_size, **(given.get("optimizer_kwargs") or {})}
            given = {**given, "optimizer_class": torch.optim.Adam, "optimizer_kwargs": settings}
        return super()._policy_arguments({"n_quantiles": QUANTILES, **given})

    def _setup_model(self) -> None:
        super()._setup_model()
        check_returns(self)

    def _make_kernel(self) -> LiveKernel:
        return LiveKernel(self, self.rng)

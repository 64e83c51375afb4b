"""What deep Q-learning with a kernel has in common, whatever its networks predict and however it updates them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from agents.common.policy_kernel_settings import PolicyKernelSettings
from agents.common.replay_view import ReplayView
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.kernel_policy import KernelPolicy
from agents.kernel_ddqn.replay_kernel import ReplayKernel


class KernelDeepQ(PolicyKernelSettings):
    """Mixed in before a deep Q-learning algorithm whose policy is a :class:`KernelPolicy`.

    Args:
        policy: an alias of the algorithm, or a subclass of its kernel policy.
        env: environment with discrete actions, or its id.
        kernel: settings of the kernel, as a :class:`KernelConfig` or a mapping of some of its fields.
        bonus_schedule: posterior standard deviations that exploring adds, a number or a function of the remaining
            progress from 1 to 0, as SB3's schedules are; when left out ``kernel.exploration_bonus``, falling as
            ``kernel.bonus_fraction`` says.
        **kwargs: every argument of the algorithm, by name; the defaults differ where :attr:`defaults` says.

    Raises:
        ConfigError: a setting of the kernel is unknown, of the wrong type or out of range.
        ValueError: the policy has no kernel, its head is one for another algorithm, or the replay buffer cannot be read
            by slot (:class:`HerReplayBuffer`, say).
    """

    defaults: ClassVar[dict[str, Any]]
    """Settings in place of the algorithm's own."""

    kernel_defaults: ClassVar[dict[str, Any]] = {}
    """Settings in place of those of :class:`KernelConfig`; one that is given whole is taken as it is."""

    heads: ClassVar[tuple[str, ...]] = ("residual", "averaging")
    """Value heads that the algorithm can train with."""

    policy: KernelPolicy
    replay_kernel: ReplayKernel | None

    def __init__(
        self,
        policy: str | type[KernelPolicy],
        env: GymEnv | str | None,
        *,
        kernel: KernelConfig | Mapping[str, Any] | None = None,
        bonus_schedule: Schedule | float | None = None,
        **kwargs: Any,
    ) -> None:
        self.bonus_schedule = bonus_schedule
        self.kernel_settings = None if kernel is None else self._read_kernel(kernel)
        self.replay_kernel = None
        settings = {**self.defaults, **kwargs}
        # A copy, since QRDQN writes into it.
        settings["policy_kwargs"] = dict(settings.get("policy_kwargs") or {})
        super().__init__(policy, env, **settings)  # type: ignore[arg-type]  # of the algorithm

    def _after_new_parameters(self) -> None:
        """The supports come along; the next refresh chooses them anew."""
        self.replay_kernel = None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        prepared = super()._setup_learn(*args, **kwargs)
        assert self.replay_buffer is not None
        self.policy.warn_of_empty(self.replay_buffer)
        return prepared

    @abstractmethod
    def _make_kernel(self) -> ReplayKernel:
        """The kernel over the present buffer."""

    def dump_logs(self) -> None:
        """Write SB3's log and the ``kernel/`` scalars."""
        kernel = self.replay_kernel
        if kernel is not None and kernel.supports is not None:
            kernel.record(self.logger)
            self.logger.record("kernel/query_ms", self._query_ms())
        super().dump_logs()

    def _read_kernel(self, kernel: KernelConfig | Mapping[str, Any]) -> dict[str, Any]:
        """Complete settings of the kernel."""
        # Another head is refused later, for what it is and not for settings that it did not ask for.
        other = isinstance(kernel, Mapping) and kernel.get("head", self.heads[0]) not in self.heads
        return asdict(KernelConfig.read(kernel, None if other else self.kernel_defaults))

    def _policy_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """With the algorithm's own kernel, and two layers of 256 on vectors and dicts.

        On images there are none beyond ``NatureCNN``'s own, as in SB3.
        """
        arguments = super()._policy_arguments(given)
        kernel = arguments.get("kernel") or self.kernel_defaults
        if kernel:
            arguments = {**arguments, "kernel": self._read_kernel(kernel)}
        if getattr(self.policy_class, "reads_images", False):
            return arguments
        return {"net_arch": [256, 256], **arguments}

    def _setup_model(self) -> None:
        super()._setup_model()
        self.replay_kernel = None
        head = self.policy.kernel.head
        if head not in self.heads:
            raise ValueError(
                f"kernel.head is '{head}', but {type(self).__name__} takes {' or '.join(self.heads)}; "
                "'network_free' belongs to KernelQ, the others to the agents with a network"
            )
        ReplayView.of(self)  # refuses a buffer that cannot be read so
        # Saved whole, so that no other algorithm fills in its own where a file is loaded into it.
        self.kernel_settings = asdict(self.policy.kernel)
        self._set_bonus()

    def _set_bonus(self) -> None:
        """What exploring adds at present."""
        given = self.bonus_schedule  # in the constructor, by load, or meanwhile
        schedule = self.policy.kernel.bonus_at if given is None else FloatSchedule(given)
        self.policy.online.bonus = float(schedule(self._current_progress_remaining))

    def _kernel(self) -> ReplayKernel:
        """The kernel bound to the present buffer, normalisation and head; made anew when one was replaced or loaded."""
        kernel = self.replay_kernel
        if kernel is None or kernel.is_outdated or not kernel.view.reads(self.replay_buffer, self._vec_normalize_env):
            kernel = self.replay_kernel = self._make_kernel()
        # Supports follow when they are chosen next.
        kernel.view.n_steps, kernel.view.gamma = self.n_steps, self.gamma
        return kernel

    def _store_transition(self, *args: Any, **kwargs: Any) -> None:
        super()._store_transition(*args, **kwargs)
        if self.replay_kernel is not None:
            self.replay_kernel.table.rows_stored += 1

    def _on_step(self) -> None:
        super()._on_step()
        self._set_bonus()

    def _query_ms(self) -> float:
        """Milliseconds of one correction as acting asks for it, measured on the last observation."""
        if self._last_obs is None:
            return 0.0
        observation, _ = self.policy.obs_to_tensor(self._last_obs)
        network = self.policy.online
        with torch.no_grad():
            started = time.perf_counter()
            # Reading the result waits for an accelerator to finish.
            network.head.correction(network.feature_map(observation)).sum().item()
            return 1e3 * (time.perf_counter() - started)

    def _excluded_save_params(self) -> list[str]:
        """What the algorithm leaves out, and the kernel's view of the buffer."""
        return [*super()._excluded_save_params(), "replay_kernel"]

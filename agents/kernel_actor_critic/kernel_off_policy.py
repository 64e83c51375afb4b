"""What KernelSAC and KernelTD3 share: a kernel behind the target critics, refreshed between rollouts and updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from typing_extensions import Self

from agents.common.atomic_save import AtomicSave
from agents.common.cut_at_reset import CutAtReset
from agents.common.derived_settings import DerivedSettings
from agents.common.named_runs import NamedRuns
from agents.common.replay_view import ReplayView, check_returns
from agents.common.seeding import numpy_generator, seeded
from agents.common.taken_parameters import TakenParameters
from agents.kernel_actor_critic.action_kernel import ActionKernel
from agents.kernel_actor_critic.action_kernel_config import ActionKernelConfig
from agents.kernel_actor_critic.corrected_critic import CorrectedCritic
from skrl.shapes import Float, Tensor


class KernelOffPolicy(TakenParameters, AtomicSave, CutAtReset, DerivedSettings, NamedRuns, OffPolicyAlgorithm, ABC):
    """Mixed in before SB3's SAC or TD3, whose updates stay as they are.

    Args:
        *args: as for the algorithm.
        kernel: settings of the kernel, as an :class:`ActionKernelConfig` or a mapping of some of its fields.
        **kwargs: as for the algorithm.

    Raises:
        ValueError: the replay buffer cannot be read by slot (:class:`HerReplayBuffer`, say), or sums other n-step
            returns than asked for.
    """

    kernel: dict[str, Any]
    action_kernel: ActionKernel
    critic_target: Any

    def __init__(self, *args: Any, kernel: ActionKernelConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.kernel = asdict(ActionKernelConfig.read(kernel))
        super().__init__(*args, **kwargs)

    @classmethod
    def load(cls, *args: Any, kernel: ActionKernelConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> Self:
        """Load as SB3 does; a mapping for ``kernel`` changes those of the saved settings that it names."""
        model = super().load(*args, **kwargs)
        if kernel is not None:
            model.kernel = asdict(ActionKernelConfig.read(kernel, model.kernel))
            model._create_aliases()
        return model

    @abstractmethod
    def _next_actions(self, observations: PyTorchObs) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"]]:
        """What targets suppose to be done in states, and the log-probabilities of these actions."""

    @abstractmethod
    def _entropy_weight(self) -> Tensor | float:
        """α, by which targets count the entropy of the policy."""

    def _after_new_parameters(self) -> None:
        """The kernel, whose residuals are of the old critics, begins anew."""
        self.action_kernel.forget()

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Gradient steps towards targets that contain the kernel's correction; arguments as for the algorithm."""
        check_returns(self)
        view = ReplayView.of(self)
        # A model that was loaded without its buffer would regress on the handful of transitions since.
        if view.size >= min(self.learning_starts + 1, view.capacity):
            self.action_kernel.refresh(
                view,
                self.critic_target.smallest,
                self._next_actions,
                self._entropy_weight(),
                self.num_timesteps,
                self._n_updates,
            )
        super().train(gradient_steps, batch_size)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed SB3's generators and the one that supports are drawn from."""
        super().set_random_seed(seed)
        if hasattr(self, "action_kernel"):  # SB3 seeds before it builds
            seeded(self.action_kernel.generator, numpy_generator(seed))

    def dump_logs(self) -> None:
        """Write SB3's log and the ``kernel/`` scalars."""
        for name, value in self.action_kernel.scalars.items():
            self.logger.record(f"kernel/{name}", value)
        super().dump_logs()

    def _create_aliases(self) -> None:
        super()._create_aliases()  # type: ignore[misc]  # both algorithms have it
        ReplayView.of(self)  # refuses a buffer that cannot be read so
        check_returns(self)
        self.action_kernel = ActionKernel(
            self.observation_space,
            get_action_dim(self.action_space),
            ActionKernelConfig.read(self.kernel),
            self.policy.normalize_images,
            self.device,
            numpy_generator(self.seed),
        )
        network: ContinuousCritic = self.policy.critic_target  # type: ignore[assignment]
        self.critic_target = CorrectedCritic(network, self.action_kernel)

    def _excluded_save_params(self) -> list[str]:
        """What SB3 leaves out, and the kernel."""
        return [*super()._excluded_save_params(), "action_kernel"]

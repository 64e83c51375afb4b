"""A kernel whose settings a saved policy brings along."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy
from typing_extensions import Self

from agents.common.derived_settings import DerivedSettings
from agents.common.taken_parameters import TakenParameters


class PolicyKernelSettings(TakenParameters, DerivedSettings):
    """Mixed in before an algorithm whose policy holds the kernel: a loaded one cannot be given another."""

    needed_policy: ClassVar[type[BasePolicy]]
    """Class that the policy must extend."""

    kernel_settings: dict[str, Any] | None = None
    """What the algorithm itself was given of the kernel, before what its policy was given."""

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Self:
        """Load as SB3 does.

        Raises:
            ValueError: settings of the kernel are given, which SB3 would set as an attribute that nobody reads.
        """
        if "kernel" in kwargs:
            raise ValueError(
                f"kernel is {kwargs['kernel']!r}, but a saved {cls.__name__} brings its kernel along; leave it out, or "
                f"make a new {cls.__name__} with it"
            )
        return super().load(*args, **kwargs)

    def _policy_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        arguments = super()._policy_arguments(given)
        return arguments if self.kernel_settings is None else {**arguments, "kernel": self.kernel_settings}

    def _setup_model(self) -> None:
        # Before the policy is built: one without a kernel takes no settings of one.
        if not issubclass(self.policy_class, self.needed_policy):
            raise ValueError(
                f"{type(self).__name__} needs a {self.needed_policy.__name__}, but got {self.policy_class.__name__}; "
                "use 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'"
            )
        super()._setup_model()

"""A kernel whose settings a saved policy brings along."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from typing_extensions import Self


class KernelOfPolicy(OffPolicyAlgorithm):
    """Mixed in before an algorithm whose policy holds the kernel: a loaded one cannot be given another."""

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
        """What the policy is made with, from what was given for it."""
        return given if self.kernel_settings is None else {**given, "kernel": self.kernel_settings}

    def _setup_model(self) -> None:
        # A saved model holds the arguments as they were given, which SB3 compares on loading.
        given = self.policy_kwargs
        self.policy_kwargs = self._policy_arguments(given)
        super()._setup_model()
        self.policy_kwargs = given

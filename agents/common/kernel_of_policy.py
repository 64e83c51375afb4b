"""A kernel whose settings a saved policy brings along."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from typing_extensions import Self


class KernelOfPolicy(OffPolicyAlgorithm):
    """Mixed in before an algorithm whose policy holds the kernel: a loaded one cannot be given another."""

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

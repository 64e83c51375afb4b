"""Settings of a local regression over experience, whichever agent it stands in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.common.local_kernel_config import LocalKernelConfig
from agents.common.schema import Fraction
from skrl.value_heads import ResidualHead, ValueHead


@dataclass(frozen=True)
class RegressionConfig(LocalKernelConfig):
    """How a value head chooses what it remembers, and how it predicts.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    lengthscale_rule: Literal["neighbors", "leave_one_out"] = "neighbors"
    """`neighbors`: that length; `leave_one_out`: ½, 1, 2 or 4 times it, whichever erred least at the last rebuild."""

    newest_fraction: Fraction = 0.5
    """Share of the supports that are the newest experience; the rest is drawn uniformly from what is older.
    Q-learners of numbered states keep the newest visits of each instead."""

    @property
    def reads_observation_alone(self) -> bool:
        """Whether distances are those of observations, and of nothing that a network makes of them."""
        return True

    def make_head(self, sets: int, feature_dim: int, kind: type[ValueHead] = ResidualHead) -> ValueHead:
        """An empty value head with these settings.

        Args:
            sets: support sets, which share the capacity evenly.
            feature_dim: width of a feature.
            kind: class of the head.
        """
        return kind(
            sets,
            max(1, self.capacity // sets),
            feature_dim,
            k=self.k,
            kernel=self.kernel,
            ridge=self.ridge,
            localisation=self.localisation,
        )

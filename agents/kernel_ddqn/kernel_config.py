"""Settings of the kernel beside a Q-network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stable_baselines3.common.utils import LinearSchedule
from typing_extensions import Self

from agents.common.regression_config import RegressionConfig
from agents.common.retired import upgraded
from agents.common.schema import ConfigError, Count, NonNegativeReal, PositiveFraction

WITHOUT_MEANING = {
    ("averaging", "the averaging head solves nothing"): ("ridge", "localisation", "lengthscale_rule"),
    ("network_free", "the network-free head has no network beside it"): ("applies_to", "features"),
    ("network_free", "the network-free head has nothing but its own values to begin with"): ("backup",),
}
"""What a head lacks, and the settings that it therefore cannot honour."""


@dataclass(frozen=True)
class KernelConfig(RegressionConfig):
    """What the value head remembers, how it predicts, and how often it is refreshed; one support set per action.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    head: Literal["residual", "averaging", "network_free"] = "residual"
    """Weights of the neighbours: `residual` (ridge solve), `averaging` (no solve), `network_free` (no network)."""

    applies_to: Literal["both", "targets", "acting"] = "both"
    """Where the correction is added: `targets` of minibatches, `acting` and evaluation, or `both`."""

    sweeps: Count = 5
    """Bellman backups through the cached neighbours at every refresh."""

    backup: Literal["restart", "continue"] = "restart"
    """What the first of them begins with: the network's values (`restart`) or those of the last (`continue`)."""

    refresh_interval: Count = 500
    """Environment steps between two choices of supports; targets are renewed at every target update."""

    exploration_bonus: NonNegativeReal = 1.0
    """Posterior standard deviations added to the values when exploring; 0 leaves exploration to ε alone."""

    bonus_fraction: PositiveFraction | None = None
    """Share of the training over which the bonus falls to zero, as `exploration_fraction` is ε's; None keeps it."""

    exploration: Literal["optimism", "lookahead", "thompson"] = "optimism"
    """What exploring adds: the bonus (`optimism`), also to what follows (`lookahead`), or normal draws (`thompson`)."""

    features: Literal["observation", "penultimate", "both"] = "observation"
    """Space of the distances: the `observation`, the network's last hidden layer (`penultimate`), or `both`."""

    @property
    def reads_observation_alone(self) -> bool:
        """Whether distances are those of observations, and of nothing that a network makes of them."""
        return self.features == "observation"

    def bonus_at(self, remaining: float) -> float:
        """Posterior standard deviations added when exploring at a point of the training.

        Args:
            remaining: progress that remains, from 1 to 0, as SB3's schedules get it.
        """
        if self.bonus_fraction is None:
            return self.exploration_bonus
        return LinearSchedule(self.exploration_bonus, 0.0, self.bonus_fraction)(remaining)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """As in the parent; takes the settings of older models too."""
        return super().from_mapping(upgraded(values))

    def __post_init__(self) -> None:
        """Coerce every field to its type and reject what is out of range."""
        super().__post_init__()
        for (head, reason), names in WITHOUT_MEANING.items():
            for name in names:
                if self.head == head and getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(f"kernel.{name} is {getattr(self, name)}, but {reason}; leave {name} out")
        if self.bonus_fraction is not None and self.exploration_bonus == 0.0:
            raise ConfigError(
                f"kernel.bonus_fraction is {self.bonus_fraction}, but exploration_bonus is 0 and cannot fall; leave "
                "bonus_fraction out"
            )
        if self.head == "averaging" and self.kernel == "polynomial":
            raise ConfigError("kernel.kernel is polynomial, but the averaging head weighs by distance; take another")

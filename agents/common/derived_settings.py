"""What SB3 chooses itself from other settings, and would warn about when it is loaded."""

from __future__ import annotations

from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


class DerivedSettings(OffPolicyAlgorithm):
    """Mixed in before one of SB3's algorithms, which then does not save the buffer class that n-step returns bring."""

    def _excluded_save_params(self) -> list[str]:
        """What SB3 leaves out, and the buffer class where it was derived."""
        derived = self.replay_buffer_class is NStepReplayBuffer and self.n_steps > 1
        return [*super()._excluded_save_params(), *(["replay_buffer_class"] if derived else [])]

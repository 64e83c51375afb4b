"""What SB3 chooses itself from other settings, and would warn about when it is loaded."""

from __future__ import annotations

from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


def derived_settings(model: OffPolicyAlgorithm) -> list[str]:
    """Names of attributes to leave out of a saved model: the buffer class that n-step returns brought along."""
    derived = model.replay_buffer_class is NStepReplayBuffer and model.n_steps > 1
    return ["replay_buffer_class"] if derived else []

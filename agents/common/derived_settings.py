"""What a model is built with beyond what was given, and that SB3 would save as if it had been given."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


class DerivedSettings(OffPolicyAlgorithm):
    """Mixed in before one of SB3's algorithms, which then keeps the arguments of buffer and policy as they were given.

    SB3 writes the class and the arguments that n-step returns bring into those of the replay buffer. Saved, they would
    go before another ``n_steps`` and be taken for the user's own. The policy's it compares on loading.
    """

    def _policy_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the policy is made with, from what was given for it."""
        return given

    def _setup_model(self) -> None:
        given = self.replay_buffer_class, self.replay_buffer_kwargs, self.policy_kwargs
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)
        self.policy_kwargs = self._policy_arguments(self.policy_kwargs)
        super()._setup_model()
        self.replay_buffer_class, self.replay_buffer_kwargs, self.policy_kwargs = given

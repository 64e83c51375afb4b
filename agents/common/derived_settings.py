"""What SB3 chooses itself from other settings, and would warn about or stumble over when it is loaded."""

from __future__ import annotations

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


class DerivedSettings(OffPolicyAlgorithm):
    """Mixed in before one of SB3's algorithms, which then keeps the settings of its replay buffer as they were given.

    SB3 writes the class and the arguments that n-step returns bring into them. Saved, they would go before another
    ``n_steps`` and be taken for the user's own.
    """

    def _setup_model(self) -> None:
        given, arguments = self.replay_buffer_class, self.replay_buffer_kwargs
        self.replay_buffer_kwargs = dict(arguments)
        super()._setup_model()
        self.replay_buffer_class, self.replay_buffer_kwargs = given, arguments

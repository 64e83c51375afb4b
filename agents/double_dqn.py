"""Double DQN for Stable-Baselines3."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy
from torch.nn import functional

from agents.common.atomic_save import AtomicSave
from agents.common.derived_settings import DerivedSettings
from agents.common.evaluation_mode import in_evaluation_mode, mode_dependent, running_statistics
from agents.common.lasting_exploration import LastingExploration
from agents.common.named_runs import NamedRuns
from agents.common.nonfinite import NonFiniteGuard, Observation, reached
from agents.common.targets import double_q_target
from skrl.shapes import Float, Tensor

TD_ERROR_MOMENTUM = 0.01
"""Weight of one update in the running mean of the absolute TD error."""

OTHER_THAN_FUSED = frozenset({"foreach", "differentiable"})
"""Arguments of Adam that exclude a fused step."""


class TransitionBatch(NamedTuple):
    """A minibatch for one update.

    Attributes:
        observations: [B, ...].
        actions: [B].
        rewards: (n-step) returns, [B].
        discounts: γⁿ, zero where the episode terminated, [B].
        next_observations: the states to bootstrap from, [B, ...].
        next_corrections: R(s', ·) to add to both networks' next values, [B, A]; none for a plain network.
    """

    observations: PyTorchObs
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: PyTorchObs
    next_corrections: Tensor | None = None


class DoubleDQN(AtomicSave, DerivedSettings, LastingExploration, NamedRuns, DQN):
    """Double DQN: the online network chooses the next action, the target network evaluates it.

    H. van Hasselt, A. Guez and D. Silver, *Deep Reinforcement Learning with Double Q-learning*, 2016. Takes every
    argument of :class:`stable_baselines3.DQN` and honours n-step returns; a ``replay_buffer_class`` that is given sums
    as its own arguments say, as in SB3. Beyond the target it differs from SB3's DQN in this:

    - The loss can follow the scale of the rewards, see ``huber_threshold``, and Adam steps through all parameters in
      one fused call, unless ``policy_kwargs`` asks for another optimizer or another way.
    - An update whose loss or gradient is not finite is skipped, counted, and after many in a row ends the run with
      :class:`~agents.common.nonfinite.NonFiniteError`.
    - Exploration draws from its own seeded generator, independently for every environment, and its actions can last,
      see ``exploration_zeta``.
    - Where learning resets the environment, stored episodes end as at a time limit, and no return runs on into what
      follows; after a rollout that was broken off it always resets.
    - ``save`` never leaves a half-written file, arguments of policy and buffer are saved as they were given, and
      TensorBoard's runs have the name of this class.

    Args:
        policy: as for SB3's DQN.
        env: environment with discrete actions, or its id.
        *args: as for SB3's DQN.
        huber_threshold: where the Huber loss turns from quadratic to linear, in running means of the absolute TD error.
            0 is SB3's fixed threshold of 1, which makes a regression of large values one towards their median, whose
            gradient says nothing about how far off they are.
        **kwargs: as for SB3's DQN, and ``exploration_zeta`` of
            :class:`~agents.common.lasting_exploration.LastingExploration`.

    Raises:
        ValueError: the threshold is negative or not finite.
    """

    nonfinite_guard: NonFiniteGuard

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: GymEnv | str | None,
        *args: Any,
        huber_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.huber_threshold = huber_threshold
        self.td_error_scale: float | None = None
        self.nonfinite_guard = NonFiniteGuard()
        super().__init__(policy, env, *args, **kwargs)

    def _policy_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        return _with_fused_adam(super()._policy_arguments(given))

    def _setup_model(self) -> None:
        # Here, where loading a model comes by after it has read the settings.
        if not 0.0 <= self.huber_threshold < float("inf"):
            raise ValueError(
                f"huber_threshold is {self.huber_threshold}, but must be a number from 0 on; 0 is SB3's loss"
            )
        super()._setup_model()
        self._mode_dependent = mode_dependent(self.q_net)

    def _excluded_save_params(self) -> list[str]:
        """What SB3 leaves out, and layers of the network, which is saved by itself."""
        return [*super()._excluded_save_params(), "_mode_dependent"]

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps on minibatches from the replay buffer.

        Args:
            gradient_steps: number of updates.
            batch_size: transitions in a minibatch.

        Raises:
            NonFiniteError: too many updates in a row had a loss that is not finite.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        statistics: dict[str, list[Tensor]] = {}
        for _ in range(gradient_steps):
            for name, value in self._gradient_step(batch_size).items():
                statistics.setdefault(name, []).append(value)
            self._n_updates += 1
        self.policy.set_training_mode(False)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/nonfinite_skipped", self.nonfinite_guard.skipped)
        for name, values in statistics.items():
            self.logger.record(f"train/{name}", float(torch.stack(values).mean()))

    def _gradient_step(self, batch_size: int) -> dict[str, Tensor]:
        """One gradient step on a minibatch; returns its statistics as tensors."""
        return self._update(self._sample_batch(batch_size))

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        assert self.replay_buffer is not None
        data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        gamma = self.gamma if data.discounts is None else data.discounts.squeeze(1)
        return TransitionBatch(
            observations=data.observations,
            actions=data.actions.long().squeeze(1),
            rewards=data.rewards.squeeze(1),
            discounts=(1.0 - data.dones.squeeze(1)) * gamma,
            next_observations=data.next_observations,
        )

    def _next_q_values(
        self, batch: TransitionBatch
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, "batch actions"]]:
        """Next values that choose and that evaluate the bootstrap action."""
        return self.q_net(batch.next_observations), self.q_net_target(batch.next_observations)

    def _update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """One gradient step towards the double-Q target; returns its statistics as tensors."""
        # As in SB3's DQN no statistics are taken from next states, and nothing is dropped where an action is chosen.
        with torch.no_grad(), in_evaluation_mode(self._mode_dependent):
            target = double_q_target(batch.rewards, batch.discounts, *self._next_q_values(batch))
        statistics = running_statistics(self._mode_dependent)
        before = [statistic.clone() for statistic in statistics]
        q_values = self.q_net(batch.observations).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        error = (q_values.detach() - target).abs().mean()
        loss = functional.smooth_l1_loss(q_values, target, beta=self._huber_beta())
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), self.max_grad_norm)
        loss = loss.detach()
        # The only synchronisation of an update, where SB3 reads the loss.
        checked, size = torch.stack([loss + grad_norm, error]).tolist()
        finite = math.isfinite(checked)
        if not finite:
            for statistic, value in zip(statistics, before, strict=True):
                statistic.copy_(value)
        if self.nonfinite_guard.check_update(self.num_timesteps, finite):
            self.policy.optimizer.step()
            scale = size if self.td_error_scale is None else self.td_error_scale
            self.td_error_scale = scale + TD_ERROR_MOMENTUM * (size - scale)
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "q_mean": q_values.detach().mean(),
            "target_q_mean": target.mean(),
            "td_error_abs_mean": error,
        }

    def _huber_beta(self) -> float:
        """Threshold of the Huber loss: SB3's until the size of the errors is known."""
        scale = self.td_error_scale
        return 1.0 if self.huber_threshold == 0.0 or not scale else self.huber_threshold * scale

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: npt.NDArray[Any],
        new_obs: Observation,
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        assert self.env is not None
        assert self._last_obs is not None
        seen = (self._last_obs, reached(new_obs, dones, infos))
        self.nonfinite_guard.check_transition(self.num_timesteps, self.env, reward, seen)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)


def _with_fused_adam(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a policy whose Adam steps through all parameters in one call; another way, if asked for, is kept."""
    own = policy_kwargs.get("optimizer_kwargs") or {}
    is_adam = policy_kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam
    if not is_adam or not OTHER_THAN_FUSED.isdisjoint(own):
        return policy_kwargs
    return {**policy_kwargs, "optimizer_kwargs": {"fused": True, **own}}

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents import DQK, DoubleDQN, KernelDDQN, KernelQ
from agents.common.nonfinite import NonFiniteError, NonFiniteGuard
from agents.common.targets import double_q_target
from agents.double_dqn import TransitionBatch
from agents.kernel_ddqn.kernel_q import GRADIENT_SETTINGS
from agents.training.evaluation import has_finite_parameters

SETTINGS = {
    "learning_starts": 20,
    "batch_size": 16,
    "gradient_steps": 2,
    "target_update_interval": 20,
    "buffer_size": 1000,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
}


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN])
@pytest.mark.parametrize("what", ["nan", "inf", "observation"])
def test_a_single_bad_transition_is_survived(cls, what, poisoned) -> None:
    model = cls("MlpPolicy", poisoned(range(50, 51), what), **SETTINGS).learn(400)
    # An observation ends one transition and begins another.
    assert model.nonfinite_guard.transitions == (2 if what == "observation" else 1)
    assert model.nonfinite_guard.skipped > 0
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    if cls is KernelDDQN:
        assert model.q_net.head.memory.targets.isfinite().all()
        assert model.q_net.head.memory.features.isfinite().all()


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN, KernelQ])
def test_a_hopeless_run_stops_and_names_step_and_environment(cls, poisoned) -> None:
    settings = {name: value for name, value in SETTINGS.items() if cls is not KernelQ or name not in GRADIENT_SETTINGS}
    model = cls("MlpPolicy", poisoned(range(1, 10_000), "nan"), **settings)
    cause = "rollouts in a row brought values that are" if cls is KernelQ else "updates in a row had a loss or gradient"
    with pytest.raises(NonFiniteError, match=rf"step \d+: 100 {cause}.*first seen at step 1: reward nan.*CartPole-v1"):
        model.learn(2000)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN])
def test_a_last_observation_counts_where_targets_read_it(cls, poisoned) -> None:
    """Where the episode was cut off; where it terminated nothing is read."""
    settings = {**SETTINGS, "seed": 1}
    model = cls("MlpPolicy", poisoned(range(0), "last observation"), **settings).learn(200)
    assert model.nonfinite_guard.transitions > 3
    assert model.nonfinite_guard.skipped == 0
    with pytest.raises(NonFiniteError, match=r"first seen at step 3: an observation that is not finite .*CartPole-v1"):
        cls("MlpPolicy", poisoned(range(0), "last observation", max_episode_steps=3), **settings).learn(2000)


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN])
def test_a_first_observation_counts(cls, poisoned) -> None:
    with pytest.raises(NonFiniteError, match=r"first seen at step 1: an observation that is not finite .*CartPole-v1"):
        cls("MlpPolicy", poisoned(range(0), "first observation", max_episode_steps=3), **SETTINGS).learn(2000)


def test_the_guard_counts_only_consecutive_failures() -> None:
    guard = NonFiniteGuard(limit=3)
    outcomes = [guard.check_update(step, finite) for step, finite in enumerate([False, False, True, False, False])]
    assert outcomes == [False, False, True, False, False]
    assert guard.skipped == 4
    with pytest.raises(NonFiniteError, match=r"3 updates in a row .* loss itself diverged"):
        guard.check_update(5, False)
    assert not guard.check_update(6, False)  # where learning was called again


def test_statistics_reach_the_logger(tmp_path) -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(200, log_interval=1)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    for tag in ("loss", "q_mean", "target_q_mean", "td_error_abs_mean", "grad_norm", "nonfinite_skipped"):
        assert f"train/{tag}" in header


def test_exploration_leaves_the_global_generator_alone() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    model.exploration_rate = 1.0
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (the global state is what is under test)
    actions = [int(model.predict(np.zeros(4, np.float32))[0]) for _ in range(50)]
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert set(actions) == {0, 1}


def test_environments_explore_independently() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    model.exploration_rate = 0.5
    greedy, _ = model.predict(np.zeros((64, 4), np.float32), deterministic=True)
    actions, _ = model.predict(np.zeros((64, 4), np.float32))
    different = (actions != greedy).mean()
    assert 0.1 < different < 0.4  # a quarter: explored with 1/2, another action with 1/2


@pytest.mark.filterwarnings("ignore:the kernel remembers")  # and forgets, for the buffer is not loaded
@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN])
def test_random_actions_last_while_learning(cls, tmp_path) -> None:
    settings = {**SETTINGS, "exploration_zeta": 1.2, "exploration_fraction": 1.0, "exploration_final_eps": 1.0}
    model = cls("MlpPolicy", "CartPole-v1", **settings).learn(300)
    stored = model.replay_buffer.actions[:300, 0, 0]
    begins = np.concatenate([[True], model.replay_buffer.dones[:299, 0] > 0])
    changes = (stored[1:] != stored[:-1])[~begins[1:]]
    assert 0.0 < changes.mean() < 0.3  # single random actions change every second time
    model.save(tmp_path / "model.zip")
    loaded = cls.load(tmp_path / "model.zip", env=model.get_env())
    assert loaded._lasting.exponent == 1.2
    loaded.learn(60, reset_num_timesteps=False)


def test_lasting_actions_end_with_the_episode() -> None:
    """Every action lasts for ever; what is left of it is looked at when the next step has been chosen."""
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, "learning_starts": 0, "exploration_zeta": 2.0})
    model.exploration_schedule = lambda _: 0.0
    left, ended = [], [False]

    def watch(local, _) -> bool:
        left.append(int(model._lasting._left[0]))
        ended.append(bool(local["dones"][0]))
        model._lasting._left[:] = 1000
        return True

    model.learn(60, callback=watch)
    assert any(ended[1:-1])
    # The first step explores for its rate is still 1; later ones take one from 1000, or nothing is left after an end.
    assert left[1:] == [0 if end else 999 for end in ended[1:-1]]


def test_an_exponent_of_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exploration_zeta is 0.5, but must be above 1"):
        DoubleDQN("MlpPolicy", "CartPole-v1", exploration_zeta=0.5)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_batches_carry_n_step_returns_and_their_own_discounts(n_steps) -> None:
    """The reward of CartPole is always one, so a return over h steps is (1 − γʰ) / (1 − γ)."""
    settings = {**SETTINGS, "learning_starts": 10_000}
    model = DoubleDQN("MlpPolicy", "CartPole-v1", n_steps=n_steps, gamma=0.9, **settings).learn(300)
    batch = model._sample_batch(500)
    returns = torch.tensor([sum(0.9**j for j in range(steps)) for steps in range(1, n_steps + 1)])
    lengths = (batch.rewards.unsqueeze(1) - returns).abs().argmin(1) + 1
    assert torch.allclose(batch.rewards, returns[lengths - 1])
    terminal = batch.discounts == 0
    assert terminal.any()
    assert torch.allclose(batch.discounts[~terminal], 0.9 ** lengths[~terminal].float())
    assert (lengths == n_steps).float().mean() > 0.5


def test_loading_an_n_step_model_keeps_its_returns(tmp_path) -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", n_steps=3, **SETTINGS).learn(60)
    model.save(tmp_path / "model.zip")
    loaded = DoubleDQN.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"))
    assert loaded.n_steps == loaded.replay_buffer.n_steps == 3


def test_one_update_is_huber_regression_on_the_double_q_target() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, "learning_starts": 10_000}).learn(64)
    for parameter in model.q_net_target.parameters():
        parameter.data.mul_(1.5)
    batch = model._sample_batch(8)
    with torch.no_grad():
        best = model.q_net(batch.next_observations).argmax(1)
        value = model.q_net_target(batch.next_observations)[torch.arange(8), best]
        target = batch.rewards + batch.discounts * value
        error = model.q_net(batch.observations)[torch.arange(8), batch.actions] - target
        huber = torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5).mean()
    assert torch.allclose(model._update(batch)["loss"], huber)


class Normalised(BaseFeaturesExtractor):
    """A layer that normalises by its batch, and one that drops half of its units."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 32)
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN, DQK])
def test_the_next_action_is_chosen_in_evaluation_mode(cls, monkeypatch, tmp_path) -> None:
    """What an update sees of next states leaves the layers as they are, and no unit is dropped of the choice."""
    policy_kwargs = {"features_extractor_class": Normalised, "net_arch": []}
    settings = {**SETTINGS, "policy_kwargs": policy_kwargs}
    model = cls("MlpPolicy", "CartPole-v1", **settings, device="cpu").learn(200)
    model.save(tmp_path / "model.zip")
    batch, chosen = model._sample_batch(64), []

    def noted(*values):
        chosen.append(values[2])
        return double_q_target(*values)

    monkeypatch.setattr("agents.double_dqn.double_q_target", noted)
    for each in (model, cls.load(tmp_path / "model.zip", device="cpu")):
        network, layers = each.q_net, each.q_net.features_extractor.layers
        each.policy.set_training_mode(False)
        with torch.no_grad():
            choosing = each._next_q_values(batch)[0]
            mean = torch.lerp(layers[1].running_mean, layers[0](batch.observations).mean(0), layers[1].momentum)
        each.policy.set_training_mode(True)
        each._update(batch)
        torch.testing.assert_close(chosen.pop(), choosing)
        torch.testing.assert_close(layers[1].running_mean, mean)
        assert all(module.training for module in (network, *layers))


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN, DQK])
def test_a_bad_batch_leaves_running_statistics_alone(cls, poisoned) -> None:
    settings = {**SETTINGS, "policy_kwargs": {"features_extractor_class": Normalised, "net_arch": []}}
    model = cls("MlpPolicy", poisoned(range(50, 51), "observation"), **settings).learn(300)
    assert model.nonfinite_guard.skipped > 0
    for network in (model.q_net, model.q_net_target):
        normalising = network.features_extractor.layers[1]
        assert normalising.running_mean.isfinite().all()
        assert normalising.running_var.isfinite().all()
    assert has_finite_parameters(model)
    model.q_net.features_extractor.layers[1].running_var[0] = torch.nan
    assert not has_finite_parameters(model)


def test_adam_is_fused_unless_another_optimizer_is_asked_for() -> None:
    def optimizer(**policy_kwargs) -> torch.optim.Optimizer:
        model = DoubleDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, "policy_kwargs": policy_kwargs})
        return model.policy.optimizer

    assert optimizer().defaults["fused"]
    assert optimizer(optimizer_kwargs={"eps": 0.1}).defaults["eps"] == 0.1
    assert not optimizer(optimizer_kwargs={"fused": False}).defaults["fused"]
    assert optimizer(optimizer_kwargs={"foreach": True}).defaults["foreach"]
    assert isinstance(optimizer(optimizer_class=torch.optim.RMSprop), torch.optim.RMSprop)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("stable_baselines3.common.base_class.save_to_zip_file", broken)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def one_batch(model: DoubleDQN, rewards: torch.Tensor) -> TransitionBatch:
    observations = torch.randn(len(rewards), 4)
    actions = torch.arange(len(rewards)) % 2
    return TransitionBatch(observations, actions, rewards, torch.zeros(len(rewards)), observations)


def test_the_loss_is_quadratic_up_to_some_running_means_of_the_error() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", huber_threshold=2.0, **SETTINGS)
    batch = one_batch(model, 1000.0 * torch.randn(64))
    first = model._update(batch)
    assert model.td_error_scale == pytest.approx(float(first["td_error_abs_mean"]))
    errors = model.q_net(batch.observations).gather(1, batch.actions.unsqueeze(1)).squeeze(1) - batch.rewards
    expected = torch.nn.functional.smooth_l1_loss(errors, torch.zeros(64), beta=2.0 * model.td_error_scale)
    second = model._update(batch)
    torch.testing.assert_close(second["loss"], expected.detach())
    assert model.td_error_scale == pytest.approx(
        0.99 * float(first["td_error_abs_mean"]) + 0.01 * float(second["td_error_abs_mean"])
    )


def test_a_threshold_of_zero_is_the_loss_of_sb3() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", huber_threshold=0.0, **SETTINGS)
    batch = one_batch(model, 1000.0 * torch.randn(64))
    model._update(batch)
    values = model.q_net(batch.observations).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    expected = torch.nn.functional.smooth_l1_loss(values, batch.rewards)
    torch.testing.assert_close(model._update(batch)["loss"], expected.detach())


def test_a_bad_update_leaves_the_size_of_errors_alone(tmp_path) -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS)
    model._update(one_batch(model, torch.full((8,), 5.0)))
    known = model.td_error_scale
    model._update(one_batch(model, torch.full((8,), float("nan"))))
    assert model.td_error_scale == known
    model.save(tmp_path / "model")
    assert DoubleDQN.load(tmp_path / "model").td_error_scale == known


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_impossible_threshold_is_refused(value: float, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"huber_threshold is .* 0 is SB3's loss"):
        DoubleDQN("MlpPolicy", "CartPole-v1", huber_threshold=value, **SETTINGS)
    DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"huber_threshold is .* 0 is SB3's loss"):
        DoubleDQN.load(tmp_path / "model", huber_threshold=value)


@pytest.mark.filterwarnings("ignore:`n_steps=3` is ignored")
def test_the_replay_buffer_is_saved_as_it_was_asked_for(tmp_path) -> None:
    given = {"handle_timeout_termination": False}
    model = DoubleDQN("MlpPolicy", "CartPole-v1", **SETTINGS, n_steps=3, replay_buffer_kwargs=given)
    assert model.replay_buffer.n_steps == 3
    model.save(tmp_path / "model")
    assert given == {"handle_timeout_termination": False}
    for n_steps in (1, 2):
        buffer = DoubleDQN.load(tmp_path / "model", n_steps=n_steps).replay_buffer
        assert getattr(buffer, "n_steps", 1) == n_steps
        assert not buffer.handle_timeout_termination
    own = {"n_steps": 5, "gamma": 0.9}
    model = DoubleDQN(
        "MlpPolicy",
        "CartPole-v1",
        **SETTINGS,
        n_steps=3,
        replay_buffer_class=NStepReplayBuffer,
        replay_buffer_kwargs=own,
    )
    model.save(tmp_path / "model")
    assert DoubleDQN.load(tmp_path / "model").replay_buffer.n_steps == model.replay_buffer.n_steps == 5


def test_a_model_loads_with_the_arguments_that_it_was_made_with(tmp_path) -> None:
    given = {"net_arch": [16]}
    DoubleDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, "policy_kwargs": given}).save(tmp_path / "model")
    loaded = DoubleDQN.load(tmp_path / "model", policy_kwargs=given)
    assert loaded.policy.optimizer.defaults["fused"]

"""Where the correction goes: into targets, into acting, or into both."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.dqn.policies import DQNPolicy

from agents import DQK, DoubleDQN, KernelDDQN, KernelDQNPolicy, KernelQ, KernelRefreshCallback
from agents.dqk import DQKPolicy
from agents.kernel_qrdqn import KernelQRDQN
from skrl.solve.local_weights import bounded_correction

KERNEL = {"capacity": 100, "k": 4, "refresh_interval": 60}
SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}


def _trained(applies_to: str, steps: int = 300, bonus: float = 1.0, **settings: Any) -> KernelDDQN:
    kernel = {**KERNEL, "applies_to": applies_to, "exploration_bonus": bonus, **settings.pop("kernel", {})}
    return KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, **{**SETTINGS, **settings}).learn(steps)


def _seen(model: KernelDDQN) -> torch.Tensor:
    return torch.from_numpy(model.replay_buffer.observations[:200, 0])


def _target_differences(model: KernelDDQN) -> list[torch.Tensor]:
    """What minibatch targets add to the values of the two networks."""
    model._kernel().extend()
    batch = model._sample_batch(200)
    with torch.no_grad():
        networks = [network.prior_mean(batch.next_observations) for network in (model.q_net, model.q_net_target)]
        return [used - plain for used, plain in zip(model._next_q_values(batch), networks, strict=True)]


@pytest.mark.parametrize("bonus", [0.0, 1.0])
def test_targets_alone_act_by_the_network(bonus: float) -> None:
    model = _trained("targets", bonus=bonus)
    observations, network = _seen(model), model.q_net
    with torch.no_grad():
        values, correction = (
            network.prior_mean(observations),
            network.head.correction(network.feature_map(observations)),
        )
        assert torch.equal(network(observations), values)
        assert (values.argmax(1) != (values + correction).argmax(1)).any()
        explored = values + bonus * network.head.deviation(network.feature_map(observations))
    greedy, _ = model.predict(observations.numpy(), deterministic=True)
    assert np.array_equal(greedy, values.argmax(1).numpy())
    exploring, _ = model.policy.predict(observations.numpy(), deterministic=False)
    assert np.array_equal(exploring, explored.argmax(1).numpy())
    assert np.array_equal(exploring, greedy) == (bonus == 0.0)
    assert all(difference.abs().max() > 0 for difference in _target_differences(model))


def test_acting_alone_learns_from_targets_of_the_networks() -> None:
    model = _trained("acting")
    assert not any(difference.any() for difference in _target_differences(model))
    observations = _seen(model)
    corrected = model.q_net(observations)
    assert not torch.equal(corrected, model.q_net.prior_mean(observations))
    greedy, _ = model.predict(observations.numpy(), deterministic=True)
    assert np.array_equal(greedy, corrected.argmax(1).numpy())


def test_both_corrects_both() -> None:
    model = _trained("both")
    assert all(difference.abs().max() > 0 for difference in _target_differences(model))
    assert not torch.equal(model.q_net(_seen(model)), model.q_net.prior_mean(_seen(model)))


@pytest.mark.parametrize("features", ["observation", "both"])
def test_acting_alone_still_sweeps_and_localises_nothing_else(features: str) -> None:
    model = _trained("acting", kernel={"features": features, "capacity": 40})
    kernel = model._kernel()
    kernel.extend()
    supports = kernel.supports
    assert supports is not None
    fresh = model.q_net.head.correction(model.q_net.feature_map(supports.next_observations))
    kept = bounded_correction(
        supports.next_local.indices, supports.next_local.weights, model.q_net.head.memory.targets.squeeze(-1)
    )
    assert kept.abs().max() > 0
    assert torch.allclose(kept[:, supports.filled], fresh.mT[:, supports.filled], atol=1e-5)
    # Nor does it hold room for it: a buffer of a million slots and 18 actions would take gigabytes.
    assert not any(part.numel() for part in kernel.table.kept)
    assert len(kernel.table.raw) >= kernel.view.size


def test_a_buffer_that_wraps_around_is_read_anew_for_acting_alone() -> None:
    model = _trained("acting", steps=700, buffer_size=150, kernel={"refresh_interval": 300})
    kernel = model._kernel()
    slots, _ = kernel.table.read_features()
    assert torch.equal(kernel.table.raw[slots], model.q_net.feature_map.raw(kernel.view.observations(slots)))
    assert torch.equal(kernel.table.raw_next[slots], model.q_net.feature_map.raw(kernel.view.next_observations(slots)))


@pytest.mark.parametrize(("applies_to", "acts", "targets"), [("targets", False, True), ("acting", True, False)])
def test_sb3s_own_dqn_is_corrected_where_it_should_be(applies_to: str, acts: bool, targets: bool, tmp_path) -> None:
    policy_kwargs = {"net_arch": [16], "kernel": {**KERNEL, "applies_to": applies_to}}
    model = DQN(KernelDQNPolicy, "CartPole-v1", **{**SETTINGS, "policy_kwargs": policy_kwargs})
    callback = KernelRefreshCallback()
    model.learn(200, callback=callback)
    assert not any(part.numel() for part in callback.kernel.table.kept)
    model.policy.save(tmp_path / "policy.pt")
    observations = torch.from_numpy(model.replay_buffer.observations[:50, 0])
    for policy in (model.policy, KernelDQNPolicy.load(tmp_path / "policy.pt", device="cpu")):
        policy.set_training_mode(False)
        for network, corrected in ((policy.q_net, acts), (policy.q_net_target, targets)):
            assert torch.equal(network(observations), network.prior_mean(observations)) != corrected


@pytest.mark.parametrize(("share", "left"), [(0.5, 0.0), (1.0, 0.25), (None, 2.0)])
@pytest.mark.parametrize("own", [True, False])
def test_the_bonus_falls_over_a_share_of_the_training(share: float | None, left: float, own: bool) -> None:
    """Inside SB3's own DQN too, where the callback writes it."""
    kernel = {**KERNEL, "exploration_bonus": 2.0, "bonus_fraction": share}
    if own:
        model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, **SETTINGS)
    else:
        policy_kwargs = {"net_arch": [16], "kernel": kernel}
        model = DQN(KernelDQNPolicy, "CartPole-v1", **{**SETTINGS, "policy_kwargs": policy_kwargs})
    assert model.q_net.bonus == (2.0 if own else 0.0)
    seen: dict[int, float] = {}

    def watch(local: dict[str, Any], _: Any) -> bool:
        seen[local["self"].num_timesteps] = model.q_net.bonus
        return True

    callbacks = [] if own else [KernelRefreshCallback()]
    model.learn(80, callback=[*callbacks, ConvertCallback(watch)])
    assert seen[70] == pytest.approx(left, abs=0.04)


@pytest.mark.filterwarnings("ignore:the kernel remembers")  # and forgets, for the buffer is not loaded
def test_the_bonus_falls_anew_after_loading_and_a_schedule_goes_before(tmp_path) -> None:
    kernel = {**KERNEL, "exploration_bonus": 2.0, "bonus_fraction": 0.5}
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, **SETTINGS).learn(60)
    assert model.q_net.bonus == 0.0
    model.save(tmp_path / "model.zip")
    loaded = KernelDDQN.load(tmp_path / "model.zip", env=model.get_env())
    assert loaded.policy.kernel.bonus_fraction == 0.5
    loaded.learn(20, callback=ConvertCallback(lambda local, _: local["self"].num_timesteps < 5))
    assert loaded.q_net.bonus == pytest.approx(2.0 * (1 - 2 * 4 / 20), abs=0.21)
    scheduled = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, bonus_schedule=lambda _: 7.0, **SETTINGS)
    assert scheduled.learn(60).q_net.bonus == 7.0


@pytest.mark.filterwarnings("ignore:the kernel remembers")  # and forgets, for the buffer is not loaded
def test_the_bonus_follows_its_schedule_and_goes_on_after_loading(tmp_path) -> None:
    seen: list[tuple[float, float]] = []

    def watch(local: dict[str, Any], _: Any) -> bool:
        model = local["self"]
        seen.append((model._current_progress_remaining, model.q_net.bonus))
        return True

    schedule = LinearSchedule(2.0, 0.0, 1.0)
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=KERNEL, bonus_schedule=schedule, **SETTINGS)
    model.learn(200, callback=watch)
    assert [bonus for _, bonus in seen[1:]] == pytest.approx([2.0 * progress for progress, _ in seen[1:]])
    assert model.q_net.bonus == 0.0
    observations = np.zeros((1, 4), np.float32)
    model.exploration_rate = 0.0
    assert model.predict(observations)[0] == model.predict(observations, deterministic=True)[0]
    model.save(tmp_path / "model.zip")
    loaded = KernelDDQN.load(tmp_path / "model.zip", env=model.get_env())
    loaded.learn(100)
    assert loaded.q_net.bonus == 0.0


@pytest.mark.parametrize("cls", [KernelDDQN, KernelQ])
def test_going_on_without_the_buffer_is_warned_of(cls: type[KernelDDQN], tmp_path: Path) -> None:
    """At the first refresh a handful of new transitions takes the place of all that the model remembers."""
    model = cls("MlpPolicy", "CartPole-v1", kernel=KERNEL, learning_starts=50, target_update_interval=20, seed=0)
    model.learn(120).save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    for reset in (True, False):
        loaded = cls.load(tmp_path / "model", env=model.env)
        with pytest.warns(
            UserWarning, match=r"remembers \d+ transitions, but the replay buffer is empty: .* load_repl"
        ):
            loaded.learn(1, reset_num_timesteps=reset)
    whole = cls.load(tmp_path / "model", env=model.env)
    whole.load_replay_buffer(tmp_path / "buffer")
    whole.learn(60, reset_num_timesteps=False)
    assert int(whole.policy.online.head.memory.mask.sum()) > 60


@pytest.mark.parametrize("cls", [KernelDDQN, KernelQRDQN, DQK])
def test_a_saved_kernel_cannot_be_replaced(cls: Any, tmp_path: Path) -> None:
    cls("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"kernel is .*, but a saved {cls.__name__} brings its kernel along"):
        cls.load(tmp_path / "model", kernel={"k": 8})


@pytest.mark.parametrize("cls", [KernelDDQN, KernelQRDQN, KernelQ, DQK])
@pytest.mark.parametrize("given", [{}, {"net_arch": [16]}, {"kernel": {"capacity": 9}}])
def test_a_kernel_model_loads_with_the_arguments_that_it_was_made_with(cls: Any, given: Any, tmp_path: Path) -> None:
    kernel = None if "kernel" in given else {"capacity": 9}
    handed = copy.deepcopy(given)
    made = cls("MlpPolicy", "CartPole-v1", kernel=kernel, policy_kwargs=handed, device="cpu")
    assert handed == given
    made.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", device="cpu", policy_kwargs=given)
    assert loaded.policy.kernel == made.policy.kernel
    assert loaded.policy.kernel.capacity == 9
    assert loaded.policy.net_arch == made.policy.net_arch
    if cls is not KernelQ:
        optimizers = [model.policy.optimizer.defaults for model in (made, loaded)]
        assert optimizers[0] == optimizers[1]
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        cls.load(tmp_path / "model", device="cpu", policy_kwargs={"net_arch": [8]})


@pytest.mark.parametrize("kernel", [None, {"k": 4}])
@pytest.mark.parametrize("cls", [KernelDDQN, KernelQ, KernelQRDQN, DQK])
def test_a_policy_without_a_kernel_is_refused_before_it_is_built(cls: Any, kernel: Any) -> None:
    own = cls.needed_policy
    for other in (DQNPolicy, DQKPolicy if own is KernelDQNPolicy else KernelDQNPolicy):
        message = f"{cls.__name__} needs a {own.__name__}, but got {other.__name__}; use 'MlpPolicy'"
        with pytest.raises(ValueError, match=message):
            cls(other, "CartPole-v1", kernel=kernel, device="cpu")


def test_the_kernel_alone_takes_its_settings_from_the_policys_arguments_too() -> None:
    given = {"kernel": {"k": 8, "exploration_bonus": 0.0}}
    for cls in (KernelQ, KernelDDQN):
        kernel = cls("MlpPolicy", "CartPole-v1", policy_kwargs=given, device="cpu").policy.kernel
        assert (kernel.k, kernel.exploration_bonus) == (8, 0.0)


def test_double_dqn_is_not_corrected_from_outside() -> None:
    """It would choose without R, by the network that learns, and evaluate with it."""
    model = DoubleDQN(KernelDQNPolicy, "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match=r"DoubleDQN would choose actions without R.*use KernelDDQN"):
        model.learn(10, callback=KernelRefreshCallback())


def test_residuals_follow_the_target_network_through_the_warm_up_of_a_second_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _trained("both", steps=200)
    refreshed: list[int] = []
    original = type(model._kernel()).refresh

    def noted(kernel: Any, num_timesteps: int) -> None:
        refreshed.append(num_timesteps)
        original(kernel, num_timesteps)

    monkeypatch.setattr("agents.kernel_ddqn.replay_kernel.ReplayKernel.refresh", noted)
    model.learn(45)
    assert refreshed == [20, 40]  # of 50 random steps


def test_one_seed_for_everything_serves_models_without_one() -> None:
    drawn = []
    for seed in (3, 3, 4):
        set_random_seed(seed)
        model = KernelDDQN("MlpPolicy", "CartPole-v1", **{**SETTINGS, "seed": None})
        drawn.append(model.rng.random())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("cls", [KernelDDQN, KernelQ])
def test_a_buffer_that_sums_other_returns_is_refused(cls: type[KernelDDQN], tmp_path: Path) -> None:
    """It would be read by slot, and what it was asked to sum silently left out."""
    own = {"replay_buffer_class": NStepReplayBuffer, "learning_starts": 20, "device": "cpu"}
    for arguments, named in (({"n_steps": 10, "gamma": 0.99}, "sum 10"), ({"n_steps": 3, "gamma": 0.5}, "by 0.5")):
        with pytest.raises(ValueError, match=named):
            cls("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=arguments, **own)
    # Another agent's buffer holds single steps, whatever it sums.
    other = DoubleDQN("MlpPolicy", "CartPole-v1", n_steps=5, learning_starts=20, device="cpu").learn(30)
    other.save_replay_buffer(tmp_path / "buffer.pkl")
    model = cls("MlpPolicy", "CartPole-v1", learning_starts=20, device="cpu")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.learn(120)._kernel().view.n_steps == 3


def test_no_reward_is_no_return() -> None:
    with pytest.raises(ValueError, match="n_steps is 0, but at least 1"):
        KernelDDQN("MlpPolicy", "CartPole-v1", n_steps=0)


def test_another_discount_or_length_of_returns_is_followed() -> None:
    model = _trained("both", n_steps=3, gamma=0.99)
    model.gamma, model.n_steps = 0.0, 1
    model.learn(40, reset_num_timesteps=False)
    assert (model.replay_kernel.view.gamma, model.replay_kernel.view.n_steps) == (0.0, 1)
    assert not model._sample_batch(50).discounts.any()


def test_a_loaded_model_reads_its_supports_however_small_the_buffer(tmp_path: Path) -> None:
    model = _trained("both", buffer_size=150)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = KernelDDQN.load(tmp_path / "model.zip", env=model.get_env(), learning_starts=150)
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded._setup_learn(10)
    loaded.train(1, 16)
    assert loaded._kernel().supports is not None


def test_lasting_actions_end_where_learning_resets() -> None:
    model = KernelDDQN("MlpPolicy", "MountainCar-v0", **SETTINGS).learn(60)
    model._lasting._left[:] = 50
    model.learn(4, reset_num_timesteps=False)
    assert model._lasting._left.item() == 46  # the episode goes on
    model.set_env(gym.make("MountainCar-v0"))
    model.exploration_rate, model.exploration_schedule = 0.0, lambda _: 0.0
    model.learn(4, reset_num_timesteps=False)
    assert not model._lasting._left.any()


def test_a_single_action_is_an_array_and_a_tuple_is_explained() -> None:
    model = _trained("both", steps=4)
    for deterministic in (False, True):
        action, _ = model.predict(model.observation_space.sample(), deterministic=deterministic)
        assert isinstance(action, np.ndarray)
        assert action.shape == ()
    model.exploration_rate = 1.0
    observation = tuple(model.observation_space.sample())
    assert len({int(model.predict(observation)[0]) for _ in range(30)}) == 2
    with pytest.raises(ValueError, match="tuple"):
        model.predict(gym.make("CartPole-v1").reset())


def test_counts_of_the_target_network_are_its_own() -> None:
    model = _trained("both")
    for network, count in ((model.q_net, 2), (model.q_net_target, 3)):
        network.head.fallbacks.fill_(count)
    model.q_net_target.copy_kernel(model.q_net)
    assert (int(model.q_net.head.fallbacks), int(model.q_net_target.head.fallbacks)) == (2, 3)
    assert model._kernel().scalars["fallbacks"] == 5.0


@pytest.mark.parametrize(("saving", "loading"), [(KernelDDQN, KernelQ), (KernelQ, KernelDDQN)])
def test_a_file_of_another_agent_is_refused_where_no_setting_was_given_either(
    saving: type[KernelDDQN], loading: type[KernelDDQN], tmp_path: Path
) -> None:
    saving("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"kernel.head is '\w+', but Kernel\w+ takes"):
        loading.load(tmp_path / "model.zip", device="cpu")


def test_a_bonus_is_a_number_or_a_schedule(tmp_path) -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=KERNEL, bonus_schedule=3, **SETTINGS)
    assert model.q_net.bonus == 3.0
    assert model.learn(80).q_net.bonus == 3.0
    model.bonus_schedule = 0.5
    assert model.learn(10).q_net.bonus == 0.5
    model.save(tmp_path / "model.zip")
    # At the end of its training.
    loaded = KernelDDQN.load(tmp_path / "model.zip", bonus_schedule=LinearSchedule(4.0, 2.0, 1.0))
    assert loaded.q_net.bonus == 2.0
    assert KernelDDQN.load(tmp_path / "model.zip").q_net.bonus == 0.5


def test_networks_answer_with_the_correction_as_soon_as_a_callback_ends() -> None:
    model = DQN(KernelDQNPolicy, "CartPole-v1", **SETTINGS).learn(200, callback=KernelRefreshCallback())
    observations = torch.from_numpy(model.replay_buffer.observations[:50, 0])
    with torch.no_grad():
        correction = model.q_net.head.correction(model.q_net.feature_map(observations))
        assert correction.any()
        assert torch.equal(model.q_net(observations), model.q_net.prior_mean(observations) + correction)

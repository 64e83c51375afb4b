from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.dqn.policies import DQNPolicy

from agents import KernelConfig, KernelDDQN, KernelDQNPolicy, KernelPPO, KernelQ, KernelRefreshCallback
from agents.common.features import ObservationFeatures
from agents.common.lengthscale import TABULAR
from agents.common.schema import ConfigError
from envs import make_env
from skrl.kernels import KERNELS
from skrl.value_heads import HEADS

SETTINGS = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}
KERNEL = {"capacity": 100, "k": 4, "refresh_interval": 60}


def _with_kernel(**settings) -> DQN:
    policy_kwargs = {"net_arch": [16], "kernel": KERNEL}
    return DQN(KernelDQNPolicy, "CartPole-v1", **{**SETTINGS, "policy_kwargs": policy_kwargs, **settings})


def test_with_an_empty_memory_sb3s_dqn_learns_exactly_as_with_its_own_policy() -> None:
    plain = DQN(DQNPolicy, "CartPole-v1", **SETTINGS).learn(300)
    kernel = _with_kernel().learn(300)
    theirs = dict(plain.policy.named_parameters())
    for name, parameter in kernel.policy.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.array_equal(
        kernel.predict(observations, deterministic=True)[0], plain.predict(observations, deterministic=True)[0]
    )


def test_the_callback_fills_and_renews_the_memory_of_sb3s_dqn() -> None:
    model = _with_kernel().learn(300, callback=KernelRefreshCallback())
    online, target = model.policy.q_net, model.policy.q_net_target
    assert online.head.memory.sizes.sum() == 100
    assert torch.equal(online.head.memory.targets, target.head.memory.targets)
    assert online.head.memory.targets.abs().sum() > 0
    observations = torch.randn(5, 4)
    model.policy.set_training_mode(False)
    assert not torch.equal(online(observations), online.prior_mean(observations))


def test_the_callback_refreshes_between_target_update_and_gradient_steps(networks_equal_at_refresh: list[bool]) -> None:
    _with_kernel().learn(300, callback=KernelRefreshCallback())
    assert len(networks_equal_at_refresh) >= 10
    assert all(networks_equal_at_refresh)


def test_heads_belong_to_their_algorithms() -> None:
    with pytest.raises(ValueError, match=r"kernel.head is 'network_free', but KernelDDQN takes residual or averaging"):
        KernelDDQN("MlpPolicy", "CartPole-v1", kernel={"head": "network_free"})
    with pytest.raises(ValueError, match=r"kernel.head is 'averaging', but KernelQ takes network_free"):
        KernelQ("MlpPolicy", "CartPole-v1", kernel={"head": "averaging"})
    with pytest.raises(ConfigError, match="kernel is a str"):
        KernelQ("MlpPolicy", "CartPole-v1", kernel="network_free")
    with pytest.raises(ValueError, match="refreshes its own kernel"):
        KernelDDQN("MlpPolicy", "CartPole-v1").learn(10, callback=KernelRefreshCallback())
    with pytest.raises(ValueError, match="needs a KernelDQNPolicy, but got DQNPolicy"):
        KernelDDQN(DQNPolicy, "CartPole-v1")
    with pytest.raises(ValueError, match="averaging head solves nothing"):
        KernelConfig(head="averaging", ridge=0.5)


def test_a_buffer_that_makes_up_transitions_is_refused_at_once() -> None:
    class Relabelling(ReplayBuffer):
        pass

    with pytest.raises(ValueError, match="Relabelling does not allow"):
        KernelDDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=Relabelling)


def test_the_order_of_a_dict_observation_does_not_matter() -> None:
    space = spaces.Dict({"b": spaces.Box(-1, 1, (2,)), "a": spaces.Discrete(3)})
    features = ObservationFeatures(space, projection_dim=64).raw
    first = {"a": torch.tensor([1]), "b": torch.tensor([[0.1, 0.2]])}
    second = {"b": first["b"], "a": first["a"]}
    assert torch.equal(features(first), features(second))
    assert features(first).tolist() == [[0.0, 1.0, 0.0, pytest.approx(0.1), pytest.approx(0.2)]]


def test_the_callback_refuses_a_model_without_a_kernel() -> None:
    with pytest.raises(ValueError, match="needs a model with a kernel policy, but got DQN with DQNPolicy"):
        DQN("MlpPolicy", "CartPole-v1", **SETTINGS).learn(10, callback=KernelRefreshCallback())


def test_the_head_is_off_in_training_mode_only() -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=KERNEL, seed=0, learning_starts=50).learn(300)
    observations = torch.from_numpy(model.replay_buffer.observations[:10, 0])
    network = model.q_net
    assert not network.training
    corrected = network(observations)
    assert not torch.equal(corrected, network.prior_mean(observations))
    network.set_training_mode(True)
    assert torch.equal(network(observations), network.prior_mean(observations))


def test_exploration_is_drawn_to_the_action_that_memory_does_not_know() -> None:
    policy = KernelDDQN("MlpPolicy", "CartPole-v1", kernel={**KERNEL, "exploration_bonus": 3.0}, seed=0).policy
    observations = torch.randn(40, 4)
    assert torch.equal(policy.q_net.exploring_values(observations), policy.q_net.prior_mean(observations))
    head = policy.q_net.head
    head.memory.write(torch.stack([torch.randn(50, 4)] * 2), torch.tensor([50, 0]))
    head.write_targets(torch.full((2, 50), 0.5))
    assert head.amplitude == 0.5
    bonus = policy.q_net.exploring_values(observations) - policy.q_net(observations)
    assert torch.allclose(bonus[:, 1], torch.tensor(1.5))
    assert (bonus[:, 0] < 1.5).all()
    assert (bonus[:, 0] > 0).all()
    actions = policy.predict(observations.numpy(), deterministic=False)[0]
    assert np.array_equal(actions, policy.q_net.exploring_values(observations).argmax(1).numpy())


@pytest.mark.parametrize("applies_to", ["both", "targets"])
def test_thompson_sampling_draws_from_the_posterior(applies_to: str) -> None:
    kernel = {**KERNEL, "exploration": "thompson", "exploration_bonus": 2.0, "applies_to": applies_to}
    policy = KernelDDQN("MlpPolicy", "CartPole-v1", kernel=kernel, seed=0).policy
    network, head = policy.q_net, policy.q_net.head
    head.memory.write(torch.stack([torch.randn(50, 4)] * 2), torch.tensor([50, 0]))
    head.write_targets(torch.full((2, 50), 0.5))
    observation = torch.randn(1, 4)
    with torch.no_grad():
        draws = network.exploring_values(observation.expand(20_000, 4))
        deviation = 2.0 * head.deviation(network.feature_map(observation))[0]
        torch.testing.assert_close(draws.mean(0), network(observation)[0], atol=0.03, rtol=0.0)
        torch.testing.assert_close(draws.std(0), deviation, atol=0.03, rtol=0.0)
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 0.03
    assert deviation[1] == 1.0
    chosen = {int(policy.predict(observation.numpy(), deterministic=False)[0][0]) for _ in range(50)}
    assert chosen == {0, 1}


def test_policy_save_and_load_keep_settings_and_memory(tmp_path) -> None:
    model = KernelDDQN("MlpPolicy", "CartPole-v1", kernel={**KERNEL, "ridge": 0.3}, seed=0, learning_starts=50).learn(
        200
    )
    model.policy.save(tmp_path / "policy.pt")
    loaded = KernelDQNPolicy.load(tmp_path / "policy.pt", device="cpu")
    assert loaded.kernel == model.policy.kernel == KernelConfig(**{**KERNEL, "ridge": 0.3})
    assert loaded.q_net.head.ridge == 0.3
    observations = torch.randn(6, 4)
    with torch.no_grad():
        assert torch.equal(loaded.q_net(observations), model.q_net(observations))


@pytest.mark.parametrize("cls", [DQN, KernelDDQN, KernelQ])
@pytest.mark.parametrize("exploration", ["optimism", "lookahead", "thompson"])
def test_a_policy_that_is_loaded_alone_is_greedy_as_sb3s_are(cls: Any, exploration: str, tmp_path: Path) -> None:
    kernel = {**KERNEL, "exploration_bonus": 20.0, "exploration": exploration}
    settings: dict[str, Any] = {"learning_starts": 50, "target_update_interval": 20, "seed": 0, "device": "cpu"}
    if cls is DQN:
        model = DQN(KernelDQNPolicy, "CartPole-v1", policy_kwargs={"kernel": kernel}, **settings)
        model.learn(200, callback=KernelRefreshCallback())
    else:
        model = cls("MlpPolicy", "CartPole-v1", kernel=kernel, **settings).learn(200)
    observations = model.replay_buffer.observations[:200, 0]
    greedy, _ = model.predict(observations, deterministic=True)
    assert not np.array_equal(model.policy.predict(observations)[0], greedy)
    model.policy.save(tmp_path / "policy.pt")
    loaded = KernelDQNPolicy.load(tmp_path / "policy.pt", device="cpu")
    assert loaded.kernel.exploration_bonus == 20.0
    assert np.array_equal(loaded.predict(observations)[0], greedy)


def test_the_callback_lets_the_first_action_explore() -> None:
    model, seen = _with_kernel(), []

    def watch(local: dict[str, Any], _: Any) -> bool:
        seen.append(local["self"].policy.q_net.bonus)
        return True

    model.learn(2, callback=[ConvertCallback(watch), KernelRefreshCallback()])
    assert seen[0] == KernelConfig.exploration_bonus


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"'kernel.lengthscale_fact'; did you mean 'kernel.lengthscale_factor'"):
        KernelDDQN("MlpPolicy", "CartPole-v1", kernel={"lengthscale_fact": 2.0})
    with pytest.raises(ValueError, match=r"kernel.ridge is -1.0, but must be above 0"):
        KernelConfig(ridge=-1.0)
    with pytest.raises(ValueError, match=r"kernel.kernel is 'matern'; did you mean 'matern"):
        KernelConfig(kernel="matern")


def test_every_kernel_and_head_can_be_chosen() -> None:
    hints = get_type_hints(KernelConfig)
    assert set(get_args(hints["kernel"])) == set(KERNELS)
    assert set(get_args(hints["head"])) == set(HEADS)


def test_defaults_follow_the_kind_of_observation() -> None:
    vector = KernelDDQN("MlpPolicy", "CartPole-v1")
    assert vector.policy.net_arch == [256, 256]
    assert vector.n_steps == 3
    assert type(vector.replay_buffer).__name__ == "ReplayBuffer"
    assert KernelDDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}).policy.net_arch == [8]
    pictures = KernelDDQN("CnnPolicy", make_env("ALE/Pong-v5"), buffer_size=10)
    assert pictures.policy.net_arch == []


@pytest.mark.parametrize("cls", [KernelDDQN, KernelQ])
def test_numbered_states_are_known_by_their_own_visits_alone(cls: Any) -> None:
    kernel = {**KERNEL, "refresh_interval": 60, "ridge": 0.5}
    settings = {"learning_starts": 50, "target_update_interval": 20, "seed": 0, "device": "cpu"}
    model = cls("MlpPolicy", "FrozenLake-v1", kernel=kernel, **settings).learn(200)
    network = model.policy.online
    head, memory = network.head, network.head.memory
    assert network.feature_map.dim == 1
    states = torch.arange(16)
    model._kernel().rebuild()
    local = head.localise(network.feature_map(states))
    visited = network.feature_map.raw(torch.from_numpy(model.replay_buffer.observations[:200, 0])).unique().long()
    assert 1 < len(visited) < 16
    unknown = [state for state in states.tolist() if state not in visited]
    assert torch.equal(local.variance[:, unknown], torch.ones_like(local.variance[:, unknown]))
    assert not local.weights[:, unknown].any()
    # n visits, of which a query reads k, share n / (n + λ), and leave a variance of λ / (n + λ).
    steps = model.replay_buffer.pos
    seen, done = (getattr(model.replay_buffer, name)[:steps, 0, 0] for name in ("observations", "actions"))
    visits = torch.tensor([int(((seen == state) & (done == 0)).sum()) for state in range(16)])
    assert (memory.features[0] == network.feature_map(states)[0]).sum() == min(int(visits[0]), head.k)
    count = visits.clamp(max=head.k)
    ridge = float(head.scaled_ridge)
    expected = ridge / (count + ridge)
    assert torch.allclose(local.variance[0], torch.where(count > 0, expected, 1.0), atol=1e-4)


def test_numbers_of_states_are_coordinates_nowhere_else() -> None:
    space = spaces.Discrete(5)
    assert ObservationFeatures(space, 64).dim == 5
    assert ObservationFeatures(space, 64, tabular=True).dim == 1
    assert ObservationFeatures(spaces.Box(-1, 1, (3,)), 64, tabular=True).gap is None
    assert ObservationFeatures(spaces.Discrete(4097), 64, tabular=True).gap is None
    late = ObservationFeatures(spaces.Discrete(5, start=10**8), 64, tabular=True)
    assert late.raw(torch.tensor([10**8 + 3])).tolist() == [[3.0]]
    for settings in ({"features": "both"}, {"kernel": "polynomial"}, {"kernel": "inverse_multiquadric"}):
        model = KernelDDQN("MlpPolicy", "FrozenLake-v1", kernel=settings, device="cpu")
        assert model.q_net.feature_map.gap is None
    rollouts = KernelPPO("MlpPolicy", "FrozenLake-v1", n_steps=32, batch_size=8, device="cpu", seed=0).learn(64)
    assert rollouts.critic.feature_map.dim == 1
    gap = rollouts.critic.feature_map.gap
    assert gap is not None
    assert rollouts.critic.head.lengthscale == pytest.approx(TABULAR * float(gap))


def test_a_numbered_state_that_was_visited_once_is_not_forgotten() -> None:
    kernel = {"capacity": 60, "k": 4, "refresh_interval": 20}
    model = KernelQ(
        "MlpPolicy", "FrozenLake-v1", kernel=kernel, learning_starts=50, target_update_interval=20, seed=0, device="cpu"
    ).learn(400)
    kernel_ = model._kernel()
    kernel_.rebuild()
    head, features = model.policy.online.head, kernel_.table.raw
    slots = kernel_.view.slots()
    for action, size in enumerate(head.memory.sizes.tolist()):
        stored = features[slots[kernel_.view.stored_actions(slots) == action]].unique()
        known = head.memory.features[action, :size].unique()
        assert len(known) == len(stored) > 4
        assert len(known) < size <= 15


def test_the_callback_writes_what_the_kernel_is_like(tmp_path: Path) -> None:
    model = _with_kernel()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = KernelRefreshCallback()
    model.learn(300, callback=callback)
    model.logger.close()
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["kernel/supports"]) > 0
    assert float(rows[-1]["kernel/refresh_ms"]) > 0
    assert len(callback.kernel.diagnostics.refresh_seconds) < 10


def test_the_callback_warns_of_what_an_empty_buffer_forgets(tmp_path: Path) -> None:
    model = _with_kernel().learn(300, callback=KernelRefreshCallback())
    model.save(tmp_path / "model.zip")
    loaded = DQN.load(tmp_path / "model.zip", env=model.get_env())
    for callback in (KernelRefreshCallback(), [KernelRefreshCallback()]):
        with pytest.warns(UserWarning, match="the replay buffer is empty") as warned:
            loaded.learn(10, callback=callback)
        assert warned[0].filename == __file__
        loaded.replay_buffer.reset()

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import KernelDDQN, KernelDQNPolicy, KernelQ, KernelRefreshCallback
from agents.double_dqn import TransitionBatch
from agents.kernel_ddqn.correction_table import INITIAL_ROWS
from agents.kernel_ddqn.kernel_q import GRADIENT_SETTINGS
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from envs.tabular import ChainEnv

SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "buffer_size": 2000,
    "policy_kwargs": {"net_arch": [16]},
    "kernel": {"capacity": 120, "k": 5, "refresh_interval": 60},
    "seed": 0,
    "device": "cpu",
}


def _trained(steps: int = 300, env: Any = "CartPole-v1", **settings: Any) -> KernelDDQN:
    return KernelDDQN("MlpPolicy", env, **{**SETTINGS, **settings}).learn(steps)


def _kernel(model: KernelDDQN) -> ReplayKernel:
    assert model.replay_kernel is not None
    return model.replay_kernel


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"features": "penultimate"},
        {"features": "both"},
        {"localisation": "continuous"},
        {"lengthscale_rule": "leave_one_out"},
        {"applies_to": "targets"},
    ],
)
def test_cached_corrections_equal_fresh_queries_of_the_head(settings: dict[str, str]) -> None:
    model = _trained(310, kernel={**SETTINGS["kernel"], **settings})
    kernel = _kernel(model)
    kernel.extend()
    slots = kernel.view.slots()
    with torch.no_grad():
        features = model.q_net.feature_map(kernel.view.next_observations(slots))
        fresh = model.q_net.head.correction(features)
    assert fresh.abs().max() > 0
    assert torch.allclose(kernel.next_corrections(slots), fresh, atol=1e-5)


def test_where_no_transition_can_be_a_support_corrections_are_zero_however_the_buffer_grows(poisoned) -> None:
    model = KernelDDQN("MlpPolicy", poisoned(range(1, 10_000), "nan"), **{**SETTINGS, "learning_starts": 10_000})
    kernel = model.learn(500)._kernel()
    kernel.rebuild()
    assert kernel.supports is None
    model.learn(INITIAL_ROWS, reset_num_timesteps=False)
    kernel.extend()
    assert len(kernel.table.kept.weights[0]) == INITIAL_ROWS < kernel.view.size
    assert not kernel.next_corrections(np.array([0, kernel.view.size - 1])).any()


def test_new_transitions_are_served_before_the_next_rebuild() -> None:
    model = _trained(300)
    kernel = _kernel(model)
    rebuilt_at = kernel.steps_at_rebuild
    model.learn(12, reset_num_timesteps=False)
    assert kernel.steps_at_rebuild == rebuilt_at
    kernel.extend()
    newest = kernel.view.newest(8)
    fresh = model.q_net.head.correction(model.q_net.feature_map(kernel.view.next_observations(newest)))
    assert torch.allclose(kernel.next_corrections(newest), fresh, atol=1e-5)


@pytest.mark.parametrize("backup", ["restart", "continue"])
def test_residuals_are_the_backed_up_targets_minus_the_target_network(backup: str) -> None:
    model = _trained(kernel={**SETTINGS["kernel"], "sweeps": 1, "backup": backup})
    kernel = _kernel(model)
    supports = kernel.supports
    assert supports is not None
    known = kernel.next_values.mT
    kernel.rebase()
    with torch.no_grad():
        values = model.q_net_target.prior_mean(supports.observations)
        present = values.gather(1, supports.actions.unsqueeze(1)).squeeze(1)
        reached = model.q_net_target.prior_mean(supports.next_observations)
        best = (reached if backup == "restart" else known).amax(1)
        reached = reached + model.q_net.head.correction(model.q_net.feature_map(supports.next_observations))
    assert torch.allclose(kernel.next_values.mT[supports.filled], reached[supports.filled], atol=1e-5)
    expected = supports.rewards + supports.discounts * best - present
    stored = model.q_net.head.memory.targets.reshape(-1)
    assert torch.allclose(stored[supports.filled], expected[supports.filled], atol=1e-5)
    assert not stored[~supports.filled].any()


@pytest.mark.parametrize(
    "carries", [{"backup": "continue"}, {"exploration": "lookahead"}], ids=["continue", "lookahead"]
)
def test_what_the_network_learned_of_the_correction_is_not_counted_twice_by_new_supports(
    carries: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that go on are those of the network before the target update and what was to correct that one."""
    model = _trained(kernel={**SETTINGS["kernel"], **carries})
    kernel = _kernel(model)
    assert kernel.supports is not None
    # The same supports again, so that what they knew of their next states is known to the test.
    slots, sizes = kernel._choose(kernel.view.slots())
    monkeypatch.setattr(kernel, "_choose", lambda usable: (slots, sizes))
    kernel.rebuild()
    known, optimistic = kernel.next_values.clone(), kernel.next_optimistic.clone()
    begun: list[torch.Tensor] = []
    back_up = kernel._back_up
    monkeypatch.setattr(kernel, "_back_up", lambda *args: (begun.append(args[1].clone()), back_up(*args))[1])
    for network in (model.q_net, model.q_net_target):
        torch.nn.init.constant_(network.q_net[-1].bias, 5.0)
    kernel.rebuild()
    expected = [known if kernel.continues else kernel._prior_means(kernel.supports.next_observations).mT]
    expected += [optimistic] if kernel.looks_ahead else []
    for start, values in zip(begun, expected, strict=True):
        torch.testing.assert_close(start, values, rtol=0.0, atol=1e-4)


def test_the_refresh_follows_the_target_update(networks_equal_at_refresh: list[bool]) -> None:
    _trained()
    assert len(networks_equal_at_refresh) >= 10
    assert all(networks_equal_at_refresh)


def test_supports_are_the_newest_and_a_uniform_draw_per_action() -> None:
    model = _trained(400)
    kernel = _kernel(model)
    slots = kernel.view.slots()
    chosen, sizes = kernel._choose(slots)
    kernel.rebuild()
    for action in range(2):
        mine = chosen[action, : sizes[action]]
        taken = kernel.view.slots()[kernel.view.actions(kernel.view.slots()).numpy() == action]
        assert len(set(mine)) == min(60, len(taken))
        assert set(taken[-30:]) <= set(mine)
        assert set(mine) <= set(taken)


def test_the_memory_holds_features_of_transitions_with_its_action() -> None:
    model = _trained(400)
    kernel = _kernel(model)
    kernel.rebuild()
    memory, slots = model.q_net.head.memory, kernel.view.slots()
    for action in range(2):
        taken = slots[kernel.view.actions(slots).numpy() == action]
        features = model.q_net.feature_map(kernel.view.observations(taken))
        stored = memory.features[action, : memory.sizes[action]]
        distances = torch.cdist(stored, features, compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.amin(1).max() < 1e-5


@pytest.mark.parametrize("steps", [150, 200, 290])
def test_a_kernel_that_meets_a_wrapped_buffer_serves_all_of_it(steps: int) -> None:
    model = _trained(steps, buffer_size=100, learning_starts=1000)
    assert model.replay_buffer.full
    kernel = model._kernel()
    kernel.rebuild()
    slots = kernel.view.slots()
    assert len(slots) == 100
    assert kernel.table.raw[slots].abs().sum(1).min() > 0
    fresh = model.q_net.head.correction(model.q_net.feature_map(kernel.view.next_observations(slots)))
    assert torch.allclose(kernel.next_corrections(slots), fresh, atol=1e-5)


def test_a_buffer_that_wraps_around_keeps_the_cache_right() -> None:
    model = _trained(700, buffer_size=150)
    kernel = _kernel(model)
    kernel.extend()
    slots = kernel.view.slots()
    fresh = model.q_net.head.correction(model.q_net.feature_map(kernel.view.next_observations(slots)))
    assert torch.allclose(kernel.next_corrections(slots), fresh, atol=1e-5)
    assert len(kernel.table.raw) == 150


def _whole_buffers_between_reads(agent: str, size: int) -> ReplayKernel:
    """A kernel that has read its buffer a few times, every time after as many steps as that has rows."""
    kernel = {**SETTINGS["kernel"], "refresh_interval": 1000}
    settings: dict[str, Any] = {**SETTINGS, "kernel": kernel, "buffer_size": size, "train_freq": size}
    if agent == "kernel_ddqn":
        return _kernel(KernelDDQN("MlpPolicy", "CartPole-v1", **settings).learn(5 * size))
    if agent == "kernel_q":
        # Reads at rebuilds only.
        settings |= {"kernel": {**SETTINGS["kernel"], "refresh_interval": size}, "target_update_interval": size}
        settings = {name: value for name, value in settings.items() if name not in GRADIENT_SETTINGS}
        return _kernel(KernelQ("MlpPolicy", "CartPole-v1", **settings).learn(5 * size))
    policy_kwargs = {**SETTINGS["policy_kwargs"], "kernel": {**settings.pop("kernel"), "backup": "continue"}}
    callback = KernelRefreshCallback()
    DQN(KernelDQNPolicy, "CartPole-v1", **{**settings, "policy_kwargs": policy_kwargs}).learn(5 * size, callback)
    return callback.kernel


@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "zoo_dqn"])
def test_a_whole_buffer_that_goes_by_between_two_reads_is_read_anew(agent: str) -> None:
    kernel = _whole_buffers_between_reads(agent, 64)
    slots = kernel.view.slots()
    assert torch.equal(kernel.table.raw[slots], kernel.feature_map.raw(kernel.view.observations(slots)))
    assert torch.equal(kernel.table.raw_next[slots], kernel.feature_map.raw(kernel.view.next_observations(slots)))


class OneActionMatters(gym.Env):
    """Constant observations; an action of many that is never taken must not break anything."""

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(3, np.float32), 1.0, False, self.steps >= 8, {}


def test_constant_features_duplicates_and_untaken_actions_have_defined_answers() -> None:
    # Single random actions come from the action space, which here knows one.
    settings = {**SETTINGS, "exploration_zeta": None, "kernel": {"capacity": 60, "k": 16}}
    model = KernelDDQN("MlpPolicy", OneActionMatters(), **settings)
    model.action_space.sample = lambda: 2  # type: ignore[method-assign]
    model.exploration_initial_eps = model.exploration_final_eps = 0.0
    model.learn(150)
    memory = model.q_net.head.memory
    assert (memory.sizes == 0).any()
    assert model.q_net.head.k == 10
    observation = torch.ones(1, 3)
    q_values = model.q_net(observation)
    assert q_values.isfinite().all()
    untaken = memory.sizes == 0
    assert torch.equal(q_values[0, untaken], model.q_net.prior_mean(observation)[0, untaken])


def test_a_loaded_buffer_gets_a_kernel_of_its_own(tmp_path) -> None:
    model = _trained(buffer_size=150)
    first = _kernel(model)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.learn(40, reset_num_timesteps=False)
    kernel = _kernel(model)
    assert kernel is not first
    assert kernel.view.buffer is model.replay_buffer
    kernel.extend()
    slots = kernel.view.slots()
    fresh = model.q_net.head.correction(model.q_net.feature_map(kernel.view.next_observations(slots)))
    assert torch.allclose(kernel.next_corrections(slots), fresh, atol=1e-5)


@pytest.mark.parametrize("replaced", ["model", "parameters", "policy", "buffer"])
def test_a_resumed_model_learns_at_once_from_the_corrections_that_it_acts_on(
    replaced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next target update is eight steps away."""
    model = _trained(312)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    if replaced == "model":
        model.save(tmp_path / "model.zip")
        model = KernelDDQN.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    if replaced == "parameters":
        model.set_parameters(model.get_parameters())
    elif replaced == "policy":
        model.policy.load_state_dict(model.policy.state_dict())
    else:
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    batches: list[TransitionBatch] = []
    sample = model._sample_batch

    def watched(batch_size: int) -> TransitionBatch:
        batches.append(sample(batch_size))
        return batches[-1]

    monkeypatch.setattr(model, "_sample_batch", watched)
    model.learn(4, reset_num_timesteps=False)
    assert _kernel(model).steps_at_rebuild == 316
    for batch in batches:
        fresh = model.q_net.head.correction(model.q_net.feature_map(batch.next_observations))
        assert fresh.abs().max() > 0
        assert torch.allclose(batch.next_corrections, fresh, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the kernel remembers")  # and forgets, for the buffer is not loaded
def test_a_model_that_is_loaded_without_its_buffer_keeps_its_supports_until_the_target_update(tmp_path: Path) -> None:
    model = _trained(312)
    model.save(tmp_path / "model.zip")
    loaded = KernelDDQN.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    loaded.learn(4, reset_num_timesteps=False)
    assert torch.equal(loaded.q_net.head.memory.features, model.q_net.head.memory.features)
    loaded.learn(4, reset_num_timesteps=False)
    assert loaded.q_net.head.memory.sizes.sum() == 8


def test_normalised_observations_are_read_as_the_network_sees_them() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = _trained(env=env)
    kernel = _kernel(model)
    kernel.rebuild()
    slots = kernel.view.slots()
    seen = torch.from_numpy(env.normalize_obs(model.replay_buffer.next_observations[slots, 0]))
    fresh = model.q_net.head.correction(model.q_net.feature_map(seen))
    assert fresh.abs().max() > 0
    assert torch.allclose(kernel.next_corrections(slots), fresh, atol=1e-4)
    rewards = env.normalize_reward(model.replay_buffer.rewards[slots, 0])
    assert np.allclose(kernel.view.n_step(slots[-1:]).rewards, rewards[-1:])


def test_wide_observations_are_projected() -> None:
    class Wide(OneActionMatters):
        observation_space = spaces.Box(-1, 1, (200,))

        def reset(self, **kwargs):
            _, info = super().reset(**kwargs)
            return self.np_random.normal(size=200).astype(np.float32), info

        def step(self, action):
            _, *rest = super().step(action)
            return (self.np_random.normal(size=200).astype(np.float32), *rest)

    model = _trained(env=Wide(), kernel={**SETTINGS["kernel"], "projection_dim": 32})
    assert model.q_net.head.memory.features.shape[-1] == 32
    assert not any("projection" in name for name in model.policy.state_dict())


def test_kernel_scalars_are_logged(tmp_path) -> None:
    settings = {**SETTINGS, "kernel": {**SETTINGS["kernel"], "exploration_bonus": 3.0, "bonus_fraction": 0.1}}
    model = KernelDDQN("MlpPolicy", "CartPole-v1", **settings)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(300, log_interval=1)
    model.logger.close()
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    scalars = {name.removeprefix("kernel/"): value for name, value in last.items() if name.startswith("kernel/")}
    assert set(scalars) == {
        "supports",
        "supports_smallest_action",
        "lengthscale",
        "ridge",
        "residual_abs_mean",
        "variance_mean",
        "amplitude",
        "bonus",
        "greedy_changed_share",
        "leave_one_out_error",
        "fallbacks",
        "jitters",
        "refresh_ms",
        "query_ms",
    }
    assert scalars["supports"] == 120
    assert scalars["residual_abs_mean"] > 0
    assert 0 < scalars["variance_mean"] < 1
    assert scalars["amplitude"] > 0
    assert scalars["bonus"] == 0.0
    assert 0 <= scalars["greedy_changed_share"] <= 1
    assert scalars["query_ms"] > 0


def test_kernel_q_reaches_the_values_of_value_iteration() -> None:
    gamma = 0.9
    env = ChainEnv(6)
    model = KernelQ(
        "MlpPolicy",
        env,
        gamma=gamma,
        n_steps=1,
        learning_starts=50,
        target_update_interval=50,
        exploration_initial_eps=1.0,
        exploration_final_eps=1.0,
        kernel={"capacity": 4000, "k": 8, "ridge": 1e-4, "kernel": "laplace", "sweeps": 40},
        seed=0,
    ).learn(3000)
    states = torch.stack([torch.as_tensor(env.observe(state)) for state in range(6)])
    with torch.no_grad():
        learned = model.q_net(states).numpy()
    optimal = env.optimal_q(gamma)
    taken = ~env.mdp.terminals
    assert np.abs(learned[taken] - optimal[taken]).max() < 0.01


def test_a_large_buffer_is_rebuilt_once_it_has_grown_by_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _trained(300)
    kernel = _kernel(model)
    rebuilt_at = kernel.steps_at_rebuild
    monkeypatch.setattr("agents.kernel_ddqn.replay_kernel.GROWTH", 0.5)
    size = kernel.view.size
    assert size >= 300
    kernel.refresh(rebuilt_at + size // 2 - 1)
    assert kernel.steps_at_rebuild == rebuilt_at
    kernel.refresh(rebuilt_at + size // 2 + 1)
    assert kernel.steps_at_rebuild > rebuilt_at

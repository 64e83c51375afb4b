from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from agents import KernelConfig, KernelDDQN
from agents.common.replay_view import ReplayView
from agents.common.schema import ConfigError
from agents.kernel_ddqn import trajectories as module
from agents.kernel_ddqn.trajectories import Stretch, Trajectories

ACTIONS, GAMMA, DECAY = 3, 0.9, 0.8


def _buffer(rows: int, capacity: int = 200, n_envs: int = 1, seed: int = 0) -> ReplayBuffer:
    """Random transitions, some of which end their episode: terminated, or cut off by a time limit."""
    buffer = ReplayBuffer(
        capacity * n_envs, spaces.Box(-1, 1, (2,)), spaces.Discrete(ACTIONS), device="cpu", n_envs=n_envs
    )
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        observations, following = rng.normal(size=(2, n_envs, 2))
        actions = rng.integers(ACTIONS, size=(n_envs, 1))
        dones, cut = rng.random((2, n_envs)) < [[0.15], [0.5]]
        infos = [{"TimeLimit.truncated": bool(done and short)} for done, short in zip(dones, cut, strict=True)]
        buffer.add(observations, following, actions, rng.normal(size=n_envs), dones, infos)
    return buffer


def _trajectories(buffer: ReplayBuffer) -> Trajectories:
    return Trajectories(ReplayView(buffer, 3, GAMMA), DECAY, torch.device("cpu"))


def _open(trajectories: Trajectories, seed: int = 1) -> Stretch:
    slots, follows = trajectories.next_slots()
    return trajectories.open(slots, follows, torch.randn(len(slots), ACTIONS, generator=_generator(seed)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _renew(trajectories: Trajectories, seed: int = 1) -> Stretch:
    stretch = _open(trajectories, seed)
    trajectories.write(stretch, trajectories.solve(stretch, torch.zeros_like(stretch.next_q)))
    return stretch


def _by_loop(buffer: ReplayBuffer, stretch: Stretch) -> dict[int, float]:
    """Targets by slot, from the newest row of every environment to its oldest."""
    best = zip(stretch.slots, *stretch.next_q.max(1), strict=True)
    known = {int(slot): (float(value), int(action)) for slot, value, action in best}
    rows = [(buffer.pos - 1 - age) % buffer.buffer_size for age in range(buffer.size())]
    targets: dict[int, float] = {}
    for env in range(buffer.n_envs):
        newer: int | None = None
        for row in rows:
            slot = row * buffer.n_envs + env
            value, greedy = known[slot]
            done, cut = bool(buffer.dones[row, env]), bool(buffer.timeouts[row, env])
            if newer is not None and not done and buffer.actions[newer, env, 0] == greedy:
                value = (1 - DECAY) * value + DECAY * targets[newer * buffer.n_envs + env]
            discount = 0.0 if done and not cut else GAMMA
            targets[slot] = float(buffer.rewards[row, env]) + discount * value
            newer = row
    return targets


@pytest.mark.parametrize(("rows", "n_envs"), [(1, 1), (60, 1), (60, 3), (290, 1), (290, 3)])
def test_targets_follow_the_greedy_parts_of_every_trajectory(rows: int, n_envs: int) -> None:
    buffer = _buffer(rows, n_envs=n_envs)
    trajectories = _trajectories(buffer)
    stretch = _renew(trajectories)
    expected = _by_loop(buffer, stretch)
    assert len(expected) == min(rows, 200) * n_envs
    for slot, value in expected.items():
        assert float(trajectories.targets[slot]) == pytest.approx(value, abs=1e-4)


def test_corrections_enter_the_value_and_the_choice() -> None:
    trajectories = _trajectories(_buffer(50))
    stretch = _open(trajectories)
    corrections = torch.randn(stretch.next_q.shape, generator=_generator(3))
    as_values = stretch._replace(next_q=stretch.next_q + corrections)
    nothing = torch.zeros_like(corrections)
    corrected = trajectories.solve(stretch, corrections)
    assert torch.equal(corrected, trajectories.solve(as_values, nothing))
    assert not torch.equal(corrected, trajectories.solve(stretch, nothing))


def test_a_transition_that_is_not_finite_harms_no_other() -> None:
    buffer = _buffer(60)
    trajectories = _trajectories(buffer)
    before = _renew(trajectories)
    clean = trajectories.targets[:60].clone()
    bad = int(torch.nonzero(before.follows[:-1] & before.follows[1:])[5])
    buffer.rewards[bad] = np.nan
    again = _trajectories(buffer)
    _renew(again)
    dirty = again.targets[:60]
    assert dirty.isnan().nonzero().flatten().tolist() == [bad]
    assert torch.equal(dirty[bad + 1 :], clean[bad + 1 :])
    # What came before it takes the value of the state between them in place of its target.
    one_step = buffer.rewards[bad - 1, 0] + GAMMA * float(before.next_q[bad - 1].max())
    assert float(dirty[bad - 1]) == pytest.approx(one_step, abs=1e-5)


def test_minibatches_leave_out_what_has_no_target_yet() -> None:
    buffer = _buffer(40)
    trajectories = _trajectories(buffer)
    assert trajectories.are_stale
    _renew(trajectories)
    assert not trajectories.are_stale
    rng = np.random.default_rng(0)
    assert set(trajectories.sample(2000, rng)) == set(range(40))
    trajectories.note(15)
    assert set(trajectories.sample(2000, rng)) == set(range(25))
    assert not trajectories.are_stale
    trajectories.note(6)
    assert trajectories.are_stale


def test_a_long_buffer_is_renewed_in_turns_and_its_newest_part_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 40)
    buffer = _buffer(200)
    trajectories = _trajectories(buffer)
    everything = _renew(trajectories)
    assert len(everything.slots) == 200
    seen: set[int] = set()
    for _ in range(9):
        stretch = _renew(trajectories)
        assert len(stretch.slots) == 40
        assert set(stretch.slots) >= set(range(180, 200))
        assert not stretch.follows[19]  # the older part ends here, far from the newest
        seen |= set(stretch.slots.tolist())
    assert seen == set(range(200))


def _agent(**kernel: int) -> KernelDDQN:
    return KernelDDQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=50,
        target_update_interval=20,
        policy_kwargs={"net_arch": [16]},
        kernel={"capacity": 100, "k": 4, "refresh_interval": 60, "backup": "trajectory", **kernel},
        seed=0,
        device="cpu",
    ).learn(300)


def test_the_agent_keeps_a_target_of_every_transition() -> None:
    model = _agent()
    kernel = model.replay_kernel
    assert kernel is not None
    assert kernel.trajectories is not None
    kernel.refresh(model.num_timesteps)
    slots = kernel.view.slots()
    targets = kernel.trajectories.lookup(slots)
    assert targets.isfinite().all()
    terminal = kernel.trajectories.view.n_step(slots).discounts == 0
    assert terminal.any()
    assert (targets[torch.from_numpy(terminal)] == 1.0).all()


def test_residuals_of_the_supports_are_those_of_their_targets() -> None:
    model = _agent(sweeps=1)
    kernel = model.replay_kernel
    assert kernel is not None
    assert kernel.trajectories is not None
    kernel.refresh(model.num_timesteps)
    supports, trajectories = kernel.supports, kernel.trajectories
    assert supports is not None
    slots, follows = trajectories.next_slots()
    with torch.no_grad():
        next_q = model.q_net_target.prior_mean(kernel.view.next_observations(slots))
        values = model.q_net_target.prior_mean(supports.observations)
    # The one sweep begins without corrections, and the targets that are kept carry those of its residuals.
    uncorrected = torch.zeros(kernel.view.size)
    stretch = trajectories.open(slots, follows, next_q)
    uncorrected[torch.from_numpy(slots)] = trajectories.solve(stretch, torch.zeros_like(next_q))
    present = values.gather(1, supports.actions.unsqueeze(1)).squeeze(1)
    expected = (uncorrected[torch.from_numpy(supports.slots)] - present)[supports.filled]
    stored = model.q_net.head.memory.targets.reshape(-1)[supports.filled]
    assert torch.allclose(stored, expected, atol=1e-4)
    assert torch.allclose(
        trajectories.lookup(slots), trajectories.solve(stretch, kernel.next_corrections(slots)), atol=1e-4
    )


def test_steps_of_a_return_are_refused_where_trajectories_are_followed() -> None:
    along = {"backup": "trajectory"}
    assert KernelDDQN("MlpPolicy", "CartPole-v1", kernel=along).n_steps == 1
    with pytest.raises(ConfigError, match=r"n_steps is 3, but .* set n_steps to 1, or kernel.backup to n_step"):
        KernelDDQN("MlpPolicy", "CartPole-v1", kernel=along, n_steps=3)
    with pytest.raises(ConfigError, match=r"kernel.trace_decay is 0.5, but n_step backups follow no trace"):
        KernelConfig(trace_decay=0.5)

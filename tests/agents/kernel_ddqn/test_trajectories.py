from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from agents import KernelDDQN
from agents.common.replay_view import ReplayView
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
    return Trajectories(ReplayView(buffer, 3, GAMMA), ACTIONS, DECAY, torch.device("cpu"))


def _open(trajectories: Trajectories, seed: int = 1) -> Stretch:
    slots, follows = trajectories.next_slots()
    return trajectories.open(slots, follows, torch.randn(len(slots), ACTIONS, generator=_generator(seed)))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _renew(trajectories: Trajectories, seed: int = 1) -> Stretch:
    stretch = _open(trajectories, seed)
    corrections = torch.zeros_like(stretch.next_q)
    trajectories.write(stretch, trajectories.solve(stretch, corrections))
    trajectories.close(stretch, corrections)
    return stretch


def _by_loop(buffer: ReplayBuffer, stretch: Stretch) -> dict[int, float]:
    """Targets by slot, from the newest row of every environment to its oldest."""
    values = stretch.next_q.gather(1, stretch.greedy.unsqueeze(1)).squeeze(1)
    known = {
        int(slot): (float(value), int(a)) for slot, value, a in zip(stretch.slots, values, stretch.greedy, strict=True)
    }
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


def test_the_action_is_chosen_by_the_renewal_before() -> None:
    trajectories = _trajectories(_buffer(50))
    first = _renew(trajectories, seed=1)
    assert torch.equal(first.greedy, first.next_q.argmax(1))
    second = _open(trajectories, seed=2)
    assert torch.equal(second.greedy, first.next_q.argmax(1))
    assert not torch.equal(second.greedy, second.next_q.argmax(1))


def test_corrections_enter_the_value_and_the_next_choice() -> None:
    trajectories = _trajectories(_buffer(50))
    stretch = _open(trajectories)
    corrections = torch.randn(stretch.next_q.shape, generator=_generator(3))
    plain, corrected = trajectories.solve(stretch, 0 * corrections), trajectories.solve(stretch, corrections)
    ends = ~stretch.follows & (stretch.discounts > 0)
    assert ends.any()
    added = corrections.gather(1, stretch.greedy.unsqueeze(1)).squeeze(1)
    assert torch.allclose((corrected - plain)[ends], GAMMA * added[ends], atol=1e-5)
    trajectories.close(stretch, corrections)
    assert torch.equal(_open(trajectories, 2).greedy, (stretch.next_q + corrections).argmax(1))


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
    one_step = buffer.rewards[bad - 1, 0] + GAMMA * float(before.next_q[bad - 1, before.greedy[bad - 1]])
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


def test_the_agent_learns_from_the_targets_of_its_trajectories() -> None:
    model = KernelDDQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=50,
        target_update_interval=20,
        policy_kwargs={"net_arch": [16]},
        kernel={"capacity": 100, "k": 4, "refresh_interval": 60},
        seed=0,
        device="cpu",
    ).learn(300)
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
    supports, head = kernel.supports, model.q_net.head
    assert supports is not None
    with torch.no_grad():
        values = model.q_net_target.prior_mean(supports.observations)
        present = values.gather(1, supports.actions.unsqueeze(1)).squeeze(1)
    stored = head.memory.targets.reshape(-1)[supports.filled]
    # The targets were renewed once more by these very residuals.
    assert (
        torch.corrcoef(torch.stack([stored, (kernel.trajectories.lookup(supports.slots) - present)[supports.filled]]))[
            0, 1
        ]
        > 0.95
    )

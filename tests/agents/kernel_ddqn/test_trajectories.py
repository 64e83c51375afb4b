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


def _trajectories(buffer: ReplayBuffer, n_steps: int = 1) -> Trajectories:
    return Trajectories(ReplayView(buffer, n_steps, GAMMA), DECAY, torch.device("cpu"))


def _next_q(stretch: Stretch, seed: int = 1) -> torch.Tensor:
    """Action values of the states reached, made up."""
    return torch.randn(len(stretch.slots), ACTIONS, generator=torch.Generator().manual_seed(seed))


def _renew(trajectories: Trajectories) -> tuple[Stretch, torch.Tensor]:
    stretch = trajectories.open()
    next_q = _next_q(stretch)
    trajectories.write(stretch, trajectories.solve(stretch, next_q))
    return stretch, next_q


def _by_loop(buffer: ReplayBuffer, n_steps: int, stretch: Stretch, next_q: torch.Tensor) -> dict[int, float]:
    """Targets by slot, from the newest row of every environment to its oldest."""
    best = zip(stretch.slots, *next_q.max(1), strict=True)
    known = {int(slot): (float(value), int(action)) for slot, value, action in best}
    rows = [(buffer.pos - buffer.size() + age) % buffer.buffer_size for age in range(buffer.size())]
    targets: dict[int, float] = {}
    for env in range(buffer.n_envs):
        for index in reversed(range(len(rows))):
            slot = rows[index] * buffer.n_envs + env
            value, greedy = known[slot]
            total, discount, reached = 0.0, 1.0, index
            for reached in range(index, min(index + n_steps, len(rows))):
                total += discount * float(buffer.rewards[rows[reached], env])
                discount *= GAMMA
                if buffer.dones[rows[reached], env]:
                    break
            done, cut = (bool(flags[rows[reached], env]) for flags in (buffer.dones, buffer.timeouts))
            ahead = index + n_steps
            if not done and ahead < len(rows) and buffer.actions[rows[ahead], env, 0] == greedy:
                value = (1 - DECAY) * value + DECAY * targets[rows[ahead] * buffer.n_envs + env]
            targets[slot] = total + (0.0 if done and not cut else discount) * value
    return targets


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("rows", "n_envs"), [(1, 1), (60, 1), (60, 3), (290, 1), (290, 3)])
def test_targets_follow_the_greedy_parts_of_every_trajectory(rows: int, n_envs: int, n_steps: int) -> None:
    buffer = _buffer(rows, n_envs=n_envs)
    trajectories = _trajectories(buffer, n_steps)
    expected = _by_loop(buffer, n_steps, *_renew(trajectories))
    assert len(expected) == min(rows, 200) * n_envs
    for slot, value in expected.items():
        assert float(trajectories.targets[slot]) == pytest.approx(value, abs=1e-4)


def test_a_transition_that_is_not_finite_harms_no_other() -> None:
    buffer = _buffer(60)
    trajectories = _trajectories(buffer)
    stretch, next_q = _renew(trajectories)
    clean = trajectories.targets[:60].clone()
    bad = int(torch.nonzero(stretch.follows[:-1] & stretch.follows[1:])[5])
    buffer.rewards[bad] = np.nan
    again = _trajectories(buffer)
    _renew(again)
    dirty = again.targets[:60]
    assert dirty.isnan().nonzero().flatten().tolist() == [bad]
    assert torch.equal(dirty[bad + 1 :], clean[bad + 1 :])
    # What came before it takes the value of the state between them in place of its target.
    one_step = buffer.rewards[bad - 1, 0] + GAMMA * float(next_q[bad - 1].max())
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
    everything, _ = _renew(trajectories)
    assert len(everything.slots) == 200
    seen: set[int] = set()
    for _ in range(9):
        stretch, _ = _renew(trajectories)
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
    last_of_its_episode = kernel.view.episode_ends(slots)
    assert last_of_its_episode.any()
    assert (targets[torch.from_numpy(last_of_its_episode)] == 1.0).all()


def test_residuals_of_the_supports_are_those_of_their_targets() -> None:
    model = _agent(sweeps=1)
    kernel = model.replay_kernel
    assert kernel is not None
    assert kernel.trajectories is not None
    kernel.refresh(model.num_timesteps)
    supports, trajectories = kernel.supports, kernel.trajectories
    assert supports is not None
    stretch = trajectories.open()
    with torch.no_grad():
        next_q = model.q_net_target.prior_mean(kernel.view.next_observations(stretch.last_slots))
        values = model.q_net_target.prior_mean(supports.observations)
    # The one sweep begins without corrections, and the targets that are kept carry those of its residuals.
    uncorrected = torch.zeros(kernel.view.size)
    uncorrected[torch.from_numpy(stretch.slots)] = trajectories.solve(stretch, next_q)
    present = values.gather(1, supports.actions.unsqueeze(1)).squeeze(1)
    expected = (uncorrected[torch.from_numpy(supports.slots)] - present)[supports.filled]
    stored = model.q_net.head.memory.targets.reshape(-1)[supports.filled]
    assert torch.allclose(stored, expected, atol=1e-4)
    kept = trajectories.solve(stretch, next_q + kernel.next_corrections(stretch.last_slots))
    assert torch.allclose(trajectories.lookup(stretch.slots), kept, atol=1e-4)


def test_a_trace_decay_without_traces_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kernel.trace_decay is 0.5, but n_step backups follow no trace"):
        KernelConfig(trace_decay=0.5)

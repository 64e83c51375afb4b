from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from agents import ActionKernelConfig, CriticConfig, KernelSAC, KernelTD3
from agents.common.schema import ConfigError
from agents.kernel_actor_critic.action_kernel import ActionKernel

SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "batch_size": 16,
    "buffer_size": 2000,
    "device": "cpu",
    "seed": 0,
}
KERNEL: dict[str, Any] = {"capacity": 50, "k": 4, "refresh_interval": 60, "rebase_interval": 20}


def make(cls: Any, env: Any = "Pendulum-v1", **settings: Any) -> Any:
    """A small model; SB3's SAC writes into the policy's arguments, so they are new ones each time."""
    return cls("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, **{**SMALL, **settings})


PAIRS = [(KernelSAC, SAC), (KernelTD3, TD3)]


@pytest.mark.parametrize(("cls", "twin"), PAIRS)
def test_without_residuals_it_is_the_algorithm_itself(cls, twin, monkeypatch) -> None:
    """An empty kernel changes no update, to the last bit; refreshing draws random actions, so it is left out."""
    monkeypatch.setattr("agents.kernel_actor_critic.action_kernel.ActionKernel.refresh", lambda *_: None)
    models = [make(each).learn(120) for each in (cls, twin)]
    ours, theirs = (model.policy.state_dict() for model in models)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("cls", "twin"), PAIRS)
def test_targets_contain_the_correction_and_polyak_averaging_goes_on(cls, twin) -> None:
    model = make(cls, kernel=KERNEL).learn(150)
    observations, actions = model.replay_buffer.sample(8)[:2]
    plain = model.policy.critic_target(observations, actions)
    corrected = model.critic_target(observations, actions)
    correction = model.action_kernel.correction(observations, actions)
    assert correction.abs().max() > 0.0
    assert all(torch.equal(mine, base + correction) for mine, base in zip(corrected, plain, strict=True))
    assert torch.equal(model.critic_target.smallest(observations, actions), torch.cat(plain, 1).min(1).values)
    pairs = zip(model.critic.parameters(), model.policy.critic_target.parameters(), strict=True)
    fresh = make(cls, kernel=KERNEL).policy.critic_target.parameters()
    assert any(not torch.equal(target, start) for (_, target), start in zip(pairs, fresh, strict=True))


@pytest.fixture
def refreshes(monkeypatch) -> list[tuple[Any, Any]]:
    """Where next actions came from and α, of every refresh that follows."""
    seen: list[tuple[Any, Any]] = []
    refresh = ActionKernel.refresh

    def spy(self, view, values, next_actions, entropy_weight, *steps) -> None:
        seen.append((next_actions, float(entropy_weight)))
        refresh(self, view, values, next_actions, entropy_weight, *steps)

    monkeypatch.setattr(ActionKernel, "refresh", spy)
    return seen


@pytest.mark.parametrize("entropy_weight", ["auto", 0.3])
def test_residuals_of_sac_follow_its_actor_and_its_entropy_weight(entropy_weight, refreshes) -> None:
    model = make(KernelSAC, ent_coef=entropy_weight, kernel=KERNEL).learn(60)
    start = 1.0 if entropy_weight == "auto" else entropy_weight
    assert refreshes[0][1] == pytest.approx(start)
    refreshes.clear()
    present = model.log_ent_coef.exp().item() if entropy_weight == "auto" else entropy_weight
    assert (present == start) == (entropy_weight != "auto")
    model.train(1)
    ((next_actions, used),) = refreshes
    assert used == pytest.approx(present)
    observations = model.replay_buffer.sample(8).next_observations
    answers = []
    for act in (next_actions, model.actor.action_log_prob):
        torch.manual_seed(0)
        answers.append([part.flatten() for part in act(observations)])
    assert all(map(torch.equal, *answers))


def test_residuals_of_td3_follow_its_target_actor(refreshes) -> None:
    model = make(KernelTD3, kernel=KERNEL).learn(60)
    next_actions, entropy_weight = refreshes[-1]
    observations = model.replay_buffer.sample(8).next_observations
    actions, log_probabilities = next_actions(observations)
    assert torch.equal(actions, model.actor_target(observations))
    assert not torch.equal(actions, model.actor(observations))
    assert entropy_weight == 0.0
    assert not log_probabilities.any()


@pytest.mark.parametrize(("cls", "twin"), PAIRS)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_saved_model_is_loaded_by_both(cls, twin, n_steps, tmp_path) -> None:
    model = make(cls, kernel=KERNEL, n_steps=n_steps).learn(80)
    model.save(tmp_path / "model.zip")
    observation = np.zeros(3, np.float32)
    expected, _ = model.predict(observation, deterministic=True)
    loaded = cls.load(tmp_path / "model.zip", env=model.get_env())
    assert loaded.action_kernel.config == ActionKernelConfig(**KERNEL)
    assert np.array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.learn(60)
    plain = twin.load(tmp_path / "model.zip")
    assert np.array_equal(plain.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_a_seed_that_is_given_later_decides_which_supports_are_drawn(cls) -> None:
    models = [make(cls, kernel={**KERNEL, "capacity": 20}, seed=seed) for seed in (1, 2)]
    models[1].set_parameters(models[0].get_parameters(), device="cpu")
    for model in models:
        model.set_random_seed(7)
        model.learn(80)
    assert all(map(torch.equal, models[0].policy.parameters(), models[1].policy.parameters()))
    assert torch.equal(*(model.action_kernel.head.memory.features for model in models))


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_parameters_of_another_model_begin_without_the_residuals_of_the_old_critics(cls) -> None:
    model, other = (make(cls, kernel=KERNEL, seed=seed).learn(80) for seed in (0, 1))
    observations, actions = model.replay_buffer.sample(8)[:2]
    assert model.action_kernel.correction(observations, actions).any()
    model.set_parameters(other.get_parameters(), device="cpu")
    assert not model.action_kernel.correction(observations, actions).any()
    assert model.action_kernel.scalars == {}
    plain = model.policy.critic_target(observations, actions)
    assert all(map(torch.equal, model.critic_target(observations, actions), plain))
    # A whole interval has not passed, and the next training still chooses supports among all that is stored.
    model.learn(1, reset_num_timesteps=False)
    assert model.action_kernel.steps_at_rebuild == 81
    assert model.action_kernel.head.memory.sizes.sum() == 50


@pytest.mark.parametrize(("cls", "twin"), PAIRS)
def test_several_environments_and_n_step_returns(cls, twin, tmp_path) -> None:
    model = make(cls, make_vec_env("Pendulum-v1", 3), kernel=KERNEL, n_steps=3, train_freq=2)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(700, log_interval=1)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    for tag in ("supports", "lengthscale", "residual_abs_mean", "variance_mean", "leave_one_out_error", "refresh_ms"):
        assert f"kernel/{tag}" in header
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_residuals_follow_the_target_critics_by_gradient_steps(cls, monkeypatch) -> None:
    rebased = []
    rebase = ActionKernel._rebase
    monkeypatch.setattr(ActionKernel, "_rebase", lambda self, *given: (rebased.append(1), rebase(self, *given)))
    kernel = {**KERNEL, "refresh_interval": 1000, "rebase_interval": 20}
    for gradient_steps, renewals in ((1, 3), (4, 10), (20, 50)):
        rebased.clear()
        make(cls, kernel=kernel, train_freq=2, gradient_steps=gradient_steps).learn(140)
        # 50 rounds, the first of which chooses supports.
        assert len(rebased) == renewals


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
@pytest.mark.filterwarnings("ignore:`n_steps=3` is ignored")
def test_returns_of_kernel_and_update_are_the_same(cls) -> None:
    buffer: dict[str, Any] = {"replay_buffer_class": NStepReplayBuffer}
    with pytest.raises(ValueError, match="n_steps is 1, but SB3's update learns from a NStepReplayBuffer that sums 5"):
        make(cls, **buffer, replay_buffer_kwargs={"n_steps": 5, "gamma": 0.99})
    with pytest.raises(ValueError, match="n_steps is 3, but SB3's update learns from a ReplayBuffer that sums 1"):
        make(cls, n_steps=3, replay_buffer_class=ReplayBuffer)
    with pytest.raises(ValueError, match=r"gamma is 0\.99, but the NStepReplayBuffer discounts its sums by 0\.9"):
        make(cls, n_steps=3, **buffer, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.9})
    make(cls, n_steps=3, **buffer, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99})
    model = make(cls, n_steps=3)
    model.replay_buffer = make(cls).replay_buffer
    with pytest.raises(ValueError, match="leave replay_buffer_class out, or give n_steps=1 too"):
        model.learn(60)


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_runs_are_named_after_the_algorithm(cls, tmp_path) -> None:
    model = make(cls, tensorboard_log=str(tmp_path)).learn(10)
    model.logger.close()  # or its open file is found by the collector, in the middle of another test
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{cls.__name__}_1"]


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_settings_are_checked(cls) -> None:
    with pytest.raises(ConfigError, match=r"kernel is a CriticConfig, but must be a ActionKernelConfig or a mapping"):
        make(cls, kernel=CriticConfig())
    with pytest.raises(ConfigError, match=r"kernel.rebase_interval is 0"):
        cls("MlpPolicy", "Pendulum-v1", kernel={"rebase_interval": 0})
    with pytest.raises(ConfigError, match=r"did you mean 'kernel.capacity'"):
        cls("MlpPolicy", "Pendulum-v1", kernel={"capacty": 10})


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_a_loaded_model_waits_for_as_many_transitions_as_a_new_one(cls, tmp_path) -> None:
    model = make(cls, kernel=KERNEL).learn(60)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=model.env)
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.action_kernel.transitions is None
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.action_kernel.transitions is not None
    assert loaded.action_kernel.scalars["supports"] > SMALL["learning_starts"]


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_a_loaded_model_may_get_another_kernel(cls, tmp_path) -> None:
    make(cls).save(tmp_path / "model")
    for given in ({"k": 7}, ActionKernelConfig(k=7)):
        assert cls.load(tmp_path / "model", kernel=given).action_kernel.config.k == 7


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_another_kernel_keeps_the_saved_settings_that_it_does_not_name(cls, tmp_path) -> None:
    make(cls, kernel=KERNEL).save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"), kernel={"k": 7})
    assert loaded.action_kernel.config == ActionKernelConfig(**{**KERNEL, "k": 7})
    assert loaded.critic_target.kernel is loaded.action_kernel
    loaded.learn(60)


@pytest.mark.parametrize("cls", [KernelSAC, KernelTD3])
def test_supports_are_chosen_anew_from_another_buffer(cls, tmp_path) -> None:
    model = make(cls, kernel={**KERNEL, "refresh_interval": 10_000}).learn(80)
    model.save_replay_buffer(tmp_path / "buffer")
    known = model.action_kernel.transitions
    model.train(1, 16)
    assert model.action_kernel.transitions is known
    model.load_replay_buffer(tmp_path / "buffer")
    model.train(1, 16)
    assert model.action_kernel.transitions is not known

"""DQK: a network that learned Sparse Kernels perturb."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from agents import DQK, DoubleDQN
from agents.common.schema import ConfigError, UnknownSettingError
from agents.dqk import PerturbationConfig

SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "buffer_size": 1000,
    "seed": 0,
    "device": "cpu",
}
KERNEL: dict[str, Any] = {"capacity": 40, "k": 4}


class FarOff(gym.ObservationWrapper):
    """Observations around 100."""

    def observation(self, observation):
        return observation + 100.0


def _model(net_arch: tuple[int, ...] = (16, 12), **settings: Any) -> DQK:
    policy_kwargs = {"net_arch": list(net_arch)}
    return DQK("MlpPolicy", "CartPole-v1", kernel=KERNEL, policy_kwargs=policy_kwargs, **{**SETTINGS, **settings})


@pytest.mark.parametrize("net_arch", [(), (16,), (16, 12)])
def test_values_are_the_network_with_kernels_at_its_last_hidden_layer_and_its_output(net_arch) -> None:
    model = _model(net_arch).learn(120)
    network, observations = model.q_net, torch.from_numpy(model.replay_buffer.observations[50:59, 0])
    with torch.no_grad():
        values = observations
        perturbations = network.perturbation(network.feature_map(observations))
        if net_arch:
            for layer in network.q_net[:-2]:
                values = layer(values)
            values = torch.relu(values + perturbations[:, : net_arch[-1]])
        values = network.q_net[-1](values) + perturbations[:, -2:]
        assert perturbations[:, -2:].abs().max() > 1e-4
        torch.testing.assert_close(network(observations), values)


def test_before_learning_it_is_the_network_alone() -> None:
    model, plain = _model(), DoubleDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [16, 12]}, **SETTINGS)
    observations = torch.randn(9, 4)
    plain.q_net.load_state_dict({k: v for k, v in model.q_net.state_dict().items() if k.startswith("q_net")})
    assert torch.equal(model.q_net(observations), plain.q_net(observations))
    model.q_net.place_supports(torch.randn(40, 4))
    assert torch.equal(model.q_net(observations), plain.q_net(observations))


def test_supports_begin_as_replayed_observations_and_then_learn() -> None:
    model = _model(learning_rate=0.0).learn(120)
    network, buffer = model.q_net, model.replay_buffer
    seen = network.feature_map(torch.from_numpy(buffer.observations[: buffer.size(), 0]))
    distances = torch.cdist(network.perturbation.features, seen, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 1e-5
    assert network.perturbation.features.std() > 0.1
    begun = network.perturbation.features.detach().clone()
    before = [begun, network.perturbation.targets.detach().clone()]
    model.lr_schedule = lambda _: 1e-3
    model.learn(40, reset_num_timesteps=False)
    for old, new in zip(before, (network.perturbation.features, network.perturbation.targets), strict=True):
        assert not torch.equal(old, new)
    # Until there is twice as much to draw from, learning moves them from there by small steps.
    assert (network.perturbation.features - begun).abs().max() < 0.5


def test_supports_are_drawn_anew_whenever_the_buffer_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, placed = _model(), []
    place = model._place_supports
    monkeypatch.setattr(model, "_place_supports", lambda stored: (placed.append(stored), place(stored)))
    model.learn(500)
    assert len(placed) == 4
    assert all(2 * one <= other < 2 * one + 5 for one, other in itertools.pairwise(placed))
    buffer = model.replay_buffer
    seen = model.q_net.feature_map(torch.from_numpy(buffer.observations[: placed[-1], 0]))
    distances = torch.cdist(model.q_net.perturbation.features, seen)
    assert (distances.argmin(1) > placed[0]).sum() > 20


def test_supports_placed_anew_begin_with_what_was_known() -> None:
    model = DQK("MlpPolicy", "CartPole-v1", kernel={**KERNEL, "ridge": 1e-6, "localisation": "hard"}, **SETTINGS)
    network = model.learn(120).q_net
    network.perturbation.targets.data.normal_()
    observations = torch.from_numpy(model.replay_buffer.observations[80:120, 0])
    with torch.no_grad():
        before = network(observations)
        network.place_supports(observations)
        torch.testing.assert_close(network(observations), before, rtol=1e-3, atol=1e-3)
    assert not torch.equal(before, before[:1].expand_as(before))
    learned = list(network.perturbation.parameters())
    assert all(parameter in model.policy.optimizer.state for parameter in learned)
    model._place_supports(120)
    assert not any(parameter in model.policy.optimizer.state for parameter in learned)


def test_before_supports_are_placed_nothing_of_the_kernel_learns() -> None:
    kernel = {**KERNEL, "capacity": 500, "localisation": "hard"}
    model = DQK("MlpPolicy", "CartPole-v1", kernel=kernel, policy_kwargs={"net_arch": [16]}, **SETTINGS).learn(120)
    assert not model.q_net.is_placed
    assert all((parameter == 0.0).all() for parameter in model.q_net.perturbation.parameters())


def test_a_buffer_too_small_for_the_supports_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 30 transitions, too few for 40 supports; raise buffer_size"):
        _model(buffer_size=30).learn(120)
    # The oldest row of one that saves memory has lost its observation.
    settings = {
        "buffer_size": 40,
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    }
    with pytest.raises(ValueError, match=r"holds 39 transitions, too few for 40 supports"):
        _model(**settings).learn(120)


def test_supports_are_different_transitions_as_soon_as_there_are_enough() -> None:
    model = _model(learning_starts=4, train_freq=4)
    model.learn(36)
    assert not model.q_net.is_placed
    model.learn(4, reset_num_timesteps=False)
    assert model.q_net.is_placed
    assert len(model.q_net.perturbation.features.detach().round(decimals=2).unique(dim=0)) >= 38
    with pytest.raises(ValueError, match="7 observations for 40 supports"):
        model.q_net.place_supports(torch.randn(7, 4))


def test_the_target_network_takes_the_kernels_over() -> None:
    model = _model(target_update_interval=10).learn(120)
    model._on_step()
    while model._n_calls % 10:
        model._on_step()
    online, target = model.q_net.state_dict(), model.q_net_target.state_dict()
    assert online["perturbation.targets"].abs().sum() > 0
    for name, value in online.items():
        assert torch.equal(value, target[name]), name


def test_a_loaded_model_goes_on_with_its_supports(tmp_path) -> None:
    model = _model().learn(120)
    model.save(tmp_path / "model.zip")
    loaded = DQK.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"), device="cpu")
    assert loaded.policy.kernel == PerturbationConfig(**KERNEL)
    before = loaded.q_net.perturbation.features.detach().clone()
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.q_net.is_placed
    assert (loaded.q_net.perturbation.features - before).abs().max() < 0.1


def test_supports_that_come_with_parameters_stay_as_those_of_a_file_do() -> None:
    parameters = _model().learn(120).get_parameters()
    model = _model()
    model.set_parameters(parameters, device="cpu")
    before = model.q_net.perturbation.features.detach().clone()
    model.learn(60)
    assert (model.q_net.perturbation.features - before).abs().max() < 0.1


def test_an_observation_that_is_not_finite_moves_no_support() -> None:
    network = _model().q_net
    observations = torch.randn(40, 4)
    observations[3, 1] = float("nan")
    observations[5, 0] = float("inf")
    network.place_supports(observations)
    assert network.perturbation.features.isfinite().all()
    with torch.no_grad():
        values = network(observations)
    assert not values[3].isfinite().any()
    assert values[[0, 1, 2, 4]].isfinite().all()


def test_scalars_reach_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model().learn(120)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model.logger, "record", lambda name, value, **_: logged.update({name: value}))
    model.dump_logs()
    names = ["supports", "lengthscale", "hidden_targets_abs_mean", "output_targets_abs_mean"]
    assert [logged[f"kernel/{name}"] for name in names] == [model.q_net.scalars[name] for name in names]
    assert logged["kernel/supports"] == 40
    assert all(logged[f"kernel/{name}"] > 0 for name in names)
    assert _model(net_arch=()).learn(60).q_net.scalars["hidden_targets_abs_mean"] == 0.0


def test_normalised_observations_place_normalised_supports() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", seed=0, wrapper_class=FarOff))
    model = DQK("MlpPolicy", env, kernel=KERNEL, policy_kwargs={"net_arch": [16]}, **SETTINGS).learn(120)
    assert model.replay_buffer.observations[:100].min() > 90.0
    assert model.q_net.feature_map.mean.abs().max() < 10.0


def test_unknown_and_wrong_settings_are_named() -> None:
    with pytest.raises(UnknownSettingError, match=r"kernel\.capcity"):
        DQK("MlpPolicy", "CartPole-v1", kernel={"capcity": 3})
    with pytest.raises(ConfigError, match=r"kernel\.ridge"):
        DQK("MlpPolicy", "CartPole-v1", kernel={"ridge": 0})

"""Settings: types, ranges, nearest names, layers, and the way to a file and back."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml
from gymnasium import spaces

from agents import KernelDDQN, KernelQ, KernelQRDQN
from agents.common.schema import ConfigError, UnknownSettingError, coerce_mapping, construct, leaf_types, to_plain
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.training.budget import check_budget
from agents.training.command_line import flat_flags, nest_flags, split_flags
from agents.training.config import (
    DQNConfig,
    KernelDDQNConfig,
    KernelQConfig,
    KernelQuantileConfig,
    PPOConfig,
    RunConfig,
)
from agents.training.registry import AGENTS
from agents.training.settings import CONFIGS, agent_settings, dump_config, load_config, resolve

ENVIRONMENTS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3", "ALE/Pong-v5", "Other-v0")


def from_words(*words: str) -> Any:
    return resolve(split_flags(words))


@pytest.mark.parametrize(
    ("name", "given", "stored"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("gamma", 0, 0.0),
        ("total_timesteps", "1e4", 10_000),
        ("total_timesteps", "10_000", 10_000),
        ("net_arch", [64, "32"], (64, 32)),
        ("net_arch", [], ()),
        ("progress_bar", "false", False),
        ("run_dir", None, None),
        ("run_dir", "None", None),
        ("policy", "MlpPolicy", "MlpPolicy"),
        ("seed", np.int64(3), 3),
        ("gamma", np.float32(0.5), 0.5),
    ],
)
def test_values_take_the_type_of_their_field(name: str, given: object, stored: object) -> None:
    value = getattr(construct(DQNConfig, {name: given}), name)
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("learning_rate", "abc", r"learning_rate is 'abc' \(str\), but must be a finite number"),
        ("learning_rate", True, "must be a finite number"),
        ("learning_rate", "nan", "must be a finite number"),
        ("learning_rate", 0.0, "must be above 0"),
        ("seed", True, r"seed is True \(bool\), but must be a whole number"),
        ("seed", 1.5, "must be a whole number"),
        ("seed", "1.5", "must be a whole number"),
        ("seed", -1, "seed is -1, but must be at least 0"),
        ("gamma", 1.01, "must be at least 0 and at most 1"),
        ("progress_bar", 1, "must be true or false"),
        ("env", 5, "env is 5"),
        ("net_arch", 64, "must be a list"),
        ("net_arch", [64, 0], r"net_arch\[1\] is 0"),
        ("policy", "MlpPolcy", "did you mean 'MlpPolicy'"),
    ],
)
def test_wrong_values_are_errors(name: str, given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        construct(DQNConfig, {name: given})


def test_the_constructor_is_as_strict_as_the_files() -> None:
    assert DQNConfig(learning_rate="1e-3").learning_rate == 1e-3  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size is 0"):
        DQNConfig(batch_size=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DQNConfig().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"learning_rat": 1}, "learning_rat", "learning_rate"),
        ({"kernel": {"kk": 1}}, "kernel.kk", "kernel.k"),
    ],
)
def test_unknown_key_names_the_nearest(values: dict[str, Any], wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownSettingError, match=f"'{wrong}'; did you mean '{nearest}'"):
        construct(KernelDDQNConfig, values)


def test_kernel_settings_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"kernel\.k is 0, but must be at least 1"):
        construct(KernelDDQNConfig, {"kernel": {"k": 0}})
    with pytest.raises(ConfigError, match="kernel is 3"):
        construct(KernelDDQNConfig, {"kernel": 3})


OF_AGENTS = {spec.config for spec in AGENTS.values()}
OF_KERNELS = {
    hint for config in OF_AGENTS for hint in get_type_hints(config).values() if dataclasses.is_dataclass(hint)
}
SCHEMAS = {ancestor for schema in OF_AGENTS | OF_KERNELS for ancestor in schema.__mro__} - {object}


def test_the_settings_of_every_kernel_are_among_them() -> None:
    assert {schema.__name__ for schema in OF_KERNELS} == {
        "ActionKernelConfig",
        "CriticConfig",
        "KernelConfig",
        "PerturbationConfig",
    }


@pytest.mark.parametrize("schema", sorted(SCHEMAS, key=lambda schema: schema.__name__))
def test_every_field_has_a_sentence(schema: type) -> None:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    for field, follows in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign):
            sentence = follows.value if isinstance(follows, ast.Expr) else None
            assert isinstance(sentence, ast.Constant), ast.unparse(field)
            assert str(sentence.value).endswith("."), ast.unparse(field)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_section_of_every_file_is_accepted(agent: str, env_id: str) -> None:
    config = from_words("--agent", agent, "--env", env_id)
    assert type(config) is AGENTS[agent].config
    assert (config.agent, config.env) == (agent, env_id)


@pytest.mark.parametrize("agent", AGENTS)
def test_files_hold_plain_values_only(agent: str) -> None:
    def check(value: object) -> None:
        assert isinstance(value, dict | list | str | int | float | bool)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(yaml.safe_load((CONFIGS / f"{agent}.yaml").read_text()))


def test_the_comparison_is_fair() -> None:
    """Same network, gradient steps, budget and fall of ε; the target copy and what stays random are each one's best."""
    for env_id in ENVIRONMENTS[:4]:
        ours, theirs = (agent_settings(AGENTS[name], env_id) for name in ("kernel_ddqn", "ddqn"))
        assert (ours.pop("target_update_interval"), theirs.pop("target_update_interval")) == (100, 50)
        assert (ours.pop("exploration_final_eps"), theirs.pop("exploration_final_eps")) == (0.15, 0.05)
        assert ours == theirs
        assert theirs["n_steps"] == 3


@pytest.mark.parametrize("agent", [name for name, spec in AGENTS.items() if spaces.Discrete in spec.action_spaces])
@pytest.mark.parametrize("env_id", ENVIRONMENTS[:5])
def test_agents_share_the_budget_and_its_evaluations(agent: str, env_id: str) -> None:
    ours, theirs = (from_words("--agent", name, "--env", env_id) for name in (agent, "ddqn"))
    for name in ("total_timesteps", "n_evaluations", "n_eval_episodes", "n_final_eval_episodes"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("agent", [name for name, spec in AGENTS.items() if issubclass(spec.config, PPOConfig)])
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_budget_holds_a_rollout(agent: str, env_id: str) -> None:
    config = from_words("--agent", agent, "--env", env_id)
    check_budget(config)
    check_budget(dataclasses.replace(config, total_timesteps=config.n_steps * config.n_envs))
    with pytest.raises(ConfigError, match=r"first rollout .* raise --total-timesteps or lower --n-steps"):
        check_budget(dataclasses.replace(config, total_timesteps=config.n_steps * config.n_envs - 1))


@pytest.mark.parametrize(
    ("words", "first", "remedy"),
    [
        ("qrdqn --env LunarLander-v3 --total-timesteps 10200", 10_240, "--train-freq"),
        ("zoo_dqn --total-timesteps 1010", 1024, "--train-freq"),
        ("ddqn --total-timesteps 501", 504, "--train-freq"),
        ("ddqn --total-timesteps 2000 --train-freq 4096", 4096, "--train-freq"),
        ("ddqn --total-timesteps 900 --n-envs 256", 1024, "--train-freq or --n-envs"),
        ("kernel_ddqn --total-timesteps 2000 --train-freq 4096", 4096, "--train-freq"),
        ("kernel_ddqn --total-timesteps 599", 600, "--target-update-interval"),
        ("kernel_ddqn --target-update-interval 20000", 20_000, "--target-update-interval"),
        ("kernel_qrdqn --target-update-interval 20000", 20_000, "--target-update-interval"),
        ("kernel_q --total-timesteps 599", 600, "--target-update-interval"),
        ("kernel_q --total-timesteps 530 --n-envs 30", 540, "--target-update-interval or --n-envs"),
        ("sac --env Pendulum-v1 --total-timesteps 100", 101, "--train-freq"),
    ],
)
def test_updates_end_rounds_and_the_first_one_must_be_within_the_budget(words: str, first: int, remedy: str) -> None:
    config = from_words("--agent", *words.split())
    check_budget(dataclasses.replace(config, total_timesteps=first))
    with pytest.raises(
        ConfigError, match=f"first update of .* at step {first}, .* or lower --learning-starts or {remedy}$"
    ):
        check_budget(config)
    with pytest.raises(ConfigError, match=f"at step {first}, "):
        check_budget(dataclasses.replace(config, total_timesteps=first - 1))


def test_rounds_without_gradient_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_steps is 0, so sac would learn nothing; give --gradient-steps 1"):
        check_budget(from_words("--agent", "sac", "--gradient-steps", "0"))
    check_budget(from_words("--agent", "ddqn", "--gradient-steps", "-1"))


def test_what_libraries_refuse_by_an_assertion_or_a_crash_is_refused_in_words() -> None:
    for agent, words, message in (
        ("ddqn", ["--seed", "5000000000"], "seed is 5000000000, but must be at least 0 and at most 4000000000"),
        ("ppo", ["--batch-size", "1"], "batch_size is 1, but must be at least 2"),
        ("ddqn", ["--threads", "100000"], "threads is 100000, but must be at least 1 and at most 1024"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_words("--agent", agent, *words)
    with pytest.raises(ConfigError, match=r"a rollout of ppo must hold at least 2 steps, .* raise --n-steps"):
        check_budget(from_words("--agent", "ppo", "--n-steps", "1", "--n-envs", "1"))


def test_a_buffer_without_room_for_the_supports_is_refused() -> None:
    words = ["--agent", "dqk", "--n-envs", "3", "--kernel.capacity", "300"]
    check_budget(from_words(*words, "--buffer-size", "301"))
    with pytest.raises(
        ConfigError, match=r"buffer_size is 299, room for 297 .* draws 300 supports .*--kernel.capacity"
    ):
        check_budget(from_words(*words, "--buffer-size", "299"))


def test_the_class_of_settings_has_the_defaults_of_the_agent() -> None:
    """What is built in Python from the class alone is the agent that class and command line know."""
    for config, defaults in (
        (KernelDDQNConfig, KernelDDQN.defaults),
        (KernelQConfig, KernelQ.defaults),
        (KernelQuantileConfig, KernelQRDQN.defaults),
    ):
        own = {name: value for name, value in vars(config()).items() if name in defaults}
        assert own == {name: defaults[name] for name in own}
        assert len(own) >= 7


@pytest.mark.parametrize(("agent", "twin"), [("kernel_ppo", "ppo"), ("kernel_sac", "sac"), ("kernel_td3", "td3")])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "Pendulum-v1", "BipedalWalker-v3", "Other-v0"])
def test_a_kernel_agent_has_the_settings_of_its_twin(agent: str, twin: str, env_id: str) -> None:
    assert agent_settings(AGENTS[agent], env_id) == agent_settings(AGENTS[twin], env_id)


@pytest.mark.parametrize("env_id", ENVIRONMENTS[:5])
def test_ddqn_more_takes_half_as_many_gradient_steps_again_and_nothing_else(env_id: str) -> None:
    more, plain = (agent_settings(AGENTS[name], env_id) for name in ("ddqn_more", "ddqn"))
    rates = [values.pop("gradient_steps") / values.pop("train_freq") for values in (more, plain)]
    assert rates[0] == 1.5 * rates[1]
    assert more == plain


def test_a_section_goes_over_the_defaults_and_a_wildcard_serves_atari() -> None:
    pong = from_words("--env", "ALE/Pong-v5")
    cartpole = from_words()
    assert (cartpole.total_timesteps, cartpole.buffer_size, cartpole.kernel.capacity) == (10_000, 100_000, 4000)
    assert (pong.buffer_size, pong.batch_size, pong.kernel.capacity) == (20_000, 32, 1000)
    assert from_words("--env", "LunarLander-v3").total_timesteps == 20_000


def test_the_module_that_registers_an_environment_does_not_hide_its_section() -> None:
    ids = ("LunarLander-v3", "gymnasium:LunarLander-v3", "Unknown-v0")
    alone, behind, unknown = (agent_settings(AGENTS["kernel_ddqn"], env_id) for env_id in ids)
    assert behind == alone != unknown


def test_command_line_goes_over_the_file_and_the_file_over_the_agent(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agent: kernel_ddqn\nenv: Acrobot-v1\ngamma: 0.5\nkernel: {k: 8, ridge: 2e-1}\n")
    config = from_words("--config", str(file), "--kernel.k", "4", "--no-progress-bar", "--net-arch", "32", "32")
    assert (config.env, config.total_timesteps, config.gamma) == ("Acrobot-v1", 10_000, 0.5)
    assert (config.kernel.k, config.kernel.ridge, config.kernel.sweeps) == (4, 0.2, 5)
    assert config.progress_bar is False
    assert config.net_arch == (32, 32)


@pytest.mark.parametrize("agent", AGENTS)
def test_dump_and_load_give_the_same_settings(agent: str, tmp_path: Path) -> None:
    config = from_words("--agent", agent, "--env", "ALE/Pong-v5", "--seed", "7", "--force")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == dataclasses.replace(config, force=False)
    saved = yaml.safe_load(file.read_text())
    assert set(saved) == {field.name for field in dataclasses.fields(config)} - {"config", "force"}
    assert to_plain(load_config(file)) == saved
    assert from_words("--config", str(file)) == dataclasses.replace(config, force=False, config=str(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--agent", "kernel_dqn"), "unknown agent 'kernel_dqn'; did you mean 'kernel_ddqn'"),
        (("--total-timestep", "5"), "unknown flag '--total-timestep'; did you mean '--total-timesteps'"),
        (("--kernel.lengthscale-fact", "5"), "did you mean '--kernel.lengthscale-factor'"),
        (("--agent", "ddqn", "--kernel.k", "4"), "agent 'ddqn' does not use 'kernel.k'; it belongs to kernel_ddqn"),
        (("--agent", "kernel_q", "--batch-size", "4"), "agent 'kernel_q' does not use 'batch_size'"),
        (("--agent", "ppo", "--buffer-size", "9"), "agent 'ppo' does not use 'buffer_size'; it belongs to dqn"),
        (("--agent", "dqn", "--gae-lambda", "1"), "agent 'dqn' does not use 'gae_lambda'; it belongs to ppo"),
        (
            ("--agent", "zoo_dqn", "--n-quantiles", "9"),
            "agent 'zoo_dqn' does not use 'n_quantiles'; it belongs to qrdqn",
        ),
        (("--agent", "qrdqn", "--max-grad-norm", "9"), "agent 'qrdqn' does not use 'max_grad_norm'"),
        (("--kernel.head", "averaging"), "use --agent knn_ddqn"),
        (("--agent", "knn_ddqn", "--kernel.head", "network_free"), "use --agent kernel_q"),
        (("--kernel", "3"), "--kernel is a group of settings; give --kernel.NAME VALUE, for example --kernel.k"),
        (("--agent", "dqk", "--kernel=3"), "--kernel is a group of settings; give --kernel.NAME VALUE"),
        (("--agent", "ddqn", "--kernel", "3"), "agent 'ddqn' does not use 'kernel'; it belongs to kernel_ddqn"),
        (("--env-kwargs", "3"), "env_kwargs is '3' (str), but must be a mapping of names to values"),
        (("--env-kwargs.size", "3", "4"), "--env-kwargs.size takes one value, but got 2"),
        (("--env-kwargs.size", "[3"), "--env-kwargs.size is '[3', which is no YAML"),
        (("--env-kwargs", "3", "--env-kwargs.size", "4"), "--env-kwargs takes its values by name: --env-kwargs.size 4"),
        (("--seed",), "--seed takes one value, but got 0"),
        (("--seed", "1", "2"), "--seed takes one value, but got 2"),
        (("--seed", "1", "--seed=2"), "--seed is given twice"),
        (("CartPole-v1",), "unexpected argument 'CartPole-v1'"),
        (("--config",), "--config takes one value"),
        (("--no-seed",), "unknown flag '--no-seed'"),
    ],
)
def test_wrong_command_lines_are_one_sentence(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_words(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: ddqn\ngama: 0.9\n", "unknown setting 'gama'; did you mean 'gamma'"),
        ("agent: ddqn\nkernel: {k: 3}\n", "agent 'ddqn' does not use 'kernel'"),
        ("agent: ddqn\nforce: true\n", "'force' belongs on the command line"),
        ("agent: [\n", "cannot read settings from"),
        ("- agent\n", "must hold a YAML mapping"),
        ("gamma: high\n", "gamma is 'high'"),
    ],
)
def test_wrong_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_words("--config", str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leaves_cover_nested_settings() -> None:
    leaves = leaf_types(KernelDDQNConfig)
    assert {"seed", "learning_rate", "kernel.k"} <= set(leaves)
    assert "kernel" not in leaves


def test_arguments_of_an_environment_are_read_as_yaml() -> None:
    config = from_words(
        "--env-kwargs.is-slippery",
        "false",
        "--env-kwargs.map_name=8x8",
        "--env-kwargs.size",
        "7",
        "--env-kwargs.slope=1e-3",
    )
    assert config.env_kwargs == {"is_slippery": False, "map_name": "8x8", "size": 7, "slope": 1e-3}
    with pytest.raises(ConfigError, match=r"env_kwargs is 3 \(int\), but must be a mapping"):
        construct(RunConfig, {"env_kwargs": 3})


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_survives_a_command_line(agent: str) -> None:
    schema = AGENTS[agent].config
    kwargs = {"size": 7, "slope": 1e-5, "name": "1e-3", "off": False, "none": None, "deep": {"ends": [1, -0.5, "ü"]}}
    for env_id in ENVIRONMENTS:
        chosen = {"agent": agent, "env": env_id, "env_kwargs": kwargs, "run_dir": "a b=c"}
        plain = to_plain(construct(schema, agent_settings(AGENTS[agent], env_id) | chosen))
        words = [word for name, values in flat_flags(schema, plain).items() for word in (f"--{name}", *values)]
        assert coerce_mapping(schema, nest_flags(schema, split_flags(words))) == coerce_mapping(schema, plain)


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, [1e-5], Path("a"), (1, 2)])
def test_what_no_command_line_can_give_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"env_kwargs\.odd is .*, which no command line can give"):
        flat_flags(RunConfig, {"env_kwargs": {"odd": value}})


@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "kernel_qrdqn"])
def test_the_kernel_of_the_command_line_is_that_of_the_class(agent: str) -> None:
    assert from_words("--agent", agent).kernel == KernelConfig.read(None, AGENTS[agent].algorithm.kernel_defaults)


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings in place of the one of ``ddqn_1step``, among copies of all others."""
    for file in CONFIGS.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr("agents.training.settings.CONFIGS", tmp_path)
    return tmp_path / "ddqn_1step.yaml"


def test_a_section_may_be_merged_into_another(own_file: Path) -> None:
    own_file.write_text("defaults: &all {gamma: 0.9}\nenvironments: {CartPole-v1: {<<: *all, batch_size: 7}}\n")
    assert agent_settings(AGENTS["ddqn_1step"], "CartPole-v1") == {"gamma": 0.9, "batch_size": 7}


@pytest.mark.parametrize("text", ["extends: ddqn\ndefaults:\n", "extends: ddqn\nenvironments:\n  CartPole-v1:\n"])
def test_a_section_with_nothing_below_it_is_empty(own_file: Path, text: str) -> None:
    own_file.write_text(text)
    assert agent_settings(AGENTS["ddqn_1step"], "CartPole-v1") == agent_settings(AGENTS["ddqn"], "CartPole-v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: 3", "ddqn_1step.yaml: defaults holds 3, but must hold settings"),
        ("environments: [1]", r"ddqn_1step.yaml: environments holds \[1\], but must"),
        ("environments: {CartPole-v1: 3}", "ddqn_1step.yaml: CartPole-v1 holds 3, but must"),
        ("extends: ddqn_1step", "ddqn_1step.yaml extends itself"),
        ("default: {gamma: 0.9}", "ddqn_1step.yaml: .*'default'; did you mean 'defaults'"),
        ("defaults: {gamma: 0.9, gamma: 0.8}", "ddqn_1step.yaml: gamma is given twice"),
    ],
)
def test_a_file_of_another_form_is_named(own_file: Path, text: str, message: str) -> None:
    own_file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        agent_settings(AGENTS["ddqn_1step"], "CartPole-v1")

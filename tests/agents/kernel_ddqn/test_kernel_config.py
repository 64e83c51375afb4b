"""Settings of the kernel: what belongs together, and what is refused."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from agents import KernelConfig
from agents.common.schema import ConfigError
from skrl.search.neighbors import LOCALISATIONS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "averaging", "ridge": 0.5}, "kernel.ridge is 0.5, but the averaging head solves nothing; leave rid"),
        ({"head": "averaging", "localisation": "continuous"}, "kernel.localisation is continuous, but the averaging"),
        ({"head": "averaging", "lengthscale_rule": "leave_one_out"}, "kernel.lengthscale_rule is leave_one_out, but"),
        ({"head": "network_free", "applies_to": "targets"}, "kernel.applies_to is targets, but the network-free head"),
        ({"head": "network_free", "applies_to": "acting"}, "has no network beside it; leave applies_to out"),
        ({"head": "network_free", "features": "penultimate"}, "kernel.features is penultimate, but the network-free"),
        ({"head": "network_free", "features": "both"}, "has no network beside it; leave features out"),
        ({"head": "network_free", "backup": "continue"}, "nothing but its own values to begin with; leave backup out"),
        ({"exploration_bonus": 0, "bonus_fraction": 0.5}, "kernel.bonus_fraction is 0.5, but exploration_bonus is 0"),
        ({"features": "penultimat"}, "did you mean 'penultimate'"),
        ({"applies_to": "target"}, "did you mean 'targets'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KernelConfig(**settings)
    assert message in str(caught.value)


def test_every_localisation_can_be_chosen() -> None:
    assert get_args(get_type_hints(KernelConfig)["localisation"]) == LOCALISATIONS
    assert KernelConfig(head="network_free", localisation="continuous", lengthscale_rule="leave_one_out").k == 16
    assert KernelConfig(head="averaging", applies_to="acting", features="both").k == 16


@pytest.mark.parametrize("value", [10**400, -(10**400), str(10**400), "1e400"], ids=["large", "small", "text", "real"])
def test_a_number_beyond_all_floats_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"kernel\.ridge is .*, but must be a finite number"):
        KernelConfig(ridge=value)


def test_a_whole_number_as_text_may_be_as_large_as_any() -> None:
    huge: Any = str(10**400)
    assert KernelConfig(k=huge).k == 10**400

from __future__ import annotations

import types

import pytest

from agents.startup import DISTRIBUTION, ForeignPackageError, check_installation


def test_our_own_kernel_core_passes() -> None:
    check_installation()


def test_a_foreign_package_of_the_same_name_is_named_with_a_remedy() -> None:
    foreign = types.ModuleType("skrl")
    foreign.__file__ = "site-packages/skrl/__init__.py"
    with pytest.raises(
        ForeignPackageError, match=f"site-packages/skrl/__init__.py, not the kernel core of {DISTRIBUTION}"
    ):
        check_installation(foreign)

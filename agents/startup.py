"""Start-up check: the import name `skrl` also belongs to another project on PyPI."""

from __future__ import annotations

import importlib
from types import ModuleType

DISTRIBUTION = "sparse-kernel-rl"


class ForeignPackageError(ImportError):
    """Python found a package of the right name that is not ours."""


def check_installation(module: ModuleType | None = None) -> None:
    """Make sure that `skrl` is this project's kernel core.

    Args:
        module: the module to check; whatever `import skrl` finds when left out.

    Raises:
        ForeignPackageError: it is another package; the message says where it lies and what to do.
    """
    found = module or importlib.import_module("skrl")
    if getattr(found, "DISTRIBUTION", None) != DISTRIBUTION:
        where = getattr(found, "__file__", None) or "an unknown place"
        raise ForeignPackageError(
            f"Python found a foreign package named 'skrl' at {where}, not the kernel core of {DISTRIBUTION}. "
            "Run from the repository with its own virtual environment (`make train` makes one), "
            "or `pip uninstall skrl` and `pip install -e .` here."
        )

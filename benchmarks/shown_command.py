"""The command behind a result, as somebody would type it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def shown_command(script: str, words: Sequence[str]) -> str:
    """The call of a script of this folder from the top of the checkout, quoted where a shell needs it."""
    return shlex.join(["python", f"benchmarks/{script}", *words])

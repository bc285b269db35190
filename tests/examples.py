"""What examples a property is tried with: few and always the same in every run, so that who broke something sees it;
ten times as many, new ones each time, with ``THOROUGH=1`` (make slow)."""

from __future__ import annotations

import os
from typing import Final

THOROUGH: Final = bool(os.environ.get("THOROUGH"))


def examples(usual: int) -> int:
    """For ``hypothesis.settings(max_examples=…)``."""
    return usual * 10 if THOROUGH else usual

"""How many examples a property is tried with: few in every run, ten times as many with ``THOROUGH=1`` (make slow)."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """For ``hypothesis.settings(max_examples=…)``."""
    return usual * 10 if os.environ.get("THOROUGH") else usual

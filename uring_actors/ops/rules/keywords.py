"""Whether a file holds a rule's keywords, where no engine has looked for them.

A keyword is mostly part of what its rule matches. Where it isn't, the file is read again, once for each keyword that
a finding depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

from uring_actors.ops.match.plan import PatternPlan
from uring_actors.ops.match.planset import Pattern
from uring_actors.ops.match.window import Window

_STRETCH = 1 << 20


class Keywords:
    """A rule file's keywords, by their number in ``Rules.keywords``."""

    def __init__(self, plans: Sequence[PatternPlan]) -> None:
        self._patterns = [Pattern(plan) for plan in plans]

    def in_match(self, number: int, match: bytes) -> bool:
        """Whether a match holds the keyword."""
        return self._patterns[number].search(memoryview(match), 0, len(match))[0] >= 0

    def in_file(self, number: int, window: Window) -> bool:
        """Whether the file does. Raises ReadFailed."""
        pattern = self._patterns[number]
        for start in range(0, window.size, _STRETCH):
            stop = min(window.size, start + _STRETCH + pattern.width)
            view, base = window.view(start, stop, before=0)
            if pattern.search(view, start - base, stop - base)[0] >= 0:
                return True
        return False

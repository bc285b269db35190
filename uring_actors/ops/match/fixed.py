"""Literals' plans, put together from their characters' parts: wordlists have tens of thousands.

What comes out is what the front-end makes of the same literal by parsing it; the front-end asks here first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from uring_actors.ops.match import lower as low
from uring_actors.ops.match.syntax import fold_case
from uring_actors.ops.match.tree import Alt, Chars, Ranges


class Fixed(NamedTuple):
    """A literal's widths in bytes and its candidate expression; ``folded`` where that has several words."""

    least: int
    most: int
    candidate: bytes
    folded: bool


def fixed(text: str, *, latin1: bool, ignore_case: bool) -> Fixed | None:
    """None where the text is a single character: that may be spelled without a group."""
    if len(text) < 2:
        return None
    parts = [_character(c, latin1, ignore_case) for c in text]
    return Fixed(
        sum(part.least for part in parts),
        sum(part.most for part in parts),
        b"".join([part.candidate for part in parts]),
        any(part.folded for part in parts),
    )


@lru_cache(maxsize=1 << 14)
def _character(character: str, latin1: bool, ignore_case: bool) -> Fixed:
    code = ord(character)
    ranges: Ranges = ((code, code),)
    if ignore_case:
        ranges = fold_case(ranges, latin1)
    tree = Chars(ranges)
    least, most = low.widths(low.lower(tree, latin1=latin1))
    assert most is not None, "a character is at most four bytes"
    wide = low.lower(tree, latin1=latin1, widen=True)
    spelled = low.spell(wide)
    folded = ranges[0][0] != ranges[-1][1]
    return Fixed(least, most, b"(?:" + spelled + b")" if isinstance(wide, Alt) else spelled, folded)

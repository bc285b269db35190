"""Hits into a result block, by whoever finds one: where the next goes, and how many there are.

``context`` is the address of four words that belong to one thread (CONTEXT_*).
"""

from __future__ import annotations

from typing import Final

from uring_actors.arena import abi
from uring_actors.arena.atomics import load64, store32, store64
from uring_actors.hot import hot

CONTEXT_COUNT: Final = 0  # hits so far, those that found no room included
CONTEXT_CAPACITY: Final = 8  # how many there is room for …
CONTEXT_HITS: Final = 16  # … at this address
CONTEXT_LEAD: Final = 24  # bytes of the searched text that stand before the payload


@hot
def add_hit(context: int, pattern: int, end: int) -> None:
    """One more hit, which ends ``end`` bytes into the searched text; an end in the lead becomes 0."""
    count = load64(context + CONTEXT_COUNT)
    store64(context + CONTEXT_COUNT, count + 1)
    if count < load64(context + CONTEXT_CAPACITY):
        hit = load64(context + CONTEXT_HITS) + count * abi.HIT_BYTES
        store32(hit + abi.HIT_PATTERN, pattern)
        store32(hit + abi.HIT_START, abi.HIT_NO_START)
        store32(hit + abi.HIT_END, end - load64(context + CONTEXT_LEAD))
        store32(hit + abi.HIT_FLAGS, 0)

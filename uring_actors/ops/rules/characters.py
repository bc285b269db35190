"""How often each character is in a long text."""

from __future__ import annotations

import numpy as np

from uring_actors.arena.atomics import load64
from uring_actors.hot import hot
from uring_actors.ops.match.newlines import Bytes, Ints
from uring_actors.ops.match.utf8 import character

_CODE_POINTS = 0x110000
_REPLACEMENT = 0xFFFD
_BEYOND_ASCII = -0x7F7F7F7F7F7F7F80
"""The top bit of each of eight bytes."""


def character_counts(text: Bytes) -> Ints:
    """By code point. Every byte that is not part of valid UTF-8 counts as one U+FFFD."""
    counts = np.zeros(_CODE_POINTS, np.int64)
    _count(text, counts)
    return counts


@hot
def _count(text: Bytes, counts: Ints) -> None:
    size = text.size
    origin = text.ctypes.data
    rows = np.zeros((8, 128), np.int64)  # of ASCII, eight in turn: a counter is not read right after it is written
    i = 0
    while i < size:
        while i + 8 <= size:
            word = load64(origin + i)
            if word & _BEYOND_ASCII != 0:
                break
            for k in range(8):
                rows[k, word >> 8 * k & 0x7F] += 1
            i += 8
        if i < size:
            code, length = character(text, i, size)
            counts[code if code >= 0 else _REPLACEMENT] += 1
            i += length
    for code in range(128):
        for k in range(8):
            counts[code] += rows[k, code]

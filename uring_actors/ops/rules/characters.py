"""How often each character is in a long text."""

from __future__ import annotations

import numpy as np

from uring_actors.hot import hot
from uring_actors.ops.match.newlines import Bytes, Ints

_CODE_POINTS = 0x110000
_REPLACEMENT = 0xFFFD


def character_counts(text: Bytes) -> Ints:
    """By code point. Every byte that is not part of valid UTF-8 counts as one U+FFFD."""
    counts = np.zeros(_CODE_POINTS, np.int64)
    _count(text, counts)
    return counts


@hot
def _count(text: Bytes, counts: Ints) -> None:
    size = text.size
    rows = np.zeros(512, np.int64)  # of ASCII, four in turn: a counter is not read right after it is written
    i = 0
    while i < size:
        first = int(text[i])
        if first < 0x80:
            rows[(i & 3) << 7 | first] += 1
            i += 1
            continue
        # The Unicode Standard, table 3-7: the second byte's range depends on the first.
        length, low, high = 1, 0x80, 0xBF
        code = first
        if 0xC2 <= first <= 0xDF:
            length, code = 2, first & 0x1F
        elif 0xE0 <= first <= 0xEF:
            length, code = 3, first & 0x0F
            if first == 0xE0:
                low = 0xA0
            elif first == 0xED:
                high = 0x9F
        elif 0xF0 <= first <= 0xF4:
            length, code = 4, first & 0x07
            if first == 0xF0:
                low = 0x90
            elif first == 0xF4:
                high = 0x8F
        valid = length > 1 and i + length <= size and low <= text[i + 1] <= high
        k = 1
        while valid and k < length:
            following = int(text[i + k])
            valid = following & 0xC0 == 0x80
            code = code << 6 | following & 0x3F
            k += 1
        counts[code if valid else _REPLACEMENT] += 1
        i += length if valid else 1
    for code in range(128):
        counts[code] += rows[code] + rows[128 + code] + rows[256 + code] + rows[384 + code]

"""Short words sought in long stretches, 64 places at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from uring_actors.hot import hot, intrinsic
from uring_actors.ops.match.newlines import Bytes, Ints, as_bytes
from uring_actors.ops.match.spelled import Word
from uring_actors.ops.match.utf8 import BLOCK, beyond_ascii_in_64

Sets = NDArray[np.bool_]
"""Byte sets, a row each."""


@intrinsic
def _equal_in_64(typingctx: Any, address: Any, byte: Any) -> Any:
    """Bit k: whether byte k at ``address`` is ``byte``. (Written out, as ``megakernel.newlines`` says why.)"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), BLOCK)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.trunc(args[1], ir.IntType(8)), ir.Constant(ir.IntType(32), 0)
        )
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        all_of_them = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
        return builder.bitcast(builder.icmp_unsigned("==", text, all_of_them), ir.IntType(64))

    return types.int64(types.int64, types.int64), codegen


class Needles:
    """Words of one byte or more. With ``openings`` a word counts only where one of these (sequences of byte sets)
    begins at it, or at most ``reach`` bytes before it."""

    def __init__(self, words: Sequence[bytes], openings: Sequence[Word] = (), reach: int = 0) -> None:
        self._joined = as_bytes(b"".join(words))
        self._borders = np.cumsum([0, *map(len, words)])
        self._sets = np.array([[mask >> byte & 1 for byte in range(256)] for word in openings for mask in word], bool)
        self._sets = self._sets.reshape(-1, 256)
        self._opening_borders = np.cumsum([0, *map(len, openings)])
        self._reach = reach

    def first(self, text: Bytes, start: int, stop: int) -> tuple[int, bool]:
        """Where in ``text[start:stop]`` the first of the words is, or else ``stop``; and whether no byte before that
        is beyond ASCII.

        An opening that goes on behind ``stop`` counts, whatever follows; one that begins before ``start`` does not.
        """
        place, plain = _first(
            text, start, stop, self._joined, self._borders, self._sets, self._opening_borders, self._reach
        )
        return place, bool(plain)


@hot
def _first(
    text: Bytes, start: int, stop: int, joined: Bytes, borders: Ints, sets: Sets, openings: Ints, reach: int
) -> tuple[int, bool]:
    origin = text.ctypes.data
    at = start
    closed = start  # no opening begins in text[start:closed]
    longest = 0
    for w in range(borders.size - 1):
        longest = max(longest, borders[w + 1] - borders[w])
    plain = True
    while at < stop:
        upto = stop
        if at + longest + BLOCK <= stop:
            seen = 0
            for w in range(borders.size - 1):
                first, last = borders[w], borders[w + 1] - 1
                here = _equal_in_64(origin + at, np.int64(joined[first]))
                seen |= here & _equal_in_64(origin + at + last - first, np.int64(joined[last]))
            upto = at + BLOCK
            if seen == 0:
                plain &= beyond_ascii_in_64(origin + at) == 0
                at = upto
                continue
        while at < upto:
            if _stands(text, at, stop, joined, borders):
                if openings.size == 1:
                    return at, plain
                closed = max(closed, at - reach)
                while closed <= at:
                    if _opens(text, closed, stop, sets, openings):
                        return at, plain
                    closed += 1
            plain &= text[at] < 128
            at += 1
    return stop, plain


@hot
def _stands(text: Bytes, at: int, stop: int, joined: Bytes, borders: Ints) -> bool:
    """Whether one of the words begins at ``at``."""
    for w in range(borders.size - 1):
        length = borders[w + 1] - borders[w]
        same = 0
        while at + same < stop and same < length and text[at + same] == joined[borders[w] + same]:
            same += 1
        if same == length:
            return True
    return False


@hot
def _opens(text: Bytes, at: int, stop: int, sets: Sets, borders: Ints) -> bool:
    """Whether one of the openings begins at ``at``, as far as it is before ``stop``."""
    for w in range(borders.size - 1):
        place = borders[w]
        k = at
        while place < borders[w + 1] and k < stop and sets[place, text[k]]:
            place += 1
            k += 1
        if place == borders[w + 1] or k == stop:
            return True
    return False

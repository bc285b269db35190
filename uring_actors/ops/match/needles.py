"""Short words sought in long stretches, 64 places at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types

from uring_actors.hot import hot, intrinsic
from uring_actors.ops.match.newlines import Bytes, Ints, as_bytes

_BLOCK: Final = 64


@intrinsic
def _equal_in_64(typingctx: Any, address: Any, byte: Any) -> Any:
    """Bit k: whether byte k at ``address`` is ``byte``. (Written out, as ``megakernel.newlines`` says why.)"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), _BLOCK)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.trunc(args[1], ir.IntType(8)), ir.Constant(ir.IntType(32), 0)
        )
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), _BLOCK), [0] * _BLOCK)
        all_of_them = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
        return builder.bitcast(builder.icmp_unsigned("==", text, all_of_them), ir.IntType(64))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _beyond_ascii_in_64(typingctx: Any, address: Any) -> Any:
    """Bit k: whether byte k at ``address`` is 128 or more."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), _BLOCK)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        beyond = builder.icmp_signed("<", text, ir.Constant(vector, [0] * _BLOCK))
        return builder.bitcast(beyond, ir.IntType(64))

    return types.int64(types.int64), codegen


class Needles:
    """Words of one byte or more."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self._joined = as_bytes(b"".join(words))
        self._borders = np.cumsum([0, *map(len, words)])

    def first(self, text: Bytes, start: int, stop: int) -> tuple[int, bool]:
        """Where in ``text[start:stop]`` the first of the words begins, or else ``stop``; and whether no byte before
        that is beyond ASCII."""
        place, plain = _first(text, start, stop, self._joined, self._borders)
        return place, bool(plain)


@hot
def _first(text: Bytes, start: int, stop: int, joined: Bytes, borders: Ints) -> tuple[int, bool]:
    origin = text.ctypes.data
    at = start
    longest = 0
    for w in range(borders.size - 1):
        longest = max(longest, borders[w + 1] - borders[w])
    plain = True
    while at + longest + _BLOCK <= stop:
        seen = 0
        for w in range(borders.size - 1):
            first, last = borders[w], borders[w + 1] - 1
            here = _equal_in_64(origin + at, np.int64(joined[first]))
            seen |= here & _equal_in_64(origin + at + last - first, np.int64(joined[last]))
        beyond = _beyond_ascii_in_64(origin + at)
        if seen != 0:
            for k in range(at, at + _BLOCK):
                if _stands(text, k, stop, joined, borders):
                    return k, plain
                plain &= text[k] < 128
        plain &= beyond == 0
        at += _BLOCK
    while at < stop:
        if _stands(text, at, stop, joined, borders):
            return at, plain
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

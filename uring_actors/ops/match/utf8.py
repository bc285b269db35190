"""UTF-8 in bytes, decoded one character at a time: the Unicode Standard, table 3-7."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from uring_actors.hot import hot, intrinsic
from uring_actors.ops.match.newlines import Bytes

BLOCK: Final = 64


@intrinsic
def beyond_ascii_in_64(typingctx: Any, address: Any) -> Any:
    """Bit k: whether byte k at ``address`` is 128 or more."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), BLOCK)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        beyond = builder.icmp_signed("<", text, ir.Constant(vector, [0] * BLOCK))
        return builder.bitcast(beyond, ir.IntType(64))

    return types.int64(types.int64), codegen


@hot
def character(text: Bytes, at: int, stop: int) -> tuple[int, int]:
    """The code point of ``text[at:stop]``'s first character, and its bytes; -1 and 1 where that is not UTF-8."""
    first = int(text[at])
    if first < 0x80:
        return first, 1
    length, low, high = 1, 0x80, 0xBF
    code = -1
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
    if length == 1 or at + length > stop or not low <= text[at + 1] <= high:
        return -1, 1
    for k in range(1, length):
        following = int(text[at + k])
        if following & 0xC0 != 0x80:
            return -1, 1
        code = code << 6 | following & 0x3F
    return code, length


@hot
def is_utf8(text: Bytes, start: int, stop: int) -> bool:
    """Whether ``text[start:stop]`` is UTF-8, from its first byte to its last."""
    origin = text.ctypes.data
    at = start
    while at < stop:
        if at + BLOCK <= stop and beyond_ascii_in_64(origin + at) == 0:
            at += BLOCK
            continue
        block = min(stop, at + BLOCK)
        while at < block:
            if text[at] < 128:
                at += 1
                continue
            code, length = character(text, at, stop)
            if code < 0:
                return False
            at += length
    return True

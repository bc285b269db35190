"""Newlines counted by address: every byte that is searched for patterns passes here."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from uring_actors.arena import abi
from uring_actors.arena.atomics import load8, load32, store32
from uring_actors.hot import hot, intrinsic


@intrinsic
def _newlines_of_64(typingctx: Any, address: Any) -> Any:
    """How many of the 64 bytes at ``address`` are newlines: one comparison and one population count where the
    processor has such vectors. (Written out, because no loop over bytes or words becomes that: those are four times
    as slow.)"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 64)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        same = builder.icmp_unsigned("==", text, ir.Constant(vector, [10] * 64))
        return builder.ctpop(builder.bitcast(same, ir.IntType(64)))

    return types.int64(types.int64), codegen


@hot
def newlines_at(address: int, length: int) -> int:
    """Newlines in ``length`` bytes at ``address``; none where ``length`` is negative."""
    total = 0
    blocks = max(0, length) >> 6
    for i in range(blocks):
        total += _newlines_of_64(address + (i << 6))
    for i in range(blocks << 6, length):
        total += load8(address + i) == 10
    return total


@hot
def last_newline_at(address: int, length: int) -> int:
    """The offset of the last newline in ``length`` bytes at ``address``; -1 where there is none."""
    stop = length
    while stop >= 64 and _newlines_of_64(address + stop - 64) == 0:
        stop -= 64
    for i in range(stop - 1, -1, -1):
        if load8(address + i) == 10:
            return i
    return -1


@hot
def index_newlines(text: int, length: int, index: int) -> int:
    """Newlines in ``length`` bytes at ``text``; those before each chunk go to ``index`` (``abi.NEWLINE_CHUNK``)."""
    total = newlines_at(text, min(length, abi.NEWLINE_CHUNK))
    for chunk in range(1, -(-length // abi.NEWLINE_CHUNK)):
        start = chunk * abi.NEWLINE_CHUNK
        store32(index + 4 * chunk, total)
        total += newlines_at(text + start, min(length - start, abi.NEWLINE_CHUNK))
    return total


@hot
def indexed(index: int, chunk: int) -> int:
    """Newlines before a chunk."""
    return load32(index + 4 * chunk) if chunk > 0 else 0

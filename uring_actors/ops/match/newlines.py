"""Compiled loops over bytes: newlines counted and placed, match bytes copied.

All take a read-only, contiguous ``uint8`` array (``as_bytes`` makes one of any buffer, so that each loop is
compiled for one type only) and release the GIL. Offsets are relative to the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from uring_actors.hot import hot

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def as_bytes(buffer: Any) -> Bytes:
    """A read-only array over ``buffer`` (no copy)."""
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


@intrinsic  # type: ignore[untyped-decorator]
def _newlines_of_64(typingctx: Any, address: Any) -> Any:
    """How many of the 64 bytes at ``address`` are newlines: one comparison and one population count where the
    processor has such vectors. (Written out, because no loop over bytes or words becomes that: those are four times
    as slow, and every byte that is searched for patterns passes here.)"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 64)
        text = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=1)
        same = builder.icmp_unsigned("==", text, ir.Constant(vector, [10] * 64))
        return builder.ctpop(builder.bitcast(same, ir.IntType(64)))

    return types.int64(types.int64), codegen


@hot
def count_newlines(text: Bytes, start: int, stop: int) -> int:
    """Newlines in ``text[start:stop]``."""
    total = 0
    blocks = max(0, stop - start) >> 6
    address = text.ctypes.data + start
    for i in range(blocks):
        total += _newlines_of_64(address + (i << 6))
    for i in range(start + (blocks << 6), stop):
        total += text[i] == 10
    return total


@hot
def last_newline(text: Bytes, start: int, stop: int) -> int:
    """Where the last newline of ``text[start:stop]`` is; -1 where there is none."""
    for i in range(stop - 1, start - 1, -1):
        if text[i] == 10:
            return i
    return -1


@hot
def first_newline(text: Bytes, start: int, stop: int) -> int:
    """Where the first newline of ``text[start:stop]`` is; -1 where there is none."""
    for i in range(start, stop):
        if text[i] == 10:
            return i
    return -1


@hot
def mark_newlines(text: Bytes, begin: int, stop: int, starts: Ints, counts: Ints, lasts: Ints) -> tuple[int, int]:
    """For each of ``starts`` (ascending): newlines in ``text[begin:start]``, and the last one there (or -1).

    Returns the same of ``text[begin:stop]``. One pass, whatever the number of starts.
    """
    total = 0
    last = -1
    done = begin
    for k in range(starts.size + 1):
        here = stop if k == starts.size else starts[k]
        if here > done:
            more = count_newlines(text, done, here)
            if more > 0:
                total += more
                last = last_newline(text, done, here)
            done = here
        if k < starts.size:
            counts[k] = total
            lasts[k] = last
    return total, last


@hot
def gather(text: Bytes, starts: Ints, offsets: Ints, out: Bytes) -> None:
    """Copy each range to its place: ``out[offsets[k]:offsets[k+1]]`` from ``text[starts[k]:]``."""
    for k in range(starts.size):
        shift = starts[k] - offsets[k]
        for i in range(offsets[k], offsets[k + 1]):
            out[i] = text[i + shift]


def copy_ranges(text: Bytes, starts: Ints, ends: Ints) -> tuple[Ints, Bytes]:
    """The ranges' bytes, joined, and where each begins in them (one more than there are ranges)."""
    offsets = np.zeros(starts.size + 1, np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    gather(text, starts, offsets, out)
    out.flags.writeable = False
    return offsets, out

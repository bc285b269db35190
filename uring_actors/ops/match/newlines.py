"""Compiled loops over bytes: newlines counted and placed, match bytes copied.

All take a read-only, contiguous ``uint8`` array (``as_bytes`` makes one of any buffer, so that each loop is
compiled for one type only) and release the GIL. Offsets are relative to the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uring_actors.hot import hot
from uring_actors.megakernel.newlines import last_newline_at, newlines_at

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def as_bytes(buffer: Any) -> Bytes:
    """A read-only array over ``buffer`` (no copy)."""
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


@hot
def count_newlines(text: Bytes, start: int, stop: int) -> int:
    """Newlines in ``text[start:stop]``."""
    return newlines_at(text.ctypes.data + start, stop - start)


@hot
def last_newline(text: Bytes, start: int, stop: int) -> int:
    """Where the last newline of ``text[start:stop]`` is; -1 where there is none."""
    found = last_newline_at(text.ctypes.data + start, stop - start)
    return found + start if found >= 0 else -1


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

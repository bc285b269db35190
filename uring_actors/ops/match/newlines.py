"""Compiled loops over bytes: newlines counted and placed, match bytes copied.

All take a read-only, contiguous ``uint8`` array (``as_bytes`` makes one of any buffer, so that each loop is
compiled for one type only) and release the GIL. Offsets are relative to the array.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uring_actors.arena import abi
from uring_actors.hot import hot
from uring_actors.megakernel.newlines import index_newlines, indexed, last_newline_at, newlines_at

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Index = NDArray[np.uint32]
"""A payload's newline index: word k has the newlines before its chunk k (``abi.NEWLINE_CHUNK``), but for word 0."""


def as_bytes(buffer: Any) -> Bytes:
    """A read-only array over ``buffer`` (no copy)."""
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


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


@dataclass(slots=True)
class Newlines:
    """What is known of a payload's newlines: how many, where the last is (an offset in the payload, or -1), and the
    addresses of the payload's first byte and of its index's word for chunk 0 (``abi.NEWLINE_CHUNK``)."""

    count: int
    last: int
    text: int
    index: int


def empty_index(payload: int) -> Index:
    """Room for the index of ``payload`` bytes."""
    return np.zeros(max(1, -(-payload // abi.NEWLINE_CHUNK)), np.uint32)


def count_newlines(text: Bytes, at: int, payload: int, index: Index) -> Newlines:
    """Count the newlines of ``text[at:at + payload]`` as a kernel does, and fill ``index``. The caller keeps both as
    long as it uses what is returned."""
    address = text.ctypes.data + at
    count = index_newlines(address, payload, index.ctypes.data)
    return Newlines(count, last_newline_at(address, payload), address, index.ctypes.data)


def copy_index(address: int, payload: int) -> Index:
    """A read-only copy of the index at ``address``."""
    return np.frombuffer(ctypes.string_at(address, 4 * max(1, -(-payload // abi.NEWLINE_CHUNK))), np.uint32)


NO_INDEX: Index = np.frombuffer(b"", np.uint32)


@hot
def newlines_before(text: int, index: int, starts: Ints, counts: Ints, lasts: Ints) -> None:
    """For each of ``starts`` (ascending, in the payload at address ``text``): the newlines of the payload before it,
    and the offset of the last of them (or -1). ``index``: the address of the payload's; 0: there is none, and all are
    counted.

    Of the text no more is looked at than the part of a chunk before each start and what lies before it in its line.
    """
    done = 0
    total = 0
    last = -1
    for k in range(starts.size):
        start = starts[k]
        chunk = start // abi.NEWLINE_CHUNK
        count = total
        begin = chunk * abi.NEWLINE_CHUNK
        if index == 0 or begin <= done:
            begin = done
        else:
            count = indexed(index, chunk)
        count += newlines_at(text + begin, start - begin)
        if count > total:
            found = last_newline_at(text + begin, start - begin)
            while found < 0:  # never without an index: then it stands behind ``done``
                chunk -= 1
                begin = chunk * abi.NEWLINE_CHUNK
                if indexed(index, chunk) < count:
                    found = last_newline_at(text + begin, abi.NEWLINE_CHUNK)
            last = begin + found
            total = count
        done = start
        counts[k] = total
        lasts[k] = last


@hot
def count_before(text: Bytes, at: int, index: Index, starts: Ints, counts: Ints, lasts: Ints) -> None:
    """As ``newlines_before``, of the payload at ``text[at:]``. ``at`` may be negative where an index that is not
    empty makes it needless to look before the text."""
    newlines_before(text.ctypes.data + at, index.ctypes.data if index.size else 0, starts, counts, lasts)


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

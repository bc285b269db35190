"""The compiled loops over bytes agree with Python's own methods, at every alignment."""

from __future__ import annotations

import numpy as np
import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from uring_actors.arena import abi
from uring_actors.megakernel.newlines import newlines_at
from uring_actors.ops.match import planset
from uring_actors.ops.match.newlines import (
    NO_INDEX,
    as_bytes,
    copy_index,
    copy_ranges,
    count_before,
    count_newlines,
    empty_index,
    first_newline,
    last_newline,
    newlines_before,
)

texts = st.lists(st.sampled_from([b"\n", b"a", b"\x0b", b"\x8a", b"\x00" * 9, b"\xff"]), max_size=80).map(b"".join)


@settings(deadline=None)  # the first call compiles
@given(text=texts, low=st.integers(0, 20), cut=st.integers(0, 20))
def test_counting_and_finding(text: bytes, low: int, cut: int) -> None:
    low, high = min(low, len(text)), max(min(low, len(text)), len(text) - cut)
    array = as_bytes(text)
    assert newlines_at(array.ctypes.data + low, high - low) == text.count(b"\n", low, high)
    assert last_newline(array, low, high) == text.rfind(b"\n", low, high)
    assert first_newline(array, low, high) == text.find(b"\n", low, high)


CHUNK = abi.NEWLINE_CHUNK


def long_texts(draw: st.DrawFn) -> bytes:
    """Several chunks with newlines at random, and mostly at their borders; some chunks may have none."""
    size = draw(st.one_of(st.integers(0, 200), st.integers(0, 4).map(lambda k: k * CHUNK), st.integers(0, 4 * CHUNK)))
    size = max(0, size + draw(st.integers(-2, 2)))
    near = st.builds(lambda k, more: k * CHUNK + more, st.integers(0, 4), st.integers(-2, 2))
    text = bytearray(b"a" * size)
    for place in draw(st.lists(st.one_of(near, st.integers(0, 4 * CHUNK)), max_size=12)):
        if 0 <= place < size:
            text[place] = 10
    return bytes(text)


@settings(deadline=None)  # the first call compiles
@given(data=st.data(), at=st.integers(0, 70), with_index=st.booleans())
def test_the_index_and_what_is_counted_by_it(data: st.DataObject, at: int, with_index: bool) -> None:
    payload = data.draw(st.composite(long_texts)())
    text = b"\n" * at + payload + b"\n"
    index = empty_index(len(payload))
    index[:] = 0xFFFFFFFF
    found = count_newlines(as_bytes(text), at, len(payload), index)
    assert (found.count, found.last) == (payload.count(b"\n"), payload.rfind(b"\n"))
    assert index[1:].tolist() == [payload.count(b"\n", 0, k) for k in range(CHUNK, len(payload), CHUNK)]
    assert index[0] == 0xFFFFFFFF, "the word of chunk 0 may be another file's"
    border = st.builds(lambda k, more: k * CHUNK + more, st.integers(0, 4), st.integers(-2, 2))
    places = data.draw(st.lists(st.one_of(border, st.integers(0, 4 * CHUNK)), max_size=9))
    starts = np.array(sorted(p for p in places if 0 <= p < len(payload)), np.int64)
    counts, lasts = np.empty((2, len(starts)), np.int64)
    assert found.text == as_bytes(text).ctypes.data + at
    newlines_before(found.text, found.index if with_index else 0, starts, counts, lasts)
    assert counts.tolist() == [payload.count(b"\n", 0, s) for s in starts]
    assert lasts.tolist() == [payload.rfind(b"\n", 0, s) for s in starts]
    copy = copy_index(found.index, len(payload))
    assert copy.tolist() == index.tolist()
    again = np.empty((2, len(starts)), np.int64)
    count_before(as_bytes(text), at, copy if with_index else NO_INDEX, starts, *again)
    assert again.tolist() == [counts.tolist(), lasts.tolist()]


def test_ranges_are_copied() -> None:
    text = bytearray(b"abcdefgh")
    offsets, data = copy_ranges(as_bytes(text), np.array([1, 0, 8]), np.array([3, 8, 8]))
    text[:] = b"________"
    assert offsets.tolist() == [0, 2, 10, 10]
    assert data.tobytes() == b"bcabcdefgh"


@pytest.mark.parametrize("anchor", ["UNANCHORED", "ANCHOR_START", "ANCHOR_BOTH"])
def test_spans_are_the_same_by_the_public_methods(anchor: str) -> None:
    class Public:
        """A google-re2 object whose inner parts have moved."""

        def __init__(self, regex: re2._Regexp) -> None:
            self.search, self.match, self.fullmatch = regex.search, regex.match, regex.fullmatch

    regex = re2.compile(rb"\bab*")
    inner, public = planset._find(regex, anchor), planset._find(Public(regex), anchor)
    text = memoryview(b"xab abb a")
    for low in range(len(text) + 1):
        for high in range(low, len(text) + 1):
            assert inner(text, low, high) == public(text, low, high)

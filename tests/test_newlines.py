"""The compiled loops over bytes agree with Python's own methods, at every alignment."""

from __future__ import annotations

import numpy as np
import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from uring_actors.ops.match import planset
from uring_actors.ops.match.newlines import (
    as_bytes,
    copy_ranges,
    count_newlines,
    first_newline,
    last_newline,
    mark_newlines,
)

texts = st.lists(st.sampled_from([b"\n", b"a", b"\x0b", b"\x8a", b"\x00" * 9, b"\xff"]), max_size=80).map(b"".join)


@settings(deadline=None)  # the first call compiles
@given(text=texts, low=st.integers(0, 20), cut=st.integers(0, 20))
def test_counting_and_finding(text: bytes, low: int, cut: int) -> None:
    low, high = min(low, len(text)), max(min(low, len(text)), len(text) - cut)
    array = as_bytes(text)
    assert count_newlines(array, low, high) == text.count(b"\n", low, high)
    assert last_newline(array, low, high) == text.rfind(b"\n", low, high)
    assert first_newline(array, low, high) == text.find(b"\n", low, high)


@settings(deadline=None)  # the first call compiles
@given(text=texts, places=st.lists(st.integers(0, 80), max_size=9), begin=st.integers(0, 5))
def test_marks(text: bytes, places: list[int], begin: int) -> None:
    begin = min(begin, len(text))
    starts = np.array(sorted(p for p in places if begin <= p <= len(text)), np.int64)
    counts, lasts = np.empty((2, len(starts)), np.int64)
    whole = mark_newlines(as_bytes(text), begin, len(text), starts, counts, lasts)
    assert whole == (text.count(b"\n", begin), text.rfind(b"\n", begin))
    assert counts.tolist() == [text.count(b"\n", begin, s) for s in starts]
    assert lasts.tolist() == [text.rfind(b"\n", begin, s) for s in starts]


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

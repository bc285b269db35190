"""Words sought in long stretches, against a brute-force search."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from uring_actors.ops.match.needles import Needles
from uring_actors.ops.match.newlines import as_bytes


def brute(text: bytes, start: int, stop: int, words: list[bytes]) -> tuple[int, bool]:
    places = [place for word in words if (place := text.find(word, start, stop)) >= 0]
    first = min(places, default=stop)
    return first, text[start:first].isascii()


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=4),
    st.lists(st.sampled_from([b"a" * 3, b"b", b"." * 61, b"." * 200, b"\x80", b"\xff", b"ab", b"ba"]), max_size=20),
    st.data(),
)
def test_the_first_of_the_words(words: list[bytes], parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    assert Needles(words).first(as_bytes(text), start, stop) == brute(text, start, stop, words)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 71, 72, 73, 127, 128, 129, 199, 4095, 4096, 4097])
def test_at_every_place(size: int) -> None:
    words = [b"KEY-----", b"KEY BLOCK-----"]
    needles = Needles(words)
    for word in words:
        for place in range(max(0, size - 80), size + 1):
            text = b"K" * place + word + b"-" * (size - place)
            assert needles.first(as_bytes(text), 0, size) == brute(text, 0, size, words)
            assert needles.first(as_bytes(text), 0, len(text)) == (place, True)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([b"a", b"b", b"ab", b"."]), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([b"aa", b"b", b"." * 61, b"\x80", b"ab", b"ba"]), max_size=20),
    st.integers(0, 5),
    st.data(),
)
def test_only_where_an_opening_begins(
    openings: list[list[bytes]], parts: list[bytes], reach: int, data: st.DataObject
) -> None:
    text = b"".join(parts)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))

    def opens(place: int) -> bool:
        return any(
            all(text[place + k] in byte_set for k, byte_set in enumerate(opening) if place + k < stop)
            for opening in openings
        )

    hits = (k for k in range(start, stop) if text[k : min(stop, k + 2)] in (b"ab", b"ba"))
    wanted = next((k for k in hits if any(opens(p) for p in range(max(start, k - reach), k + 1))), stop)
    masks = [tuple(sum(1 << byte for byte in byte_set) for byte_set in opening) for opening in openings]
    found = Needles([b"ab", b"ba"], masks, reach).first(as_bytes(text), start, stop)
    assert found == (wanted, text[start:wanted].isascii())

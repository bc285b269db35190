"""Hypothesis strategies for RE2 patterns and for texts that are likely to match them."""

from __future__ import annotations

import re2
from hypothesis import strategies as st

from uring_actors.errors import PatternError
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.pattern import Regex
from uring_actors.ops.match.syntax import re2_options
from uring_actors.ops.match.tree import Alt, Assertion, ByteSet, Concat, Node, Repeat, ranges_of

CHARACTERS = ["a", "b", "k", "K", "s", "x", "0", "_", " ", "-", "é", "ß", "ſ", "\u212a", "€", "\U0001f600"]
LATIN1_CHARACTERS = ["a", "b", "k", "K", "s", "x", "0", "_", " ", "-", "é", "ß", "\xff", "\x80"]
ESCAPES = [
    r"\n", r"\t", r"\a", r"\f", r"\v", r"\r", r"\x41", r"\x7F", r"\x{e9}", r"\101", r"\07", r"\.", r"\\",
    r"\-",
]  # fmt: skip
UNICODE_ESCAPES = [r"\x{10FFFF}", r"\x{20AC}", r"\777"]
PERL = [r"\d", r"\D", r"\s", r"\S", r"\w", r"\W"]
UNICODE = [r"\pN", r"\PN", r"\p{Greek}", r"\p{^Greek}", r"\P{Lu}", r"\p{Any}", r"\p{Zs}"]
POSIX = ["[:alpha:]", "[:^alpha:]", "[:space:]", "[:punct:]", "[:xdigit:]", "[:word:]", "[:^ascii:]"]
ASSERTIONS = ["^", "$", r"\A", r"\z", r"\b", r"\B"]
FLAGS = ["i", "m", "s", "U", "-i", "-s", "im", "is-m", "i-U", ""]
COUNTS = ["*", "+", "?", "{2}", "{0}", "{1,3}", "{0,2}", "{2,}", "{0,}", "{3}", "{,2}", "{1"]


def _classes(latin1: bool) -> st.SearchStrategy[str]:
    characters = LATIN1_CHARACTERS if latin1 else CHARACTERS
    escapes = ESCAPES if latin1 else ESCAPES + UNICODE_ESCAPES
    ranges = ["a-z", "0-9", "A-Z", "a-k", "\x00-\x1f", "é-ÿ", r"\x80-\xff", "]", "^", "[", "!--"]
    if not latin1:
        ranges += ["é-€", "а-я", r"\x{80}-\x{10FFFF}", r"\x{800}-\x{FFFF}", r"\x{fff}-\x{10FFF}"]
    item = st.sampled_from(characters + escapes + PERL + UNICODE + POSIX + ranges)
    return st.builds(
        lambda negated, items: f"[{'^' if negated else ''}{''.join(items)}]",
        st.booleans(),
        st.lists(item, min_size=1, max_size=3),
    )


def _atoms(latin1: bool) -> st.SearchStrategy[str]:
    characters = st.sampled_from(LATIN1_CHARACTERS if latin1 else CHARACTERS)
    return st.one_of(
        characters,
        characters,
        st.text("abkx", min_size=1, max_size=4),
        st.sampled_from(ESCAPES if latin1 else ESCAPES + UNICODE_ESCAPES),
        st.sampled_from([".", r"\C", *PERL]),
        st.sampled_from(UNICODE),
        st.sampled_from(ASSERTIONS),
        _classes(latin1),
        st.text("ab*.[", max_size=4).map(lambda text: rf"\Q{text}\E"),
        st.sampled_from(FLAGS).map(lambda flags: f"(?{flags})"),
    )


def patterns(*, latin1: bool = False, max_leaves: int = 8) -> st.SearchStrategy[str]:
    """Patterns over the whole syntax; nearly all are valid."""

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        group = st.sampled_from(["({})", "(?P<n>{})", "(?<é>{})", "(?i:{})", "(?s-i:{})", "(?mU:{})"])
        grouped = st.builds(lambda shape, text: shape.replace("{}", text), group, inner)
        counted = st.builds(
            lambda text, count, lazy: text + count + lazy,
            st.one_of(grouped, _classes(latin1), st.sampled_from(["a", "é", ".", r"\w"])),
            st.sampled_from(COUNTS),
            st.sampled_from(["", "", "?"]),
        )
        sequence = st.lists(inner, min_size=1, max_size=4).map("".join)
        either = st.lists(st.one_of(inner, st.just("")), min_size=2, max_size=3).map("|".join)
        return st.one_of(grouped, counted, sequence, sequence, either)

    return st.recursive(_atoms(latin1), extend, max_leaves=max_leaves)


def accepted(pattern: str, *, latin1: bool = False) -> bool:
    """Whether RE2 takes it."""
    try:
        re2.compile(pattern.encode("latin-1" if latin1 else "utf-8"), re2_options(latin1))
    except re2.error:
        return False
    return True


def usable(pattern: str, *, latin1: bool = False) -> bool:
    """Whether it can be searched for: RE2 takes it, and it can't match nothing."""
    if not accepted(pattern, latin1=latin1):
        return False
    try:
        compile_patterns([Regex(pattern, bytes=latin1)])
    except PatternError:
        return False
    return True


def usable_patterns(*, latin1: bool = False, max_leaves: int = 8) -> st.SearchStrategy[str]:
    """Patterns that RE2 accepts and that match at least one byte."""
    return patterns(latin1=latin1, max_leaves=max_leaves).filter(lambda text: usable(text, latin1=latin1))


GARBAGE = r"ab\()[]{}*+?|.^$:-,<>PQEpLNxzAdw0129imsU=!é#" + "\n\x00"


def garbage() -> st.SearchStrategy[str]:
    """Strings that are mostly not patterns, but look like some."""
    looks_like = st.text(GARBAGE, max_size=8), st.text(GARBAGE + "aaabb", max_size=20)
    return st.one_of(*looks_like, st.text(max_size=8))


@st.composite
def words(draw: st.DrawFn, tree: Node, budget: int = 6) -> bytes:
    """A word of a tree over bytes (assertions ignored)."""
    if isinstance(tree, ByteSet):
        spans = ranges_of(tree.mask)
        if not spans:
            return b""
        low, high = draw(st.sampled_from(spans))
        return bytes([draw(st.integers(low, high))])
    if isinstance(tree, Concat):
        return b"".join(draw(words(part, budget)) for part in tree.parts)
    if isinstance(tree, Alt):
        return draw(words(draw(st.sampled_from(tree.parts)), budget))
    if isinstance(tree, Repeat):
        most = tree.least + 2 if tree.most is None else min(tree.most, tree.least + 2)
        count = draw(st.integers(tree.least, most))
        return b"".join(draw(words(tree.inner, budget)) for _ in range(min(count, 8)))
    assert isinstance(tree, Assertion)
    return b""


NOISE = [
    b"", b"a", b"\n", b" ", b"x0", b"\xff", b"\xc3", b"\xe2\x84", b"\x80", "éé".encode(), b"\xc5\xbf",
    b"\x0b",
    b"\xed\xa0\x80", b"\xf4\xb0\x80\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf5", b"_", b"\r\n", b"bb",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn, tree: Node, pieces: int = 3) -> bytes:
    """Bytes biased to hold words of ``tree`` (over bytes), whole and mutated, between noise."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, pieces))):
        parts.append(draw(st.one_of(st.sampled_from(NOISE), st.binary(max_size=4))))
        parts.append(draw(words(tree)))
    parts.append(draw(st.sampled_from(NOISE)))
    text = bytearray(b"".join(parts))
    if text and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 2))):
            text[draw(st.integers(0, len(text) - 1))] = draw(st.sampled_from(b"a\n\x80\xffK \x0b"))
    return bytes(text)

"""Bounded trees spelled out: the words that they match, of byte sets (a plain byte is a set of one)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from uring_actors.ops.match.tree import Alt, Assertion, ByteSet, Concat, Node, Repeat

MOST_WORDS: Final = 192

Word = tuple[int, ...]
"""A byte set's mask for each place."""


def spelled(tree: Node) -> frozenset[Word] | None:
    """All words of a lowered tree, as if its assertions held everywhere; None where there are too many."""
    if isinstance(tree, ByteSet):
        return frozenset([(tree.mask,)]) if tree.mask else frozenset()
    if isinstance(tree, Assertion):
        return frozenset([()])
    if isinstance(tree, Alt):
        return _few(word for part in tree.parts for word in (spelled(part) or (None,)))
    if isinstance(tree, Concat):
        return _joined([spelled(part) for part in tree.parts])
    assert isinstance(tree, Repeat)
    inner = spelled(tree.inner)
    if tree.most is None or inner is None:
        return None
    result = tail = _joined([inner] * tree.least)
    for _ in range(tree.most - tree.least):
        tail = _joined([tail, inner])
        result = None if tail is None or result is None else _few([*result, *tail])
    return result


def shortest(words: Iterable[Word]) -> tuple[Word, ...]:
    """Without words that only lengthen another one's beginning: whoever holds them holds that one."""
    kept: list[Word] = []
    for word in sorted(words, key=len):
        if not any(word[: len(other)] == other for other in kept):
            kept.append(word)
    return tuple(sorted(kept))


def _few(words: Iterable[Word | None]) -> frozenset[Word] | None:
    found: set[Word] = set()
    for word in words:
        if word is None or len(found) > MOST_WORDS:
            return None
        found.add(word)
    return frozenset(found) if len(found) <= MOST_WORDS else None


def _joined(parts: Sequence[frozenset[Word] | None]) -> frozenset[Word] | None:
    words: frozenset[Word] = frozenset([()])
    for part in parts:
        if part is None or len(words) * len(part) > MOST_WORDS:
            return None
        words = frozenset(a + b for a in words for b in part)
    return words

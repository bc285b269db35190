"""From code points to bytes, and what can be said of an expression over bytes.

``lower`` spells a parsed tree out in bytes. Its words are a superset of what RE2 matches, also where text is
not valid UTF-8: RE2 compiles the range U+0080–U+10FFFF loosely (overlong forms after E0 and F0, anything
after F4), and may bring that range about by merging smaller ones, so the borders of those are loose here.
``lower(…, widen=True)`` gives a larger language that engines run faster; RE2 confirms what they report.

The rest are analyses of lowered trees: widths, newlines, what can be reported without the whole
(``ends_only``), necessary parts, and required literals.
Widths are in bytes. Recursive functions here expect trees no deeper than ``MOST_DEPTH``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from uring_actors.ops.match.tree import (
    EMPTY,
    Alt,
    Assert,
    Assertion,
    ByteSet,
    Chars,
    Concat,
    Node,
    Ranges,
    Repeat,
    alt,
    concat,
    fold,
    mask_of,
    ranges_of,
    repeat,
)

MOST_DEPTH = 100

NOTHING = ByteSet(0)
"""Matches no word at all."""

_ASCII = (1 << 128) - 1
_TRAIL = mask_of([(0x80, 0xBF)])
_NEWLINE = 1 << 0x0A
_SPACE = 1 << 0x20
_NARROW = 16
"""Sets of up to so many bytes tell something about a place in ordinary text; larger ones only in a row."""
_WEIGHTS = ((2, 1.0), (_NARROW, 0.5), (80, 0.125))
"""(set's size up to, what one such byte is worth): a letter in both cases, digits, letters and digits."""


# -- lowering


def lower(tree: Node, *, latin1: bool, widen: bool = False) -> Node:
    """The tree over bytes. No ``Chars`` is left in it."""

    def visit(node: Node, below: list[Node]) -> Node:
        if isinstance(node, Chars):
            return _bytes_of(node.ranges, latin1, widen)
        if isinstance(node, Concat):
            return concat(below)
        if isinstance(node, Alt):
            return alt(below)
        if isinstance(node, Repeat):
            if widen and isinstance(node.inner, Chars):
                return _widened_repeat(below[0], node.least, node.most)
            return repeat(below[0], node.least, node.most)
        return node

    return fold(tree, visit)


@lru_cache(maxsize=4096)
def _bytes_of(ranges: Ranges, latin1: bool, widen: bool) -> Node:
    if latin1:
        return ByteSet(mask_of(ranges))
    ascii_mask = mask_of((low, min(high, 0x7F)) for low, high in ranges if low < 0x80)
    sequences = _merged(s for low, high in ranges if high >= 0x80 for s in _sequences(max(low, 0x80), high))
    if widen and len(sequences) > 3:
        sequences = _by_length(sequences)
    branches: list[Node] = [ByteSet(ascii_mask)] if ascii_mask else []
    branches += [concat(map(ByteSet, sequence)) for sequence in sequences]
    return alt(branches) if branches else NOTHING


def _sequences(low: int, high: int) -> list[tuple[int, ...]]:
    """UTF-8 of the code points from ``low`` (at least U+0080) to ``high``: sequences of byte masks."""
    for first, last, width in ((0x80, 0x7FF, 2), (0x800, 0xFFFF, 3), (0x10000, 0x10FFFF, 4)):
        if low > last:
            continue
        if high > last:
            return _sequences(low, last) + _sequences(last + 1, high)
        # The loose borders (see the module's docstring).
        low = (0 if width > 2 else low) if low == first else low
        high = 0x13FFFF if high == 0x10FFFF else high
        return _same_width(low, high, width)
    return []


def _same_width(low: int, high: int, width: int) -> list[tuple[int, ...]]:
    """Split until every byte of the sequence is a range of its own."""
    for trail in range(1, width):
        mask = (1 << (6 * trail)) - 1
        if low & ~mask == high & ~mask:
            continue
        if low & mask:
            return _same_width(low, low | mask, width) + _same_width((low | mask) + 1, high, width)
        if high & mask != mask:
            return _same_width(low, (high & ~mask) - 1, width) + _same_width(high & ~mask, high, width)
    return [tuple(mask_of([pair]) for pair in zip(_encode(low, width), _encode(high, width), strict=True))]


def _encode(code: int, width: int) -> list[int]:
    """``code`` in ``width`` bytes, overlong or beyond U+10FFFF if need be."""
    lead = {2: 0xC0, 3: 0xE0, 4: 0xF0}[width]
    trail = [0x80 | (code >> (6 * i)) & 0x3F for i in range(width - 2, -1, -1)]
    return [lead | code >> (6 * (width - 1)), *trail]


def _merged(sequences: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Join sequences that differ at one place only."""
    found = list(dict.fromkeys(sequences))
    for place in range(4):
        by_rest: dict[tuple[int, ...], int] = {}
        for sequence in found:
            if place < len(sequence):
                rest = (*sequence[:place], 0, *sequence[place + 1 :])
                by_rest[rest] = by_rest.get(rest, 0) | sequence[place]
            else:
                by_rest[sequence] = by_rest.get(sequence, 0)
        found = [(*rest[:place], mask, *rest[place + 1 :]) if mask else rest for rest, mask in by_rest.items()]
    return found


def _by_length(sequences: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """One sequence per width: the leads used, then any trail bytes."""
    leads: dict[int, int] = {}
    for sequence in sequences:
        leads[len(sequence)] = leads.get(len(sequence), 0) | sequence[0]
    return [(lead, *[_TRAIL] * (width - 1)) for width, lead in leads.items()]


def _widened_repeat(inner: Node, least: int, most: int | None) -> Node:
    """A repeated character of several possible widths becomes one repeated set of bytes."""
    if not isinstance(inner, Alt):
        return repeat(inner, least, most)
    low, high = widths(inner)
    assert high is not None, "a character is at most four bytes"
    return repeat(ByteSet(alphabet(inner)), least * low, None if most is None else most * high)


def _any_bit(masks: list[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result


# -- plain properties


def widths(tree: Node) -> tuple[int, int | None]:
    """Least and most bytes of a word; most is None where there is no bound. ``NOTHING`` counts as a byte."""

    def visit(node: Node, below: list[tuple[int, int | None]]) -> tuple[int, int | None]:
        lows = [low for low, _ in below]
        highs = [high for _, high in below if high is not None]
        bounded = len(highs) == len(below)
        if isinstance(node, Concat):
            return sum(lows), sum(highs) if bounded else None
        if isinstance(node, Alt):
            return min(lows), max(highs) if bounded else None
        if isinstance(node, Repeat):
            return lows[0] * node.least, _times(below[0][1], node.most)
        return (0, 0) if isinstance(node, Assertion) else (1, 1)

    return fold(tree, visit)


def _times(width: int | None, count: int | None) -> int | None:
    if width == 0 or count == 0:
        return 0
    return None if width is None or count is None else width * count


def can_hold_newline(tree: Node) -> bool:
    """Whether a word may contain byte 0A. False is certain, True is not."""
    return fold(tree, lambda node, below: bool(node.mask & _NEWLINE) if isinstance(node, ByteSet) else any(below))


def alphabet(tree: Node) -> int:
    """The mask of all bytes that words may hold."""
    return fold(tree, lambda node, below: node.mask if isinstance(node, ByteSet) else _any_bit(below))


def selectivity(tree: Node) -> float:
    """How rare words are in text, in «literal bytes», by ``_WEIGHTS``; the least of alternatives.

    A set with a space in it counts half.
    """

    def visit(node: Node, below: list[float]) -> float:
        if isinstance(node, ByteSet):
            count = node.mask.bit_count()
            weight = next((weight for most, weight in _WEIGHTS if count <= most), 0.0)
            return weight / 2 if node.mask & _SPACE else weight
        if isinstance(node, Concat):
            return sum(below)
        if isinstance(node, Alt):
            return min(below)
        return below[0] * node.least if isinstance(node, Repeat) else 0.0

    return fold(tree, visit)


def literal_of(tree: Node) -> bytes | None:
    """The only word, where there is exactly one and no assertion."""
    parts = tree.parts if isinstance(tree, Concat) else (tree,)
    word = bytearray()
    for part in parts:
        if not isinstance(part, ByteSet) or part.mask.bit_count() != 1:
            return None
        word.append(part.mask.bit_length() - 1)
    return bytes(word) or None


# -- spelling


def spell(tree: Node) -> bytes:
    """The expression, in what RE2 (Latin-1) and Hyperscan (dot and newline play no part) both read alike.

    RE2 refuses counts beyond 1000, which only widened trees have.
    """

    def visit(node: Node, below: list[bytes]) -> bytes:
        if isinstance(node, ByteSet):
            return _spell_set(node.mask)
        if isinstance(node, Assertion):
            return node.what.value
        if isinstance(node, Concat):
            pairs = zip(node.parts, below, strict=True)
            return b"".join(b"(?:" + text + b")" if isinstance(part, Alt) else text for part, text in pairs)
        if isinstance(node, Alt):
            return b"|".join(below)
        assert isinstance(node, Repeat), "Chars must be lowered first"
        inner = below[0] if isinstance(node.inner, ByteSet) else b"(?:" + below[0] + b")"
        return inner + _spell_count(node.least, node.most)

    return fold(tree, visit)


def _spell_count(least: int, most: int | None) -> bytes:
    short = {(0, None): b"*", (1, None): b"+", (0, 1): b"?"}.get((least, most))
    if short is not None:
        return short
    if most is None:
        return b"{%d,}" % least
    return b"{%d}" % least if least == most else b"{%d,%d}" % (least, most)


def _spell_byte(byte: int) -> bytes:
    character = bytes([byte])
    return character if character.isalnum() and byte < 0x80 else b"\\x%02x" % byte


@lru_cache(maxsize=4096)
def _spell_set(mask: int) -> bytes:
    ranges = ranges_of(mask)
    if not ranges:
        return rb"[^\x00-\xff]"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _spell_byte(ranges[0][0])
    inside = b"".join(_spell_byte(low) + (b"-" + _spell_byte(high) if low < high else b"") for low, high in ranges)
    return b"[" + inside + b"]"


# -- what an engine is given


def drop_assertions(tree: Node) -> Node:
    """A superset without any assertion."""

    def visit(node: Node, below: list[Node]) -> Node:
        if isinstance(node, Assertion):
            return EMPTY
        return _rebuilt(node, below)

    return fold(tree, visit)


def _rebuilt(node: Node, below: list[Node]) -> Node:
    if isinstance(node, Concat):
        return concat(below)
    if isinstance(node, Alt):
        return alt(below)
    return repeat(below[0], node.least, node.most) if isinstance(node, Repeat) else node


_AT_FRONT = (Assert.BEGIN_TEXT, Assert.BEGIN_LINE)
_AT_BACK = (Assert.END_TEXT, Assert.END_LINE)


def harmless_assertions(tree: Node, front: bool = True, back: bool = True) -> Node:
    """Drop the assertions that Hyperscan rejects: anchors that are not outermost, repeated assertions.

    What stays is right at a block's borders in the superset sense: ``\\A`` and ``\\z`` hold at the borders of
    every block, and so at those of the file; line anchors and ``\\b`` see the real bytes, of which a block
    has at least one on each side of every match that it owes.
    """
    if isinstance(tree, Assertion):
        anchored = (tree.what in _AT_FRONT and not front) or (tree.what in _AT_BACK and not back)
        return EMPTY if anchored else tree
    if isinstance(tree, Concat):
        last = len(tree.parts) - 1
        return concat(
            harmless_assertions(part, front and place == 0, back and place == last)
            for place, part in enumerate(tree.parts)
        )
    if isinstance(tree, Alt):
        return alt(harmless_assertions(part, front, back) for part in tree.parts)
    if isinstance(tree, Repeat):
        once = tree.most == 1
        inner = harmless_assertions(tree.inner, front and once, back and once)
        return EMPTY if widths(inner)[1] == 0 else repeat(inner, tree.least, tree.most)
    return tree


def _skippable(tree: Node) -> bool:
    """Whether the empty word is among the words, without any assertion."""
    if isinstance(tree, Concat):
        return all(map(_skippable, tree.parts))
    if isinstance(tree, Alt):
        return any(map(_skippable, tree.parts))
    return isinstance(tree, Repeat) and (tree.least == 0 or _skippable(tree.inner))


def ends_only(tree: Node) -> Node:
    """An expression whose matches end wherever the tree's do: what is optional at the front is left out.

    (Ends of ``[a-z]{0,50}key`` are those of ``key``.) Nothing is left out behind an assertion.
    """
    if _skippable(tree):
        return EMPTY
    if isinstance(tree, Concat):
        for i, part in enumerate(tree.parts):
            rest = ends_only(part)
            if rest is not EMPTY:
                return concat([rest, *tree.parts[i + 1 :]])
        return EMPTY
    if isinstance(tree, Alt):
        return alt(map(ends_only, tree.parts))
    if isinstance(tree, Repeat):
        return ends_only(tree.inner) if tree.least == 1 else repeat(tree.inner, tree.least, tree.least)
    return tree


def starts_only(tree: Node) -> Node:
    """The mirror of ``ends_only``: an expression that matches wherever the tree does, from the same start."""
    if _skippable(tree):
        return EMPTY
    if isinstance(tree, Concat):
        for i in range(len(tree.parts) - 1, -1, -1):
            rest = starts_only(tree.parts[i])
            if rest is not EMPTY:
                return concat([*tree.parts[:i], rest])
        return EMPTY
    if isinstance(tree, Alt):
        return alt(map(starts_only, tree.parts))
    if isinstance(tree, Repeat):
        return starts_only(tree.inner) if tree.least == 1 else repeat(tree.inner, tree.least, tree.least)
    return tree


# -- necessary parts


def bounded_prefix(tree: Node, limit: int) -> Node:
    """A bounded expression, at most ``limit`` bytes wide, with which every match begins; maybe ``EMPTY``."""
    return starts_only(_prefix(tree, limit)[0])


def without_vague_tail(tree: Node) -> Node:
    """Cut where a tail says little: it costs an engine more, and reports many ends for one start.

    What goes is a last set of many bytes (Hyperscan spells it out into literals), and whatever follows
    a part of variable width without being worth a literal byte.
    """
    tree = starts_only(tree)
    if isinstance(tree, Alt):
        return alt(map(without_vague_tail, tree.parts))
    if not isinstance(tree, Concat) or tree is EMPTY:
        return tree
    parts = list(tree.parts)
    if isinstance(parts[-1], ByteSet) and parts[-1].mask.bit_count() > _NARROW:
        return without_vague_tail(concat(parts[:-1]))
    place = max((i for i, part in enumerate(parts[:-1]) if _varies(part)), default=-1)
    if place >= 0 and selectivity(concat(parts[place + 1 :])) < 1:
        return without_vague_tail(concat(parts[: place + 1]))
    return concat([*parts[:-1], without_vague_tail(parts[-1])])


def _varies(tree: Node) -> bool:
    least, most = widths(tree)
    return least != most


def _fits(tree: Node, limit: int) -> bool:
    most = widths(tree)[1]
    return most is not None and most <= limit


def _prefix(tree: Node, limit: int) -> tuple[Node, bool]:
    """The prefix, and whether it is all of ``tree``."""
    if _fits(tree, limit):
        return tree, True
    if isinstance(tree, Concat):
        taken: list[Node] = []
        for part in tree.parts:
            prefix, whole = _prefix(part, limit)
            taken.append(prefix)
            width = widths(prefix)[1]
            assert width is not None
            limit -= width
            if not whole:
                break
        return concat(taken), False
    if isinstance(tree, Alt):
        return alt(_prefix(part, limit)[0] for part in tree.parts), False
    if isinstance(tree, Repeat) and tree.least:
        width = widths(tree.inner)[1]
        if width is None:
            return _prefix(tree.inner, limit)[0], False
        count = min(tree.least, limit // width) if width else 0
        return repeat(tree.inner, count, count), False
    return EMPTY, False


def necessary_part(tree: Node, limit: int) -> Node:
    """The most selective bounded part found, at most ``limit`` bytes wide, that every match contains.

    ``EMPTY`` where there is none.
    """
    if _fits(tree, limit):
        return tree
    if isinstance(tree, Alt):
        return alt(necessary_part(part, limit) for part in tree.parts)
    if isinstance(tree, Repeat):
        if not tree.least:
            return EMPTY
        once = necessary_part(tree.inner, limit)
        width = widths(tree.inner)[1]
        count = min(tree.least, limit // width) if width else 0
        return _best([once, repeat(tree.inner, count, count)])
    if isinstance(tree, Concat):
        return _best(_runs(tree.parts, limit))
    return EMPTY


def _best(parts: list[Node]) -> Node:
    return max(parts, key=selectivity)


def _runs(parts: tuple[Node, ...], limit: int) -> list[Node]:
    """Bounded stretches of neighbouring parts. A repetition that does not fit ends one, and begins the next."""
    found: list[Node] = [EMPTY]
    run: list[Node] = []
    room = limit

    def finish() -> None:
        nonlocal run, room
        found.append(starts_only(ends_only(concat(run))))
        run, room = [], limit

    for part in parts:
        width = widths(part)[1]
        repeated = isinstance(part, Repeat) and part.least > 1
        if width is not None and width > room and not repeated:
            finish()
        if width is not None and width <= room:
            run.append(part)
            room -= width
            continue
        if isinstance(part, Repeat) and (inner := widths(part.inner)[1]):
            count = min(part.least, room // inner)
            run.append(repeat(part.inner, count, count))
            finish()
            count = min(part.least, limit // inner)
            run, room = [repeat(part.inner, count, count)], limit - count * inner
        else:
            finish()
            found.append(necessary_part(part, limit))
    finish()
    return found


# -- required literals


def required_literals(tree: Node, *, most: int = 64, longest: int = 64) -> frozenset[bytes] | None:
    """Byte strings of which every match contains at least one; None where there are no useful ones.

    At most ``most`` strings, each of at most ``longest`` bytes. Of several such sets, the one whose shortest
    string is longest.
    """
    found, _ = _literals(tree, most, longest)
    return found if found and all(found) else None


_Words = frozenset[bytes]
_Known = tuple[_Words | None, _Words | None]
"""Strings of which one is in every match; and all the words, where these are few and short."""

_NO_WORD: _Words = frozenset()
_EMPTY_WORD: _Words = frozenset([b""])


def _literals(tree: Node, most: int, longest: int) -> _Known:

    def visit(node: Node, below: list[_Known]) -> _Known:
        if isinstance(node, ByteSet):
            few = node.mask.bit_count() <= _NARROW
            words = frozenset(bytes([b]) for b in range(256) if node.mask >> b & 1) if few else None
            return words, words
        if isinstance(node, Concat):
            return _joined(below)
        if isinstance(node, Alt):
            return _either([required for required, _ in below]), _either([words for _, words in below])
        if isinstance(node, Repeat):
            required, words = below[0]
            if not node.least:
                return None, None
            if words is not None and node.least == node.most:
                return _joined([below[0]] * min(node.least, longest + 1))
            return required, None
        return _EMPTY_WORD, _EMPTY_WORD

    def _either(sets: list[_Words | None]) -> _Words | None:
        together: _Words = _NO_WORD
        for words in sets:
            if words is None:
                return None
            together |= words
        return together if len(together) <= most else None

    def _joined(pairs: list[_Known]) -> _Known:
        best: _Words | None = None
        current, exact = _EMPTY_WORD, True
        for required, words in pairs:
            product = None
            if words is not None and len(words) * len(current) <= most:
                product = frozenset(a + b for a in current for b in words)
                if max(map(len, product), default=0) > longest:
                    product = None
            if product is None:
                best, exact = _better(_better(best, current), required), False
                current = words if words is not None else _EMPTY_WORD
            else:
                current = product
        return _better(best, current), current if exact else None

    return fold(tree, visit)


def _better(one: _Words | None, other: _Words | None) -> _Words | None:
    def worth(words: _Words | None) -> tuple[float, int]:
        return (min(map(len, words), default=math.inf), -len(words)) if words is not None else (-1, 0)

    return max(one, other, key=worth)

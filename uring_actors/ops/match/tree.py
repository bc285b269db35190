"""Expression trees: the shape that parsing yields, and that every analysis walks.

One set of nodes serves two alphabets. The parser's trees hold ``Chars`` (sets of code points); lowered trees
hold ``ByteSet`` (sets of byte values) in their place. Everything else is common to both.

Invariants: nodes are immutable and come from the constructors ``concat``, ``alt`` and ``repeat``, which keep
them flat (no Concat directly in a Concat, no Alt directly in an Alt, no composite of one part). Greediness
and capture groups choose between matches, and no analysis here depends on the choice: they are kept for
``program.py`` alone (``syntax.parse_ways``).
A pattern may nest thousands of groups, so walks over untrusted trees use ``fold``, which does not recurse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, non-adjacent, both ends included."""

ALL_BYTES = (1 << 256) - 1


class Assert(Enum):
    """What must hold at a position; the value is how RE2 and Hyperscan both spell it."""

    BEGIN_TEXT = rb"\A"
    END_TEXT = rb"\z"
    BEGIN_LINE = rb"(?m:^)"
    END_LINE = rb"(?m:$)"
    WORD = rb"\b"
    NOT_WORD = rb"\B"


@dataclass(frozen=True, slots=True)
class Chars:
    """One code point out of ``ranges`` (none: matches nothing at all)."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class ByteSet:
    """One byte; bit ``b`` of ``mask`` says whether byte ``b`` is in the set."""

    mask: int


@dataclass(frozen=True, slots=True)
class Assertion:
    """Zero bytes, where ``what`` holds."""

    what: Assert


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts in order; no part at all is the empty word."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of at least two parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """``inner`` from ``least`` to ``most`` times; ``most`` None: without end."""

    inner: Node
    least: int
    most: int | None
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture group, from 1."""

    inner: Node
    number: int


Node = Chars | ByteSet | Assertion | Concat | Alt | Repeat | Capture

EMPTY = Concat(())
"""The empty word. There is only this one: ``is EMPTY`` is enough."""


def concat(parts: Iterable[Node]) -> Node:
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, Concat):
            flat.extend(part.parts)
        else:
            flat.append(part)
    if not flat:
        return EMPTY
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def alt(parts: Iterable[Node]) -> Node:
    """Neighbouring sets become one set, neighbouring empty words one."""
    flat: list[Node] = []
    for part in parts:
        for one in part.parts if isinstance(part, Alt) else (part,):
            last = flat[-1] if flat else None
            if isinstance(one, Chars) and isinstance(last, Chars):
                flat[-1] = Chars(union(last.ranges + one.ranges))
            elif isinstance(one, ByteSet) and isinstance(last, ByteSet):
                flat[-1] = ByteSet(last.mask | one.mask)
            elif one is not EMPTY or last is not EMPTY:
                flat.append(one)
    return flat[0] if len(flat) == 1 else Alt(tuple(flat))


def repeat(inner: Node, least: int, most: int | None, *, lazy: bool = False) -> Node:
    if most == 0 or inner is EMPTY:
        return EMPTY
    return inner if least == most == 1 else Repeat(inner, least, most, lazy)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges, highest: int) -> Ranges:
    """What is not in ``ranges``, from 0 to ``highest``."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= highest:
        gaps.append((start, highest))
    return tuple(gaps)


def mask_of(ranges: Iterable[tuple[int, int]]) -> int:
    """The ``ByteSet`` mask of ranges of byte values."""
    mask = 0
    for low, high in ranges:
        mask |= (1 << (high + 1)) - (1 << low)
    return mask


def ranges_of(mask: int) -> Ranges:
    """The inverse of ``mask_of``."""
    found: list[tuple[int, int]] = []
    position = 0
    while mask:
        zeros = (mask & -mask).bit_length() - 1
        position, mask = position + zeros, mask >> zeros
        ones = (~mask & (mask + 1)).bit_length() - 1
        found.append((position, position + ones - 1))
        position, mask = position + ones, mask >> ones
    return tuple(found)


T = TypeVar("T")


def children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Concat | Alt):
        return node.parts
    return (node.inner,) if isinstance(node, Repeat | Capture) else ()


def fold(root: Node, visit: Callable[[Node, list[T]], T]) -> T:
    """``visit(node, its children's results)`` from the leaves up; the root's result."""
    results: list[T] = []
    todo: list[tuple[Node, bool]] = [(root, False)]
    while todo:
        node, ready = todo.pop()
        below = children(node)
        if ready or not below:
            start = len(results) - len(below)
            value = visit(node, results[start:])
            del results[start:]
            results.append(value)
        else:
            todo.append((node, True))
            todo.extend((child, False) for child in reversed(below))
    return results[0]


def depth(root: Node) -> int:
    """How many composites enclose the innermost node."""
    return fold(root, lambda _node, below: 1 + max(below, default=-1))

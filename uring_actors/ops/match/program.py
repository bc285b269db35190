"""Patterns as programs for ``machine.py``, which tries one start after the other in a compiled loop.

RE2 decides what a pattern matches, and a call of it takes a microsecond or two. A program says the same of plain
cases, hundreds of them without Python: it goes through a pattern's ways in RE2's order of preference, back to the
last choice wherever one fails, and the first way through is the match. Where that is not sure to be RE2's answer, or
would take long, it says ASK, and RE2 is asked:

- a byte beyond ASCII where a pattern of characters has more than ASCII (RE2 reads UTF-8, valid or not, its own way);
- the end of what is in sight, where the file goes on;
- more steps than BUDGET, or choices than the stack holds.

No program is made of patterns with repetitions of what may be empty (what one more round of nothing means is RE2's
own), with the flag U, with ``\\C`` in text of characters, or that are too large.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uring_actors.ops.match.lower import MOST_DEPTH
from uring_actors.ops.match.syntax import NoWays, parse_ways
from uring_actors.ops.match.tree import (
    Alt,
    Assert,
    Assertion,
    ByteSet,
    Capture,
    Chars,
    Concat,
    Node,
    Ranges,
    Repeat,
    depth,
    fold,
)

# An instruction is four 32-bit words: the operation and what it works on.
OP_BYTE: Final = 0  # set: one byte of it
OP_RUN: Final = 1  # set, least, most: as many bytes of it as there are, then fewer
OP_LAZY_RUN: Final = 2  # set, least, most: as few as will do, then more
OP_SPLIT: Final = 3  # preferred, other: places in the code
OP_JUMP: Final = 4  # place
OP_SAVE: Final = 5  # number: 2k where group k begins, 2k + 1 where it ends
OP_ASSERT: Final = 6  # ASSERTIONS' place of what must hold
OP_PEEK: Final = 7  # set: the next byte may be of it
OP_MATCH: Final = 8
INSTRUCTION_BYTES: Final = 16

# What a set says of a byte.
OUT: Final = 0
IN: Final = 1
BEYOND: Final = 2  # it may be part of a character that is in

FIRST: Final = 0
"""The set of bytes that matches begin with."""

ASSERTIONS: Final = (
    Assert.BEGIN_TEXT,
    Assert.END_TEXT,
    Assert.BEGIN_LINE,
    Assert.END_LINE,
    Assert.WORD,
    Assert.NOT_WORD,
)

_UNLIMITED: Final = (1 << 31) - 1
_MOST_INSTRUCTIONS: Final = 1 << 12


class Program:
    """``code``: instructions (rows of 4 words). ``sets``: (n, 256), FIRST among them.

    ``front`` (a set, or -1) and ``front_most`` are of ``plan.Lead``: up to so many of its bytes may stand before.
    """

    def __init__(self, code: NDArray[np.int32], sets: NDArray[np.uint8], groups: int, front: int, most: int) -> None:
        self.code = code
        self.sets = sets
        self.groups = groups
        self.front = front
        self.front_most = most
        self.addresses: tuple[int, int] = code.ctypes.data, sets.ctypes.data


@lru_cache(maxsize=1 << 12)
def program_of(source: bytes, *, latin1: bool, front: bytes | None = None) -> Program | None:
    """The program of a pattern that RE2 takes; None where there is none. ``front``: ``plan.Lead.front``."""
    encoding = "latin-1" if latin1 else "utf-8"
    try:
        tree, groups = parse_ways(source.decode(encoding), latin1=latin1)
        maker = _Maker(latin1)
        maker.make(tree)
        place, most = -1, 0
        if front is not None:
            row, _ = parse_ways(front.decode(encoding), latin1=latin1)
            if not isinstance(row, Repeat) or not isinstance(row.inner, Chars) or row.most is None:
                raise _Unfit
            place, most = maker.set_of(row.inner.ranges), row.most
    except (_Unfit, NoWays):
        return None
    return Program(np.array(maker.code, np.int32), np.array(maker.sets, np.uint8), groups, place, most)


class _Unfit(Exception):
    """No program is made of this."""


class _Maker:
    def __init__(self, latin1: bool) -> None:
        self.code: list[tuple[int, int, int, int]] = []
        self.sets: list[NDArray[np.uint8]] = [np.zeros(256, np.uint8)]
        self._latin1 = latin1
        self._places: dict[Ranges, int] = {}

    def make(self, tree: Node) -> None:
        if depth(tree) > MOST_DEPTH:
            raise _Unfit
        self._emit(tree)
        self._add(OP_MATCH)
        self.sets[FIRST] = self._together(_first(tree)[0])

    def _together(self, classes: Iterable[Ranges]) -> NDArray[np.uint8]:
        """What a set says of a byte that may be of any of the classes."""
        tables = [self.sets[self.set_of(ranges)] for ranges in classes]
        return np.maximum.reduce([np.zeros(256, np.uint8), *tables])

    def set_of(self, ranges: Ranges) -> int:
        place = self._places.get(ranges)
        if place is None:
            place = self._places[ranges] = len(self.sets)
            table = np.zeros(256, np.uint8)
            for low, high in ranges:
                table[low : high + 1] = IN
            if not self._latin1:
                table[0x80:] = BEYOND if ranges and ranges[-1][1] >= 0x80 else OUT
            self.sets.append(table)
        return place

    def _add(self, operation: int, a: int = 0, b: int = 0, c: int = 0) -> int:
        if len(self.code) == _MOST_INSTRUCTIONS:
            raise _Unfit
        self.code.append((operation, a, b, c))
        return len(self.code) - 1

    def _emit(self, node: Node) -> None:
        if isinstance(node, Chars):
            self._add(OP_BYTE, self.set_of(node.ranges))
        elif isinstance(node, Assertion):
            self._add(OP_ASSERT, ASSERTIONS.index(node.what))
        elif isinstance(node, Concat):
            for part in node.parts:
                self._emit(part)
        elif isinstance(node, Alt):
            self._emit_alt(node)
        elif isinstance(node, Capture):
            self._add(OP_SAVE, 2 * node.number)
            self._emit(node.inner)
            self._add(OP_SAVE, 2 * node.number + 1)
        elif isinstance(node, Repeat):
            self._emit_repeat(node)
        else:
            raise _Unfit

    def _emit_alt(self, node: Alt) -> None:
        classes, empty = _first(node)
        if not empty:  # most places are none for any of the ways: that is seen at once
            self.sets.append(self._together(classes))
            self._add(OP_PEEK, len(self.sets) - 1)
        jumps = []
        for part in node.parts[:-1]:
            split = self._add(OP_SPLIT)
            self._emit(part)
            jumps.append(self._add(OP_JUMP))
            self.code[split] = (OP_SPLIT, split + 1, len(self.code), 0)
        self._emit(node.parts[-1])
        for jump in jumps:
            self.code[jump] = (OP_JUMP, len(self.code), 0, 0)

    def _emit_repeat(self, node: Repeat) -> None:
        most = _UNLIMITED if node.most is None else node.most
        if isinstance(node.inner, Chars):
            operation = OP_LAZY_RUN if node.lazy else OP_RUN
            self._add(operation, self.set_of(node.inner.ranges), node.least, most)
            return
        if _first(node.inner)[1]:
            raise _Unfit
        for _ in range(node.least):
            self._emit(node.inner)
        splits = []
        for _ in range(1 if node.most is None else node.most - node.least):
            splits.append(self._add(OP_SPLIT))
            self._emit(node.inner)
        if node.most is None:
            self._add(OP_JUMP, splits[0])
        for split in splits:
            more, enough = split + 1, len(self.code)
            self.code[split] = (OP_SPLIT, enough, more, 0) if node.lazy else (OP_SPLIT, more, enough, 0)


_First = tuple[frozenset[Ranges], bool]


def _first(tree: Node) -> _First:
    """Classes of which one is what a word begins with; and whether the empty word may be among the words."""

    def visit(node: Node, below: list[_First]) -> _First:
        if isinstance(node, Chars):
            return frozenset([node.ranges]), False
        if isinstance(node, Alt):
            return frozenset().union(*(found for found, _ in below)), any(empty for _, empty in below)
        if isinstance(node, Concat):
            found: frozenset[Ranges] = frozenset()
            for some, empty in below:
                found |= some
                if not empty:
                    return found, False
            return found, True
        if isinstance(node, Repeat):
            return below[0][0], node.least == 0 or below[0][1]
        if isinstance(node, Capture):
            return below[0]
        if isinstance(node, ByteSet):
            raise _Unfit
        return frozenset(), True  # an assertion

    return fold(tree, visit)

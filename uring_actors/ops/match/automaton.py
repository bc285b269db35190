"""Byte automata in tables: what the CUDA kernel's MATCH runs.

``build`` makes deterministic automata of all parts (``parts.py``) together, which report where a word ends.

An automaton's state depends on the last ``depth - 1`` bytes alone, since no word is longer than ``depth``. So a text
can be cut anywhere and searched by a thousand threads: each warms up on the bytes before its piece.

``Automata`` holds these arrays (``search`` walks them on the CPU; ``kernel.cu`` does the same):

    classes  u8 [groups, 256]   byte → class, for each automaton
    next     u32 [states << shift]  (state << shift) + class → the same of the next state, ACCEPTS set where words end
    first    u32 [states + 1]   where a state's words begin in ``accepts``
    accepts  u32                pattern indices
    roots    u32 [groups]       (state << shift) of each automaton's start
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Final

import numpy as np

from uring_actors.hot import hot
from uring_actors.ops.match.newlines import Bytes, as_bytes
from uring_actors.ops.match.parts import Part
from uring_actors.ops.match.spelled import Word

MOST_GROUPS: Final = 8
TABLE_BYTES: Final = 64 << 20
ACCEPTS: Final = 1 << 31
STATE_MASK: Final = ACCEPTS - 1

_MOST_SPELLED = 16
"""A word of small sets is spelled out into at most so many plain words."""
_SUBSET_STATES = 8192
"""States of one automaton that is made by subset construction."""
_SHORT = 8
"""Up to so many places of one set go with other words; longer runs have an automaton of their own."""
_CASE = 0x20


@dataclass(frozen=True, slots=True, eq=False)
class Automata:
    """See the module's page. ``depth``: bytes of the longest word."""

    classes: np.ndarray[Any, np.dtype[np.uint8]]
    next: np.ndarray[Any, np.dtype[np.uint32]]
    first: np.ndarray[Any, np.dtype[np.uint32]]
    accepts: np.ndarray[Any, np.dtype[np.uint32]]
    roots: np.ndarray[Any, np.dtype[np.uint32]]
    shift: int
    depth: int

    @property
    def groups(self) -> int:
        return len(self.roots)

    @property
    def size(self) -> int:
        """Bytes of all tables."""
        return self.classes.nbytes + self.next.nbytes + self.first.nbytes + self.accepts.nbytes


# ── automata ─────────────────────────────────────────────────────────────────────────────────────────────────


class TooLarge(Exception):
    """The parts need more than ``TABLE_BYTES`` or ``MOST_GROUPS``."""


@dataclass(slots=True)
class _Group:
    """One automaton: rows of next states by class, and the words that end in each."""

    classes: np.ndarray[Any, np.dtype[np.uint8]]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    accepts: list[tuple[int, ...]]


def build(parts: Sequence[Part]) -> Automata:
    """Automata that together report every word of every part. Raises TooLarge."""
    plain: list[tuple[bytes, int]] = []
    folded: list[tuple[bytes, int]] = []
    runs: list[tuple[Word, int]] = []
    others: list[tuple[Word, int]] = []
    for part in parts:
        for word in part.words:
            if spelled := _spell_out(word):
                plain += [(text, part.pattern) for text in spelled]
            elif (text := _folded(word)) is not None:
                folded.append((text, part.pattern))
            elif len(word) > _SHORT and len(set(word)) == 1:
                runs.append((word, part.pattern))
            else:
                others.append((word, part.pattern))
    groups = [_trie(plain, fold=False)] if plain else []
    if folded:
        groups.append(_trie(folded, fold=True))
    # How far a run has got says nothing of the others: beside them it would multiply their states.
    groups += _subsets(runs) + _subsets(others)
    if len(groups) > MOST_GROUPS:
        raise TooLarge(f"{len(groups)} automata, and {MOST_GROUPS} fit")
    longest = max((len(word) for part in parts for word in part.words), default=1)
    return _joined_tables(groups, longest)


def _spell_out(word: Word) -> list[bytes]:
    """The plain words that the sets of ``word`` make; none where there are too many."""
    count = 1
    for mask in word:
        count *= mask.bit_count()
        if count > _MOST_SPELLED:
            return []
    return [bytes(letters) for letters in product(*(_bytes_in(mask) for mask in word))]


@lru_cache(maxsize=4096)
def _bytes_in(mask: int) -> tuple[int, ...]:
    return tuple(byte for byte in range(256) if mask >> byte & 1)


def _folded(word: Word) -> bytes | None:
    """The word in lower case, where every set is one byte or one letter's two cases (a plain letter then stands for
    both: more is reported, nothing is lost)."""
    text = bytearray()
    for mask in word:
        letters = _bytes_in(mask)
        lower = letters[-1]
        pair = len(letters) == 2 and letters[0] == lower - _CASE and chr(lower).isalpha() and lower < 0x80
        if len(letters) != 1 and not pair:
            return None
        text.append(_lower(lower))
    return bytes(text)


def _lower(byte: int) -> int:
    return byte + _CASE if 0x41 <= byte <= 0x5A else byte


def _classes(symbols: Iterable[int], fold: bool) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """A class for each of the bytes, 0 for all others; and how many classes."""
    classes = np.zeros(256, np.uint8)
    used = sorted(set(symbols))
    # With all 256 in use the highest shares class 0, which then is no other byte's.
    for number, byte in enumerate(used[:255], 1):
        classes[byte] = number
    if fold:
        for byte in range(0x41, 0x5B):
            classes[byte] = classes[byte + _CASE]
    return classes, min(len(used), 255) + 1


def _trie(words: Sequence[tuple[bytes, int]], *, fold: bool) -> _Group:
    """Aho–Corasick's automaton with all its failure links followed beforehand."""
    classes, width = _classes((byte for text, _ in words for byte in text), fold)
    children: list[dict[int, int]] = [{}]
    accepts: list[set[int]] = [set()]
    of = classes.tolist()
    for text, pattern in words:
        state = 0
        for byte in text:
            symbol = of[byte]
            following = children[state].get(symbol)
            if following is None:
                following = children[state][symbol] = len(children)
                children.append({})
                accepts.append(set())
            state = following
        accepts[state].add(pattern)
    rows = np.zeros((len(children), width), np.int64)
    fallback = [0] * len(children)
    order = [0]
    for state in order:
        if state:
            rows[state] = rows[fallback[state]]
            accepts[state] |= accepts[fallback[state]]
        for symbol, child in children[state].items():
            fallback[child] = int(rows[state, symbol]) if state else 0
            rows[state, symbol] = child
            order.append(child)
    return _Group(classes, rows, [tuple(sorted(found)) for found in accepts])


def _subsets(words: Sequence[tuple[Word, int]]) -> list[_Group]:
    """Automata for words of sets, as few as their states allow."""
    groups: list[_Group] = []
    pending = list(words)
    while pending:
        count = len(pending)
        while (group := _subset(pending[:count])) is None:
            if count == 1:
                raise TooLarge("one word of byte sets alone takes too many states")
            count = max(1, count // 2)
        groups.append(group)
        pending = pending[count:]
        if len(groups) > MOST_GROUPS:
            raise TooLarge(f"more than {MOST_GROUPS} automata of byte sets")
    return groups


def _subset(words: Sequence[tuple[Word, int]]) -> _Group | None:
    """Subset construction: a state is the set of places that a word may have got to, one bit each.

    None beyond ``_SUBSET_STATES``.
    """
    begin = 0
    places: list[int] = []
    ends: dict[int, int] = {}
    for word, pattern in words:
        begin |= 1 << len(places)
        places += word
        ends[1 << (len(places) - 1)] = pattern
    last = sum(ends)
    table = [0] * 256
    for place, mask in enumerate(places):
        for byte in _bytes_in(mask):
            table[byte] |= 1 << place
    members = sorted(set(table))
    classes = np.array([members.index(bits) for bits in table], np.uint8)
    numbers = {0: 0}
    states = [0]
    rows: list[list[int]] = []
    for state in states:
        possible = (state & ~last) << 1 | begin
        row = []
        for bits in members:
            following = possible & bits
            number = numbers.get(following)
            if number is None:
                number = numbers[following] = len(states)
                states.append(following)
            row.append(number)
        rows.append(row)
        if len(states) > _SUBSET_STATES:
            return None
    accepts = [tuple(sorted({ends[bit] for bit in _bits(state & last)})) for state in states]
    return _Group(classes, np.array(rows, np.int64), accepts)


def _bits(number: int) -> Iterable[int]:
    while number:
        bit = number & -number
        yield bit
        number ^= bit


def _joined_tables(groups: Sequence[_Group], longest: int) -> Automata:
    width = max((group.rows.shape[1] for group in groups), default=1)
    shift = max(0, width - 1).bit_length()
    states = sum(len(group.rows) for group in groups)
    if (states << shift) * 4 > TABLE_BYTES:
        raise TooLarge(
            f"the tables take {(states << shift) * 4 >> 20} MiB, and {TABLE_BYTES >> 20} MiB are meant for them"
        )
    table = np.zeros((states, 1 << shift), np.uint32)
    accepts: list[tuple[int, ...]] = []
    roots = []
    for group in groups:
        base = len(accepts)
        roots.append(base << shift)
        accepts += group.accepts
        ends = np.array([bool(found) for found in group.accepts])
        rows = ((group.rows + base) << shift).astype(np.uint32)
        rows[ends[group.rows]] |= np.uint32(ACCEPTS)
        table[base : base + len(rows), : rows.shape[1]] = rows
    first = np.zeros(states + 1, np.uint32)
    np.cumsum([len(found) for found in accepts], out=first[1:])
    return Automata(
        classes=np.array([group.classes for group in groups], np.uint8).reshape(-1, 256),
        next=table.reshape(-1),
        first=first,
        accepts=np.array([pattern for found in accepts for pattern in found], np.uint32),
        roots=np.array(roots, np.uint32),
        shift=shift,
        depth=longest,
    )


# ── the same search on the CPU ───────────────────────────────────────────────────────────────────────────────


@hot
def _walk(text: Bytes, classes: Bytes, table: Any, first: Any, accepts: Any, root: Any, shift: int, out: Any) -> int:
    """Write (pattern, end) of every word's end in ``text``, as far as ``out`` has room; how many there are."""
    found = 0
    state = np.int64(root)
    for i in range(text.size):
        entry = np.int64(table[state + np.int64(classes[text[i]])])
        state = entry & STATE_MASK
        if entry & ACCEPTS:
            row = state >> shift
            for k in range(np.int64(first[row]), np.int64(first[row + 1])):
                if found < out.shape[0]:
                    out[found, 0] = accepts[k]
                    out[found, 1] = i + 1
                found += 1
    return found


def search(automata: Automata, text: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(pattern, end) of every word's end in ``text``, one row each."""
    data = as_bytes(text) if len(text) else np.zeros(0, np.uint8)
    data.flags.writeable = False
    found = []
    for group in range(automata.groups):
        out = np.empty((64, 2), np.int64)
        while True:
            count = _walk(
                data,
                automata.classes[group],
                automata.next,
                automata.first,
                automata.accepts,
                int(automata.roots[group]),
                automata.shift,
                out,
            )
            if count <= len(out):
                break
            out = np.empty((count, 2), np.int64)
        found.append(out[:count])
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)

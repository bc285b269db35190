"""Thousands of fixed words, found by one hash of a few bytes at every other place.

Hyperscan is made for some thousand literals at most: ten thousand make it six times as slow. Here a word of m bytes
or more (m: the shortest word's length) covers, wherever it stands, a stretch of ``gram`` bytes that begins at a
multiple of ``stride`` (gram + stride - 1 <= m). So for each of its ``stride`` possible phases one such stretch of the
word is entered into a table: the one that the fewest words share. The search looks only at multiples of the stride,
first into a filter that fits the cache, and compares whole words where an entry has the same gram. Every place of a
word has one phase and so one entry: it is reported once.

``table`` makes a table of words and ``WordTable.address`` is what compiled loops get: TABLE_* words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from uring_actors.arena.atomics import load8, load32, load64
from uring_actors.hot import hot
from uring_actors.megakernel.hits import add_hit

SHORTEST: Final = 5
"""Bytes of the shortest word that a table takes."""
_MOST_STRIDE: Final = 4
_MOST_GRAM: Final = 8
_MULTIPLIER: Final = 0x1E3779B97F4A7C15  # odd, and positive as an int64; products wrap

TABLE_STRIDE: Final = 0
TABLE_GRAM: Final = 8  # the stretch's bytes …
TABLE_MASK: Final = 16  # … and the mask that keeps them of eight
TABLE_FILTER: Final = 24  # address of u64: a gram has one of them, and two of its bits
TABLE_FILTERS: Final = 32  # how many there are, as bits of the hash
TABLE_STARTS: Final = 40  # address of u32: where a bucket's entries begin; the next one's is where they end
TABLE_BUCKETS: Final = 48  # as bits of the hash
TABLE_ENTRIES: Final = 56  # address of ENTRY_*, by bucket
TABLE_TEXT: Final = 64  # address of all words, joined
TABLE_WORDS: Final = 9

ENTRY_GRAM: Final = 0  # i64
ENTRY_AT: Final = 8  # u32: where the word begins in TABLE_TEXT
ENTRY_LENGTH: Final = 12
ENTRY_PLACE: Final = 16  # where in the word the stretch is
ENTRY_PATTERN: Final = 20
_ENTRY = np.dtype(
    [("gram", "<i8"), ("at", "<u4"), ("length", "<u4"), ("place", "<u4"), ("pattern", "<u4")], align=False
)
_ENTRY_BYTES: Final = _ENTRY.itemsize
# Where in the product the numbers are taken from: filter, its two bits, bucket.
_FILTER, _ONE, _OTHER, _BUCKET = 20, 44, 50, 32

_BLOCK: Final = 16

Array = np.ndarray[Any, np.dtype[Any]]


@intrinsic  # type: ignore[untyped-decorator]
def _load_any(typingctx: Any, address: Any) -> Any:
    """The 64-bit word at ``address``, wherever that is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        return builder.load(builder.inttoptr(args[0], word.as_pointer()), align=1)

    return types.int64(types.int64), codegen


@hot
def _same(one: int, other: int, length: int) -> bool:
    i = 0
    while i < length and load8(one + i) == load8(other + i):
        i += 1
    return i == length


@hot
def _report(table: int, gram: int, product: int, text: int, length: int, at: int, context: int) -> None:
    """Every word that has ``gram`` at ``text + at``."""
    bucket = (product >> _BUCKET) & ((1 << load64(table + TABLE_BUCKETS)) - 1)
    starts = load64(table + TABLE_STARTS) + 4 * bucket
    entries = load64(table + TABLE_ENTRIES)
    for k in range(load32(starts), load32(starts + 4)):
        entry = entries + k * _ENTRY_BYTES
        if load64(entry + ENTRY_GRAM) != gram:
            continue
        start = at - load32(entry + ENTRY_PLACE)
        size = load32(entry + ENTRY_LENGTH)
        word = load64(table + TABLE_TEXT) + load32(entry + ENTRY_AT)
        if start >= 0 and start + size <= length and _same(text + start, word, size):
            add_hit(context, load32(entry + ENTRY_PATTERN), start + size)


@hot
def search_words(table: int, text: int, length: int, context: int) -> None:
    """Report every place of every word in ``length`` bytes at ``text`` to ``add_hit``."""
    stride, mask = load64(table + TABLE_STRIDE), load64(table + TABLE_MASK)
    filters, low = load64(table + TABLE_FILTER), ((1 << load64(table + TABLE_FILTERS)) - 1) << 3
    at = 0
    while at <= length - 8 - (_BLOCK - 1) * stride:
        seen = 0
        for k in range(_BLOCK):  # without a branch, so that it becomes a loop over vectors
            product = (_load_any(text + at + k * stride) & mask) * _MULTIPLIER
            bits = load64(filters + ((product >> (_FILTER - 3)) & low))
            seen |= (bits >> ((product >> _ONE) & 63)) & (bits >> ((product >> _OTHER) & 63))
        if seen & 1:
            for k in range(_BLOCK):
                here = at + k * stride
                gram = _load_any(text + here) & mask
                product = gram * _MULTIPLIER
                bits = load64(filters + ((product >> (_FILTER - 3)) & low))
                if (bits >> ((product >> _ONE) & 63)) & (bits >> ((product >> _OTHER) & 63)) & 1:
                    _report(table, gram, product, text, length, here, context)
        at += _BLOCK * stride
    while at <= length - load64(table + TABLE_GRAM):  # eight bytes might reach behind the text
        gram = 0
        for i in range(load64(table + TABLE_GRAM)):
            gram |= load8(text + at + i) << (8 * i)
        _report(table, gram, gram * _MULTIPLIER, text, length, at, context)
        at += stride


class WordTable:
    """A table of words, in memory that lives as long as this object."""

    def __init__(self, words: Sequence[bytes], patterns: Sequence[int]) -> None:
        """At least one word; none shorter than SHORTEST bytes. ``patterns``: what each is reported as."""
        least = min(map(len, words))
        assert least >= SHORTEST
        stride = min(_MOST_STRIDE, max(1, least - SHORTEST + (least == SHORTEST + 1)))
        gram = min(_MOST_GRAM, least - stride + 1)
        self._text = np.frombuffer(b"".join(words), np.uint8)
        entries = _entries(self._text, np.array([len(word) for word in words]), np.array(patterns), stride, gram)
        filters = min(18, max(9, (len(entries) // 2).bit_length()))  # 32 to 64 bits an entry
        buckets = min(24, max(4, (2 * len(entries) - 1).bit_length()))
        products = entries["gram"].astype(np.uint64) * np.uint64(_MULTIPLIER)
        self._filter = np.zeros(1 << filters, np.uint64)
        bits = [np.uint64(1) << _part(products, shift, 6).astype(np.uint64) for shift in (_ONE, _OTHER)]
        np.bitwise_or.at(self._filter, _part(products, _FILTER, filters), bits[0] | bits[1])
        bucket = _part(products, _BUCKET, buckets)
        self._entries = entries[np.argsort(bucket, kind="stable")]
        self._starts = np.zeros((1 << buckets) + 1, np.uint32)
        np.cumsum(np.bincount(bucket, minlength=1 << buckets), out=self._starts[1:])
        self._table = np.zeros(TABLE_WORDS, np.int64)
        values = {
            TABLE_STRIDE: stride,
            TABLE_GRAM: gram,
            TABLE_MASK: -1 if gram == 8 else (1 << (8 * gram)) - 1,
            TABLE_FILTER: self._filter.ctypes.data,
            TABLE_FILTERS: filters,
            TABLE_STARTS: self._starts.ctypes.data,
            TABLE_BUCKETS: buckets,
            TABLE_ENTRIES: self._entries.ctypes.data,
            TABLE_TEXT: self._text.ctypes.data,
        }
        for offset, value in values.items():
            self._table[offset // 8] = value
        self.address: int = self._table.ctypes.data

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return sum(part.nbytes for part in (self._text, self._filter, self._entries, self._starts, self._table))


def _part(products: Array, shift: int, bits: int) -> Array:
    return ((products >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)


def _entries(text: Array, lengths: Array, patterns: Array, stride: int, gram: int) -> Array:
    """For each word and phase, the stretch that is rarest among all words' (of equals the last)."""
    begins = np.cumsum(lengths) - lengths
    counts = lengths - gram + 1  # stretches of each word
    word = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    at = begins[word] + place
    grams = np.zeros(len(at), np.uint64)
    for i in range(gram):
        grams |= text[at + i].astype(np.uint64) << np.uint64(8 * i)
    _, inverse, often = np.unique(grams, return_inverse=True, return_counts=True)
    phase = place % stride
    order = np.lexsort((-place, often[inverse.reshape(-1)], phase, word))
    key = word[order] * stride + phase[order]
    chosen = order[np.flatnonzero(np.diff(key, prepend=-1))]
    entries = np.empty(len(chosen), _ENTRY)
    entries["gram"] = grams[chosen].view(np.int64)
    entries["at"] = begins[word[chosen]]
    entries["length"] = lengths[word[chosen]]
    entries["place"] = place[chosen]
    entries["pattern"] = patterns[word[chosen]]
    return entries

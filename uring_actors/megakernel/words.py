"""Thousands of fixed words, found by one hash of a few bytes at every other place.

Hyperscan is made for some thousand literals at most: ten thousand make it six times as slow. Here a word of m bytes
or more (m: the shortest word's length) covers, wherever it stands, a stretch of ``gram`` bytes that begins at a
multiple of ``stride`` (gram + stride - 1 <= m). So for each of its ``stride`` possible phases one such stretch of the
word is entered into a table: the one that the fewest words share. The search looks only at multiples of the stride,
first into a filter that fits the cache, and compares whole words where an entry has the same gram. Every place of a
word has one phase and so one entry: it is reported once.

A gram is 5 to 8 bytes, and the filter's hash is made of its first four and its last four: so sixteen grams, four
bytes apart, are two plain loads of 64 bytes, and one gather looks all of them up. That is why strides are 1, 2 or 4.

``table`` makes a table of words and ``WordTable.address`` is what compiled loops get: TABLE_* words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from uring_actors.arena.atomics import load8, load32, load64
from uring_actors.hot import hot, intrinsic
from uring_actors.megakernel.hits import add_hit

SHORTEST: Final = 5
"""Bytes of the shortest word that a table takes."""
_LEAST_FILTERS, _CACHED_FILTERS, _MOST_FILTERS = 9, 17, 19
"""Words of the filter, as bits: two to four an entry while they are at most 512 KiB, then one to two."""
_LEAST_GRAM: Final = 5
_MOST_GRAM: Final = 8
_MULTIPLIER: Final = 0x1E3779B97F4A7C15  # odd, and positive as an int64; products wrap
_BUCKET: Final = 32  # where in the product a bucket's number begins

TABLE_STRIDE: Final = 0
TABLE_GRAM: Final = 8  # the stretch's bytes …
TABLE_MASK: Final = 16  # … and the mask that keeps them of eight
TABLE_FILTER: Final = 24  # address of u32: a gram has one of them, and two of its bits
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

# The filter's hash, in 32 bits; Python's ``_filter_hashes`` says the same as the vectors of ``_likely``.
_HEAD: Final = 0x9E3779B1
_TAIL: Final = 0x85EBCA77
_MIX: Final = 0xC2B2AE3D
_FOLD: Final = 15
_LANES: Final = 16
_SPAN: Final = 4 * _LANES  # bytes of the text that lanes are from

Array = np.ndarray[Any, np.dtype[Any]]


@intrinsic
def _load_any(typingctx: Any, address: Any) -> Any:
    """The 64-bit word at ``address``, wherever that is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        return builder.load(builder.inttoptr(args[0], word.as_pointer()), align=1)

    return types.int64(types.int64), codegen


@intrinsic
def _likely(typingctx: Any, text: Any, tail: Any, filters: Any, shift: Any) -> Any:
    """A bit for each of the 16 grams at ``text``, ``text + 4``, …, ``text + 60``: whether the filter has it.

    ``tail``: the gram's bytes less four. ``filters``: TABLE_FILTER, of 1 << (32 - ``shift``) words.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        text, tail, filters, shift = args
        half, word = ir.IntType(32), ir.IntType(64)
        lanes, wide = ir.VectorType(half, _LANES), ir.VectorType(word, _LANES)

        def all_lanes(value: int) -> Any:
            return ir.Constant(lanes, [value] * _LANES)

        def splat(value: Any, kind: Any) -> Any:
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(half, 0))
            return builder.shuffle_vector(one, one, ir.Constant(lanes, [0] * _LANES))

        def four_bytes(address: Any) -> Any:
            return builder.load(builder.inttoptr(address, lanes.as_pointer()), align=1)

        head = builder.mul(four_bytes(text), all_lanes(_HEAD))
        hashes = builder.add(head, builder.mul(four_bytes(builder.add(text, tail)), all_lanes(_TAIL)))
        hashes = builder.mul(builder.xor(hashes, builder.lshr(hashes, all_lanes(_FOLD))), all_lanes(_MIX))
        which = builder.zext(builder.lshr(hashes, splat(builder.trunc(shift, half), lanes)), wide)
        places = builder.add(splat(filters, wide), builder.shl(which, ir.Constant(wide, [2] * _LANES)))
        pointers = ir.VectorType(half.as_pointer(), _LANES)
        chosen = ir.VectorType(ir.IntType(1), _LANES)
        kind = ir.FunctionType(lanes, [pointers, half, chosen, lanes])
        gather = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.gather.v16i32.v16p0")
        every = ir.Constant(chosen, [1] * _LANES)
        found = builder.call(
            gather,
            [builder.inttoptr(places, pointers), ir.Constant(half, 4), every, ir.Constant(lanes, ir.Undefined)],
        )
        one = builder.lshr(found, builder.and_(hashes, all_lanes(31)))
        other = builder.lshr(found, builder.and_(builder.lshr(hashes, all_lanes(5)), all_lanes(31)))
        both = builder.trunc(builder.and_(one, other), chosen)
        return builder.zext(builder.bitcast(both, ir.IntType(_LANES)), word)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def _lowest(typingctx: Any, word: Any) -> Any:
    """The number of the lowest bit that is set; one must be."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@hot
def _same(one: int, other: int, length: int) -> bool:
    i = 0
    while i < length and load8(one + i) == load8(other + i):
        i += 1
    return i == length


@hot
def _report(table: int, gram: int, text: int, length: int, at: int, context: int) -> None:
    """Every word that has ``gram`` at ``text + at``."""
    bucket = (gram * _MULTIPLIER >> _BUCKET) & ((1 << load64(table + TABLE_BUCKETS)) - 1)
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
    stride, size, mask = load64(table + TABLE_STRIDE), load64(table + TABLE_GRAM), load64(table + TABLE_MASK)
    filters, shift = load64(table + TABLE_FILTER), 32 - load64(table + TABLE_FILTERS)
    at = 0
    while at <= length - _SPAN - _MOST_GRAM:
        likely = 0
        for phase in range(0, 4, stride):
            likely |= _likely(text + at + phase, size - 4, filters, shift) << (_LANES * phase)
        while likely != 0:
            bit = _lowest(likely)
            likely &= likely - 1
            here = at + (bit & (_LANES - 1)) * 4 + bit // _LANES
            gram = _load_any(text + here) & mask
            _report(table, gram, text, length, here, context)
        at += _SPAN
    while at <= length - size:  # eight bytes might reach behind the text
        gram = 0
        for i in range(size):
            gram |= load8(text + at + i) << (8 * i)
        _report(table, gram, text, length, at, context)
        at += stride


class WordTable:
    """A table of words, in memory that lives as long as this object."""

    def __init__(self, words: Sequence[bytes], patterns: Sequence[int]) -> None:
        """At least one word; none shorter than SHORTEST bytes. ``patterns``: what each is reported as."""
        least = min(map(len, words))
        assert least >= SHORTEST
        stride = next(stride for stride in (4, 2, 1) if least - stride + 1 >= _LEAST_GRAM)
        gram = min(_MOST_GRAM, least - stride + 1)
        self._text = np.frombuffer(b"".join(words), np.uint8)
        entries = _entries(self._text, np.array([len(word) for word in words]), np.array(patterns), stride, gram)
        few, many = (len(entries) - 1).bit_length(), (2 * len(entries) - 1).bit_length()
        filters = max(_LEAST_FILTERS, min(few, _MOST_FILTERS), min(many, _CACHED_FILTERS))
        hashes = _filter_hashes(entries["gram"].view(np.uint64), gram)
        self._filter = np.zeros(1 << filters, np.uint32)
        bits = np.uint32(1) << (hashes & np.uint32(31)) | np.uint32(1) << (hashes >> np.uint32(5) & np.uint32(31))
        np.bitwise_or.at(self._filter, hashes >> np.uint32(32 - filters), bits)
        buckets = min(24, max(4, (2 * len(entries) - 1).bit_length()))
        products = entries["gram"].view(np.uint64) * np.uint64(_MULTIPLIER)
        bucket = ((products >> np.uint64(_BUCKET)) & np.uint64((1 << buckets) - 1)).astype(np.int64)
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


def _filter_hashes(grams: Array, gram: int) -> Array:
    """As ``_likely`` has them."""
    head, tail = (
        (grams & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        (grams >> np.uint64(8 * (gram - 4))).astype(np.uint32),
    )
    hashes = head * np.uint32(_HEAD) + tail * np.uint32(_TAIL)
    return (hashes ^ hashes >> np.uint32(_FOLD)) * np.uint32(_MIX)


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

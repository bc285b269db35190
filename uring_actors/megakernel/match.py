"""MATCH, compiled: libhs over a slot, its candidates straight into the result block, newlines counted into the index.

A kernel thread comes here with the slot that it claimed, without the GIL. What the loop must know of the engine is
one row of words a thread (``MATCH_*``), which ``ops/match/engine.py`` fills in: addresses of hs_scan, of ``on_match``
and of the databases and scratches. ``on_match`` is called by libhs for each candidate; its context is the row's words
from MATCH_COUNT on (``hits.py``). A database's candidates come by their ends, and one may come more than once.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from uring_actors.arena import abi
from uring_actors.arena.atomics import load32, load64, store32
from uring_actors.arena.book import (
    BOOK_DATA,
    BOOK_HIT_CAPACITY,
    BOOK_NEWLINE_BYTES,
    BOOK_NEWLINES,
    BOOK_SLOT_BYTES,
    Book,
)
from uring_actors.hot import callback, hot, intrinsic
from uring_actors.megakernel import packed, ring
from uring_actors.megakernel.hits import add_hit
from uring_actors.megakernel.newlines import index_newlines, last_newline_at
from uring_actors.megakernel.words import search_words

MATCH_SCAN: Final = 0  # the address of hs_scan
MATCH_CALLBACK: Final = 1  # of on_match
MATCH_ERROR: Final = 2  # what hs_scan returned, where it failed
MATCH_COUNT: Final = 3  # candidates of the slot at hand, those that found no room included
MATCH_CAPACITY: Final = 4  # how many hits there is room for …
MATCH_HITS: Final = 5  # … at this address
MATCH_LEAD: Final = 6  # bytes before the payload that were searched as well
MATCH_TABLE: Final = 7  # of a table of words (words.py), or 0
MATCH_DATABASES: Final = 8  # how many there are; then the address of each and of its scratch
MATCH_WORDS: Final = 9


@callback(types.int32, types.uint32, types.uint64, types.uint64, types.uint32, types.int64)
def on_match(pattern, start, end, flags, context):  # type: ignore[no-untyped-def]
    """libhs's match_event_handler."""
    add_hit(context, types.int64(pattern), types.int64(end))
    return types.int32(0)


@intrinsic
def _hs_scan(
    typingctx: Any, function: Any, database: Any, text: Any, length: Any, scratch: Any, on_event: Any, context: Any
) -> Any:
    """``hs_scan(database, text, length, 0, scratch, on_event, context)`` at address ``function``; its code."""
    word, half = ir.IntType(64), ir.IntType(32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function, database, text, length, scratch, on_event, data = args
        kind = ir.FunctionType(half, [word, word, half, half, word, word, word])
        pointer = builder.inttoptr(function, kind.as_pointer())
        length = builder.trunc(length, half)
        code = builder.call(pointer, [database, text, length, ir.Constant(half, 0), scratch, on_event, data])
        return builder.sext(code, word)

    return types.int64(*[types.int64] * 7), codegen


@hot
def search(parameters: Book, text: int, length: int, lead: int, hits: int, capacity: int) -> int:
    """All databases over ``length`` bytes at ``text``, the first ``lead`` of which stand before the payload.

    Up to ``capacity`` candidates go to ``hits`` (``abi.HIT_*``, ends relative to the payload). Returns how many there
    are, whether or not they found room; negative: libhs failed, and MATCH_ERROR has its code.
    """
    parameters[MATCH_COUNT] = 0
    parameters[MATCH_CAPACITY] = capacity
    parameters[MATCH_HITS] = hits
    parameters[MATCH_LEAD] = lead
    context = parameters.ctypes.data + 8 * MATCH_COUNT
    for i in range(parameters[MATCH_DATABASES]):
        database, scratch = parameters[MATCH_WORDS + 2 * i], parameters[MATCH_WORDS + 2 * i + 1]
        code = _hs_scan(parameters[MATCH_SCAN], database, text, length, scratch, parameters[MATCH_CALLBACK], context)
        if code != 0:
            parameters[MATCH_ERROR] = code
            return -1
    if parameters[MATCH_TABLE] != 0:
        search_words(parameters[MATCH_TABLE], text, length, context)
    return load64(context)


@hot
def lead_of(address: int) -> int:
    """How many bytes before the payload are searched with it: none at the file's start."""
    return 0 if load64(address + abi.SLOT_FILE_OFFSET) == 0 else 1


@hot
def newline_index(book: Book, data_slot: int, offset: int) -> int:
    """Where in the newline index of ``data_slot`` the words of the payload at ``offset`` are."""
    return book[BOOK_NEWLINES] + data_slot * book[BOOK_NEWLINE_BYTES] + offset // abi.NEWLINE_CHUNK * 4


@hot
def match_packed(book: Book, slot: int, parameters: Book) -> bool:
    """``match`` on a packed slot: each file is searched by itself, so nothing can match across two of them. All hits
    go to the result block, file by file; what is a file's goes to its entry."""
    address = ring.slot_address(book, slot)
    data_slot = load32(address + abi.SLOT_DATA_SLOT)
    base, result = packed.slot_base(book, data_slot), ring.result_address(book, data_slot)
    total = 0
    for i in range(packed.files_of(address)):
        entry = base + i * abi.PACKED_ENTRY_BYTES
        size = load32(entry + abi.PACKED_BYTES)
        if size == 0:
            continue
        offset = load32(entry + abi.PACKED_OFFSET)
        text = base + offset
        hits = result + abi.RESULT_HITS + total * abi.HIT_BYTES
        room = max(0, book[BOOK_HIT_CAPACITY] - total)
        count = search(parameters, text, size, 0, hits, room)
        if count < 0:
            return False
        newlines = index_newlines(text, size, newline_index(book, data_slot, offset))
        store32(entry + abi.PACKED_HITS, count)
        store32(entry + abi.PACKED_RESULT, total * abi.HIT_BYTES)
        store32(entry + abi.PACKED_NEWLINES, newlines)
        store32(entry + abi.PACKED_LAST_NEWLINE, last_newline_at(text, size) if newlines else abi.NO_NEWLINE)
        total += count
    overflow = total > book[BOOK_HIT_CAPACITY]
    store32(result + abi.RESULT_COUNT, total)
    store32(result + abi.RESULT_OVERFLOW, 1 if overflow else 0)
    return not overflow


@hot
def match(book: Book, slot: int, parameters: Book) -> bool:
    """MATCH on a claimed slot: its result block. False where Python must go on: the block can't hold all hits (it
    says OVERFLOW then, and how many there are), or libhs failed (MATCH_ERROR)."""
    address = ring.slot_address(book, slot)
    if packed.is_packed(address):
        return match_packed(book, slot, parameters)
    data_slot = load32(address + abi.SLOT_DATA_SLOT)
    payload = load32(address + abi.SLOT_PAYLOAD_BYTES)
    offset = load32(address + abi.SLOT_PAYLOAD_OFFSET)
    text = book[BOOK_DATA] + data_slot * book[BOOK_SLOT_BYTES] + offset
    result = ring.result_address(book, data_slot)
    lead = lead_of(address)
    length = lead + payload + load32(address + abi.SLOT_HALO_BYTES)
    count = search(parameters, text - lead, length, lead, result + abi.RESULT_HITS, book[BOOK_HIT_CAPACITY])
    if count < 0:
        return False
    overflow = count > book[BOOK_HIT_CAPACITY]
    # While the bytes are in this core's cache.
    newlines = index_newlines(text, payload, newline_index(book, data_slot, offset))
    store32(result + abi.RESULT_COUNT, count)
    store32(result + abi.RESULT_OVERFLOW, 1 if overflow else 0)
    store32(result + abi.RESULT_NEWLINES, newlines)
    store32(result + abi.RESULT_LAST_NEWLINE, last_newline_at(text, payload) if newlines else abi.NO_NEWLINE)
    return not overflow

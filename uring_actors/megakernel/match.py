"""MATCH, compiled: libhs over a slot, its candidates straight into the result block, newlines counted.

A kernel thread comes here with the slot that it claimed, without the GIL. What the loop must know of the engine is
one row of words a thread (``MATCH_*``), which ``ops/match/engine.py`` fills in: addresses of hs_scan, of ``on_match``
and of the databases and scratches. ``on_match`` is called by libhs for each candidate; its context is the row's words
from MATCH_COUNT on. Candidates come in the order of their ends, and one may come more than once.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from uring_actors.arena import abi
from uring_actors.arena.atomics import load32, load64, store32, store64
from uring_actors.arena.book import BOOK_DATA, BOOK_HIT_CAPACITY, BOOK_SLOT_BYTES, Book
from uring_actors.hot import callback, hot
from uring_actors.megakernel import ring
from uring_actors.megakernel.newlines import last_newline_at, newlines_at

MATCH_SCAN: Final = 0  # the address of hs_scan
MATCH_CALLBACK: Final = 1  # of on_match
MATCH_ERROR: Final = 2  # what hs_scan returned, where it failed
MATCH_COUNT: Final = 3  # candidates of the slot at hand, those that found no room included
MATCH_CAPACITY: Final = 4  # how many hits there is room for …
MATCH_HITS: Final = 5  # … at this address
MATCH_LEAD: Final = 6  # bytes before the payload that were searched as well
MATCH_DATABASES: Final = 7  # how many there are; then the address of each and of its scratch
MATCH_WORDS: Final = 8

_COUNT, _CAPACITY, _HITS, _LEAD = (8 * (word - MATCH_COUNT) for word in range(MATCH_COUNT, MATCH_LEAD + 1))


@callback(types.int32, types.uint32, types.uint64, types.uint64, types.uint32, types.int64)
def on_match(pattern, start, end, flags, context):  # type: ignore[no-untyped-def]
    """libhs's match_event_handler: one more hit, where there is room. An end in the lead becomes 0."""
    count = load64(context + _COUNT)
    store64(context + _COUNT, count + 1)
    if count < load64(context + _CAPACITY):
        hit = load64(context + _HITS) + count * abi.HIT_BYTES
        store32(hit + abi.HIT_PATTERN, types.int64(pattern))
        store32(hit + abi.HIT_START, abi.HIT_NO_START)
        store32(hit + abi.HIT_END, types.int64(end) - load64(context + _LEAD))
        store32(hit + abi.HIT_FLAGS, 0)
    return types.int32(0)


@intrinsic  # type: ignore[untyped-decorator]
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
    return load64(context + _COUNT)


@hot
def lead_of(address: int) -> int:
    """How many bytes before the payload are searched with it: none at the file's start."""
    return 0 if load64(address + abi.SLOT_FILE_OFFSET) == 0 else 1


@hot
def match(book: Book, slot: int, parameters: Book) -> bool:
    """MATCH on a claimed slot: its result block. False where Python must go on: the block can't hold all hits (it
    says OVERFLOW then, and how many there are), or libhs failed (MATCH_ERROR)."""
    address = ring.slot_address(book, slot)
    data_slot = load32(address + abi.SLOT_DATA_SLOT)
    payload = load32(address + abi.SLOT_PAYLOAD_BYTES)
    text = book[BOOK_DATA] + data_slot * book[BOOK_SLOT_BYTES] + load32(address + abi.SLOT_PAYLOAD_OFFSET)
    result = ring.result_address(book, data_slot)
    lead = lead_of(address)
    length = lead + payload + load32(address + abi.SLOT_HALO_BYTES)
    count = search(parameters, text - lead, length, lead, result + abi.RESULT_HITS, book[BOOK_HIT_CAPACITY])
    if count < 0:
        return False
    overflow = count > book[BOOK_HIT_CAPACITY]
    # While the bytes are in this core's cache.
    newlines = newlines_at(text, payload)
    store32(result + abi.RESULT_COUNT, count)
    store32(result + abi.RESULT_OVERFLOW, 1 if overflow else 0)
    store32(result + abi.RESULT_NEWLINES, newlines)
    store32(result + abi.RESULT_LAST_NEWLINE, last_newline_at(text, payload) if newlines else abi.NO_NEWLINE)
    return not overflow

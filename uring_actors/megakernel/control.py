"""Operations on control words and data slots (SPEC §3), on the CPU: ``kernel.cu`` has the same, and one suite of
tests holds both (tests/test_protocol.py).

    opcode         arguments (words 4 and on)                       effect
    STORE_U32      value, word                                      control[word] = value
    ATOMIC_ADD     value, word                                      control[word] += value
    LOAD_U32       word, observable                                 observable = control[word]
    COMPARE_SWAP   expected, value, word                            control[word] = value where it is as expected
    MEMCPY         from (2 words), to (2 words), bytes              within the data slots, from the first one on
    DFA_STEP       state, byte, data slot, observable               observable = that slot's [state · 256 + byte]
    LOAD_MISS      three words                                      a record of the debug log, this opcode its format
    PRINTF         format, three words                              a record of the debug log
    PACKED_SLOT    count, then (opcode, its arguments) that often   these, one after the other

An argument out of range makes the slot FAULT, and nothing is done; of a packed slot nothing is done unless all of its
operations may stand there and fit.
"""

from __future__ import annotations

from typing import Final

from uring_actors.arena import abi
from uring_actors.arena.atomics import compare_swap, fetch_add, load8, load32, store8, store32
from uring_actors.arena.book import (
    BOOK_CONTROL,
    BOOK_DATA,
    BOOK_DATA_SLOTS,
    BOOK_LOG,
    BOOK_SLOT_BYTES,
    Book,
)
from uring_actors.hot import hot
from uring_actors.megakernel.protocol import PACKED_WORDS

_OBSERVABLES: Final = abi.CONTROL_WORDS - abi.CONTROL_OBSERVABLE_WORD
_LOG_RECORD: Final = 4 * abi.LOG_RECORD_WORDS
_NOT_PACKED: Final = -1


@hot
def _control(book: Book, word: int) -> int:
    return book[BOOK_CONTROL] + (word << 2)


@hot
def _observe(book: Book, observable: int, value: int) -> None:
    store32(_control(book, abi.CONTROL_OBSERVABLE_WORD + observable), value)


@hot
def log_record(book: Book, record_format: int, first: int, second: int, third: int) -> None:
    """Write a record to the debug log, if it has room."""
    at = 4 + (fetch_add(book[BOOK_LOG], abi.LOG_RECORD_WORDS) << 2)
    if at + _LOG_RECORD <= abi.LOG_BYTES:
        address = book[BOOK_LOG] + at
        store32(address, record_format)
        store32(address + 4, first)
        store32(address + 8, second)
        store32(address + 12, third)


@hot
def copy_bytes(book: Book, args: int) -> int:
    """MEMCPY; ``args`` is where its arguments lie. 0, or the reason for a FAULT."""
    source = load32(args) | load32(args + 4) << 32
    target = load32(args + 8) | load32(args + 12) << 32
    count = load32(args + 16)
    room = book[BOOK_DATA_SLOTS] * book[BOOK_SLOT_BYTES]
    if source < 0 or target < 0 or source > room - count or target > room - count:
        return abi.REASON_ARGUMENT
    if count and source < target + count and target < source + count:
        return abi.REASON_ARGUMENT
    for i in range(count):
        store8(book[BOOK_DATA] + target + i, load8(book[BOOK_DATA] + source + i))
    return 0


@hot
def argument_count(opcode: int) -> int:
    """How many arguments an operation has that may stand in a packed slot; −1 where it may not."""
    if opcode == abi.OP_NOP:
        return 0
    if opcode == abi.OP_STORE_U32 or opcode == abi.OP_ATOMIC_ADD or opcode == abi.OP_LOAD_U32:
        return 2
    if opcode == abi.OP_COMPARE_SWAP:
        return 3
    if opcode == abi.OP_DFA_STEP or opcode == abi.OP_PRINTF:
        return 4
    return _NOT_PACKED


@hot
def single_operation(book: Book, opcode: int, args: int) -> int:
    """One operation whose arguments lie at ``args``; 0, or why not."""
    first, second, third = load32(args), load32(args + 4), load32(args + 8)
    reason = 0
    if opcode == abi.OP_STORE_U32 and second < abi.CONTROL_WORDS:
        store32(_control(book, second), first)
    elif opcode == abi.OP_ATOMIC_ADD and second < abi.CONTROL_WORDS:
        fetch_add(_control(book, second), first)
    elif opcode == abi.OP_LOAD_U32 and first < abi.CONTROL_WORDS and second < _OBSERVABLES:
        _observe(book, second, load32(_control(book, first)))
    elif opcode == abi.OP_COMPARE_SWAP and third < abi.CONTROL_WORDS:
        compare_swap(_control(book, third), first, second)
    elif opcode == abi.OP_DFA_STEP:
        at, observable = (first * 256 + second) * 4, load32(args + 12)
        inside = third < book[BOOK_DATA_SLOTS] and at + 4 <= book[BOOK_SLOT_BYTES]
        if second > 255 or not inside or observable >= _OBSERVABLES:
            reason = abi.REASON_ARGUMENT
        else:
            _observe(book, observable, load32(book[BOOK_DATA] + third * book[BOOK_SLOT_BYTES] + at))
    elif opcode == abi.OP_LOAD_MISS:
        log_record(book, abi.OP_LOAD_MISS, first, second, third)
    elif opcode == abi.OP_PRINTF:
        log_record(book, first, second, third, load32(args + 12))
    elif opcode >= abi.OP_STORE_U32 and opcode <= abi.OP_COMPARE_SWAP:
        reason = abi.REASON_ARGUMENT
    elif opcode != abi.OP_NOP and opcode != abi.OP_SHUTDOWN:
        reason = abi.REASON_OPCODE
    return reason


@hot
def packed_operations(book: Book, args: int) -> int:
    """PACKED_SLOT: all of its operations in their order, where all may stand there. 0, or the reason for a FAULT."""
    count = load32(args)
    at = 1
    for _ in range(count):
        wanted = argument_count(load32(args + (at << 2))) if at < PACKED_WORDS else _NOT_PACKED
        if wanted == _NOT_PACKED or at + 1 + wanted > PACKED_WORDS:
            return abi.REASON_ARGUMENT
        at += 1 + wanted
    reason = 0
    at = 1
    for _ in range(count):
        opcode = load32(args + (at << 2))
        if single_operation(book, opcode, args + ((at + 1) << 2)) != 0:
            reason = abi.REASON_ARGUMENT
        at += 1 + argument_count(opcode)
    return reason


@hot
def operation(book: Book, opcode: int, args: int) -> int:
    """Any operation of this module, NOP and SHUTDOWN (which is the caller's to do): 0, or the reason for a FAULT."""
    if opcode == abi.OP_MEMCPY:
        return copy_bytes(book, args)
    if opcode == abi.OP_PACKED_SLOT:
        return packed_operations(book, args)
    return single_operation(book, opcode, args)

"""Reductions on the CPU: what an operation leaves of a payload, as a few 64-bit words (its *state*).

The settling thread combines the states of a file's extents (``ops/reduction.py``). With a block size (the slot's
operation parameter; TOUCH has none) every block that the payload meets gets a state of its own, one behind the other,
so that blocks are exact wherever extents end.
"""

from __future__ import annotations

from typing import Final

from uring_actors.arena import abi
from uring_actors.arena.atomics import load8, load32, load64, store32, store64
from uring_actors.arena.book import BOOK_RESULT_BYTES, Book
from uring_actors.hot import hot
from uring_actors.megakernel import packed, ring
from uring_actors.megakernel.crc32c import crc32c
from uring_actors.megakernel.histogram import count_bytes

TOUCH_WORDS: Final = 1  # the sum of the bytes
CRC32C_WORDS: Final = 2  # the CRC32C, how many bytes it is of
HISTOGRAM_WORDS: Final = 256  # how often each byte value occurs


@hot
def sum_bytes(address: int, length: int) -> int:
    """The sum of ``length`` bytes. Eight at a time: even and odd bytes in 16-bit lanes, folded before they can
    overflow (a lane takes 128 steps of at most 2 · 255)."""
    total = 0
    i = 0
    while i < length and (address + i) & 7:
        total += load8(address + i)
        i += 1
    words = (length - i) >> 3
    base = address + i
    low = 0x00FF00FF00FF00FF
    done = 0
    while done < words:
        stop = min(words, done + 128)
        lanes = 0
        for k in range(done, stop):
            word = load64(base + (k << 3))
            lanes += (word & low) + ((word >> 8) & low)
        total += (lanes & 0xFFFF) + ((lanes >> 16) & 0xFFFF) + ((lanes >> 32) & 0xFFFF) + ((lanes >> 48) & 0xFFFF)
        done = stop
    i += words << 3
    while i < length:
        total += load8(address + i)
        i += 1
    return total


@hot
def reducible(opcode: int) -> bool:
    """Whether ``reduce`` has this operation."""
    return opcode == abi.OP_SCAN_TOUCH or opcode == abi.OP_SCAN_CRC32C or opcode == abi.OP_SCAN_HISTOGRAM


@hot
def state_words(opcode: int, length: int, offset: int, block: int) -> int:
    """How many words ``reduce`` stores."""
    words = HISTOGRAM_WORDS
    if opcode == abi.OP_SCAN_TOUCH:
        words = TOUCH_WORDS
    elif opcode == abi.OP_SCAN_CRC32C:
        words = CRC32C_WORDS
    if block == 0 or length == 0:
        return words
    return words * ((offset + length - 1) // block - offset // block + 1)


@hot
def reduce(opcode: int, address: int, length: int, offset: int, block: int, states: int) -> None:
    """Store the state of ``length`` bytes, at ``offset`` in their file, to the address ``states``; with ``block``
    those of the file's blocks of that size, as far as they lie in these bytes."""
    while True:
        part = length
        if block > 0:
            part = min(part, block - offset % block)
        if opcode == abi.OP_SCAN_TOUCH:
            store64(states, sum_bytes(address, part))
            states += 8 * TOUCH_WORDS
        elif opcode == abi.OP_SCAN_CRC32C:
            store64(states, crc32c(address, part))
            store64(states + 8, part)
            states += 8 * CRC32C_WORDS
        else:
            count_bytes(address, part, states)
            states += 8 * HISTOGRAM_WORDS
        address += part
        offset += part
        length -= part
        if length <= 0:  # asked here, for no bytes have a state as well
            return


@hot
def reduce_packed(book: Book, address: int, opcode: int) -> bool:
    """The state of each file of a packed slot (its ring slot is at ``address``) into the result block, one behind the
    other; False where they don't fit. Blocks have no place here."""
    data_slot, files = load32(address + abi.SLOT_DATA_SLOT), packed.files_of(address)
    base, result = packed.slot_base(book, data_slot), ring.result_address(book, data_slot)
    state = 8 * state_words(opcode, 0, 0, 0)
    if abi.RESULT_VALUES + files * state > book[BOOK_RESULT_BYTES] or load32(address + abi.SLOT_OPERATION) != 0:
        return False
    for i in range(files):
        entry = base + i * abi.PACKED_ENTRY_BYTES
        text, size = base + load32(entry + abi.PACKED_OFFSET), load32(entry + abi.PACKED_BYTES)
        reduce(opcode, text, size, 0, 0, result + abi.RESULT_VALUES + i * state)
        store32(entry + abi.PACKED_RESULT, i * state)
    store32(result + abi.RESULT_COUNT, 0)
    store32(result + abi.RESULT_OVERFLOW, 0)
    return True

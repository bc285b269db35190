"""Packed data slots (``abi.FLAG_PACKED``): several files in one, each with an entry in the directory at its head.

An operation runs on each file's own bytes, as if it were alone in the slot, and leaves its result in the file's
entry. ``unpack`` then makes a row of each file, such as a slot of its own would have given: settling never learns of
packing.
"""

from __future__ import annotations

from uring_actors.arena import abi
from uring_actors.arena.atomics import load32
from uring_actors.arena.book import BOOK_DATA, BOOK_SLOT_BYTES, Book
from uring_actors.hot import hot
from uring_actors.megakernel import ring

WHOLE_FILE = abi.FLAG_FIRST | abi.FLAG_LAST


@hot
def is_packed(address: int) -> bool:
    """Whether the ring slot at ``address`` has a packed data slot."""
    return load32(address + abi.SLOT_FLAGS) & abi.FLAG_PACKED != 0


@hot
def files_of(address: int) -> int:
    """How many files are in the packed data slot of the ring slot at ``address``."""
    return load32(address + abi.SLOT_FILE_ID)


@hot
def slot_base(book: Book, data_slot: int) -> int:
    """Where a packed data slot begins: its directory, and what the files' offsets count from."""
    return book[BOOK_DATA] + data_slot * book[BOOK_SLOT_BYTES]


@hot
def _unpack_file(entry: int, slot: Book, row: Book) -> None:
    for k in range(ring.COLUMNS):
        row[k] = slot[k]
    number = load32(entry + abi.PACKED_ERRNO)
    row[ring.COLUMN_FILE_ID] = load32(entry + abi.PACKED_FILE_ID)
    row[ring.COLUMN_PAYLOAD_OFFSET] = load32(entry + abi.PACKED_OFFSET)
    row[ring.COLUMN_PAYLOAD_BYTES] = load32(entry + abi.PACKED_BYTES)
    row[ring.COLUMN_FLAGS] = WHOLE_FILE if number == 0 else WHOLE_FILE | abi.FLAG_FAILED
    row[ring.COLUMN_ERRNO] = number
    if row[ring.COLUMN_PAYLOAD_OFFSET] == 0:
        row[ring.COLUMN_DATA_SLOT] = abi.NO_DATA_SLOT
    row[ring.COLUMN_HIT_COUNT] = load32(entry + abi.PACKED_HITS)
    row[ring.COLUMN_RESULT] = load32(entry + abi.PACKED_RESULT)
    row[ring.COLUMN_NEWLINES] = load32(entry + abi.PACKED_NEWLINES)
    row[ring.COLUMN_LAST_NEWLINE] = -1
    if row[ring.COLUMN_NEWLINES] != 0:
        row[ring.COLUMN_LAST_NEWLINE] = load32(entry + abi.PACKED_LAST_NEWLINE)


@hot
def unpack(book: Book, rows: Book, out: Book) -> int:
    """``rows`` as ``ring.collect`` described them, with a row for each file of a packed slot in its place; how many.
    ``out`` has room for them."""
    count = 0
    for i in range(rows.shape[0]):
        if rows[i, ring.COLUMN_FLAGS] & abi.FLAG_PACKED == 0:
            for k in range(ring.COLUMNS):
                out[count, k] = rows[i, k]
            count += 1
            continue
        base = slot_base(book, rows[i, ring.COLUMN_DATA_SLOT])
        for file in range(rows[i, ring.COLUMN_FILE_ID]):
            _unpack_file(base + file * abi.PACKED_ENTRY_BYTES, rows[i], out[count])
            count += 1
    return count

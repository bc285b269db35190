"""When a few extents passed their stages: what the stage latencies of ``metrics.py`` are made of.

A lane times one extent in SAMPLE_EVERY, and none before the last one's times were taken: so one line of words for
each lane is enough, and whoever has the extent's data slot is its writer. FLAG_TIMED travels with the extent through
records and ring slot; who does not see it does nothing.

    lane: begin, read ──▶ publisher: published ──▶ kernel (or kernel host): done ──▶ publisher: retired, take
"""

from __future__ import annotations

from uring_actors.arena import abi
from uring_actors.arena.atomics import clock_ns, load64, load_acquire, store64, store_release
from uring_actors.arena.book import BOOK_LANES, BOOK_SLOTS_PER_LANE, BOOK_STATE, Book
from uring_actors.hot import lean

COLUMNS = 5
"""Of a row that ``take`` fills: the lane, and the ns of four stages: read, publish, scan, settle."""


@lean
def begin(line: int) -> bool:
    """The lane's: time the extent whose read begins now; False where the last one's times were not taken yet."""
    if load_acquire(line + abi.SAMPLE_BUSY) != 0:
        return False
    store64(line + abi.SAMPLE_BEGUN, clock_ns())
    store_release(line + abi.SAMPLE_BUSY, 1)
    return True


@lean
def note(line: int, stage: int) -> None:
    """Store the time at ``stage`` (SAMPLE_*)."""
    store64(line + stage, clock_ns())


@lean
def line_of(book: Book, data_slot: int) -> int:
    """The line of a data slot's lane; 0 where there is no such slot (a script's ring slot may say anything)."""
    lane = data_slot // book[BOOK_SLOTS_PER_LANE]
    return book[BOOK_STATE] + abi.STATE_BYTES + lane * abi.CACHE_LINE if lane < book[BOOK_LANES] else 0


@lean
def published(book: Book, data_slot: int) -> None:
    """The publisher's: a timed extent is published."""
    line = line_of(book, data_slot)
    store64(line + abi.SAMPLE_DONE, 0)
    note(line, abi.SAMPLE_PUBLISHED)


@lean
def done(book: Book, data_slot: int) -> None:
    """A timed extent is done with; only the first call for it counts."""
    line = line_of(book, data_slot)
    if line != 0 and load64(line + abi.SAMPLE_DONE) == 0:
        note(line, abi.SAMPLE_DONE)


@lean
def take(book: Book, data_slot: int, row: Book) -> None:
    """The publisher's: a timed extent is retired. Fill ``row``, and let its lane time another."""
    line = line_of(book, data_slot)
    row[0] = data_slot // book[BOOK_SLOTS_PER_LANE]
    read = load64(line + abi.SAMPLE_READ)
    shown = load64(line + abi.SAMPLE_PUBLISHED)
    finished = load64(line + abi.SAMPLE_DONE)
    row[1] = read - load64(line + abi.SAMPLE_BEGUN)
    row[2] = shown - read
    row[3] = finished - shown
    row[4] = clock_ns() - finished
    store_release(line + abi.SAMPLE_BUSY, 0)

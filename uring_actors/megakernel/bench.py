"""Hot loops that drive a ring by themselves, to measure a kernel: no lanes, no publisher, no settling."""

from __future__ import annotations

from uring_actors.arena import abi
from uring_actors.arena.atomics import clock_ns, load_acquire, pause
from uring_actors.arena.book import BOOK_RING_MASK, BOOK_STATE, Book
from uring_actors.hot import hot
from uring_actors.megakernel import ring


@hot
def _publish(book: Book, position: int, opcode: int, data_slot: int, payload: int, offset: int) -> None:
    slot = position & book[BOOK_RING_MASK]
    ring.write_scan(book, slot, data_slot, payload, offset, 0, 0, 0, 0, 0, 0, 0)
    ring.stage(book, position, slot, opcode, 0, abi.PRIORITY_NORMAL)


@hot
def _terminal(book: Book, position: int) -> bool:
    status = load_acquire(ring.slot_address(book, position & book[BOOK_RING_MASK]))
    return status == abi.DONE or status == abi.FAULT


@hot
def ping(book: Book, opcode: int, payload: int, took: Book) -> None:
    """Publish one slot at a time and wait for its end; nanoseconds of each to ``took``."""
    position = load_acquire(book[BOOK_STATE] + abi.STATE_TAIL)
    for i in range(took.shape[0]):
        began = clock_ns()
        _publish(book, position, opcode, 0, payload, 0)
        ring.announce(book, (position + 1) & abi.WRAP)
        while not _terminal(book, position):
            pause()
        took[i] = clock_ns() - began
        position = (position + 1) & abi.WRAP


@hot
def pump(book: Book, opcode: int, payload: int, per_slot: int, count: int) -> int:
    """Publish ``count`` pieces of ``payload`` bytes, ``per_slot`` in each data slot, as fast as the ring takes them,
    and wait for all; how many there were."""
    tail = load_acquire(book[BOOK_STATE] + abi.STATE_TAIL)
    head = tail
    published = 0
    while published < count or head != tail:
        while published < count and (tail - head) & abi.WRAP <= book[BOOK_RING_MASK]:
            _publish(book, tail, opcode, published // per_slot, payload, published % per_slot * payload)
            tail = (tail + 1) & abi.WRAP
            published += 1
            ring.announce(book, tail)
        while head != tail and _terminal(book, head):
            head = (head + 1) & abi.WRAP
        pause()
    return published

"""The resident kernel on the CPU: a pool of threads that poll the ring and claim slots.

Operations run compiled, from ``execute``; what one can't do there (MATCH: more hits than a result block holds) comes
back to Python, slot by slot, in the thread that claimed it, through its ``Worker``. A thread sleeps on the kernel's
bell when the ring has nothing for it. Life: created → started → closed (idempotent).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from uring_actors.arena import abi, bell
from uring_actors.arena.atomics import clock_ns, load32, load64, pause, store32
from uring_actors.arena.book import BOOK_DATA, BOOK_RESULT_BYTES, BOOK_SLOT_BYTES, BOOK_STATE, Book
from uring_actors.arena.memory import Arena
from uring_actors.hot import hot
from uring_actors.loop import SLICE_NS, LoopThread
from uring_actors.megakernel import control, packed, ring
from uring_actors.megakernel.match import match
from uring_actors.megakernel.reduce import reduce, reduce_packed, reducible, state_words

IDLE: Final = -1
STOP: Final = -2
NO_PARAMETERS: Final[Book] = np.zeros(0, np.int64)


@hot
def payload_address(book: Book, slot: int) -> int:
    """Where the payload of a scan's ring slot begins."""
    address = ring.slot_address(book, slot)
    data_slot = load32(address + abi.SLOT_DATA_SLOT)
    return book[BOOK_DATA] + data_slot * book[BOOK_SLOT_BYTES] + load32(address + abi.SLOT_PAYLOAD_OFFSET)


@hot
def run_reduction(book: Book, slot: int, opcode: int) -> bool:
    """The states of a slot's payload into its result block; False where they don't fit."""
    address = ring.slot_address(book, slot)
    if packed.is_packed(address):
        return reduce_packed(book, address, opcode)
    result = ring.result_address(book, load32(address + abi.SLOT_DATA_SLOT))
    length, offset = load32(address + abi.SLOT_PAYLOAD_BYTES), load64(address + abi.SLOT_FILE_OFFSET)
    block = load32(address + abi.SLOT_OPERATION) if opcode != abi.OP_SCAN_TOUCH else 0
    if abi.RESULT_VALUES + 8 * state_words(opcode, length, offset, block) > book[BOOK_RESULT_BYTES]:
        return False
    reduce(opcode, payload_address(book, slot), length, offset, block, result + abi.RESULT_VALUES)
    store32(result + abi.RESULT_COUNT, 0)
    store32(result + abi.RESULT_OVERFLOW, 0)
    return True


@hot
def execute(book: Book, slot: int, parameters: Book) -> bool:
    """Run a claimed slot; False where Python must run it, or finish what was begun. ``parameters``: this thread's,
    for the operation of its worker (``Worker.parameters``)."""
    if not ring.permitted(book, slot):
        ring.refuse(book, slot, abi.REASON_TENANT)
        return True
    address = ring.slot_address(book, slot)
    opcode = load32(address + abi.SLOT_OPCODE)
    reason = 0
    if opcode == abi.OP_SCAN_MATCH:
        if parameters.size == 0 or not match(book, slot, parameters):
            return False
    elif abi.OP_USER_FIRST <= opcode <= abi.OP_USER_LAST:
        return False
    elif reducible(opcode):
        if not run_reduction(book, slot, opcode):
            reason = abi.REASON_RESULT
    elif opcode == abi.OP_BATCH_FENCE:
        ring.advance_epoch(book)
    elif opcode != abi.OP_SCAN_NOP:
        reason = control.operation(book, opcode, address + abi.SLOT_ARGS)
    if reason:
        ring.refuse(book, slot, reason)
    else:
        ring.finish(book, slot, abi.DONE)
        if opcode == abi.OP_SHUTDOWN:
            ring.shut_down(book)
    return True


@hot
def serve(book: Book, parameters: Book, spins: int, slice_ns: int) -> int:
    """Claim and run slots for about ``slice_ns``. A ring slot that Python must run, IDLE at the end of the slice,
    or STOP when SHUTDOWN is set."""
    my_bell = book[BOOK_STATE] + abi.BELL_KERNEL
    deadline = clock_ns() + slice_ns
    spun = 0
    while True:
        if ring.shutting_down(book):
            return STOP
        slot = ring.claim(book)
        if slot != ring.NOTHING:
            if not execute(book, slot, parameters):
                return slot
            spun = 0
            if clock_ns() >= deadline:
                return IDLE
            continue
        if spun < spins:
            spun += 1
            pause()
            continue
        key = bell.prepare(my_bell)
        left = deadline - clock_ns()
        if ring.published(book) or left <= 0 or ring.shutting_down(book):
            bell.cancel(my_bell)
            if left <= 0:
                return IDLE
            continue
        bell.sleep(my_bell, key, left)
        spun = 0


class Refused(Exception):
    """Raised by a worker: this slot becomes FAULT, and the kernel goes on."""


class Worker(Protocol):
    """One kernel thread's part of an operation that is not all compiled, or whose compiled part needs parameters."""

    @property
    def parameters(self) -> Book:
        """What the compiled part of the operation reads and writes in this thread; NO_PARAMETERS where there is no
        such part, and ``run`` gets every slot."""

    def run(self, slot: Sequence[int]) -> None:
        """Work on a claimed slot (its 16 words) that ``execute`` left, and write its result block. Raises Refused for
        a slot that can't be done; any other exception ends the kernel."""


class CpuKernel:
    """The pool. ``make_worker`` is called once a thread; it gives None where every operation is compiled."""

    def __init__(self, arena: Arena, threads: int, *, spins: int, make_worker: Callable[[], Worker | None]) -> None:
        self._arena = arena
        self._book = arena.address_book()
        self._words = arena.words(arena.layout.ring, arena.layout.ring_slots * 16).reshape(-1, 16)
        self._spins = spins
        self._make_worker = make_worker
        self._threads = [self._thread(i) for i in range(threads)]

    def _thread(self, number: int) -> LoopThread:
        worker = self._make_worker()
        parameters = NO_PARAMETERS if worker is None else worker.parameters

        def step() -> bool:
            slot = serve(self._book, parameters, self._spins, SLICE_NS)
            if slot < 0:
                return slot != STOP
            if worker is None:
                ring.refuse(self._book, slot, abi.REASON_OPCODE)
                return True
            try:
                worker.run(self._words[slot].tolist())
            except Refused:
                ring.refuse(self._book, slot, abi.REASON_OPERATION)
                return True
            except BaseException:
                ring.refuse(self._book, slot, abi.REASON_OPERATION)
                raise
            ring.finish(self._book, slot, abi.DONE)
            return True

        return LoopThread(f"kernel-{number}", step)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def failure(self) -> BaseException | None:
        return next((thread.failure for thread in self._threads if thread.failure), None)

    def close(self) -> None:
        """Set SHUTDOWN, which ends every thread, and wait for them."""
        for thread in self._threads:
            thread.stop()
        ring.shut_down(self._book)
        for thread in self._threads:
            thread.join(10)

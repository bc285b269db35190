"""``Megakernel``: a resident kernel, its ring and its control words, for a script to drive by itself.

    with Megakernel.create(chunks=16, chunk_bytes=1 << 20) as kernel:
        kernel.publish(0, abi.OP_BATCH_FENCE)
        kernel.wait([0])

It is the host's side of SPEC's ring protocol: slots are encoded, published and read here, and it runs a kernel on the
same arena, the CPU's (``cpu.py``) unless it is given another. Its owner is the ring's one publisher and its kernel
host in one, in one thread: it chooses slots, sees when they are terminal and uses them again. It does not retire
positions, which nobody follows.

Life: created → started → closed (idempotent). Who writes what: see ``arena/abi.py``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.atomics import load_acquire, store32
from uring_actors.arena.book import BOOK_STATE, Book
from uring_actors.arena.memory import Arena
from uring_actors.errors import DeadlineExceeded, OptionError, PipelineError, QueueFull
from uring_actors.hot import hot
from uring_actors.megakernel import ring
from uring_actors.megakernel.cpu import CpuKernel, Worker
from uring_actors.uring.buffer import GpuMappedBuffer

Control = np.ndarray[Any, np.dtype[np.uint32]]

TERMINAL: Final = (abi.DONE, abi.FAULT)
WRITABLE: Final = (abi.EMPTY, abi.DONE, abi.FAULT)
_SLOT: Final = struct.Struct("<16I")
_RESULT: Final = struct.Struct("<4I6Q")
_HIT: Final = struct.Struct("<4I")
_NAP: Final = 0.000_2
_BUSY: Final = -1


class RingSlot(NamedTuple):
    """A ring slot's 16 words."""

    status: int
    opcode: int
    tenant: int
    priority: int
    args: tuple[int, ...]
    """Words 4 to 15."""


class ResultBlock(NamedTuple):
    """What an operation left for a data slot."""

    hit_count: int
    """Hits found; more than there are in ``hits`` where the block was too small (``overflow``)."""
    overflow: int
    newlines: int
    last_newline: int | None
    values: tuple[int, ...]
    """The operation's own six numbers."""
    hits: tuple[tuple[int, int, int, int], ...]
    """Pattern, start, end, flags."""


class LogRecord(NamedTuple):
    """A record of the debug log."""

    format: int
    args: tuple[int, int, int]


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────────────────
def encode_slot(
    opcode: int,
    args: Sequence[int] = (),
    *,
    tenant: int = 0,
    priority: int = abi.PRIORITY_NORMAL,
    status: int = abi.EMPTY,
) -> bytes:
    """The 64 bytes of a ring slot: up to 12 arguments, the rest 0. Raises OptionError for what doesn't fit."""
    if len(args) > abi.SLOT_ARG_COUNT:
        raise OptionError(f"a ring slot has {abi.SLOT_ARG_COUNT} arguments, not {len(args)}")
    if not 0 <= priority <= abi.PRIORITY_IDLE:
        raise OptionError(f"a priority is 0 (critical) to {abi.PRIORITY_IDLE} (idle), not {priority}")
    words = (status, opcode, tenant, priority, *args)
    if any(not 0 <= word <= abi.WRAP for word in words):
        raise OptionError(f"a ring slot's words are 0 to 2³² − 1: {words}")
    return _SLOT.pack(*words, *[0] * (abi.SLOT_ARG_COUNT - len(args)))


def decode_slot(words: bytes) -> RingSlot:
    """What ``encode_slot`` encoded."""
    if len(words) != abi.RING_SLOT_BYTES:
        raise OptionError(f"a ring slot has {abi.RING_SLOT_BYTES} bytes, not {len(words)}")
    status, opcode, tenant, priority, *args = _SLOT.unpack(words)
    return RingSlot(status, opcode, tenant, priority, tuple(args))


def scan_args(
    data_slot: int,
    payload_bytes: int,
    *,
    payload_offset: int = 0,
    halo_bytes: int = 0,
    file_offset: int = 0,
    file_id: int = 0,
    extent_id: int = 0,
    operation: int = 0,
    flags: int = abi.FLAG_FIRST | abi.FLAG_LAST,
) -> tuple[int, ...]:
    """The arguments of a scan's slot (``abi.SLOT_DATA_SLOT`` and on): what lies where, and which part of which file
    it is."""
    low, high = file_offset & abi.WRAP, file_offset >> 32
    return (
        data_slot,
        payload_bytes,
        payload_offset,
        halo_bytes,
        low,
        high,
        file_id,
        extent_id,
        operation,
        flags,
        0,
    )


@hot
def publish_words(book: Book, slot: int, opcode: int, tenant: int, priority: int, args: Book) -> int:
    """Write a slot and publish it as the next position; that position, or −1 where the kernel has the slot."""
    if not ring.writable(book, slot):
        return _BUSY
    address = ring.slot_address(book, slot) + abi.SLOT_ARGS
    for i in range(abi.SLOT_ARG_COUNT):
        store32(address + 4 * i, args[i])
    position = load_acquire(book[BOOK_STATE] + abi.STATE_TAIL)
    ring.stage(book, position, slot, opcode, tenant, priority)
    ring.announce(book, (position + 1) & abi.WRAP)
    return position


@hot
def slot_status(book: Book, slot: int) -> int:
    """A slot's status; acquire, so that what a terminal one's operation wrote is visible."""
    return load_acquire(ring.slot_address(book, slot))


@hot
def state_word(book: Book, offset: int) -> int:
    """A word of the state lines; acquire."""
    return load_acquire(book[BOOK_STATE] + offset)


class Kernel(Protocol):
    """What serves a ring: ``CpuKernel`` and ``CudaKernel``."""

    @property
    def failure(self) -> BaseException | None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


class Megakernel:
    """See the module's page.

    arena: whose ring it is. threads: of the CPU kernel; 0: another kernel serves the ring. make_worker: once a
    thread, for operations that must run in Python (``CpuKernel``). kernel: one to start and close in place of the
    CPU's, ``cuda.CudaKernel(arena)`` for instance.
    """

    def __init__(
        self,
        arena: Arena,
        *,
        threads: int = 1,
        spins: int = 100,
        make_worker: Callable[[], Worker | None] = lambda: None,
        kernel: Kernel | None = None,
    ) -> None:
        self.arena = arena
        self.life = "created"
        self.book: Book = arena.address_book()
        """Addresses, for hot functions."""
        self.control: Control = arena.words(arena.layout.control, abi.CONTROL_WORDS)
        """The control words themselves (``abi.CONTROL_*_WORD``)."""
        self._owns_arena = False
        self._kernel = kernel or CpuKernel(arena, threads, spins=spins, make_worker=make_worker)
        self._args: Book = np.zeros(abi.SLOT_ARG_COUNT, np.int64)

    @classmethod
    def create(cls, chunks: int, chunk_bytes: int, *, result_bytes: int = abi.PAGE, **options: Any) -> Megakernel:
        """One with an arena of its own: ``chunks`` data slots of ``chunk_bytes`` (a multiple of 4,096)."""
        try:
            layout = ArenaLayout(1, chunks, chunk_bytes, result_bytes)
        except ValueError as error:
            raise OptionError(str(error)) from error
        made = cls(Arena.create(layout), **options)
        made._owns_arena = True
        return made

    @property
    def ring_slots(self) -> int:
        """How many slots the ring has: twice the data slots, at least."""
        return self.arena.layout.ring_slots

    @property
    def buffer(self) -> GpuMappedBuffer:
        """The data slots, for a stream to read into."""
        return GpuMappedBuffer.from_arena(self.arena)

    # ── publishing ───────────────────────────────────────────────────────────────────────────────────────────
    def publish(
        self,
        slot_idx: int,
        opcode: int,
        args: Sequence[int] = (),
        *,
        tenant: int = 0,
        priority: int = abi.PRIORITY_NORMAL,
    ) -> int:
        """Write ring slot ``slot_idx``, publish it and move the ring's tail; its position. Raises QueueFull while the
        kernel has that slot, OptionError for what ``encode_slot`` refuses."""
        self._check(slot_idx)
        words = decode_slot(encode_slot(opcode, args, tenant=tenant, priority=priority))
        self._args[:] = words.args
        position = publish_words(self.book, slot_idx, opcode, tenant, priority, self._args)
        if position == _BUSY:
            raise QueueFull(f"ring slot {slot_idx}", fix="The kernel has it: wait until it is DONE or FAULT.")
        return position

    def writable(self, slot_idx: int) -> bool:
        """Whether the slot is the host's to write: EMPTY, DONE or FAULT."""
        return self.status(slot_idx) in WRITABLE

    def allow(self, tenant: int, allowed: bool = True) -> None:
        """Let a tenant's slots run, or become FAULT."""
        if not 0 <= tenant < abi.TENANTS:
            raise OptionError(f"tenants are 0 to {abi.TENANTS - 1}, not {tenant}")
        self.control[abi.CONTROL_TENANT_MASK_WORD + tenant] = 0 if allowed else 1

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────
    def status(self, slot_idx: int) -> int:
        """EMPTY, PUBLISHED, CLAIMED, DONE, …, FAULT."""
        self._check(slot_idx)
        return slot_status(self.book, slot_idx)

    def read_slot(self, slot_idx: int) -> RingSlot:
        """The slot's words now."""
        self._check(slot_idx)
        start = self.arena.layout.ring + slot_idx * abi.RING_SLOT_BYTES
        status = self.status(slot_idx)  # first, and acquired: the other words are at least as new
        return decode_slot(bytes(self.arena.view[start : start + abi.RING_SLOT_BYTES]))._replace(status=status)

    def result(self, data_slot: int) -> ResultBlock:
        """What the operation of a terminal slot left for its data slot."""
        layout = self.arena.layout
        if not 0 <= data_slot < layout.slots:
            raise OptionError(f"there are data slots 0 to {layout.slots - 1}, not {data_slot}")
        block = self.arena.view[layout.result(data_slot) : layout.result(data_slot) + layout.result_bytes]
        count, overflow, newlines, last, *values = _RESULT.unpack_from(block)
        kept = min(count, layout.hit_capacity)
        hits = tuple(_HIT.iter_unpack(block[abi.RESULT_HITS : abi.RESULT_HITS + kept * abi.HIT_BYTES]))
        return ResultBlock(count, overflow, newlines, None if last == abi.NO_NEWLINE else last, tuple(values), hits)

    @property
    def tail(self) -> int:
        """How many slots were published, modulo 2³²."""
        return state_word(self.book, abi.STATE_TAIL)

    @property
    def done_count(self) -> int:
        """How many slots became DONE or FAULT, modulo 2³²."""
        return int(self.control[abi.CONTROL_DONE_COUNT_WORD])

    @property
    def epoch(self) -> int:
        """How many BATCH_FENCEs were run, modulo 2³²."""
        return int(self.control[abi.CONTROL_EPOCH_WORD])

    def metrics(self) -> list[int]:
        """DONE slots by opcode modulo 32."""
        start = abi.CONTROL_METRICS_WORD
        return [int(word) for word in self.control[start : start + abi.CONTROL_METRICS_COUNT]]

    def observables(self) -> Control:
        """The words that LOAD_U32 writes to."""
        return self.control[abi.CONTROL_OBSERVABLE_WORD :]

    def read_log(self) -> list[LogRecord]:
        """The debug log's records, oldest first; those that found no room are missing."""
        words = self.arena.words(self.arena.layout.log, abi.LOG_BYTES // 4)
        end = min(int(words[0]), (len(words) - 1) // abi.LOG_RECORD_WORDS * abi.LOG_RECORD_WORDS)
        records = words[1 : 1 + end].reshape(-1, abi.LOG_RECORD_WORDS).tolist()
        return [LogRecord(record[0], (record[1], record[2], record[3])) for record in records]

    def wait(self, slots: Iterable[int], timeout: float = 30.0) -> None:
        """Wait until these slots are DONE or FAULT. Raises DeadlineExceeded, PipelineError where the kernel died."""
        deadline = time.monotonic() + timeout
        for slot in slots:
            while self.status(slot) not in TERMINAL:
                if self._kernel.failure is not None:
                    raise PipelineError("the kernel died") from self._kernel.failure
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded(f"ring slot {slot} to be done", timeout)
                time.sleep(_NAP)

    def _check(self, slot_idx: int) -> None:
        if self.life == "closed":
            raise PipelineError("the kernel is closed")
        if not 0 <= slot_idx < self.ring_slots:
            raise OptionError(f"the ring has slots 0 to {self.ring_slots - 1}, not {slot_idx}")

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Start the kernel. Once."""
        if self.life != "created":
            raise PipelineError(f"the kernel is {self.life}, not to be started")
        self.life = "started"
        self._kernel.start()

    def close(self) -> None:
        """Set SHUTDOWN and wait for the kernel's end."""
        if self.life == "closed":
            return
        self._kernel.close()
        self.life = "closed"
        if self._owns_arena:
            self.control = np.zeros(0, np.uint32)
            self.arena.close()

    def __enter__(self) -> Megakernel:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""``IngestDriver``: files through a pump and a megakernel, chunk by chunk, in the caller's own thread.

    with Megakernel.create(chunks=16, chunk_bytes=1 << 20) as kernel:
        driver = IngestDriver.over(kernel)
        for chunk in driver.scan(["a.bin", "b.bin"]):
            print(chunk.path, chunk.offset, chunk.bytes, chunk.values)
        driver.telemetry().validate_completed_zero_copy("registered")
        driver.close()

No Ray, no other process: what ``Reader``, ``Publisher`` and ``KernelHost`` do together, small enough to read. Every
chunk of the kernel is in one of three states: free, being read (the pump has it), or with the kernel. Memory is
bounded by the chunks: where none is free, the driver waits for a read or for the kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from uring_actors.arena import abi
from uring_actors.errors import DeadlineExceeded, OptionError
from uring_actors.megakernel.megakernel import TERMINAL, Megakernel
from uring_actors.uring.pump import UringMegakernelPump
from uring_actors.uring.ring import IoUringState
from uring_actors.uring.state import RingState
from uring_actors.uring.stream import AsyncUringStream
from uring_actors.uring.tail import AtomicTail
from uring_actors.uring.telemetry import IngestTelemetry

_NAP_SECONDS: Final = 0.000_1


class ScannedChunk(NamedTuple):
    """A chunk that the kernel is done with."""

    path: str
    offset: int
    bytes: int
    values: tuple[int, ...]
    """The operation's six numbers: TOUCH leaves the sum of the bytes in the first."""
    fault: bool
    """The kernel refused or could not run it."""


class _Chunk(NamedTuple):
    path: str
    offset: int


class IngestDriver:
    """Reads files with ``pump`` and has ``kernel`` run ``opcode`` on every chunk of them, as ``tenant``.

    The chunks are the kernel's data slots: ``pump.chunk_bytes`` must be their size. ``seconds``: the longest wait for
    one completion. One thread.
    """

    def __init__(
        self,
        pump: UringMegakernelPump,
        kernel: Megakernel,
        *,
        opcode: int = abi.OP_SCAN_TOUCH,
        tenant: int = 0,
        seconds: float = 60.0,
    ) -> None:
        layout = kernel.arena.layout
        if pump.chunk_bytes != layout.slot_bytes:
            raise OptionError(f"chunks have {pump.chunk_bytes} bytes, the kernel's data slots {layout.slot_bytes}")
        self._pump, self._kernel = pump, kernel
        self._opcode, self._tenant, self._seconds = opcode, tenant, seconds
        self._free = list(range(layout.slots))
        self._reading: dict[int, _Chunk] = {}  # by chunk, which is also its ring slot
        self._scanning: dict[int, _Chunk] = {}

    @classmethod
    def over(cls, kernel: Megakernel, ring_state: RingState | None = None, **options: int) -> IngestDriver:
        """A driver with a stream of its own, that reads into registered buffers over all of the kernel's chunks.
        ``ring_state``: of at least as many entries as there are chunks; None: a fresh IoUringState."""
        layout = kernel.arena.layout
        ring = ring_state or IoUringState(abi.power_of_two(layout.slots))
        ring.register_buffers([kernel.buffer])
        stream = AsyncUringStream(ring, kernel.buffer, AtomicTail())
        return cls(UringMegakernelPump(stream, layout.slot_bytes, buf_index=0), kernel, **options)

    def scan(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[ScannedChunk]:
        """Scan files; what was done, chunk by chunk, in the order in which the kernel finished (about).

        Raises OSError where a file can't be opened, ChunkFailed where a read fails, DeadlineExceeded. After an error
        ``close`` the driver.
        """
        size = self._pump.chunk_bytes
        for name in paths:
            path = os.fspath(name)
            with open(path, "rb", buffering=0) as file:
                for offset in range(0, os.fstat(file.fileno()).st_size, size):
                    while not self._free:
                        yield from self._turn()
                    self._begin(file.fileno(), _Chunk(path, offset))
        while self._reading or self._scanning:
            yield from self._turn()

    def _begin(self, fd: int, chunk: _Chunk) -> None:
        number = self._free.pop()
        self._reading[number] = chunk
        size = self._pump.chunk_bytes
        self._pump.submit_file_scan(
            fd, chunk.offset, size, number, number, self._tenant, self._opcode, (0, number, 0)
        )

    def _turn(self) -> list[ScannedChunk]:
        """Publish what was read, and take back what the kernel is done with; waits until there is something."""
        deadline = time.monotonic() + self._seconds
        while True:
            if self._pump.drain_into_ring(self._kernel):
                self._hand_over()
            done = self._collect()
            if done:
                return done
            if self._scanning:  # the kernel says nothing when it is done: look again soon
                time.sleep(_NAP_SECONDS)
            else:
                self._pump.wait(self._seconds)
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"{len(self._reading)} reads or {len(self._scanning)} scans", self._seconds)

    def _hand_over(self) -> None:
        for number in [n for n in self._reading if not self._pump.reading(n)]:
            self._scanning[number] = self._reading.pop(number)

    def _collect(self) -> list[ScannedChunk]:
        done = []
        for number in [n for n in self._scanning if self._kernel.status(n) in TERMINAL]:
            chunk = self._scanning.pop(number)
            slot = self._kernel.read_slot(number)
            values = self._kernel.result(number).values
            done.append(ScannedChunk(chunk.path, chunk.offset, slot.args[1], values, slot.status == abi.FAULT))
            self._free.append(number)
        return done

    def telemetry(self) -> IngestTelemetry:
        """The counters so far; after a whole run, ``validate_completed_zero_copy`` checks them."""
        return self._pump.telemetry()

    def close(self) -> None:
        """Cancel what is being read, and close stream and ring; idempotent. The kernel stays."""
        self._pump.close()

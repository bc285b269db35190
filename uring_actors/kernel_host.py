"""The kernel host: runs the resident kernel and settles what it hands back.

Three kinds of threads: the kernel's own (``megakernel/cpu.py``), one that settles (collect terminal slots in publish
order → rows → retire), and whoever takes the rows. Bundles of them wait in a bounded queue: a slow consumer stops the
settling, then the ring runs dry of free slots and the lanes of credits, so memory stays bounded from end to end.

Life: created → started → finishing (``finish`` was told how many files there are) → closed (idempotent).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.errors import PipelineError
from uring_actors.groups import GroupEnd, Groups, Item
from uring_actors.loop import SLICE_NS, LoopThread
from uring_actors.megakernel import feed, packed, ring
from uring_actors.megakernel.cpu import CpuKernel
from uring_actors.megakernel.cuda import CudaKernel
from uring_actors.ops.base import Operation, Rows
from uring_actors.plan import FileEntry
from uring_actors.publisher import ScanJob
from uring_actors.results.errors import Failure

_COLLECT = 16
"""Slots settled before the first of them is retired: few, so that lanes are not kept waiting."""
_QUEUE = 8
"""Bundles that may wait for the consumer."""
_BUNDLE_BYTES = 1 << 20
"""Of rows, from which on a bundle takes no more."""
_CHECK_SECONDS = 0.2
_GPU_NAP_NS = 20_000
"""How long settling sleeps between looks at a ring whose kernel can't wake it."""
_FLUSH_SECONDS = 0.05
"""How long rows may wait for a batch to fill. Those of a group may wait for its end: nobody uses them before."""


@dataclass(frozen=True, slots=True)
class HostStats:
    """Counters so far: ``bytes`` of settled extents, ``first_row`` as time.monotonic() of the first batch."""

    files: int
    bytes: int
    matches: int
    errors: int
    first_row: float | None


class KernelHost:
    """One node's kernel host. ``failure`` is what ended one of its threads, if anything did."""

    def __init__(
        self, arena: Arena, job: ScanJob, operation: Operation, *, backend: str, threads: int, spins: int
    ) -> None:
        self._arena = arena
        self._book = arena.address_book()
        self._spins = spins
        self._settler = operation.make_settler(arena, job.geometry.payload)
        self._kernel: CpuKernel | CudaKernel
        if backend == "cuda":
            self._kernel = CudaKernel(arena, functions=operation.device_functions)
            if operation.automata is not None:
                self._kernel.load(operation.automata)  # the first set: number 0, as the slots' parameter says
            self._nap_ns = _GPU_NAP_NS
        else:
            self._kernel = CpuKernel(arena, threads, spins=spins, make_worker=lambda: operation.make_worker(arena))
            self._nap_ns = SLICE_NS
        self._retired = feed.retired_channel(self._book)
        self._mask = arena.layout.channel_records - 1
        self._rows: Rows = np.zeros((_COLLECT, ring.COLUMNS), np.int64)
        self._files: Rows = np.empty((0, ring.COLUMNS), np.int64)
        self._position = int(arena.words(arena.layout.state + abi.STATE_RETIRED, 1)[0])
        self._incoming: queue.SimpleQueue[tuple[Sequence[FileEntry], int | None]] = queue.SimpleQueue()
        self._groups = Groups()
        self._bundles: queue.Queue[list[Item] | None] = queue.Queue(_QUEUE)
        self._total: int | None = None
        self._flushed = time.monotonic()
        self._first_row: float | None = None
        self._settling = LoopThread("settle", self._step)

    def start(self) -> None:
        self._kernel.start()
        self._settling.start()

    @property
    def failure(self) -> BaseException | None:
        return self._settling.failure or self._kernel.failure

    def add_files(self, files: Sequence[FileEntry], group: int | None = None) -> None:
        """Announce files, before any reader has them. ``group``: they are all that it has (``groups.py``)."""
        self._incoming.put((files, group))

    def finish(self, total: int) -> None:
        """No more files than the ``total`` announced so far: the batches end when all are settled."""
        self._total = total

    def bundles(self, check: Callable[[], None]) -> Iterator[list[Item]]:
        """Rows as they are settled, until all files are done or the host is closed: together what came at once, for
        a consumer to whom each call is dear. One consumer.

        While none come, ``check`` is called a few times a second: it raises where waiting is in vain.
        """
        while True:
            try:
                bundle = self._bundles.get(timeout=_CHECK_SECONDS)
            except queue.Empty:
                check()
                continue
            if bundle is None:
                check()
                return
            yield bundle

    def failures(self) -> list[Failure]:
        """What could not be scanned so far."""
        return list(self._settler.failures)

    def stats(self) -> HostStats:
        settler = self._settler
        return HostStats(settler.files, settler.bytes, settler.matches, len(settler.failures), self._first_row)

    def _step(self) -> bool:
        count = ring.collect(self._book, self._position, self._rows, self._spins, self._nap_ns, SLICE_NS)
        # After collecting: whoever submitted these slots' files has announced them before.
        while not self._incoming.empty():
            files, group = self._incoming.get()
            if group is not None:
                files = self._groups.begin(group, files)
            self._settler.expect(files)
        if count:
            rows = self._rows[:count]
            self._settler.settle(self._unpacked(rows))
            if not ring.retire(self._book, self._retired, self._mask, rows, count):
                raise PipelineError("the retired channel is full: a slot was retired twice, or the publisher is gone")
            self._position = (self._position + count) & abi.WRAP
        complete = self._complete_groups()
        finished = self._settler.files == self._total
        now = time.monotonic()
        due = finished or bool(complete) or (not self._groups.open and now - self._flushed >= _FLUSH_SECONDS)
        if due:
            self._flushed = now
        bundle: list[Item] = []
        size = 0
        for batch in self._settler.take(everything=due):
            if size >= _BUNDLE_BYTES:
                if not self._put(bundle):
                    return False
                bundle, size = [], 0
            bundle += self._groups.rows(batch)
            size += batch.nbytes
        bundle += [self._groups.end(group) for group in complete]
        if bundle and not self._put(bundle):
            return False
        if finished:
            self._put(None)
        return not finished

    def _unpacked(self, rows: Rows) -> Rows:
        """A row for each file, where slots are packed."""
        packed_slots = rows[:, ring.COLUMN_FLAGS] & abi.FLAG_PACKED != 0
        if not packed_slots.any():
            return rows
        room = len(rows) + int(rows[packed_slots, ring.COLUMN_FILE_ID].sum())
        if room > len(self._files):
            self._files = np.empty((2 * room, ring.COLUMNS), np.int64)
        return self._files[: packed.unpack(self._book, rows, self._files)]

    def _complete_groups(self) -> list[int]:
        settled = self._settler.settled
        if not settled:
            return []
        complete = self._groups.settled(settled, self._settler.failures, self._settler.ends)
        settled.clear()
        self._settler.ends.clear()
        return complete

    def _put(self, bundle: list[Item] | None) -> bool:
        """Queue a bundle, for as long as it takes; False where the host was closed meanwhile."""
        if self._first_row is None and not all(isinstance(item, GroupEnd) for item in bundle or ()):
            self._first_row = time.monotonic()
        while not self._settling.stopping:
            try:
                self._bundles.put(bundle, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def close(self) -> None:
        """Stop the kernel and the settling, and end the batches."""
        self._settling.stop()
        self._kernel.close()
        self._settling.join(10)
        while True:  # make room for the end mark; whoever still reads gets it next
            try:
                self._bundles.put_nowait(None)
                return
            except queue.Full:
                self._bundles.get_nowait()

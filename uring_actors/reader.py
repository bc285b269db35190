"""The reader: one block device's files, opened, cut into runs of extents, and read by its lanes.

    created → started → draining → closed

The owner submits files and polls ``failure``; what was read is announced to the publisher by the lanes themselves
(``uring/work.py``), one record for each extent, and one for each file that could not be opened. Nothing here knows
of Ray.

Small files, where they are packed, go to a lane as they were listed, a batch at a time (``uring/pack.py``). For any
other file one thread, the opener, does everything that Python must do: open it, make sure that it is the one that
was listed, decide between the page cache and O_DIRECT for each stretch of it, hand its extents to lanes, close it
when the last one is done. It holds at most ``max_open`` descriptors (and a file that is read both ways has two). Who
writes what: ``submit`` appends to the queue of files; all else (descriptors, the lanes' jobs) is the opener's;
``close`` takes over when the opener has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.arena.private import PrivateMemory
from uring_actors.errors import DeadlineExceeded, MemlockTooSmall, NodeFailed, OptionError, PipelineError
from uring_actors.plan import FileBatch, FileEntry
from uring_actors.uring.lane import UringLane
from uring_actors.uring.pagecache import stretches
from uring_actors.uring.pread import PreadLane
from uring_actors.uring.reference import binding
from uring_actors.uring.reference_lane import LiburingLane
from uring_actors.uring.ring import check_memlock, probe
from uring_actors.uring.work import (
    C_EXTENTS,
    Geometry,
    Job,
    Lane,
    LaneStats,
    get_ready,
    never_mind,
    ring_bell,
    sleep_unless,
)

# A FIFO that took a file's place must not block the opener; O_NONBLOCK is taken off again (see _set_flags).
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_NAP_NS: Final = 50_000_000
_PACK_MOST: Final = 128 << 10  # above that a file's own slot costs less than it gains
_HAND_OVER: Final = 16  # jobs handed to a lane at once: waking it for every small file costs more than reading it


ENGINES: Final = ("uring", "pread", "liburing")


# ── which engine ─────────────────────────────────────────────────────────────────────────────────────────────
def choose_io_engine(mode: str, buffer_bytes: int = 0) -> tuple[str, str | None]:
    """The engine for ``--io-engine`` auto, uring, pread or liburing; and, where auto takes pread, the warning that
    says why and how to get io_uring. ``buffer_bytes``: what one process will register.

    ``uring`` and ``liburing`` insist: they raise IoUringUnavailable, MemlockTooSmall or IoUringSyscall; ``liburing``
    also OptionError where the binding can't be had.
    """
    if mode not in ("auto", *ENGINES):
        raise OptionError(f"io_engine is auto, {' or '.join(ENGINES)}, not {mode!r}")
    if mode == "pread":
        return "pread", None
    if mode == "liburing":
        binding()
    error = probe().error
    if error is None:
        try:
            check_memlock(buffer_bytes)
        except MemlockTooSmall as small:
            error = small
    if error is None:
        return "uring" if mode == "auto" else mode, None
    if mode != "auto":
        raise error
    return "pread", pread_note(error)


def pread_note(error: Exception) -> str:
    """What the user is told where ``auto`` takes pread."""
    return f"reading with pread, not io_uring: {error}"


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────
def _set_flags(fd: int, direct: bool) -> None:
    """Leave O_DIRECT or nothing on the open file. O_NONBLOCK has to go: io_uring takes it as «never wait», and
    reads on file systems that can't promise that come back with EAGAIN."""
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT if direct else 0)


def open_file(entry: FileEntry, *, direct: bool) -> int:
    """Open a listed file, to be read past the page cache if ``direct``; its descriptor.

    Raises OSError: ESTALE where something else is there now, EINVAL where the file system has no O_DIRECT.
    """
    fd = os.open(entry.path, _OPEN_FLAGS)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != (entry.device, entry.inode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        _set_flags(fd, direct)
    except BaseException:
        os.close(fd)
        raise
    return fd


def default_max_open() -> int:
    """A quarter of what this process may have open, for there may be other readers in it."""
    return max(1, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


# ── the reader ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What a reader has done so far."""

    lanes: LaneStats
    """The sum of all lanes'."""
    files_opened: int
    files_failed: int
    """Could not be opened, or were not what was listed."""
    files_direct: int
    files_open: int
    """Now."""
    files_queued: int
    """Submitted and not yet opened, now."""


@dataclass(slots=True)
class _Open:
    fds: list[int]
    """One, or a second one that reads past the page cache."""
    runs: int
    """Not yet done, and one while runs are being made; the descriptors are closed with the last."""


class Reader:
    """Reads the files of one device. See the module's page for its life.

    arena, lanes: the reader runs these lanes of the arena, one thread and one share of the data slots each.
    device: for messages and thread names. io_engine: of ENGINES (``choose_io_engine`` decides). io: auto,
    direct or buffered. depth: the most reads in flight in a lane. run_extents: how many extents of a large file
    go to one lane in a piece. queue_files: how many files ``submit`` takes before it blocks. max_open: the most
    descriptors. pack: whether small files share data slots.

    ``submit``, ``finish`` and ``close`` belong to the owner, who may call them from several threads; ``failure``
    and ``stats`` to anybody.
    """

    def __init__(
        self,
        arena: Arena,
        device: str,
        lanes: Sequence[int],
        geometry: Geometry,
        *,
        io_engine: str = "uring",
        io: str = "auto",
        sqpoll: bool = False,
        sqpoll_idle_ms: int = 50,
        sqpoll_cpu: int | None = None,
        depth: int = 256,
        run_extents: int = 64,
        queue_files: int = 4096,
        max_open: int | None = None,
        slice_ms: float = 10.0,
        spin: int = 200,
        pack: bool = False,
    ) -> None:
        if io_engine not in ENGINES:
            raise OptionError(f"a reader's io_engine is {' or '.join(ENGINES)}, not {io_engine!r}")
        if io not in ("auto", "direct", "buffered"):
            raise OptionError(f"io is auto, direct or buffered, not {io!r}")
        if not lanes or min(run_extents, queue_files) < 1 or (max_open is not None and max_open < 1):
            raise OptionError("a reader needs a lane, a run of at least 1 extent, room for 1 file and 1 descriptor")
        self.arena, self.device, self.geometry = arena, device, geometry
        self.io_engine, self.io = io_engine, io
        self.life = "created"
        self._lane_numbers = list(lanes)
        self._ring_options: dict[str, Any] = {
            "sqpoll": sqpoll,
            "sqpoll_idle_ms": sqpoll_idle_ms,
            "sqpoll_cpu": sqpoll_cpu,
        }
        self._lane_options: dict[str, Any] = {"depth": depth, "slice_ms": slice_ms, "spin": spin}
        self._run_extents, self._bound = run_extents, queue_files
        self._max_open = default_max_open() if max_open is None else max_open
        self._bell = PrivateMemory(abi.CACHE_LINE)
        self._queue: deque[FileBatch] = deque()
        self._queued = 0  # files in it
        self._packs: dict[int, Any] = {}  # by token: what a packed job reads
        self._pack_most = 0  # bytes of a file that is packed
        if pack:
            layout = arena.layout
            room = layout.slot_bytes - layout.packed_entries * abi.PACKED_ENTRY_BYTES
            self._pack_most = min(_PACK_MOST, room // 4)
        self._room = threading.Condition()  # guards the queue's bound and ``life``
        self._closing = threading.Lock()
        self._abort = False
        self._failure: BaseException | None = None
        self._lanes: list[Lane] = []
        self._load: list[int] = []  # extents given to each lane
        self._ready: list[list[Job]] = []  # jobs for each lane that are not yet handed over
        self._open: dict[int, _Open] = {}
        self._token = 0
        self._opened = self._failed = self._direct = 0
        self._descriptors = 0  # open now
        self._opener = threading.Thread(target=self._run, name=f"reader-{device}-opener", daemon=True)

    # ── the owner's side ─────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Set the lanes up and start all threads. Raises what ``UringLane`` raises; the reader is closed then."""
        with self._room:
            if self.life != "created":
                raise PipelineError(f"the reader is {self.life}, not to be started", device=self.device)
            self.life = "started"
        try:
            for number in self._lane_numbers:
                self._lanes.append(self._make_lane(number))
                self._load.append(0)
                self._ready.append([])
            for lane in self._lanes:
                lane.start()
            self._opener.start()
        except BaseException:
            self.close()
            raise

    def _make_lane(self, number: int) -> Lane:
        jobs = max(64, abi.power_of_two(4 * min(self._lane_options["depth"], self.arena.layout.slots_per_lane)))
        options = {
            **self._lane_options,
            "jobs": jobs,
            "done_bell": self._bell.address,
            "name": f"reader-{self.device}-lane-{number}-{self.io_engine}",
        }
        if self.io_engine == "pread":
            return PreadLane(self.arena, number, self.geometry, **options)
        if self.io_engine == "liburing":
            return LiburingLane(self.arena, number, self.geometry, sqpoll=self._ring_options["sqpoll"], **options)
        return UringLane(self.arena, number, self.geometry, **self._ring_options, **options)

    def submit(self, files: Sequence[FileEntry], seconds: float | None = None) -> None:
        """Queue files, none of them empty; blocks while the queue is full. Raises DeadlineExceeded after
        ``seconds`` (the files before are queued), NodeFailed where a thread of the reader died."""
        deadline = None if seconds is None else time.monotonic() + seconds
        batch = FileBatch.of(files)
        if (batch.sizes <= 0).any():
            raise OptionError("an empty file can't be submitted: there is nothing to read", device=self.device)
        taken = 0
        while taken < len(batch):
            with self._room:
                self._wait_for_room(deadline, seconds)
                part = batch[taken : taken + self._bound - self._queued]
                self._queue.append(part)
                self._queued += len(part)
                taken += len(part)
            ring_bell(self._bell.address)

    def _wait_for_room(self, deadline: float | None, seconds: float | None) -> None:
        while True:
            if self.life != "started":
                raise PipelineError(f"the reader is {self.life} and takes no files", device=self.device)
            self._raise_failure()
            if self._queued < self._bound:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded("room in the reader's queue", seconds or 0.0, device=self.device)
            self._room.wait(0.1)

    def _raise_failure(self) -> None:
        failure = self.failure
        if failure is not None:
            raise NodeFailed("reader", str(failure), device=self.device) from failure

    @property
    def failure(self) -> BaseException | None:
        """What killed one of the reader's threads, or None."""
        return next((lane.failure for lane in self._lanes if lane.failure is not None), self._failure)

    def drain(self) -> None:
        """No more files will come. Returns at once."""
        with self._room:
            if self.life == "started":
                self.life = "draining"
            self._room.notify_all()
        ring_bell(self._bell.address)

    def finish(self, seconds: float | None = None) -> None:
        """Drain, and wait until everything was read and announced and every file is closed. Raises
        DeadlineExceeded, or NodeFailed where a thread of the reader died."""
        self.drain()
        self._opener.join(seconds)
        self._raise_failure()
        if self._opener.is_alive():
            waited = f"{self._queued} queued and {len(self._open)} open files of the reader"
            raise DeadlineExceeded(waited, seconds or 0.0, device=self.device)

    def close(self, seconds: float = 30.0) -> None:
        """Stop, wait for reads in flight, close every file; idempotent. Raises DeadlineExceeded where the kernel
        does not give the reads back: the arena must stay mapped then."""
        with self._closing:
            if self.life == "closed":
                return
            with self._room:
                self.life = "draining"
                self._abort = True
                self._room.notify_all()
            ring_bell(self._bell.address)
            if self._opener.ident is not None:
                self._opener.join(seconds)
                if self._opener.is_alive():  # open(2) or fstat(2) hangs: a dead network file system
                    raise DeadlineExceeded("the reader's opener", seconds, device=self.device)
            for lane in self._lanes:
                lane.abort()
            for lane in self._lanes:
                lane.close(seconds)
            for entry in self._open.values():
                for fd in entry.fds:
                    os.close(fd)
            self._open.clear()
            self.life = "closed"

    def stats(self) -> ReaderStats:
        """The counters now."""
        lanes = sum((lane.stats() for lane in self._lanes), LaneStats())
        return ReaderStats(
            lanes=lanes,
            files_opened=self._opened + lanes.packed_files - lanes.unopened_files,
            files_failed=self._failed + lanes.unopened_files,
            files_direct=self._direct,
            files_open=len(self._open),
            files_queued=self._queued,
        )

    # ── the opener ───────────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            while (batch := self._take_files()) is not None:
                self._read_files(batch)
            for lane in self._lanes:
                lane.finish()
            # Empty when every job came back; the lanes' threads then have nothing left and end.
            self._wait(lambda: not self._open and not self._packs)
            self._wait(lambda: all(lane.ended for lane in self._lanes))
        except _Stopped:
            pass
        except BaseException as error:  # the owner's monitor finds it in ``failure``
            self._failure = error
        finally:
            with self._room:
                self._room.notify_all()

    def _take_files(self) -> FileBatch | None:
        """Some files from the queue; None when it is drained."""
        self._wait(lambda: bool(self._queue) or self.life == "draining")
        with self._room:
            if not self._queue:
                return None
            taken = self._queue.popleft()
            self._queued -= len(taken)
            self._room.notify_all()
        return taken

    def _read_files(self, batch: FileBatch) -> None:
        """Have small files packed, and read the others one by one; a file in pieces is never small."""
        small = batch.sizes <= self._pack_most
        if small.any():
            self._pack(batch.take(np.flatnonzero(small)))
        for row in np.flatnonzero(~small).tolist():
            self._read_file(batch[row])

    def _pack(self, batch: FileBatch) -> None:
        self._token += 1
        paths = np.frombuffer(batch.paths, np.uint8)
        given: list[Any] = [batch.ids, batch.sizes, batch.devices, batch.inodes, batch.ends, paths]
        columns = [np.ascontiguousarray(column) for column in given]
        table = np.array([column.ctypes.data for column in columns], np.int64)
        self._packs[self._token] = (table, columns)
        self._give(Job(self._token, 0, -1, 0, 0, len(batch), table=table.ctypes.data))

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Close what is done until ``ready``. Raises _Stopped where the reader is closing or a lane has died."""
        for lane in range(len(self._lanes)):
            self._hand_over(lane)
        while True:
            self._collect()
            if self._abort or self.failure is not None:
                raise _Stopped
            if ready():
                return
            key = get_ready(self._bell.address)
            if self._collect() or ready() or self._abort:
                never_mind(self._bell.address)
            else:
                sleep_unless(self._bell.address, key, _NAP_NS)

    def _collect(self) -> bool:
        """Close files whose last run is done; whether any run was."""
        any_done = False
        for lane in self._lanes:
            for token in lane.returned():
                any_done = True
                if token in self._open:
                    self._run_done(token)
                else:  # or of a file that could not be opened, and nothing is held
                    self._packs.pop(token, None)
        return any_done

    def _run_done(self, token: int) -> None:
        entry = self._open[token]
        entry.runs -= 1
        if entry.runs == 0:
            del self._open[token]
            self._descriptors -= len(entry.fds)
            for fd in entry.fds:
                os.close(fd)

    def _read_file(self, entry: FileEntry) -> None:
        """Open a file and hand its runs to lanes; or have its failure announced."""
        self._token += 1
        if self._descriptors >= self._max_open:
            self._wait(lambda: self._descriptors < self._max_open)
        try:
            fd = self._open_patiently(entry)
        except OSError as error:
            self._failed += 1
            number = error.errno or errno.EIO
            self._give(Job(self._token, entry.id, -1, entry.size, errno=number))
            return
        self._opened += 1
        self._descriptors += 1
        file = self._open[self._token] = _Open([fd], 1)
        any_direct = False
        for first, count, direct in self._runs(entry, file):
            any_direct |= direct
            file.runs += 1
            self._give(Job(self._token, entry.id, file.fds[-1 if direct else 0], entry.size, first, count, direct))
        self._direct += any_direct
        self._run_done(self._token)

    def _runs(self, entry: FileEntry, file: _Open) -> Iterator[tuple[int, int, bool]]:
        """The file's runs of extents (or the piece's): first, how many, and whether past the page cache. Under
        ``auto`` the kernel is asked what it has cached, run by run as they are made; one extent alone isn't worth the
        question."""
        extents = range(entry.start // self.geometry.payload, self.geometry.extents(entry.stop))
        ask = self.io == "auto" and len(extents) > 1
        for first in extents[:: self._run_extents]:
            count = min(self._run_extents, extents.stop - first)
            if not ask:
                yield first, count, self.io == "direct"
                continue
            for start, part, cached in stretches(file.fds[0], entry.size, self.geometry.payload, first, count):
                ask = ask and (cached or self._add_direct(entry, file))
                yield start, part, ask and not cached

    def _add_direct(self, entry: FileEntry, file: _Open) -> bool:
        """See that the file is open for reading past the page cache too; whether it can be."""
        if len(file.fds) == 1:
            try:
                file.fds.append(open_file(entry, direct=True))
            except OSError:  # no O_DIRECT on this file system, no descriptor left, another file there by now
                return False
            self._descriptors += 1
        return True

    def _open_patiently(self, entry: FileEntry) -> int:
        """``open_file``; where descriptors are exhausted, again when one of ours was closed."""
        while True:
            try:
                return open_file(entry, direct=self.io == "direct")
            except OSError as error:
                held = len(self._open)
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not held:
                    raise
            self._wait(lambda held=held: len(self._open) < held)  # type: ignore[misc]

    def _give(self, job: Job) -> None:
        """Give a job to the lane with the least to do; wait where none has room. It is handed over with others,
        at the latest before the opener waits."""
        lane = self._least_loaded()
        if lane < 0:
            self._wait(lambda: self._least_loaded() >= 0)
            lane = self._least_loaded()
        ready = self._ready[lane]
        ready.append(job)
        if job.errno == 0:
            self._load[lane] += job.extents
        if len(ready) >= _HAND_OVER:
            self._hand_over(lane)

    def _hand_over(self, lane: int) -> None:
        ready = self._ready[lane]
        if ready:
            offered = self._lanes[lane].offer(ready)
            assert offered == len(ready), "_least_loaded counts what is ready"
            ready.clear()

    def _least_loaded(self) -> int:
        """The index of the lane with room and the fewest extents to come, or −1."""
        if len(self._lanes) == 1:
            return 0 if self._lanes[0].room > len(self._ready[0]) else -1
        best, least = -1, 0
        for i, lane in enumerate(self._lanes):
            load = self._load[i] - int(lane.counters[C_EXTENTS])
            if lane.room > len(self._ready[i]) and (best < 0 or load < least):
                best, least = i, load
        return best


class _Stopped(Exception):
    """The opener has to end: the reader is closing, or a lane has died."""

"""The reference engine: every read through the ``liburing`` binding, behind the stream's and the lanes' interfaces.

It is there to hold our own use of the kernel's interface against somebody else's: the same reads must give the same
bytes, completions and errors. It is slower (a read costs several calls into the binding), and otherwise does the
same. READ_FIXED becomes READV_FIXED (Linux 6.15), for the binding's READ_FIXED takes nothing but a bytearray.

The binding is for x86-64. What it does that one must know (2026.3.30): ``cqe.res`` raises a negative result as
OSError; no call releases the GIL, so a wait is poll(2) on the ring's descriptor; and an ``Iovec`` never lets go of
the memory that it was made from. So each ``Iovec`` here is made once, over a byte of its own, and its ``struct
iovec`` is written in place; where that structure isn't found where this version has it, the engine refuses to start.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import platform
import select
import time
from typing import Any, Final

from uring_actors.errors import IoUringSyscall, OptionError, PipelineError
from uring_actors.uring import kernel, requests
from uring_actors.uring.engine import Engine
from uring_actors.uring.requests import (
    CANCEL,
    FLYING,
    R_ADDRESS,
    R_BUFFER,
    R_DONE,
    R_FD,
    R_FIXED_FILE,
    R_OFFSET,
    R_OPCODE,
    R_STATE,
    S_CANCELS,
    S_ENDED,
    S_FINISHED,
    S_FLYING,
    Requests,
)
from uring_actors.uring.ring import buffers_error, files_error, setup_error
from uring_actors.uring.state import RingState

_OBJECT_HEADER: Final = 16  # of a CPython object: reference count and type; then the binding's length and pointer
_MAX_STUCK: Final = 10_000
_PLAIN: Final = -1
"""``buffer`` of a read that has no registered one."""


@functools.cache
def binding() -> Any:
    """The binding. Raises OptionError where it can't be had."""
    if platform.machine() != "x86_64":
        raise OptionError(
            f"the liburing engine is for x86-64, not {platform.machine()}", fix="Use io_engine uring or pread."
        )
    try:
        return importlib.import_module("liburing")
    except ImportError as error:
        raise OptionError(
            f"the liburing engine needs the package liburing: {error}",
            fix="pip install liburing, or io_engine uring.",
        ) from error


@functools.cache
def has_readv_fixed() -> bool:
    """Whether this kernel has READV_FIXED (6.15)."""
    return bool(binding().probe().get("IORING_OP_READV_FIXED"))


class _Vector:
    """An ``Iovec`` of ``count`` parts whose addresses and lengths can be set."""

    def __init__(self, count: int) -> None:
        parts = [bytearray(i % 200 + 1) for i in range(count)]
        self.object = binding().Iovec(parts)
        length, pointer = (ctypes.c_uint64 * 2).from_address(id(self.object) + _OBJECT_HEADER)
        if length == count:
            self._parts = (kernel.Iovec * count).from_address(pointer)
            expected = [(_address(part), len(part)) for part in parts]
            if [(part.base, part.length) for part in self._parts] == expected:
                return
        raise OptionError("this version of the package liburing is not known here", fix="Install liburing 2026.3.30.")

    def set(self, index: int, address: int, length: int) -> None:
        self._parts[index].base, self._parts[index].length = address, length


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class LiburingState(RingState):
    """A ring set up by liburing, with ``entries`` submission entries (a power of two) and twice as many completion
    entries. For an ``AsyncUringStream``, as ``IoUringState`` is; liburing's own poller idles for a second.

    Raises OptionError (no binding here), IoUringUnavailable, MemlockTooSmall, IoUringSyscall.
    """

    def __init__(self, entries: int = 64, sqpoll: bool = False) -> None:
        super().__init__()
        if not 0 < entries <= kernel.MAX_ENTRIES:
            raise OptionError(f"{entries} submission entries make no ring")
        self._binding = binding()
        self.sqpoll = sqpoll
        self._ring = self._binding.Ring()
        try:
            self._binding.io_uring_queue_init(entries, self._ring, kernel.SETUP_SQPOLL if sqpoll else 0)
        except OSError as error:
            self.closed = True
            raise setup_error(error.errno or errno.EIO, entries=entries, sqpoll=sqpoll) from error
        self.entries: int = self._binding.io_uring_sq_space_left(self._ring)
        self.unsent = 0
        """Entries that were put and not yet submitted."""
        self._stuck = 0
        self._cqe = self._binding.Cqe()
        self._vectors: list[_Vector | None] = [None] * self.entries
        self._poll = select.poll()
        self._poll.register(self._ring.ring_fd, select.POLLIN)

    # ── entries in, completions out ──────────────────────────────────────────────────────────────────────────
    def room(self) -> int:
        """How many entries the submission queue has room for."""
        return int(self._binding.io_uring_sq_space_left(self._ring))

    def put_read(
        self, row: int, fd: int, fixed_file: bool, offset: int, address: int, length: int, buffer: int = _PLAIN
    ) -> None:
        """Queue a read of ``length`` bytes, labelled with ``row``, whose iovec (one for each row) is free."""
        vector = self._vectors[row]
        if vector is None:
            vector = self._vectors[row] = _Vector(1)
        vector.set(0, address, length)
        sqe = self._binding.Sqe()
        if buffer == _PLAIN:
            self._binding.io_uring_prep_readv(sqe, fd, vector.object, offset, 0)
        else:
            self._binding.io_uring_prep_readv_fixed(sqe, fd, vector.object, buffer, offset, 0)
        if fixed_file:
            sqe.flags = kernel.SQE_FIXED_FILE
        self._put(sqe, row)

    def put_cancel(self, row: int) -> None:
        """Queue the cancellation of the read labelled ``row``."""
        sqe = self._binding.Sqe()
        self._binding.io_uring_prep_cancel64(sqe, row, 0)
        self._put(sqe, CANCEL)

    def _put(self, sqe: Any, user_data: int) -> None:
        sqe.user_data = user_data
        # The entry is whole before it is in the queue: no exception can leave half of one there.
        if not self._binding.put_sqe(self._ring, sqe):
            raise PipelineError("liburing's submission queue is full, which can't be")
        self.unsent += 1

    def submit(self) -> None:
        """Hand everything over. Raises IoUringSyscall."""
        try:
            self._binding.io_uring_submit(self._ring)
        except OSError as error:
            self._stuck += 1
            passing = error.errno in (errno.EAGAIN, errno.EBUSY, errno.EINTR)
            if not passing or self._stuck >= _MAX_STUCK:
                raise IoUringSyscall("io_uring_submit", error.errno or errno.EIO) from error
            self.pause(1)
            return
        self._stuck = 0
        self.unsent = 0 if self.sqpoll else self.entries - self.room()

    def arrivals(self) -> list[tuple[int, int]]:
        """(label, result) of all completions that are there."""
        found = []
        while self._binding.io_uring_cq_ready(self._ring):
            self._binding.io_uring_peek_cqe(self._ring, self._cqe)
            cqe = self._cqe[0]
            try:
                result = cqe.res
            except OSError as error:
                result = -(error.errno or errno.EIO)
            found.append((cqe.user_data, result))
            self._binding.io_uring_cqe_seen(self._ring, cqe)
        return found

    def pause(self, milliseconds: int) -> None:
        """Wait until there is a completion, without the GIL."""
        self._poll.poll(milliseconds)

    # ── what a ring state has ────────────────────────────────────────────────────────────────────────────────
    def make_engine(self, requests: Requests) -> Engine:
        """See ``RingState``."""
        return LiburingEngine(self, requests)

    def _register_buffers(self, ranges: list[tuple[int, int]]) -> None:
        if not has_readv_fixed():
            raise OptionError(
                "through liburing, reads into registered buffers need Linux 6.15 (READV_FIXED)",
                fix="Read without buf_index, or use IoUringState.",
            )
        vector = _Vector(len(ranges))
        for i, (address, length) in enumerate(ranges):
            vector.set(i, address, length)
        try:
            self._binding.io_uring_register_buffers(self._ring, vector.object)
        except OSError as error:
            raise buffers_error(error.errno or errno.EIO, sum(length for _, length in ranges)) from error

    def _register_files(self, fds: list[int]) -> None:
        try:
            self._binding.io_uring_register_files(self._ring, self._binding.FileIndex(fds))
        except OSError as error:
            raise files_error(error.errno or errno.EIO) from error

    def _update_file(self, index: int, fd: int) -> None:
        try:
            self._binding.io_uring_register_files_update(self._ring, self._binding.FileIndex([fd]), index)
        except OSError as error:
            raise files_error(error.errno or errno.EIO) from error

    def _close(self) -> None:
        self._binding.io_uring_queue_exit(self._ring)

    def __del__(self) -> None:
        if not self.__dict__.get("closed", True):
            self.closed = True
            self._close()


class LiburingEngine(Engine):
    """See ``Engine``; the table's rules are those of ``requests.py``, completion by completion."""

    def __init__(self, ring: LiburingState, table: Requests) -> None:
        super().__init__(table)
        self._ring = ring

    def start(self, *fields: int) -> None:
        table = self.table
        self._put(requests.begin(table.rows, table.state, table.counters, *[*fields, -1]))

    def _put(self, row: int) -> None:
        words = self.table.rows[row].tolist()
        done = words[R_DONE]
        self._ring.put_read(
            row,
            words[R_FD],
            bool(words[R_FIXED_FILE]),
            words[R_OFFSET] + done,
            words[R_ADDRESS] + done,
            requests.length_of(self.table.rows, row),
            words[R_BUFFER] if words[R_OPCODE] == kernel.OP_READ_FIXED else _PLAIN,
        )

    def submit(self) -> None:
        self._ring.submit()

    def turn(self) -> None:
        self._ring.submit()
        self.reap()
        if self._ring.unsent:
            self._ring.submit()

    def wait(self, until_ns: int) -> None:
        state = self.table.state
        self.turn()
        while not state[S_FINISHED] and state[S_FLYING] + state[S_CANCELS]:
            left = until_ns - time.monotonic_ns()
            if left <= 0:
                return
            self._ring.pause(min(100, left // 1_000_000 + 1))
            self.turn()

    def run(self, until_ns: int) -> None:
        table = self.table
        while table.state[S_ENDED] < len(table.extents) and time.monotonic_ns() < until_ns:
            while (row := requests.begin_extents(table.rows, table.state, table.counters, table.extents)) >= 0:
                self._put(row)
            self._ring.submit()
            self._ring.pause(100)
            self.reap()

    def reap(self) -> None:
        table = self.table
        for row, result in self._ring.arrivals():
            if row == CANCEL:
                table.state[S_CANCELS] -= 1
                continue
            if not 0 <= row < len(table.rows) or table.rows[row, R_STATE] != FLYING:
                raise PipelineError(f"the ring is broken: {requests.BROKEN_TEXT[requests.BAD_COMPLETION]}")
            if requests.settle(table.rows, table.state, table.counters, row, result):
                requests.finish(table.rows, table.state, table.counters, table.finished, table.extents, row)
            else:
                self._put(row)

    def held(self) -> int:
        return int(self.table.state[S_FLYING] + self.table.state[S_CANCELS]) - self._ring.unsent

    def cancel(self, row: int) -> bool:
        if not self._ring.room():
            return False
        self.table.state[S_CANCELS] += 1
        self._ring.put_cancel(row)
        return True

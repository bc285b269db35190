"""``AsyncUringStream``: reads pushed into an io_uring, straight into mapped memory, and a tail that counts them.

    stream = AsyncUringStream(IoUringState(64), GpuMappedBuffer.anonymous(1 << 20), AtomicTail())
    stream.submit_read_to_gpu(fd, 0, 4096, 0)       created → used, by one thread → closed
    stream.wait_for_completion()
    stream.poll()                                   the tail is 1 now
    stream.completions()

A read is submitted only when its whole range lies in the mapped buffer. Reads complete in any order; each is known by
the ``user_data`` that its caller gave. A short read is read on until the range is whole or the file ends; EAGAIN,
EINTR and ECANCELED are retried eight times; all else is an error that names path and offset. Memory, file and iovec
of a read live until it is reaped (``flight.py``). At most as many reads are in flight as the ring has entries.

The stream belongs to the thread that uses it first; any other gets a PipelineError.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from uring_actors.arena.private import PrivateMemory
from uring_actors.errors import (
    DeadlineExceeded,
    IoUringSyscall,
    NvmePassthroughDisabled,
    NvmeStatus,
    OptionError,
    PipelineError,
    QueueFull,
)
from uring_actors.uring import kernel, nvme, requests
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.flight import SLICE_NS, Flight, HasFileno, HeldFile, let_go
from uring_actors.uring.queue import Words
from uring_actors.uring.requests import (
    R_DONE,
    R_ENDED,
    R_ERRNO,
    R_FD,
    R_FIXED_FILE,
    R_OFFSET,
    R_OPCODE,
    R_USER_DATA,
    S_FINISHED,
    S_FLYING,
    S_FREE,
    S_TAIL,
)
from uring_actors.uring.state import FILE_DIRECT, FILE_READS, RingState
from uring_actors.uring.tail import AtomicTail
from uring_actors.uring.telemetry import IOVEC, REGISTERED, IngestTelemetry

_MAX_OFFSET: Final = (1 << 63) - 1
_USER_DATA: Final = 1 << 64
_REMEMBERED: Final = 1 << 16
_OPCODES: Final = {
    REGISTERED: kernel.OP_READ_FIXED,
    IOVEC: kernel.OP_READV,
    "plain": kernel.OP_READ,
}


class Completion(NamedTuple):
    """A read that is over."""

    user_data: int
    bytes: int
    """How many are in memory, from the target on; with an error, those that came before it."""
    error: IoUringSyscall | NvmeStatus | None
    ended: bool
    """The file ended before all bytes that were asked for."""


class Iovecs:
    """Storage for ``count`` iovecs, for ``iovs`` of the submit methods: one is in use from a read's submission until
    it is reaped. May be dropped at any time, and shared by streams."""

    def __init__(self, count: int) -> None:
        self._memory = np.zeros((max(count, 0), kernel.IOVEC_BYTES // 8), np.int64)
        self._free = list(range(count))

    def __len__(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self) -> _Iovec:
        """Raises QueueFull where none is free."""
        try:
            return _Iovec(self, self._free.pop())
        except IndexError:
            raise _no_iovec() from None


class _Iovec:
    """One iovec in use; its place is free again when this object goes."""

    __slots__ = ("_index", "_storage", "address")

    def __init__(self, storage: Iovecs, index: int) -> None:
        self._storage, self._index = storage, index
        self.address = storage._memory.ctypes.data + index * kernel.IOVEC_BYTES

    def __del__(self) -> None:
        self._storage._free.append(self._index)


class _TableUse:
    """A read's use of a place in the file table, which can't be replaced meanwhile."""

    __slots__ = ("_files", "index")

    def __init__(self, files: Words, index: int) -> None:
        self._files, self.index = files, index
        files[index, FILE_READS] += 1

    def __del__(self) -> None:
        self._files[self.index, FILE_READS] -= 1


class AsyncUringStream:
    """See the module's page.

    ring_state: an ``IoUringState`` or a ``LiburingState``, this stream's alone until it is closed. gpu_buffer: where
    reads land. megakernel_tail: one is added for each read that succeeds, when it is polled (a stream that a
    ``UringMegakernelPump`` has taken leaves it to the pump).

    ``fd`` is an open descriptor or file; it is duplicated, so it may be closed at once. ``offset`` and ``len`` are
    bytes, ``target_offset`` bytes from the buffer's start. ``iovs``: an ``Iovecs`` to take the read's iovec from;
    None: the stream's own. ``user_data``: 0 to 2⁶⁴ − 1, comes back with the completion; where a method has none,
    it is ``chunk_idx`` or ``target_offset``.

    The submit methods raise QueueFull where as many reads are in flight as the ring has entries, where there is no
    free iovec, or where the range is not in the buffer; OptionError for numbers that make no sense at all.
    """

    def __init__(self, ring_state: RingState, gpu_buffer: GpuMappedBuffer, megakernel_tail: AtomicTail) -> None:
        self.ring_state = ring_state
        self.tail = megakernel_tail
        self._buffer = gpu_buffer
        self._flight = Flight(ring_state)
        self._state = self._flight.table.state
        self._state[S_TAIL] = megakernel_tail.address
        self._failures: deque[IoUringSyscall | NvmeStatus] = deque()
        self._namespaces: dict[tuple[int, int, int], tuple[HeldFile, nvme.NvmeNamespace]] = {}
        self._completions: deque[Completion] = deque(maxlen=_REMEMBERED)
        self._pumped = False
        self._finalizer = weakref.finalize(self, let_go, self._flight)

    # ── submitting ───────────────────────────────────────────────────────────────────────────────────────────
    @property
    def buffer(self) -> GpuMappedBuffer:
        """Where reads submitted from now on land."""
        return self._buffer

    def replace_buffer(self, buffer: GpuMappedBuffer) -> None:
        """Later submissions target ``buffer``; reads in flight keep theirs."""
        self._buffer = buffer

    def submit_read_to_gpu(
        self,
        fd: int | HasFileno,
        offset: int,
        len: int,  # noqa: A002
        chunk_idx: int,
        iovs: Iovecs | None = None,
    ) -> None:
        """Read (READV) ``len`` bytes at ``offset`` to ``chunk_idx * len`` in the buffer."""
        self._submit(fd, offset, len, chunk_idx * len, chunk_idx, iovs)

    def submit_read_to_gpu_at(
        self,
        fd: int | HasFileno,
        offset: int,
        len: int,  # noqa: A002
        target_offset: int,
        iovs: Iovecs | None = None,
    ) -> None:
        """The same to any byte of the buffer, so that shards of different sizes lie contiguously."""
        self._submit(fd, offset, len, target_offset, target_offset, iovs)

    def submit_read_to_gpu_at_with_user_data(
        self,
        fd: int | HasFileno,
        offset: int,
        len: int,  # noqa: A002
        target_offset: int,
        user_data: int,
        iovs: Iovecs | None = None,
    ) -> None:
        """The same, and ``user_data`` comes back with the completion."""
        self._submit(fd, offset, len, target_offset, user_data, iovs)

    def submit_read_fixed(
        self,
        fd: int | HasFileno,
        offset: int,
        len: int,  # noqa: A002
        chunk_idx: int,
        buf_index: int,
    ) -> None:
        """READ_FIXED to ``chunk_idx * len`` in the buffer, which must lie in the registered buffer ``buf_index``:
        the kernel refuses another with EFAULT."""
        self._submit(fd, offset, len, chunk_idx * len, chunk_idx, buf_index=buf_index)

    def submit_read_fixed_at(
        self,
        fd: int | HasFileno,
        offset: int,
        len: int,  # noqa: A002
        target_offset: int,
        buf_index: int,
        user_data: int,
    ) -> None:
        """The same at an explicit offset, with the caller's ``user_data``."""
        self._submit(fd, offset, len, target_offset, user_data, buf_index=buf_index)

    def submit_read_to_gpu_fixed_file(
        self,
        file_index: int,
        offset: int,
        len: int,  # noqa: A002
        chunk_idx: int,
        iovs: Iovecs | None = None,
    ) -> None:
        """A read (READV) of the registered file ``file_index`` to ``chunk_idx * len`` in the buffer. QueueFull too
        where the table has no such place."""
        with self._flight:
            file = self._table_use(file_index)
        self._submit(file, offset, len, chunk_idx * len, chunk_idx, iovs)

    def submit_nvme_passthrough(self, fd: int | HasFileno, user_data: int, nvme_sqe_bytes: bytes) -> None:
        """Send a 64-byte NVMe Read (URING_CMD) to a generic node, /dev/ngXnY: the command as ``nvme.encode_read``
        makes it, with an absolute address in the buffer (``buffer.address`` + offset).

        The ring needs ``sqe128`` and ``cqe32``. The completion has the bytes that the drive wrote, or an NvmeStatus.
        Raises NvmePassthroughDisabled where it is switched off, NvmeCommandRefused (a QueueFull) unless it is a plain
        Read whose blocks all lie in the buffer, QueueFull where the ring is full.
        """
        nvme.require_passthrough()
        if not self.ring_state.takes_commands:
            raise NvmePassthroughDisabled(
                "the ring's set-up", fix="Make it with IoUringState(sqe128=True, cqe32=True), Linux 5.19."
            )
        command = nvme.parse_command(nvme_sqe_bytes)
        with self._flight as flight:
            self._check_free()
            self._check_user_data(user_data)
            file, namespace = self._namespace(fd)
            namespace.check(command, buffer_start=self._buffer.address, buffer_length=len(self._buffer))
            row = int(self._state[S_FREE])
            if row < 0:
                raise _queue_full()
            memory = PrivateMemory(kernel.COMMAND_BYTES)  # zero behind the 64 bytes: timeout and reserved
            memory.view[: nvme.COMMAND_BYTES] = command.encode()
            flight.kept[row] = (self._buffer, file, memory, command, namespace)
            flight.engine.start(
                kernel.OP_URING_CMD,
                file.fd,
                0,
                nvme.URING_CMD_IO,
                command.address,
                command.blocks * namespace.block_size,
                0,
                0,
                memory.address,
                _signed(user_data),
            )

    def _namespace(self, fd: int | HasFileno) -> tuple[HeldFile, nvme.NvmeNamespace]:
        """The namespace behind ``fd``, looked at once: known by the node, which our own descriptor keeps the same."""
        file = HeldFile(fd)
        status = os.fstat(file.fd)
        key = (status.st_dev, status.st_ino, status.st_rdev)
        if key not in self._namespaces:
            self._namespaces[key] = file, nvme.namespace_of(file.fd)
        return self._namespaces[key]

    def _table_use(self, index: int) -> _TableUse:
        files = self.ring_state.files
        if not 0 <= index < len(files):
            raise QueueFull(f"registered file table (of {len(files)})", fix="Register the file first.")
        return _TableUse(files, index)

    def _submit(
        self,
        source: int | HasFileno | _TableUse,
        offset: int,
        length: int,
        target: int,
        user_data: int,
        iovs: Iovecs | None = None,
        buf_index: int | None = None,
    ) -> None:
        self._check_free()
        self.submit_for_pump(source, offset, length, target, user_data, buf_index, iovs)

    def submit_for_pump(
        self,
        source: int | HasFileno | _TableUse,
        offset: int,
        length: int,
        target: int,
        user_data: int,
        buf_index: int | None = None,
        iovs: Iovecs | None = None,
    ) -> None:
        """Any of the reads above, by whoever has the stream."""
        with self._flight as flight:
            self._check_read(offset, length, target, user_data, buf_index or 0)
            row = int(self._state[S_FREE])
            if row < 0:
                raise _queue_full()
            iovec = None if iovs is None else _take_iovec(iovs)
            file = source if isinstance(source, _TableUse) else HeldFile(source)
            flight.kept[row] = (self._buffer, file, iovec)
            registered = isinstance(file, _TableUse)
            flight.engine.start(
                kernel.OP_READV if buf_index is None else kernel.OP_READ_FIXED,
                file.index if isinstance(file, _TableUse) else file.fd,
                int(registered),
                offset,
                self._buffer.address + target,
                length,
                int(self.ring_state.files[file.index, FILE_DIRECT]) if isinstance(file, _TableUse) else file.direct,
                buf_index or 0,
                0 if iovec is None else iovec.address,
                _signed(user_data),
            )

    def _check_free(self) -> None:
        if self._pumped:
            raise PipelineError("the stream belongs to a pump", fix="Use the pump, or take it back with into_stream.")

    def _check_read(self, offset: int, length: int, target: int, user_data: int, buf_index: int) -> None:
        if length <= 0 or not 0 <= offset <= _MAX_OFFSET - length:
            raise OptionError(f"{length} bytes at {offset} can't be read from a file")
        if not self._buffer.holds(target, length):
            raise _outside(target, length, len(self._buffer))
        self._check_user_data(user_data)
        if not 0 <= buf_index < kernel.MAX_BUFFERS:
            raise OptionError(f"a registered buffer's index is 0 to {kernel.MAX_BUFFERS - 1}, not {buf_index}")

    @staticmethod
    def _check_user_data(user_data: int) -> None:
        if not 0 <= user_data < _USER_DATA:
            raise OptionError(f"user_data is 0 to 2⁶⁴ − 1, not {user_data}")

    # ── completing ───────────────────────────────────────────────────────────────────────────────────────────
    def flush_submissions(self) -> None:
        """Make queued entries visible to the kernel at once; under SQPOLL, wake a sleeping poller. Raises
        IoUringSyscall."""
        with self._flight as flight:
            self._check_free()
            flight.engine.submit()

    def poll(self) -> int:
        """Flush, reap all that has completed, and add one to the tail for each success; how many.

        Failures are queued: the first is raised after everything was reaped, each later ``poll`` raises the next.
        Raises IoUringSyscall, of a read with its path and offset; NvmeStatus, of a command.
        """
        self._check_free()
        done = self.drain()
        good = sum(completion.error is None for completion in done)
        self.tail.add(good)
        self.raise_failure(done)
        return good

    def drain(self) -> list[Completion]:
        """``poll`` without the tail and without raising: for a pump, which does both in its own way."""
        with self._flight as flight:
            flight.engine.turn()
            table = flight.table
            done = []
            while (row := requests.take(table.rows, table.state, table.finished)) >= 0:
                done.append(self._completion(row))
                flight.drop(row)
        self._completions.extend(done)
        return done

    def raise_failure(self, done: Sequence[Completion]) -> None:
        """Queue the failures among ``done``, and raise the oldest one queued, if any."""
        self._failures.extend(completion.error for completion in done if completion.error is not None)
        if self._failures:
            raise self._failures.popleft()

    def completions(self) -> list[Completion]:
        """What was reaped since the last call, in the order of completion, failures too; at most the last 65,536."""
        found = list(self._completions)
        self._completions.clear()
        return found

    def wait_for_completion(self, timeout: float | None = None) -> None:
        """Flush, and wait until ``poll`` will find at least one read that is over; returns at once where none is in
        flight. Raises IoUringSyscall, and DeadlineExceeded after ``timeout`` seconds."""
        self._check_free()
        self.wait(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """``wait_for_completion`` for a pump."""
        until = None if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        with self._flight as flight:
            while not self._state[S_FINISHED]:
                now = time.monotonic_ns()
                flight.engine.wait(now + SLICE_NS if until is None else min(until, now + SLICE_NS))
                if not self._state[S_FLYING]:
                    return
                if until is not None and not self._state[S_FINISHED] and time.monotonic_ns() >= until:
                    raise DeadlineExceeded(f"one of {self.inflight()} reads", timeout or 0.0)

    def inflight(self) -> int:
        """Submissions not yet reaped by ``poll``."""
        return self._flight.in_flight()

    def telemetry(self) -> IngestTelemetry:
        """The counters so far."""
        return IngestTelemetry(*self._flight.table.counters.tolist())

    def _completion(self, row: int) -> Completion:
        words = self._flight.table.rows[row].tolist()
        error = self._error(words, self._flight.kept[row]) if words[R_ERRNO] else None
        return Completion(words[R_USER_DATA] % _USER_DATA, words[R_DONE], error, bool(words[R_ENDED]))

    def _error(self, words: list[int], kept: tuple[Any, ...]) -> IoUringSyscall | NvmeStatus | None:
        number, file = words[R_ERRNO], kept[1]
        if words[R_OPCODE] == kernel.OP_URING_CMD:
            command, namespace = kept[3:]
            return nvme.completion_error(
                -number, lba=command.lba, block_size=namespace.block_size, device=namespace.device
            )
        name = f"read of registered file {words[R_FD]}" if words[R_FIXED_FILE] else "read"
        fix = _FIXES.get(number)
        if number == errno.EFAULT and words[R_OPCODE] == kernel.OP_READ_FIXED:
            fix = "The target must lie in the registered buffer of that index: register_buffers first."
        return IoUringSyscall(
            name,
            number,
            fix=fix,
            path=file.path() if isinstance(file, HeldFile) else None,
            offset=words[R_OFFSET] + words[R_DONE],
        )

    # ── in bulk ──────────────────────────────────────────────────────────────────────────────────────────────
    def read_extents(
        self,
        files: int | Sequence[int],
        offsets: Any,
        lengths: Any,
        target_offsets: Any,
        *,
        path: str = REGISTERED,
        buf_index: int = 0,
        registered_files: bool = False,
        depth: int | None = None,
    ) -> tuple[Words, Words]:
        """Read many ranges in one call that holds no GIL, ``depth`` (default: the ring's entries) at a time; returns
        when all are over. Two int64 arrays: bytes read, and 0 or the errno of what failed.

        files: one descriptor, or one for each range; with ``registered_files`` indices of the file table.
        offsets, lengths, target_offsets: numbers or int64 arrays that broadcast to one length: bytes in the file, to
        read, from the buffer's start. path: "registered" (READ_FIXED into buffer ``buf_index``), "iovec" (READV) or
        "plain" (READ). The tail moves with each success. ``completions`` and ``poll`` say nothing of these reads.

        Raises QueueFull where other reads are in flight or a range is not in the buffer (none is read then),
        IoUringSyscall.
        """
        extents = _extents(files, offsets, lengths, target_offsets)
        if path not in _OPCODES:
            raise OptionError(f"path is one of {', '.join(_OPCODES)}, not {path!r}")
        with self._flight as flight:
            self._check_free()
            if self.inflight():
                raise QueueFull("submission queue", fix="A bulk call wants all of it: poll until inflight() is 0.")
            self._check_extents(extents, buf_index)
            kept: list[Any] = [self._hold_files(extents, registered_files), self._buffer, self.tail]
            flight.kept_for_bulk = kept
            extents[:, requests.X_ADDRESS] += self._buffer.address
            flight.table.extents = extents
            self._state[S_TAIL] = self.tail.address
            self._state[requests.S_OPCODE] = _OPCODES[path]
            self._state[requests.S_FIXED_FILE] = int(registered_files)
            self._state[requests.S_BUFFER] = buf_index
            self._state[requests.S_DEPTH] = min(depth or self.ring_state.entries, self.ring_state.entries)
            self._state[requests.S_BEGUN] = self._state[requests.S_ENDED] = 0
            try:
                while self._state[requests.S_ENDED] < len(extents):
                    flight.engine.run(time.monotonic_ns() + SLICE_NS)
            except BaseException:
                self._state[requests.S_BEGUN] = len(extents)  # no more of them; what is in flight keeps its memory
                raise
            flight.kept_for_bulk = None
        return extents[:, requests.X_BYTES].copy(), extents[:, requests.X_ERRNO].copy()

    def _check_extents(self, extents: Words, buf_index: int) -> None:
        lengths, targets = extents[:, requests.X_LENGTH], extents[:, requests.X_ADDRESS]
        offsets = extents[:, requests.X_OFFSET]
        if not 0 <= buf_index < kernel.MAX_BUFFERS:
            raise OptionError(f"a registered buffer's index is 0 to {kernel.MAX_BUFFERS - 1}, not {buf_index}")
        if (lengths <= 0).any() or (offsets < 0).any() or (offsets > _MAX_OFFSET - lengths).any():
            raise OptionError("a range has no bytes, or lies where no file has any")
        size = len(self._buffer)
        bad = np.flatnonzero((targets < 0) | (lengths > size) | (targets > size - lengths))
        if len(bad):
            raise _outside(int(targets[bad[0]]), int(lengths[bad[0]]), size)

    def _hold_files(self, extents: Words, registered: bool) -> list[Any]:
        """What keeps the files open; descriptors in ``extents`` become those of our duplicates."""
        held: list[Any] = []
        fds = extents[:, requests.X_FD]
        numbers = fds[:1].tolist() if len(fds) and (fds == fds[0]).all() else np.unique(fds).tolist()
        for fd in numbers:
            which = fds == fd if len(numbers) > 1 else slice(None)
            if registered:
                held.append(self._table_use(fd))
                extents[which, requests.X_DIRECT] = self.ring_state.files[fd, FILE_DIRECT]
            else:
                file = HeldFile(fd)
                held.append((file, which))
                extents[which, requests.X_DIRECT] = file.direct
        if not registered:
            for file, which in held:
                fds[which] = file.fd
        return held

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────
    def close(self, seconds: float = 30.0) -> None:
        """Cancel reads in flight, or wait for them; what was not polled is dropped. The ring is free for another
        stream. Idempotent. Raises DeadlineExceeded where reads don't end within ``seconds``; nothing is freed then,
        and ``close`` may be called again."""
        self._flight.close(seconds)

    def lend(self) -> None:
        """A pump takes the stream. Raises PipelineError where one has it."""
        self._check_free()
        self._pumped = True

    def take_back(self) -> None:
        """The pump is done with it."""
        self._pumped = False

    def __enter__(self) -> AsyncUringStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _extents(files: int | Sequence[int], offsets: Any, lengths: Any, targets: Any) -> Words:
    try:
        columns = np.broadcast_arrays(*(np.asarray(a, np.int64) for a in (files, offsets, lengths, targets)))
        extents: Words = np.zeros((columns[0].size, requests.X_WORDS), np.int64)
        for index, column in zip(
            (requests.X_FD, requests.X_OFFSET, requests.X_LENGTH, requests.X_ADDRESS), columns, strict=True
        ):
            extents[:, index] = column.ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"files, offsets, lengths and targets are no arrays of one length: {error}") from error
    return extents


def _signed(user_data: int) -> int:
    """The same 64 bits, as the table has them."""
    return user_data if user_data < _USER_DATA // 2 else user_data - _USER_DATA


def _take_iovec(iovs: Any) -> _Iovec:
    if isinstance(iovs, Iovecs):
        return iovs.take()
    if isinstance(iovs, Sequence) and not iovs:
        raise _no_iovec()
    raise OptionError(f"iovs is an Iovecs, or None for the stream's own, not {type(iovs).__name__}")


def _no_iovec() -> QueueFull:
    return QueueFull("iovec storage", fix="Poll, so that iovecs become free; or give a larger Iovecs, or none.")


def _queue_full() -> QueueFull:
    return QueueFull("submission queue", fix="Poll until completions were reaped, or make the ring larger.")


def _outside(target: int, length: int, size: int) -> QueueFull:
    return QueueFull(
        "mapped buffer", fix=f"Bytes {target} to {target + length} are not in it: it has {size}. Nothing was queued."
    )


_FIXES = {
    errno.EAGAIN: "It was tried nine times. Is the file open with O_NONBLOCK? Take that off.",
    errno.EBADF: "Nothing that can be read stands there.",
    errno.EINVAL: "With O_DIRECT offset, length and memory must lie on whole blocks of 4,096 bytes.",
    errno.EISDIR: "It is a directory.",
    errno.EIO: "The medium failed there.",
}

"""What the rings of both engines have in common: registered buffers and files, and the stream that owns the ring.

    created → (registered buffers, registered files) → owned by a stream → closed

Registered buffers stay mapped as long as the ring exists. A registered file may be replaced only while no read uses
its place in the table, for a read that was cut short goes on with whatever file stands there. One stream at a time
owns a ring: two would take each other's completions.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from uring_actors.errors import IoUringSyscall, OptionError, PipelineError, QueueFull
from uring_actors.uring import kernel
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.queue import Words

if TYPE_CHECKING:
    from uring_actors.uring.engine import Engine
    from uring_actors.uring.requests import Requests

FILE_DIRECT = 0
"""Columns of the file table's row: opened with O_DIRECT …"""
FILE_READS = 1
"""… and reads submitted and not yet reaped."""


class Owner(Protocol):
    """Whoever owns a ring: a stream's flight."""

    def close(self, seconds: float) -> None: ...


class RingState:
    """The base of ``IoUringState`` and ``LiburingState``. ``entries``: the most reads in flight."""

    entries: int

    def __init__(self) -> None:
        self.closed = False
        self.files: Words = np.zeros((0, 2), np.int64)
        self._kept: list[GpuMappedBuffer] = []
        self._owner: Owner | None = None

    @property
    def takes_commands(self) -> bool:
        """Whether NVMe commands can be sent: entries of 128 and of 32 bytes."""
        return False

    # ── what an engine provides ──────────────────────────────────────────────────────────────────────────────
    def make_engine(self, requests: Requests) -> Engine:
        """Something that moves ``requests`` through this ring, in the thread that calls this first."""
        raise NotImplementedError

    def _register_buffers(self, ranges: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    def _register_files(self, fds: list[int]) -> None:
        raise NotImplementedError

    def _update_file(self, index: int, fd: int) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    # ── buffers and files ────────────────────────────────────────────────────────────────────────────────────
    def register_buffers(self, buffers: Sequence[GpuMappedBuffer | tuple[int, int]]) -> None:
        """Pin buffers of at most 1 GiB, for ``submit_read_fixed``; the first has index 0. Once for a ring.

        A GpuMappedBuffer is kept mapped. Of a pair (address, length in bytes) the caller has to see to that.
        Raises MemlockTooSmall, IoUringSyscall (EBUSY: there are some already; EFAULT: nothing is mapped there).
        """
        self._check_open()
        ranges = [(b.address, len(b)) if isinstance(b, GpuMappedBuffer) else b for b in buffers]
        for address, length in ranges:
            if address <= 0 or not 0 < length <= kernel.MAX_BUFFER_BYTES:
                raise OptionError(f"a registered buffer has 1 to {kernel.MAX_BUFFER_BYTES} bytes, not {length}")
        if not 0 < len(ranges) <= kernel.MAX_BUFFERS:
            raise OptionError(f"1 to {kernel.MAX_BUFFERS} buffers can be registered, not {len(ranges)}")
        self._register_buffers(ranges)
        self._kept += [b for b in buffers if isinstance(b, GpuMappedBuffer)]

    def register_files(self, files: int | Sequence[int]) -> None:
        """A table of fixed files: these descriptors (−1: an empty place), or so many empty places. Once for a ring.

        The kernel holds the files itself: the descriptors may be closed. Raises IoUringSyscall."""
        self._check_open()
        fds = [-1] * files if isinstance(files, int) else list(files)
        if not fds:
            raise OptionError("a file table needs a place")
        table: Words = np.array([(_is_direct(fd), 0) for fd in fds], np.int64)
        self._register_files(fds)
        self.files = table

    def update_file(self, index: int, fd: int) -> None:
        """Put ``fd`` (−1: nothing) in the table at ``index``. Raises QueueFull while reads use what stands there,
        IoUringSyscall."""
        self._check_open()
        if not 0 <= index < len(self.files):
            raise OptionError(f"there is no place {index} in a file table of {len(self.files)}")
        if self.files[index, FILE_READS]:
            raise QueueFull(
                f"place {index} of the file table", fix="Reads in flight use it: poll until they have completed."
            )
        direct = _is_direct(fd)
        self._update_file(index, fd)
        self.files[index, FILE_DIRECT] = direct

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _check_open(self) -> None:
        if self.closed:
            raise IoUringSyscall("io_uring_register", errno.EBADF, fix="The ring is closed.")

    def claim(self, owner: Owner) -> None:
        """Make ``owner`` the ring's one user. Raises PipelineError where there is another."""
        if self.closed:
            raise PipelineError("the ring is closed")
        if self._owner is not None:
            raise PipelineError("a stream owns this ring already", fix="Close that one, or make another ring.")
        self._owner = owner

    def release(self, owner: Owner) -> None:
        """``owner`` has nothing in flight and is done with the ring."""
        if self._owner is owner:
            self._owner = None

    def close(self, seconds: float = 30.0) -> None:
        """Close the stream that owns the ring, which cancels its reads or waits for them, then the ring itself;
        idempotent. Raises DeadlineExceeded where reads don't end within ``seconds``; nothing is freed then."""
        if self.closed:
            return
        if self._owner is not None:
            self._owner.close(seconds)
        self.closed = True
        self._close()
        self._kept.clear()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_direct(fd: int) -> bool:
    """Whether reads of ``fd`` go past the page cache; False for no descriptor and for −1: the kernel says so."""
    if fd < 0:
        return False
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
    except OSError:
        return False

"""The arena: one node pipeline's shared memory, a memfd.

It has no name and needs no room in /dev/shm; it is gone when its last process is. Its size is sealed, so that no
process can cut it short under another (that would be a SIGBUS there). Another process of the same user attaches
through /proc/PID/fd/FD and checks that what it finds is what it was told of: magic, version, sizes and the random
nonce. An arena is never attached again after a death: a DMA may still land in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.errors import ArenaError

_HEADER = struct.Struct("<QII16sQQQII")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """What another process needs in order to attach; picklable. ``pid`` owns descriptor ``fd``."""

    pid: int
    fd: int
    nonce: bytes
    layout: ArenaLayout


class Arena:
    """Mapped shared memory and its layout. Created → attached anywhere → closed (idempotent).

    ``address`` is where this process has it mapped; ``at(offset)`` is an address for the hot loops. The mapping
    stays while anything exported from it (a memoryview, an array) is alive.
    """

    def __init__(self, fd: int, layout: ArenaLayout, nonce: bytes) -> None:
        self.fd = fd
        self.layout = layout
        self.nonce = nonce
        self._map: mmap.mmap | None = mmap.mmap(fd, layout.total)
        with contextlib.suppress(OSError):  # a kernel without large pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._pin: Any = (ctypes.c_char * layout.total).from_buffer(self._map)
        self.address = ctypes.addressof(self._pin)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, layout: ArenaLayout) -> Arena:
        """A new arena, zeroed, with its header written. Raises ArenaError where memory can't be had."""
        try:
            fd = os.memfd_create("uring_actors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise ArenaError("can't create shared memory (memfd_create)", errno=error.errno) from error
        try:
            os.ftruncate(fd, layout.total)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            arena = cls(fd, layout, secrets.token_bytes(16))
        except OSError as error:
            os.close(fd)
            raise ArenaError(
                f"can't map {layout.total} bytes of shared memory",
                errno=error.errno,
                fix="Use fewer or smaller slots, or raise the container's memory limit.",
            ) from error
        _HEADER.pack_into(
            arena.view,
            0,
            abi.MAGIC,
            abi.VERSION,
            layout.lanes,
            arena.nonce,
            layout.total,
            layout.slot_bytes,
            layout.result_bytes,
            layout.slots_per_lane,
            layout.ring_slots,
        )
        return arena

    def handle(self) -> ArenaHandle:
        """For ``attach`` in another process; valid while this process keeps the arena open."""
        return ArenaHandle(os.getpid(), self.fd, self.nonce, self.layout)

    @classmethod
    def attach(cls, handle: ArenaHandle) -> Arena:
        """Map the arena that ``handle`` describes. Raises ArenaError where it is gone, closed to us, or not it."""
        path = f"/proc/{handle.pid}/fd/{handle.fd}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ArenaError(
                f"can't attach to the arena of process {handle.pid}",
                path=os.fsencode(path),
                errno=error.errno,
                fix="Its process may have died; else both must run as the same user in one PID namespace, with "
                "a Python that has no file capabilities.",
            ) from error
        try:
            _check(fd, handle, path)
            return cls(fd, handle.layout, handle.nonce)
        except OSError as error:
            os.close(fd)
            raise ArenaError(
                f"can't map {handle.layout.total} bytes of the arena of process {handle.pid}",
                path=os.fsencode(path),
                errno=error.errno,
                fix="Raise this process's limit on address space (ulimit -v), or use fewer or smaller slots.",
            ) from error
        except BaseException:
            os.close(fd)
            raise

    def at(self, offset: int) -> int:
        """The address of a byte of the arena in this process. Raises ArenaError where there is none (any more)."""
        if self._map is None:
            raise ArenaError("the arena is closed")
        if not 0 <= offset < self.layout.total:
            raise ArenaError(f"byte {offset} is not in the arena of {self.layout.total} bytes")
        return self.address + offset

    def address_book(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The ``BOOK_*`` numbers of ``book.py``, for hot functions: where this process has everything."""
        layout = self.layout
        return np.array(
            [
                self.at(layout.control),
                self.at(layout.state),
                self.at(layout.ring),
                self.at(layout.order),
                layout.ring_slots - 1,
                self.at(layout.results),
                layout.result_bytes,
                self.at(layout.data),
                layout.slot_bytes,
                self.at(layout.channels),
                layout.channel_bytes,
                layout.channel_records - 1,
                layout.lanes,
                layout.slots_per_lane,
                layout.hit_capacity,
                self.at(layout.log),
                layout.slots,
                self.at(layout.newlines),
                layout.newline_bytes,
            ],
            np.int64,
        )

    def words(self, offset: int, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """``count`` 32-bit words from ``offset`` on, as an array over the shared memory itself."""
        if self._map is None:
            raise ArenaError("the arena is closed")
        return np.frombuffer(self.view, np.uint32, count, offset)

    def close(self) -> None:
        """Unmap and close; idempotent. What was exported keeps the mapping until it is dropped.

        Addresses keep nothing: no hot loop may still run on this arena.
        """
        if self._map is None:
            return
        mapping, self._map, self._pin = self._map, None, None
        with contextlib.suppress(BufferError):  # exported views keep it; it goes with the last of them
            self.view.release()
            mapping.close()
        self.view = memoryview(b"")
        os.close(self.fd)


def _check(fd: int, handle: ArenaHandle, path: str) -> None:
    def refuse(what: str) -> ArenaError:
        return ArenaError(f"not the arena that was announced: {what}", path=os.fsencode(path))

    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise refuse("it is no memory file")
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        raise refuse(f"it is truncated, {status.st_size} bytes in all")
    magic, version, lanes, nonce, total, slot_bytes, result_bytes, per_lane, ring_slots = _HEADER.unpack(head)
    layout = handle.layout
    if magic != abi.MAGIC:
        raise refuse("wrong magic number")
    if version != abi.VERSION:
        raise refuse(f"layout version {version}, this program has {abi.VERSION}")
    found = (lanes, total, slot_bytes, result_bytes, per_lane, ring_slots)
    wanted = (
        layout.lanes,
        layout.total,
        layout.slot_bytes,
        layout.result_bytes,
        layout.slots_per_lane,
        layout.ring_slots,
    )
    if found != wanted:
        raise refuse(f"its layout is {found}, expected {wanted}")
    if status.st_size != layout.total:
        raise refuse(f"it has {status.st_size} bytes, its header says {layout.total}")
    if nonce != handle.nonce:
        raise refuse("wrong nonce: it belongs to another pipeline")

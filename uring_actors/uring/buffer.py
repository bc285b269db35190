"""``GpuMappedBuffer``: host memory that reads land in and that a GPU may have mapped.

A buffer is an address and a length, and whatever keeps that memory where it is: as long as a buffer (or a region of
it, or a read in flight) exists, its memory is neither unmapped nor moved, whoever drops or closes the rest. A region
never reaches beyond its buffer. Nothing here writes to the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Any

from uring_actors.arena.memory import Arena
from uring_actors.errors import OptionError


class GpuMappedBuffer:
    """``len(buffer)`` bytes of memory at ``address``. Made by ``anonymous``, ``from_arena``, ``from_buffer`` or, of
    another one, ``sub_region``."""

    __slots__ = ("_pin", "_view", "address")

    def __init__(self, view: memoryview) -> None:
        """``view``: bytes, writable and contiguous. Use the class methods."""
        if view.readonly or not view.contiguous or view.nbytes == 0:
            raise OptionError("a mapped buffer needs memory that is writable, contiguous and not empty")
        self._view = view.cast("B")
        # Exported for as long as this object lives: a mapping can't be closed, nor a bytearray resized meanwhile.
        self._pin: Any = (ctypes.c_char * view.nbytes).from_buffer(self._view)
        self.address: int = ctypes.addressof(self._pin)

    @classmethod
    def anonymous(cls, length: int) -> GpuMappedBuffer:
        """Fresh zeroed memory of this process, page-aligned; unmapped with the last buffer that uses it."""
        if length <= 0:
            raise OptionError(f"a mapped buffer has at least 1 byte, not {length}")
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # without large pages copying into it is a tenth slower
            memory.madvise(mmap.MADV_HUGEPAGE)
        return cls(memoryview(memory))

    @classmethod
    def from_arena(cls, arena: Arena, offset: int | None = None, length: int | None = None) -> GpuMappedBuffer:
        """``length`` bytes of an arena from byte ``offset`` on; left out: the data slots, to the arena's end."""
        layout = arena.layout
        start = layout.data if offset is None else offset
        count = layout.total - start if length is None else length
        arena.at(start)  # refuses a closed arena
        return cls(_slice(arena.view, start, count))

    @classmethod
    def from_buffer(cls, memory: Any) -> GpuMappedBuffer:
        """Memory that somebody else made: an ``mmap``, a NumPy array, a bytearray, any writable contiguous buffer.
        For O_DIRECT it must be aligned to 4,096 bytes. Its owner can't free it while this buffer exists."""
        try:
            view = memoryview(memory)
        except TypeError as error:
            raise OptionError(f"a {type(memory).__name__} is no memory") from error
        return cls(view)

    def sub_region(self, offset: int, length: int) -> GpuMappedBuffer:
        """``length`` bytes from byte ``offset`` on. Raises OptionError where they are not all in this buffer."""
        return GpuMappedBuffer(_slice(self._view, offset, length))

    def holds(self, offset: int, length: int) -> bool:
        """Whether bytes ``offset`` to ``offset + length`` are all in here."""
        return offset >= 0 and 0 < length <= len(self) - offset

    @property
    def view(self) -> memoryview:
        """The bytes themselves; a new view each time, which keeps the memory as the buffer does."""
        return self._view[:]

    def __len__(self) -> int:
        return self._view.nbytes

    def __repr__(self) -> str:
        return f"<GpuMappedBuffer of {len(self)} bytes at {self.address:#x}>"


def _slice(view: memoryview, offset: int, length: int) -> memoryview:
    if not (offset >= 0 and 0 < length <= view.nbytes - offset):
        raise OptionError(f"bytes {offset} to {offset + length} are not in memory of {view.nbytes} bytes")
    return view[offset : offset + length]

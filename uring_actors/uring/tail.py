"""The atomic 32-bit word that announces progress to whoever watches: a megakernel, another process."""

from __future__ import annotations

from uring_actors.arena.atomics import fetch_add, load_acquire
from uring_actors.errors import OptionError
from uring_actors.hot import hot
from uring_actors.uring.buffer import GpuMappedBuffer


@hot
def read_word(address: int) -> int:
    """The word at ``address``; acquire."""
    return load_acquire(address)


@hot
def add_to_word(address: int, count: int) -> int:
    """Add ``count`` to the word at ``address``, wrapping; what it was. Sequentially consistent."""
    return fetch_add(address, count)


class AtomicTail:
    """A counter of 32 bits that wraps: how many reads have succeeded (a stream's), or how many slots are published
    (a pump's). One stream or pump adds to it; anybody may load it.

    It lies at byte ``offset`` (a multiple of 4) of ``buffer``, or in memory of its own. Put it in an arena for
    another process or a GPU to watch.
    """

    def __init__(self, buffer: GpuMappedBuffer | None = None, offset: int = 0) -> None:
        self._word = (buffer or GpuMappedBuffer.anonymous(64)).sub_region(offset, 4)
        self.address = self._word.address
        if self.address % 4:
            raise OptionError(f"a tail lies at a multiple of 4 bytes, not at {self.address:#x}")

    def load(self) -> int:
        """Its value, 0 to 2³² − 1. What was written before it was reached is visible after this."""
        return read_word(self.address)

    def add(self, count: int) -> None:
        """Add ``count``: everything written before is visible to whoever sees the new value."""
        if count:
            add_to_word(self.address, count)

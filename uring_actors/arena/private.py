"""Memory of this process alone, for words that hot functions and the kernel look at by address."""

from __future__ import annotations

import numpy as np

from uring_actors.arena import abi


class PrivateMemory:
    """Zeroed memory of this process, on a cache line of its own, that lives as long as this object."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(size + 2 * abi.CACHE_LINE, np.uint8)
        skip = -self._bytes.ctypes.data % abi.CACHE_LINE
        self.address: int = self._bytes.ctypes.data + skip
        self.view = self._bytes.data[skip : skip + size]

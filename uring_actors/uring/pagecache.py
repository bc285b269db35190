"""How much of a file is in the page cache: cachestat(2), Linux 6.5.

A file that is mostly cached is read faster through the cache, one that is mostly not, past it (O_DIRECT).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

SYS_CACHESTAT: Final = 451  # the same on every architecture
_NR_CACHE: Final = 0  # index in struct cachestat, five 64-bit counts of pages

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]


def cached_bytes(fd: int, size: int) -> int:
    """Bytes of the first ``size`` that are cached, in whole pages. Raises OSError (ENOSYS: kernel before 6.5)."""
    span, counts = (ctypes.c_uint64 * 2)(0, size), (ctypes.c_uint64 * 5)()
    if _syscall(SYS_CACHESTAT, fd, ctypes.addressof(span), ctypes.addressof(counts), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return counts[_NR_CACHE] * mmap.PAGESIZE


def mostly_cached(fd: int, size: int) -> bool:
    """Whether more than half of the file is cached; True where that can't be found out."""
    try:
        return cached_bytes(fd, size) * 2 > size
    except OSError:
        return True

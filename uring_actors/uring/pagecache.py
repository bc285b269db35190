"""How much of a file is in the page cache: cachestat(2), Linux 6.5.

What is cached is read faster through the cache, what is not, past it (O_DIRECT).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from itertools import chain
from typing import Final

SYS_CACHESTAT: Final = 451  # the same on every architecture
_NR_CACHE: Final = 0  # index in struct cachestat, five 64-bit counts of pages

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]


def cached_bytes(fd: int, size: int, start: int = 0) -> int:
    """How much of ``size`` bytes from ``start`` on is cached, in whole pages. Raises OSError (ENOSYS: kernel before
    6.5)."""
    span, counts = (ctypes.c_uint64 * 2)(start, size), (ctypes.c_uint64 * 5)()
    if _syscall(SYS_CACHESTAT, fd, ctypes.addressof(span), ctypes.addressof(counts), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return counts[_NR_CACHE] * mmap.PAGESIZE


def stretches(fd: int, size: int, step: int, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """Steps ``first`` to ``first + count`` of a file of ``size`` bytes, as runs (first, count, cached): a step of
    ``step`` bytes, a multiple of the page size, is cached where more than half of it is; all are where that can't be
    found out.

    What is cached or not cached as a whole takes one question; what is mixed is halved.
    """
    start = first * step
    length = min(size, start + count * step) - start
    try:
        cached = cached_bytes(fd, length, start)
    except OSError:
        cached = length
    if count == 1 or cached == 0 or cached >= length:
        yield first, count, cached * 2 > length
        return
    half = count // 2
    halves = (stretches(fd, size, step, at, n) for at, n in ((first, half), (first + half, count - half)))
    last: tuple[int, int, bool] | None = None
    for run in chain.from_iterable(halves):
        if last is not None and last[2] == run[2]:
            run = last[0], last[1] + run[1], run[2]
        elif last is not None:
            yield last
        last = run
    assert last is not None
    yield last

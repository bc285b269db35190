"""Submission and completion queue of a mapped ring, for hot loops: the lanes' and the stream's one way in and out.

``queue`` is one row of int64 words: addresses in the mapped ring, and the owner's own counts. QUEUED counts SQEs
written that the kernel is not known to have taken, HELD those that it has and has not completed. Under SQPOLL the
SQ's head moves only after a whole batch, so QUEUED lags behind (``arrived``), and an SQE may be overwritten before
the head has passed it; never before it was read, as long as no more are in flight than the SQ has entries.

Who writes what: SQ tail, SQEs, CQ head and this row: the one thread that owns the ring; SQ head, CQ tail, CQEs: the
kernel. The owner keeps at most as many submissions in flight as the SQ has entries, and the CQ has twice that:
neither can overflow. ``unsound`` and ``overflowed`` check it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.atomics import fence, load_acquire, store32, store64, store_release, syscall
from uring_actors.hot import lean
from uring_actors.uring import kernel

Words = np.ndarray[Any, np.dtype[np.int64]]

# Set when the ring is made:
RING: Final = 0  # descriptor
SQ_HEAD: Final = 1  # addresses
SQ_TAIL: Final = 2
SQ_FLAGS: Final = 3
SQ_MASK: Final = 4
SQES: Final = 5
CQ_HEAD: Final = 6
CQ_TAIL: Final = 7
CQ_OVERFLOW: Final = 8
CQ_MASK: Final = 9
CQES: Final = 10
SQPOLL: Final = 11
ARG: Final = 12  # address of the getevents argument
UPDATE: Final = 13  # address of the files update
SQE_SHIFT: Final = 14  # log2 of an entry's bytes
CQE_SHIFT: Final = 15
# The owner's own:
QUEUED: Final = 16
HELD: Final = 17
TAIL: Final = 18  # the SQ's tail as written, maybe not yet published
STUCK: Final = 19  # calls of io_uring_enter in a row that took nothing
QUEUE_WORDS: Final = 24

_WRAP: Final = abi.WRAP
_EINTR, _EAGAIN, _EBUSY, _ETIME = 4, 11, 16, 62
_MAX_STUCK: Final = 10_000
STUCK_NS: Final = 200_000  # how long to wait for a completion that may make room


@lean
def update_file(queue: Words, row: int, fd: int) -> bool:
    """Put ``fd`` (−1: nothing) in the file table at ``row``; whether the kernel did it."""
    update = queue[UPDATE]
    store32(update + kernel.UPDATE_OFFSET, row)
    store32(update + kernel.UPDATE_FD, fd)
    return syscall(kernel.SYS_REGISTER, queue[RING], kernel.REGISTER_FILES_UPDATE, update, 1, 0, 0) == 1


@lean
def next_sqe(queue: Words) -> int:
    """The address of the entry to write next, which counts as queued; ``submit`` shows it to the kernel. The owner
    knows that there is room."""
    tail = queue[TAIL]
    queue[TAIL] = (tail + 1) & _WRAP
    queue[QUEUED] += 1
    return queue[SQES] + ((tail & queue[SQ_MASK]) << queue[SQE_SHIFT])


@lean
def room(queue: Words) -> int:
    """How many entries the SQ has room for now."""
    return queue[SQ_MASK] + 1 - ((queue[TAIL] - load_acquire(queue[SQ_HEAD])) & _WRAP)


@lean
def held(queue: Words) -> int:
    """How many entries the kernel has, or may take at any time."""
    if queue[SQPOLL] == 0:
        return queue[HELD]
    return queue[HELD] + queue[QUEUED] - ((queue[TAIL] - load_acquire(queue[SQ_TAIL])) & _WRAP)


@lean
def waiting(queue: Words) -> bool:
    """Whether there is a completion to take."""
    return load_acquire(queue[CQ_TAIL]) != load_acquire(queue[CQ_HEAD])


@lean
def arrived(queue: Words) -> int:
    """How many completions can be taken now, with ``arrival``; end with ``taken``."""
    head, tail = load_acquire(queue[CQ_HEAD]), load_acquire(queue[CQ_TAIL])
    if queue[SQPOLL] != 0:
        took = max(0, queue[QUEUED] - ((queue[TAIL] - load_acquire(queue[SQ_HEAD])) & _WRAP))
        queue[QUEUED] -= took
        queue[HELD] += took
    return (tail - head) & _WRAP


@lean
def arrival(queue: Words, number: int) -> int:
    """The address of the ``number``-th completion; its submission is no longer held."""
    # The poller moves the SQ's head after a whole batch, so a read may be complete before it looks taken.
    if queue[SQPOLL] != 0 and queue[HELD] == 0:
        queue[QUEUED] -= 1
    else:
        queue[HELD] -= 1
    return queue[CQES] + (((load_acquire(queue[CQ_HEAD]) + number) & queue[CQ_MASK]) << queue[CQE_SHIFT])


@lean
def taken(queue: Words, count: int) -> None:
    """Give the places of ``count`` completions back to the kernel."""
    store_release(queue[CQ_HEAD], load_acquire(queue[CQ_HEAD]) + count)


@lean
def unsound(queue: Words, in_flight: int) -> bool:
    """Whether the counts don't add up to the owner's own."""
    return bool(queue[QUEUED] < 0 or queue[HELD] < 0 or queue[QUEUED] + queue[HELD] != in_flight)


@lean
def overflowed(queue: Words) -> bool:
    """Whether the kernel ever found the completion queue full."""
    return load_acquire(queue[CQ_OVERFLOW]) != 0


@lean
def enter(queue: Words, submit: int, wait: int, flags: int, timeout_ns: int) -> int:
    """io_uring_enter(2): hand over ``submit`` entries, wait for ``wait`` completions at most ``timeout_ns``."""
    arg = queue[ARG]
    store64(arg + kernel.ARG_SECONDS, timeout_ns // 1_000_000_000)
    store64(arg + kernel.ARG_NANOSECONDS, timeout_ns % 1_000_000_000)
    flags |= kernel.ENTER_GETEVENTS | kernel.ENTER_EXT_ARG
    return syscall(kernel.SYS_ENTER, queue[RING], submit, wait, flags, arg, kernel.ARG_BYTES)


@lean
def submit(queue: Words, wait: int, timeout_ns: int) -> int:
    """Hand queued entries over and wait for ``wait`` completions (0 or 1) at most ``timeout_ns``; 0, or −errno of
    what is fatal."""
    store_release(queue[SQ_TAIL], queue[TAIL])
    if queue[SQPOLL] != 0:
        # The poller announces that it sleeps, then looks at the tail once more; we store the tail, then look for
        # the announcement. Without a full barrier in between both can miss the other.
        fence()
        flags = 0
        if queue[QUEUED] > 0 and load_acquire(queue[SQ_FLAGS]) & kernel.SQ_NEED_WAKEUP:
            flags = kernel.ENTER_SQ_WAKEUP
        if flags == 0 and wait == 0:
            return 0
        result = enter(queue, 0, wait, flags, timeout_ns)
    else:
        result = enter(queue, queue[QUEUED], wait, 0, timeout_ns)
        if result > 0:
            queue[QUEUED] -= result
            queue[HELD] += result
    if result >= 0 or result == -_ETIME or result == -_EINTR:
        queue[STUCK] = 0
        return 0
    # EAGAIN: no memory for a request just now; EBUSY: completions are to be reaped first. Both pass.
    queue[STUCK] += 1
    if (result == -_EAGAIN or result == -_EBUSY) and queue[STUCK] < _MAX_STUCK:
        enter(queue, 0, 1, 0, STUCK_NS)
        return 0
    return result

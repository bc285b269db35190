"""Sleeping until there is work: an event count on a futex, shared between processes.

A bell is one cache line: word 0 the sequence number (the futex), word 1 how many sleep or are about to.

    consumer: waiters += 1 → key = sequence → fence → is there work? → futex_wait(sequence, key) → waiters −= 1
    producer: make the work visible → fence → waiters ≠ 0? → sequence += 1 → futex_wake

Either the producer sees the waiter, or the consumer sees the work: both put a full fence between their store and
their load. Without the fences wake-ups get lost. Any number of consumers and producers may share one bell.
"""

from __future__ import annotations

from uring_actors.arena.atomics import (
    FUTEX_WAKE,
    SYS_FUTEX,
    fence,
    fetch_add,
    futex_wait,
    load_acquire,
    pause,
    syscall,
)
from uring_actors.arena.channel import pending
from uring_actors.hot import hot

_WAITERS = 4  # byte offset of the second word


@hot
def prepare(bell: int) -> int:
    """Announce a sleeper; the key for ``sleep``. After it, look for work once more, then sleep or cancel."""
    fetch_add(bell + _WAITERS, 1)
    key = load_acquire(bell)
    fence()
    return key


@hot
def cancel(bell: int) -> None:
    """There was work after all."""
    fetch_add(bell + _WAITERS, -1)


@hot
def sleep(bell: int, key: int, timeout_ns: int) -> None:
    """Sleep until the bell is rung after ``prepare``, at most ``timeout_ns``. May wake early."""
    futex_wait(bell, key, timeout_ns)
    fetch_add(bell + _WAITERS, -1)


@hot
def ring(bell: int, wake: int) -> None:
    """Wake up to ``wake`` sleepers, if there are any: one load where nobody sleeps. Call it after making the
    work visible. Wake fewer than all only where any sleeper can do the work."""
    fence()
    if load_acquire(bell + _WAITERS) != 0:
        fetch_add(bell, 1)
        syscall(SYS_FUTEX, bell, FUTEX_WAKE, wake, 0, 0, 0)


@hot
def wait_pending(bell: int, channel: int, spins: int, timeout_ns: int) -> int:
    """How many records the channel's consumer may take, once there are any: look ``spins`` times, then sleep once.

    0 after ``timeout_ns``, or earlier where something else woke it. ``bell`` is the one that the producer rings.
    """
    for _ in range(spins):
        count = pending(channel)
        if count != 0:
            return count
        pause()
    key = prepare(bell)
    if pending(channel) != 0:
        cancel(bell)
    else:
        sleep(bell, key, timeout_ns)
    return pending(channel)

"""Single-producer, single-consumer channels of 32-byte records in the arena.

``head`` and ``tail`` are free-running 32-bit counters on their own cache lines: head is the consumer's, tail the
producer's. A record is written before the tail that announces it is stored with release; the consumer loads the
tail with acquire, reads the record, and gives the place back by storing the head with release. ``mask`` is the
number of records minus one (a power of two). Whoever sleeps on the other side is woken through its bell: pushing
and ringing are two steps, so that one ring can announce many records.
"""

from __future__ import annotations

from uring_actors.arena import abi
from uring_actors.arena.atomics import load_acquire, store32, store64, store_release
from uring_actors.hot import hot

_HEAD, _TAIL, _RECORDS = abi.CHANNEL_HEAD, abi.CHANNEL_TAIL, abi.CHANNEL_RECORDS
_SHIFT = 5  # log2 of RECORD_BYTES
_WRAP = abi.WRAP


@hot
def room(channel: int, mask: int) -> int:
    """How many records the producer may push now."""
    return mask + 1 - ((load_acquire(channel + _TAIL) - load_acquire(channel + _HEAD)) & _WRAP)


@hot
def pending(channel: int) -> int:
    """How many records the consumer may take now."""
    return (load_acquire(channel + _TAIL) - load_acquire(channel + _HEAD)) & _WRAP


@hot
def push(
    channel: int,
    mask: int,
    data_slot: int,
    nbytes: int,
    file_id: int,
    extent_id: int,
    file_offset: int,
    status: int,
    flags: int,
) -> bool:
    """Append one record; False where the channel is full. Producer only."""
    tail = load_acquire(channel + _TAIL)
    if (tail - load_acquire(channel + _HEAD)) & _WRAP > mask:
        return False
    record = channel + _RECORDS + ((tail & mask) << _SHIFT)
    store32(record + abi.RECORD_DATA_SLOT, data_slot)
    store32(record + abi.RECORD_BYTES_READ, nbytes)
    store32(record + abi.RECORD_FILE_ID, file_id)
    store32(record + abi.RECORD_EXTENT_ID, extent_id)
    store64(record + abi.RECORD_FILE_OFFSET, file_offset)
    store32(record + abi.RECORD_STATUS, status)
    store32(record + abi.RECORD_FLAGS, flags)
    store_release(channel + _TAIL, tail + 1)
    return True


@hot
def peek(channel: int, mask: int) -> int:
    """The address of the oldest record, or 0 where there is none. Consumer only; valid until ``pop``."""
    head = load_acquire(channel + _HEAD)
    if load_acquire(channel + _TAIL) == head:
        return 0
    return channel + _RECORDS + ((head & mask) << _SHIFT)


@hot
def pop(channel: int) -> None:
    """Give the oldest record's place back. Consumer only, after ``peek``."""
    store_release(channel + _HEAD, load_acquire(channel + _HEAD) + 1)

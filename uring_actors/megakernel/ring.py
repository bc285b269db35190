"""The megakernel's ring (SPEC §3): publish, order, tail, claim, done, fault, retire.

A ring slot goes EMPTY → PUBLISHED → CLAIMED → DONE or FAULT → (retired by the kernel host) → written again. Slots
complete in any order; whoever polls follows *positions*: ``order[position & mask]`` names the slot published at
that position. Three free-running 32-bit counters bound a position's life:

    RETIRED  ≤  CLAIM  ≤  TAIL  ≤  RETIRED + ring slots        (modulo 2³²)

TAIL is the publisher's, CLAIM is moved by the kernel's threads with compare-and-swap, RETIRED is the kernel
host's. The publisher reuses a slot only after the host has said, through the retired channel, that it is done with
it; so it never laps what is not retired, and ``order`` needs no check of its own.

Hand-overs: slot words and order → release of TAIL → acquire by ``claim``; results → release of the slot's status →
acquire by ``collect``; what the host read → release of the retired channel's tail → acquire by the publisher.
"""

from __future__ import annotations

from uring_actors.arena import abi, bell, channel, samples
from uring_actors.arena.atomics import (
    clock_ns,
    compare_swap,
    fetch_add,
    load32,
    load64,
    load_acquire,
    pause,
    store32,
    store64,
    store_release,
)
from uring_actors.arena.book import (
    BOOK_CONTROL,
    BOOK_ORDER,
    BOOK_RESULT_BYTES,
    BOOK_RESULTS,
    BOOK_RING,
    BOOK_RING_MASK,
    BOOK_STATE,
    Book,
)
from uring_actors.hot import hot

_WRAP = abi.WRAP
_TENANT_MASKS = 4 * abi.CONTROL_TENANT_MASK_WORD
_DONE_COUNT = 4 * abi.CONTROL_DONE_COUNT_WORD
_EPOCH = 4 * abi.CONTROL_EPOCH_WORD
_SHUTDOWN = 4 * abi.CONTROL_SHUTDOWN_WORD
_METRICS = 4 * abi.CONTROL_METRICS_WORD
_METRIC_MASK = abi.CONTROL_METRICS_COUNT - 1

NOTHING = -1
"""What ``claim`` returns where no slot is published."""


@hot
def slot_address(book: Book, slot: int) -> int:
    """Where ring slot ``slot`` lies."""
    return book[BOOK_RING] + slot * abi.RING_SLOT_BYTES


@hot
def result_address(book: Book, data_slot: int) -> int:
    """Where the result block of ``data_slot`` lies."""
    return book[BOOK_RESULTS] + data_slot * book[BOOK_RESULT_BYTES]


# ── publisher ────────────────────────────────────────────────────────────────────────────────────────────────


@hot
def writable(book: Book, slot: int) -> bool:
    """Whether the host side may write this slot: EMPTY, DONE or FAULT."""
    status = load_acquire(slot_address(book, slot))
    return status == abi.EMPTY or status == abi.DONE or status == abi.FAULT


@hot
def stage(book: Book, position: int, slot: int, opcode: int, tenant: int, priority: int) -> None:
    """Make a slot whose arguments are written PUBLISHED, as number ``position``; ``announce`` shows it."""
    address = slot_address(book, slot)
    store32(address + abi.SLOT_OPCODE, opcode)
    store32(address + abi.SLOT_TENANT, tenant)
    store32(address + abi.SLOT_PRIORITY, priority)
    store32(book[BOOK_ORDER] + ((position & book[BOOK_RING_MASK]) << 2), slot)
    store_release(address + abi.SLOT_POSITION, position)
    store_release(address + abi.SLOT_STATUS, abi.PUBLISHED)


@hot
def announce(book: Book, tail: int) -> None:
    """Move the tail up to ``tail`` and wake the kernel. Everything below must have been staged."""
    count = (tail - load_acquire(book[BOOK_STATE] + abi.STATE_TAIL)) & _WRAP
    store_release(book[BOOK_STATE] + abi.STATE_TAIL, tail)
    bell.ring(book[BOOK_STATE] + abi.BELL_KERNEL, count)


# ── kernel ───────────────────────────────────────────────────────────────────────────────────────────────────


@hot
def claim(book: Book) -> int:
    """Take the oldest published slot and mark it CLAIMED; NOTHING where there is none. Any thread.

    ``order`` is read before the compare-and-swap: while CLAIM has this value, the position is neither claimed nor
    retired, so its entry can't change; where the swap fails, the value read is dropped.
    """
    state = book[BOOK_STATE]
    while True:
        position = load_acquire(state + abi.STATE_CLAIM)
        if position == load_acquire(state + abi.STATE_TAIL):
            return NOTHING
        slot = load32(book[BOOK_ORDER] + ((position & book[BOOK_RING_MASK]) << 2))
        if compare_swap(state + abi.STATE_CLAIM, position, position + 1):
            store_release(slot_address(book, slot), abi.CLAIMED)
            return slot


@hot
def published(book: Book) -> bool:
    """Whether ``claim`` would find a slot now."""
    state = book[BOOK_STATE]
    return load_acquire(state + abi.STATE_CLAIM) != load_acquire(state + abi.STATE_TAIL)


@hot
def permitted(book: Book, slot: int) -> bool:
    """Whether the tenant of this slot may run: its mask word is 0, and there is one."""
    tenant = load32(slot_address(book, slot) + abi.SLOT_TENANT)
    return tenant < abi.TENANTS and load_acquire(book[BOOK_CONTROL] + _TENANT_MASKS + (tenant << 2)) == 0


@hot
def finish(book: Book, slot: int, status: int) -> None:
    """Hand a claimed slot back as DONE or FAULT and wake the host. A DONE adds one to its opcode's metric."""
    address, control = slot_address(book, slot), book[BOOK_CONTROL]
    if load32(address + abi.SLOT_FLAGS) & abi.FLAG_TIMED:
        samples.done(book, load32(address + abi.SLOT_DATA_SLOT))
    if status == abi.DONE:
        fetch_add(control + _METRICS + ((load32(address + abi.SLOT_OPCODE) & _METRIC_MASK) << 2), 1)
    fetch_add(control + _DONE_COUNT, 1)
    store_release(address, status)
    bell.ring(book[BOOK_STATE] + abi.BELL_HOST, 1)


@hot
def refuse(book: Book, slot: int, reason: int) -> None:
    """Hand a claimed slot back as FAULT, and say why (``abi.REASON_*``)."""
    store32(slot_address(book, slot) + abi.SLOT_REASON, reason)
    finish(book, slot, abi.FAULT)


@hot
def advance_epoch(book: Book) -> None:
    """What BATCH_FENCE does."""
    fetch_add(book[BOOK_CONTROL] + _EPOCH, 1)


@hot
def shutting_down(book: Book) -> bool:
    """Whether SHUTDOWN is set."""
    return load_acquire(book[BOOK_CONTROL] + _SHUTDOWN) != 0


@hot
def shut_down(book: Book) -> None:
    """Set SHUTDOWN and wake everybody who waits for slots."""
    store_release(book[BOOK_CONTROL] + _SHUTDOWN, 1)
    bell.ring(book[BOOK_STATE] + abi.BELL_KERNEL, 1 << 30)
    bell.ring(book[BOOK_STATE] + abi.BELL_HOST, 1 << 30)
    bell.ring(book[BOOK_STATE] + abi.BELL_PUBLISHER, 1 << 30)


# ── kernel host ──────────────────────────────────────────────────────────────────────────────────────────────

# Columns of what ``collect`` reports, one row a slot.
COLUMN_RING_SLOT = 0
COLUMN_STATUS = 1
COLUMN_OPCODE = 2
COLUMN_DATA_SLOT = 3
COLUMN_PAYLOAD_BYTES = 4
COLUMN_PAYLOAD_OFFSET = 5
COLUMN_HALO_BYTES = 6
COLUMN_FILE_OFFSET = 7
COLUMN_FILE_ID = 8
COLUMN_EXTENT_ID = 9
COLUMN_FLAGS = 10
COLUMN_ERRNO = 11
COLUMN_HIT_COUNT = 12
COLUMN_OVERFLOW = 13
COLUMN_VALUE = 14
COLUMN_NEWLINES = 15
COLUMN_LAST_NEWLINE = 16  # offset in the payload, or −1
COLUMN_REASON = 17  # of a FAULT: abi.REASON_*
COLUMN_RESULT = 18  # bytes by which the results lie further on in the result block than they usually do
COLUMNS = 19


@hot
def terminal(book: Book, position: int) -> int:
    """The ring slot at ``position`` if it is published and DONE or FAULT, else NOTHING. Host only."""
    if position == load_acquire(book[BOOK_STATE] + abi.STATE_TAIL):
        return NOTHING
    slot = load32(book[BOOK_ORDER] + ((position & book[BOOK_RING_MASK]) << 2))
    status = load_acquire(slot_address(book, slot))
    return slot if status == abi.DONE or status == abi.FAULT else NOTHING


@hot
def describe(book: Book, slot: int, row: Book) -> None:
    """Copy a terminal slot's arguments and its result block's header into ``row`` (COLUMN_*)."""
    address = slot_address(book, slot)
    row[COLUMN_RING_SLOT] = slot
    row[COLUMN_STATUS] = load32(address + abi.SLOT_STATUS)
    row[COLUMN_OPCODE] = load32(address + abi.SLOT_OPCODE)
    row[COLUMN_DATA_SLOT] = load32(address + abi.SLOT_DATA_SLOT)
    row[COLUMN_PAYLOAD_BYTES] = load32(address + abi.SLOT_PAYLOAD_BYTES)
    row[COLUMN_PAYLOAD_OFFSET] = load32(address + abi.SLOT_PAYLOAD_OFFSET)
    row[COLUMN_HALO_BYTES] = load32(address + abi.SLOT_HALO_BYTES)
    row[COLUMN_FILE_OFFSET] = load64(address + abi.SLOT_FILE_OFFSET)
    row[COLUMN_FILE_ID] = load32(address + abi.SLOT_FILE_ID)
    row[COLUMN_EXTENT_ID] = load32(address + abi.SLOT_EXTENT_ID)
    row[COLUMN_FLAGS] = load32(address + abi.SLOT_FLAGS)
    row[COLUMN_ERRNO] = load32(address + abi.SLOT_ERRNO)
    if row[COLUMN_FLAGS] & abi.FLAG_TIMED:  # a kernel on a GPU can't say when
        samples.done(book, row[COLUMN_DATA_SLOT])
    row[COLUMN_REASON] = load32(address + abi.SLOT_REASON) if row[COLUMN_STATUS] == abi.FAULT else 0
    row[COLUMN_HIT_COUNT] = 0
    row[COLUMN_OVERFLOW] = 0
    row[COLUMN_VALUE] = 0
    row[COLUMN_NEWLINES] = 0
    row[COLUMN_LAST_NEWLINE] = -1
    row[COLUMN_RESULT] = 0
    # Only an operation that reads bytes leaves a result; the block of a NOP holds what an earlier slot left.
    if row[COLUMN_STATUS] == abi.DONE and row[COLUMN_OPCODE] != abi.OP_SCAN_NOP:
        result = result_address(book, row[COLUMN_DATA_SLOT])
        row[COLUMN_HIT_COUNT] = load32(result + abi.RESULT_COUNT)
        row[COLUMN_OVERFLOW] = load32(result + abi.RESULT_OVERFLOW)
        row[COLUMN_VALUE] = load64(result + abi.RESULT_VALUES)
        row[COLUMN_NEWLINES] = load32(result + abi.RESULT_NEWLINES)
        if row[COLUMN_NEWLINES] != 0:
            row[COLUMN_LAST_NEWLINE] = load32(result + abi.RESULT_LAST_NEWLINE)


@hot
def collect(book: Book, position: int, rows: Book, spins: int, nap_ns: int, slice_ns: int) -> int:
    """Describe terminal slots from ``position`` on, in publish order, until the next one isn't terminal or ``rows``
    is full; how many. Waits up to ``slice_ns`` for the first, sleeping at most ``nap_ns`` at a time (a kernel on a
    GPU can't ring the bell). The slots stay the host's until ``retire``."""
    host_bell = book[BOOK_STATE] + abi.BELL_HOST
    deadline = clock_ns() + slice_ns
    spun = 0
    while terminal(book, position) == NOTHING:
        if spun < spins:
            spun += 1
            pause()
            continue
        key = bell.prepare(host_bell)
        left = deadline - clock_ns()
        if terminal(book, position) != NOTHING or left <= 0 or shutting_down(book):
            bell.cancel(host_bell)
            if left <= 0 or shutting_down(book):
                break
            continue
        bell.sleep(host_bell, key, min(left, nap_ns))
        spun = 0
    count = 0
    while count < rows.shape[0]:
        slot = terminal(book, (position + count) & _WRAP)
        if slot == NOTHING:
            break
        describe(book, slot, rows[count])
        count += 1
    return count


@hot
def retire(book: Book, retired_channel: int, channel_mask: int, rows: Book, count: int) -> bool:
    """Give the first ``count`` described slots back to the publisher; False where its channel is full (it holds
    every slot, so that means the publisher is dead or somebody retired twice)."""
    state = book[BOOK_STATE]
    whole = True
    for i in range(count):
        whole &= channel.push(
            retired_channel,
            channel_mask,
            rows[i, COLUMN_DATA_SLOT],
            rows[i, COLUMN_RING_SLOT],
            rows[i, COLUMN_PAYLOAD_BYTES],
            0,
            0,
            rows[i, COLUMN_STATUS],
            rows[i, COLUMN_FLAGS],
        )
    store_release(state + abi.STATE_RETIRED, load_acquire(state + abi.STATE_RETIRED) + count)
    bell.ring(state + abi.BELL_PUBLISHER, 1)
    return whole


@hot
def write_scan(
    book: Book,
    slot: int,
    data_slot: int,
    payload: int,
    payload_offset: int,
    halo: int,
    file_offset: int,
    file_id: int,
    extent_id: int,
    operation: int,
    flags: int,
    errno: int,
) -> None:
    """Write a scan's arguments into a writable slot; ``stage`` publishes it. Publisher only."""
    address = slot_address(book, slot)
    store32(address + abi.SLOT_DATA_SLOT, data_slot)
    store32(address + abi.SLOT_PAYLOAD_BYTES, payload)
    store32(address + abi.SLOT_PAYLOAD_OFFSET, payload_offset)
    store32(address + abi.SLOT_HALO_BYTES, halo)
    store64(address + abi.SLOT_FILE_OFFSET, file_offset)
    store32(address + abi.SLOT_FILE_ID, file_id)
    store32(address + abi.SLOT_EXTENT_ID, extent_id)
    store32(address + abi.SLOT_OPERATION, operation)
    store32(address + abi.SLOT_FLAGS, flags)
    store32(address + abi.SLOT_ERRNO, errno)

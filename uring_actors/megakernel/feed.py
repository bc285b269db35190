"""The publisher's loop: lanes' completions into ring slots, retired slots into credits.

``state`` is the publisher's private memory (``FEED_*``); ``job`` says what every extent is published as (``JOB_*``).
``tally`` has a row for each lane of what came back from it (``TALLY_*``), ``times`` a row for each extent that was
timed (``samples.take``), written round and round.

The host retires slots in the order in which they were published, so ring slots are used round and round: position p
has slot ``p & mask``. Readers still go by ``order``; who polls over PCIe may guess the next slot from the position.
"""

from __future__ import annotations

from typing import Final

from uring_actors.arena import abi, bell, channel, samples
from uring_actors.arena.atomics import clock_ns, load32, load64, pause
from uring_actors.arena.book import (
    BOOK_CHANNEL_BYTES,
    BOOK_CHANNEL_MASK,
    BOOK_CHANNELS,
    BOOK_LANES,
    BOOK_RING_MASK,
    BOOK_SLOTS_PER_LANE,
    BOOK_STATE,
    Book,
)
from uring_actors.hot import hot
from uring_actors.megakernel import ring

FEED_HEAD: Final = 0  # the position of the oldest slot that has not come back
FEED_TAIL: Final = 1  # the next position
FEED_PUBLISHED: Final = 2  # slots published so far
FEED_RETIRED: Final = 3  # slots that came back
FEED_BYTES: Final = 4  # payload bytes published
FEED_ERROR: Final = 5  # non-zero: a rule was broken; see ``ERRORS``
FEED_TIMED: Final = 6  # rows of ``times`` written
FEED_WORDS: Final = 8

TALLY_BYTES: Final = 0  # payload bytes of slots that were DONE
TALLY_FAULTS: Final = 1  # slots that were FAULT
TALLY_WORDS: Final = 8  # a cache line

JOB_PAYLOAD: Final = 0  # payload bytes of a full extent
JOB_LEAD: Final = 1  # offset of the payload in its data slot
JOB_OPCODE: Final = 2
JOB_OPERATION: Final = 3
JOB_TENANT: Final = 4
JOB_WORDS: Final = 8

ERROR_SLOT_BUSY: Final = 1
ERROR_CREDITS_FULL: Final = 2
ERROR_OUT_OF_ORDER: Final = 3
ERRORS: Final = {
    ERROR_SLOT_BUSY: "a free ring slot was still in flight",
    ERROR_OUT_OF_ORDER: "slots were not retired in the order in which they were published",
    ERROR_CREDITS_FULL: "a lane's credits channel was full: a data slot was handed back twice",
}


@hot
def completion_channel(book: Book, lane: int) -> int:
    """The channel lane → publisher."""
    return book[BOOK_CHANNELS] + 2 * lane * book[BOOK_CHANNEL_BYTES]


@hot
def credit_channel(book: Book, lane: int) -> int:
    """The channel publisher → lane."""
    return book[BOOK_CHANNELS] + (2 * lane + 1) * book[BOOK_CHANNEL_BYTES]


@hot
def retired_channel(book: Book) -> int:
    """The channel kernel host → publisher."""
    return book[BOOK_CHANNELS] + 2 * book[BOOK_LANES] * book[BOOK_CHANNEL_BYTES]


@hot
def lane_bell(book: Book, lane: int) -> int:
    """What a lane sleeps on."""
    return book[BOOK_STATE] + abi.STATE_BYTES + lane * abi.CACHE_LINE


@hot
def take_retired(book: Book, state: Book, tally: Book, times: Book) -> int:
    """Free every retired ring slot and hand its data slot back to its lane; how many."""
    source, mask = retired_channel(book), book[BOOK_CHANNEL_MASK]
    taken = 0
    while True:
        record = channel.peek(source, mask)
        if record == 0:
            break
        data_slot = load32(record + abi.RECORD_DATA_SLOT)
        if load32(record + abi.RECORD_RING_SLOT) != state[FEED_HEAD] & book[BOOK_RING_MASK]:
            state[FEED_ERROR] = ERROR_OUT_OF_ORDER
        state[FEED_HEAD] = (state[FEED_HEAD] + 1) & abi.WRAP
        payload = load32(record + abi.RECORD_PAYLOAD)
        status, flags = load32(record + abi.RECORD_STATUS), load32(record + abi.RECORD_FLAGS)
        channel.pop(source)
        taken += 1
        if data_slot != abi.NO_DATA_SLOT:
            lane = data_slot // book[BOOK_SLOTS_PER_LANE]
            if status == abi.DONE:
                tally[lane, TALLY_BYTES] += payload
            else:
                tally[lane, TALLY_FAULTS] += 1
            if flags & abi.FLAG_TIMED:
                samples.take(book, data_slot, times[state[FEED_TIMED] % times.shape[0]])
                state[FEED_TIMED] += 1
            if not channel.push(credit_channel(book, lane), mask, data_slot, 0, 0, 0, 0, 0, 0):
                state[FEED_ERROR] = ERROR_CREDITS_FULL
            bell.ring(lane_bell(book, lane), 1)
    state[FEED_RETIRED] += taken
    return taken


@hot
def room(book: Book, state: Book) -> bool:
    """Whether there is a free ring slot."""
    return (state[FEED_TAIL] - state[FEED_HEAD]) & abi.WRAP <= book[BOOK_RING_MASK]


@hot
def publish_record(book: Book, state: Book, job: Book, record: int) -> None:
    """Write one completion record into the next ring slot, which is free, and stage it."""
    slot = state[FEED_TAIL] & book[BOOK_RING_MASK]
    if not ring.writable(book, slot):
        state[FEED_ERROR] = ERROR_SLOT_BUSY
        return
    nbytes = load32(record + abi.RECORD_BYTES_READ)
    status = load32(record + abi.RECORD_STATUS)
    flags = load32(record + abi.RECORD_FLAGS)
    packed = flags & abi.FLAG_PACKED != 0
    payload = nbytes if packed else min(nbytes, job[JOB_PAYLOAD])
    data_slot = load32(record + abi.RECORD_DATA_SLOT)
    if flags & abi.FLAG_TIMED:
        samples.published(book, data_slot)
    ring.write_scan(
        book,
        slot,
        data_slot,
        payload,
        0 if packed else job[JOB_LEAD],
        nbytes - payload,
        load64(record + abi.RECORD_FILE_OFFSET),
        load32(record + abi.RECORD_FILE_ID),
        load32(record + abi.RECORD_EXTENT_ID),
        job[JOB_OPERATION],
        flags if status == 0 else flags | abi.FLAG_FAILED,
        status,
    )
    # Nothing to scan: the slot goes the same way, so that its file is settled in order.
    opcode = job[JOB_OPCODE] if nbytes > 0 else abi.OP_SCAN_NOP
    ring.stage(book, state[FEED_TAIL], slot, opcode, job[JOB_TENANT], abi.PRIORITY_NORMAL)
    state[FEED_TAIL] = (state[FEED_TAIL] + 1) & abi.WRAP
    state[FEED_PUBLISHED] += 1
    state[FEED_BYTES] += payload


@hot
def publish_completions(book: Book, state: Book, job: Book) -> int:
    """Publish what the lanes have completed, as far as ring slots are free; how many."""
    mask = book[BOOK_CHANNEL_MASK]
    count = 0
    for lane in range(book[BOOK_LANES]):
        source = completion_channel(book, lane)
        while room(book, state) and state[FEED_ERROR] == 0:
            record = channel.peek(source, mask)
            if record == 0:
                break
            publish_record(book, state, job, record)
            channel.pop(source)
            count += 1
    if count > 0:
        ring.announce(book, state[FEED_TAIL])
    return count


@hot
def has_work(book: Book, state: Book) -> bool:
    """Whether a completion that can be published, or a retired slot, is waiting."""
    if channel.pending(retired_channel(book)) > 0:
        return True
    if room(book, state):
        for lane in range(book[BOOK_LANES]):
            if channel.pending(completion_channel(book, lane)) > 0:
                return True
    return False


@hot
def feed(book: Book, state: Book, job: Book, tally: Book, times: Book, spins: int, slice_ns: int) -> int:
    """Run for about ``slice_ns``; the error code, 0 if none."""
    my_bell = book[BOOK_STATE] + abi.BELL_PUBLISHER
    deadline = clock_ns() + slice_ns
    spun = 0
    while state[FEED_ERROR] == 0:
        moved = take_retired(book, state, tally, times) + publish_completions(book, state, job)
        if moved > 0:
            spun = 0
            if clock_ns() >= deadline:
                break
            continue
        if spun < spins:
            spun += 1
            pause()
            continue
        key = bell.prepare(my_bell)
        left = deadline - clock_ns()
        if has_work(book, state) or left <= 0 or ring.shutting_down(book):
            bell.cancel(my_bell)
            if left <= 0 or ring.shutting_down(book):
                break
            continue
        bell.sleep(my_bell, key, left)
        spun = 0
    return state[FEED_ERROR]

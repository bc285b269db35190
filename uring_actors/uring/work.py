"""What every read engine's lane shares: jobs in, extents, credits, completion records out, jobs back.

A lane is one thread with its share of the arena's data slots. It owns a data slot from the credit that returns it
until the completion record that announces it:

    FREE ──begin──▶ READING ──finish──▶ LENT ──credit──▶ FREE           (free + reading + lent = slots, always)

A *job* is a run of extents of one open file (or the errno of a failed open). Jobs come through the intake and go
back, by their token, through the outbox; both are single-producer, single-consumer queues in memory of this
process, of the channels' make (``arena/channel.py``) with records of their own. At most ``jobs`` are anywhere in
the lane, and both queues hold that many, so the outbox is never full.

Who writes what: intake tail and records, outbox head, stop word: the opener's thread. Everything else here — the
tables ``state``, ``reads``, ``jobs``, ``counters``, intake head, outbox tail — the lane's thread alone; others may
look at ``counters``. All numbers are int64.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from uring_actors.arena import abi, bell, channel, samples
from uring_actors.arena.atomics import (
    clock_ns,
    fence,
    load32,
    load64,
    load_acquire,
    pause,
    store64,
    store_release,
)
from uring_actors.arena.memory import Arena
from uring_actors.arena.private import PrivateMemory
from uring_actors.errors import DeadlineExceeded, OptionError, PipelineError
from uring_actors.hot import lean
from uring_actors.uring.verdict import BLOCK, END, FAIL, MORE, RETRY, judge, resume_at

Words = np.ndarray[Any, np.dtype[np.int64]]


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────────
def round_up(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True, slots=True)
class Geometry:
    """How files are cut. Bytes: ``payload`` of an extent (blocks), ``lead`` before it (0 or one block), ``halo``
    after it. Extent i owns the file's bytes [i·payload, (i+1)·payload); the first of them lies ``lead`` bytes into
    its data slot."""

    payload: int
    lead: int = BLOCK
    halo: int = 0

    def __post_init__(self) -> None:
        if self.payload <= 0 or self.payload % BLOCK:
            raise OptionError(f"an extent's payload is a multiple of {BLOCK} bytes, not {self.payload}")
        if self.lead not in (0, BLOCK):
            raise OptionError(f"the lead is 0 or {BLOCK} bytes, not {self.lead}")
        if self.halo < 0:
            raise OptionError(f"a halo has no {self.halo} bytes")

    @property
    def slot_bytes(self) -> int:
        """The least that a data slot must hold."""
        return self.lead + self.payload + round_up(self.halo)

    def extents(self, size: int) -> int:
        """How many extents a file of ``size`` bytes has."""
        return -(-size // self.payload)


# ── jobs, and the queues that carry them ─────────────────────────────────────────────────────────────────────
class Job(NamedTuple):
    """Read ``extents`` extents of a file from ``first`` on; or, with ``errno``, report that it can't be opened; or,
    with ``table``, pack files ``first`` to ``first + extents`` of the batch whose columns it names (``pack.py``).
    ``token`` (non-negative) comes back when it is finished. ``size`` is the file's as listed."""

    token: int
    file_id: int
    fd: int
    size: int
    first: int = 0
    extents: int = 1
    direct: bool = False
    errno: int = 0
    table: int = 0


_JOB = struct.Struct("<qqIiIIIIq")
_INTAKE_SHIFT: Final = 6
_OUTBOX_SHIFT: Final = 3
_HEAD: Final = abi.CHANNEL_HEAD
_TAIL: Final = abi.CHANNEL_TAIL
_RECORDS: Final = abi.CHANNEL_RECORDS
_WRAP: Final = abi.WRAP

RUN: Final = 0  # the stop word: go on
FINISH: Final = 1  # do what is queued, then end
ABORT: Final = 2  # begin nothing more; end when nothing is in flight

# ── state: one row of words ──────────────────────────────────────────────────────────────────────────────────
# Set before the lane starts:
PAYLOAD: Final = 0
LEAD: Final = 1
HALO: Final = 2
SLOT_BYTES: Final = 3
SLOTS: Final = 4
FIRST_SLOT: Final = 5  # the arena's number of the lane's first data slot
DATA: Final = 6  # its address
COMPLETIONS: Final = 7
CREDITS: Final = 8
CHANNEL_MASK: Final = 9
LANE_BELL: Final = 10
PUBLISHER_BELL: Final = 11
INTAKE: Final = 12
OUTBOX: Final = 13
QUEUE_MASK: Final = 14
OUTBOX_BELL: Final = 15
STOP: Final = 16  # address of the stop word
SPIN: Final = 17  # rounds of looking for work before sleeping
BATCH: Final = 18  # reads begun before completions are looked at
DEPTH: Final = 19  # the most reads in flight
ENOUGH_TABLE: Final = 20  # address of the arena's ``STATE_ENOUGH``
# The lane's own:
CURRENT: Final = 21  # the job whose extents are being begun, or −1
FREE: Final = 22  # the first free data slot (local number), or −1; reads[slot, NEXT] is the next
FREE_JOB: Final = 23  # likewise in jobs
READING: Final = 24  # reads begun and not finished
LENT: Final = 25  # data slots announced and not credited
FREE_COUNT: Final = 26
UNTIMED: Final = 27  # extents begun since the last one that is timed
# Set before the lane starts:
PACKED_ENTRIES: Final = 28  # how many files go into a data slot
SCRATCH: Final = 29  # address of memory for structures that system calls take
ENGINE: Final = 32  # from here on an engine's own words
STATE_WORDS: Final = 64

# ── reads: one row for each data slot of the lane ────────────────────────────────────────────────────────────
R_STATE: Final = 0
R_NEXT: Final = 1
R_JOB: Final = 2
R_EXTENT: Final = 3
R_OFFSET: Final = 4  # where in the file the read starts
R_ADDRESS: Final = 5  # where in memory
R_SKIP: Final = 6  # bytes before the payload
R_WANT: Final = 7  # real bytes expected, skip and halo included
R_DONE: Final = 8  # of them, here
R_RETRIES: Final = 9
R_TIMED: Final = 10  # its stages are timed
READ_WORDS: Final = 16

_SCRATCH_BYTES: Final = 512

SLOT_FREE: Final = 0
SLOT_READING: Final = 1
SLOT_LENT: Final = 2

# ── jobs in hand: one row each ───────────────────────────────────────────────────────────────────────────────
J_TOKEN: Final = 0
J_SIZE: Final = 1
J_FILE: Final = 2
J_FD: Final = 3
J_NEXT_EXTENT: Final = 4
J_END: Final = 5
J_DIRECT: Final = 6
J_READING: Final = 7
J_FIXED: Final = 8  # the file is in the ring's table, at the job's own row number
J_NEXT: Final = 9
J_TABLE: Final = 10
JOB_WORDS: Final = 16

# ── what loops return ────────────────────────────────────────────────────────────────────────────────────────
SLICE_OVER: Final = 0
ENDED: Final = 1
BROKEN: Final = -1_000_000  # minus one of the following; above it, a negative return is −errno
BAD_CREDIT: Final = BROKEN - 1
BAD_COMPLETION: Final = BROKEN - 2
BAD_COUNT: Final = BROKEN - 3
NO_ROOM: Final = BROKEN - 4
OVERFLOW: Final = BROKEN - 5

BROKEN_TEXT: Final = {
    BAD_CREDIT: "a credit names a data slot that the lane has not lent",
    BAD_COMPLETION: "a completion names a data slot that is not being read into",
    BAD_COUNT: "free, reading and lent data slots don't add up",
    NO_ROOM: "a completion channel or outbox that can't be full is full",
    OVERFLOW: "the completion queue overflowed",
}

BLOCKED_NS: Final = 200_000  # how long to wait at most for what no bell announces


# ── counters: one word each, written by the lane, read by anybody ────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class LaneStats:
    """What a lane has done. Reads are requests to the kernel, retries and continuations included."""

    submitted_reads: int = 0
    submitted_bytes: int = 0
    completed_reads: int = 0
    """Requests that came back with bytes."""
    completed_bytes: int = 0
    """Bytes that the kernel delivered, lead, halo and bytes read twice after a short read included."""
    extents: int = 0
    """Extents announced to the publisher, failed ones included."""
    short_reads: int = 0
    retries: int = 0
    failed_completions: int = 0
    """Extents and files announced with a status other than 0."""
    io_errors: int = 0
    """Requests that came back with an error that was not retried."""
    bounce_bytes: int = 0
    """Bytes copied by the CPU through memory of ours: must stay 0."""
    registered_reads: int = 0
    """By path: READ_FIXED into a registered buffer …"""
    plain_reads: int = 0
    """… and pread."""
    fixed_file_reads: int = 0
    direct_reads: int = 0
    packed_reads: int = 0
    """Of small files, several to a data slot …"""
    packed_files: int = 0
    unopened_files: int = 0
    """… and those of them that could not be opened."""
    in_flight: int = 0
    """Reads begun and not finished, now."""
    jobs: int = 0
    """Jobs done."""
    extents_spared: int = 0
    """Extents that were not read, because nothing more was wanted of their file."""

    def problems(self) -> list[str]:
        """Of a finished run: what shows that it was not whole, not zero-copy, or not on one path."""
        found = []
        if self.in_flight:
            found.append(f"{self.in_flight} reads are still in flight")
        if self.bounce_bytes:
            found.append(f"{self.bounce_bytes} bytes were copied by the CPU")
        if self.failed_completions:
            found.append(f"{self.failed_completions} extents or files failed")
        if self.registered_reads and self.plain_reads:
            found.append(f"{self.registered_reads} registered and {self.plain_reads} plain reads: two paths")
        if self.submitted_reads != self.registered_reads + self.plain_reads + self.packed_reads:
            found.append("the reads by path don't add up")
        return found

    def validate_completed_zero_copy(self, path: str | None = None) -> None:
        """Raise PipelineError where a finished run was not whole, not without copies by the CPU, or not all on
        ``path``: "registered" or "plain"."""
        found = self.problems()
        other = {"registered": self.plain_reads, "plain": self.registered_reads, None: 0}
        if path not in other:
            raise OptionError(f"a lane's path is registered or plain, not {path!r}")
        if other[path]:
            found.append(f"{other[path]} reads were not on the {path} path")
        if found:
            raise PipelineError(f"not a whole zero-copy run: {'; '.join(found)}")

    def __add__(self, other: LaneStats) -> LaneStats:
        return LaneStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(LaneStats)))


_COUNTER = {f.name: i for i, f in enumerate(fields(LaneStats))}
C_SUBMITTED: Final = _COUNTER["submitted_reads"]
C_SUBMITTED_BYTES: Final = _COUNTER["submitted_bytes"]
C_COMPLETED: Final = _COUNTER["completed_reads"]
C_COMPLETED_BYTES: Final = _COUNTER["completed_bytes"]
C_EXTENTS: Final = _COUNTER["extents"]
C_SHORT: Final = _COUNTER["short_reads"]
C_RETRIES: Final = _COUNTER["retries"]
C_FAILED: Final = _COUNTER["failed_completions"]
C_IO_ERRORS: Final = _COUNTER["io_errors"]
C_REGISTERED: Final = _COUNTER["registered_reads"]
C_PLAIN: Final = _COUNTER["plain_reads"]
C_FIXED_FILE: Final = _COUNTER["fixed_file_reads"]
C_DIRECT: Final = _COUNTER["direct_reads"]
C_PACKED: Final = _COUNTER["packed_reads"]
C_PACKED_FILES: Final = _COUNTER["packed_files"]
C_UNOPENED: Final = _COUNTER["unopened_files"]
C_IN_FLIGHT: Final = _COUNTER["in_flight"]
C_JOBS: Final = _COUNTER["jobs"]
C_SPARED: Final = _COUNTER["extents_spared"]


# ── pieces of the loops ──────────────────────────────────────────────────────────────────────────────────────
@lean
def take_credits(state: Words, reads: Words) -> int:
    """Make credited data slots free; how many, or BAD_CREDIT."""
    source = state[CREDITS]
    taken = 0
    while True:
        record = channel.peek(source, state[CHANNEL_MASK])
        if record == 0:
            return taken
        slot = load32(record + abi.RECORD_DATA_SLOT) - state[FIRST_SLOT]
        if slot < 0 or slot >= state[SLOTS] or reads[slot, R_STATE] != SLOT_LENT:
            return BAD_CREDIT
        channel.pop(source)
        reads[slot, R_STATE] = SLOT_FREE
        reads[slot, R_NEXT] = state[FREE]
        state[FREE] = slot
        state[FREE_COUNT] += 1
        state[LENT] -= 1
        taken += 1


@lean
def give_back(state: Words, counters: Words, token: int) -> bool:
    """Put a finished job's token on the outbox; False where it is full, which can't be."""
    outbox = state[OUTBOX]
    tail = load_acquire(outbox + _TAIL)
    if (tail - load_acquire(outbox + _HEAD)) & _WRAP > state[QUEUE_MASK]:
        return False
    store64(outbox + _RECORDS + ((tail & state[QUEUE_MASK]) << _OUTBOX_SHIFT), token)
    store_release(outbox + _TAIL, tail + 1)
    counters[C_JOBS] += 1
    return True


@lean
def announce_failure(state: Words, counters: Words, record: int) -> int:
    """Announce a file that could not be opened; 1, or 0 where there is no room for it now, or NO_ROOM.

    Such a record takes no data slot, so nothing else bounds them: it leaves room for one for each data slot, and
    those always find theirs."""
    if channel.room(state[COMPLETIONS], state[CHANNEL_MASK]) <= state[SLOTS]:
        return 0
    flags = abi.FLAG_FIRST | abi.FLAG_LAST
    file_id, status = load32(record + 16), load32(record + 36)
    channel.push(state[COMPLETIONS], state[CHANNEL_MASK], abi.NO_DATA_SLOT, 0, file_id, 0, 0, status, flags)
    counters[C_FAILED] += 1
    return 1 if give_back(state, counters, load64(record)) else NO_ROOM


@lean
def take_job(state: Words, jobs: Words, counters: Words) -> int:
    """Make the oldest queued job the current one: 1; 0 where there is none, or a failure that finds no room now;
    or NO_ROOM. Failures before it are announced."""
    intake = state[INTAKE]
    while True:
        head = load_acquire(intake + _HEAD)
        if load_acquire(intake + _TAIL) == head:
            return 0
        record = intake + _RECORDS + ((head & state[QUEUE_MASK]) << _INTAKE_SHIFT)
        if load32(record + 36) != 0:
            announced = announce_failure(state, counters, record)
            if announced <= 0:
                return announced
            store_release(intake + _HEAD, head + 1)
            continue
        job = state[FREE_JOB]
        if job < 0:
            return 0
        state[FREE_JOB] = jobs[job, J_NEXT]
        jobs[job, J_TOKEN] = load64(record)
        jobs[job, J_SIZE] = load64(record + 8)
        jobs[job, J_FILE] = load32(record + 16)
        jobs[job, J_FD] = load32(record + 20)
        jobs[job, J_NEXT_EXTENT] = load32(record + 24)
        jobs[job, J_END] = load32(record + 24) + load32(record + 28)
        jobs[job, J_DIRECT] = load32(record + 32)
        jobs[job, J_READING] = 0
        jobs[job, J_FIXED] = 0
        jobs[job, J_TABLE] = load64(record + 40)
        store_release(intake + _HEAD, head + 1)
        state[CURRENT] = job
        return 1


@lean
def enough_word(table: int, file_id: int) -> int:
    """The address of the file's word in the table of files of which nothing more is wanted."""
    return table + (file_id % abi.ENOUGH_WORDS << 2)


@lean
def has_enough(table: int, file_id: int) -> bool:
    """Whether nothing more is wanted of the file."""
    return load_acquire(enough_word(table, file_id)) == (file_id + 1) & _WRAP


@lean
def say_enough(table: int, file_id: int) -> None:
    """Nothing more is wanted of the file. Kernel host only."""
    store_release(enough_word(table, file_id), file_id + 1)


@lean
def spare(state: Words, jobs: Words, counters: Words) -> bool:
    """Drop what is left of the current job where nothing more is wanted of its file; whether it was so. The job is
    no longer current then, and may be done."""
    job = state[CURRENT]
    if not has_enough(state[ENOUGH_TABLE], jobs[job, J_FILE]):
        return False
    counters[C_SPARED] += jobs[job, J_END] - jobs[job, J_NEXT_EXTENT]
    jobs[job, J_NEXT_EXTENT] = jobs[job, J_END]
    state[CURRENT] = -1
    return True


@lean
def begin(state: Words, reads: Words, jobs: Words, counters: Words) -> int:
    """Give the current job's next extent a free data slot (there is one); the slot. The job is no longer current
    when this was its last."""
    job, slot = state[CURRENT], int(state[FREE])
    state[FREE] = reads[slot, R_NEXT]
    state[FREE_COUNT] -= 1
    state[READING] += 1
    counters[C_IN_FLIGHT] = state[READING]
    extent = jobs[job, J_NEXT_EXTENT]
    start = extent * state[PAYLOAD]
    skip = state[LEAD] if start > 0 else 0
    end = min(jobs[job, J_SIZE], start + state[PAYLOAD] + state[HALO])
    reads[slot, R_STATE] = SLOT_READING
    reads[slot, R_JOB] = job
    reads[slot, R_EXTENT] = extent
    reads[slot, R_OFFSET] = start - skip
    reads[slot, R_ADDRESS] = state[DATA] + slot * state[SLOT_BYTES] + state[LEAD] - skip
    reads[slot, R_SKIP] = skip
    reads[slot, R_WANT] = end - (start - skip)
    reads[slot, R_DONE] = 0
    reads[slot, R_RETRIES] = 0
    reads[slot, R_TIMED] = 0
    state[UNTIMED] += 1
    if state[UNTIMED] >= abi.SAMPLE_EVERY and samples.begin(state[LANE_BELL]):
        reads[slot, R_TIMED] = 1
        state[UNTIMED] = 0
    jobs[job, J_READING] += 1
    jobs[job, J_NEXT_EXTENT] = extent + 1
    if extent + 1 == jobs[job, J_END]:
        state[CURRENT] = -1
    return slot


@lean
def length_of(reads: Words, slot: int, direct: int) -> int:
    """How many bytes to ask for now: what is missing, up to a block border with O_DIRECT."""
    missing = int(reads[slot, R_WANT] - reads[slot, R_DONE])
    return (missing + BLOCK - 1) // BLOCK * BLOCK if direct != 0 else missing


@lean
def settle_read(state: Words, reads: Words, jobs: Words, counters: Words, slot: int, res: int) -> int:
    """Act on a result: WHOLE, END or FAIL: the extent was announced; MORE or RETRY: to be asked for again, R_DONE
    says from where; or NO_ROOM."""
    job = reads[slot, R_JOB]
    done = reads[slot, R_DONE]
    verdict = judge(res, done, reads[slot, R_WANT], jobs[job, J_DIRECT], reads[slot, R_RETRIES])
    if res > 0:
        counters[C_COMPLETED] += 1
        counters[C_COMPLETED_BYTES] += res
        done += res
    status = 0
    if verdict == RETRY:
        counters[C_RETRIES] += 1
        reads[slot, R_RETRIES] += 1
        return verdict
    if verdict == MORE:
        counters[C_SHORT] += 1
        reads[slot, R_DONE] = resume_at(done, jobs[job, J_DIRECT])
        return verdict
    if verdict == END:
        status = abi.ENODATA
    elif verdict == FAIL:
        counters[C_IO_ERRORS] += 1
        status = -res
    return verdict if announce(state, reads, jobs, counters, slot, done, status) else NO_ROOM


@lean
def announce(state: Words, reads: Words, jobs: Words, counters: Words, slot: int, done: int, status: int) -> bool:
    """Push an extent's completion record: the data slot is the publisher's now. False where the channel is full,
    which can't be: it holds more records than there are data slots."""
    job, extent = reads[slot, R_JOB], reads[slot, R_EXTENT]
    start = extent * state[PAYLOAD]
    flags = abi.FLAG_FIRST if extent == 0 else 0
    if start + state[PAYLOAD] >= jobs[job, J_SIZE]:
        flags |= abi.FLAG_LAST
    nbytes = max(0, min(done, reads[slot, R_WANT]) - reads[slot, R_SKIP])
    if reads[slot, R_TIMED] != 0:
        samples.note(state[LANE_BELL], abi.SAMPLE_READ)
        flags |= abi.FLAG_TIMED
    reads[slot, R_STATE] = SLOT_LENT
    state[READING] -= 1
    state[LENT] += 1
    counters[C_IN_FLIGHT] = state[READING]
    counters[C_EXTENTS] += 1
    if status != 0:
        counters[C_FAILED] += 1
    jobs[job, J_READING] -= 1
    return channel.push(
        state[COMPLETIONS],
        state[CHANNEL_MASK],
        state[FIRST_SLOT] + slot,
        nbytes,
        jobs[job, J_FILE],
        extent,
        start,
        status,
        flags,
    )


@lean
def job_is_done(jobs: Words, job: int) -> bool:
    """Whether all of its extents were announced."""
    return bool(jobs[job, J_READING] == 0 and jobs[job, J_NEXT_EXTENT] == jobs[job, J_END])


@lean
def end_job(state: Words, jobs: Words, counters: Words, job: int) -> bool:
    """Hand a job that is done back; False where the outbox is full, which can't be."""
    jobs[job, J_NEXT] = state[FREE_JOB]
    state[FREE_JOB] = job
    return give_back(state, counters, jobs[job, J_TOKEN])


@lean
def intake_pending(state: Words) -> int:
    """How many jobs are queued."""
    intake = state[INTAKE]
    return (load_acquire(intake + _TAIL) - load_acquire(intake + _HEAD)) & _WRAP


@lean
def ended(state: Words, stop: int) -> bool:
    """Whether the lane, with nothing in flight, has nothing left to do under this stop word."""
    if stop == ABORT:
        return True
    return stop == FINISH and state[CURRENT] < 0 and intake_pending(state) == 0


@lean
def _has_work(state: Words, stop: int) -> bool:
    if load_acquire(state[STOP]) != stop:
        return True
    if state[CURRENT] < 0:
        return intake_pending(state) > 0
    return channel.pending(state[CREDITS]) > 0


@lean
def idle(state: Words, stop: int, until_ns: int) -> None:
    """Nothing is in flight and nothing can be begun: look for a while, then sleep on the lane's bell."""
    bell.ring(state[OUTBOX_BELL], 1)
    limit = until_ns
    if state[CURRENT] < 0 and intake_pending(state) > 0:
        # A failure waits for room in the completion channel, and whoever makes it rings no bell for that.
        limit = min(limit, clock_ns() + BLOCKED_NS)
        looked = False
    else:
        looked = True
        for _ in range(state[SPIN]):
            if _has_work(state, stop):
                return
            pause()
    key = bell.prepare(state[LANE_BELL])
    timeout = limit - clock_ns()
    if (looked and _has_work(state, stop)) or timeout <= 0:
        bell.cancel(state[LANE_BELL])
    else:
        bell.sleep(state[LANE_BELL], key, timeout)


@lean
def balanced(state: Words) -> bool:
    """The three counts of data slots add up (written where slots change hands, checked once a slice)."""
    total = state[FREE_COUNT] + state[READING] + state[LENT]
    return bool(total == state[SLOTS] and (state[FREE] < 0) == (state[FREE_COUNT] == 0))


@lean
def hand_over(queue: int, tail: int, lane_bell: int) -> None:
    """The opener's: make the records before ``tail`` the lane's, and wake it."""
    store_release(queue + _TAIL, tail)
    bell.ring(lane_bell, 1)


@lean
def set_stop(word: int, value: int, lane_bell: int) -> None:
    """Store the stop word, and wake the lane."""
    store_release(word, value)
    bell.ring(lane_bell, 1)


@lean
def take_tokens(outbox: int, mask: int, tokens: Words) -> int:
    """The opener's: move up to ``len(tokens)`` tokens of finished jobs; how many."""
    head = load_acquire(outbox + _HEAD)
    count = min((load_acquire(outbox + _TAIL) - head) & _WRAP, len(tokens))
    for i in range(count):
        tokens[i] = load64(outbox + _RECORDS + (((head + i) & mask) << _OUTBOX_SHIFT))
    store_release(outbox + _HEAD, head + count)
    return count


@lean
def sleep_unless(bell_address: int, key: int, timeout_ns: int) -> None:
    """``bell.sleep`` without the GIL, for Python's threads."""
    bell.sleep(bell_address, key, timeout_ns)


@lean
def get_ready(bell_address: int) -> int:
    """``bell.prepare`` for Python's threads."""
    return bell.prepare(bell_address)


@lean
def never_mind(bell_address: int) -> None:
    """``bell.cancel`` for Python's threads."""
    bell.cancel(bell_address)


@lean
def ring_bell(bell_address: int) -> None:
    """``bell.ring`` for Python's threads; wakes everybody."""
    fence()
    bell.ring(bell_address, 1 << 30)


# ── a lane, as Python sees it ────────────────────────────────────────────────────────────────────────────────
class Lane:
    """One thread, its share of the data slots, its jobs. The base of both engines.

    created → started → draining → closed. ``offer``, ``returned``, ``finish``, ``abort`` belong to one thread (the
    opener); ``stats`` and ``failure`` to anybody. After ``finish`` the thread ends when all jobs are done, after
    ``abort`` when nothing is in flight. ``close`` aborts, waits for that, and only then lets go of the memory.

    arena, number: the lane's channels, bell and data slots are lane ``number``'s of ``arena``.
    depth: the most reads in flight. jobs: how many can be in the lane (a power of two). done_bell: the address of
    a bell, in memory that outlives the lane, that is rung when jobs are done. slice_ms: how long the loop runs
    before it looks at Python. spin: rounds of looking before it sleeps.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        arena: Arena,
        number: int,
        geometry: Geometry,
        *,
        depth: int = 256,
        jobs: int = 256,
        done_bell: int = 0,
        slice_ms: float = 10.0,
        spin: int = 200,
        name: str = "",
    ) -> None:
        layout = arena.layout
        if not 0 <= number < layout.lanes:
            raise OptionError(f"the arena has lanes 0 to {layout.lanes - 1}, not {number}")
        if geometry.slot_bytes > layout.slot_bytes:
            raise OptionError(f"data slots have {layout.slot_bytes} bytes, {geometry.slot_bytes} are needed")
        if jobs < 1 or jobs & (jobs - 1):
            raise OptionError(f"a lane's jobs are a power of two, not {jobs}")
        if depth < 1:
            raise OptionError(f"a lane needs a depth of at least 1, not {depth}")
        self.arena, self.number, self.geometry = arena, number, geometry
        self.depth = min(depth, layout.slots_per_lane)
        self.jobs = jobs
        self.life = "created"
        self.failure: BaseException | None = None
        self.ended = False
        self._slice_ns = int(slice_ms * 1e6)
        self._given = self._taken = 0
        intake_bytes = abi.CHANNEL_RECORDS + (jobs << _INTAKE_SHIFT)
        outbox_bytes = abi.CHANNEL_RECORDS + (jobs << _OUTBOX_SHIFT)
        self._memory = PrivateMemory(2 * abi.CACHE_LINE + intake_bytes + outbox_bytes)
        self._scratch = PrivateMemory(_SCRATCH_BYTES)
        self._stop = self._memory.address
        self._own_bell = self._memory.address + abi.CACHE_LINE  # where nobody gave one
        self._intake = 2 * abi.CACHE_LINE  # in the view
        self._outbox = self._memory.address + self._intake + intake_bytes
        self._lane_bell = arena.at(layout.lane_bell(number))
        self.counters: Words = np.zeros(len(_COUNTER), np.int64)
        self._reads: Words = np.zeros((layout.slots_per_lane, READ_WORDS), np.int64)
        self._jobs: Words = np.zeros((self.depth + 1, JOB_WORDS), np.int64)
        self._tokens: Words = np.zeros(jobs, np.int64)
        self._state = self._first_state(done_bell or self._own_bell, spin)
        self._thread = threading.Thread(target=self._run, name=name or f"lane-{number}-{self.engine}", daemon=True)

    def _first_state(self, done_bell: int, spin: int) -> Words:
        layout, at = self.arena.layout, self.arena.at
        state: Words = np.zeros(STATE_WORDS, np.int64)
        first = self.number * layout.slots_per_lane
        values = {
            PAYLOAD: self.geometry.payload,
            LEAD: self.geometry.lead,
            HALO: self.geometry.halo,
            SLOT_BYTES: layout.slot_bytes,
            SLOTS: layout.slots_per_lane,
            FIRST_SLOT: first,
            DATA: at(layout.slot(first)),
            COMPLETIONS: at(layout.completions(self.number)),
            CREDITS: at(layout.credits(self.number)),
            CHANNEL_MASK: layout.channel_records - 1,
            LANE_BELL: self._lane_bell,
            PUBLISHER_BELL: at(layout.state + abi.BELL_PUBLISHER),
            INTAKE: self._memory.address + self._intake,
            OUTBOX: self._outbox,
            QUEUE_MASK: self.jobs - 1,
            OUTBOX_BELL: done_bell,
            STOP: self._stop,
            SPIN: spin,
            # Small enough that consumers begin while later reads are still being copied from the page cache, large
            # enough that waking them costs little: on two cores 4 MiB took 15 % less CPU time than 1 MiB.
            BATCH: max(1, min(32, (4 << 20) // self.geometry.payload, layout.slots_per_lane // 4)),
            DEPTH: self.depth,
            ENOUGH_TABLE: at(layout.state + abi.STATE_ENOUGH),
            PACKED_ENTRIES: layout.packed_entries,
            SCRATCH: self._scratch.address,
            CURRENT: -1,
            FREE: 0,
            FREE_JOB: 0,
            FREE_COUNT: layout.slots_per_lane,
            UNTIMED: abi.SAMPLE_EVERY,  # the first extent is timed
        }
        for index, value in values.items():
            state[index] = value
        for table, link in ((self._reads, R_NEXT), (self._jobs, J_NEXT)):
            table[:, link] = np.arange(1, len(table) + 1)
            table[-1, link] = -1
        return state

    # ── the opener's side ────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Start the thread. Once."""
        if self.life != "created":
            raise PipelineError(f"lane {self.number} is {self.life}, not to be started")
        self.life = "started"
        self._thread.start()

    @property
    def room(self) -> int:
        """How many jobs ``offer`` would take now."""
        return self.jobs - (self._given - self._taken)

    def offer(self, jobs: list[Job]) -> int:
        """Queue as many of ``jobs`` as there is room for; how many."""
        count = min(len(jobs), self.room)
        for i, job in enumerate(jobs[:count]):
            if (
                job.errno == 0
                and not job.table
                and not 0 < job.extents <= self.geometry.extents(job.size) - job.first
            ):
                raise OptionError(f"extents {job.first} + {job.extents} are not in a file of {job.size} bytes")
            position = (self._given + i) & (self.jobs - 1)
            _JOB.pack_into(
                self._memory.view,
                self._intake + _RECORDS + (position << _INTAKE_SHIFT),
                job.token,
                job.size,
                job.file_id,
                job.fd,
                job.first,
                job.extents,
                job.direct,
                job.errno,
                job.table,
            )
        if count:
            self._given += count
            hand_over(self._memory.address + self._intake, self._given & _WRAP, self._lane_bell)
        return count

    def returned(self) -> list[int]:
        """Tokens of the jobs that were done since the last call."""
        count = take_tokens(self._outbox, self.jobs - 1, self._tokens)
        self._taken += count
        tokens: list[int] = self._tokens[:count].tolist()
        return tokens

    def finish(self) -> None:
        """Nothing more will be offered: end when all is done."""
        if self.life == "started":
            self.life = "draining"
            set_stop(self._stop, FINISH, self._lane_bell)

    def abort(self) -> None:
        """Begin no more reads; end when none is in flight."""
        set_stop(self._stop, ABORT, self._lane_bell)

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; whether it has ended (or never began)."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self, seconds: float = 30.0) -> None:
        """Abort, wait for reads in flight, free. Idempotent. Raises DeadlineExceeded where the kernel still holds
        reads after ``seconds``: the arena must not be unmapped then."""
        if self.life == "closed":
            return
        self.abort()
        if not self.join(seconds):
            in_flight = self.stats().in_flight
            raise DeadlineExceeded(f"{in_flight} reads in flight in lane {self.number}", seconds)
        self._release()
        self.life = "closed"

    def stats(self) -> LaneStats:
        """The counters now, from any thread."""
        return LaneStats(*self.counters.tolist())

    # ── the thread's side ────────────────────────────────────────────────────────────────────────────────────
    def _run(self) -> None:
        try:
            self._enter_thread()
            while (code := self._slice(time.monotonic_ns() + self._slice_ns)) == SLICE_OVER:
                pass
            if code != ENDED:
                raise self._error(code)
        except BaseException as error:  # the owner's monitor finds it in ``failure``
            self.failure = error
        finally:
            self.ended = True
            ring_bell(int(self._state[OUTBOX_BELL]))

    def _error(self, code: int) -> Exception:
        if code <= BROKEN:
            return PipelineError(f"lane {self.number}: {BROKEN_TEXT.get(code, f'code {code}')}")
        return PipelineError(f"lane {self.number}: a system call failed", errno=-code)

    def _enter_thread(self) -> None:
        """Whatever the lane's thread must do itself before the first slice."""

    def _slice(self, until_ns: int) -> int:
        """Run the loop until ``until_ns`` (CLOCK_MONOTONIC); what it returned."""
        raise NotImplementedError

    def _release(self) -> None:
        """Free what the engine holds; the thread has ended."""

"""The io_uring lane: one ring, one thread, READ_FIXED straight into its own data slots.

The loop writes SQEs and reads CQEs in the ring's mapped memory, without the GIL; a read costs no call into Python.
A read in flight is known by its data slot (``user_data``), for completions come in any order.

How an SQE gets in and a CQE out is ``queue.py``. What it counts as in flight is ``READING``, which the accounting of
data slots (``work.py``) keeps on its own, and once a slice the two are compared. At most ``DEPTH`` reads are in
flight, and the SQ has at least that many entries.

A job of several extents goes into the ring's file table, at the row number that it has among the jobs in hand; a
single extent takes the plain descriptor, which is cheaper than two table updates.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.atomics import clock_ns, load_acquire
from uring_actors.arena.memory import Arena
from uring_actors.errors import IoUringSyscall, OptionError
from uring_actors.hot import lean
from uring_actors.uring import kernel
from uring_actors.uring.pack import pack
from uring_actors.uring.queue import (
    arrival,
    arrived,
    next_sqe,
    overflowed,
    submit,
    taken,
    unsound,
    update_file,
    waiting,
)
from uring_actors.uring.ring import IoUringState
from uring_actors.uring.verdict import MORE, RETRY
from uring_actors.uring.work import (
    ABORT,
    BAD_COMPLETION,
    BAD_COUNT,
    BATCH,
    BLOCKED_NS,
    BROKEN,
    C_DIRECT,
    C_FIXED_FILE,
    C_JOBS,
    C_REGISTERED,
    C_SUBMITTED,
    C_SUBMITTED_BYTES,
    CREDITS,
    CURRENT,
    DEPTH,
    ENDED,
    ENGINE,
    FREE,
    J_DIRECT,
    J_END,
    J_FD,
    J_FIXED,
    J_NEXT_EXTENT,
    J_TABLE,
    LENT,
    NO_ROOM,
    OUTBOX_BELL,
    OVERFLOW,
    PUBLISHER_BELL,
    R_ADDRESS,
    R_DONE,
    R_JOB,
    R_OFFSET,
    R_STATE,
    READING,
    SLICE_OVER,
    SLOT_READING,
    SLOTS,
    STOP,
    Geometry,
    Lane,
    Words,
    balanced,
    begin,
    end_job,
    ended,
    idle,
    intake_pending,
    job_is_done,
    length_of,
    settle_read,
    spare,
    take_credits,
    take_job,
)

# ── this engine's words of the state row ─────────────────────────────────────────────────────────────────────
SLOTS_PER_BUFFER: Final = ENGINE + 0


@lean
def queue_read(state: Words, queue: Words, reads: Words, jobs: Words, counters: Words, slot: int) -> None:
    """Write the SQE for what is missing of the extent in ``slot``. The SQ has room: it holds ``DEPTH``."""
    job = reads[slot, R_JOB]
    direct, fixed = jobs[job, J_DIRECT], jobs[job, J_FIXED]
    done = reads[slot, R_DONE]
    length = length_of(reads, slot, direct)
    kernel.put_read_fixed(
        next_sqe(queue),
        fixed,
        job if fixed != 0 else jobs[job, J_FD],
        reads[slot, R_OFFSET] + done,
        reads[slot, R_ADDRESS] + done,
        length,
        slot // state[SLOTS_PER_BUFFER],
        slot,
    )
    counters[C_SUBMITTED] += 1
    counters[C_SUBMITTED_BYTES] += length
    counters[C_REGISTERED] += 1
    counters[C_FIXED_FILE] += fixed
    counters[C_DIRECT] += direct


@lean
def _end_job(state: Words, queue: Words, jobs: Words, counters: Words, job: int) -> bool:
    """``end_job``, and the file leaves the ring's table."""
    if jobs[job, J_FIXED] != 0:
        update_file(queue, job, -1)
    return end_job(state, jobs, counters, job)


@lean
def begin_reads(state: Words, queue: Words, reads: Words, jobs: Words, counters: Words) -> int:
    """Begin reads while there are jobs, free data slots and depth, at most ``BATCH``; how many, or NO_ROOM."""
    begun = 0
    while begun < state[BATCH]:
        if state[CURRENT] < 0:
            taken = take_job(state, jobs, counters)
            if taken < 0:
                return taken
            if taken == 0:
                return begun
            job = state[CURRENT]
            if (
                jobs[job, J_TABLE] == 0
                and jobs[job, J_END] - jobs[job, J_NEXT_EXTENT] > 1
                and update_file(queue, job, jobs[job, J_FD])
            ):
                jobs[job, J_FIXED] = 1
        if state[FREE] < 0 or state[READING] >= state[DEPTH]:
            return begun
        job = state[CURRENT]
        if jobs[job, J_TABLE] != 0:
            code = pack(state, reads, jobs, counters)
            if code < 0:
                return code
            begun += 1
            continue
        if spare(state, jobs, counters):
            if job_is_done(jobs, job) and not _end_job(state, queue, jobs, counters, job):
                return NO_ROOM
            continue
        slot = begin(state, reads, jobs, counters)
        queue_read(state, queue, reads, jobs, counters, slot)
        begun += 1
    return begun


@lean
def reap(state: Words, queue: Words, reads: Words, jobs: Words, counters: Words) -> int:
    """Act on all completions that are there: announce, read on, retry; how many, or what is broken."""
    count = arrived(queue)
    for i in range(count):
        cqe = arrival(queue, i)
        slot = kernel.cqe_user_data(cqe)
        if slot < 0 or slot >= state[SLOTS] or reads[slot, R_STATE] != SLOT_READING:
            return BAD_COMPLETION
        job = reads[slot, R_JOB]
        verdict = settle_read(state, reads, jobs, counters, slot, kernel.cqe_res(cqe))
        if verdict < 0:
            return verdict
        if verdict in (MORE, RETRY):
            queue_read(state, queue, reads, jobs, counters, slot)
        elif job_is_done(jobs, job) and not _end_job(state, queue, jobs, counters, job):
            return NO_ROOM
    taken(queue, count)
    return count


@lean
def wait_ns(state: Words, until_ns: int) -> int:
    """How long to wait for a completion. A new credit or job doesn't end that wait, so where one could be used it
    is kept short."""
    left = until_ns - clock_ns()
    if state[LENT] > 0 or (state[FREE] >= 0 and state[READING] < state[DEPTH]):
        left = min(left, BLOCKED_NS)
    return max(left, 0)


@lean
def more_to_begin(state: Words) -> bool:
    """Whether a read could be begun at once."""
    if state[READING] >= state[DEPTH]:
        return False
    if state[FREE] < 0 and channel.pending(state[CREDITS]) == 0:
        return False
    return state[CURRENT] >= 0 or intake_pending(state) > 0


@lean
def run_uring(state: Words, queue: Words, reads: Words, jobs: Words, counters: Words, until_ns: int) -> int:
    """One slice: SLICE_OVER, ENDED, −errno, or what is broken."""
    jobs_done = -1
    while clock_ns() < until_ns:
        stop = load_acquire(state[STOP])
        code = take_credits(state, reads)
        if code < 0:
            return code
        begun = 0
        if stop != ABORT:
            begun = begin_reads(state, queue, reads, jobs, counters)
            if begun < 0:
                return begun
        if state[READING] == 0 and begun > 0:
            continue  # only packed slots, and there may be more to do
        if state[READING] == 0:
            bell.ring(state[PUBLISHER_BELL], 1)  # failures may have been announced
            if ended(state, stop):
                return ENDED
            idle(state, stop, until_ns)
            continue
        wait = 0 if waiting(queue) or (stop != ABORT and more_to_begin(state)) else 1
        code = submit(queue, wait, wait_ns(state, until_ns))
        if code < 0:
            return code
        code = reap(state, queue, reads, jobs, counters)
        if code < 0:
            return code
        if code > 0:
            bell.ring(state[PUBLISHER_BELL], 1)
            if counters[C_JOBS] != jobs_done:  # the opener runs in Python: not for every extent
                jobs_done = counters[C_JOBS]
                bell.ring(state[OUTBOX_BELL], 1)
    if overflowed(queue):
        return OVERFLOW
    if unsound(queue, state[READING]) or not balanced(state):
        return BAD_COUNT
    return SLICE_OVER


def buffers_of(arena: Arena, number: int) -> tuple[list[tuple[int, int]], int]:
    """The registered buffers, (address, bytes) each, that lane ``number``'s data slots make up; and how many slots
    one has."""
    layout = arena.layout
    if layout.slot_bytes > kernel.MAX_BUFFER_BYTES:
        raise OptionError(f"a data slot has at most {kernel.MAX_BUFFER_BYTES} bytes, not {layout.slot_bytes}")
    per_buffer = min(layout.slots_per_lane, kernel.MAX_BUFFER_BYTES // layout.slot_bytes)
    first = number * layout.slots_per_lane
    buffers = []
    for slot in range(0, layout.slots_per_lane, per_buffer):
        count = min(per_buffer, layout.slots_per_lane - slot)
        buffers.append((arena.at(layout.slot(first + slot)), count * layout.slot_bytes))
    return buffers, per_buffer


class UringLane(Lane):
    """A lane that reads through io_uring: see ``Lane``. The constructor sets the ring up and registers the lane's
    data slots, so it raises what ``IoUringState`` and ``register_buffers`` raise.

    sqpoll, sqpoll_idle_ms, sqpoll_cpu: as of ``IoUringState``.
    """

    engine: ClassVar[str] = "uring"

    def __init__(
        self,
        arena: Arena,
        number: int,
        geometry: Geometry,
        *,
        sqpoll: bool = False,
        sqpoll_idle_ms: int = 50,
        sqpoll_cpu: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(arena, number, geometry, **options)
        if self.depth > kernel.MAX_ENTRIES:
            raise OptionError(f"a ring holds {kernel.MAX_ENTRIES} reads, not {self.depth}")
        entries = abi.power_of_two(self.depth)
        self.ring = IoUringState(entries, 2 * entries, sqpoll, sqpoll_idle_ms, sqpoll_cpu)
        try:
            buffers, per_buffer = buffers_of(arena, number)
            self.ring.register_buffers(buffers)
            self.ring.register_files(len(self._jobs))
        except BaseException:
            self.ring.close()
            raise
        self._state[SLOTS_PER_BUFFER] = per_buffer

    def _enter_thread(self) -> None:
        self.ring.enable()

    def _slice(self, until_ns: int) -> int:
        return run_uring(self._state, self.ring.queue, self._reads, self._jobs, self.counters, until_ns)

    def _error(self, code: int) -> Exception:
        if BROKEN < code < 0:
            return IoUringSyscall("io_uring_enter", -code)
        return super()._error(code)

    def _release(self) -> None:
        self.ring.close()

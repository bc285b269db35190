"""The io_uring lane: one ring, one thread, READ_FIXED straight into its own data slots.

The loop writes SQEs and reads CQEs in the ring's mapped memory, without the GIL; a read costs no call into Python.
A read in flight is known by its data slot (``user_data``), for completions come in any order.

``QUEUED`` counts SQEs written that the kernel is not known to have taken, ``HELD`` those that it has and has not
completed; their sum is ``READING``, which the accounting of data slots (``work.py``) keeps on its own, and once a
slice the two are compared. Under SQPOLL the SQ's head moves only after a whole batch, so ``QUEUED`` lags behind
(``reap``), and an SQE may be overwritten before the head has passed it; never before it was read, for those not read
are all in ``READING``, which is less than the SQ's entries when another is written.

At most ``DEPTH`` reads are in flight, the SQ has that many entries and the CQ twice that: neither can overflow, and
that too is checked.

A job of several extents goes into the ring's file table, at the row number that it has among the jobs in hand; a
single extent takes the plain descriptor, which is cheaper than two table updates.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.atomics import (
    clock_ns,
    fence,
    load_acquire,
    store32,
    store64,
    store_release,
    syscall,
)
from uring_actors.arena.memory import Arena
from uring_actors.errors import IoUringSyscall, OptionError
from uring_actors.hot import hot
from uring_actors.uring import kernel
from uring_actors.uring.ring import IoUringRing
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
    LENT,
    MORE,
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
    RETRY,
    SLICE_OVER,
    SLOT_READING,
    SLOTS,
    STOP,
    Geometry,
    Lane,
    PrivateMemory,
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
    take_credits,
    take_job,
)

# ── this engine's words of the state row ─────────────────────────────────────────────────────────────────────
RING: Final = ENGINE + 0  # descriptor
SQ_HEAD: Final = ENGINE + 1
SQ_TAIL: Final = ENGINE + 2
SQ_FLAGS: Final = ENGINE + 3
SQ_MASK: Final = ENGINE + 4
SQES: Final = ENGINE + 5
CQ_HEAD: Final = ENGINE + 6
CQ_TAIL: Final = ENGINE + 7
CQ_OVERFLOW: Final = ENGINE + 8
CQ_MASK: Final = ENGINE + 9
CQES: Final = ENGINE + 10
SQPOLL: Final = ENGINE + 11
ARG: Final = ENGINE + 12  # address of the getevents argument
UPDATE: Final = ENGINE + 13  # address of the files update
SLOTS_PER_BUFFER: Final = ENGINE + 14
QUEUED: Final = ENGINE + 15
HELD: Final = ENGINE + 16
TAIL: Final = ENGINE + 17  # the SQ's tail as written, maybe not yet published
STUCK: Final = ENGINE + 18  # calls of io_uring_enter in a row that took nothing

_WRAP: Final = abi.WRAP
_EINTR, _EAGAIN, _EBUSY, _ETIME = 4, 11, 16, 62
_MAX_STUCK: Final = 10_000


@hot
def update_file(state: Words, row: int, fd: int) -> bool:
    """Put ``fd`` (−1: nothing) in the file table at ``row``; whether the kernel did it."""
    update = state[UPDATE]
    store32(update + kernel.UPDATE_OFFSET, row)
    store32(update + kernel.UPDATE_FD, fd)
    return syscall(kernel.SYS_REGISTER, state[RING], kernel.REGISTER_FILES_UPDATE, update, 1, 0, 0) == 1


@hot
def queue_read(state: Words, reads: Words, jobs: Words, counters: Words, slot: int) -> None:
    """Write the SQE for what is missing of the extent in ``slot``. The SQ has room: it holds ``DEPTH``."""
    job = reads[slot, R_JOB]
    direct, fixed = jobs[job, J_DIRECT], jobs[job, J_FIXED]
    done = reads[slot, R_DONE]
    length = length_of(reads, slot, direct)
    tail = state[TAIL]
    kernel.put_read_fixed(
        state[SQES] + ((tail & state[SQ_MASK]) << kernel.SQE_SHIFT),
        fixed,
        job if fixed != 0 else jobs[job, J_FD],
        reads[slot, R_OFFSET] + done,
        reads[slot, R_ADDRESS] + done,
        length,
        slot // state[SLOTS_PER_BUFFER],
        slot,
    )
    state[TAIL] = (tail + 1) & _WRAP
    state[QUEUED] += 1
    counters[C_SUBMITTED] += 1
    counters[C_SUBMITTED_BYTES] += length
    counters[C_REGISTERED] += 1
    counters[C_FIXED_FILE] += fixed
    counters[C_DIRECT] += direct


@hot
def begin_reads(state: Words, reads: Words, jobs: Words, counters: Words) -> int:
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
            if jobs[job, J_END] - jobs[job, J_NEXT_EXTENT] > 1 and update_file(state, job, jobs[job, J_FD]):
                jobs[job, J_FIXED] = 1
        if state[FREE] < 0 or state[READING] >= state[DEPTH]:
            return begun
        slot = begin(state, reads, jobs, counters)
        queue_read(state, reads, jobs, counters, slot)
        begun += 1
    return begun


@hot
def reap(state: Words, reads: Words, jobs: Words, counters: Words) -> int:
    """Act on all completions that are there: announce, read on, retry; how many, or what is broken."""
    head, tail = load_acquire(state[CQ_HEAD]), load_acquire(state[CQ_TAIL])
    if state[SQPOLL] != 0:
        took = max(0, state[QUEUED] - ((state[TAIL] - load_acquire(state[SQ_HEAD])) & _WRAP))
        state[QUEUED] -= took
        state[HELD] += took
    count = (tail - head) & _WRAP
    for i in range(count):
        cqe = state[CQES] + (((head + i) & state[CQ_MASK]) << kernel.CQE_SHIFT)
        slot = kernel.cqe_user_data(cqe)
        if slot < 0 or slot >= state[SLOTS] or reads[slot, R_STATE] != SLOT_READING:
            return BAD_COMPLETION
        # The poller moves the SQ's head after a whole batch, so a read may be complete before it looks taken.
        if state[SQPOLL] != 0 and state[HELD] == 0:
            state[QUEUED] -= 1
        else:
            state[HELD] -= 1
        job = reads[slot, R_JOB]
        verdict = settle_read(state, reads, jobs, counters, slot, kernel.cqe_res(cqe))
        if verdict < 0:
            return verdict
        if verdict in (MORE, RETRY):
            queue_read(state, reads, jobs, counters, slot)
        elif job_is_done(jobs, job):
            if jobs[job, J_FIXED] != 0:
                update_file(state, job, -1)
            if not end_job(state, jobs, counters, job):
                return NO_ROOM
    store_release(state[CQ_HEAD], tail)
    return BAD_COUNT if state[HELD] < 0 or state[QUEUED] < 0 else count


@hot
def enter(state: Words, submit: int, wait: int, flags: int, timeout_ns: int) -> int:
    """io_uring_enter(2): hand over ``submit`` entries, wait for ``wait`` completions at most ``timeout_ns``."""
    arg = state[ARG]
    store64(arg + kernel.ARG_SECONDS, timeout_ns // 1_000_000_000)
    store64(arg + kernel.ARG_NANOSECONDS, timeout_ns % 1_000_000_000)
    flags |= kernel.ENTER_GETEVENTS | kernel.ENTER_EXT_ARG
    return syscall(kernel.SYS_ENTER, state[RING], submit, wait, flags, arg, kernel.ARG_BYTES)


@hot
def submit(state: Words, wait: int, timeout_ns: int) -> int:
    """Hand queued entries over and wait for ``wait`` completions (0 or 1); 0, or −errno of what is fatal."""
    store_release(state[SQ_TAIL], state[TAIL])
    if state[SQPOLL] != 0:
        # The poller announces that it sleeps, then looks at the tail once more; we store the tail, then look for
        # the announcement. Without a full barrier in between both can miss the other.
        fence()
        flags = 0
        if state[QUEUED] > 0 and load_acquire(state[SQ_FLAGS]) & kernel.SQ_NEED_WAKEUP:
            flags = kernel.ENTER_SQ_WAKEUP
        if flags == 0 and wait == 0:
            return 0
        result = enter(state, 0, wait, flags, timeout_ns)
    else:
        result = enter(state, state[QUEUED], wait, 0, timeout_ns)
        if result > 0:
            state[QUEUED] -= result
            state[HELD] += result
    if result >= 0 or result == -_ETIME or result == -_EINTR:
        state[STUCK] = 0
        return 0
    # EAGAIN: no memory for a request just now; EBUSY: completions are to be reaped first. Both pass.
    state[STUCK] += 1
    if (result == -_EAGAIN or result == -_EBUSY) and state[STUCK] < _MAX_STUCK:
        enter(state, 0, 1, 0, BLOCKED_NS)
        return 0
    return result


@hot
def wait_ns(state: Words, until_ns: int) -> int:
    """How long to wait for a completion. A new credit or job doesn't end that wait, so where one could be used it
    is kept short."""
    left = until_ns - clock_ns()
    if state[LENT] > 0 or (state[FREE] >= 0 and state[READING] < state[DEPTH]):
        left = min(left, BLOCKED_NS)
    return max(left, 0)


@hot
def more_to_begin(state: Words) -> bool:
    """Whether a read could be begun at once."""
    if state[READING] >= state[DEPTH]:
        return False
    if state[FREE] < 0 and channel.pending(state[CREDITS]) == 0:
        return False
    return state[CURRENT] >= 0 or intake_pending(state) > 0


@hot
def run_uring(state: Words, reads: Words, jobs: Words, counters: Words, until_ns: int) -> int:
    """One slice: SLICE_OVER, ENDED, −errno, or what is broken."""
    jobs_done = -1
    while clock_ns() < until_ns:
        stop = load_acquire(state[STOP])
        code = take_credits(state, reads)
        if code < 0:
            return code
        if stop != ABORT:
            code = begin_reads(state, reads, jobs, counters)
            if code < 0:
                return code
        if state[READING] == 0:
            bell.ring(state[PUBLISHER_BELL], 1)  # failures may have been announced
            if ended(state, stop):
                return ENDED
            idle(state, stop, until_ns)
            continue
        ready = load_acquire(state[CQ_TAIL]) != load_acquire(state[CQ_HEAD])
        wait = 0 if ready or (stop != ABORT and more_to_begin(state)) else 1
        code = submit(state, wait, wait_ns(state, until_ns))
        if code < 0:
            return code
        code = reap(state, reads, jobs, counters)
        if code < 0:
            return code
        if code > 0:
            bell.ring(state[PUBLISHER_BELL], 1)
            if counters[C_JOBS] != jobs_done:  # the opener runs in Python: not for every extent
                jobs_done = counters[C_JOBS]
                bell.ring(state[OUTBOX_BELL], 1)
    if load_acquire(state[CQ_OVERFLOW]) != 0:
        return OVERFLOW
    if state[QUEUED] + state[HELD] != state[READING]:
        return BAD_COUNT
    return SLICE_OVER if balanced(state) else BAD_COUNT


class UringLane(Lane):
    """A lane that reads through io_uring: see ``Lane``. The constructor sets the ring up and registers the lane's
    data slots, so it raises what ``IoUringRing`` and ``register_buffers`` raise.

    sqpoll, sqpoll_idle_ms, sqpoll_cpu: as of ``IoUringRing``.
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
        self.ring = IoUringRing(entries, 2 * entries, sqpoll, sqpoll_idle_ms, sqpoll_cpu)
        try:
            per_buffer = self._register()
        except BaseException:
            self.ring.close()
            raise
        self._words = PrivateMemory(abi.CACHE_LINE + kernel.UPDATE_TOTAL)
        self._connect(per_buffer)

    def _register(self) -> int:
        """Register the lane's data slots and an empty file table; how many slots a buffer has."""
        layout = self.arena.layout
        if layout.slot_bytes > kernel.MAX_BUFFER_BYTES:
            raise OptionError(f"a data slot has at most {kernel.MAX_BUFFER_BYTES} bytes, not {layout.slot_bytes}")
        per_buffer = min(layout.slots_per_lane, kernel.MAX_BUFFER_BYTES // layout.slot_bytes)
        first = self.number * layout.slots_per_lane
        buffers = []
        for slot in range(0, layout.slots_per_lane, per_buffer):
            count = min(per_buffer, layout.slots_per_lane - slot)
            buffers.append((self.arena.at(layout.slot(first + slot)), count * layout.slot_bytes))
        self.ring.register_buffers(buffers)
        self.ring.register_files(len(self._jobs))
        return per_buffer

    def _connect(self, per_buffer: int) -> None:
        ring, words = self.ring.addresses, self._words.address
        update = words + abi.CACHE_LINE
        values = {
            RING: ring.fd,
            SQ_HEAD: ring.sq_head,
            SQ_TAIL: ring.sq_tail,
            SQ_FLAGS: ring.sq_flags,
            SQ_MASK: ring.sq_entries - 1,
            SQES: ring.sqes,
            CQ_HEAD: ring.cq_head,
            CQ_TAIL: ring.cq_tail,
            CQ_OVERFLOW: ring.cq_overflow,
            CQ_MASK: ring.cq_entries - 1,
            CQES: ring.cqes,
            SQPOLL: int(self.ring.sqpoll),
            ARG: words,
            UPDATE: update,
            SLOTS_PER_BUFFER: per_buffer,
        }
        for index, value in values.items():
            self._state[index] = value
        view = self._words.view
        view[kernel.ARG_TIMESPEC : kernel.ARG_TIMESPEC + 8] = (words + kernel.ARG_SECONDS).to_bytes(8, "little")
        start = abi.CACHE_LINE + kernel.UPDATE_FDS
        view[start : start + 8] = (update + kernel.UPDATE_FD).to_bytes(8, "little")

    def _enter_thread(self) -> None:
        self.ring.enable()

    def _slice(self, until_ns: int) -> int:
        return run_uring(self._state, self._reads, self._jobs, self.counters, until_ns)

    def _error(self, code: int) -> Exception:
        if BROKEN < code < 0:
            return IoUringSyscall("io_uring_enter", -code)
        return super()._error(code)

    def _release(self) -> None:
        self.ring.close()

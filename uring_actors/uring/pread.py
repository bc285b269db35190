"""The plain read engine, for where io_uring is forbidden: one blocking pread(2) at a time, straight into the slot.

Same jobs, same records, same accounting as ``lane.py``. What a ring does with depth, this does with lanes: the
reader simply has more of them. The loop holds no GIL and enters Python once a slice.
"""

from __future__ import annotations

from typing import ClassVar

from uring_actors.arena import bell
from uring_actors.arena.atomics import SYS_PREAD64, clock_ns, load_acquire, syscall
from uring_actors.hot import lean
from uring_actors.uring.pack import pack
from uring_actors.uring.verdict import MORE, RETRY
from uring_actors.uring.work import (
    ABORT,
    BAD_COUNT,
    BATCH,
    C_DIRECT,
    C_PLAIN,
    C_SUBMITTED,
    C_SUBMITTED_BYTES,
    CURRENT,
    ENDED,
    FREE,
    J_DIRECT,
    J_FD,
    J_TABLE,
    NO_ROOM,
    OUTBOX_BELL,
    PUBLISHER_BELL,
    R_ADDRESS,
    R_DONE,
    R_JOB,
    R_OFFSET,
    SLICE_OVER,
    STOP,
    Lane,
    Words,
    balanced,
    begin,
    end_job,
    ended,
    idle,
    job_is_done,
    length_of,
    settle_read,
    spare,
    take_credits,
    take_job,
)


@lean
def read_whole(state: Words, reads: Words, jobs: Words, counters: Words, slot: int) -> int:
    """Read an extent until it is announced; the verdict, or NO_ROOM."""
    job = reads[slot, R_JOB]
    direct = jobs[job, J_DIRECT]
    while True:
        done = reads[slot, R_DONE]
        length = length_of(reads, slot, direct)
        counters[C_SUBMITTED] += 1
        counters[C_SUBMITTED_BYTES] += length
        counters[C_PLAIN] += 1
        if direct != 0:
            counters[C_DIRECT] += 1
        address, offset = reads[slot, R_ADDRESS] + done, reads[slot, R_OFFSET] + done
        res = syscall(SYS_PREAD64, jobs[job, J_FD], address, length, offset, 0, 0)
        verdict = settle_read(state, reads, jobs, counters, slot, res)
        if verdict not in (MORE, RETRY):
            return verdict


@lean
def run_pread(state: Words, reads: Words, jobs: Words, counters: Words, until_ns: int) -> int:
    """One slice: SLICE_OVER, ENDED, or what is broken."""
    unrung = 0
    while clock_ns() < until_ns:
        stop = load_acquire(state[STOP])
        code = take_credits(state, reads)
        if code < 0:
            return code
        if stop != ABORT and state[CURRENT] < 0:
            code = take_job(state, jobs, counters)
            if code < 0:
                return code
        if stop != ABORT and state[CURRENT] >= 0 and state[FREE] >= 0:
            job = state[CURRENT]
            if jobs[job, J_TABLE] != 0:
                code = pack(state, reads, jobs, counters)
                if code < 0:
                    return code
                continue
            if spare(state, jobs, counters):
                if job_is_done(jobs, job) and not end_job(state, jobs, counters, job):
                    return NO_ROOM
                continue
            slot = begin(state, reads, jobs, counters)
            code = read_whole(state, reads, jobs, counters, slot)
            if code < 0:
                return code
            if job_is_done(jobs, job) and not end_job(state, jobs, counters, job):
                return NO_ROOM
            unrung += 1
            if unrung >= state[BATCH]:
                bell.ring(state[PUBLISHER_BELL], 1)
                bell.ring(state[OUTBOX_BELL], 1)
                unrung = 0
            continue
        bell.ring(state[PUBLISHER_BELL], 1)
        unrung = 0
        if ended(state, stop):
            return ENDED
        idle(state, stop, until_ns)
    bell.ring(state[PUBLISHER_BELL], 1)
    bell.ring(state[OUTBOX_BELL], 1)
    return SLICE_OVER if balanced(state) else BAD_COUNT


class PreadLane(Lane):
    """A lane that reads with pread(2): see ``Lane``."""

    engine: ClassVar[str] = "pread"

    def _slice(self, until_ns: int) -> int:
        return run_pread(self._state, self._reads, self._jobs, self.counters, until_ns)

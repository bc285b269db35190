"""A lane whose every read goes through the ``liburing`` binding (``reference.py``): the pieces of ``work.py``, called
from Python one by one. For comparison, not for speed.

Reads go into registered buffers where the kernel has READV_FIXED (6.15), else through plain iovecs.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from uring_actors.arena import abi, bell
from uring_actors.arena.memory import Arena
from uring_actors.hot import hot
from uring_actors.uring import work
from uring_actors.uring.lane import buffers_of, wait_ns
from uring_actors.uring.pack import pack
from uring_actors.uring.reference import LiburingState, has_readv_fixed
from uring_actors.uring.tail import read_word
from uring_actors.uring.verdict import MORE, RETRY
from uring_actors.uring.work import Geometry, Lane

_PLAIN = -1


@hot
def ring_both(publisher: int, outbox: int) -> None:
    """Say that extents were announced and jobs may be done."""
    bell.ring(publisher, 1)
    bell.ring(outbox, 1)


class LiburingLane(Lane):
    """A lane that reads through liburing: see ``Lane``. Raises what ``LiburingState`` and ``register_buffers``
    raise."""

    engine: ClassVar[str] = "liburing"

    def __init__(
        self,
        arena: Arena,
        number: int,
        geometry: Geometry,
        *,
        sqpoll: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(arena, number, geometry, **options)
        # A label is a data slot, and the ring has an iovec for each label.
        self.ring = LiburingState(abi.power_of_two(arena.layout.slots_per_lane), sqpoll)
        try:
            buffers, self._slots_per_buffer = buffers_of(arena, number)
            if has_readv_fixed():
                self.ring.register_buffers(buffers)
            else:
                self._slots_per_buffer = 0
        except BaseException:
            self.ring.close()
            raise

    def _queue_read(self, slot: int) -> None:
        reads, jobs, counters = self._reads, self._jobs, self.counters
        job = int(reads[slot, work.R_JOB])
        direct, done = int(jobs[job, work.J_DIRECT]), int(reads[slot, work.R_DONE])
        length = work.length_of(reads, slot, direct)
        fixed = self._slots_per_buffer > 0
        self.ring.put_read(
            slot,
            int(jobs[job, work.J_FD]),
            False,
            int(reads[slot, work.R_OFFSET]) + done,
            int(reads[slot, work.R_ADDRESS]) + done,
            length,
            slot // self._slots_per_buffer if fixed else _PLAIN,
        )
        counters[work.C_SUBMITTED] += 1
        counters[work.C_SUBMITTED_BYTES] += length
        counters[work.C_REGISTERED if fixed else work.C_PLAIN] += 1
        counters[work.C_DIRECT] += direct

    def _begin_reads(self) -> int:
        """As ``lane.begin_reads``: how many were begun, or NO_ROOM."""
        state, reads, jobs, counters = self._state, self._reads, self._jobs, self.counters
        begun = 0
        while begun < state[work.BATCH]:
            if state[work.CURRENT] < 0:
                taken = work.take_job(state, jobs, counters)
                if taken <= 0:
                    return taken if taken < 0 else begun
            if state[work.FREE] < 0 or state[work.READING] >= state[work.DEPTH]:
                return begun
            job = int(state[work.CURRENT])
            if jobs[job, work.J_TABLE]:
                code = pack(state, reads, jobs, counters)
                if code < 0:
                    return code
                begun += 1
                continue
            if work.spare(state, jobs, counters):
                if work.job_is_done(jobs, job) and not work.end_job(state, jobs, counters, job):
                    return work.NO_ROOM
                continue
            self._queue_read(work.begin(state, reads, jobs, counters))
            begun += 1
        return begun

    def _reap(self) -> int:
        """As ``lane.reap``: how many completions, or what is broken."""
        state, reads, jobs, counters = self._state, self._reads, self._jobs, self.counters
        arrivals = self.ring.arrivals()
        for slot, result in arrivals:
            if not 0 <= slot < state[work.SLOTS] or reads[slot, work.R_STATE] != work.SLOT_READING:
                return work.BAD_COMPLETION
            job = int(reads[slot, work.R_JOB])
            verdict = work.settle_read(state, reads, jobs, counters, slot, result)
            if verdict < 0:
                return verdict
            if verdict in (MORE, RETRY):
                self._queue_read(slot)
            elif work.job_is_done(jobs, job) and not work.end_job(state, jobs, counters, job):
                return work.NO_ROOM
        return len(arrivals)

    def _slice(self, until_ns: int) -> int:
        state = self._state
        while time.monotonic_ns() < until_ns:
            stop = read_word(state[work.STOP])
            code = work.take_credits(state, self._reads)
            begun = self._begin_reads() if code >= 0 and stop != work.ABORT else 0
            if min(code, begun) < 0:
                return min(code, begun)
            if begun and not state[work.READING]:
                continue  # only packed slots, and there may be more to do
            if not state[work.READING]:
                ring_both(state[work.PUBLISHER_BELL], state[work.OUTBOX_BELL])
                if work.ended(state, stop):
                    return work.ENDED
                work.idle(state, stop, until_ns)
                continue
            self.ring.submit()
            self.ring.pause(-(-wait_ns(state, until_ns) // 1_000_000))
            code = self._reap()
            if code < 0:
                return code
            if code:
                ring_both(state[work.PUBLISHER_BELL], state[work.OUTBOX_BELL])
        return work.SLICE_OVER if work.balanced(state) else work.BAD_COUNT

    def _release(self) -> None:
        self.ring.close()

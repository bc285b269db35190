"""The publisher: owns the megakernel's ring and its tail.

It takes completion records from the lanes, writes each into a free ring slot, records the order and moves the tail;
and it takes what the kernel host has retired, frees the ring slot and hands the data slot back to its lane as a
credit. One thread, one GIL-free loop (``megakernel/feed.py``). Life: created → started → closed (idempotent).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uring_actors.arena import abi, bell
from uring_actors.arena.memory import Arena
from uring_actors.errors import PipelineError
from uring_actors.loop import SLICE_NS, LoopThread
from uring_actors.megakernel import feed
from uring_actors.uring.verdict import BLOCK
from uring_actors.uring.work import Geometry, round_up


@dataclass(frozen=True, slots=True)
class ScanJob:
    """What every extent of a scan is published as. ``tenant``: 0–29."""

    geometry: Geometry
    opcode: int
    operation: int = 0
    tenant: int = 0

    @classmethod
    def fit(cls, slot_bytes: int, opcode: int, *, halo: int, lead: bool, operation: int = 0) -> ScanJob:
        """The largest payload that fits a data slot with its context."""
        before = BLOCK if lead else 0
        return cls(Geometry(slot_bytes - before - round_up(halo), before, halo), opcode, operation)


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """Slots published and retired, payload bytes published."""

    published: int
    retired: int
    bytes: int


class Publisher:
    """One node's publisher. ``failure`` is what ended its thread, if anything did."""

    def __init__(self, arena: Arena, job: ScanJob, *, spins: int) -> None:
        self._arena = arena
        self._book = arena.address_book()
        self._spins = spins
        self._state = np.zeros(feed.FEED_WORDS, np.int64)
        self._state[[feed.FEED_HEAD, feed.FEED_TAIL]] = arena.words(arena.layout.state + abi.STATE_TAIL, 1)[0]
        self._job = np.zeros(feed.JOB_WORDS, np.int64)
        self._job[feed.JOB_PAYLOAD] = job.geometry.payload
        self._job[feed.JOB_LEAD] = job.geometry.lead
        self._job[feed.JOB_OPCODE] = job.opcode
        self._job[feed.JOB_OPERATION] = job.operation
        self._job[feed.JOB_TENANT] = job.tenant
        self._thread = LoopThread("publisher", self._step, wake=self._wake)

    def start(self) -> None:
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        return self._thread.failure

    def stats(self) -> PublisherStats:
        state = self._state
        return PublisherStats(
            published=int(state[feed.FEED_PUBLISHED]),
            retired=int(state[feed.FEED_RETIRED]),
            bytes=int(state[feed.FEED_BYTES]),
        )

    def _step(self) -> bool:
        code = feed.feed(self._book, self._state, self._job, self._spins, SLICE_NS)
        if code:
            raise PipelineError(f"the publisher stopped: {feed.ERRORS[code]}")
        return True

    def _wake(self) -> None:
        bell.ring(self._arena.at(self._arena.layout.state + abi.BELL_PUBLISHER), 1)

    def close(self) -> None:
        self._thread.stop()
        self._thread.join(10)

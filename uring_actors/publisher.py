"""The publisher: owns the megakernel's ring and its tail.

It takes completion records from the lanes, writes each into a free ring slot, records the order and moves the tail;
and it takes what the kernel host has retired, frees the ring slot and hands the data slot back to its lane as a
credit. One thread, one GIL-free loop (``megakernel/feed.py``). Life: created → started → closed (idempotent).
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass

import numpy as np

from uring_actors.arena import abi, bell, samples
from uring_actors.arena.memory import Arena
from uring_actors.errors import PipelineError
from uring_actors.loop import SLICE_NS, LoopThread
from uring_actors.megakernel import feed
from uring_actors.uring.verdict import BLOCK
from uring_actors.uring.work import Geometry, round_up

_TIMES_A_SLICE = 64
"""Extents timed in one slice of the loop of which the times are kept."""
_LATENCIES = 1024
"""Timed extents that are kept until somebody asks."""


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
    scanned: tuple[int, ...] = ()
    """For each lane, the payload bytes that came back scanned …"""
    faults: tuple[int, ...] = ()
    """… and the slots that the kernel could not run."""

    @property
    def in_ring(self) -> int:
        """Slots that are published and not retired."""
        return self.published - self.retired


@dataclass(frozen=True, slots=True)
class Latency:
    """How many ns one timed extent took: from its read's begin until it was read, published, scanned, settled."""

    lane: int
    read: int
    publish: int
    scan: int
    settle: int


class Publisher:
    """One node's publisher. ``failure`` is what ended its thread, if anything did."""

    def __init__(self, arena: Arena, job: ScanJob, *, spins: int) -> None:
        self._arena = arena
        self._book = arena.address_book()
        self._spins = spins
        self._state = np.zeros(feed.FEED_WORDS, np.int64)
        self._state[[feed.FEED_HEAD, feed.FEED_TAIL]] = arena.words(arena.layout.state + abi.STATE_TAIL, 1)[0]
        self._tally = np.zeros((arena.layout.lanes, feed.TALLY_WORDS), np.int64)
        self._times = np.zeros((_TIMES_A_SLICE, samples.COLUMNS), np.int64)
        self._latencies: deque[Latency] = deque(maxlen=_LATENCIES)
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
            scanned=tuple(self._tally[:, feed.TALLY_BYTES].tolist()),
            faults=tuple(self._tally[:, feed.TALLY_FAULTS].tolist()),
        )

    def latencies(self) -> list[Latency]:
        """What was timed since the last call: about one extent in SAMPLE_EVERY, the latest ones where it was long."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._latencies.popleft())
        return taken

    def _step(self) -> bool:
        state = self._state
        code = feed.feed(self._book, state, self._job, self._tally, self._times, self._spins, SLICE_NS)
        if code:
            raise PipelineError(f"the publisher stopped: {feed.ERRORS[code]}")
        if state[feed.FEED_TIMED]:
            rows = self._times[: state[feed.FEED_TIMED]].tolist()
            self._latencies.extend(Latency(*row) for row in rows)
            state[feed.FEED_TIMED] = 0
        return True

    def _wake(self) -> None:
        bell.ring(self._arena.at(self._arena.layout.state + abi.BELL_PUBLISHER), 1)

    def close(self) -> None:
        self._thread.stop()
        self._thread.join(10)

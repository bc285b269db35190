"""A publisher for tests: takes completion records, checks every byte of the data slots, gives credits back."""

from __future__ import annotations

import random
import struct
import threading
import time
from dataclasses import dataclass

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.memory import Arena
from uring_actors.uring.work import Geometry, get_ready, never_mind, ring_bell, sleep_unless

_RECORD = struct.Struct("<IIIIQII")


@dataclass(frozen=True)
class Record:
    data_slot: int
    nbytes: int
    file_id: int
    extent: int
    offset: int
    status: int
    flags: int


class Consumer:
    """Pops the records of ``lanes`` in a thread and keeps them in ``records``.

    contents: file id → the bytes that the file is expected to have; a file that isn't there is not looked at.
    delay: the longest pause in seconds before credits go back, in random order.
    """

    def __init__(
        self,
        arena: Arena,
        lanes: list[int],
        geometry: Geometry,
        contents: dict[int, bytes] | None = None,
        *,
        delay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.arena, self.lanes, self.geometry = arena, lanes, geometry
        self.contents = contents or {}
        self.records: list[Record] = []
        self.problems: list[str] = []
        self._delay, self._random = delay, random.Random(seed)
        self._held: list[tuple[int, int]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="test-consumer", daemon=True)

    def __enter__(self) -> Consumer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        ring_bell(self._bell)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def _bell(self) -> int:
        return self.arena.at(self.arena.layout.state + abi.BELL_PUBLISHER)

    def wait(self, count: int, seconds: float = 60.0) -> list[Record]:
        """The records, when there are ``count``; no problem may have been met."""
        deadline = time.monotonic() + seconds
        while len(self.records) < count and time.monotonic() < deadline and not self.problems:
            time.sleep(0.001)
        assert not self.problems, self.problems[:3]
        assert len(self.records) == count
        return self.records

    def _run(self) -> None:
        try:
            while not self._stop:
                if self._take_all():
                    continue
                key = get_ready(self._bell)
                if self._pending() or self._stop:
                    never_mind(self._bell)
                else:
                    # Long, so that a lost wake-up shows as a test that takes for ever.
                    sleep_unless(self._bell, key, 5_000_000_000)
        except BaseException as error:
            self.problems.append(repr(error))
            raise

    def _pending(self) -> bool:
        at, layout = self.arena.at, self.arena.layout
        return any(channel.pending(at(layout.completions(lane))) for lane in self.lanes)

    def _take_all(self) -> bool:
        layout, found = self.arena.layout, False
        for lane in self.lanes:
            completions = self.arena.at(layout.completions(lane))
            while address := channel.peek(completions, layout.channel_records - 1):
                found = True
                start = address - self.arena.address
                record = Record(*_RECORD.unpack(self.arena.view[start : start + abi.RECORD_BYTES]))
                channel.pop(completions)
                self._check(lane, record)
                self.records.append(record)
                if record.data_slot != abi.NO_DATA_SLOT:
                    self._held.append((lane, record.data_slot))
        if self._delay and self._random.random() < 0.5:
            time.sleep(self._random.random() * self._delay)
        else:
            self._give_credits()
        return found or bool(self._held)

    def _give_credits(self) -> None:
        layout, at = self.arena.layout, self.arena.at
        self._random.shuffle(self._held)
        for lane, slot in self._held:
            assert channel.push(at(layout.credits(lane)), layout.channel_records - 1, slot, 0, 0, 0, 0, 0, 0)
        for lane in {lane for lane, _ in self._held}:
            bell.ring(at(layout.lane_bell(lane)), 1)
        self._held.clear()

    def _check(self, lane: int, record: Record) -> None:
        layout, geometry = self.arena.layout, self.geometry
        if record.data_slot == abi.NO_DATA_SLOT:
            return
        if record.data_slot // layout.slots_per_lane != lane:
            self.problems.append(f"lane {lane} announced {record}")
        if record.offset != record.extent * geometry.payload:
            self.problems.append(f"wrong offset: {record}")
        content = self.contents.get(record.file_id)
        if content is None:
            return
        lead = geometry.lead if record.offset else 0
        start = layout.slot(record.data_slot) + geometry.lead
        got = self.arena.view[start - lead : start + record.nbytes]
        if record.nbytes and got != content[record.offset - lead : record.offset + record.nbytes]:
            self.problems.append(f"wrong bytes: {record}")
        if record.status == 0:
            expected = min(len(content), record.offset + geometry.payload + geometry.halo) - record.offset
            if record.nbytes != expected:
                self.problems.append(f"{record.nbytes} bytes instead of {expected}: {record}")


def check_file(records: list[Record], file_id: int, size: int, geometry: Geometry) -> None:
    """Every extent of a file was announced once, with the flags that belong to it."""
    mine = sorted((r for r in records if r.file_id == file_id), key=lambda r: r.extent)
    count = geometry.extents(size)
    assert [r.extent for r in mine] == list(range(count))
    for record in mine:
        first = abi.FLAG_FIRST if record.extent == 0 else 0
        last = abi.FLAG_LAST if record.extent == count - 1 else 0
        assert record.flags & ~abi.FLAG_TIMED == first | last

"""A few extents are timed on their way: the words in a lane's line, and what a publisher makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uring_actors as ua
from uring_actors.arena import abi, samples
from uring_actors.arena.memory import Arena
from uring_actors.ops.bytesum import Nop, Touch
from uring_actors.publisher import Publisher

SLOT = 65536


class Unknown(Nop):
    """No kernel has it."""

    opcode = 0x40000999


STAMPS = (abi.SAMPLE_BEGUN, abi.SAMPLE_READ, abi.SAMPLE_PUBLISHED, abi.SAMPLE_DONE)


def lines(arena: Arena) -> bytes:
    start = arena.layout.state + abi.STATE_BYTES
    return bytes(arena.view[start : start + arena.layout.lanes * abi.CACHE_LINE])


def test_an_extent_passes_its_stages(make_arena: Callable[..., Arena]) -> None:
    arena = make_arena(lanes=3, slots=4)
    book, row = arena.address_book(), np.zeros(samples.COLUMNS, np.int64)
    line, slot = arena.at(arena.layout.lane_bell(1)), 6
    began = time.monotonic_ns()
    assert samples.begin(line)
    assert not samples.begin(line), "one at a time"
    samples.note(line, abi.SAMPLE_READ)
    time.sleep(0.002)
    samples.published(book, slot)
    time.sleep(0.004)
    samples.done(book, slot)
    finished = int(arena.words(arena.layout.lane_bell(1) + abi.SAMPLE_DONE, 2).view(np.int64)[0])
    samples.done(book, slot)
    samples.take(book, slot, row)
    lane, read, publish, scan, settle = row.tolist()
    assert lane == 1
    assert read >= 0
    assert publish >= 2_000_000
    assert scan >= 4_000_000
    assert settle >= 0
    assert began <= finished - read - publish - scan, "the second time it was done changed nothing"
    assert began + read + publish + scan + settle <= time.monotonic_ns()
    assert samples.begin(line), "the lane may time another"
    for lane in (0, 2):
        assert not any(arena.words(arena.layout.lane_bell(lane), 16)), "the line of another lane"


def test_bells_and_stamps_have_their_own_words() -> None:
    words = [0, 4, abi.SAMPLE_BUSY, *STAMPS]
    assert len(set(words)) == len(words)
    assert all(stamp % 8 == 0 and abi.SAMPLE_BUSY < stamp <= abi.CACHE_LINE - 8 for stamp in STAMPS)


def test_a_slot_that_there_is_not_is_left_alone(make_arena: Callable[..., Arena]) -> None:
    """A script's ring slots hold what it likes where a scan's have their flags."""
    arena = make_arena(lanes=2, slots=4)
    before = bytes(arena.view)
    for slot in (8, 1 << 20, abi.NO_DATA_SLOT):
        samples.done(arena.address_book(), slot)
    assert bytes(arena.view) == before


def scanned(path: Path, operation: Any, **options: Any) -> tuple[Publisher, float]:
    """A scan to its end: its publisher, and how many seconds it took."""
    began = time.monotonic()
    scan = ua.scan(path, operation=operation, engine="threads", slot_bytes=SLOT, slots=4, **options)
    publisher = scan._node._publisher  # type: ignore[attr-defined]
    scan.to_table()
    return publisher, time.monotonic() - began


@pytest.mark.parametrize("io_engine", ["uring", "pread"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_scan_times_one_extent_in_many(
    tmp_path: Path, io_engine: str, lanes: int, need_uring: Callable[[], None]
) -> None:
    if io_engine == "uring":
        need_uring()
    size = 4 * abi.SAMPLE_EVERY * SLOT + 1
    with (tmp_path / "f").open("wb") as file:
        file.truncate(size)
    publisher, seconds = scanned(tmp_path, Touch(), io_engine=io_engine, io="buffered", lanes=lanes)
    stats, latencies = publisher.stats(), publisher.latencies()
    assert stats.in_ring == 0
    assert len(stats.scanned) == lanes
    assert sum(stats.scanned) == size
    assert stats.faults == (0,) * lanes
    assert {latency.lane for latency in latencies} == set(range(lanes))
    assert 2 * lanes <= len(latencies) <= 4 + 2 * lanes
    for one in latencies:
        times = (one.read, one.publish, one.scan, one.settle)
        assert min(times) >= 0
        assert sum(times) <= seconds * 1e9
    assert publisher.latencies() == [], "they were taken"


def test_faults_are_counted(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 * SLOT))
    stats = scanned(tmp_path, Unknown(), io_engine="pread")[0].stats()
    assert stats.faults == (3,)
    assert stats.scanned == (0,)


def test_a_file_that_cannot_be_opened_has_no_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr("uring_actors.reader.open_file", refuse)
    (tmp_path / "f").write_bytes(b"x")
    stats = scanned(tmp_path, Touch(), io_engine="pread")[0].stats()
    assert (stats.retired, stats.scanned, stats.faults) == (1, (0,), (0,))

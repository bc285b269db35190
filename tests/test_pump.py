"""The pump, the megakernel's host side and the ingest driver: the faults that they must not have, and the docs."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hot_helpers
from tests.streams import ENGINES, Pipe, make_ring, write
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.errors import (
    ChunkFailed,
    DeadlineExceeded,
    OptionError,
    PipelineError,
    QueueFull,
    UringActorsError,
)
from uring_actors.ingest import IngestDriver
from uring_actors.megakernel.megakernel import Megakernel, decode_slot, encode_slot, scan_args
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.pump import UringMegakernelPump
from uring_actors.uring.stream import AsyncUringStream
from uring_actors.uring.tail import AtomicTail

CHUNK = 4096
CHUNKS = 8
TOUCH = abi.OP_SCAN_TOUCH


@pytest.fixture
def kernel() -> Iterator[Megakernel]:
    with Megakernel.create(CHUNKS, CHUNK) as made:
        yield made


@pytest.fixture
def idle() -> Iterator[Megakernel]:
    """One that isn't started: what is published stays PUBLISHED."""
    made = Megakernel.create(CHUNKS, CHUNK)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_pump(engine: str, kernel: Megakernel, **options: int) -> UringMegakernelPump:
    stream = AsyncUringStream(make_ring(engine, 16), kernel.buffer, AtomicTail())
    return UringMegakernelPump(stream, CHUNK, **options)


def drain(pump: UringMegakernelPump, kernel: Megakernel) -> tuple[int, list[UringActorsError]]:
    """Until nothing is in flight: how many were published, and what failed."""
    published, failures = 0, []
    while True:
        if pump.inflight():
            pump.wait(20)
        before = pump._stream.tail.load()
        try:
            published += pump.drain_into_ring(kernel)
        except UringActorsError as error:
            published += pump._stream.tail.load() - before
            failures.append(error)
            continue
        if not pump.inflight():
            return published, failures


def test_files_are_scanned(engine: str, kernel: Megakernel, tmp_path: Path) -> None:
    data = write(tmp_path / "f", 5 * CHUNK + 100)
    pump = make_pump(engine, kernel)
    with open(tmp_path / "f", "rb") as file:
        for i in range(6):  # any chunk, any slot
            pump.submit_file_scan(file, i * CHUNK, CHUNK, 7 - i, 2 * i + 1, 3, TOUCH, (77, i, 5))
    assert pump.inflight() == 6
    assert drain(pump, kernel) == (6, [])
    kernel.wait(range(1, 13, 2))
    for i in range(6):
        slot = kernel.read_slot(2 * i + 1)
        part = data[i * CHUNK : (i + 1) * CHUNK]
        last = abi.FLAG_LAST if i == 5 else 0  # the file's end: the real count
        first = abi.FLAG_FIRST if i == 0 else 0
        # The last word is the position, and completions come in any order.
        assert slot.args[:11] == (7 - i, len(part), 0, 0, i * CHUNK, 0, 77, i, 5, first | last, 0)
        assert slot.args[11] in range(6)
        assert (slot.status, slot.opcode, slot.tenant) == (abi.DONE, TOUCH, 3)
        assert kernel.result(7 - i).values[0] == sum(part)
    stream = pump.into_stream()
    assert stream.tail.load() == kernel.tail == kernel.done_count == 6
    stream.ring_state.close()


def test_completions_in_any_order_find_their_slots(
    engine: str, kernel: Megakernel, tmp_path: Path, pipe: Pipe
) -> None:
    data = write(tmp_path / "f", 4 * CHUNK)
    pump = make_pump(engine, kernel)
    pump.submit_file_scan(pipe.reader, 0, CHUNK, 0, 0, 0, TOUCH)
    with open(tmp_path / "f", "rb") as file:
        for i in range(1, 4):
            pump.submit_file_scan(file, i * CHUNK, CHUNK, i, i, 0, TOUCH)
    published = 0
    while published < 3:
        pump.wait(20)
        published += pump.drain_into_ring(kernel)
    kernel.wait([1, 2, 3])
    assert kernel.status(0) == abi.EMPTY
    pipe.feed(b"\1" * CHUNK)
    assert drain(pump, kernel) == (1, [])
    kernel.wait([0])
    assert kernel.result(0).values[0] == CHUNK
    for i in range(1, 4):
        assert kernel.result(i).values[0] == sum(data[i * CHUNK : (i + 1) * CHUNK])
    pump.close()


def test_a_failed_chunk_amid_good_ones(engine: str, kernel: Megakernel, tmp_path: Path) -> None:
    write(tmp_path / "f", 4 * CHUNK)
    pump = make_pump(engine, kernel)
    directory = os.open(tmp_path, os.O_RDONLY)
    file = os.open(tmp_path / "f", os.O_RDONLY)
    for i in range(6):
        bad = i in (2, 4)
        pump.submit_file_scan(directory if bad else file, (i % 4) * CHUNK, CHUNK, i, 10 + i, 0, TOUCH)
    os.close(directory)
    published, failures = drain(pump, kernel)
    assert published == 4
    assert sorted((f.chunk, f.slot, f.errno, f.path, f.offset) for f in failures) == [  # type: ignore[attr-defined]
        (2, 12, errno.EISDIR, os.fsencode(tmp_path), 2 * CHUNK),
        (4, 14, errno.EISDIR, os.fsencode(tmp_path), 0),
    ]
    assert all(isinstance(f, ChunkFailed) for f in failures)
    assert "chunk 2 (ring slot 12)" in str(sorted(failures, key=str)[0])
    assert [kernel.status(slot) for slot in (12, 14)] == [abi.EMPTY] * 2
    assert pump._stream.tail.load() == 4
    pump.submit_file_scan(file, 0, CHUNK, 2, 12, 0, TOUCH)  # both are free again
    assert drain(pump, kernel) == (1, [])
    os.close(file)
    pump.close()


def test_a_slot_in_flight_is_refused(engine: str, idle: Megakernel, tmp_path: Path, pipe: Pipe) -> None:
    write(tmp_path / "f", 4 * CHUNK)
    pump = make_pump(engine, idle)
    with open(tmp_path / "f", "rb") as file:
        pump.submit_file_scan(pipe.reader, 0, CHUNK, 0, 0, 0, TOUCH)
        with pytest.raises(QueueFull, match="ring slot 0"):
            pump.submit_file_scan(file, 0, CHUNK, 1, 0, 0, TOUCH)
        with pytest.raises(QueueFull, match="chunk 0"):
            pump.submit_file_scan(file, 0, CHUNK, 0, 1, 0, TOUCH)
        pump.submit_file_scan(file, 0, CHUNK, 1, 1, 0, TOUCH)
        while pump.reading(1):
            pump.wait(20)
            pump.drain_into_ring(idle)
        assert idle.status(1) == abi.PUBLISHED
        for chunk, slot in [(2, 1), (1, 2)]:  # the kernel has slot 1, and with it chunk 1
            with pytest.raises(QueueFull):
                pump.submit_file_scan(file, 0, CHUNK, chunk, slot, 0, TOUCH)
        idle.start()
        idle.wait([1])
        pump.submit_file_scan(file, 0, CHUNK, 1, 1, 0, TOUCH)
    pipe.feed(bytes(CHUNK))
    assert drain(pump, idle) == (2, [])
    pump.close()


def test_a_slot_that_the_kernel_still_has_waits(engine: str, idle: Megakernel, tmp_path: Path) -> None:
    """Somebody else published it meanwhile: the chunk is kept, not lost and not written over."""
    write(tmp_path / "f", 4 * CHUNK)
    pump = make_pump(engine, idle)
    with open(tmp_path / "f", "rb") as file:
        pump.submit_file_scan(file, 0, CHUNK, 0, 5, 0, TOUCH)
        pump.submit_file_scan(file, 0, CHUNK, 1, 6, 0, TOUCH)
    idle.publish(5, abi.OP_NOP)
    failures: list[UringActorsError] = []
    while idle.status(6) == abi.EMPTY or not failures:
        pump.wait(20)
        try:
            pump.drain_into_ring(idle)
        except QueueFull as error:
            failures.append(error)
    assert "ring slot 5" in str(failures[0])
    assert pump.inflight() == 1
    assert idle.read_slot(5).opcode == abi.OP_NOP
    idle.start()
    idle.wait([5, 6])
    assert drain(pump, idle) == (1, [])
    idle.wait([5])
    assert idle.read_slot(5).opcode == TOUCH
    assert pump._stream.tail.load() == 2
    pump.close()


def test_what_the_pump_refuses(idle: Megakernel, pipe: Pipe, tmp_path: Path) -> None:
    pump = make_pump("uring", idle)
    stream = pump._stream
    for bad in [
        (CHUNK - 1, 0, 0, 0, TOUCH, (0, 0, 0)),
        (CHUNK, 0, -1, 0, TOUCH, (0, 0, 0)),
        (CHUNK, 0, 0, 2**32, TOUCH, (0, 0, 0)),
        (CHUNK, 0, 0, 0, -1, (0, 0, 0)),
        (CHUNK, 0, 0, 0, TOUCH, (0, 0)),
        (CHUNK, 0, 0, 0, TOUCH, (0, 0, 2**32)),
    ]:
        with pytest.raises(OptionError):
            pump.submit_file_scan(pipe.reader, 0, *bad)
    with pytest.raises(QueueFull, match="mapped buffer"):
        pump.submit_file_scan(pipe.reader, 0, CHUNK, CHUNKS, 0, 0, TOUCH)
    assert pump.inflight() == 0
    for call in (stream.poll, lambda: stream.submit_read_to_gpu(0, 0, 1, 0), stream.wait_for_completion):
        with pytest.raises(PipelineError, match="pump"):
            call()
    with pytest.raises(PipelineError, match="pump"):
        UringMegakernelPump(stream, CHUNK)
    pump.submit_file_scan(pipe.reader, 0, CHUNK, 0, 0, 0, TOUCH)
    with pytest.raises(QueueFull, match="pump"):
        pump.into_stream()
    pipe.feed(bytes(CHUNK))
    drain(pump, idle)
    with pytest.raises(OptionError, match="ring slot"):
        pump.submit_file_scan(pipe.reader, 0, CHUNK, 0, 10**6, 0, TOUCH)
    assert pump.into_stream() is stream
    with pytest.raises(PipelineError):
        pump.inflight() or pump.drain_into_ring(idle)
    assert stream.poll() == 0
    stream.replace_buffer(GpuMappedBuffer.anonymous(CHUNK))
    elsewhere = UringMegakernelPump(stream, CHUNK)
    write(tmp_path / "f", 10)
    with open(tmp_path / "f", "rb") as file:
        elsewhere.submit_file_scan(file, 0, CHUNK, 0, 3, 0, TOUCH)
    elsewhere.wait(20)
    with pytest.raises(OptionError, match="data slots"):
        elsewhere.drain_into_ring(idle)
    with pytest.raises(OptionError):
        UringMegakernelPump(stream, 0)
    elsewhere.close()


def test_the_epoch_is_observed(kernel: Megakernel) -> None:
    pump = make_pump("uring", kernel)
    assert pump.observe_epoch(kernel.control) == 0
    for n in range(1, 4):
        kernel.publish(n, abi.OP_BATCH_FENCE)
        kernel.wait([n])
        assert pump.observe_epoch(kernel.control) == kernel.epoch == n
    with pytest.raises(OptionError):
        pump.observe_epoch(kernel.control[:100])
    pump.close()


# ── the tail, watched from another process ───────────────────────────────────────────────────────────────────
SCANS = 1500


@pytest.fixture
def watched() -> Iterator[tuple[Arena, hot_helpers.Peer]]:
    arena = Arena.create(ArenaLayout(1, 1024, CHUNK, abi.PAGE))
    peer = hot_helpers.Peer(arena)
    yield arena, peer
    peer.close()
    arena.close()


def watch(arena: Arena, peer: hot_helpers.Peer, tail: int, count: int) -> None:
    layout = arena.layout
    for until in (0, count):  # the first compiles
        peer.start(hot_helpers.watch_tail, tail, layout.order, layout.ring, layout.ring_slots - 1, until)
        if until == 0:
            peer.result()


@pytest.mark.parametrize("engine", ["uring", "liburing"])
def test_the_tail_never_runs_ahead(engine: str, watched: tuple[Arena, hot_helpers.Peer], tmp_path: Path) -> None:
    """Another process watches: whenever the tail is n, the n slots published first are no longer EMPTY."""
    arena, peer = watched
    write(tmp_path / "f", 64 * CHUNK)
    with Megakernel(arena) as kernel:
        last = arena.layout.slots - 1  # the tail lies in the last data slot, which no scan uses
        tail = AtomicTail(GpuMappedBuffer.from_arena(arena), last * CHUNK)
        stream = AsyncUringStream(make_ring(engine, 32), kernel.buffer, tail)
        pump = UringMegakernelPump(stream, CHUNK)
        watch(arena, peer, arena.layout.slot(last), SCANS)
        with open(tmp_path / "f", "rb") as file:
            for n in range(SCANS):  # every ring slot is used once, so EMPTY means: not yet published
                while pump.inflight() >= 32 or (n >= 32 and kernel.status(n - 32) not in (abi.DONE, abi.FAULT)):
                    pump.drain_into_ring(kernel)
                pump.submit_file_scan(file, n % 64 * CHUNK, CHUNK, n % 32, n, 0, TOUCH)
            while pump.inflight():
                pump.drain_into_ring(kernel)
        seen, ahead, looks = peer.result()
        assert (seen, ahead) == (SCANS, 0)
        assert looks > 10
        pump.close()


def test_the_watcher_sees_a_tail_that_runs_ahead(watched: tuple[Arena, hot_helpers.Peer]) -> None:
    arena, peer = watched
    idle = Megakernel(arena)
    tail = AtomicTail(GpuMappedBuffer.from_arena(arena), 0)
    watch(arena, peer, arena.layout.data, 3)
    for n in range(3):
        tail.add(1)
        time.sleep(0.1)
        idle.publish(n, abi.OP_NOP)
    assert peer.result()[1] > 0
    idle.close()


# ── the megakernel's host side ───────────────────────────────────────────────────────────────────────────────
def test_slots_are_encoded_as_the_protocol_says() -> None:
    raw = encode_slot(0x40000001, (1, 2, 3), tenant=4, priority=abi.PRIORITY_HIGH, status=abi.PUBLISHED)
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 64, 4)]
    assert words == [1, 0x40000001, 4, 1, 1, 2, 3, *[0] * 9]
    assert decode_slot(raw) == (1, 0x40000001, 4, 1, (1, 2, 3, *[0] * 9))
    assert scan_args(1, 2, file_offset=5 << 32 | 7, flags=3)[4:6] == (7, 5)
    for bad in ({"args": [0] * 13}, {"args": [-1]}, {"args": [2**32]}, {"priority": 5}, {"tenant": -1}):
        with pytest.raises(OptionError):
            encode_slot(0, **bad)  # type: ignore[arg-type]
    with pytest.raises(OptionError):
        decode_slot(raw[:60])


def test_publishing_by_hand(kernel: Megakernel) -> None:
    assert kernel.publish(3, abi.OP_NOP, (1, 2), tenant=1, priority=abi.PRIORITY_LOW) == 0
    assert kernel.publish(1, abi.OP_NOP) == 1
    kernel.wait([3, 1])
    assert kernel.read_slot(3) == (abi.DONE, abi.OP_NOP, 1, abi.PRIORITY_LOW, (1, 2, *[0] * 10))
    assert kernel.metrics()[0] == 2
    kernel.allow(1, False)
    kernel.publish(3, abi.OP_NOP, tenant=1)
    kernel.wait([3])
    assert kernel.status(3) == abi.FAULT
    kernel.allow(1)
    kernel.publish(3, abi.OP_NOP, tenant=1)
    kernel.wait([3])
    assert (kernel.status(3), kernel.tail, kernel.done_count) == (abi.DONE, 4, 4)
    assert kernel.read_log() == []
    assert not kernel.observables().any()
    for call in (
        lambda: kernel.status(-1),
        lambda: kernel.publish(10**6, 0),
        lambda: kernel.result(CHUNKS),
        lambda: kernel.allow(30),
    ):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(PipelineError):
        kernel.start()


def test_a_busy_slot_is_not_written(idle: Megakernel) -> None:
    idle.publish(2, abi.OP_NOP, (1,))
    with pytest.raises(QueueFull, match="ring slot 2"):
        idle.publish(2, abi.OP_NOP, (9,))
    assert idle.read_slot(2).args[0] == 1
    assert idle.tail == 1
    with pytest.raises(DeadlineExceeded, match="ring slot 2"):
        idle.wait([2], 0.02)
    idle.close()
    with pytest.raises(PipelineError, match="closed"):
        idle.status(0)
    with pytest.raises(OptionError):
        Megakernel.create(3, 100)


def test_the_log_is_read(idle: Megakernel) -> None:
    words = idle.arena.words(idle.arena.layout.log, abi.LOG_BYTES // 4)
    words[:9] = [8, 5, 1, 2, 3, 6, 7, 8, 9]
    assert idle.read_log() == [(5, (1, 2, 3)), (6, (7, 8, 9))]
    words[0] = 2**32 - 1
    assert len(idle.read_log()) == (len(words) - 1) // 4


# ── the driver, and the docs ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("engine", ENGINES)
def test_ingest(engine: str, kernel: Megakernel, tmp_path: Path) -> None:
    sizes = [1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK + 5, 0, 3 * CHUNK]
    files = {str(tmp_path / str(i)): write(tmp_path / str(i), size, i) for i, size in enumerate(sizes)}
    driver = IngestDriver.over(kernel, make_ring(engine, CHUNKS))
    seen: dict[str, int] = {}
    for chunk in driver.scan(files):
        part = files[chunk.path][chunk.offset : chunk.offset + CHUNK]
        assert (chunk.bytes, chunk.values[0], chunk.fault) == (len(part), sum(part), False)
        seen[chunk.path] = seen.get(chunk.path, 0) + chunk.bytes
    assert seen == {path: len(data) for path, data in files.items() if data}
    told = driver.telemetry()
    told.validate_completed_zero_copy("registered")
    assert told.completed_bytes == sum(sizes)
    assert told.cpu_bounce_bytes == 0
    with pytest.raises(PipelineError, match="iovec"):
        told.validate_completed_zero_copy("iovec")
    driver.close()
    driver.close()


def test_ingest_says_what_failed(kernel: Megakernel, tmp_path: Path) -> None:
    driver = IngestDriver.over(kernel)
    with pytest.raises(FileNotFoundError):
        list(driver.scan([tmp_path / "none"]))
    driver.close()
    stream = AsyncUringStream(make_ring("uring"), kernel.buffer, AtomicTail())
    with pytest.raises(OptionError):
        IngestDriver(UringMegakernelPump(stream, 512), kernel)
    stream.ring_state.close()


def test_the_scripts_in_the_docs_run(tmp_path: Path) -> None:
    """Each Python block of docs/streams.md, as a script of its own, on a file of its own."""
    root = Path(__file__).parent.parent
    scripts = re.findall(r"```python\n(.*?)```", (root / "docs" / "streams.md").read_text(), re.DOTALL)
    assert len(scripts) >= 2
    data = write(tmp_path / "data.bin", 3_000_000)
    for script in scripts:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert str(sum(data)) in done.stdout


def test_threads_of_the_kernel_end(tmp_path: Path) -> None:
    before = threading.active_count()
    with Megakernel.create(2, CHUNK, threads=3):
        assert threading.active_count() == before + 3
    assert threading.active_count() == before

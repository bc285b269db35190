"""No sequence of public calls makes the kernel write outside the mapped buffer or into freed memory.

Every buffer lies between canaries, and those between pages that nobody may touch. Where a buffer was freed, other
memory of the same size is mapped at once, mostly at the same address: a read that came late would be seen in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import tempfile
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.examples import examples
from tests.streams import ENGINES, Pipe, make_ring, make_stream, mostly
from uring_actors.errors import UringActorsError
from uring_actors.uring import flight, kernel
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.ring import probe
from uring_actors.uring.stream import AsyncUringStream, Iovecs
from uring_actors.uring.tail import AtomicTail

PAGE = 4096
CANARY = 512  # bytes before and after a buffer
SIZE = 2 * PAGE - 2 * CANARY
WHOLE = 4 * PAGE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

pytestmark = pytest.mark.skipif(not probe().available, reason=f"no io_uring here: {probe().error}")


class Mapping(mmap.mmap):
    """A mapping that a weak reference can watch."""


class Region:
    """Guard page, canary, ``SIZE`` bytes of buffer, canary, guard page. ``drop`` lets go of it all."""

    def __init__(self) -> None:
        memory = Mapping(-1, WHOLE)
        memory[PAGE:-PAGE] = b"C" * (WHOLE - 2 * PAGE)
        memory[PAGE + CANARY : -PAGE - CANARY] = bytes(SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert _mprotect(address, PAGE, 0) == _mprotect(address + WHOLE - PAGE, PAGE, 0) == 0
        self.memory = weakref.ref(memory)
        self.buffer: GpuMappedBuffer | None = GpuMappedBuffer.from_buffer(
            memoryview(memory)[PAGE + CANARY : -PAGE - CANARY]
        )

    def drop(self) -> None:
        self.buffer = None

    @property
    def alive(self) -> bool:
        return self.memory() is not None

    def check(self) -> None:
        memory = self.memory()
        if memory is not None:
            assert memory[PAGE : PAGE + CANARY] == b"C" * CANARY
            assert memory[-PAGE - CANARY : -PAGE] == b"C" * CANARY


class Decoy:
    """Memory that nobody reads into, mapped where something may just have been freed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, WHOLE)
        self.memory[:] = b"D" * WHOLE

    def check(self) -> None:
        assert self.memory[:] == b"D" * WHOLE


def patient_pipe() -> Pipe:
    """A pipe that can be full without stopping the test."""
    pipe = Pipe(os.O_NONBLOCK)
    os.set_blocking(pipe.reader, True)
    return pipe


def quietly(call: object) -> None:
    with contextlib.suppress(UringActorsError):
        call()  # type: ignore[operator]


offsets = st.sampled_from([0, 0, 1, 4096, 9999, -1, 2**63 - 1])
lengths = mostly(st.integers(1, 2000), SIZE, SIZE + 1, 0, -1, 2**32 + 1, 2**40)
places = mostly(st.integers(0, SIZE - 2000), -1, -CANARY, SIZE - 1, SIZE, SIZE + CANARY, 2**62, -(2**62))
which = st.integers(0, 3)


class Abuse(RuleBasedStateMachine):
    """Streams of both engines whose buffers, files and rings are closed, dropped and replaced at random moments."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.file = os.open(self.directory / "f", os.O_RDONLY)
        self.streams: list[AsyncUringStream] = []
        self.regions: list[Region] = []
        self.decoys: list[Decoy] = []
        self.pipes = [patient_pipe(), patient_pipe()]

    def teardown(self) -> None:
        while self.streams:
            self.end(0, "drop")
        for pipe in self.pipes:
            pipe.close()
        os.close(self.file)
        self.regions_go()
        gc.collect()
        assert not any(region.alive for region in self.regions), "memory of a stream that is gone is still held"
        assert flight._LEFT_BEHIND == []
        self.nothing_was_touched()
        for decoy in self.decoys:
            decoy.memory.close()

    @invariant()
    def nothing_was_touched(self) -> None:
        for region in self.regions:
            region.check()
        for decoy in self.decoys:
            decoy.check()

    def source(self, number: int) -> int:
        return self.file if number < 2 else self.pipes[number - 2].reader

    def region(self) -> GpuMappedBuffer:
        self.regions.append(Region())
        assert self.regions[-1].buffer is not None
        return self.regions[-1].buffer

    # ── making and using ─────────────────────────────────────────────────────────────────────────────────────
    @precondition(lambda self: len(self.streams) < 3)
    @rule(engine=st.sampled_from(ENGINES))
    def make(self, engine: str) -> None:
        ring = make_ring(engine, 4)
        self.streams.append(AsyncUringStream(ring, self.region(), AtomicTail()))
        ring.register_files([self.file, self.pipes[0].reader, -1])

    @precondition(lambda self: self.streams)
    @rule(
        n=which,
        reads=st.lists(st.tuples(which, offsets, lengths, places), min_size=1, max_size=4),
        own=st.booleans(),
        flush=st.booleans(),
    )
    def read(self, n: int, reads: list[tuple[int, int, int, int]], own: bool, flush: bool) -> None:
        stream = self.streams[n % len(self.streams)]
        iovs = Iovecs(2) if own else None
        for source, *numbers in reads:
            fd = self.source(source)
            quietly(lambda a=numbers, f=fd: stream.submit_read_to_gpu_at_with_user_data(f, *a, 1, iovs))
        if flush:
            quietly(stream.flush_submissions)

    @precondition(lambda self: self.streams)
    @rule(n=which, source=which, length=lengths, chunk=st.sampled_from([0, 1, 2, -1, 2**40]))
    def read_chunk(self, n: int, source: int, length: int, chunk: int) -> None:
        stream = self.streams[n % len(self.streams)]
        quietly(lambda: stream.submit_read_to_gpu(self.source(source), 0, length, chunk))
        quietly(lambda: stream.submit_read_to_gpu_fixed_file(source, 0, length, chunk))

    @precondition(lambda self: self.streams)
    @rule(n=which, source=which, length=lengths, place=places, index=which)
    def read_fixed(self, n: int, source: int, length: int, place: int, index: int) -> None:
        stream = self.streams[n % len(self.streams)]
        quietly(lambda: stream.submit_read_fixed_at(self.source(source), 0, length, place, index, 5))

    @precondition(lambda self: self.streams)
    @rule(n=which, length=lengths, where=st.lists(places, max_size=6), path=st.sampled_from(["registered", "iovec"]))
    def read_in_bulk(self, n: int, length: int, where: list[int], path: str) -> None:
        stream = self.streams[n % len(self.streams)]
        quietly(lambda: stream.read_extents(self.file, 0, length, where, path=path, depth=2))

    @precondition(lambda self: self.streams)
    @rule(n=which, part=st.integers(0, 2))
    def register_buffers(self, n: int, part: int) -> None:
        stream = self.streams[n % len(self.streams)]
        half = stream.buffer.sub_region(part * 100, SIZE // 2)
        quietly(lambda: stream.ring_state.register_buffers([half, stream.buffer]))

    @precondition(lambda self: self.streams)
    @rule(n=which)
    def poll(self, n: int) -> None:
        quietly(self.streams[n % len(self.streams)].poll)

    @precondition(lambda self: self.streams)
    @rule(n=which)
    def flush(self, n: int) -> None:
        quietly(self.streams[n % len(self.streams)].flush_submissions)

    @precondition(lambda self: self.streams)
    @rule(n=which)
    def wait(self, n: int) -> None:
        quietly(lambda: self.streams[n % len(self.streams)].wait_for_completion(0.002))

    @rule(n=st.integers(0, 1), size=st.integers(1, 2000))
    def feed(self, n: int, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.pipes[n].feed(b"P" * size)

    # ── pulling the rug away ─────────────────────────────────────────────────────────────────────────────────
    @precondition(lambda self: self.streams)
    @rule(n=which, forget=st.booleans())
    def replace_buffer(self, n: int, forget: bool) -> None:
        self.streams[n % len(self.streams)].replace_buffer(self.region())
        if forget:
            self.regions_go()

    @rule()
    def regions_go(self) -> None:
        """We hold none of them any more; what is freed is mapped anew."""
        for region in self.regions:
            region.drop()
        gc.collect()
        self.regions = [region for region in self.regions if region.alive]
        if len(self.decoys) < 12:
            self.decoys.append(Decoy())

    @precondition(lambda self: self.streams)
    @rule(n=which, how=st.sampled_from(["close", "close the ring", "drop", "replace"]))
    def end(self, n: int, how: str) -> None:
        stream = self.streams.pop(n % len(self.streams))
        if how in ("close", "replace"):
            stream.close()
        elif how == "close the ring":
            stream.ring_state.close()
        if how == "replace":
            self.streams.append(AsyncUringStream(stream.ring_state, self.region(), AtomicTail()))
        del stream
        gc.collect()
        self.regions_go()

    @precondition(lambda self: self.streams)
    @rule(n=which, index=which, file=st.booleans())
    def replace_file(self, n: int, index: int, file: bool) -> None:
        quietly(lambda: self.streams[n % len(self.streams)].ring_state.update_file(index, self.file if file else -1))

    @rule(n=st.integers(0, 1))
    def exchange_pipe(self, n: int) -> None:
        """Its numbers are soon another pipe's; at its end, reads of it end."""
        self.pipes[n].close()
        self.pipes[n] = patient_pipe()


@pytest.mark.hypothesis
def test_random_abuse() -> None:
    pytest.importorskip("liburing")
    with tempfile.TemporaryDirectory() as name:
        Abuse.directory = Path(name)
        (Abuse.directory / "f").write_bytes(b"F" * 10_000)
        Abuse.TestCase.settings = settings(
            max_examples=examples(30),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        gc.collect()
        gc.freeze()  # else every collection looks at all that was ever imported
        try:
            Abuse.TestCase().runTest()
        finally:
            gc.unfreeze()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["close", "drop", "close the ring"])
def test_a_read_that_comes_after_the_end(engine: str, how: str) -> None:
    """The source answers when stream and buffer are gone, and other memory lies there."""
    pipe, region = Pipe(), Region()
    stream = make_stream(engine)
    stream.replace_buffer(region.buffer)  # type: ignore[arg-type]
    region.drop()
    stream.submit_read_to_gpu(pipe.reader, 0, 1000, 0)
    stream.poll()
    assert region.alive
    if how == "close":
        stream.close()
    elif how == "close the ring":
        stream.ring_state.close()
    del stream
    gc.collect()
    assert not region.alive
    decoys = [Decoy() for _ in range(4)]
    pipe.feed(b"P" * 1000)
    time.sleep(0.02)
    for decoy in decoys:
        decoy.check()
    assert os.read(pipe.reader, 2000) == b"P" * 1000  # nobody took it
    pipe.close()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    """Past the checks, an entry with a wrong address does break it: the tests above would see that."""
    (tmp_path / "f").write_bytes(b"F" * 100)
    region = Region()
    stream = make_stream("uring")
    stream.replace_buffer(region.buffer)  # type: ignore[arg-type]
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    stream.poll()
    stream._flight.kept[0] = (stream.buffer, None, None)
    address = stream.buffer.address - 8
    stream._flight.engine.start(kernel.OP_READV, fd, 0, 0, address, 100, 0, 0, 0, 0)
    stream.wait_for_completion(10)
    stream.poll()
    with pytest.raises(AssertionError):
        region.check()
    os.close(fd)
    stream.ring_state.close()

"""The stream on both engines: every method, every named fault, its life."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import uring_actors
from tests.streams import ENGINES, MakeStream, Pipe, content, finish, make_ring, make_stream, write
from tests.test_uring_ring import child
from uring_actors.errors import (
    DeadlineExceeded,
    IoUringSyscall,
    NvmeCommandRefused,
    NvmePassthroughDisabled,
    NvmeStatus,
    OptionError,
    PipelineError,
    QueueFull,
)
from uring_actors.uring import flight, kernel, nvme, queue, requests
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.requests import Requests
from uring_actors.uring.ring import IoUringState
from uring_actors.uring.stream import AsyncUringStream, Iovecs
from uring_actors.uring.tail import AtomicTail
from uring_actors.uring.telemetry import IngestTelemetry


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture(params=ENGINES)
def stream(request: pytest.FixtureRequest) -> Iterator[AsyncUringStream]:
    made = make_stream(request.param)
    yield made
    made.ring_state.close()


@pytest.fixture
def open_stream() -> Iterator[MakeStream]:
    made: list[AsyncUringStream] = []

    def make(engine: str = "uring", **options: int) -> AsyncUringStream:
        made.append(make_stream(engine, **options))
        return made[-1]

    yield make
    for one in made:
        one.ring_state.close()


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    return write(tmp_path / "f", 40_000)


@pytest.fixture
def fd(tmp_path: Path, data: bytes) -> Iterator[int]:
    made = os.open(tmp_path / "f", os.O_RDONLY)
    yield made
    os.close(made)


# ── every method ─────────────────────────────────────────────────────────────────────────────────────────────
def test_every_way_to_read(stream: AsyncUringStream, fd: int, data: bytes, tmp_path: Path) -> None:
    stream.ring_state.register_buffers([stream.buffer])
    stream.ring_state.register_files([-1, fd])
    with open(tmp_path / "f", "rb") as file:
        stream.submit_read_to_gpu(file, 100, 4096, 1)
    stream.submit_read_to_gpu_at(fd, 1, 1000, 9001)
    stream.submit_read_to_gpu_at_with_user_data(fd, 2, 7, 20_000, 2**64 - 1, Iovecs(1))
    stream.submit_read_fixed(fd, 5000, 4096, 3, 0)
    stream.submit_read_fixed_at(fd, 8192, 4097, 30_000, 0, 0)
    stream.submit_read_to_gpu_fixed_file(1, 3, 4096, 10)
    assert stream.inflight() == 6
    done, failures = finish(stream)
    assert failures == []
    assert sorted(c.user_data for c in done) == [0, 1, 3, 10, 9001, 2**64 - 1]
    assert {c.user_data: c.bytes for c in done}[2**64 - 1] == 7
    view = stream.buffer.view
    for offset, length, target in [
        (100, 4096, 4096),
        (1, 1000, 9001),
        (2, 7, 20_000),
        (5000, 4096, 12_288),
        (8192, 4097, 30_000),
        (3, 4096, 40_960),
    ]:
        assert view[target : target + length] == data[offset : offset + length]
    assert stream.tail.load() == 6
    assert stream.inflight() == 0
    told = stream.telemetry()
    assert (told.registered_reads, told.iovec_reads, told.completed_bytes) == (2, 4, 4096 * 3 + 1000 + 7 + 4097)
    assert told.problems() == ["not all on one path: registered 2, iovec 4"]


def test_public_names() -> None:
    for name in uring_actors.__all__:
        assert getattr(uring_actors, name).__name__ == name or name == "scan"
    methods = {
        "replace_buffer",
        "submit_read_to_gpu",
        "submit_read_to_gpu_at",
        "submit_read_to_gpu_at_with_user_data",
        "submit_read_fixed",
        "submit_read_fixed_at",
        "submit_read_to_gpu_fixed_file",
        "submit_nvme_passthrough",
        "flush_submissions",
        "poll",
        "completions",
        "wait_for_completion",
        "inflight",
    }
    assert methods <= set(vars(AsyncUringStream))
    with pytest.raises(AttributeError):
        _ = uring_actors.nothing


def test_the_queue_is_bounded(stream: AsyncUringStream, fd: int) -> None:
    for i in range(8):
        stream.submit_read_to_gpu(fd, 0, 16, i)
    with pytest.raises(QueueFull, match="submission queue") as caught:
        stream.submit_read_to_gpu(fd, 0, 16, 9)
    assert "oll" in (caught.value.fix or "")
    stream.flush_submissions()
    done, _ = finish(stream)
    assert len(done) == 8
    stream.submit_read_to_gpu(fd, 0, 16, 9)
    assert finish(stream)[1] == []


@pytest.mark.parametrize(
    ("length", "target"), [(1, 1 << 16), (2, (1 << 16) - 1), (1 << 17, 0), (1, -1), (1 << 40, 1 << 40), (16, 1 << 70)]
)
def test_ranges_outside_the_buffer(stream: AsyncUringStream, fd: int, length: int, target: int) -> None:
    for submit in (
        lambda: stream.submit_read_to_gpu_at(fd, 0, length, target),
        lambda: stream.submit_read_to_gpu_at_with_user_data(fd, 0, length, target, 5),
        lambda: stream.submit_read_fixed_at(fd, 0, length, target, 0, 5),
    ):
        with pytest.raises(QueueFull, match="mapped buffer") as caught:
            submit()
        assert caught.value.queue == "mapped buffer"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert stream.inflight() == 0
    assert stream.poll() == 0


def test_chunks_outside_the_buffer(stream: AsyncUringStream, fd: int) -> None:
    stream.ring_state.register_files([fd])
    for chunk in (-1, 16, 1 << 60):
        with pytest.raises(QueueFull, match="mapped buffer"):
            stream.submit_read_to_gpu(fd, 0, 4096, chunk)
        with pytest.raises(QueueFull, match="mapped buffer"):
            stream.submit_read_fixed(fd, 0, 4096, chunk, 0)
        with pytest.raises(QueueFull, match="mapped buffer"):
            stream.submit_read_to_gpu_fixed_file(0, 0, 4096, chunk)
    stream.ring_state.update_file(0, -1)  # the refused ones hold nothing


def test_iovec_storage_runs_out(stream: AsyncUringStream, fd: int, pipe: Pipe, data: bytes) -> None:
    storage = Iovecs(2)
    stream.submit_read_to_gpu(fd, 0, 100, 0, storage)
    stream.submit_read_to_gpu(pipe.reader, 0, 3, 2000, storage)
    for none in (storage, Iovecs(0), []):
        with pytest.raises(QueueFull, match="iovec storage"):
            stream.submit_read_to_gpu(fd, 0, 100, 2, none)  # type: ignore[arg-type]
    with pytest.raises(OptionError):
        stream.submit_read_to_gpu(fd, 0, 100, 2, 7)  # type: ignore[arg-type]
    gone = weakref.ref(storage)
    del storage, none
    gc.collect()
    assert gone() is not None  # the kernel may yet look at it
    pipe.feed(b"abc")
    assert len(finish(stream)[0]) == 2
    gc.collect()
    assert gone() is None
    assert stream.buffer.view[:100] == data[:100]


@pytest.mark.parametrize("bad", [(-1, 10, 0), (2**63 - 5, 10, 0), (0, 0, 0), (0, -5, 0), (0, 10, -1), (0, 10, 2**64)])
def test_senseless_numbers(stream: AsyncUringStream, fd: int, bad: tuple[int, int, int]) -> None:
    offset, length, user_data = bad
    with pytest.raises(OptionError):
        stream.submit_read_to_gpu_at_with_user_data(fd, offset, length, 0, user_data)
    with pytest.raises(OptionError):
        stream.submit_read_fixed_at(fd, offset, length, 0, 0, user_data)
    with pytest.raises(OptionError):
        stream.submit_read_fixed_at(fd, 0, 1, 0, -1, 0)


def test_descriptors_that_are_none(stream: AsyncUringStream) -> None:
    with pytest.raises(IoUringSyscall) as caught:
        stream.submit_read_to_gpu(12345, 0, 10, 0)
    assert caught.value.errno == errno.EBADF
    assert stream.inflight() == 0


# ── the named faults ─────────────────────────────────────────────────────────────────────────────────────────
def test_completions_out_of_order(stream: AsyncUringStream, fd: int, pipe: Pipe, data: bytes) -> None:
    """A read that takes long, first in a batch of quick ones: each is paired by its user_data."""
    stream.submit_read_to_gpu_at_with_user_data(pipe.reader, 0, 4, 60_000, 999)
    for i in range(5):
        stream.submit_read_to_gpu_at_with_user_data(fd, i * 4096, 4096, i * 4096, i)
    order = []
    while len(order) < 5:
        stream.wait_for_completion(20)
        stream.poll()
        order += [c.user_data for c in stream.completions()]
    assert sorted(order) == list(range(5))
    assert stream.tail.load() == 5
    assert stream.inflight() == 1
    pipe.feed(b"last")
    done, _ = finish(stream)
    assert [(c.user_data, c.bytes) for c in done] == [(999, 4)]
    assert stream.buffer.view[60_000:60_004] == b"last"
    assert stream.buffer.view[:20_480] == data[:20_480]


def test_short_reads_are_read_on(stream: AsyncUringStream, pipe: Pipe) -> None:
    stream.submit_read_to_gpu_at(pipe.reader, 0, 10, 5)
    for piece in (b"abc", b"d", b"efgh"):
        pipe.feed(piece)
        for _ in range(20):
            assert stream.poll() == 0
            time.sleep(0.001)
        assert stream.inflight() == 1
        assert stream.tail.load() == 0
    pipe.feed(b"ij")
    done, _ = finish(stream)
    assert [(c.bytes, c.ended) for c in done] == [(10, False)]
    assert stream.buffer.view[5:15] == b"abcdefghij"
    assert stream.telemetry().continuations >= 1
    assert stream.telemetry().problems("iovec") == []


def test_a_short_read_at_the_end_says_so(stream: AsyncUringStream, fd: int, pipe: Pipe, data: bytes) -> None:
    stream.submit_read_to_gpu_at_with_user_data(fd, 39_000, 4096, 0, 1)
    stream.submit_read_to_gpu_at_with_user_data(fd, 40_000, 4096, 8192, 2)
    stream.submit_read_to_gpu_at_with_user_data(pipe.reader, 0, 10, 20_000, 3)
    pipe.feed(b"half")
    pipe.end()
    done, failures = finish(stream)
    assert failures == []
    assert sorted((c.user_data, c.bytes, c.ended) for c in done) == [(1, 1000, True), (2, 0, True), (3, 4, True)]
    assert stream.buffer.view[:1000] == data[39_000:]
    assert stream.buffer.view[20_000:20_004] == b"half"
    assert stream.telemetry().past_end_bytes == 3096 + 4096 + 6
    assert stream.telemetry().problems() == []


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 8192, 9000])
def test_the_end_of_a_file_read_directly(stream: AsyncUringStream, tmp_path: Path, size: int) -> None:
    data = write(tmp_path / "d", size)
    try:
        fd = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    stream.submit_read_to_gpu(fd, 0, 16_384, 1)
    stream.submit_read_to_gpu_at(fd, 0, 100, 5)  # not aligned
    os.close(fd)
    done, failures = finish(stream)
    good = [c for c in done if c.error is None and c.user_data == 1]
    assert [(c.bytes, c.ended) for c in good] == [(size, True)]
    assert stream.buffer.view[16_384 : 16_384 + size] == data
    for error in failures:  # some file systems do it all the same
        assert error.errno == errno.EINVAL
        assert "O_DIRECT" in (error.fix or "")


def forbid_waiting(stream: AsyncUringStream) -> None:
    """Make the entry that was written last one with RWF_NOWAIT: EAGAIN where the read would have to wait."""
    ring = stream.ring_state
    assert isinstance(ring, IoUringState)
    last = (int(ring.queue[queue.TAIL]) - 1) & int(ring.queue[queue.SQ_MASK])
    ctypes.c_uint32.from_address(ring.addresses.sqes + last * 64 + kernel.SQE_RW_FLAGS).value = os.RWF_NOWAIT


def test_eagain_is_retried(open_stream: MakeStream, pipe: Pipe) -> None:
    stream = open_stream()
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    forbid_waiting(stream)
    assert stream.poll() == 0
    stream.poll()
    assert stream.telemetry().retries == 1
    pipe.feed(b"here")
    done, failures = finish(stream)
    assert (failures, [c.bytes for c in done]) == ([], [4])
    assert stream.tail.load() == 1


def test_eagain_is_retried_with_a_bound(open_stream: MakeStream, pipe: Pipe) -> None:
    stream = open_stream()
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    for _ in range(9):
        assert stream.telemetry().failed == 0
        forbid_waiting(stream)
        stream._flight.engine.submit()
        stream._flight.engine.reap()
    with pytest.raises(IoUringSyscall) as caught:
        stream.poll()
    assert caught.value.errno == errno.EAGAIN
    assert "nine times" in str(caught.value)
    assert stream.completions()[0].error is caught.value
    assert stream.telemetry().retries == 8


def test_eagain_is_retried_with_a_bound_through_liburing(
    open_stream: MakeStream, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream("liburing")
    library = stream.ring_state._binding  # type: ignore[attr-defined]
    real = library.io_uring_prep_readv
    monkeypatch.setattr(library, "io_uring_prep_readv", lambda s, f, v, o, _: real(s, f, v, o, os.RWF_NOWAIT))
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    (error,) = finish(stream)[1]
    assert error.errno == errno.EAGAIN
    assert stream.telemetry().retries == 8


@pytest.mark.parametrize("number", range(1, 134))
def test_what_passes_is_retried_eight_times_and_nothing_else_is(number: int) -> None:
    table = Requests(2)
    fields_ = (kernel.OP_READV, 3, 0, 0, 4096, 100, 0, 0, 0, 7)
    row = requests.begin(table.rows, table.state, table.counters, *fields_, -1)
    tries = 0
    while not requests.settle(table.rows, table.state, table.counters, row, -number):
        tries += 1
    passing = (errno.EAGAIN, errno.EINTR, errno.ECANCELED)
    assert tries == (8 if number in passing else 0)
    assert table.rows[row, requests.R_ERRNO] == number
    # and after some retries it may yet succeed
    row = requests.begin(table.rows, table.state, table.counters, *fields_, -1)
    if number in passing:
        assert not requests.settle(table.rows, table.state, table.counters, row, -number)
    assert requests.settle(table.rows, table.state, table.counters, row, 100)
    assert table.rows[row, requests.R_ERRNO] == 0


def test_failures_come_one_for_each_poll(stream: AsyncUringStream, fd: int, tmp_path: Path, data: bytes) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    for i in range(6):
        stream.submit_read_to_gpu_at_with_user_data(directory if i in (1, 4) else fd, i * 10, 4096, i * 4096, i)
    os.close(directory)
    while stream.inflight():
        stream.wait_for_completion(20)
        time.sleep(0.01)
        caught = []
        try:
            stream.poll()
        except IoUringSyscall as error:
            caught.append(error)
    for _ in range(2 - len(caught)):
        with pytest.raises(IoUringSyscall) as info:
            stream.poll()
        caught.append(info.value)
    assert stream.poll() == 0
    assert [e.errno for e in caught] == [errno.EISDIR] * 2
    assert all(e.path == os.fsencode(tmp_path) for e in caught)
    assert {e.offset for e in caught} == {10, 40}
    assert stream.tail.load() == 4
    done = stream.completions()
    assert stream.completions() == []
    assert sorted(c.user_data for c in done if c.error) == [1, 4]
    for c in done:
        if not c.error:
            target = c.user_data * 4096
            assert stream.buffer.view[target : target + 4096] == data[c.user_data * 10 : c.user_data * 10 + 4096]
    twin = pickle.loads(pickle.dumps(caught[0]))
    assert (twin.path, twin.offset, twin.errno, twin.syscall) == (
        caught[0].path,
        caught[0].offset,
        errno.EISDIR,
        "read",
    )


def test_read_fixed_is_read_fixed(stream: AsyncUringStream, fd: int, data: bytes) -> None:
    """The kernel refuses what is not registered; plain READ would not look."""
    stream.submit_read_fixed(fd, 0, 4096, 0, 0)  # nothing is registered
    assert [e.errno for e in finish(stream)[1]] == [errno.EFAULT]
    stream.ring_state.register_buffers([stream.buffer.sub_region(8192, 8192)])
    stream.submit_read_fixed(fd, 0, 4096, 2, 0)
    assert finish(stream)[1] == []
    assert stream.buffer.view[8192:12_288] == data[:4096]
    for chunk, index in [(0, 0), (4, 0), (2, 1), (2, 77)]:
        stream.submit_read_fixed(fd, 0, 4096, chunk, index)
        (error,) = finish(stream)[1]
        assert error.errno == errno.EFAULT
        assert "register" in (error.fix or "")
    assert stream.buffer.view[:8192] == bytes(8192)


def test_the_entry_says_opcode_4(open_stream: MakeStream, fd: int) -> None:
    stream = open_stream()
    ring = stream.ring_state
    assert isinstance(ring, IoUringState)
    stream.submit_read_fixed(fd, 0, 16, 0, 3)
    entry = (ctypes.c_uint8 * 64).from_address(ring.addresses.sqes)
    assert entry[kernel.SQE_OPCODE] == 4
    assert entry[kernel.SQE_BUF_INDEX] == 3
    assert int.from_bytes(bytes(entry[16:24]), "little") == stream.buffer.address
    finish(stream)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────
def test_the_file_is_kept_though_its_number_is_given_away(
    stream: AsyncUringStream, tmp_path: Path, data: bytes, pipe: Pipe
) -> None:
    (tmp_path / "other").write_bytes(b"x" * 4096)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    slow = os.dup(pipe.reader)
    stream.submit_read_to_gpu(fd, 0, 4096, 0)
    stream.submit_read_to_gpu(slow, 0, 8, 1024)
    other = os.open(tmp_path / "other", os.O_RDONLY)
    os.dup2(other, fd)
    os.dup2(other, slow)
    pipe.feed(b"1234")
    stream.poll()
    pipe.feed(b"5678")  # read on from the pipe, not from the file that has its number now
    assert finish(stream)[1] == []
    assert stream.buffer.view[:4096] == data[:4096]
    assert stream.buffer.view[8192:8200] == b"12345678"
    for number in (fd, slow, other):
        os.close(number)


def test_descriptors_are_given_back(stream: AsyncUringStream, fd: int, tmp_path: Path) -> None:
    stream.poll()
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        stream.submit_read_to_gpu(fd, 0, 64, 0)
        finish(stream)
    stream.read_extents(fd, [0, 64], 64, 0, path="iovec")
    assert os.listdir("/proc/self/fd") == before


def test_a_registered_file_in_use_is_not_replaced(stream: AsyncUringStream, pipe: Pipe, fd: int) -> None:
    stream.ring_state.register_files([pipe.reader, -1])
    stream.submit_read_to_gpu_fixed_file(0, 0, 4, 0)
    stream.ring_state.update_file(1, fd)
    with pytest.raises(QueueFull, match="place 0"):
        stream.ring_state.update_file(0, fd)
    pipe.feed(b"abcd")
    finish(stream)
    stream.ring_state.update_file(0, -1)
    stream.submit_read_to_gpu_fixed_file(0, 0, 4, 0)
    (error,) = finish(stream)[1]
    assert error.errno == errno.EBADF
    assert "registered file 0" in str(error)
    with pytest.raises(QueueFull, match="registered file"):
        stream.submit_read_to_gpu_fixed_file(2, 0, 4, 0)
    with pytest.raises(OptionError):
        stream.ring_state.update_file(2, fd)
    with pytest.raises(IoUringSyscall):
        stream.ring_state.update_file(1, 12345)


def test_reads_in_flight_keep_their_buffer(stream: AsyncUringStream, pipe: Pipe, fd: int, data: bytes) -> None:
    first = bytearray(4096)
    stream.replace_buffer(GpuMappedBuffer.from_buffer(first))
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 7)
    stream.replace_buffer(GpuMappedBuffer.anonymous(4096))
    stream.submit_read_to_gpu(fd, 0, 4096, 0)
    with pytest.raises(BufferError):
        first.extend(b"more")  # it may not move
    pipe.feed(b"kept")
    finish(stream)
    assert first[28:32] == b"kept"
    assert stream.buffer.view == data[:4096]
    first.extend(b"now")


def test_waiting(stream: AsyncUringStream, pipe: Pipe) -> None:
    stream.wait_for_completion()  # nothing is in flight: no reason to wait
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    with pytest.raises(DeadlineExceeded, match="1 reads"):
        stream.wait_for_completion(0.05)
    threading.Timer(0.1, pipe.feed, [b"abcd"]).start()
    stream.wait_for_completion(20)
    assert stream.poll() == 1


def test_flushing_wakes_a_poller_that_sleeps(open_stream: MakeStream, fd: int, data: bytes) -> None:
    stream = open_stream("sqpoll")
    for i in range(3):
        time.sleep(0.06)
        stream.submit_read_to_gpu(fd, 0, 64, i)
        stream.flush_submissions()
        deadline = time.monotonic() + 10
        while stream.buffer.view[i * 64 : i * 64 + 64] != data[:64]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert finish(stream)[1] == []


# ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_closing_cancels_what_does_not_come(stream: AsyncUringStream, pipe: Pipe, fd: int) -> None:
    ring = stream.ring_state
    for i in range(4):
        stream.submit_read_to_gpu(pipe.reader if i % 2 else fd, 0, 16, i)
    began = time.monotonic()
    stream.close()
    stream.close()
    assert time.monotonic() - began < 20
    assert stream.inflight() == 0
    for call in (stream.poll, stream.flush_submissions, lambda: stream.submit_read_to_gpu(fd, 0, 1, 0)):
        with pytest.raises(PipelineError, match="closed"):
            call()
    with AsyncUringStream(ring, GpuMappedBuffer.anonymous(64), AtomicTail()) as after:  # the ring is free again
        after.submit_read_to_gpu(fd, 0, 64, 0)
        assert len(finish(after)[0]) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_dropping_a_stream_with_reads_in_flight(engine: str, pipe: Pipe, fd: int) -> None:
    stream = make_stream(engine)
    memory = np.zeros(4096, np.uint8)
    gone = weakref.ref(memory)
    stream.replace_buffer(GpuMappedBuffer.from_buffer(memory))
    del memory
    stream.submit_read_to_gpu(pipe.reader, 0, 16, 0)
    stream.submit_read_to_gpu(fd, 0, 16, 1)
    stream.flush_submissions()
    assert gone() is not None
    before = len(os.listdir("/proc/self/fd"))
    del stream
    gc.collect()
    assert gone() is None
    assert len(os.listdir("/proc/self/fd")) < before  # the ring and the duplicates are closed


def test_one_stream_a_ring(stream: AsyncUringStream) -> None:
    with pytest.raises(PipelineError, match="owns"):
        AsyncUringStream(stream.ring_state, GpuMappedBuffer.anonymous(64), AtomicTail())
    stream.close()
    stream.ring_state.close()
    with pytest.raises(PipelineError, match="closed"):
        AsyncUringStream(stream.ring_state, GpuMappedBuffer.anonymous(64), AtomicTail())


def test_closing_the_ring_closes_its_stream(stream: AsyncUringStream, pipe: Pipe) -> None:
    stream.submit_read_to_gpu(pipe.reader, 0, 16, 0)
    stream.ring_state.close()
    with pytest.raises(PipelineError, match="closed"):
        stream.poll()


def in_thread(function: object) -> list[BaseException]:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            function()  # type: ignore[operator]
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_a_stream_belongs_to_its_first_thread(stream: AsyncUringStream, pipe: Pipe, fd: int) -> None:
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    stream.poll()
    for call in (stream.poll, stream.flush_submissions, lambda: stream.submit_read_to_gpu(fd, 0, 4, 1)):
        (error,) = in_thread(call)
        assert isinstance(error, PipelineError)
        assert "thread" in str(error)
    (error,) = in_thread(lambda: stream.close(0.05))
    assert isinstance(error, DeadlineExceeded)
    stream.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_whose_thread_has_ended(engine: str, fd: int) -> None:
    """Nobody else may cancel its reads; those that end by themselves are seen."""
    stream = make_stream(engine)
    assert in_thread(lambda: [stream.submit_read_to_gpu(fd, 0, 4, i) for i in range(3)]) == []
    stream.close(10)  # they were never handed over
    with pytest.raises(PipelineError, match="owns"):
        AsyncUringStream(stream.ring_state, stream.buffer, AtomicTail())  # it would submit them
    stream.ring_state.close()
    stream = make_stream(engine)
    call = lambda: (stream.submit_read_to_gpu(fd, 0, 4, 0), stream.flush_submissions())  # noqa: E731
    assert in_thread(call) == []
    stream.close(10)
    stream.ring_state.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_can_not_be_ended_is_left_behind(engine: str, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped by another thread while its own lives: memory and ring stay for ever."""
    monkeypatch.setattr(flight, "_LAST_SECONDS", 0.05)
    monkeypatch.setattr(flight, "_LEFT_BEHIND", left := [])
    box = [make_stream(engine)]
    box[0].submit_read_to_gpu(pipe.reader, 0, 4, 0)
    box[0].poll()
    memory = box[0].buffer.view
    assert in_thread(box.clear) == []
    gc.collect()
    assert len(left) == 1
    pipe.feed(b"late")
    left[0].close(10)  # its own thread can
    assert memory[:4] in (b"late", bytes(4))


def test_a_forked_child_disturbs_nothing() -> None:
    text = child("""
        import gc, os, sys
        from tests.streams import Pipe, finish, make_stream
        pipe, stream = Pipe(), make_stream("uring")
        stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
        stream.poll()
        pid = os.fork()
        if pid == 0:
            try:
                stream.poll()
            except Exception as error:
                sys.stdout.write(type(error).__name__ + " ")
            del stream
            gc.collect()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        pipe.feed(b"abcd")
        print(len(finish(stream)[0]), bytes(stream.buffer.view[:4]))
    """)
    assert text == "PipelineError 1 b'abcd'"


def test_the_interpreter_may_end_with_reads_in_flight() -> None:
    assert child("""
        from tests.streams import Pipe, make_stream
        pipe = Pipe()
        streams = [make_stream(engine) for engine in ("uring", "liburing")]
        for stream in streams:
            stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
            stream.flush_submissions()
        print("bye")
    """).endswith("bye")


# ── in bulk ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("path", ["registered", "iovec", "plain"])
def test_bulk(stream: AsyncUringStream, fd: int, data: bytes, path: str, tmp_path: Path) -> None:
    stream.ring_state.register_buffers([stream.buffer])
    offsets = np.arange(60) * 1000
    read, errors = stream.read_extents(fd, offsets, 1000, offsets, path=path)
    assert not errors.any()
    assert read.tolist() == [1000] * 40 + [0] * 20
    assert stream.buffer.view[:40_000] == data
    assert stream.tail.load() == 60
    directory = os.open(tmp_path, os.O_RDONLY)
    read, errors = stream.read_extents([fd, directory, fd], 5, [10, 20, 30], [0, 100, 200], path=path, depth=2)
    os.close(directory)
    assert read.tolist() == [10, 0, 30]
    assert errors.tolist() == [0, errno.EISDIR, 0]
    assert stream.buffer.view[200:230] == data[5:35]
    assert stream.tail.load() == 62
    assert stream.completions() == []
    stream.ring_state.register_files([-1, fd])
    read, errors = stream.read_extents([1, 0], 0, 100, [0, 200], path=path, registered_files=True)
    assert (read.tolist(), errors.tolist()) == ([100, 0], [0, errno.EBADF])
    stream.ring_state.update_file(1, -1)
    assert stream.telemetry().submitted_reads == 65


def test_bulk_refuses(stream: AsyncUringStream, fd: int, pipe: Pipe) -> None:
    size = len(stream.buffer)
    for offsets, lengths, targets in [(0, 1, [0, size]), (0, size + 1, 0), (0, 1, -1), (0, 2**62, 2**62)]:
        with pytest.raises(QueueFull, match="mapped buffer"):
            stream.read_extents(fd, offsets, lengths, targets, path="plain")
    for bad in [(fd, -1, 1, 0), (fd, 0, 0, 0), (fd, [1, 2], [1, 2, 3], 0), (fd, 2**63 - 1, 10, 0), ("x", 0, 1, 0)]:
        with pytest.raises(OptionError):
            stream.read_extents(*bad, path="plain")  # type: ignore[arg-type]
    for options in ({"path": "other"}, {"path": "plain", "buf_index": -1}):
        with pytest.raises(OptionError):
            stream.read_extents(fd, 0, 1, 0, **options)  # type: ignore[arg-type]
    stream.submit_read_to_gpu(pipe.reader, 0, 4, 0)
    with pytest.raises(QueueFull, match="submission queue"):
        stream.read_extents(fd, 0, 1, 0, path="plain")


def test_an_interrupted_bulk_call_keeps_its_memory(
    open_stream: MakeStream, pipe: Pipe, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream()
    run, turns = stream._flight._settle_in, []
    stream.poll()
    engine = stream._flight.engine
    run = engine.run

    def interrupted(until_ns: int) -> None:
        run(min(until_ns, time.monotonic_ns() + 5_000_000))
        turns.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.read_extents([pipe.reader] * 3, 0, 4, [0, 4, 8], path="iovec")
    assert stream._flight.kept_for_bulk is not None
    assert stream.inflight() == 3
    monkeypatch.setattr(engine, "run", run)
    pipe.feed(b"abcdefghijkl")
    deadline = time.monotonic() + 10
    while stream.inflight() and time.monotonic() < deadline:
        stream.poll()
    assert stream.inflight() == 0
    assert sorted(bytes(stream.buffer.view[:12])) == sorted(b"abcdefghijkl")
    read, errors = stream.read_extents(fd, 0, 4, 0, path="iovec")
    assert (read.tolist(), errors.tolist()) == ([4], [0])


# ── NVMe commands ────────────────────────────────────────────────────────────────────────────────────────────
NAMESPACE = nvme.NvmeNamespace("ng0n1", nsid=1, block_size=512, blocks=1000, max_transfer=1 << 19, max_segments=127)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncUringStream]:
    """A stream that can send commands, to /dev/null: it answers 0 to every one."""
    make_ring("uring").close()
    monkeypatch.setattr(nvme, "namespace_of", lambda fd: NAMESPACE)
    ring = IoUringState(8, sqe128=True, cqe32=True)
    yield AsyncUringStream(ring, GpuMappedBuffer.anonymous(8192), AtomicTail())
    ring.close()


def test_commands(commands: AsyncUringStream, fd: int, data: bytes) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    base = commands.buffer.address
    commands.submit_nvme_passthrough(null, 2**64 - 3, nvme.encode_read(1, 8, 4, 512, base + 2048))
    commands.submit_read_to_gpu(fd, 0, 1024, 1)  # a read on the same ring of large entries
    done, failures = finish(commands)
    assert failures == []
    assert sorted((c.user_data, c.bytes) for c in done) == [(1, 1024), (2**64 - 3, 2048)]
    assert commands.buffer.view[1024:2048] == data[:1024]
    assert commands.telemetry().passthrough_reads == 1
    for size in (0, 63, 65, 72, 128):
        with pytest.raises(QueueFull):
            commands.submit_nvme_passthrough(null, 0, bytes(size))
    for refused in [
        nvme.encode_read(1, 0, 17, 512, base),
        nvme.encode_read(1, 0, 1, 512, base - 512),
        nvme.encode_read(1, 0, 1, 512, base + 8192),
        nvme.encode_read(2, 0, 1, 512, base),
        nvme.NvmeCommand(nsid=1, address=base, data_length=512, cdw12=3).encode(),
        nvme.NvmeCommand(opcode=1, nsid=1, address=base, data_length=512).encode(),
    ]:
        with pytest.raises(NvmeCommandRefused):
            commands.submit_nvme_passthrough(null, 0, refused)
    os.close(null)
    assert commands.inflight() == 0


def test_what_a_drive_answers(commands: AsyncUringStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status of the drive's own is positive, and no byte count; errno as ever."""
    real = requests.settle
    for answer, kind in [(0x4080, NvmeStatus), (0x281, NvmeStatus), (-errno.ENOTTY, IoUringSyscall)]:
        table = commands._flight.table
        fields_ = (kernel.OP_URING_CMD, 3, 0, nvme.URING_CMD_IO, 0, 512, 0, 0, 0, 9)
        row = requests.begin(table.rows, table.state, table.counters, *fields_, -1)
        command = nvme.parse_command(nvme.encode_read(1, 7, 1, 512, 0))
        commands._flight.kept[row] = (None, None, None, command, NAMESPACE)
        assert real(table.rows, table.state, table.counters, row, answer)
        requests.finish(table.rows, table.state, table.counters, table.finished, table.extents, row)
        with pytest.raises(kind) as caught:
            commands.poll()
        assert caught.value.offset == 7 * 512
        assert [c.bytes for c in commands.completions()] == [0]


def test_commands_switched_off(
    stream: AsyncUringStream, commands: AsyncUringStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = nvme.encode_read(1, 0, 1, 512, stream.buffer.address)
    with pytest.raises(NvmePassthroughDisabled, match="set-up"):
        stream.submit_nvme_passthrough(0, 0, command)
    monkeypatch.setenv(nvme.SWITCH, "0")
    with pytest.raises(NvmePassthroughDisabled, match=nvme.SWITCH):
        commands.submit_nvme_passthrough(0, 0, command)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_buffers_have_bounds() -> None:
    memory = bytearray(content(100))
    buffer = GpuMappedBuffer.from_buffer(memory)
    part = buffer.sub_region(10, 50).sub_region(5, 45)
    assert part.view == memory[15:60]
    assert part.address == buffer.address + 15
    assert len(part) == 45
    for offset, length in [(-1, 5), (0, 101), (100, 1), (50, 0), (1, 100), (0, -1)]:
        with pytest.raises(OptionError):
            buffer.sub_region(offset, length)
        assert not buffer.holds(offset, length)
    for bad in (b"read only", bytearray(), 5, np.zeros((4, 4))[:, 1]):
        with pytest.raises(OptionError):
            GpuMappedBuffer.from_buffer(bad)
    with pytest.raises(OptionError):
        GpuMappedBuffer.anonymous(0)
    assert GpuMappedBuffer.anonymous(5).address % 4096 == 0


def test_tails() -> None:
    memory = bytearray(16)
    tail = AtomicTail(GpuMappedBuffer.from_buffer(memory), 8)
    tail.add(2**32 - 1)
    tail.add(3)
    assert tail.load() == 2
    assert memory[8:12] == b"\2\0\0\0"
    assert memory[12:] == bytes(4)
    with pytest.raises(OptionError):
        AtomicTail(GpuMappedBuffer.from_buffer(memory), 14)
    with pytest.raises(OptionError):
        AtomicTail(GpuMappedBuffer.anonymous(64), 2)


def test_telemetry() -> None:
    names = [f.name for f in fields(IngestTelemetry)]
    order = [
        requests.T_SUBMITTED_READS,
        requests.T_SUBMITTED_BYTES,
        requests.T_COMPLETED_READS,
        requests.T_COMPLETED_BYTES,
        requests.T_PAST_END,
        requests.T_REGISTERED,
        requests.T_IOVEC,
        requests.T_PLAIN,
        requests.T_PASSTHROUGH,
        requests.T_CONTINUATIONS,
        requests.T_RETRIES,
        requests.T_FAILED,
        requests.T_BOUNCE,
    ]
    assert order == list(range(len(names))) == list(range(requests.T_WORDS))
    good = IngestTelemetry(2, 200, 2, 150, 50, registered_reads=2)
    good.validate_completed_zero_copy("registered")
    (good + good).validate_completed_zero_copy()
    for bad, says in [
        (IngestTelemetry(2, 200, 1, 100, registered_reads=2), "1 reads are still in flight"),
        (IngestTelemetry(2, 200, 1, 100, registered_reads=2, failed=1), "1 reads failed"),
        (IngestTelemetry(2, 200, 2, 150, registered_reads=2), "50 bytes of 200 never came"),
        (IngestTelemetry(2, 200, 2, 200, registered_reads=2, cpu_bounce_bytes=7), "7 bytes were copied"),
        (IngestTelemetry(2, 200, 2, 200, registered_reads=1, iovec_reads=1), "registered path"),
        (IngestTelemetry(2, 200, 2, 200, iovec_reads=2), "registered path: iovec 2"),
        (IngestTelemetry(2, 200, 2, 200), "don't add up"),
    ]:
        with pytest.raises(PipelineError, match=says):
            bad.validate_completed_zero_copy("registered")
    with pytest.raises(OptionError):
        good.problems("bounced")

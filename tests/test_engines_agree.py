"""The two engines held against each other: the same operations in the same order give the same bytes, completions
and errors, whatever they are."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from tests.streams import Pipe, content, finish, make_ring, mostly
from uring_actors.errors import UringActorsError
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.ring import probe
from uring_actors.uring.stream import AsyncUringStream, Completion, Iovecs
from uring_actors.uring.tail import AtomicTail

SIZE = 1 << 15
ENTRIES = 8
PAIR = ("uring", "liburing")
SIZES = (0, 1, 4095, 4096, 20_000)

offsets = mostly(st.integers(0, 21_000), -1, 2**63 - 1, 2**63 - 10, 2**64)
lengths = mostly(st.integers(1, 3000), 0, -1, SIZE, SIZE + 1, 2**31, 2**33)
targets = mostly(st.integers(0, SIZE - 3000), SIZE - 1, SIZE, -1, 2**40, -(2**40))
chunks = mostly(st.integers(0, 8), -1, 40, 2**50)
labels = mostly(st.integers(0, 100), 2**64 - 1, 2**64, 2**63, -1)
files = st.integers(0, len(SIZES) + 1)  # the last two: a directory, and a descriptor that is none
indices = mostly(st.integers(0, 1), -1, 2, 4)


def outcome(call: Any) -> tuple[Any, ...]:
    """What a call gave, or what it raised, without what differs between two runs."""
    try:
        return ("gave", call())
    except UringActorsError as error:
        return (
            type(error).__name__,
            error.errno,
            error.path,
            error.offset,
            getattr(error, "queue", None),
            str(error),
        )


def described(done: list[Completion]) -> list[tuple[Any, ...]]:
    """Completions, in an order that doesn't depend on chance."""
    return sorted(
        (c.user_data, c.bytes, c.ended, str(c.error), c.error.errno if c.error is not None else 0) for c in done
    )


class Both(RuleBasedStateMachine):
    """Two streams of different engines, told the same. Where two reads in flight would write to the same bytes, what
    is in flight is finished first: which of them comes last is chance."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.fds = [os.open(self.directory / str(size), os.O_RDONLY) for size in SIZES]
        self.fds += [os.open(self.directory, os.O_RDONLY), 54_321]
        self.streams = [
            AsyncUringStream(make_ring(engine, ENTRIES), GpuMappedBuffer.anonymous(SIZE), AtomicTail())
            for engine in PAIR
        ]
        self.iovecs = [Iovecs(2) for _ in PAIR]
        self.ranges: list[tuple[int, int]] = []

    def teardown(self) -> None:
        self.finish()
        for stream in self.streams:
            stream.ring_state.close()
        for fd in self.fds[:-1]:
            os.close(fd)

    @initialize(part=st.integers(1, 3), registered=st.lists(st.integers(-1, len(SIZES)), min_size=1, max_size=3))
    def register(self, part: int, registered: list[int]) -> None:
        for stream in self.streams:
            stream.ring_state.register_buffers([stream.buffer.sub_region(0, SIZE // part), stream.buffer])
            stream.ring_state.register_files([-1 if i < 0 else self.fds[i] for i in registered])

    def both(self, call: Any) -> tuple[Any, ...]:
        first, second = (outcome(lambda s=s, i=i: call(s, i)) for s, i in zip(self.streams, self.iovecs, strict=True))
        assert first == second
        return first

    def submit(self, target: int, length: int, call: Any) -> None:
        if any(target < end and start < target + length for start, end in self.ranges):
            self.finish()
        if self.both(call)[0] == "gave":
            self.ranges.append((target, target + length))

    def finish(self) -> None:
        results = [finish(stream) for stream in self.streams]
        done, failures = zip(*results, strict=True)
        assert described(done[0]) == described(done[1])
        assert sorted(map(str, failures[0])) == sorted(map(str, failures[1]))
        assert sorted(type(f).__name__ for f in failures[0]) == sorted(type(f).__name__ for f in failures[1])
        assert self.streams[0].buffer.view == self.streams[1].buffer.view
        assert self.streams[0].tail.load() == self.streams[1].tail.load()
        told = [stream.telemetry() for stream in self.streams]
        assert told[0] == told[1]
        self.ranges.clear()

    @rule(file=files, offset=offsets, length=lengths, chunk=chunks, own=st.booleans())
    def read(self, file: int, offset: int, length: int, chunk: int, own: bool) -> None:
        self.submit(
            chunk * length,
            length,
            lambda s, i: s.submit_read_to_gpu(self.fds[file], offset, length, chunk, i if own else None),
        )

    @rule(file=files, offset=offsets, length=lengths, to=targets)
    def read_at(self, file: int, offset: int, length: int, to: int) -> None:
        self.submit(to, length, lambda s, _: s.submit_read_to_gpu_at(self.fds[file], offset, length, to))

    @rule(file=files, offset=offsets, length=lengths, to=targets, label=labels)
    def read_labelled(self, file: int, offset: int, length: int, to: int, label: int) -> None:
        self.submit(
            to,
            length,
            lambda s, i: s.submit_read_to_gpu_at_with_user_data(self.fds[file], offset, length, to, label, i),
        )

    @rule(file=files, offset=offsets, length=lengths, chunk=chunks, buffer=indices)
    def read_fixed(self, file: int, offset: int, length: int, chunk: int, buffer: int) -> None:
        self.submit(
            chunk * length, length, lambda s, _: s.submit_read_fixed(self.fds[file], offset, length, chunk, buffer)
        )

    @rule(file=files, offset=offsets, length=lengths, to=targets, buffer=indices, label=labels)
    def read_fixed_at(self, file: int, offset: int, length: int, to: int, buffer: int, label: int) -> None:
        self.submit(
            to,
            length,
            lambda s, _: s.submit_read_fixed_at(self.fds[file], offset, length, to, buffer, label),
        )

    @rule(index=indices, offset=offsets, length=lengths, chunk=chunks)
    def read_fixed_file(self, index: int, offset: int, length: int, chunk: int) -> None:
        self.submit(
            chunk * length, length, lambda s, _: s.submit_read_to_gpu_fixed_file(index, offset, length, chunk)
        )

    @rule(pieces=st.lists(st.integers(1, 500), min_size=1, max_size=3), length=st.integers(1, 1200))
    def read_a_pipe(self, pieces: list[int], length: int) -> None:
        """Short reads, then the end."""
        self.finish()
        pipes = [Pipe() for _ in PAIR]
        for pipe, stream in zip(pipes, self.streams, strict=True):
            stream.submit_read_to_gpu_at_with_user_data(pipe.reader, 0, length, 100, 7)
            for n, piece in enumerate(pieces):
                stream.flush_submissions()
                pipe.feed(content(piece, n))
            pipe.end()
        results = [finish(stream) for stream in self.streams]
        assert described(results[0][0]) == described(results[1][0])
        assert results[0][0][0].bytes == min(sum(pieces), length)
        assert self.streams[0].buffer.view == self.streams[1].buffer.view
        self.drop_continuations()
        for pipe in pipes:
            pipe.close()

    def drop_continuations(self) -> None:
        """How often a pipe was read is chance."""
        for stream in self.streams:
            stream._flight.table.counters[9] = 0

    @rule(
        file=st.integers(0, len(SIZES)),
        offset=offsets,
        length=lengths,
        where=st.lists(targets, max_size=3, unique=True),
        path=st.sampled_from(["registered", "iovec"]),
        buffer=indices,
    )
    def read_in_bulk(self, file: int, offset: int, length: int, where: list[int], path: str, buffer: int) -> None:
        apart = sorted(where)
        if any(b - a < length for a, b in pairwise(apart)):
            return
        self.both(
            lambda s, _: (
                [
                    column.tolist()
                    for column in s.read_extents(
                        self.fds[file], offset, length, where, path=path, buf_index=buffer, depth=2
                    )
                ]
                if not self.ranges
                else None
            )
        )
        if not self.ranges:
            assert self.streams[0].buffer.view == self.streams[1].buffer.view

    @rule(index=indices, file=st.integers(-1, len(SIZES) + 1))
    def replace_file(self, index: int, file: int) -> None:
        self.finish()  # whether a read still uses the place is chance
        self.both(lambda s, _: s.ring_state.update_file(index, -1 if file < 0 else self.fds[file]))

    @rule()
    def replace_buffer(self) -> None:
        self.finish()
        for stream in self.streams:
            stream.replace_buffer(GpuMappedBuffer.anonymous(SIZE))

    @rule()
    def flush(self) -> None:
        self.both(lambda s, _: s.flush_submissions())

    @precondition(lambda self: self.ranges)
    @rule()
    def finish_all(self) -> None:
        self.finish()

    @invariant()
    def as_many_in_flight(self) -> None:
        assert self.streams[0].inflight() == self.streams[1].inflight()


@pytest.mark.hypothesis
@pytest.mark.skipif(not probe().available, reason=f"no io_uring here: {probe().error}")
def test_random_operations_agree() -> None:
    pytest.importorskip("liburing")
    with tempfile.TemporaryDirectory() as name:
        Both.directory = Path(name)
        for size in SIZES:
            (Both.directory / str(size)).write_bytes(content(size, size))
        Both.TestCase.settings = settings(
            max_examples=examples(40),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        Both.TestCase().runTest()

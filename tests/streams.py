"""What the tests of the stream, the pump and the engines share: rings of every kind, files of every kind."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from uring_actors.errors import UringActorsError
from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.ring import IoUringState, probe
from uring_actors.uring.state import RingState
from uring_actors.uring.stream import AsyncUringStream, Completion
from uring_actors.uring.tail import AtomicTail

ENGINES = ["uring", "sqpoll", "liburing"]
MakeStream = Callable[..., AsyncUringStream]


def make_ring(engine: str, entries: int = 8) -> RingState:
    """A ring of the engine; skips the test where it can't be had."""
    if not probe().available:
        pytest.skip(f"no io_uring here: {probe().error}")
    if engine != "liburing":
        return IoUringState(entries, sqpoll=engine == "sqpoll", sqpoll_idle_ms=20)
    pytest.importorskip("liburing")
    from uring_actors.uring.reference import LiburingState

    return LiburingState(entries)


def make_stream(engine: str, size: int = 1 << 16, entries: int = 8) -> AsyncUringStream:
    return AsyncUringStream(make_ring(engine, entries), GpuMappedBuffer.anonymous(size), AtomicTail())


def finish(stream: AsyncUringStream, seconds: float = 20) -> tuple[list[Completion], list[UringActorsError]]:
    """Poll until nothing is in flight and every failure was raised; all completions, all failures."""
    failures: list[UringActorsError] = []
    while True:
        if stream.inflight():
            stream.wait_for_completion(seconds)
        try:
            stream.poll()
        except UringActorsError as error:
            failures.append(error)
            continue
        if not stream.inflight():
            return stream.completions(), failures


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def write(path: Path, size: int, seed: int = 0) -> bytes:
    path.write_bytes(data := content(size, seed))
    return data


class Pipe:
    """A source that has bytes only when the test gives some: a read that takes as long as one likes."""

    def __init__(self, flags: int = 0) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | flags)

    def feed(self, data: bytes) -> None:
        os.write(self.writer, data)

    def end(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.end()
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


def mostly(usual: st.SearchStrategy[int], *odd: int) -> st.SearchStrategy[int]:
    """Nine times of ten what makes sense."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(odd) if n == 9 else usual)

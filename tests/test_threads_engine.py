"""The threads engine when something goes wrong in it, when nobody takes its rows, and when it is used many times."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import processes
from uring_actors import kernel_host, node, publisher, scanning
from uring_actors.errors import NodeFailed
from uring_actors.ops.match import operation
from uring_actors.uring.pread import PreadLane

LINE = b"a needle\n"
ROWS = 2_000_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "many"
    path.write_bytes(LINE * ROWS)
    return path


def start(paths: Any, **options: Any) -> ua.Scan:
    fixed = {"engine": "threads", "io_engine": "pread", "slot_bytes": 65536, "slots": 4}
    return ua.scan(paths, patterns=["needle"], **{**fixed, **options})


def usage() -> tuple[list[str], set[str]]:
    """Open descriptors, by what they are, and threads."""
    files = []
    for name in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the listing's own
            continue
    return sorted(files), {thread.name for thread in threading.enumerate()}


@pytest.fixture(autouse=True)
def nothing_left(many: Path) -> Iterator[None]:
    gc.collect()
    before = usage()
    yield
    gc.collect()
    processes.wait_until(lambda: usage() == before)


# ── a thread that dies ───────────────────────────────────────────────────────────────────────────────────────
def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError("on purpose")


DEATHS = [
    (PreadLane, "_slice", "reader of "),
    (publisher.Publisher, "_step", "publisher"),
    (kernel_host.KernelHost, "_step", "kernel host"),
    (operation.MatchWorker, "run", "kernel host"),
    (operation.MatchSettler, "settle", "kernel host"),
]
AT_ONCE = [(node.Reader, "_read_file", "reader of "), (operation.MatchSettler, "expect", "kernel host")]


@pytest.mark.parametrize(
    ("owner", "method", "role", "calls"),
    [(*death, calls) for death in DEATHS for calls in (0, 20)] + [(*death, 0) for death in AT_ONCE],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_a_thread_that_dies(
    many: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, role: str, calls: int
) -> None:
    real = getattr(owner, method)
    left = [calls]

    def dying(self: object, *args: object) -> object:
        left[0] -= 1
        return real(self, *args) if left[0] >= 0 else fail()

    monkeypatch.setattr(owner, method, dying)
    began = time.monotonic()
    with start(many) as scan:
        with pytest.raises(NodeFailed) as raised:
            list(scan)
        assert scan.stats.matches < ROWS
    assert raised.value.role.startswith(role)
    assert "ZeroDivisionError: on purpose" in str(raised.value)
    assert time.monotonic() - began < 30


def test_a_listing_that_dies(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(*_: object) -> Iterator[Any]:
        yield from ()
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(scanning, "listing", listing)
    with pytest.raises(ZeroDivisionError):
        start(many).to_table()


def test_a_start_that_fails_half_way(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever had been made is given back."""
    for owner, method in (
        (operation.Match, "make_settler"),
        (operation.Match, "make_worker"),
        (node.Reader, "start"),
        (publisher.Publisher, "start"),
        (node.NodeSpec, "make_reader"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            with pytest.raises(ZeroDivisionError):
                start(many)


# ── given up ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_interrupt_while_iterating(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does, in the wait for a batch and in the caller's own code."""
    scan = start(many)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_host.queue.Queue, "get", lambda *_, **__: interrupted(None))
    with pytest.raises(KeyboardInterrupt):
        list(scan)
    monkeypatch.undo()
    with start(many) as scan:
        batches = iter(scan)
        next(batches)
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


@pytest.mark.parametrize("io_engine", ["uring", "pread"])
@pytest.mark.parametrize("how", ["close", "drop", "leave"])
def test_a_scan_that_is_given_up(many: Path, how: str, io_engine: str, need_uring: Callable[[], None]) -> None:
    if io_engine == "uring":
        need_uring()
    scan = start(many, io_engine=io_engine)
    batches = iter(scan)
    next(batches)
    if how == "close":
        scan.close()
        assert list(batches) == [] or True
    elif how == "leave":
        with scan:
            pass
    del batches, scan


@pytest.mark.parametrize("io_engine", ["uring", "pread"])
def test_fifty_scans_leave_descriptors_and_threads_as_they_were(
    tmp_path: Path, io_engine: str, need_uring: Callable[[], None]
) -> None:
    if io_engine == "uring":
        need_uring()
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(LINE * i)
    before = usage()
    for i in range(50):
        scan = start(tmp_path, io_engine=io_engine, sqpoll="on" if i % 5 == 0 and io_engine == "uring" else "auto")
        if i % 10 == 3:
            scan.close()
        else:
            assert scan.to_table().num_rows == 190
    del scan
    gc.collect()
    processes.wait_until(lambda: usage() == before)


# ── backpressure ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_slow_consumer_stalls_the_scan(many: Path) -> None:
    with start(many) as scan:
        batches = iter(scan)
        taken = [next(batches).num_rows]
        most = 65536 * len(LINE)  # of a batch
        for _ in range(2):
            read = processes.when_still(lambda: scan.stats.bytes)
            assert read <= sum(taken) * len(LINE) + (kernel_host._QUEUE + 2) * most + 4 * 65536
            assert read < many.stat().st_size
            memory, shared = processes.resident(os.getpid()), processes.shared_memory()
            taken.append(next(batches).num_rows)
            time.sleep(1)
            assert processes.resident(os.getpid()) - memory < 32 << 20
            assert processes.shared_memory() - shared < 32 << 20
        rest = pa.Table.from_batches(list(batches))
    assert sum(taken) + rest.num_rows == ROWS
    assert rest["start"][-1].as_py() == (ROWS - 1) * len(LINE) + 2
    assert rest["line"][-1].as_py() == ROWS

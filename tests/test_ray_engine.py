"""The Ray engine: what a scan through actors gives, and what is left when one of its processes is killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import uring_actors as ua
from tests import oracle, processes
from tests.small_scan import SMALL
from uring_actors.actors import ensure_ray
from uring_actors.errors import NodeFailed, PatternError
from uring_actors.kernel_host import _QUEUE
from uring_actors.ops.base import Settler
from uring_actors.ops.bytesum import Nop
from uring_actors.ray_calls import _STREAMED_BUNDLES
from uring_actors.results.errors import Failure

pytestmark = pytest.mark.usefixtures("ray_session")

OPTIONS = {**SMALL, "engine": "ray"}
LINE = b"a needle\n"
ROWS = 3_000_000
WAITING = _QUEUE + _STREAMED_BUNDLES


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with so many rows that a scan whose rows nobody takes stands still in the middle of it."""
    path = tmp_path_factory.mktemp("many") / "many"
    path.write_bytes(LINE * ROWS)
    return path


def start(paths: Any, patterns: Sequence[Any] | None = ("needle",), **options: Any) -> ua.Scan:
    return ua.scan(paths, patterns=patterns, **{**OPTIONS, **options})


def no_actors() -> bool:
    return not any(processes.actors().values())


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    gc.collect()
    processes.wait_until(no_actors)


# ── what it gives ────────────────────────────────────────────────────────────────────────────────────────────
def test_rows_errors_skipped_and_stats(tmp_path: Path) -> None:
    import ray

    (tmp_path / "a").write_bytes(LINE * 20_000)
    (tmp_path / "b").write_bytes(b"x" * 200_000 + LINE)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    patterns = [ua.Literal("needle"), ua.Regex(r"x{3}\C{20,30} needle", bytes=True), ua.Regex(r"x+a")]
    with start(tmp_path, patterns) as scan:
        assert {name: len(found) for name, found in processes.actors().items()} == {
            "HostActor": 1,
            "PublisherActor": 1,
            "ReaderActor": 1,
        }
        groups = ray.util.placement_group_table().values()
        (group,) = [group for group in groups if group["state"] == "CREATED"]
        assert len(group["bundles"]) == 1
        assert len(processes.arenas(pid for found in processes.actors().values() for pid in found)) == 1
        table = scan.to_table()
    files = [tmp_path / name for name in ("a", "b", "empty")]
    wanted = oracle.expected(files, patterns)
    assert oracle.found(table) == wanted
    assert scan.errors.num_rows == 0
    assert scan.skipped["path"].to_pylist() == [bytes(tmp_path / "fifo")]
    stats = scan.stats
    assert (stats.files, stats.matches, stats.errors, stats.skipped) == (3, len(wanted), 0, 1)
    assert stats.bytes == sum(file.stat().st_size for file in files)
    assert (stats.engine, stats.io_engine) == ("ray", "pread")
    assert stats.first_result_seconds is not None
    groups = ray.util.placement_group_table().values()
    assert [group for group in groups if group["state"] != "REMOVED"] == []
    assert ray.is_initialized()


def test_a_reader_for_each_device(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == tmp_path.stat().st_dev:
            pytest.skip("only one device here")
        for folder in (tmp_path, Path(other)):
            for i in range(50):
                (folder / f"f{i:02}").write_bytes(b"%d " % i + LINE)
        with start([other, tmp_path]) as scan:
            assert len(processes.actors()["ReaderActor"]) == 2
            table = scan.to_table()
        files = [*Path(other).iterdir(), *tmp_path.iterdir()]
        assert oracle.found(table) == oracle.expected(files, [ua.Regex("needle")])
        assert len(scan.stats.devices) == 2
        assert scan.stats.files == 100


def test_two_at_once(tmp_path: Path) -> None:
    for name, count in (("one", 30_000), ("two", 50_000)):
        (tmp_path / name).write_bytes(LINE * count)
    first, second = start(tmp_path / "one"), start(tmp_path / "two")
    assert len(processes.arenas(pid for found in processes.actors().values() for pid in found)) == 2
    batches = [iter(first), iter(second)]
    counts = [0, 0]
    while batches != [None, None]:
        for i, one in enumerate(batches):
            batch = next(one, None) if one is not None else None
            if batch is None:
                batches[i] = None
            else:
                assert set(batch["path"].to_pylist()) == {bytes(tmp_path / ("one", "two")[i])}
                counts[i] += batch.num_rows
    assert counts == [30_000, 50_000]


def test_wrong_arguments_start_nothing(tmp_path: Path) -> None:
    with pytest.raises(PatternError):
        start(tmp_path, ["a("])
    assert no_actors()


# ── given up half way ────────────────────────────────────────────────────────────────────────────────────────
LEFT = pytest.mark.slow(reason="test_ray_metrics leaves a scan so; here its memory is looked at as well")


@pytest.mark.parametrize("how", ["del", "closed", pytest.param("with", marks=LEFT)])
def test_a_scan_that_is_given_up_leaves_nothing(many: Path, how: str) -> None:
    scan = start(many)
    found = {pid: began for some in processes.actors().values() for pid, began in some.items()}
    assert len(found) == 3
    memory = processes.arenas(found)
    assert len(memory) == 1
    if how != "closed":
        batches = iter(scan)
        next(batches)
    if how == "with":
        with scan:
            pass
    elif how == "closed":
        scan.close()
        scan.close()
    else:
        del batches, scan
    gc.collect()
    processes.wait_until_gone(found)
    assert processes.holders(memory) == []


# ── errors of ours, in actors ────────────────────────────────────────────────────────────────────────────────
class BrokenSettler:
    files = bytes = matches = 0
    failures: tuple[Failure, ...] = ()
    settled: tuple[int, ...] = ()

    def expect(self, files: object) -> None: ...

    def settle(self, rows: np.ndarray[Any, Any]) -> None:
        raise ZeroDivisionError("settled by nothing")

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        return []


@dataclass(frozen=True)
class Broken(Nop):
    """Fails where it works, or where it is set up."""

    early: str = ""

    def make_settler(self, arena: object, payload: int) -> Settler:
        if self.early == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.early:
            raise NodeFailed("kernel host", "it can't be set up", path=b"/p\xff", offset=7, errno=5)
        return BrokenSettler()  # type: ignore[return-value]


def test_an_error_in_an_actor_reaches_the_caller(many: Path) -> None:
    with start(many, None, operation=Broken()) as scan, pytest.raises(NodeFailed) as raised:
        list(scan)
    assert raised.value.role == "kernel host"
    assert "ZeroDivisionError: settled by nothing" in str(raised.value)
    with pytest.raises(NodeFailed) as raised:
        start(many, None, operation=Broken(early="raise"))
    assert (raised.value.path, raised.value.offset, raised.value.errno) == (b"/p\xff", 7, 5)


@pytest.mark.slow(reason="as test_a_killed_actor, but for when; three processes have to start")
def test_a_process_that_dies_while_it_is_set_up(many: Path) -> None:
    with pytest.raises(NodeFailed, match="its process died") as raised:
        start(many, None, operation=Broken(early="die"))
    assert raised.value.role == "kernel host"


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("actor", "role"), [("HostActor", "kernel host"), ("PublisherActor", "publisher"), ("ReaderActor", "reader of ")]
)
def test_a_killed_actor(many: Path, actor: str, role: str) -> None:
    scan = start(many)
    batches = iter(scan)
    next(batches)
    found = {pid: began for some in processes.actors().values() for pid, began in some.items()}
    memory = processes.arenas(found)
    (victim,) = processes.actors()[actor]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(NodeFailed) as raised:
        list(batches)
    assert time.monotonic() - began < 30
    assert raised.value.role.startswith(role)
    assert "died" in str(raised.value)
    processes.wait_until_gone(found)
    assert processes.holders(memory) == []
    assert scan.stats.errors == 0


DRIVER = """
import sys, time
import uring_actors as ua

scan = ua.scan(sys.argv[1], patterns=["needle"], engine="ray", io_engine="pread", slot_bytes=65536, slots=4)
batches = iter(scan)
next(batches)
print("going", flush=True)
time.sleep(600)
"""


def killed_driver(many: Path, **environment: str) -> tuple[dict[int, int], set[processes.Arena]]:
    """A driver that was killed in the middle of a scan: the processes below it and their arenas.

    With a Ray of this process (``environment``): our actors only."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, many], stdout=subprocess.PIPE, env={**os.environ, **environment}
    ) as driver:
        try:
            assert driver.stdout is not None
            while (line := driver.stdout.readline()) != b"going\n":
                assert line
            below = processes.family(os.getpid() if environment else driver.pid)
            if environment:
                names = tuple(f"ray::{name}" for name in processes.ACTORS)
                below = {pid: began for pid, began in below.items() if processes.title(pid).startswith(names)}
            memory = processes.arenas(below)
        finally:
            driver.kill()
    return below, memory


def test_a_killed_driver_that_started_ray(many: Path) -> None:
    """Of Ray itself nothing stays either: its agents would go on for a minute."""
    below, memory = killed_driver(many)
    names = [processes.title(pid) for pid in below]
    assert len(below) >= 5, names
    assert len(memory) == 1
    processes.wait_until_gone(below, 45)
    assert processes.holders(memory) == []


def test_a_killed_driver_of_a_ray_that_goes_on(tmp_path: Path, many: Path) -> None:
    import ray

    (tmp_path / "f").write_bytes(LINE)
    ensure_ray()
    ours, memory = killed_driver(many, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    assert len(ours) == 3
    assert len(memory) == 1
    processes.wait_until_gone(ours)
    assert processes.holders(memory) == []
    assert start(tmp_path).to_table().num_rows == 1


# ── backpressure ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_slow_consumer_stalls_the_scan(many: Path) -> None:
    """Batches wait in three places, and in each only a few: in the host, in the object store, here."""
    with start(many) as scan:
        batches = iter(scan)
        taken = [next(batches).num_rows]
        (host,) = processes.actors()["HostActor"]
        most = 65536 * len(LINE)  # of a batch
        for _ in range(2):
            read = processes.when_still(lambda: scan.stats.bytes)
            assert read <= sum(taken) * len(LINE) + (WAITING + 2) * most + 4 * 65536, "nothing holds it back"
            assert read < many.stat().st_size
            memory, shared = processes.resident(host), processes.shared_memory()
            taken.append(next(batches).num_rows)
            time.sleep(1)
            assert processes.resident(host) - memory < 32 << 20
            assert processes.shared_memory() - shared < 32 << 20
        taken += [batch.num_rows for batch in batches]
    assert sum(taken) == ROWS
    assert scan.stats.bytes == many.stat().st_size

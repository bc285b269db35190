"""The lanes of both engines: extents, bytes, short reads, retries, failures, backpressure, closing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consumer import Consumer, Record, check_file
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.errors import OptionError, PipelineError
from uring_actors.uring import kernel, ring, work
from uring_actors.uring import verdict as rules
from uring_actors.uring.lane import UringLane
from uring_actors.uring.pread import PreadLane
from uring_actors.uring.reference_lane import LiburingLane
from uring_actors.uring.ring import probe
from uring_actors.uring.work import Geometry, Job, Lane

ENGINES = ["uring", "sqpoll", "pread", "liburing"]
GEOMETRY = Geometry(payload=16384, lead=4096, halo=199)
PLAIN = Geometry(payload=4096, lead=0, halo=0)


def make_lane(engine: str, arena: Arena, geometry: Geometry, number: int = 0, **options: int) -> Lane:
    if engine == "pread":
        return PreadLane(arena, number, geometry, **options)
    if not probe().available:
        pytest.skip(f"no io_uring here: {probe().error}")
    if engine == "liburing":
        pytest.importorskip("liburing")
        return LiburingLane(arena, number, geometry, **options)
    return UringLane(arena, number, geometry, sqpoll=engine == "sqpoll", **options)


@contextlib.contextmanager
def running(
    engine: str, geometry: Geometry, contents: dict[int, bytes], *, slots: int = 4, delay: float = 0.0, **options: int
) -> Iterator[tuple[Lane, Consumer]]:
    arena = Arena.create(ArenaLayout(1, slots, geometry.slot_bytes, 4096))
    lane = make_lane(engine, arena, geometry, **options)
    consumer = Consumer(arena, [0], geometry, contents, delay=delay)
    try:
        with consumer:
            lane.start()
            yield lane, consumer
            assert lane.failure is None
    finally:
        lane.close()
        arena.close()


def open_file(path: Path, direct: bool) -> int:
    fd = os.open(path, os.O_RDONLY)
    if direct:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        except OSError:
            os.close(fd)
            pytest.skip("this file system has no O_DIRECT")
    return fd


def write(path: Path, size: int, seed: int = 0) -> bytes:
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return content


def read_file(
    engine: str, path: Path, size: int, geometry: Geometry, *, direct: bool, content: bytes
) -> list[Record]:
    fd = open_file(path, direct)
    try:
        with running(engine, geometry, {7: content}) as (lane, consumer):
            lane.offer([Job(3, 7, fd, size, 0, geometry.extents(size), direct)])
            lane.finish()
            assert lane.join(30)
            assert lane.failure is None
            assert lane.returned() == [3]
            stats = lane.stats()
            assert stats.extents == geometry.extents(size)
            assert stats.in_flight == 0
            assert stats.bounce_bytes == 0
            assert (stats.plain_reads == 0) == (engine != "pread")
            return consumer.wait(geometry.extents(size))
    finally:
        os.close(fd)


SIZES = [1, 199, 4095, 4096, 4097, 16383, 16384, 16385, 16384 + 199, 16384 + 200, 20479, 20480, 24576, 24577, 170_001]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("geometry", [GEOMETRY, PLAIN, Geometry(8192, 4096, 9000)], ids=["halo", "plain", "wide"])
def test_every_size(tmp_path: Path, engine: str, direct: bool, geometry: Geometry) -> None:
    contents = {i: write(tmp_path / str(i), size, i) for i, size in enumerate(SIZES)}
    fds = {i: open_file(tmp_path / str(i), direct) for i in contents}
    with running(engine, geometry, contents, delay=0.001) as (lane, consumer):
        jobs = [Job(i, i, fds[i], len(c), 0, geometry.extents(len(c)), direct) for i, c in contents.items()]
        assert lane.offer(jobs) == len(jobs)
        records = consumer.wait(sum(geometry.extents(size) for size in SIZES))
        lane.finish()
        assert lane.join(30)
        assert sorted(lane.returned()) == sorted(contents)
        assert all(r.status == 0 for r in records)
        for i, content in contents.items():
            check_file(records, i, len(content), geometry)
    for fd in fds.values():
        os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_of_one_file(tmp_path: Path, engine: str) -> None:
    content = write(tmp_path / "f", 300_000)
    fd = open_file(tmp_path / "f", False)
    with running(engine, GEOMETRY, {0: content}) as (lane, consumer):
        count = GEOMETRY.extents(len(content))
        lane.offer([Job(first, 0, fd, len(content), first, min(3, count - first)) for first in range(0, count, 3)])
        check_file(consumer.wait(count), 0, len(content), GEOMETRY)
    os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("real", [0, 1, 4000, 16384, 16385, 20000, 20480, 40960])
def test_file_that_shrank(tmp_path: Path, engine: str, direct: bool, real: int) -> None:
    listed = 60_000
    content = write(tmp_path / "f", real)
    records = read_file(engine, tmp_path / "f", listed, GEOMETRY, direct=direct, content=content)
    check_file(records, 7, listed, GEOMETRY)
    for record in records:
        wanted = min(listed, record.offset + GEOMETRY.payload + GEOMETRY.halo)
        assert record.status == (0 if real >= wanted else errno.ENODATA)
        assert record.nbytes == max(0, min(real, wanted) - record.offset)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direct", [False, True])
def test_file_that_grew(tmp_path: Path, engine: str, direct: bool) -> None:
    content = write(tmp_path / "f", 50_000)
    records = read_file(engine, tmp_path / "f", 20_001, GEOMETRY, direct=direct, content=content[:20_001])
    check_file(records, 7, 20_001, GEOMETRY)
    assert all(r.status == 0 for r in records)


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_of_reading_and_of_opening(tmp_path: Path, engine: str) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with running(engine, GEOMETRY, {}) as (lane, consumer):
        lane.offer([Job(0, 1, directory, 20_000, 0, 2), Job(1, 2, -1, 9, errno=errno.EACCES)])
        records = consumer.wait(3)
        lane.finish()
        assert lane.join(30)
        assert sorted(lane.returned()) == [0, 1]
    os.close(directory)
    assert [r.status for r in records if r.file_id == 1] == [errno.EISDIR] * 2
    assert next(r for r in records if r.file_id == 2) == Record(
        abi.NO_DATA_SLOT, 0, 2, 0, 0, errno.EACCES, abi.FLAG_FIRST | abi.FLAG_LAST
    )
    assert lane.stats().failed_completions == 3
    assert lane.stats().io_errors == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_wait_for_room(engine: str) -> None:
    """More failed files than the completion channel holds, and nobody takes them for a while."""
    arena = Arena.create(ArenaLayout(1, 2, GEOMETRY.slot_bytes, 4096))
    lane = make_lane(engine, arena, GEOMETRY, jobs=64)
    lane.start()
    assert lane.offer([Job(i, i, -1, 1, errno=errno.ENOENT) for i in range(70)]) == 64
    time.sleep(0.05)
    assert lane.room == 0
    assert len(lane.returned()) == arena.layout.channel_records - arena.layout.slots_per_lane
    with Consumer(arena, [0], GEOMETRY) as consumer:
        consumer.wait(64)
    assert lane.failure is None
    lane.close()
    arena.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_slow_consumer_and_small_depth(tmp_path: Path, engine: str) -> None:
    content = write(tmp_path / "f", 400_000)
    fd = open_file(tmp_path / "f", False)
    with running(engine, GEOMETRY, {0: content}, slots=5, delay=0.01, depth=2, spin=0) as (lane, consumer):
        lane.offer([Job(0, 0, fd, len(content), 0, GEOMETRY.extents(len(content)))])
        check_file(consumer.wait(GEOMETRY.extents(len(content))), 0, len(content), GEOMETRY)
    os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
def test_close_in_the_middle(tmp_path: Path, engine: str) -> None:
    content = write(tmp_path / "f", 3_000_000)
    fd = open_file(tmp_path / "f", False)
    arena = Arena.create(ArenaLayout(1, 8, GEOMETRY.slot_bytes, 4096))
    lane = make_lane(engine, arena, GEOMETRY)
    lane.start()
    lane.offer([Job(0, 0, fd, len(content), 0, GEOMETRY.extents(len(content)))])
    lane.close()
    lane.close()
    assert lane.life == "closed"
    assert lane.failure is None
    assert lane.stats().in_flight == 0
    arena.close()
    os.close(fd)


def test_life(tmp_path: Path) -> None:
    arena = Arena.create(ArenaLayout(1, 2, 32768, 4096))
    lane = PreadLane(arena, 0, GEOMETRY)
    lane.start()
    with pytest.raises(PipelineError):
        lane.start()
    with pytest.raises(OptionError):
        lane.offer([Job(0, 0, 0, 10, 0, 2)])
    for bad in ({"jobs": 3}, {"depth": 0}):
        with pytest.raises(OptionError):
            PreadLane(arena, 0, GEOMETRY, **bad)
    with pytest.raises(OptionError):
        PreadLane(arena, 1, GEOMETRY)
    with pytest.raises(OptionError):
        PreadLane(arena, 0, Geometry(32768))
    lane.close()
    never_started = PreadLane(arena, 0, GEOMETRY)
    never_started.close()
    arena.close()


def test_a_false_credit_ends_the_lane(tmp_path: Path) -> None:
    arena = Arena.create(ArenaLayout(1, 2, 32768, 4096))
    lane = PreadLane(arena, 0, GEOMETRY)
    consumer = Consumer(arena, [0], GEOMETRY)
    consumer._held = [(0, 1)]
    lane.start()
    consumer._give_credits()
    assert lane.join(10)
    assert "credit" in str(lane.failure)
    lane.close()
    arena.close()


@pytest.mark.parametrize("bad", [{"payload": 0}, {"payload": 100}, {"lead": 5}, {"halo": -1}])
def test_geometry_refuses(bad: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        Geometry(**{"payload": 4096, **bad})


# ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────────
PASSING = (errno.EAGAIN, errno.EINTR, errno.ECANCELED)


def test_every_errno_is_retried_or_fails() -> None:
    for number in range(1, 134):
        for retries in range(12):
            expected = rules.RETRY if number in PASSING and retries < 8 else rules.FAIL
            assert rules.judge(-number, 0, 100, 0, retries) == expected
            assert rules.judge(-number, 4096, 8192, 1, retries) == expected


def test_short_reads_buffered() -> None:
    for want in range(1, 40):
        for done in range(want):
            for res in range(want - done + 5):
                expected = rules.WHOLE if done + res >= want else rules.END if res == 0 else rules.MORE
                assert rules.judge(res, done, want, 0, 0) == expected
                assert rules.resume_at(done + res, 0) == done + res


def test_short_direct_reads_go_on_from_the_border_below_and_end() -> None:
    block = rules.BLOCK
    edges = [n + d for n in range(0, 5 * block, block) for d in (-1, 0, 1, 199) if n + d >= 0]
    for want in edges[1:]:
        for done in range(0, want, block):
            for res in edges:
                verdict = rules.judge(res, done, want, 1, 0)
                if done + res >= want:
                    assert verdict == rules.WHOLE
                elif res < block:
                    assert verdict == rules.END
                else:
                    assert verdict == rules.MORE
                    after = rules.resume_at(done + res, 1)
                    assert after % block == 0
                    assert done < after <= done + res  # it always gets on, and skips nothing


def test_a_file_of_any_real_size_is_read_to_its_end() -> None:
    """The verdicts, played against a file that answers short at random: never an endless loop, never a lost byte."""
    dice = random.Random(1)
    for _ in range(3000):
        direct, real = dice.random() < 0.5, dice.randrange(0, 40_000)
        want, done, bytes_here = dice.randrange(1, 40_000), 0, 0
        for _ in range(100):
            length = work.round_up(want - done) if direct else want - done
            res = min(length, max(0, real - done))
            if res > 8192 and dice.random() < 0.5:
                res = dice.randrange(1, res // 4096) * 4096 if direct else dice.randrange(1, res)
            verdict = rules.judge(res, done, want, int(direct), 0)
            bytes_here = done + res
            if verdict != rules.MORE:
                break
            done = rules.resume_at(bytes_here, int(direct))
        assert verdict == (rules.WHOLE if real >= want else rules.END)
        assert min(bytes_here, want) == min(real, want)


# ── the ring's corners ───────────────────────────────────────────────────────────────────────────────────────
def test_a_poller_that_fell_asleep_is_woken(tmp_path: Path) -> None:
    content = write(tmp_path / "f", 10_000)
    fd = open_file(tmp_path / "f", False)
    with running("sqpoll", GEOMETRY, {0: content}, sqpoll_idle_ms=5) as (lane, consumer):
        for i in range(8):
            lane.offer([Job(i, 0, fd, len(content))])
            consumer.wait(i + 1, 10)
            time.sleep(0.03)
    os.close(fd)


@pytest.mark.parametrize("engine", ["uring", "sqpoll"])
def test_the_oldest_flags_and_several_buffers(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that knows none of the newer flags; and data slots that don't fit one registered buffer."""
    monkeypatch.setattr(ring, "_flag_ladder", lambda _: [0])
    monkeypatch.setattr(kernel, "MAX_BUFFER_BYTES", 2 * GEOMETRY.slot_bytes + 4096)
    content = write(tmp_path / "f", 700_000)
    fd = open_file(tmp_path / "f", False)
    count = GEOMETRY.extents(len(content))
    with running(engine, GEOMETRY, {0: content}, slots=7) as (lane, consumer):
        lane.offer([Job(0, 0, fd, len(content), 0, count)])
        check_file(consumer.wait(count), 0, len(content), GEOMETRY)
        assert lane.stats().fixed_file_reads == lane.stats().registered_reads >= count
    os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
def test_queues_that_wrap(tmp_path: Path, engine: str) -> None:
    content = write(tmp_path / "f", 100)
    fd = open_file(tmp_path / "f", False)
    arena = Arena.create(ArenaLayout(1, 4, GEOMETRY.slot_bytes, 4096))
    lane = make_lane(engine, arena, GEOMETRY, jobs=4)
    start = 2**32 - 30
    lane._given = lane._taken = start
    for queue in (lane._memory.address + lane._intake, lane._outbox):
        for word in (abi.CHANNEL_HEAD, abi.CHANNEL_TAIL):
            ctypes.c_uint32.from_address(queue + word).value = start
    with Consumer(arena, [0], GEOMETRY, {0: content}) as consumer:
        lane.start()
        tokens, offered = [], 0
        while len(tokens) < 100 and lane.failure is None:
            offered += lane.offer([Job(i, 0, fd, 100) for i in range(offered, 100)])
            tokens += lane.returned()
            time.sleep(0.0001)  # an engine in Python needs the GIL
        consumer.wait(100)
    assert sorted(tokens) == list(range(100))
    lane.close()
    arena.close()
    os.close(fd)


# ── a medium that fails ──────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def broken_device(tmp_path: Path) -> Iterator[tuple[Path, bytes]]:
    """A loop device whose second half is gone: its backing file was truncated after it was attached."""
    backing = tmp_path / "backing"
    content = write(backing, 1 << 20)
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False, timeout=20
        )
    except FileNotFoundError:
        pytest.skip("no losetup here")
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    os.truncate(backing, 1 << 19)
    try:
        yield Path(device), content
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=20)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direct", [False, True])
def test_medium_that_fails(broken_device: tuple[Path, bytes], engine: str, direct: bool) -> None:
    path, content = broken_device
    half = len(content) // 2
    records = read_file(engine, path, len(content), GEOMETRY, direct=direct, content=content)
    check_file(records, 7, len(content), GEOMETRY)
    if all(r.status == 0 for r in records):
        pytest.skip("this kernel reads zeros there")
    for record in records:
        ends = min(len(content), record.offset + GEOMETRY.payload + GEOMETRY.halo)
        if ends <= half:
            assert record.status == 0
        elif record.offset >= half:
            assert (record.status, record.nbytes) == (errno.EIO, 0)
        else:  # what came before the failure stays there to be scanned; O_DIRECT fails as a whole
            assert record.status == errno.EIO
            assert record.nbytes in (0, half - record.offset)

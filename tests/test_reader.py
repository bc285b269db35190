"""The reader: opening, choosing the way, runs over lanes, bounds, failures, closing."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.consumer import Consumer, check_file
from tests.test_uring_ring import child
from uring_actors import reader as reader_module
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.errors import DeadlineExceeded, NodeFailed, OptionError, PipelineError
from uring_actors.pieces import Piece
from uring_actors.plan import FileEntry
from uring_actors.reader import Reader, choose_io_engine
from uring_actors.uring import pagecache
from uring_actors.uring.pagecache import cached_bytes
from uring_actors.uring.ring import probe
from uring_actors.uring.work import Geometry

GEOMETRY = Geometry(payload=16384, lead=4096, halo=199)
ENGINES = [
    "pread",
    pytest.param(
        "liburing",
        marks=pytest.mark.skipif(find_spec("liburing") is None or not probe().available, reason="no liburing here"),
    ),
    pytest.param("uring", marks=pytest.mark.skipif(not probe().available, reason=f"no io_uring: {probe().error}")),
]


def entry(path: Path, number: int = 0, size: int | None = None) -> FileEntry:
    status = path.stat()
    length = status.st_size if size is None else size
    return FileEntry(number, os.fsencode(path), length, status.st_dev, status.st_ino, status.st_mtime_ns)


class Bench:
    """An arena, a consumer and a reader of its two lanes."""

    def __init__(self, contents: dict[int, bytes], *, slots: int = 4, delay: float = 0.0, **options: object) -> None:
        self.arena = Arena.create(ArenaLayout(2, slots, GEOMETRY.slot_bytes, 4096))
        self.consumer = Consumer(self.arena, [0, 1], GEOMETRY, contents, delay=delay)
        self.reader = Reader(self.arena, "test", range(2), GEOMETRY, **options)  # type: ignore[arg-type]

    def __enter__(self) -> Bench:
        gc.collect()  # an earlier test's arena may be garbage whose descriptor goes at any time
        self.fds = set(os.listdir("/proc/self/fd"))
        self.consumer.__enter__()
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.consumer.__exit__()
        assert set(os.listdir("/proc/self/fd")) == self.fds, "a descriptor was left open"
        self.arena.close()


def tree(directory: Path, sizes: list[int]) -> tuple[list[FileEntry], dict[int, bytes]]:
    contents = {i: random.Random(i).randbytes(size) for i, size in enumerate(sizes)}
    for i, content in contents.items():
        (directory / f"f{i}").write_bytes(content)
    return [entry(directory / f"f{i}", i) for i in contents], contents


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("io", ["auto", "direct"])
def test_a_piece_of_a_file(tmp_path: Path, engine: str, io: str) -> None:
    """Its extents alone, with the file's numbers and offsets; the consumer checks their bytes, lead and halo too."""
    (file,), contents = tree(tmp_path, [200_000])
    pieces = [Piece(3 * GEOMETRY.payload, 8 * GEOMETRY.payload), Piece(10 * GEOMETRY.payload, 200_000)]
    with Bench({0: contents[0], 1: contents[0]}, io_engine=engine, io=io, run_extents=2) as bench:
        bench.reader.submit([replace(file, id=number, piece=piece) for number, piece in enumerate(pieces)])
        bench.reader.finish(60)
        records = bench.consumer.wait(5 + 3)
    found = {number: sorted((r.extent, r.offset) for r in records if r.file_id == number) for number in (0, 1)}
    assert found[0] == [(k, k * GEOMETRY.payload) for k in range(3, 8)]
    assert found[1] == [(k, k * GEOMETRY.payload) for k in range(10, 13)]


SIZES = [1, 199, 4095, 4096, 4097, 16383, 16384, 16385, 20479, 20480, 20481, 300_000, 2_000_000]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("io", ["auto", "direct", "buffered"])
@pytest.mark.parametrize("sqpoll", [False, True])
def test_a_tree(tmp_path: Path, engine: str, io: str, sqpoll: bool) -> None:
    if sqpoll and engine == "pread":
        pytest.skip("pread has no poller")
    files, contents = tree(tmp_path, SIZES)
    with Bench(contents, delay=0.001, io_engine=engine, io=io, sqpoll=sqpoll, run_extents=3) as bench:
        bench.reader.submit(files)
        bench.reader.finish(60)
        records = bench.consumer.wait(sum(GEOMETRY.extents(size) for size in SIZES))
        for file in files:
            check_file(records, file.id, file.size, GEOMETRY)
        stats = bench.reader.stats()
        assert stats.files_opened == len(files)
        assert stats.files_open == stats.files_queued == stats.files_failed == 0
        assert stats.lanes.problems() == []
        stats.lanes.validate_completed_zero_copy("plain" if engine == "pread" else "registered")
        with pytest.raises(PipelineError, match="path"):
            stats.lanes.validate_completed_zero_copy("registered" if engine == "pread" else "plain")
        used = {record.data_slot // bench.arena.layout.slots_per_lane for record in records}
        assert used == {0, 1}
        if io != "auto":
            assert stats.files_direct == (len(files) if io == "direct" else 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_small_files(tmp_path: Path, engine: str) -> None:
    dice = random.Random(5)
    files, contents = tree(tmp_path, [dice.randrange(1, 3000) for _ in range(2000)])
    with Bench(contents, slots=8, delay=0.002, io_engine=engine, max_open=20, queue_files=100) as bench:
        most = 0
        for start in range(0, len(files), 37):
            bench.reader.submit(files[start : start + 37])
            most = max(most, bench.reader.stats().files_open)
        bench.reader.finish(100)
        records = bench.consumer.wait(len(files))
        assert most <= 20
        assert {r.file_id for r in records} == set(contents)
        whole = abi.FLAG_FIRST | abi.FLAG_LAST
        assert all(r.flags & ~abi.FLAG_TIMED == whole and r.status == 0 for r in records)


def _vanish(path: Path) -> None:
    path.unlink()


def _replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"other")
    path.with_suffix(".new").rename(path)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "number"),
    [
        (_vanish, errno.ENOENT),
        (_replace, errno.ESTALE),
        (_fifo, errno.ESTALE),
        (_directory, errno.ESTALE),
        (_loop, errno.ELOOP),
    ],
)
def test_files_that_changed_since_listing(
    tmp_path: Path, engine: str, change: Callable[[Path], None], number: int
) -> None:
    files, contents = tree(tmp_path, [10, 50_000, 10])
    change(tmp_path / "f1")
    with Bench({0: contents[0], 2: contents[2]}, io_engine=engine) as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        records = {r.file_id: r for r in bench.consumer.wait(3)}
        assert records[1].status == number
        assert records[1].data_slot == abi.NO_DATA_SLOT
        assert records[1].flags == abi.FLAG_FIRST | abi.FLAG_LAST
        assert records[0].status == records[2].status == 0
        assert bench.reader.stats().files_failed == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become an ordinary user")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0)
    tmp_path.chmod(0o755)
    text = child(f"""
        import os
        from pathlib import Path
        from uring_actors.reader import open_file
        from test_reader import entry
        made = entry(Path({str(tmp_path / "f")!r}))
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            open_file(made, direct=False)
        except PermissionError as error:
            print(error.errno)
    """)
    assert text == str(errno.EACCES)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_shrank_between_listing_and_reading(tmp_path: Path, engine: str) -> None:
    (tmp_path / "f").write_bytes(b"y" * 20_000)
    with Bench({0: b"y" * 20_000}, io_engine=engine) as bench:
        bench.reader.submit([entry(tmp_path / "f", 0, 50_000)])
        bench.reader.finish(30)
        records = sorted(bench.consumer.wait(4), key=lambda r: r.extent)
        assert [(r.status, r.nbytes) for r in records] == [
            (0, 16384 + 199),
            (errno.ENODATA, 3616),
            (errno.ENODATA, 0),
            (errno.ENODATA, 0),
        ]


PAYLOAD = GEOMETRY.payload


def cached_only(path: Path, extents: set[int]) -> None:
    """Have the page cache hold these extents of the file and no others; else skip the test."""
    fd, size = os.open(path, os.O_RDONLY), path.stat().st_size
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for extent in extents:
            os.pread(fd, PAYLOAD, extent * PAYLOAD)
        for extent in range(-(-size // PAYLOAD)):
            length = min(PAYLOAD, size - extent * PAYLOAD)
            try:
                if (cached_bytes(fd, length, extent * PAYLOAD) * 2 > length) != (extent in extents):
                    pytest.skip("the page cache does not do as it is told")
            except OSError:
                pytest.skip("no cachestat(2) here")
    finally:
        os.close(fd)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cached", [set(), {0}, {3}, {1, 2, 5, 6, 7}, {0, 9, 10}, set(range(11))], ids=str)
def test_auto_reads_what_is_cached_from_there_and_the_rest_direct(
    tmp_path: Path, engine: str, cached: set[int]
) -> None:
    files, contents = tree(tmp_path, [10 * PAYLOAD + 999])
    cached_only(tmp_path / "f0", cached)
    with Bench(contents, io_engine=engine) as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        records = bench.consumer.wait(11)
        check_file(records, 0, len(contents[0]), GEOMETRY)
        stats = bench.reader.stats()
        assert stats.lanes.direct_reads == 11 - len(cached)
        assert stats.files_direct == (len(cached) < 11)
        assert stats.files_open == 0


@settings(max_examples=200)
@given(st.data())
def test_stretches(data: st.DataObject) -> None:
    """Every step once, in order, neighbours of a kind together, each as the kernel says of it."""
    pages = data.draw(st.integers(1, 4))
    size = data.draw(st.integers(1, 40 * 4096))
    held = data.draw(st.sets(st.integers(0, (size - 1) // 4096)))
    steps = -(-size // (pages * 4096))
    first = data.draw(st.integers(0, steps - 1))
    count = data.draw(st.integers(1, steps - first))

    def cached(fd: int, length: int, start: int) -> int:
        return 4096 * sum(start <= 4096 * page < start + length for page in held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pagecache, "cached_bytes", cached)
        runs = list(pagecache.stretches(-1, size, pages * 4096, first, count))
    each = [(start + i, way) for start, n, way in runs for i in range(n)]
    assert [step for step, _ in each] == list(range(first, first + count))
    for step, way in each:
        start = step * pages * 4096
        length = min(size - start, pages * 4096)
        assert way == (cached(-1, length, start) * 2 > length)
    assert all(a[2] != b[2] for a, b in itertools.pairwise(runs))


def test_one_extent_is_not_worth_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "stretches", None)
    files, contents = tree(tmp_path, [PAYLOAD, 1])
    with Bench(contents) as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        assert bench.reader.stats().lanes.direct_reads == 0


def test_where_the_kernel_has_no_cachestat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "SYS_CACHESTAT", 9999)
    files, contents = tree(tmp_path, [5 * PAYLOAD])
    with Bench(contents) as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        assert bench.reader.stats().lanes.direct_reads == 0


def test_a_file_system_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader_module._set_flags

    def refuse(fd: int, direct: bool) -> None:
        if direct:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        real(fd, direct)

    monkeypatch.setattr(reader_module, "_set_flags", refuse)
    monkeypatch.setattr(pagecache, "cached_bytes", lambda *_: 0)
    files, contents = tree(tmp_path, [5 * PAYLOAD])
    with Bench(contents, slots=8) as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        assert [r.status for r in bench.consumer.wait(5)] == [0] * 5
        assert bench.reader.stats().lanes.direct_reads == 0
    with Bench(contents, io="direct") as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        assert [r.status for r in bench.consumer.wait(1)] == [errno.EINVAL]


def test_descriptors_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, contents = tree(tmp_path, [100] * 60)
    real, dice = reader_module.open_file, random.Random(3)

    def scarce(made: FileEntry, *, direct: bool) -> int:
        if dice.random() < 0.3 and bench.reader.stats().files_open:
            raise OSError(errno.EMFILE, "too many")
        return real(made, direct=direct)

    monkeypatch.setattr(reader_module, "open_file", scarce)
    with Bench(contents, io_engine="pread") as bench:
        bench.reader.submit(files)
        bench.reader.finish(30)
        assert all(r.status == 0 for r in bench.consumer.wait(60))


@pytest.mark.parametrize("engine", ENGINES)
def test_close_in_the_middle(tmp_path: Path, engine: str) -> None:
    files, contents = tree(tmp_path, [3_000_000, 5, 3_000_000])
    with Bench(contents, delay=0.01, io_engine=engine) as bench:
        bench.reader.submit(files)
        time.sleep(0.02)
        bench.reader.close()
        bench.reader.close()
        assert bench.reader.life == "closed"
        assert not [t.name for t in threading.enumerate() if t.name.startswith("reader-test")]
        with pytest.raises(PipelineError):
            bench.reader.submit(files)


def test_backpressure(tmp_path: Path) -> None:
    """Nobody takes the records: the data slots run out, then the queue, then submit's patience."""
    files, _ = tree(tmp_path, [10] * 400)
    arena = Arena.create(ArenaLayout(1, 2, GEOMETRY.slot_bytes, 4096))
    made = Reader(arena, "test", [0], GEOMETRY, io_engine="pread", queue_files=16)
    made.start()
    with pytest.raises(DeadlineExceeded, match="queue"):
        made.submit(files, seconds=0.5)
    stats = made.stats()
    assert stats.files_queued == 16
    assert stats.lanes.extents == 2
    with pytest.raises(DeadlineExceeded, match="open files"):
        made.finish(0.1)
    made.close()
    arena.close()


def test_a_dead_lane_is_seen(tmp_path: Path) -> None:
    files, _ = tree(tmp_path, [10])
    with Bench({}, io_engine="pread") as bench:
        bench.consumer._held.append((0, 3))  # a credit for what was never lent
        bench.consumer._give_credits()
        deadline = time.monotonic() + 10
        while bench.reader.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "credit" in str(bench.reader.failure)
        with pytest.raises(NodeFailed, match="credit"):
            bench.reader.submit(files)
        with pytest.raises(NodeFailed):
            bench.reader.finish(10)


def test_senseless_arguments(tmp_path: Path) -> None:
    arena = Arena.create(ArenaLayout(1, 2, GEOMETRY.slot_bytes, 4096))
    for bad in ({"io_engine": "auto"}, {"io": "x"}, {"lanes": []}, {"run_extents": 0}, {"max_open": 0}):
        with pytest.raises(OptionError):
            Reader(arena, "test", **{"lanes": [0], "geometry": GEOMETRY, **bad})  # type: ignore[arg-type]
    made = Reader(arena, "test", [7], GEOMETRY, io_engine="pread")
    with pytest.raises(OptionError):
        made.start()
    assert made.life == "closed"
    made = Reader(arena, "test", [0], GEOMETRY, io_engine="pread")
    made.start()
    with pytest.raises(OptionError):
        made.submit([FileEntry(0, b"/x", 0, 0, 0, 0)])
    with pytest.raises(PipelineError):
        made.start()
    made.close()
    arena.close()


# ── choosing the engine ──────────────────────────────────────────────────────────────────────────────────────
def test_choose() -> None:
    assert choose_io_engine("pread") == ("pread", None)
    with pytest.raises(OptionError):
        choose_io_engine("aio")
    if probe().available:
        assert choose_io_engine("auto") == choose_io_engine("uring") == ("uring", None)


def test_choose_where_io_uring_is_forbidden() -> None:
    text = child("""
        import seccomp
        seccomp.deny()
        from uring_actors.errors import IoUringUnavailable
        from uring_actors.reader import choose_io_engine
        print(choose_io_engine("auto"))
        try:
            choose_io_engine("uring")
        except IoUringUnavailable as error:
            print(error)
    """)
    automatic, insisted = text.splitlines()
    assert automatic.startswith("('pread', ")
    assert "seccomp" in automatic
    assert "kernel.io_uring_disabled" in insisted

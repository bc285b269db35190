"""Small files, several to a data slot: found in them is what is found in each alone, whatever their neighbours."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests import oracle
from tests.test_exact import PATTERNS, SEEDS, filler
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.ops.match.operation import Match
from uring_actors.plan import FileBatch
from uring_actors.reader import Reader

SLOT = 65536
LAYOUT = ArenaLayout(1, 4, SLOT, SLOT // 4)
ENTRIES = LAYOUT.packed_entries
MOST = (SLOT - ENTRIES * abi.PACKED_ENTRY_BYTES) // 4
"""Bytes of the largest file that is packed."""


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each packed job had."""
    counts: list[int] = []
    real = Reader._pack

    def packing(reader: Reader, batch: FileBatch) -> None:
        counts.append(len(batch))
        real(reader, batch)

    monkeypatch.setattr(Reader, "_pack", packing)
    return counts


def scanned(paths: Any, patterns: Any = PATTERNS, **options: Any) -> tuple[ua.Scan, pa.Table]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no io_uring here
        options = {"engine": "threads", "slot_bytes": SLOT, "slots": 4, **options}
        scan = ua.scan(paths, patterns=patterns, **options)
    return scan, scan.to_table()


def check(files: list[Path], patterns: Any = PATTERNS, **options: Any) -> None:
    scan, table = scanned(files, patterns, **options)
    actual, wanted = oracle.found(table), oracle.expected(files, patterns)
    assert actual == wanted, oracle.explain_difference(actual, wanted)
    oracle.check_bytes(table)
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    assert scan.stats.files == len(files)
    assert scan.stats.bytes == sum(path.stat().st_size for path in files)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that end in the middle of what the next begins with, of sizes around every border."""
    top, rng = tmp_path_factory.mktemp("tree"), random.Random(11)
    sizes = [0, 1, 2, 63, 64, 65, 199, 4095, 4096, 4097, MOST - 1, MOST, MOST + 1, 61440, SLOT, 100_000]
    sizes += [rng.randrange(1, 3000) for _ in range(150)] + [1] * 2 * ENTRIES
    left = b""
    for i, size in enumerate(sizes):
        content = filler(rng, size, rng.choice(["text", "binary", "newlines", "long-line"]))
        seed = rng.choice(SEEDS)
        half = rng.randrange(len(seed) + 1)
        content[: len(left)] = left[:size]
        if size > len(seed):
            content[size - half :] = seed[:half]
            left = seed[half:]
            for _ in range(size // 1000):
                at = rng.randrange(size - len(seed))
                content[at : at + len(seed)] = seed
        (top / f"{i:03}").write_bytes(content[:size])
    (top / os.fsdecode(b"caf\xe9 \n\xff")).write_bytes(b"needle in a file whose name is not UTF-8\n")
    return top


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("io_engine", ["uring", "pread", "liburing"])
def test_against_the_oracle(
    tree: Path, packed: list[int], io_engine: str, lanes: int, need_uring: Callable[[], None]
) -> None:
    if io_engine != "pread":
        need_uring()
    check(sorted(tree.iterdir()), io_engine=io_engine, lanes=lanes)
    assert sum(packed) == sum(0 < path.stat().st_size <= MOST for path in tree.iterdir())


def test_the_same_rows_as_unpacked(tree: Path, packed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {}
    for packs in (True, False):
        monkeypatch.setattr(Match, "packs", packs)
        _, table = scanned(tree)
        rows[packs] = sorted(map(repr, table.to_pylist()))
        assert bool(packed) == packs
        packed.clear()
    assert rows[True] == rows[False]


@pytest.mark.slow(reason="test_exact.py::test_ray packs small files too")
def test_ray(tree: Path, ray_session: None) -> None:
    check(sorted(tree.iterdir()), engine="ray", slots=8)


@settings(max_examples=25, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    contents=st.lists(st.lists(st.sampled_from([*SEEDS, b"a", b"\n", b" "]), max_size=4).map(b"".join), max_size=40)
)
def test_any_files_side_by_side(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    top = tmp_path_factory.mktemp("any")
    for i, content in enumerate([*contents, b"aa"]):
        (top / str(i)).write_bytes(content)
    check(sorted(top.iterdir()), io_engine="pread")
    shutil.rmtree(top)


def test_more_hits_than_a_result_block_holds(tmp_path: Path, packed: list[int]) -> None:
    """The slot's hits overflow within a file, behind others with few and many, and before others."""
    assert LAYOUT.hit_capacity < 1100
    for i, content in enumerate([b"x a\n", b"a" * 600, b"-", b"\na" * 700, b"a", b"b", b"a\n" * 500, b"aXa"]):
        (tmp_path / str(i)).write_bytes(content)
    check(
        sorted(tmp_path.iterdir()), [ua.Literal("a"), ua.Regex("a\n?a", name="two"), ua.Regex(r"\Aa", name="first")]
    )
    assert packed == [8]


def test_touch_and_nop(tree: Path, packed: list[int]) -> None:
    contents = {os.fsencode(path): path.read_bytes() for path in tree.iterdir()}
    for operation in ("touch", "nop"):
        scan, table = scanned(tree, None, operation=operation)
        rows = {row.pop("path"): row for row in table.to_pylist()}
        for path, content in contents.items():
            wanted = {"bytes": len(content), "sum": sum(content)} if operation == "touch" else {"bytes": len(content)}
            assert rows.pop(path) == wanted
        assert not rows
        assert scan.errors.num_rows == 0
        assert packed
        packed.clear()


@pytest.mark.parametrize("options", [{"io": "direct"}, {"backend": "cuda"}], ids=str)
def test_when_nothing_is_packed(tree: Path, packed: list[int], options: dict[str, Any]) -> None:
    try:
        check([path for path in tree.iterdir() if path.stat().st_size < 300][:50], **options)
    except ua.UringActorsError:
        assert "backend" in options  # there is no GPU
    assert not packed


# ── files that change between the walk and the read ──────────────────────────────────────────────────────────
@pytest.mark.parametrize("io_engine", ["uring", "pread"])
def test_files_that_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io_engine: str, need_uring: Callable[[], None]
) -> None:
    """Each is its own row in ``errors``; what can be read is scanned, and the neighbours are as if nothing was."""
    if io_engine == "uring":
        need_uring()
    names = ["gone", "shorter", "empty", "longer", "another", "fifo", "folder", "link", "closed"]
    for i, name in enumerate(names):
        (tmp_path / f"{i}{name}").write_bytes(b"needle " * 10)
        (tmp_path / f"{i}{name}-neighbour").write_bytes(b"needle")
    paths = {name: tmp_path / f"{i}{name}" for i, name in enumerate(names)}

    def change() -> None:
        for name in ("gone", "fifo", "folder", "link"):
            paths[name].unlink()
        os.truncate(paths["shorter"], 20)
        os.truncate(paths["empty"], 0)
        with paths["longer"].open("ab") as file:
            file.write(b"needle needle")
        (tmp_path / "new").write_bytes(b"needle")
        (tmp_path / "new").rename(paths["another"])
        os.mkfifo(paths["fifo"])
        paths["folder"].mkdir()
        paths["link"].symlink_to("nowhere")
        paths["closed"].chmod(0)

    real = Reader._pack

    def packing(reader: Reader, batch: FileBatch) -> None:
        change()
        real(reader, batch)

    monkeypatch.setattr(Reader, "_pack", packing)
    scan, table = scanned(tmp_path, ["needle"], io_engine=io_engine)
    counts = {os.fsdecode(p): table["path"].to_pylist().count(p) for p in set(table["path"].to_pylist())}
    wanted = {f"{path}-neighbour": 1 for path in paths.values()}
    wanted |= {str(paths["shorter"]): 3, str(paths["longer"]): 10}
    failed = {
        "gone": (errno.ENOENT, None),
        "shorter": (errno.ENODATA, 20),
        "empty": (errno.ENODATA, 0),
        "another": (errno.ESTALE, None),
        "fifo": (errno.ESTALE, None),
        "folder": (errno.ESTALE, None),
        "link": (errno.ENOENT, None),
        "closed": (errno.EACCES, None),
    }
    if os.geteuid() == 0:  # to root nothing is closed
        del failed["closed"]
        wanted[str(paths["closed"])] = 10
    assert counts == wanted
    rows = {Path(os.fsdecode(row["path"])): (row["errno"], row["offset"]) for row in scan.errors.to_pylist()}
    assert rows == {paths[name]: value for name, value in failed.items()}
    assert scan.stats.files == 2 * len(names)


def test_all_files_of_a_slot_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"needle")
    real = Reader._pack

    def packing(reader: Reader, batch: FileBatch) -> None:
        for i in range(5):
            (tmp_path / str(i)).unlink()
        real(reader, batch)

    monkeypatch.setattr(Reader, "_pack", packing)
    scan, table = scanned(tmp_path, ["needle"])
    assert (table.num_rows, scan.errors["error"].to_pylist(), scan.stats.files) == (0, ["ENOENT"] * 5, 5)


@pytest.fixture
def slow_files() -> Iterator[list[Path]]:
    """150 small files on a file system that reads nothing without the permission to wait (tmpfs: EOPNOTSUPP)."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm to write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        files = [Path(top) / f"{i:03}" for i in range(150)]
        for i, path in enumerate(files):
            path.write_bytes(b"needle %d\n" % i * 200)
        with files[0].open("rb") as file, contextlib.suppress(OSError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
            pytest.skip("tmpfs reads without waiting on this kernel")
        yield files


def test_files_that_cannot_be_read_at_once(slow_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put off while the kernel fetches them; more of them than may be put off at once."""
    stats: list[Any] = []
    real = Reader.close
    monkeypatch.setattr(Reader, "close", lambda reader, *a: (stats.append(reader.stats()), real(reader, *a))[1])
    check(slow_files, [ua.Regex("needle [0-9]+")], slot_bytes=1 << 20)
    assert stats[0].files_opened == 150
    assert stats[0].lanes.packed_files == 150
    assert stats[0].lanes.packed_reads == 2 * 150
    assert not stats[0].lanes.problems()


def test_files_that_are_not_cached(tmp_path: Path) -> None:
    """How many are put off is the disk's and its readahead's matter; the rows aren't."""
    files = [tmp_path / f"{i:03}" for i in range(150)]
    for i, path in enumerate(files):
        path.write_bytes(b"needle %d\n" % i * 200)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    check(files, [ua.Regex("needle [0-9]+")], slot_bytes=1 << 20)

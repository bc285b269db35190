"""Reductions are exact: however a file is cut into extents, and in whatever order they come, the rows are those of
one pass over the whole file, by NumPy and an independent CRC32C."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests.reductions import Drive, extents_of
from tests.test_bad_input import on_open
from uring_actors.arena import abi
from uring_actors.errors import OptionError
from uring_actors.megakernel import histogram, reduce
from uring_actors.ops.bytesum import Nop, Touch
from uring_actors.ops.histogram import BLOCK_MIN, entropies

SIZES = (0, 1, 199, 4095, 4096, 4097, 65535, 65536, 65537, 300_000)


def counts_of(data: bytes) -> list[int]:
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256).tolist()


def entropy_of(data: bytes) -> float:
    return -sum(n / len(data) * math.log2(n / len(data)) for n in counts_of(data) if n)


def check(rows: list[dict[str, Any]], files: dict[bytes, bytes], block: int = 0) -> None:
    """Every row against its bytes, and no row missing or twice."""
    expected = []
    for path, data in files.items():
        expected += [(path, at) for at in (range(0, len(data), block) if block else [0])]
    assert sorted((row["path"], row.get("offset", 0)) for row in rows) == sorted(expected)
    for row in rows:
        data = files[row["path"]]
        if block:
            data = data[row["offset"] : row["offset"] + block]
        assert row["bytes"] == len(data)
        if "sum" in row:
            assert row["sum"] == sum(data)
        if "crc32c" in row:
            assert row["crc32c"] == crc32c(data)
        if "counts" in row:
            assert row["counts"] == counts_of(data)
            assert row["entropy"] == pytest.approx(entropy_of(data), abs=1e-9)


@pytest.fixture(scope="module")
def drives() -> Iterator[Callable[[Any], Drive]]:
    made: dict[Any, Drive] = {}

    def drive(operation: Any) -> Drive:
        if operation not in made:
            made[operation] = Drive(operation)
        return made[operation]

    yield drive
    for one in made.values():
        one.close()


files_of_bytes = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=40), st.integers(1, 300)),
    ),
    min_size=1,
    max_size=4,
)
operations = st.one_of(
    st.sampled_from([Nop(), Touch(), ua.Checksum(), ua.Histogram()]),
    st.builds(ua.Histogram, st.sampled_from([BLOCK_MIN, BLOCK_MIN + 1, 2000, 9000])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(operations, files_of_bytes, st.integers(40, 5000), st.data())
def test_any_extents_in_any_order(drives: Any, operation: Any, files: list[bytes], payload: int, data: Any) -> None:
    order = data.draw(st.permutations(extents_of(files, payload)))
    rows, failures = drives(operation).scan(files, payload, order)
    assert failures == []
    check(rows, {b"f%d" % i: content for i, content in enumerate(files)}, operation.block)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(operations, st.binary(min_size=1, max_size=9000), st.integers(40, 3000), st.data())
def test_missing_bytes_give_no_row_but_an_error(
    drives: Any, operation: Any, content: bytes, payload: int, data: Any
) -> None:
    extents = extents_of([content], payload)
    order = data.draw(st.permutations(extents))
    bad = data.draw(st.sampled_from(extents))
    start = bad[1] * payload
    read = data.draw(st.integers(0, min(payload, len(content) - start) - 1))
    rows, failures = drives(operation).scan([content], payload, order, {bad: (read, errno.EIO)})
    assert [(f.path, f.errno, f.offset) for f in failures] == [(b"f0", errno.EIO, start + read)]
    if operation.block:  # blocks that were read whole are rows
        lost = range(start + read, min(start + payload, len(content)))
        whole = [at for at in range(0, len(content), operation.block) if not overlaps(at, operation.block, lost)]
        assert [row["offset"] for row in rows] == whole
    elif operation.partial:
        kept = content[: start + read] + content[start + payload :]
        check([{**row, "path": b"kept"} for row in rows], {b"kept": kept})
    else:
        assert rows == []


def overlaps(at: int, size: int, lost: range) -> bool:
    return at < lost.stop and lost.start < at + size


def test_a_file_that_shrank_is_one_error_at_its_new_end(drives: Any) -> None:
    content = b"x" * 1000
    spoilt = {(0, k): (max(0, 450 - 100 * k), abi.ENODATA) for k in range(4, 10)}
    order = [(0, k) for k in (9, 4, 3, 7, 0, 1, 2, 8, 6, 5)]
    for operation in (ua.Checksum(), ua.Histogram()):
        rows, failures = drives(operation).scan([content], 100, order, spoilt)
        assert rows == []
        assert [(f.errno, f.offset) for f in failures] == [(abi.ENODATA, 450)]


def test_a_slot_whose_states_do_not_fit_becomes_a_fault(drives: Any) -> None:
    class Tiny(ua.Histogram):
        def result_bytes(self, slot_bytes: int) -> int:
            return abi.PAGE

    drive = Drive(Tiny(BLOCK_MIN))
    rows, failures = drive.scan([b"x" * 9000], 9000, [(0, 0)])
    drive.close()
    assert rows == []
    assert [(f.error, f.offset) for f in failures] == [("FAULT", 0)]


@given(st.binary(max_size=3000), st.integers(0, 15))
def test_counts_are_bincounts(data: bytes, shift: int) -> None:
    memory = np.zeros(len(data) + 16, np.uint8)
    memory[shift : shift + len(data)] = np.frombuffer(data, np.uint8)
    counts = np.full(256, -1, np.int64)
    histogram.count_bytes(memory.ctypes.data + shift, len(data), counts.ctypes.data)
    assert counts.tolist() == counts_of(data)


def test_the_most_bytes_of_a_slot_do_not_overflow_a_count() -> None:
    memory = np.zeros(64 << 20, np.uint8)
    counts = np.zeros(256, np.int64)
    histogram.count_bytes(memory.ctypes.data, len(memory), counts.ctypes.data)
    assert counts.tolist() == [64 << 20] + [0] * 255


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 26), st.integers(0, 1 << 30))
def test_state_words_count_the_blocks(offset: int, length: int, block: int) -> None:
    blocks = len({offset // block, (offset + max(length, 1) - 1) // block}) if block else 1
    if block and length > 1:
        blocks = (offset + length - 1) // block - offset // block + 1
    assert reduce.state_words(abi.OP_SCAN_HISTOGRAM, length, offset, block) == 256 * blocks
    assert reduce.state_words(abi.OP_SCAN_CRC32C, length, offset, block) == 2 * blocks


def test_entropy_of_known_distributions() -> None:
    even, one, two = np.ones(256, np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    one[7], two[:2] = 1 << 40, 5000  # beyond what the table of logarithms holds
    assert entropies(np.stack([even, one, two, np.zeros(256, np.int64)])).tolist() == [8.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("block", [1, BLOCK_MIN - 1, -1, 1 << 32])
def test_a_block_that_makes_no_sense_is_refused(block: int) -> None:
    with pytest.raises(OptionError, match="block"):
        ua.Histogram(block)


# ── through the whole pipeline ───────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    top = tmp_path_factory.mktemp("tree")
    files = {}
    for size in SIZES:
        content = np.random.default_rng(size).integers(0, 1 + size % 256, size, np.uint8).tobytes()
        (top / f"f{size}").write_bytes(content)
        files[str(top / f"f{size}").encode()] = content
    return top, files


@pytest.mark.parametrize(
    "operation",
    ["checksum", "histogram", "touch", "nop", ua.Histogram(1 << 20), ua.Histogram(4096), ua.Histogram(50_001)],
    ids=str,
)
@pytest.mark.parametrize("lanes", [1, 2])
def test_scans(tree: tuple[Path, dict[bytes, bytes]], operation: Any, lanes: int) -> None:
    scan = ua.scan(tree[0], operation=operation, engine="threads", slot_bytes=65536, slots=3, lanes=lanes)
    table = scan.to_table()
    assert table.schema == scan.schema
    assert scan.errors.num_rows == 0
    check(table.to_pylist(), tree[1], getattr(operation, "block", 0))


def test_columns(tree: tuple[Path, dict[bytes, bytes]]) -> None:
    assert ua.Checksum().schema.field("crc32c").type == pa.uint32()
    schema = ua.Histogram(4096).schema
    assert schema.names == ["path", "offset", "bytes", "entropy", "counts"]
    assert pa.types.is_fixed_size_list(schema.field("counts").type)


@pytest.mark.parametrize("operation", ["checksum", "histogram"])
def test_a_file_that_vanishes_is_an_error_row(tmp_path: Path, monkeypatch: Any, operation: str) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "good").write_bytes(b"123456789")
    on_open(monkeypatch, (tmp_path / "a").unlink)
    scan = ua.scan(tmp_path, operation=operation, engine="threads")
    check(scan.to_table().to_pylist(), {str(tmp_path / "good").encode(): b"123456789"})
    assert [(row["path"], row["error"]) for row in scan.errors.to_pylist()] == [(bytes(tmp_path / "a"), "ENOENT")]

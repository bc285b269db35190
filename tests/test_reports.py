"""Counts, names and the first matches of files: what is reported, and what is then not read."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests import oracle
from uring_actors.cli import main
from uring_actors.config import ScanOptions
from uring_actors.node import LocalNode, NodeSpec
from uring_actors.ops.match.operation import Match
from uring_actors.plan import FileBatch, devices, listing
from uring_actors.reader import Reader

PATTERNS = [
    ua.Literal("aa"),
    ua.Regex("a{2,3}b", name="bounded"),
    ua.Regex("b[^\n]*c", name="line"),
    ua.Regex("ab+c?", name="prefix"),
    ua.Regex("(?s)BEGIN.*?END", name="file"),
]
SLOT = 65536


def text(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    words = [b"aa", b"aab", b"abc", b"abbbb", b"b  c", b"\n", b"xyz ", b"-" * 300, b"-" * 900]
    words += [b"BEGIN", b"END"] if seed % 3 else []
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(rng.choice(words))
    return b"".join(parts)[:size]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    for i, size in enumerate([0, 1, 199, 4096, 30000, 61439, 61440, 200_000, 400_000]):
        (top / f"f{i}").write_bytes(text(i, size))
    (top / "nothing").write_bytes(b"\n" * 100_000)
    return top


def scanned(paths: Any, patterns: Any = PATTERNS, **options: Any) -> tuple[ua.Scan, pa.Table]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no io_uring here
        scan = ua.scan(paths, patterns=patterns, **{"engine": "threads", "slot_bytes": SLOT, "slots": 4, **options})
    return scan, scan.to_table()


def files(top: Path) -> list[Path]:
    return sorted(top.iterdir())


@pytest.mark.parametrize("most", [None, 1, 3, 100])
@pytest.mark.parametrize("io_engine", ["auto", "pread"])
def test_against_the_oracle(tree: Path, most: int | None, io_engine: str) -> None:
    rows = sorted(
        oracle.expected(files(tree), PATTERNS),
        key=lambda r: (r[0], r[2], [p.name or "aa" for p in PATTERNS].index(r[1])),
    )
    first: list[oracle.Row] = []
    for row in rows:
        if most is None or sum(known[0] == row[0] for known in first) < most:
            first.append(row)
    counts = Counter(row[0] for row in first)
    scan, table = scanned(tree, max_count=most, io_engine=io_engine)
    assert oracle.found(table) == set(first)
    oracle.check_bytes(table)
    assert scan.stats.matches == len(first)

    scan, table = scanned(tree, max_count=most, report="count", io_engine=io_engine)
    assert table.to_pylist() == [{"path": p, "count": n} for p, n in zip(*table.to_pydict().values(), strict=True)]
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {
        os.fsencode(p): counts[os.fsencode(p)] for p in files(tree)
    }
    assert scan.stats.matches == sum(counts.values())

    scan, table = scanned(tree, max_count=most, report="files", io_engine=io_engine)
    assert sorted(table["path"].to_pylist()) == sorted(counts)
    assert scan.stats.files == len(files(tree))


@settings(max_examples=20, database=None)
@given(seed=st.integers(0, 1 << 20), most=st.integers(1, 40), patterns=st.sets(st.sampled_from(PATTERNS), min_size=1))
def test_first_matches_of_any_patterns(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: int, patterns: set[ua.Regex]
) -> None:
    path = tmp_path_factory.mktemp("one") / "f"
    path.write_bytes(text(seed, 150_000))
    chosen = [p for p in PATTERNS if p in patterns]
    order = {oracle.name_of(p): i for i, p in enumerate(chosen)}
    rows = sorted(oracle.expected([path], chosen), key=lambda r: (r[2], order[r[1]]))
    _, table = scanned(path, chosen, max_count=most, io_engine="pread")
    assert oracle.found(table) == set(rows[:most])


def lanes_read(
    path: Path, *, slots: int = 4, lanes: int = 1, io_engine: str, **how: Any
) -> tuple[pa.Table, int, int]:
    """The rows; and how many bytes the lanes read, and how many extents they were spared."""
    operation = Match.of([ua.Literal("needle")], **how)
    options = ScanOptions.of(engine="threads", slot_bytes=SLOT, slots=slots, lanes=lanes, io_engine=io_engine)
    node = LocalNode(NodeSpec.decide(operation, options, devices(path)))
    try:
        node.start()
        total = 0
        for batch in listing(path):
            total += len(batch)  # type: ignore[arg-type]
            node.submit(batch)  # type: ignore[arg-type]
        node.finish(total)
        table = pa.Table.from_batches(list(node.batches(lambda: None)), operation.schema)
        for reader in node._readers:
            reader.finish(30)
        stats = [reader.stats().lanes for reader in node._readers]
        assert node.stats().host.files == total
        assert not node.failures()
    finally:
        node.close()
    return table, sum(s.completed_bytes for s in stats), sum(s.extents_spared for s in stats)


ENGINES = ["uring", "pread", "liburing"]


@pytest.mark.parametrize("io_engine", ENGINES)
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("how", [{"report": "files"}, {"max_count": 2}, {"report": "count", "max_count": 2}], ids=str)
def test_a_file_is_not_read_beyond_what_is_wanted(
    tmp_path: Path, io_engine: str, lanes: int, how: dict[str, Any], need_uring: Callable[[], None]
) -> None:
    if io_engine != "pread":
        need_uring()
    size = 300 * SLOT
    line = b"no match in here\n" * 4096
    (tmp_path / "early").write_bytes(b"needle needle needle" + (line * 300)[: size - 20])
    (tmp_path / "late").write_bytes((line * 300)[: size - 20] + b"needle needle needle")
    table, read, spared = lanes_read(tmp_path, io_engine=io_engine, lanes=lanes, **how)
    if "report" not in how:
        assert table.num_rows == 4
    else:
        assert sorted(table["path"].to_pylist()) == [os.fsencode(tmp_path / name) for name in ("early", "late")]
    whole = lanes_read(tmp_path, io_engine=io_engine, lanes=lanes)
    assert (whole[0].num_rows, whole[2]) == (6, 0)
    assert whole[1] >= 2 * size
    # All of one file, and of the other what was under way when its first matches were settled.
    assert size <= read <= 1.5 * size
    assert spared >= 150


def test_a_candidate_alone_stops_nothing(tmp_path: Path) -> None:
    """The engine knows no word borders here: what it reports is no match before RE2 has said so."""
    (tmp_path / "only candidates").write_bytes(b"xfoox\n" * 50_000)
    (tmp_path / "and a match").write_bytes(b"xfoox\n" * 50_000 + b"foo")
    for how in ({"report": "files"}, {"max_count": 1}):
        _, table = scanned(tmp_path, [ua.Regex(r"\bfoo\b")], **how)
        assert table["path"].to_pylist() == [os.fsencode(tmp_path / "and a match")]


def test_a_file_that_cannot_be_read_has_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").write_bytes(b"needle")
    (tmp_path / "here").write_bytes(b"needle")
    real = Reader._read_files

    def reading(reader: Reader, batch: FileBatch) -> None:
        (tmp_path / "gone").unlink()
        real(reader, batch)

    monkeypatch.setattr(Reader, "_read_files", reading)
    scan, table = scanned(tmp_path, ["needle"], report="count")
    assert table.to_pylist() == [{"path": os.fsencode(tmp_path / "here"), "count": 1}]
    assert scan.errors["error"].to_pylist() == ["ENOENT"]


# ── on the command line ──────────────────────────────────────────────────────────────────────────────────────
def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = main(["scan", "--engine", "threads", "--quiet", *arguments])
    return status, sorted(capfd.readouterr().out.splitlines())


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "a.py": "x x\nx",
        "b.log": "x",
        "c.py": "",
        ".d.py": "x",
        "big.py": "x" + "-" * 5000,
    }.items():
        Path(name).write_text(content)
    assert command(capfd, "-c", "-e", "x", ".") == (
        0,
        ["./.d.py:1", "./a.py:3", "./b.log:1", "./big.py:1", "./c.py:0"],
    )
    assert command(capfd, "-l", "-e", "x", "--no-hidden", "--max-filesize", "4K", ".") == (0, ["./a.py", "./b.log"])
    assert command(capfd, "-m", "2", "--include", "a*", "-e", "x", ".") == (0, ["./a.py:1:1:x", "./a.py:1:3:x"])
    assert command(capfd, "--exclude", "*.py", "--gitignore", "-e", "y", ".") == (1, [])
    assert command(capfd, "-c", "-e", "y", "a.py") == (1, ["a.py:0"])
    status, lines = command(capfd, "-c", "-e", "x", "--format", "jsonl", "b.log")
    assert (status, [json.loads(line) for line in lines]) == (0, [{"path": "b.log", "count": 1}])


@pytest.mark.parametrize(
    "arguments",
    [["-c", "-l"], ["-m", "0"], ["--max-filesize", "some"], ["--operation", "touch", "-c"], ["--include", "!*"]],
    ids=str,
)
def test_usage_errors(capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]) -> None:
    patterns = [] if "touch" in arguments else ["-e", "x"]
    assert command(capfd, *arguments, *patterns, str(tmp_path)) == (2, [])

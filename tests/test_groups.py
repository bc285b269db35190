"""Groups: a node's items, taken apart by group, are each group's rows, then its end."""

from __future__ import annotations

import os
import random
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import oracle
from tests.small_scan import SMALL
from uring_actors import kernel_host
from uring_actors.config import ScanOptions
from uring_actors.errors import PipelineError
from uring_actors.groups import GroupEnd, GroupRows, Groups
from uring_actors.node import LocalNode, NodeSpec
from uring_actors.ops.base import Operation
from uring_actors.ops.bytesum import Touch
from uring_actors.ops.match.operation import Match
from uring_actors.plan import FileEntry, devices, walk
from uring_actors.results.schema import MATCH_SCHEMA

PATTERNS = [ua.Regex("ne+dle"), ua.Regex(r"x\d+")]


def run(folder: Path, operation: Operation, groups: list[list[FileEntry]], **options: Any) -> list[Any]:
    chosen = ScanOptions(**{**SMALL, **options})
    node = LocalNode(NodeSpec.decide(operation, chosen, devices(folder)))
    try:
        node.start()

        def submit() -> None:
            for number, files in enumerate(groups):
                node.submit(files, 100 + number)
            node.finish(sum(map(len, groups)))

        thread = threading.Thread(target=submit)
        thread.start()
        items = list(node.batches(lambda: None))
        thread.join()
        return items
    finally:
        node.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes around the borders, with and without matches; one file can't be read."""
    path = tmp_path_factory.mktemp("groups")
    rng = random.Random(6)
    for number, size in enumerate([0, 0, 1, 199, 4095, 4096, 4097, 65535, 65536, 65537, 400_000, *[300] * 90]):
        words = (rng.choice([b"needle ", b"neeedle\n", b"x123 ", *[b"nothing\n"] * 40]) for _ in range(size // 5 + 1))
        (path / f"{number:03}").write_bytes(b"".join(words)[:size])
    return path


@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (7, 3), (1000, 1)])
def test_rows_then_the_end(folder: Path, size: int, lanes: int) -> None:
    files = [entry for entry in walk(folder) if isinstance(entry, FileEntry)]
    random.Random(size).shuffle(files)
    groups = [files[i : i + size] for i in range(0, len(files), size)]
    items = run(folder, Match.of(PATTERNS), groups, lanes=lanes)
    rows: dict[int, list[pa.RecordBatch]] = defaultdict(list)
    ended: list[int] = []
    for item in items:
        assert item.group not in ended, "something came after the end"
        if isinstance(item, GroupRows):
            rows[item.group].append(item.batch)
        else:
            ended.append(item.group)
            of = groups[item.group - 100]
            assert (item.files, item.bytes, item.failures) == (len(of), sum(entry.size for entry in of), ())
            table = pa.Table.from_batches(rows[item.group], MATCH_SCHEMA)
            assert oracle.found(table) == oracle.expected([Path(os.fsdecode(entry.path)) for entry in of], PATTERNS)
    assert sorted(ended) == [100 + number for number in range(len(groups))]


def test_a_groups_rows_come_with_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: each bundle is a call of Ray's, and nobody uses the rows before."""
    monkeypatch.setattr(kernel_host, "_FLUSH_SECONDS", 0.0)
    files = [entry for entry in walk(folder) if isinstance(entry, FileEntry)]
    options = ScanOptions(engine="threads", io_engine="pread", slot_bytes=65536, slots=4)
    node = LocalNode(NodeSpec.decide(Match.of(PATTERNS), options, devices(folder)))
    try:
        node.start()
        node.submit(files[:30], 1)
        node.submit(files[30:], 2)
        node.finish(len(files))
        bundles = list(node.bundles(lambda: None))
    finally:
        node.close()
    ends = [[item.group for item in bundle if isinstance(item, GroupEnd)] for bundle in bundles]
    assert all(ends)
    assert sorted(group for groups in ends for group in groups) == [1, 2]
    rows = [item.batch for bundle in bundles for item in bundle if isinstance(item, GroupRows)]
    wanted = oracle.expected([Path(os.fsdecode(entry.path)) for entry in files], PATTERNS)
    assert oracle.found(pa.Table.from_batches(rows, MATCH_SCHEMA)) == wanted


def test_failures_are_their_groups(folder: Path, tmp_path: Path) -> None:
    files = [entry for entry in walk(folder) if isinstance(entry, FileEntry)][2:]
    gone = FileEntry(9000, os.fsencode(tmp_path / "gone"), 10, files[0].device, 1)
    groups = [files[:20], [*files[20:30], gone], files[30:]]
    ends = {item.group: item for item in run(folder, Touch(), groups) if isinstance(item, GroupEnd)}
    assert [len(ends[100 + number].failures) for number in range(3)] == [0, 1, 0]
    assert ends[101].failures[0].path == gone.path
    assert ends[101].bytes == sum(entry.size for entry in files[20:30])


def test_a_path_in_two_groups_is_refused() -> None:
    groups = Groups()
    groups.begin(1, [FileEntry(0, b"/a", 1, 1, 1)])
    with pytest.raises(PipelineError, match="twice"):
        groups.begin(2, [FileEntry(1, b"/a", 1, 1, 1)])

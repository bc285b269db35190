"""Row groups of many files become record batches of a bounded size, with nothing lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from uring_actors.ops.match.rows import NO_ROWS, Rows
from uring_actors.results.schema import MATCH_SCHEMA, MatchBatches

NAMES = ["first", "second"]


def group(texts: list[bytes], *, line: int = 1) -> Rows:
    n = len(texts)
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
    start = np.arange(n, dtype=np.int64) * 10
    lengths = offsets[1:] - offsets[:-1]
    lines, columns = np.full(n, line, np.int64), start + line
    pattern = (np.arange(n) % 2).astype(np.int32)
    return Rows(pattern, start, start + lengths, lines, columns, offsets, np.frombuffer(b"".join(texts), np.uint8))


def collect(groups: list[tuple[bytes, Rows]], **limits: int) -> list[Any]:
    batches = MatchBatches(NAMES, **limits)
    out = [b for path, rows in groups for b in batches.add(path, rows)]
    return [*out, *batches.flush()]


def test_rows_and_nulls() -> None:
    (batch,) = collect([(b"/a\xff", group([b"x", b"\xffyz"])), (b"/b", NO_ROWS), (b"/c", group([b"q"], line=0))])
    assert batch.schema == MATCH_SCHEMA
    batch.validate(full=True)
    assert batch.to_pylist() == [
        {"path": b"/a\xff", "pattern": "first", "start": 0, "end": 1, "line": 1, "column": 1, "match": b"x"},
        {"path": b"/a\xff", "pattern": "second", "start": 10, "end": 13, "line": 1, "column": 11, "match": b"\xffyz"},
        {"path": b"/c", "pattern": "first", "start": 0, "end": 1, "line": None, "column": None, "match": b"q"},
    ]


@pytest.mark.parametrize(("max_rows", "max_match_bytes"), [(1, 100), (3, 100), (64, 7), (2, 1), (1000, 1000)])
def test_limits_split_groups_and_keep_order(max_rows: int, max_match_bytes: int) -> None:
    groups = [(b"/%d" % i, group([b"m" * (k % 5 + 1) for k in range(i * 3 % 11)])) for i in range(9)]
    batches = collect(groups, max_rows=max_rows, max_match_bytes=max_match_bytes)
    rows = [row for batch in batches for row in batch.to_pylist()]
    one_by_one = [row for g in groups for batch in collect([g]) for row in batch.to_pylist()]
    assert rows == one_by_one
    for batch in batches:
        sizes = [len(m) for m in batch["match"].to_pylist()]
        assert len(sizes) <= max_rows
        assert len(sizes) == 1 or sum(sizes) <= max_match_bytes


def test_nothing_gives_no_batch() -> None:
    assert collect([(b"/a", NO_ROWS)]) == []

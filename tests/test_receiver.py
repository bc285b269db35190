"""Where a job's rows wait: what they count for, and what is said where they can't be written."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest

from uring_actors.errors import UringActorsError
from uring_actors.groups import GroupEnd, GroupRows
from uring_actors.many import receiver
from uring_actors.many.progress import PARTS
from uring_actors.many.receiver import Receiver, matches_in
from uring_actors.results.schema import COUNT_SCHEMA, FILE_SCHEMA, MATCH_SCHEMA


def batch(schema: pa.Schema, *rows: dict[str, object]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema)


def test_what_counts_as_a_match() -> None:
    match = {"path": b"/f", "pattern": "p", "start": 0, "end": 1, "match": b"x"}
    assert matches_in(batch(MATCH_SCHEMA, match, match)) == 2
    assert matches_in(batch(COUNT_SCHEMA, {"path": b"/f", "count": 3}, {"path": b"/g", "count": 4}).slice(1)) == 4
    assert matches_in(batch(FILE_SCHEMA, {"path": b"/f"})) == 1


@pytest.mark.parametrize(("name", "kind", "value"), [("count", pa.string(), "many"), ("pattern", pa.int64(), 7)])
def test_a_users_columns_are_no_matches(name: str, kind: pa.DataType, value: object) -> None:
    """Whatever an operation calls them: all that find no matches have ``bytes``."""
    schema = pa.schema([("path", pa.binary()), ("bytes", pa.int64()), (name, kind)])
    assert matches_in(batch(schema, {"path": b"/f", "bytes": 2, name: value})) == 0


@pytest.mark.parametrize("early", [True, False], ids=["while they come", "at the end"])
def test_rows_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    taken = Receiver(FILE_SCHEMA, tmp_path, with_node=False)  # whose directory of parts isn't there
    rows, end = GroupRows(1, batch(FILE_SCHEMA, {"path": b"/f"})), GroupEnd(1, 1, 2, ())
    if early:
        monkeypatch.setattr(receiver, "MEMORY_BYTES", 0)
    else:
        taken.take([("pipeline", "node", rows)], lambda receipts: [True] * len(receipts))
    with pytest.raises(UringActorsError, match="cannot write rows") as raised:
        taken.take([("pipeline", "node", rows if early else end)], lambda receipts: [True] * len(receipts))
    assert (raised.value.path, raised.value.errno) == (bytes(tmp_path / PARTS), errno.ENOENT)

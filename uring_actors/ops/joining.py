"""Rows of a file's pieces made into the file's rows, by the way that an operation names (``Operation.splits``).

``matches`` are put right piece by piece (``pieces.py`` says why that is exact). All else has one row a file, which is
made of all pieces' rows at once: a sum of counts, or the row of the combined states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from uring_actors.ops.bytesum import Nop, Touch
from uring_actors.ops.checksum import Checksum
from uring_actors.ops.histogram import Histogram
from uring_actors.ops.reduction import SplitReduction
from uring_actors.pieces import UNKNOWN, Border
from uring_actors.results.arrays import array, nulls_of, scalar, values_of

MATCHES: Final = "matches"
_COUNT: Final = "count"
_REDUCTIONS: Final[dict[str, SplitReduction]] = {
    operation.splits: operation for operation in (Nop(), Touch(), Checksum(), Histogram()) if operation.splits
}


def put_right(batch: pa.RecordBatch, path: bytes, border: Border, *, drop: bool) -> pa.RecordBatch:
    """Rows of the piece that begins at ``border``, as rows of the file. ``drop``: rows of which a match from before
    the piece leaves no room may be among them."""
    if drop and border.resume:
        batch = _without_overlaps(batch, border)
    start, line, column = (batch.column(name) for name in ("start", "line", "column"))
    if border.newlines == UNKNOWN:
        line = pa.nulls(len(batch), pa.int64())
    elif border.newlines:
        line = array(values_of(line) + border.newlines, pa.int64(), null=nulls_of(line))
    starts, columns, unknown = values_of(start), values_of(column), nulls_of(column)
    first = columns == starts + 1  # no newline of the piece before them
    if border.newline == UNKNOWN:
        unknown = unknown | first
    else:
        columns = np.where(first, starts - border.newline, columns)
    changed = {
        "path": pa.repeat(scalar(path, pa.binary()), len(batch)),
        "line": line,
        "column": array(columns, pa.int64(), null=unknown),
    }
    return pa.RecordBatch.from_arrays(
        [changed.get(name, batch.column(name)) for name in batch.schema.names], schema=batch.schema
    )


def _without_overlaps(batch: pa.RecordBatch, border: Border) -> pa.RecordBatch:
    patterns, start = values_of(batch.column("pattern").indices), values_of(batch.column("start"))
    keep = np.ones(len(batch), np.bool_)
    for pattern, resume in border.resume.items():
        keep &= (patterns != pattern) | (start >= resume)
    return batch if keep.all() else batch.filter(array(keep, pa.bool_()))


def join(kind: str, pieces: Sequence[Sequence[pa.RecordBatch]], path: bytes, dropped: int) -> pa.RecordBatch | None:
    """The row of a file, from those of all of its pieces, in order; None where it has none. ``dropped``: how many
    matches were counted that must go."""
    batches = [batch for piece in pieces for batch in piece if len(batch)]
    if not batches:
        return None
    first = batches[0].slice(0, 1)
    if kind == _COUNT:
        total = sum(int(batch.column("count")[0].as_py()) for batch in batches) - dropped
        return _changed(first, path=path, count=total)
    operation = _REDUCTIONS[kind]
    if len(batches) < len(pieces) and not operation.partial:
        return None
    state, size = operation.empty, 0
    for batch in batches:
        _, part, *values = next(iter(batch.to_pylist())).values()
        state, size = operation.combine(state, operation.load_row(part, values)), size + part
    whole = operation.batch([path], [0], [size], [operation.finish(state, size)])
    rest = first.columns[len(whole.columns) :]  # node, where rows have it
    return pa.RecordBatch.from_arrays([*whole.columns, *rest], schema=first.schema)


def _changed(batch: pa.RecordBatch, **values: object) -> pa.RecordBatch:
    """The batch, of one row, with other values in some columns."""
    columns = [
        array([values[field.name]], field.type) if field.name in values else batch.column(field.name)
        for field in batch.schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)

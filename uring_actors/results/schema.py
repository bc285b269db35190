"""Matches as Arrow record batches.

``line`` and ``column`` are null where an unreadable stretch before the match hides them. ``pattern`` is the
pattern's name; ``path`` and ``match`` are bytes, since neither need be text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from uring_actors.ops.match.newlines import Ints
from uring_actors.ops.match.rows import Rows
from uring_actors.results.arrays import array

MATCH_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("pattern", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("column", pa.int64()),
        pa.field("match", pa.binary(), nullable=False),
    ]
)

COUNT_SCHEMA = pa.schema(
    [pa.field("path", pa.binary(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)
"""How many matches each file has."""

FILE_SCHEMA = pa.schema([pa.field("path", pa.binary(), nullable=False)])
"""The files that have a match."""

MAX_ROWS = 64 << 10
MAX_MATCH_BYTES = 4 << 20

Piece = tuple[bytes, Rows, int, int]
"""A path and rows [first, last) of one of its groups."""


def _binary(offsets: Ints, data: Any) -> pa.Array:
    """A binary array; Arrow's offsets are 32 bits, and a batch's bytes stay below that by far."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _nullable(values: Ints) -> pa.Array:
    return array(values, pa.int64(), null=values == 0)


def _match_bytes(pieces: Sequence[Piece]) -> pa.Array:
    ends: list[Ints] = [np.zeros(1, np.int64)]
    data = []
    total = 0
    for _, rows, first, last in pieces:
        low, high = int(rows.offsets[first]), int(rows.offsets[last])
        ends.append(rows.offsets[first + 1 : last + 1] + (total - low))
        data.append(rows.data[low:high])
        total += high - low
    return _binary(np.concatenate(ends), np.concatenate(data))


def _paths(pieces: Sequence[Piece]) -> pa.Array:
    """Each piece's path, once for each row. By hand: the first use of ``pyarrow.compute`` takes 70 ms."""
    counts = [last - first for _, _, first, last in pieces]
    lengths = np.repeat([len(path) for path, *_ in pieces], counts)
    data = b"".join(path * count for (path, *_), count in zip(pieces, counts, strict=True))
    return _binary(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), data)


def match_batch(pieces: Sequence[Piece], names: pa.Array) -> pa.RecordBatch:
    """One batch of the pieces (at least one). ``names`` has each pattern's name at its index."""

    def column(name: str) -> Any:
        return np.concatenate([getattr(rows, name)[first:last] for _, rows, first, last in pieces])

    arrays = [
        _paths(pieces),
        pa.DictionaryArray.from_arrays(array(column("pattern"), pa.int32()), names),
        array(column("start"), pa.int64()),
        array(column("end"), pa.int64()),
        _nullable(column("line")),
        _nullable(column("column")),
        _match_bytes(pieces),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=MATCH_SCHEMA)


class MatchBatches:
    """Collects rows of many files and yields batches of at most MAX_ROWS rows and about MAX_MATCH_BYTES.

    A single match above that has a batch for itself. Rows keep the order in which they came. The caller decides
    when to ``flush``: at the end, and when what has been collected should not wait longer.
    """

    def __init__(
        self, names: Sequence[str], *, max_rows: int = MAX_ROWS, max_match_bytes: int = MAX_MATCH_BYTES
    ) -> None:
        self._names = array(names, pa.string())
        self._max_rows = max_rows
        self._max_bytes = max_match_bytes
        self._pieces: list[Piece] = []
        self._rows = 0
        self._bytes = 0

    def add(self, path: bytes, rows: Rows) -> Iterator[pa.RecordBatch]:
        """Take a group of rows; yields the batches that it fills (run it to its end)."""
        first = 0
        while first < len(rows):
            room = int(rows.offsets[first]) + self._max_bytes - self._bytes
            fits = len(rows)
            if rows.offsets[fits] > room:  # mostly all fit, and to look is quicker than to search
                fits = int(np.searchsorted(rows.offsets, room, "right")) - 1
            last = min(len(rows), first + self._max_rows - self._rows, fits)
            if last <= first:
                if self._pieces:
                    yield from self.flush()
                    continue
                last = first + 1
            self._pieces.append((path, rows, first, last))
            self._rows += last - first
            self._bytes += int(rows.offsets[last] - rows.offsets[first])
            first = last
            if first < len(rows) or self._rows == self._max_rows:
                yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """What has been collected, if anything."""
        if self._pieces:
            pieces, self._pieces, self._rows, self._bytes = self._pieces, [], 0, 0
            yield match_batch(pieces, self._names)

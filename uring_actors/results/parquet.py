"""Rows as a Parquet file, written as they come: memory holds one row group at most."""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 128 << 10
BYTES = 16 << 20
"""A row group is written when it has so many rows, or so many bytes in memory."""


class ParquetWriter:
    """A ``results.writers.Writer``."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._schema = schema
        self._writer = pq.ParquetWriter(pa.PythonFile(_Sink(stream), "w"), schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._waiting.append(batch.select(self._schema.names).cast(self._schema))
            self._rows += batch.num_rows
            self._bytes += batch.nbytes
            if self._rows >= ROWS or self._bytes >= BYTES:
                self._write_group()

    def close(self) -> None:
        self._write_group()
        self._writer.close()
        self._stream.flush()

    def _write_group(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            self._waiting, self._rows, self._bytes = [], 0, 0
            self._writer.write_table(table, row_group_size=table.num_rows)


class _Sink:
    """What pyarrow writes to. A writer that is dropped before its end writes the file's end all the same: that goes
    nowhere where the stream has failed or was closed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._failed = False
        self.closed = False

    def write(self, data: Any) -> int:
        if not self._failed and not self._stream.closed:
            try:
                self._stream.write(data)
            except BaseException:
                self._failed = True
                raise
        return len(data)

    def flush(self) -> None:
        """The stream is flushed at its end."""

    def close(self) -> None:
        """The stream stays open."""
        self.closed = True

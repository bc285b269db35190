"""Where rows wait until their lease is whole.

A lease's rows count all at once, when its end has come and the orchestrator has taken the acknowledgement; until then
they are in memory, and beyond ``MEMORY_BYTES`` in all of them together in temporary files. Where the job keeps its
progress, the rows are a part of it (``progress.py``), on the disk before they are acknowledged.

What a pipeline that died has left unfinished is dropped, and so are the rows of a lease that somebody else has
finished.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from uring_actors.errors import UringActorsError
from uring_actors.groups import GroupEnd, GroupRows
from uring_actors.journal import sync_directory
from uring_actors.many.progress import PARTS, Receipt, read_part
from uring_actors.results.arrays import array, scalar, values_of

MEMORY_BYTES: Final = 256 << 20

Came: TypeAlias = tuple[str, str, GroupRows | GroupEnd | None]
"""(pipeline, node, item); item None: that pipeline is lost."""

Commit = Callable[[Sequence[tuple[int, str, Receipt]]], list[bool]]
"""Of each (lease, pipeline, receipt), whether it counts."""


class LeaseRows:
    """The rows of one lease, from one pipeline. Life: filled → kept or dropped."""

    def __init__(self, schema: pa.Schema, path: Path) -> None:
        self.rows = 0
        self.matches = 0
        self.memory = 0
        """Bytes."""
        self._schema = schema
        self._path = path
        self._batches: list[pa.RecordBatch] = []
        self._writer: Any = None
        self._sink: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.matches += matches_in(batch)
        if self._writer is not None:
            self._writer.write_batch(batch)
            return
        self._batches.append(batch)
        self.memory += batch.nbytes

    def spill(self) -> None:
        """Into the file, what there is and what will come."""
        if self._writer is None:
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pa.ipc.new_file(self._sink, self._schema)
        batches, self._batches, self.memory = self._batches, [], 0
        for batch in batches:
            self._writer.write_batch(batch)

    def keep(self, final: Path, *, durable: bool) -> None:
        """Have the rows in a file of that name, whole."""
        kept, self._batches = self._batches, self._batches[:]
        self.spill()
        self._batches = kept  # who wants them next need not read them
        self._finish()
        if durable:
            number = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        os.rename(self._path, final)
        self._path = final
        if durable:
            sync_directory(final.parent)

    def put_away(self) -> None:
        """Have them in the file only, once ``add`` is over: they will be wanted later."""
        if self._writer is None and self.rows:
            self.spill()
        self._finish()
        self._batches, self.memory = [], 0

    def _finish(self) -> None:
        if self._writer is not None and not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of them; once ``add`` is over."""
        if self._batches or self._writer is None:
            yield from self._batches
            return
        self._finish()
        yield from read_part(self._path)

    def drop(self) -> None:
        """Forget them, and a temporary file with them."""
        self._batches = []
        self._finish()
        self._path.unlink(missing_ok=True)


class Receiver:
    """Takes what pipelines yield. One thread.

    directory: the job's, where rows are kept there as parts; None: they are not kept, and spill to a temporary one.
    """

    def __init__(self, schema: pa.Schema, directory: Path | None, *, with_node: bool, durable: bool = True) -> None:
        self.schema = with_node_column(schema) if with_node else schema
        self._with_node = with_node
        self._durable = durable
        self._parts = None if directory is None else directory / PARTS
        self._scratch = tempfile.TemporaryDirectory(prefix="uring_actors-") if directory is None else None
        self._open: dict[tuple[str, int], LeaseRows] = {}

    def take(self, came: Iterable[Came], commit: Commit) -> list[tuple[GroupEnd, LeaseRows]]:
        """The leases that have ended with this, and count, and their rows: ``drop`` them after use, where they are
        not kept. All are acknowledged with one call of ``commit``."""
        ended: list[tuple[GroupEnd, LeaseRows]] = []
        receipts: list[tuple[int, str, Receipt]] = []
        try:
            for pipeline, node, item in came:
                if item is None:
                    self._lose(pipeline)
                elif isinstance(item, GroupRows):
                    self._rows((pipeline, item.group)).add(self._labelled(item.batch, node))
                    self._limit_memory()
                else:
                    key = pipeline, item.group
                    rows = self._open.pop(key, None) or self._new(key)
                    ended.append((item, rows))
                    receipts.append((item.group, pipeline, self._receipt(rows, pipeline, node, item)))
            counts = commit(receipts) if receipts else []
            for (_, rows), counted in zip(ended, counts, strict=True):
                if not counted:
                    rows.drop()
        except OSError as error:
            raise UringActorsError(
                "cannot write rows", path=os.fsencode(self._directory), errno=error.errno
            ) from error
        return [one for one, counted in zip(ended, counts, strict=True) if counted]

    def _receipt(self, rows: LeaseRows, pipeline: str, node: str, end: GroupEnd) -> Receipt:
        """Of a lease whose rows are whole, and safe here."""
        part = None
        if self._parts is not None and rows.rows:
            part = f"{end.group:016x}-{pipeline}.arrow"
            rows.keep(self._parts / part, durable=self._durable)
        failures = tuple(replace(failure, node=node) for failure in end.failures)
        return Receipt(end.files, end.bytes, rows.matches, part, failures, end.piece)

    @property
    def _directory(self) -> Path:
        return self._parts or Path(self._scratch.name if self._scratch else "")

    def _rows(self, key: tuple[str, int]) -> LeaseRows:
        if key not in self._open:
            self._open[key] = self._new(key)
        return self._open[key]

    def _new(self, key: tuple[str, int]) -> LeaseRows:
        return LeaseRows(self.schema, self._directory / f"{key[1]:016x}-{key[0]}.partial")

    def _labelled(self, batch: pa.RecordBatch, node: str) -> pa.RecordBatch:
        if not self._with_node:
            return batch
        zeros = pa.repeat(scalar(0, pa.int32()), batch.num_rows)
        names = pa.DictionaryArray.from_arrays(zeros, array([node], pa.string()))
        return pa.RecordBatch.from_arrays([*batch.columns, names], schema=self.schema)

    def _limit_memory(self) -> None:
        if sum(rows.memory for rows in self._open.values()) > MEMORY_BYTES:
            max(self._open.values(), key=lambda rows: rows.memory).spill()

    def _lose(self, pipeline: str) -> None:
        """The pipeline has died: nothing more will come of it."""
        for key in [key for key in self._open if key[0] == pipeline]:
            self._open.pop(key).drop()

    def close(self) -> None:
        """Drop what has not ended."""
        for rows in self._open.values():
            rows.drop()
        self._open.clear()
        if self._scratch is not None:
            self._scratch.cleanup()


def with_node_column(schema: pa.Schema) -> pa.Schema:
    """The schema of rows that say which node they were read on."""
    return schema.append(pa.field("node", pa.dictionary(pa.int32(), pa.string()), nullable=False))


def matches_in(batch: pa.RecordBatch) -> int:
    """How many matches the rows stand for: of an operation that looks for none, 0."""
    names = batch.schema.names
    if "bytes" in names:  # a reduction's: whatever else its columns are called
        return 0
    return int(np.sum(values_of(batch.column("count")))) if "count" in names else batch.num_rows

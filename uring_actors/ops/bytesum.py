"""NOP and TOUCH: operations that measure the pipeline itself.

NOP touches no byte: its rows say how many bytes of each file arrived. TOUCH reads every byte and adds the sum of
their values. Extents are settled in bulk, with NumPy, in any order: a slot costs no interpreted code of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import ring
from uring_actors.megakernel.cpu import Worker
from uring_actors.ops.base import Rows, Settler, extents, fault_failure, read_failure
from uring_actors.plan import FileEntry
from uring_actors.results.errors import Failure

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Nop:
    """Read everything, look at nothing. Rows: path, bytes."""

    opcode: int = abi.OP_SCAN_NOP
    halo: int = 0
    lead: bool = False
    on_gpu: bool = True

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [pa.field("path", pa.binary(), nullable=False), pa.field("bytes", pa.int64(), nullable=False)]
        )

    def make_worker(self, arena: Arena) -> Worker | None:
        return None

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        return SumSettler(self.schema, payload)


@dataclass(frozen=True, slots=True)
class Touch(Nop):
    """Read every byte. Rows: path, bytes, sum (of the values of all bytes that could be read)."""

    opcode: int = abi.OP_SCAN_TOUCH

    @property
    def schema(self) -> pa.Schema:
        return Nop().schema.append(pa.field("sum", pa.int64(), nullable=False))


class SumSettler:
    """Adds up extents by file."""

    def __init__(self, schema: pa.Schema, payload: int) -> None:
        self.files = 0
        self.bytes = 0
        self.matches = 0
        self.failures: list[Failure] = []
        self.settled: list[int] = []
        self._schema = schema
        self._payload = payload
        self._entries: dict[int, FileEntry] = {}
        # By file id: extents still to come, bytes and sum so far.
        self._open = np.zeros((3, 1024), np.int64)
        self._ready: list[tuple[bytes, int, int]] = []
        self._shrunk: dict[int, Failure] = {}

    def expect(self, files: Sequence[FileEntry]) -> None:
        for entry in files:
            if entry.size == 0:
                self.files += 1
                self.settled.append(entry.id)
                self._ready.append((entry.path, 0, 0))
                continue
            self._entries[entry.id] = entry
            if entry.id >= self._open.shape[1]:
                grown = np.zeros((3, 2 * max(entry.id, self._open.shape[1])), np.int64)
                grown[:, : self._open.shape[1]] = self._open
                self._open = grown
            self._open[:, entry.id] = (extents(entry.size, self._payload), 0, 0)

    def settle(self, rows: Rows) -> None:
        ids = rows[:, ring.COLUMN_FILE_ID]
        flags = rows[:, ring.COLUMN_FLAGS]
        payload = rows[:, ring.COLUMN_PAYLOAD_BYTES]
        faults = rows[:, ring.COLUMN_STATUS] == abi.FAULT
        for row in rows[(flags & abi.FLAG_FAILED != 0) | faults].tolist():
            self._fail(row)
        self.bytes += int(payload.sum())
        # A file that can't be opened has one slot, whatever its size: it is at its end with it.
        unopened = rows[:, ring.COLUMN_DATA_SLOT] == abi.NO_DATA_SLOT
        left, count, total = self._open
        np.subtract.at(left, ids, 1)
        left[ids[unopened]] = 0
        np.add.at(count, ids, payload)
        np.add.at(total, ids, rows[:, ring.COLUMN_VALUE])
        unique = np.unique(ids)
        for number in unique[left[unique] == 0].tolist():
            entry = self._entries.pop(number)
            if number in self._shrunk:
                self.failures.append(self._shrunk.pop(number))
            self.files += 1
            self.settled.append(number)
            self._ready.append((entry.path, int(count[number]), int(total[number])))

    def _fail(self, row: list[int]) -> None:
        number = row[ring.COLUMN_FILE_ID]
        entry = self._entries[number]
        if row[ring.COLUMN_STATUS] == abi.FAULT:
            self.failures.append(fault_failure(entry, row))
            return
        failure = read_failure(entry, row)
        if failure.errno != abi.ENODATA:
            self.failures.append(failure)
            return
        # Extents come in any order: the file ends where the first of them says so.
        known = self._shrunk.get(number)
        if known is None or (failure.offset or 0) < (known.offset or 0):
            self._shrunk[number] = failure

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if not self._ready or not (everything or len(self._ready) >= _BATCH_ROWS):
            return []
        columns = list(zip(*self._ready, strict=True))
        self._ready = []
        return [
            pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=False)],
                schema=self._schema,
            )
        ]

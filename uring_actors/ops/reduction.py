"""Reductions: operations that leave a fixed number of words of an extent, from which a file's row is made.

    kernel               payload of an extent → its *state*, ``words`` 64-bit words in the result block
    settling thread      states of neighbours → one state (``combine``) → the file's row (``finish``)

TOUCH, CRC32C, HISTOGRAM and what users register are all of this kind; NOP is one without words. Extents come in any
order, so ``combine`` must be associative and is only ever given neighbours, in the file's order: what is held is one
state for each gap. With a ``block`` size every block of the file has a row of its own, whatever extents it lies in.

A file of which bytes are missing has a row in ``errors``; a row of results it has only where the operation says that
the part is worth something (``partial``), never a sum over something else than what was asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.arena.abi import packed_entries
from uring_actors.arena.memory import Arena
from uring_actors.errors import OperationError
from uring_actors.megakernel import ring
from uring_actors.megakernel.cpu import Worker
from uring_actors.megakernel.cuda import DeviceFunction
from uring_actors.ops.base import NotOnDevice, Operation, Rows, Settler, extents, fault_failure, read_failure
from uring_actors.pieces import PieceEnd
from uring_actors.plan import FileEntry
from uring_actors.results.arrays import array
from uring_actors.results.errors import Failure

Words = np.ndarray[Any, np.dtype[np.int64]]
State = Any
"""What ``load`` makes of the words: whatever is handy to combine."""

_DEVICE_ALIGNMENT: Final = 16  # bytes of the CUDA kernel's loads
_PACKED: Final = (abi.OP_SCAN_NOP, abi.OP_SCAN_TOUCH, abi.OP_SCAN_CRC32C)
_BATCH_ROWS: Final = 1 << 16
_BATCH_WORDS: Final = 1 << 20


class Reduction(ABC):
    """The base of such an operation; picklable. A subclass sets ``opcode`` and ``words`` and says what a state is."""

    opcode: int
    words: int
    """64-bit words of a state."""
    halo: int = 0
    lead: bool = False
    on_gpu: bool = False
    """Whether the CUDA kernel has it."""
    automata: None = None
    partial: bool = False
    """Whether a file of which bytes are missing has a row, of what there was."""
    block: int = 0
    """Bytes of which each has a row; 0: the whole file has one."""
    device_functions: Sequence[DeviceFunction] = ()

    def on_device(self, *, insist: bool) -> Operation:
        if not self.on_gpu:
            raise NotOnDevice("the operation has no CUDA form")
        if self.block % _DEVICE_ALIGNMENT:
            raise NotOnDevice(f"it works on blocks of a multiple of {_DEVICE_ALIGNMENT} bytes, not of {self.block}")
        return self

    @property
    def parameter(self) -> int:
        return self.block

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @property
    def packs(self) -> bool:
        """Whether small files share data slots: where a state is small and compiled code makes it."""
        return self.opcode in _PACKED and not self.block

    @property
    def splits(self) -> str | None:
        return None

    def result_bytes(self, slot_bytes: int) -> int:
        parts = 1 if self.block == 0 else (slot_bytes - 1) // self.block + 2
        if self.packs:
            parts = packed_entries(slot_bytes)
        return abi.RESULT_VALUES + 8 * self.words * parts

    def make_worker(self, arena: Arena) -> Worker | None:
        return None

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        return ReductionSettler(arena, self, payload)

    # ── the values, one a row ────────────────────────────────────────────────────────────────────────────────
    @property
    @abstractmethod
    def empty(self) -> State:
        """The state of no bytes."""

    @abstractmethod
    def load(self, words: Words) -> State:
        """The state from its words, which are somebody else's afterwards."""

    def load_blocks(self, words: Words) -> Sequence[Any]:
        """The values of whole blocks, whose words are the rows of ``words``."""
        return [self.finish(self.load(row), self.block) for row in words]

    @abstractmethod
    def combine(self, left: State, right: State) -> State:
        """The state of two neighbours."""

    def finish(self, state: State, size: int) -> Any:
        """A row's value, from the state of its ``size`` bytes."""
        return state

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """The columns that ``columns`` makes."""

    @abstractmethod
    def columns(self, values: list[Any]) -> list[pa.Array]:
        """The ``fields`` of some rows' values."""

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def schema(self) -> pa.Schema:
        """path; with a block size the block's offset; bytes; then the operation's own."""
        head = [pa.field("path", pa.binary(), nullable=False)]
        if self.block:
            head.append(pa.field("offset", pa.int64(), nullable=False))
        return pa.schema([*head, pa.field("bytes", pa.int64(), nullable=False), *self.fields])

    def batch(self, paths: list[bytes], offsets: list[int], sizes: list[int], values: list[Any]) -> pa.RecordBatch:
        head = [array(paths, pa.binary())]
        if self.block:
            head.append(array(offsets, pa.int64()))
        return pa.RecordBatch.from_arrays(
            [*head, array(sizes, pa.int64()), *self.columns(values)], schema=self.schema
        )


class SplitReduction(Reduction):
    """The base of one that can be run on pieces of a file."""

    @abstractmethod
    def load_row(self, size: int, values: Sequence[Any]) -> State:
        """The state that became a row: of ``size`` bytes, with these ``values`` of its own columns."""


class _Run:
    """Neighbours that have come: bytes [start, stop) of a file, and their state."""

    __slots__ = ("start", "state", "stop")

    def __init__(self, start: int, stop: int, state: State) -> None:
        self.start, self.stop, self.state = start, stop, state


def _start(run: _Run) -> int:
    return run.start


class _File:
    """A file of which extents are still to come."""

    __slots__ = ("broken", "bytes", "entry", "left", "runs", "shrunk")

    def __init__(self, entry: FileEntry, left: int) -> None:
        self.entry = entry
        self.left = left
        self.bytes = 0
        """That have come."""
        self.broken = False
        """Some of it will not come, or could not be combined."""
        self.shrunk: Failure | None = None
        self.runs: dict[int, list[_Run]] = {}
        """By the offset of a block (or of the file, or piece), what there is of it, in order."""


class ReductionSettler:
    """All files of one scan."""

    def __init__(self, arena: Arena, operation: Reduction, payload: int) -> None:
        self.files = 0
        self.bytes = 0
        self.matches = 0
        self.failures: list[Failure] = []
        self.settled: list[int] = []
        self.ends: dict[int, PieceEnd] = {}
        layout = arena.layout
        self._operation = operation
        self._words, self._block = operation.words, operation.block
        self._payload = payload
        self._view = arena.view
        self._results, self._result_bytes = layout.results, layout.result_bytes
        self._open: dict[int, _File] = {}
        self._paths: list[bytes] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._values: list[Any] = []
        self._full = max(1, min(_BATCH_ROWS, _BATCH_WORDS // max(1, self._words)))

    def expect(self, files: Sequence[FileEntry]) -> None:
        for entry in files:
            file = _File(entry, len(extents(entry, self._payload)))
            if entry.size:
                self._open[entry.id] = file
                continue
            self.files += 1
            self.settled.append(entry.id)
            if not self._block:
                self._emit(file, 0, 0, self._operation.empty)

    def settle(self, rows: Rows) -> None:
        for row in rows.tolist():
            self._settle_slot(row)

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if not self._values or not (everything or len(self._values) >= self._full):
            return []
        batch = self._operation.batch(self._paths, self._offsets, self._sizes, self._values)
        self._paths, self._offsets, self._sizes, self._values = [], [], [], []
        return [batch]

    def fault(self, entry: FileEntry, row: Sequence[int]) -> Failure:
        """The row in ``errors`` for a slot that the kernel handed back as FAULT."""
        return fault_failure(entry, row)

    def _settle_slot(self, row: list[int]) -> None:
        file = self._open[row[ring.COLUMN_FILE_ID]]
        size = row[ring.COLUMN_PAYLOAD_BYTES]
        self.bytes += size
        file.bytes += size
        if row[ring.COLUMN_STATUS] == abi.FAULT:
            failure = self.fault(file.entry, row)
            if not file.broken:  # what fails once fails again: one row says it of the whole file
                self.failures.append(failure)
            file.broken = True
        else:
            if row[ring.COLUMN_FLAGS] & abi.FLAG_FAILED:
                self._unread(file, row)
            if size:
                self._add(file, row[ring.COLUMN_FILE_OFFSET], size, self._place(row))
        # A file that can't be opened has one slot, whatever its size: it is at its end with it.
        file.left = 0 if row[ring.COLUMN_DATA_SLOT] == abi.NO_DATA_SLOT else file.left - 1
        if file.left == 0:
            self._close(file)

    def _unread(self, file: _File, row: list[int]) -> None:
        file.broken = True
        failure = read_failure(file.entry, row)
        if failure.errno != abi.ENODATA:
            self.failures.append(failure)
        # Extents come in any order: the file ends where the first of them says so.
        elif file.shrunk is None or (failure.offset or 0) < (file.shrunk.offset or 0):
            file.shrunk = failure

    def _place(self, row: list[int]) -> int:
        """Where a row's states are."""
        block = self._results + row[ring.COLUMN_DATA_SLOT] * self._result_bytes
        return block + abi.RESULT_VALUES + row[ring.COLUMN_RESULT]

    def _add(self, file: _File, offset: int, size: int, at: int) -> None:
        """Take the states (at ``at``) of the extent at ``offset``."""
        if not self._block:
            self._join(file, file.entry.start, file.entry.stop, offset, offset + size, self._load(at))
            return
        stop = offset + size
        while offset < stop:
            low = offset - offset % self._block
            whole = (stop - offset) // self._block if offset == low else 0
            if whole:
                self._emit_blocks(file, offset, whole, at)
                end = offset + whole * self._block
            else:
                high = min(low + self._block, file.entry.size)
                end = min(high, stop)
                self._join(file, low, high, offset, end, self._load(at))
            offset = end
            at += 8 * self._words * max(1, whole)

    def _emit_blocks(self, file: _File, offset: int, count: int, at: int) -> None:
        """Rows of neighbouring blocks that lie in one extent: there may be hundreds of them."""
        words = np.frombuffer(self._view, np.int64, count * self._words, at).reshape(count, self._words)
        self._paths.extend([file.entry.path] * count)
        self._offsets.extend(range(offset, offset + count * self._block, self._block))
        self._sizes.extend([self._block] * count)
        self._values.extend(self._operation.load_blocks(words))

    def _load(self, at: int) -> State:
        return self._operation.load(np.frombuffer(self._view, np.int64, self._words, at))

    def _join(self, file: _File, low: int, high: int, start: int, stop: int, state: State) -> None:
        """Bytes [start, stop) have come, of the block [low, high): with what lies on both sides of it one run."""
        runs = file.runs.setdefault(low, []) if start != low or stop != high else []
        i = bisect_left(runs, start, key=_start)
        try:
            if i and runs[i - 1].stop == start:
                i -= 1
                left = runs.pop(i)
                start, state = left.start, self._operation.combine(left.state, state)
            if i < len(runs) and runs[i].start == stop:
                right = runs.pop(i)
                stop, state = right.stop, self._operation.combine(state, right.state)
        except OperationError as error:
            self._spoil(file, error)
            return
        if start == low and stop == high:
            file.runs.pop(low, None)
            self._emit(file, low, high - low, state)
        else:
            runs.insert(i, _Run(start, stop, state))

    def _emit(self, file: _File, offset: int, size: int, state: State) -> None:
        try:
            value = self._operation.finish(state, size)
        except OperationError as error:
            self._spoil(file, error)
            return
        self._paths.append(file.entry.path)
        self._offsets.append(offset)
        self._sizes.append(size)
        self._values.append(value)

    def _spoil(self, file: _File, error: OperationError) -> None:
        if not file.broken:
            self.failures.append(Failure.from_error(error, path=file.entry.path))
        file.broken = True

    def _close(self, file: _File) -> None:
        if file.shrunk is not None:
            self.failures.append(file.shrunk)
        if file.broken and self._operation.partial:
            state = self._operation.empty
            for run in file.runs.get(file.entry.start, ()):
                state = self._operation.combine(state, run.state)
            self._emit(file, file.entry.start, file.bytes, state)
        del self._open[file.entry.id]
        self.files += 1
        self.settled.append(file.entry.id)

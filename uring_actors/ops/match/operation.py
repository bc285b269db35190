"""MATCH: patterns in files, exactly.

    kernel thread (megakernel/match.py)    libhs over lead byte, payload and halo → candidates in the result block
    settling thread (MatchSettler)         candidates → confirmed matches (Confirmer) → the file's rows (FileSettler)

A slot with more candidates than its result block holds says OVERFLOW; its thread (MatchWorker) then searches it again
and leaves them all in memory of this process, so nothing is lost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.arena.book import Book
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import ring
from uring_actors.ops.base import Operation, Settler, extents, fault_failure, read_failure
from uring_actors.ops.base import Rows as SlotRows
from uring_actors.ops.match.automaton import Automata
from uring_actors.ops.match.confirm import Confirmer, ExtentMatches, Unread
from uring_actors.ops.match.engine import Engine, Hits
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.ops.match.plan import PatternPlan
from uring_actors.ops.match.planset import PlanSet
from uring_actors.ops.match.reports import SCHEMAS, Report, make_report
from uring_actors.ops.match.settle import FileSettler, Settled
from uring_actors.ops.match.window import LocalFile
from uring_actors.plan import FileEntry
from uring_actors.results.errors import Failure
from uring_actors.uring.work import say_enough

_EIO = 5
_HIT_WORDS = abi.HIT_BYTES // 4
_COUNT = struct.Struct("=I")


@dataclass(frozen=True)
class Match:
    """Search for patterns. Rows: ``MATCH_SCHEMA``. Pickles as its plans; engines are compiled where it runs."""

    plans: tuple[PatternPlan, ...]
    report: str = "matches"
    """Of ``reports.SCHEMAS``."""
    max_count: int | None = None
    """The first so many matches of each file."""

    opcode = abi.OP_SCAN_MATCH
    lead = True
    device_functions = ()
    parameter = 0
    notes = ()

    @classmethod
    def of(
        cls, patterns: Sequence[Regex | Literal], *, report: str = "matches", max_count: int | None = None
    ) -> Match:
        """Raises PatternError (points into the pattern) and OptionError (there are none)."""
        return cls(compile_patterns(patterns), report, max_count)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.plans, self.report, self.max_count)

    @property
    def schema(self) -> pa.Schema:
        return SCHEMAS[self.report]

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.plans)

    @cached_property
    def plan_set(self) -> PlanSet:
        return PlanSet(self.engine.plans)

    @property
    def automata(self) -> Automata | None:
        return None

    @property
    def halo(self) -> int:
        return self.plan_set.halo

    def result_bytes(self, slot_bytes: int) -> int:
        return slot_bytes // 4

    def on_device(self, *, insist: bool) -> Operation:
        from uring_actors.ops.match.device import DeviceMatch  # which settles as this module does

        return DeviceMatch.from_match(self, insist=insist)

    def make_worker(self, arena: Arena) -> MatchWorker | None:
        return MatchWorker(arena, self.engine, self._spill)

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        names = [plan.name for plan in self.plans]
        report = make_report(self.report, names, self.max_count)
        return MatchSettler(arena, self.plan_set, names, payload, self._overflowed(arena), report)

    def _overflowed(self, arena: Arena) -> Callable[[list[int]], Hits]:
        return lambda row: self._spill.pop(row[ring.COLUMN_DATA_SLOT])

    @cached_property
    def _spill(self) -> dict[int, Hits]:
        """By data slot: the candidates that its result block could not hold."""
        return {}


class MatchWorker:
    """One kernel thread's part: its search, and what to do with a slot that has more hits than its block holds."""

    def __init__(self, arena: Arena, engine: Engine, spill: dict[int, Hits]) -> None:
        layout = arena.layout
        self._data, self._slot_bytes = layout.data, layout.slot_bytes
        self._results, self._result_bytes = layout.results, layout.result_bytes
        self._view = arena.view
        self._finder = engine.scratch()
        self._spill = spill

    @property
    def parameters(self) -> Book:
        return self._finder.parameters

    def run(self, slot: Sequence[int]) -> None:
        self._finder.check()
        data_slot = slot[abi.SLOT_DATA_SLOT // 4]
        start = self._data + data_slot * self._slot_bytes + slot[abi.SLOT_PAYLOAD_OFFSET // 4]
        first_extent = slot[abi.SLOT_FILE_OFFSET // 4] == 0 and slot[abi.SLOT_FILE_OFFSET // 4 + 1] == 0
        lead = 0 if first_extent else 1
        stop = start + slot[abi.SLOT_PAYLOAD_BYTES // 4] + slot[abi.SLOT_HALO_BYTES // 4]
        (count,) = _COUNT.unpack_from(self._view, self._results + data_slot * self._result_bytes + abi.RESULT_COUNT)
        self._spill[data_slot] = self._finder.find(self._view[start - lead : stop], lead=lead, room=count)


class _OpenFile:
    """A file of which extents are still to come."""

    __slots__ = ("cut", "cut_failure", "entry", "left", "settler")

    def __init__(self, entry: FileEntry, settler: FileSettler, left: int) -> None:
        self.entry = entry
        self.settler = settler
        self.left = left
        self.cut = left  # the first extent that the shrunken file no longer fills; none so far
        self.cut_failure: Failure | None = None


class MatchSettler:
    """All files of one scan."""

    def __init__(
        self,
        arena: Arena,
        plans: PlanSet,
        names: Sequence[str],
        payload: int,
        overflowed: Callable[[list[int]], Hits],
        report: Report,
    ) -> None:
        """``overflowed`` gives the hits of a slot (a row of ``ring.collect``) that said OVERFLOW."""
        self.files = 0
        self.bytes = 0
        self.failures: list[Failure] = []
        self.settled: list[int] = []
        layout = arena.layout
        self._results, self._result_bytes = layout.results, layout.result_bytes
        self._data, self._slot_bytes = layout.data, layout.slot_bytes
        self._view = arena.view
        self._plans = plans
        self._names = names
        self._payload = payload
        self._overflowed = overflowed
        self._confirmer = Confirmer(plans)
        self._open: dict[int, _OpenFile] = {}
        self._report = report
        self._enough = arena.at(layout.state + abi.STATE_ENOUGH)
        self._stopped: set[int] = set()
        """Files of which nothing more is wanted, and extents may still come."""

    @property
    def matches(self) -> int:
        return self._report.matches

    def expect(self, files: Sequence[FileEntry]) -> None:
        for entry in files:
            if entry.size == 0:
                self.files += 1
                self.settled.append(entry.id)
                self._report.end(entry.id, entry.path, opened=True)
                continue
            settler = FileSettler(self._plans, entry.size, partial(LocalFile, entry.path, entry.device, entry.inode))
            self._open[entry.id] = _OpenFile(entry, settler, extents(entry.size, self._payload))

    def settle(self, rows: SlotRows) -> None:
        for row in rows.tolist():
            self._settle_slot(row)

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        return self._report.take(everything=everything)

    def _settle_slot(self, row: list[int]) -> None:
        file = self._open.get(row[ring.COLUMN_FILE_ID])
        if file is None:
            assert row[ring.COLUMN_FILE_ID] in self._stopped, "an extent of a file that is done"
            return
        opened, more = row[ring.COLUMN_DATA_SLOT] != abi.NO_DATA_SLOT, True
        extent = row[ring.COLUMN_EXTENT_ID]
        self.bytes += row[ring.COLUMN_PAYLOAD_BYTES]
        if not opened:
            self.failures.append(read_failure(file.entry, row))
            file.left = 0
        else:
            result = self._result(file, extent, row)
            if result is not None:
                more = self._emit(file, file.settler.add(extent, result, *self._text(row)))
            file.left -= 1
        if not more and file.left > 0:
            self._stopped.add(file.entry.id)
            say_enough(self._enough, file.entry.id)
        if not more or file.left == 0:
            if more and file.cut_failure is not None:
                self.failures.append(file.cut_failure)
            file.settler.close()
            del self._open[file.entry.id]
            self._report.end(file.entry.id, file.entry.path, opened=opened)
            self.files += 1
            self.settled.append(file.entry.id)

    def _result(self, file: _OpenFile, extent: int, row: list[int]) -> ExtentMatches | Unread | None:
        """What the file's settler gets for this slot; None for what lies behind the end of a shrunken file."""
        start = row[ring.COLUMN_FILE_OFFSET]
        if row[ring.COLUMN_STATUS] == abi.FAULT:
            failure = fault_failure(file.entry, row)
            return Unread(start, self._stop(file, start), _EIO, failure.message)
        if row[ring.COLUMN_FLAGS] & abi.FLAG_FAILED:
            if row[ring.COLUMN_ERRNO] != abi.ENODATA:
                reason = read_failure(file.entry, row).message
                return Unread(start, self._stop(file, start), row[ring.COLUMN_ERRNO], reason)
            self._shrunk(file, extent, row)
            if extent > file.cut or row[ring.COLUMN_PAYLOAD_BYTES] == 0:
                return None
        return self._confirm(start, row)

    def _stop(self, file: _OpenFile, start: int) -> int:
        return min(start + self._payload, file.entry.size)

    def _shrunk(self, file: _OpenFile, extent: int, row: list[int]) -> None:
        """The file ends in or before this extent; what is there is settled as far as it goes.

        Extents come in any order, so only when all have come is it known where the file ends.
        """
        if extent < file.cut:
            file.cut, file.cut_failure = extent, read_failure(file.entry, row)

    def _confirm(self, start: int, row: list[int]) -> ExtentMatches:
        data_slot = row[ring.COLUMN_DATA_SLOT]
        base = self._data + data_slot * self._slot_bytes
        patterns = ends = None
        count = row[ring.COLUMN_HIT_COUNT]
        if count:
            hits = self._overflowed(row) if row[ring.COLUMN_OVERFLOW] else self._hits(data_slot, count)
            patterns = hits[:, abi.HIT_PATTERN // 4].astype(np.int32)
            ends = hits[:, abi.HIT_END // 4].astype(np.int64)
        return self._confirmer.confirm(
            self._view[base : base + self._slot_bytes],
            at=row[ring.COLUMN_PAYLOAD_OFFSET],
            payload=row[ring.COLUMN_PAYLOAD_BYTES],
            after=row[ring.COLUMN_HALO_BYTES],
            offset=start,
            patterns=patterns,
            ends=ends,
            newlines=row[ring.COLUMN_NEWLINES],
            newline=row[ring.COLUMN_LAST_NEWLINE],
        )

    def _text(self, row: list[int]) -> tuple[memoryview, int]:
        """The slot's bytes of the file, as far as they could be read, and the first one's offset."""
        start = row[ring.COLUMN_FILE_OFFSET]
        lead = 1 if start else 0
        first = self._data + row[ring.COLUMN_DATA_SLOT] * self._slot_bytes + row[ring.COLUMN_PAYLOAD_OFFSET]
        stop = first + row[ring.COLUMN_PAYLOAD_BYTES] + row[ring.COLUMN_HALO_BYTES]
        return self._view[first - lead : stop], start - lead

    def _hits(self, data_slot: int, count: int) -> Hits:
        block = self._results + data_slot * self._result_bytes + abi.RESULT_HITS
        return np.frombuffer(self._view, np.uint32, count * _HIT_WORDS, block).reshape(count, -1)

    def _emit(self, file: _OpenFile, settled: list[Settled]) -> bool:
        """Whether more of this file is wanted."""
        for k, part in enumerate(settled):
            for fault in part.faults:
                which = "" if fault.pattern is None else f" (pattern {self._names[fault.pattern]!r})"
                self.failures.append(
                    Failure(file.entry.path, fault.reason + which, errno=fault.errno or None, offset=fault.offset)
                )
            # Of several extents settled at once only the last says what is decided: rows of the others may wait.
            decided = file.settler.decided if k == len(settled) - 1 else 0
            if not self._report.add(file.entry.id, file.entry.path, part.rows, decided):
                return False
        return True

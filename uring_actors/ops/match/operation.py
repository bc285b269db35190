"""MATCH: patterns in files, exactly.

    kernel thread (megakernel/match.py)    libhs over lead byte, payload and halo → candidates in the result block
    settling thread (MatchSettler)         candidates → confirmed matches (Confirmer) → the file's rows (FileSettler)

A slot with more candidates than its result block holds says OVERFLOW; its thread (MatchWorker) then searches it again
and leaves them all in memory of this process, so nothing is lost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
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
from uring_actors.ops.match.newlines import Newlines
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.ops.match.plan import PatternPlan
from uring_actors.ops.match.planset import PlanSet, halo_of
from uring_actors.ops.match.reports import SCHEMAS, Report, make_report, nothing_decided
from uring_actors.ops.match.rows import NO_ROWS
from uring_actors.ops.match.settle import FileSettler, Settled
from uring_actors.ops.match.window import LocalFile
from uring_actors.pieces import PieceEnd
from uring_actors.plan import FileBatch, FileEntry, path_of
from uring_actors.results.errors import Failure
from uring_actors.uring.work import say_enough

_EIO = 5
_HIT_WORDS = abi.HIT_BYTES // 4
_COUNT = struct.Struct("=I")
_ENTRY = struct.Struct("=IIIII")
"""A packed file's entry up to its number of hits."""
_NO_HITS: Hits = np.empty((0, _HIT_WORDS), np.uint32)
_WHOLE = abi.FLAG_FIRST | abi.FLAG_LAST


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
    packs = True

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
        return halo_of(self.plans) if self._all_in_slot else self.plan_set.halo

    @property
    def _all_in_slot(self) -> bool:
        """Whether data slots are enough to decide all matches. What engine there is has no say in this, nor then in
        the halo."""
        return all(plan.kind.confirmed_in_slot for plan in self.plans)

    @property
    def splits(self) -> str | None:
        whole = self.report == "files" or self.max_count is not None or not self._all_in_slot
        return None if whole else self.report

    def result_bytes(self, slot_bytes: int) -> int:
        return slot_bytes // 4

    def on_device(self, *, insist: bool) -> Operation:
        from uring_actors.ops.match.device import DeviceMatch  # which settles as this module does

        return DeviceMatch.from_match(self, insist=insist)

    def make_worker(self, arena: Arena) -> MatchWorker | None:
        return MatchWorker(arena, self.engine, self._spill)

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        names = [plan.name for plan in self.plans]
        return self.settler(arena, payload, make_report(self.report, names, self.max_count))

    def settler(self, arena: Arena, payload: int, report: Report) -> Settler:
        """A settler whose rows go to ``report``."""
        names = [plan.name for plan in self.plans]
        return MatchSettler(arena, self.plan_set, names, payload, self._overflowed(arena), report)

    def _overflowed(self, arena: Arena) -> Callable[[list[int]], Hits]:
        return self._spilled

    def _spilled(self, row: list[int]) -> Hits:
        """The slot's hits, or those of the row's file where it is packed; the last one's takes them all away."""
        data_slot, first = row[ring.COLUMN_DATA_SLOT], row[ring.COLUMN_RESULT] // abi.HIT_BYTES
        hits, stop = self._spill[data_slot], first + row[ring.COLUMN_HIT_COUNT]
        if stop == len(hits):
            del self._spill[data_slot]
        return hits[first:stop]

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
        if slot[abi.SLOT_FLAGS // 4] & abi.FLAG_PACKED:
            self._spill[data_slot] = np.concatenate(list(self._files(data_slot, slot[abi.SLOT_FILE_ID // 4])))
            return
        (count,) = _COUNT.unpack_from(self._view, self._results + data_slot * self._result_bytes + abi.RESULT_COUNT)
        self._spill[data_slot] = self._finder.find(self._view[start - lead : stop], lead=lead, room=count)

    def _files(self, data_slot: int, count: int) -> Iterator[Hits]:
        """The hits of each file of a packed slot, as many as its entry says."""
        base = self._data + data_slot * self._slot_bytes
        for entry in range(base, base + count * abi.PACKED_ENTRY_BYTES, abi.PACKED_ENTRY_BYTES):
            _, _, offset, size, hits = _ENTRY.unpack_from(self._view, entry)
            text = self._view[base + offset : base + offset + size]
            yield self._finder.find(text, room=hits) if hits else _NO_HITS


class _OpenFile:
    """A file of which extents are still to come."""

    __slots__ = ("cut", "cut_failure", "entry", "left", "settler")

    def __init__(self, entry: FileEntry, settler: FileSettler, numbers: range) -> None:
        self.entry = entry
        self.settler = settler
        self.left = len(numbers)
        self.cut = numbers.stop  # the first extent that the shrunken file no longer fills; none so far
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
        self.ends: dict[int, PieceEnd] = {}
        layout = arena.layout
        self._results, self._result_bytes = layout.results, layout.result_bytes
        self._data, self._slot_bytes = layout.data, layout.slot_bytes
        self._newlines, self._newline_bytes = arena.at(layout.newlines), layout.newline_bytes
        self._view, self._address = arena.view, arena.address
        self._plans = plans
        # Without a candidate such plans find nothing.
        self._candidates_only = not plans.in_slot and not plans.without_candidates
        self._names = names
        self._payload = payload
        self._overflowed = overflowed
        self._confirmer = Confirmer(plans)
        self._listed: dict[int, FileBatch] = {}  # of which no extent has come yet: the batch they are in
        self._open: dict[int, _OpenFile] = {}
        self._report = report
        self._enough = arena.at(layout.state + abi.STATE_ENOUGH)
        self._stopped: set[int] = set()
        """Files of which nothing more is wanted, and extents may still come."""

    @property
    def matches(self) -> int:
        return self._report.matches

    def expect(self, files: Sequence[FileEntry]) -> None:
        batch = FileBatch.of(files)
        empty = np.flatnonzero(batch.sizes == 0)
        for row in empty.tolist():
            self._report.end(int(batch.ids[row]), batch.path(row), opened=True, empty=True)
        self.settled.extend(batch.ids[empty].tolist())
        read = batch.ids[batch.sizes > 0].tolist()
        self.files += len(batch) - len(read)
        self._listed.update(dict.fromkeys(read, batch))

    def settle(self, rows: SlotRows) -> None:
        if self._candidates_only:
            rows = self._pass_whole_files(rows)
        for row in rows.tolist():
            if not self._settle_empty(row):
                self._settle_slot(row)

    def _pass_whole_files(self, rows: SlotRows) -> SlotRows:
        """Settle the files of one extent without any candidate; the other rows."""
        flags = rows[:, ring.COLUMN_FLAGS] & (_WHOLE | abi.FLAG_FAILED)
        unfit = (flags ^ _WHOLE) | (rows[:, ring.COLUMN_STATUS] ^ abi.DONE) | rows[:, ring.COLUMN_HIT_COUNT]
        if unfit.all():
            return rows
        empty = rows[unfit == 0]
        ids = empty[:, ring.COLUMN_FILE_ID].tolist()
        for number in ids:
            batch = self._listed.pop(number)
            if self._report.every_file:
                self._report.end(number, batch.entry(number).path, opened=True)
        self.files += len(empty)
        self.settled.extend(ids)
        self.bytes += int(empty[:, ring.COLUMN_PAYLOAD_BYTES].sum())
        return rows[unfit != 0]

    def _file(self, number: int) -> _OpenFile | None:
        """The file of an extent that came; None for one of which no more is wanted."""
        file = self._open.get(number)
        if file is None:
            batch = self._listed.pop(number, None)
            if batch is None:
                assert number in self._stopped, "an extent of a file that is done"
                return None
            entry = batch.entry(number)
            open_file = partial(LocalFile, path_of(entry.path), entry.device, entry.inode)
            numbers = extents(entry, self._payload)
            settler = FileSettler(self._plans, entry.size, open_file, piece=entry.piece, first=numbers.start)
            file = self._open[number] = _OpenFile(entry, settler, numbers)
        return file

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        return self._report.take(everything=everything)

    def _settle_empty(self, row: list[int]) -> bool:
        """Settle a slot without any candidate, where nothing else hangs on it; whether that was so."""
        flags = row[ring.COLUMN_FLAGS]
        if row[ring.COLUMN_HIT_COUNT] or row[ring.COLUMN_STATUS] != abi.DONE or flags & abi.FLAG_FAILED:
            return False
        file = self._open.get(row[ring.COLUMN_FILE_ID])
        if file is None or file.left == 1 or not self._candidates_only:
            return False
        start, payload, settler = row[ring.COLUMN_FILE_OFFSET], row[ring.COLUMN_PAYLOAD_BYTES], file.settler
        newlines, newline = row[ring.COLUMN_NEWLINES], start + row[ring.COLUMN_LAST_NEWLINE]
        if not settler.add_empty(row[ring.COLUMN_EXTENT_ID], start + payload, newlines, newline):
            return False
        self.bytes += payload
        file.left -= 1
        if self._plans.unbounded:  # rows may have waited for what this decides
            entry = file.entry
            if not self._report.add(entry.id, entry.path, NO_ROWS, settler.decided, settler.window):
                self._finish(file, more=False)
        return True

    def _settle_slot(self, row: list[int]) -> None:
        file = self._file(row[ring.COLUMN_FILE_ID])
        if file is None:
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
                with file.settler.window.lent(*self._text(row)):
                    more = self._emit(file, file.settler.add(extent, result))
            file.left -= 1
        if not more or file.left == 0:
            self._finish(file, more=more, opened=opened)

    def _finish(self, file: _OpenFile, *, more: bool, opened: bool = True) -> None:
        """The file is done with: all of it is settled, or no ``more`` of it is wanted."""
        if not more and file.left > 0:
            self._stopped.add(file.entry.id)
            say_enough(self._enough, file.entry.id)
        if more and file.cut_failure is not None:
            self.failures.append(file.cut_failure)
        file.settler.close()
        if file.entry.piece is not None:
            self.ends[file.entry.id] = file.settler.end
        del self._open[file.entry.id]
        self._report.end(file.entry.id, file.entry.path, opened=opened)
        self.failures.extend(self._report.take_failures())
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
        return self._confirm(file.entry, start, row)

    def _stop(self, file: _OpenFile, start: int) -> int:
        return min(start + self._payload, file.entry.size)

    def _shrunk(self, file: _OpenFile, extent: int, row: list[int]) -> None:
        """The file ends in or before this extent; what is there is settled as far as it goes.

        Extents come in any order, so only when all have come is it known where the file ends.
        """
        if extent < file.cut:
            file.cut, file.cut_failure = extent, read_failure(file.entry, row)

    def _confirm(self, entry: FileEntry, start: int, row: list[int]) -> ExtentMatches:
        data_slot, at = row[ring.COLUMN_DATA_SLOT], row[ring.COLUMN_PAYLOAD_OFFSET]
        base = self._data + data_slot * self._slot_bytes
        hits = self._hits(row)
        patterns, ends = hits[:, abi.HIT_PATTERN // 4], hits[:, abi.HIT_END // 4]
        if len(hits) and self._report.sifts:
            wanted = np.bincount(patterns, minlength=self._plans.size) > 0
            idle = self._report.sift(entry.id, entry.path, set(np.flatnonzero(wanted).tolist()))
            if idle:
                wanted[list(idle)] = False
                patterns, ends = patterns[wanted[patterns]], ends[wanted[patterns]]
        index = self._newlines + data_slot * self._newline_bytes + at // abi.NEWLINE_CHUNK * 4
        return self._confirmer.confirm(
            self._view[base : base + self._slot_bytes],
            at=at,
            payload=row[ring.COLUMN_PAYLOAD_BYTES],
            after=row[ring.COLUMN_HALO_BYTES],
            offset=start,
            patterns=patterns,
            ends=ends,
            newlines=Newlines(
                row[ring.COLUMN_NEWLINES], row[ring.COLUMN_LAST_NEWLINE], self._address + base + at, index
            ),
        )

    def _hits(self, row: list[int]) -> Hits:
        count = row[ring.COLUMN_HIT_COUNT]
        if not count:
            return _NO_HITS
        if row[ring.COLUMN_OVERFLOW]:
            return self._overflowed(row)
        block = self._results + row[ring.COLUMN_DATA_SLOT] * self._result_bytes + abi.RESULT_HITS
        return np.frombuffer(self._view, np.uint32, count * _HIT_WORDS, block + row[ring.COLUMN_RESULT]).reshape(
            count, -1
        )

    def _text(self, row: list[int]) -> tuple[memoryview, int]:
        """The slot's bytes of the file, as far as they could be read, and the first one's offset."""
        start = row[ring.COLUMN_FILE_OFFSET]
        lead = 1 if start else 0
        first = self._data + row[ring.COLUMN_DATA_SLOT] * self._slot_bytes + row[ring.COLUMN_PAYLOAD_OFFSET]
        stop = first + row[ring.COLUMN_PAYLOAD_BYTES] + row[ring.COLUMN_HALO_BYTES]
        return self._view[first - lead : stop], start - lead

    def _emit(self, file: _OpenFile, settled: list[Settled]) -> bool:
        """Whether more of this file is wanted."""
        entry, window = file.entry, file.settler.window
        for k, part in enumerate(settled):
            for fault in part.faults:
                which = "" if fault.pattern is None else f" (pattern {self._names[fault.pattern]!r})"
                self.failures.append(
                    Failure(file.entry.path, fault.reason + which, errno=fault.errno or None, offset=fault.offset)
                )
            # Of several extents settled at once only the last says what is decided: rows of the others may wait.
            decided = file.settler.decided if k == len(settled) - 1 else nothing_decided
            if not self._report.add(entry.id, entry.path, part.rows, decided, window):
                return False
        return True

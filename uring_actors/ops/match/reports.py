"""What becomes of a file's settled matches: rows, a number, or a name; and when no more of them are wanted.

A ``Report`` takes each file's rows as they are settled, and says when it has enough of that file: then the rest is
not read. Only settled, hence confirmed, matches come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from uring_actors.ops.match.newlines import copy_ranges
from uring_actors.ops.match.rows import NO_ROWS, Rows, in_order
from uring_actors.ops.match.window import Window
from uring_actors.results.arrays import array
from uring_actors.results.errors import Failure
from uring_actors.results.schema import COUNT_SCHEMA, FILE_SCHEMA, MATCH_SCHEMA, MAX_ROWS, MatchBatches

SCHEMAS = {"matches": MATCH_SCHEMA, "count": COUNT_SCHEMA, "files": FILE_SCHEMA}


class Report(Protocol):
    """Batches of one schema. ``matches`` counts what was taken."""

    matches: int
    every_file: bool
    """Whether a file without a match has a row too, so that ``end`` must be called for it."""

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        """Take rows of file ``number``; no further row of it will start before ``decided()``. Whether more of this
        file's rows are wanted. ``window`` reads the file; what lies in the data slot that was settled last it has."""

    sifts: bool
    """Whether ``sift`` is to be asked."""

    def sift(self, number: int, path: bytes, patterns: set[int]) -> set[int]:
        """Before an extent's candidates are confirmed: of which patterns they need not be. ``patterns``: all that it
        has candidates of."""

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        """The file is done with (``opened``: it could be read, at least in part; ``empty``: there was nothing to
        read). Once a file."""

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        """Batches that are full; with ``everything`` the rest too."""

    def take_failures(self) -> list[Failure]:
        """What could not be decided here, since the last call."""


class _Plain:
    """A report that decides nothing: rows are matches."""

    sifts = False

    def sift(self, number: int, path: bytes, patterns: set[int]) -> set[int]:
        return set()

    def take_failures(self) -> list[Failure]:
        return []


def make_report(kind: str, names: Sequence[str], max_count: int | None) -> Report:
    """``kind`` is of SCHEMAS; ``names`` are the patterns'."""
    if kind == "files":
        return _Names()
    if kind == "count":
        return _Counts(max_count)
    return _Rows(names) if max_count is None else _FirstRows(names, max_count)


class _Rows(_Plain):
    """Every match."""

    every_file = False

    def __init__(self, names: Sequence[str]) -> None:
        self.matches = 0
        self._batches = MatchBatches(names)
        self._ready: list[pa.RecordBatch] = []

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        self._keep(path, rows)
        return True

    def _keep(self, path: bytes, rows: Rows) -> None:
        if len(rows):
            self.matches += len(rows)
            self._ready.extend(self._batches.add(path, rows))

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        pass

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if everything:
            self._ready.extend(self._batches.flush())
        ready, self._ready = self._ready, []
        return ready


class _FirstRows(_Rows):
    """The first ``most`` matches of each file, by start and pattern.

    Unbounded patterns may settle a match after others that start behind it, so rows wait until nothing can come
    before them; of those that wait no more than can still be wanted are kept.
    """

    def __init__(self, names: Sequence[str], most: int) -> None:
        super().__init__(names)
        self._most = most
        self._open: dict[int, tuple[int, Rows]] = {}
        """By file: how many rows are still wanted, and those that wait."""

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        left, waiting = self._open.get(number, (self._most, NO_ROWS))
        if len(rows) or len(waiting):
            rows = Rows.join([waiting, rows]) if len(waiting) else rows
            order = in_order(rows.start, rows.pattern)[:left]
            final = int(np.searchsorted(rows.start[order], decided()))
            self._keep(path, _take(rows, order[:final]))
            left, waiting = left - final, _take(rows, order[final:])
        self._open[number] = left, waiting
        return left > 0

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        _, waiting = self._open.pop(number, (0, NO_ROWS))
        self._keep(path, waiting)


class _Counts(_Plain):
    """How many matches each file has, at most ``most``: one row for every file that could be read, as grep -c."""

    every_file = True

    def __init__(self, most: int | None) -> None:
        self.matches = 0
        self._most = most
        self._open: dict[int, int] = {}
        self._paths: list[bytes] = []
        self._counts: list[int] = []

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        count = self._open.get(number, 0) + len(rows)
        if self._most is not None:
            count = min(count, self._most)
        self._open[number] = count
        return count != self._most

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        count = self._open.pop(number, 0)
        if opened:
            self.matches += count
            self._paths.append(path)
            self._counts.append(count)

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if not self._paths or not (everything or len(self._paths) >= MAX_ROWS):
            return []
        columns = [array(self._paths, pa.binary()), array(self._counts, pa.int64())]
        self._paths, self._counts = [], []
        return [pa.RecordBatch.from_arrays(columns, schema=COUNT_SCHEMA)]


class _Names(_Plain):
    """The files that have a match; one is enough."""

    every_file = False

    def __init__(self) -> None:
        self.matches = 0
        self._paths: list[bytes] = []

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        if not len(rows):
            return True
        self.matches += 1
        self._paths.append(path)
        return False

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        pass

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if not self._paths or not (everything or len(self._paths) >= MAX_ROWS):
            return []
        paths, self._paths = self._paths, []
        return [pa.RecordBatch.from_arrays([array(paths, pa.binary())], schema=FILE_SCHEMA)]


def nothing_decided() -> int:
    """As ``decided``: whatever was taken may still be preceded."""
    return 0


def _take(rows: Rows, index: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Rows:
    """The rows of ``index``, in its order."""
    if not len(index):
        return NO_ROWS
    offsets, data = copy_ranges(rows.data, rows.offsets[:-1][index], rows.offsets[1:][index])
    return Rows(
        rows.pattern[index],
        rows.start[index],
        rows.end[index],
        rows.line[index],
        rows.column[index],
        offsets,
        data,
    )

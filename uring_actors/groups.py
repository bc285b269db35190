"""Groups of files that are settled, and acknowledged, as one.

Whoever hands a node files in a *group* gets its rows in ``GroupRows``, each of one group only, and after the last
of them one ``GroupEnd``: from then on nothing more will come of it. That is what lets rows be counted all at once
or not at all (``many/``). The kernel host keeps the account, in its settling thread; operations only say which
files they have settled.

A piece of a file is a group of its own. Its rows name it as ``FileEntry.name`` does, and may have to be put right
(``pieces.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from uring_actors.errors import PipelineError
from uring_actors.pieces import PieceEnd
from uring_actors.plan import FileEntry, path_of
from uring_actors.results.arrays import values_of
from uring_actors.results.errors import Failure


@dataclass(frozen=True, slots=True)
class GroupRows:
    """Rows of files of one group."""

    group: int
    batch: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class GroupEnd:
    """All files of the group are settled, and all of its rows have come."""

    group: int
    files: int
    bytes: int
    """Of the files that could be read, as they were listed."""
    failures: tuple[Failure, ...]
    piece: PieceEnd | None = None
    """What the group leaves, where it is a piece of a file."""


Item: TypeAlias = pa.RecordBatch | GroupRows | GroupEnd
"""What comes out of a node: plain batches where files were submitted without a group."""


@dataclass(slots=True)
class _Group:
    left: set[int]
    """Ids of the files still to be settled."""
    files: dict[bytes, FileEntry]
    """By name."""
    failures: list[Failure] = field(default_factory=list)
    piece: PieceEnd | None = None


class Groups:
    """The groups that a kernel host is at work on. One thread."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._of_file: dict[int, int] = {}
        self._of_name: dict[bytes, int] = {}
        self._failures_seen = 0

    @property
    def open(self) -> bool:
        """Whether there are any now."""
        return bool(self._groups)

    def begin(self, group: int, files: Sequence[FileEntry]) -> Sequence[FileEntry]:
        """``files`` are all that ``group`` has. What is returned is announced to the settler after this: pieces go by
        their name there.

        Raises PipelineError where a name is already in another group: its rows could not be told apart.
        """
        for entry in files:
            if entry.name in self._of_name:
                raise PipelineError("a file was handed to a node twice at once", path=entry.path)
            self._of_name[entry.name] = group
            self._of_file[entry.id] = group
        self._groups[group] = _Group({entry.id for entry in files}, {entry.name: entry for entry in files})
        return [entry if entry.piece is None else replace(entry, path=entry.name) for entry in files]

    def rows(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | GroupRows]:
        """The batch, in parts of one group each."""
        if not self._groups:
            yield batch
        elif len(self._groups) == 1:
            yield GroupRows(next(iter(self._groups)), batch)
        else:
            yield from self._split(batch)

    def _split(self, batch: pa.RecordBatch) -> Iterator[GroupRows]:
        paths = batch.column("path")
        if not pa.types.is_dictionary(paths.type):
            paths = paths.dictionary_encode()
        of_value = np.array([self._of_name[path] for path in paths.dictionary.to_pylist()], np.int64)
        of_row: np.ndarray[Any, Any] = of_value[values_of(paths.indices)]
        borders = [0, *(np.flatnonzero(np.diff(of_row)) + 1).tolist(), len(of_row)]
        for first, last in pairwise(borders):
            if last > first:
                yield GroupRows(int(of_row[first]), batch.slice(first, last - first))

    def settled(self, ids: Sequence[int], failures: Sequence[Failure], ends: Mapping[int, PieceEnd]) -> list[int]:
        """These files are settled; ``failures``: all of the scan so far; ``ends``: what pieces among them leave. The
        groups that have none left."""
        for failure in failures[self._failures_seen :]:
            if (group := self._of_name.get(failure.path)) is not None:
                self._groups[group].failures.append(failure)
        self._failures_seen = len(failures)
        complete = []
        for number in ids:
            group = self._of_file.pop(number, None)
            if group is None:
                continue
            self._groups[group].piece = ends.get(number)
            left = self._groups[group].left
            left.remove(number)
            if not left:
                complete.append(group)
        return complete

    def end(self, group: int) -> GroupEnd:
        """Forget a group whose rows have all been handed on."""
        known = self._groups.pop(group)
        for name in known.files:
            del self._of_name[name]
        unread = {failure.path for failure in known.failures if failure.offset is None}
        read = sum(entry.length for name, entry in known.files.items() if name not in unread)
        failures = tuple(replace(failure, path=path_of(failure.path)) for failure in known.failures)
        begun = sum(entry.start == 0 for entry in known.files.values())  # a file in pieces counts with its first
        piece = None if all(entry.piece is None for entry in known.files.values()) else known.piece or PieceEnd()
        return GroupEnd(group, begun, read, failures, piece)

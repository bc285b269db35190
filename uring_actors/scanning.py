"""``scan``: the front door.

    scan = uring_actors.scan("/data", patterns=[Regex(r"AKIA[0-9A-Z]{16}")])
    for batch in scan:        # pyarrow.RecordBatch
        ...
    scan.errors, scan.skipped, scan.stats

What is wrong with the arguments is raised before anything starts. A thread lists the files and hands them to the
node, which blocks it when it has enough to do; the caller's iteration pulls the rows.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uring_actors.config import ScanOptions
from uring_actors.errors import OptionError, UringActorsError
from uring_actors.many.paths import HostLocal
from uring_actors.node import Node, NodeSpec, start_node
from uring_actors.ops.base import Operation
from uring_actors.ops.bytesum import Nop, Touch
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.plan import AnyPath, FileEntry, devices, walk
from uring_actors.results.errors import Failure, Skipped, errors_table, skipped_table
from uring_actors.results.stats import ScanStats

if TYPE_CHECKING:
    from uring_actors.many.attached import AttachedJob
    from uring_actors.many.job import JobScan

_FILES_AT_ONCE = 256
_BYTES_AT_ONCE = 256 << 20
_SECONDS_AT_MOST = 0.02
"""A slow listing is handed on in small pieces, so that reading starts at once."""


def scan(
    paths: AnyPath | HostLocal | Iterable[AnyPath | HostLocal],
    *,
    patterns: Iterable[Regex | Literal | str] | None = None,
    operation: str | Operation = "match",
    address: str | None = None,
    nodes: Mapping[str, str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Scan | JobScan | AttachedJob:
    """Scan files and trees.

    paths: files or directories (str, bytes or PathLike); trees are walked, links in them not followed. With
    ``address`` also ``HostLocal`` paths, which each node has for itself.
    patterns: what to search for, with ``operation="match"``; a plain str is a ``Regex``.
    operation: ``"match"``, ``"touch"`` (read every byte; rows path, bytes, sum) or ``"nop"`` (rows path, bytes).
    address: of a Ray cluster (``"auto"``: the one that this machine is in): all of its nodes scan.
    nodes: only those with these labels or resources (``{"disk": "nvme"}``; an empty value: a resource of that name).
    checkpoint: a directory where progress and rows are kept. output_dir: the same, with ``address``, on a file system
    that all nodes share: they write the rows there themselves, and the job goes on without this process
    (``attach``). resume: go on with what is there.
    options: see ``ScanOptions`` (engine, io_engine, io, sqpoll, lanes, slot_bytes, slots, kernel_threads).

    A ``Scan``; with address or checkpoint a ``JobScan``, with output_dir an ``AttachedJob``, which look the same.

    Raises, before anything starts: InputError (a path doesn't exist), PatternError (points into the pattern),
    OptionError, IoUringUnavailable and MemlockTooSmall (``io_engine="uring"`` where it can't be had).
    """
    chosen = ScanOptions.of(**options)
    made = make_operation(operation, patterns)
    given = [paths] if isinstance(paths, (str, bytes, os.PathLike, HostLocal)) else list(paths)
    if (address, nodes, checkpoint, output_dir, resume) == (None, None, None, None, False):
        plain = [path for path in given if not isinstance(path, HostLocal)]
        if len(plain) == len(given):
            return Scan(plain, made, chosen)
    from uring_actors.many.starting import start_job

    return start_job(
        given, made, chosen, address=address, nodes=nodes, checkpoint=checkpoint, output_dir=output_dir, resume=resume
    )


def make_operation(operation: str | Operation, patterns: Iterable[Regex | Literal | str] | None) -> Operation:
    """The operation by name. Raises OptionError where patterns are missing or out of place."""
    if operation == "match":
        return Match.of([Regex(p) if isinstance(p, str) else p for p in patterns or ()])
    if patterns is not None:
        raise OptionError(f"operation {operation!r} takes no patterns", fix="Leave them out, or use 'match'.")
    if not isinstance(operation, str):
        return operation
    try:
        return {"touch": Touch(), "nop": Nop()}[operation]
    except KeyError:
        raise OptionError(f"there is no operation {operation!r}", fix="There are match, touch and nop.") from None


class Scan:
    """A running scan: an iterable of record batches (once), and what is known about it.

    Started when made. Ends when it has been iterated over, or with ``close`` (also: leaving a ``with`` block, or
    dropping it).
    """

    def __init__(self, paths: AnyPath | Iterable[AnyPath], operation: Operation, options: ScanOptions) -> None:
        self._began = time.monotonic()
        given = [paths] if isinstance(paths, (str, bytes, os.PathLike)) else list(paths)
        listing = walk(given)
        self.schema: pa.Schema = operation.schema
        spec = NodeSpec.decide(operation, options, devices(given))
        self._node = start_node(spec)
        try:
            for note in self._node.spec.notes:
                warnings.warn(note, RuntimeWarning, stacklevel=3)
        except RuntimeWarning:  # the caller made errors of warnings
            self._node.close()
            raise
        self._ended: float | None = None
        self._iterated = False
        self._last = self._node.stats()
        self._last_failures: list[Failure] = []
        # The thread must not keep the scan alive, or dropping the scan would never end it: it knows the feeder only.
        self._feeder = Feeder(self._node, listing)
        self._close = weakref.finalize(self, _close, self._node, self._feeder)
        self._feeder.start()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._iterated:
            raise OptionError("a scan can be iterated over once", fix="Keep the batches, or use to_table().")
        self._iterated = True
        try:
            yield from self._node.batches(self._feeder.check)
        finally:
            self.close()

    def to_table(self) -> pa.Table:
        """All rows (that are left) as one table."""
        return pa.Table.from_batches(list(self), self.schema)

    @property
    def errors(self) -> pa.Table:
        """What could not be scanned, so far (``ERROR_SCHEMA``); complete when the scan has ended."""
        if self._ended is None:
            self._last_failures = self._node.failures()
        return errors_table([*self._feeder.failures, *self._last_failures])

    @property
    def skipped(self) -> pa.Table:
        """What was left out by the rules, so far (``SKIPPED_SCHEMA``)."""
        return skipped_table(self._feeder.skipped)

    @property
    def stats(self) -> ScanStats:
        """A snapshot; final when the scan has ended."""
        if self._ended is None:
            self._last = self._node.stats()
        spec, done = self._node.spec, self._last.host
        return ScanStats(
            files=done.files,
            bytes=done.bytes,
            matches=done.matches,
            errors=done.errors + len(self._feeder.failures),
            skipped=len(self._feeder.skipped),
            seconds=(self._ended or time.monotonic()) - self._began,
            first_result_seconds=None if done.first_row is None else done.first_row - self._began,
            engine=spec.options.engine,
            backend=spec.backend,
            io_engine=spec.io_engine,
            io=self._last.io or spec.options.io,
            sqpoll=spec.sqpoll,
            devices=tuple(name for _, name in spec.devices),
            notes=spec.notes,
        )

    def close(self) -> None:
        """End the scan and free everything. Idempotent; the statistics and errors stay."""
        if self._ended is not None:
            return
        # A dead node can't say: its last words stand.
        with contextlib.suppress(UringActorsError):
            self._last, self._last_failures = self._node.stats(), self._node.failures()
        self._ended = time.monotonic()
        self._close()

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(node: Node, feeder: Feeder) -> None:
    feeder.stop()
    node.close()
    feeder.join()


class Feeder:
    """A thread that lists files and submits them to the node in small groups."""

    def __init__(self, node: Node, listing: Iterator[FileEntry | Skipped | Failure]) -> None:
        self.failures: list[Failure] = []
        self.skipped: list[Skipped] = []
        self._node = node
        self._listing = listing
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join(10)

    def check(self) -> None:
        """Raise what ended the listing, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            total = 0
            for group in self._groups():
                total += len(group)
                self._node.submit(group)
            if not self._stopping.is_set():
                self._node.finish(total)
        except BaseException as error:
            if not self._stopping.is_set():
                self._failure = error

    def _groups(self) -> Iterator[list[FileEntry]]:
        group: list[FileEntry] = []
        size, due = 0, time.monotonic() + _SECONDS_AT_MOST
        for item in self._listing:
            if self._stopping.is_set():
                return
            if isinstance(item, FileEntry):
                group.append(item)
                size += item.size
            elif isinstance(item, Failure):
                self.failures.append(item)
            else:
                self.skipped.append(item)
            if len(group) >= _FILES_AT_ONCE or size >= _BYTES_AT_ONCE or (group and time.monotonic() >= due):
                yield group
                group, size, due = [], 0, time.monotonic() + _SECONDS_AT_MOST
        if group:
            yield group

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
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uring_actors.config import OPERATIONS, ScanOptions
from uring_actors.errors import OptionError, UringActorsError
from uring_actors.feeder import Feeder
from uring_actors.many.paths import HostLocal
from uring_actors.node import Node, NodeSpec, start_node
from uring_actors.ops.base import Operation
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.plan import AnyPath, FileBatch, Listed, devices, listing
from uring_actors.results.errors import Failure, Skipped, errors_table, skipped_table
from uring_actors.results.stats import ScanStats
from uring_actors.selection import AnyGlob, Selection

if TYPE_CHECKING:
    from uring_actors.many.attached import AttachedJob
    from uring_actors.many.job import JobScan
    from uring_actors.ops.rules.rules import Rules


def scan(
    paths: AnyPath | HostLocal | Iterable[AnyPath | HostLocal],
    *,
    patterns: Iterable[Regex | Literal | str] | None = None,
    rules: Rules | AnyPath | None = None,
    operation: str | Operation = "match",
    include: AnyGlob | Iterable[AnyGlob] = (),
    exclude: AnyGlob | Iterable[AnyGlob] = (),
    hidden: bool = True,
    gitignore: bool = False,
    max_filesize: int | str | None = None,
    max_count: int | None = None,
    report: str = "matches",
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
    rules: search by these instead (a path: ``Rules.load`` of it); rows ``RULES_SCHEMA``.
    operation: ``"match"``; ``"checksum"`` (rows path, bytes, crc32c); ``"histogram"`` (rows path, bytes, entropy,
        counts; ``Histogram(block=…)``: one a block); ``"touch"`` (read every byte; rows path, bytes, sum);
        ``"nop"`` (rows path, bytes); or one of your own, made with ``uring_actors.operation``.
    include, exclude, hidden, gitignore, max_filesize: which files of trees are scanned; see ``Selection``.
    max_count: the first so many matches of each file. report: ``"matches"``, ``"count"`` (rows path, count) or
    ``"files"`` (rows path). A file is not read beyond what these need.
    address: of a Ray cluster (``"auto"``: the one that this machine is in): all of its nodes scan.
    nodes: only those with these labels or resources (``{"disk": "nvme"}``; an empty value: a resource of that name).
    checkpoint: a directory where progress and rows are kept. output_dir: the same, with ``address``, on a file system
    that all nodes share: they write the rows there themselves, and the job goes on without this process
    (``attach``). resume: go on with what is there.
    options: see ``ScanOptions`` (engine, io_engine, io, sqpoll, lanes, slot_bytes, slots, kernel_threads).

    A ``Scan``; with address or checkpoint a ``JobScan``, with output_dir an ``AttachedJob``, which look the same.

    Raises, before anything starts: InputError (a path doesn't exist), PatternError (points into the pattern),
    RuleFileError, OptionError, IoUringUnavailable and MemlockTooSmall (``io_engine="uring"`` where it can't be had).
    """
    chosen = ScanOptions.of(**options)
    selection = Selection.of(
        include=include,
        exclude=exclude,
        hidden=hidden,
        gitignore=gitignore,
        max_filesize=max_filesize,
        max_count=max_count,
        report=report,
    )
    made = make_operation(operation, patterns, selection, rules)
    given = [paths] if isinstance(paths, (str, bytes, os.PathLike, HostLocal)) else list(paths)
    if (address, nodes, checkpoint, output_dir, resume) == (None, None, None, None, False):
        plain = [path for path in given if not isinstance(path, HostLocal)]
        if len(plain) == len(given):
            return Scan(plain, made, chosen, selection)
    from uring_actors.many.starting import start_job

    return start_job(
        given,
        made,
        chosen,
        selection,
        address=address,
        nodes=nodes,
        checkpoint=checkpoint,
        output_dir=output_dir,
        resume=resume,
    )


def make_operation(
    operation: str | Operation,
    patterns: Iterable[Regex | Literal | str] | None,
    selection: Selection | None = None,
    rules: Rules | AnyPath | None = None,
) -> Operation:
    """The operation by name. Raises OptionError where patterns or rules are missing or out of place, or ``selection``
    asks for what is no part of it."""
    selection = selection or Selection()
    if rules is not None:
        if patterns is not None or operation != "match":
            raise OptionError("rules stand alone", fix="Leave out patterns and operation, or the rules.")
        if selection.report != "matches" or selection.max_count is not None:
            raise OptionError(
                "findings are not counted", fix="Leave out what asks for counts or names, or the rules."
            )
        from uring_actors.ops.rules.operation import RuleScan  # what a search does without is imported when asked for
        from uring_actors.ops.rules.rules import Rules

        return RuleScan(rules if isinstance(rules, Rules) else Rules.load(rules))
    if operation == "match":
        wanted = [Regex(p) if isinstance(p, str) else p for p in patterns or ()]
        return Match.of(wanted, report=selection.report, max_count=selection.max_count)
    if selection.report != "matches" or selection.max_count is not None:
        raise OptionError(f"operation {operation!r} finds no matches to count", fix="Use operation 'match'.")
    if patterns is not None:
        raise OptionError(f"operation {operation!r} takes no patterns", fix="Leave them out, or use 'match'.")
    if not isinstance(operation, str):
        from uring_actors.ops.user import UserOperation

        if isinstance(operation, UserOperation):
            operation.prepare()
        return operation
    from uring_actors.ops.bytesum import Nop, Touch
    from uring_actors.ops.checksum import Checksum
    from uring_actors.ops.histogram import Histogram

    named: dict[str, Operation] = {
        "checksum": Checksum(),
        "histogram": Histogram(),
        "touch": Touch(),
        "nop": Nop(),
    }
    try:
        return named[operation]
    except KeyError:
        raise OptionError(f"there is no operation {operation!r}", fix=f"There are {', '.join(OPERATIONS)}.") from None


class Scan:
    """A running scan: an iterable of record batches (once), and what is known about it.

    Started when made. Ends when it has been iterated over, or with ``close`` (also: leaving a ``with`` block, or
    dropping it).
    """

    def __init__(
        self,
        paths: AnyPath | Iterable[AnyPath],
        operation: Operation,
        options: ScanOptions,
        selection: Selection | None = None,
    ) -> None:
        self._began = time.monotonic()
        given = [paths] if isinstance(paths, (str, bytes, os.PathLike)) else list(paths)
        listed = listing(given, selection)
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
        self._feeder = _Lister(self._node, listed)
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


class _Lister(Feeder):
    """Lists files and submits them, batch by batch."""

    def __init__(self, node: Node, listed: Iterator[Listed]) -> None:
        super().__init__(node)
        self.failures: list[Failure] = []
        self.skipped: list[Skipped] = []
        self._listed = listed

    def _feed(self) -> None:
        total = 0
        for item in self._listed:
            if self._stopping.is_set():
                return
            if isinstance(item, FileBatch):
                total += len(item)
                self.node.submit(item)
            elif isinstance(item, Failure):
                self.failures.append(item)
            else:
                self.skipped.append(item)
        if not self._stopping.is_set():
            self.node.finish(total)

"""What the caller has of a job: an iterable of batches, and what is known about it. It looks as a ``Scan`` does.

Rows come when their lease is acknowledged: whole leases, once each. Those that earlier runs left in the job's
directory come last, when it is known which of their files have changed since.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from uring_actors.errors import OptionError, UringActorsError
from uring_actors.journal import Follower
from uring_actors.many.crew import Crew
from uring_actors.many.orchestrator import JobStatus, NodeReport
from uring_actors.many.progress import JOURNAL, Ledger
from uring_actors.many.receiver import LeaseRows, Receiver, matches_in
from uring_actors.results.errors import Failure, Skipped, errors_table, skipped_table
from uring_actors.results.stats import ScanStats

NODE_SCHEMA = pa.schema(
    [
        pa.field("node", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("pipelines", pa.int64(), nullable=False),
        pa.field("leases", pa.int64(), nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("again", pa.int64(), nullable=False),
        pa.field("message", pa.string()),
    ]
)
"""One row a node. ``state``: starting, working or left out; ``pipelines``: how many of its pipelines have died;
``leases``, ``files`` and ``bytes``: what it has done that counts; ``again``: bytes of the leases that these pipelines
held when they died."""


class JobScan:
    """A running job. Ends when it has been iterated over, or with ``close`` (also: leaving a ``with`` block, or
    dropping it)."""

    def __init__(
        self,
        crew: Crew,
        schema: pa.Schema,
        *,
        with_node: bool,
        engine: str,
        io: str,
        run: str,
        journal_of: Path,
        directory: Path | None,
        scratch: tempfile.TemporaryDirectory[str] | None,
    ) -> None:
        """journal_of: the directory with the journal. directory: where the job keeps its progress; None: nowhere that
        lasts. scratch: removed at the end."""
        self._began = time.monotonic()
        self._crew = crew
        self._engine, self._io = engine, io
        self._run = run
        self._directory = directory
        self._joiner = Joiner(journal_of, run, keep=directory is not None)
        self._receiver = Receiver(schema, directory, with_node=with_node)
        self.schema: pa.Schema = self._receiver.schema
        self._first_row: float | None = None
        self._matches = 0
        self._iterated = False
        self._ended: float | None = None
        self._status = crew.status()
        self._results: tuple[list[Failure], list[Skipped]] = ([], [])
        self._close = weakref.finalize(self, _close, crew, self._receiver, scratch)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._iterated:
            raise OptionError("a scan can be iterated over once", fix="Keep the batches, or use to_table().")
        self._iterated = True
        try:
            for batch in self._batches():
                if self._first_row is None:
                    self._first_row = time.monotonic()
                self._matches += matches_in(batch)
                yield batch
        finally:
            self.close()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for came in self._crew.rounds():
            ended = self._receiver.take(came, self._crew.commit)
            if pieces := {end.group: rows for end, rows in ended if end.piece is not None}:
                yield from self._joiner.add(pieces)
            for end, rows in ended:
                if end.piece is not None:
                    continue
                yield from rows.batches()
                if self._directory is None:
                    rows.drop()
        if self._directory is not None:
            yield from self._joiner.rest()
        elif self._joiner.waiting:
            yield from self._joiner.ready()

    def to_table(self) -> pa.Table:
        """All rows (that are left) as one table."""
        return pa.Table.from_batches(list(self), self.schema)

    @property
    def errors(self) -> pa.Table:
        """What could not be scanned, so far (``ERROR_SCHEMA``)."""
        if self._ended is None:
            self._results = self._crew.results()
        return errors_table(self._results[0])

    @property
    def skipped(self) -> pa.Table:
        """What was left out by the rules, so far (``SKIPPED_SCHEMA``)."""
        if self._ended is None:
            self._results = self._crew.results()
        return skipped_table(self._results[1])

    @property
    def nodes(self) -> pa.Table:
        """How each node has fared, so far (``NODE_SCHEMA``)."""
        return nodes_table(self._known().nodes)

    def _known(self) -> JobStatus:
        if self._ended is None:
            self._status = self._crew.status()
        return self._status

    @property
    def stats(self) -> ScanStats:
        """A snapshot; final when the job has ended."""
        status = self._known()
        return job_stats(
            status,
            matches=self._matches,
            seconds=(self._ended or time.monotonic()) - self._began,
            first=None if self._first_row is None else self._first_row - self._began,
            engine=self._engine,
            io=self._io,
        )

    def close(self) -> None:
        """End the job and free everything. Idempotent; the statistics and errors stay."""
        if self._ended is not None:
            return
        with contextlib.suppress(UringActorsError):  # it may have died: its last words stand
            self._status, self._results = self._crew.status(), self._crew.results()
        self._ended = time.monotonic()
        self._close()

    def __enter__(self) -> JobScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(crew: Crew, receiver: Receiver, scratch: tempfile.TemporaryDirectory[str] | None) -> None:
    crew.close()
    receiver.close()
    if scratch is not None:
        scratch.cleanup()


class Joiner:
    """Rows of files' pieces, which wait until those before them have come. One thread."""

    def __init__(self, directory: Path, run: str, *, keep: bool) -> None:
        """directory: where the journal is in which the pieces' leases are acknowledged. keep: rows lie in parts, and
        stay there."""
        self._follower = Follower(directory / JOURNAL)
        self._ledger = Ledger(directory, run)
        self._keep = keep
        self.waiting: dict[int, LeaseRows] = {}
        """By lease, the pieces that came and were not given yet."""

    def add(self, pieces: Mapping[int, LeaseRows]) -> Iterator[pa.RecordBatch]:
        """By lease, all the pieces that were found to count since the last call; the rows that can be had now."""
        self.waiting |= pieces
        yield from self.ready()
        for lease, rows in list(self.waiting.items()):
            if self._ledger.waits(lease):
                rows.put_away()
                continue
            del self.waiting[lease]
            if not self._keep:
                rows.drop()

    def ready(self) -> Iterator[pa.RecordBatch]:
        """What can be had now, and could not at the last call."""
        ledger = self._ledger
        for record in self._follower.new():
            for lease in ledger.take(record):
                if ledger.is_piece(lease) and lease >= ledger.first_of_run > 0:
                    yield from ledger.rows(lease, self._rows)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Once the job is done: what is left, and what earlier processes have found, as far as it still counts."""
        yield from self.ready()
        for lease in self._ledger.earlier_leases():
            yield from self._ledger.rows(lease)

    def _rows(self, lease: int) -> Iterator[pa.RecordBatch]:
        if lease in self.waiting:
            return self.waiting[lease].batches()
        return self._ledger.part(lease)


def nodes_table(reports: Iterable[NodeReport]) -> pa.Table:
    """The reports as a table of ``NODE_SCHEMA``."""
    rows = [{name: getattr(report, name) for name in NODE_SCHEMA.names} for report in reports]
    return pa.Table.from_pylist(rows, NODE_SCHEMA)


def job_stats(
    status: JobStatus, *, matches: int, seconds: float, first: float | None, engine: str, io: str
) -> ScanStats:
    """What is known of a job, as any scan's statistics."""
    nodes = [report.facts for report in status.nodes if report.facts.backend]
    return ScanStats(
        files=status.files,
        bytes=status.bytes,
        matches=matches,
        errors=status.errors,
        skipped=status.skipped,
        seconds=seconds,
        first_result_seconds=first,
        engine=engine,
        backend="+".join(sorted({facts.backend for facts in nodes})),
        io_engine="+".join(sorted({facts.io_engine for facts in nodes})),
        io=io,
        sqpoll=any(facts.sqpoll for facts in nodes),
        devices=tuple(dict.fromkeys(name for facts in nodes for name in facts.devices)),
        notes=status.notes,
    )

"""What of a job is done, as its journal has it, and the directory in which both lie.

    DIR/journal               uring_actors/journal.py; records below
    DIR/parts/LEASE.arrow     the rows of one acknowledged lease: an Arrow file, whole or not there

    {"t": "job", …}           first: what is scanned, so that nothing else is resumed here
    {"t": "run", "id"}        a process began (again) to work on it; ``id`` is the same where an orchestrator restarts
    {"t": "done", …}          a lease: its files as they were listed, its failures, the number of its matches
    {"t": "end"}              everything was done

Of a lease that is a piece of a large file, the record says what it leaves to the pieces behind it, and the part's
rows name it, and count lines, as ``pieces.py`` has it: ``Ledger.rows`` makes the file's rows of them.

A part is on the disk before the record that names it is written; a part without a record is of no account and
removed. A file counts as done in the lease that named it last. So where a resumed run scans a file again, its
earlier rows are left out when the earlier parts are read (``is_current``).
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

import pyarrow as pa

from uring_actors.errors import OptionError, UringActorsError
from uring_actors.journal import Journal, Record
from uring_actors.many.leases import Lease, Limits
from uring_actors.many.split import DonePiece, SplitFile
from uring_actors.pieces import Piece, PieceEnd
from uring_actors.plan import FileEntry
from uring_actors.results.arrays import array
from uring_actors.results.errors import Failure

JOURNAL: Final = "journal"
PARTS: Final = "parts"
_VERSION: Final = 1
_RUN_SHIFT: Final = 32
"""A lease's id: the number of the journal's run record, then a count."""
_IDENTITY = struct.Struct("<qqQ")
"""Size, mtime in nanoseconds, inode."""
NAMED: Final = 5
"""So many changed files are named one by one."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a lease came to. ``part``: the name of its file in ``parts``, None where it has none or
    none are kept."""

    files: int
    bytes: int
    matches: int
    part: str | None
    failures: tuple[Failure, ...]
    piece: PieceEnd | None = None
    """What it leaves, where it is a piece of a file."""


Read = Callable[[int], Iterable[pa.RecordBatch]]
"""By lease, the rows as its pipeline gave them."""


@dataclass(slots=True)
class Totals:
    """Of all leases that count."""

    files: int = 0
    bytes: int = 0
    matches: int = 0


def fingerprint(operation: object, selection: object, paths: Sequence[bytes]) -> str:
    """What must be the same for a job to be resumed."""
    shown = re.sub(r" at 0x[0-9a-f]+", "", f"{operation!r} {selection!r}")
    return blake2b(shown.encode() + b"\0" + b"\0".join(paths), digest_size=16).hexdigest()


def _key(node: str | None, path: bytes) -> bytes:
    return blake2b((node or "").encode() + b"\0" + path, digest_size=16).digest()


class Ledger:
    """What the journal's records come to. ``run``: which of them are this run's; None: those of the last.

    parts: by lease, the name of its part and the node of its files. ended: whether everything was done. splits: how
    the rows of a file's pieces become the file's (``Operation.splits``); None: files are not split.
    """

    def __init__(self, directory: Path, run: str | None = None) -> None:
        self.directory = directory
        self.totals = Totals()
        self.parts: dict[int, tuple[str, str | None]] = {}
        self.ended = False
        self.fingerprint: str | None = None
        self.schema: pa.Schema | None = None
        """Of the rows."""
        self.splits: str | None = None
        self.runs = 0
        self.first_of_run = 0
        """The first id of this run's leases; 0 where it has not begun."""
        self._run = run
        self._last_run: str | None = None
        self._failures: list[tuple[int, str | None, Failure]] = []
        self._done: dict[bytes, tuple[bytes, int]] = {}
        self._pipelines: dict[int, str] = {}
        self._superseded = False
        self._split: dict[bytes, SplitFile] = {}
        self._pieces: dict[int, tuple[bytes, int]] = {}
        """By lease: which file's piece it is, and where that begins."""

    def take(self, record: Record) -> list[int]:
        """Count one more record. The leases of which the ``rows`` can be had now."""
        kind = record["t"]
        if kind == "done":
            return self._take_lease(record)
        if kind == "run":
            self._take_run(record["id"])
        elif kind == "job":
            self.fingerprint = f"{record['version']} {record['fingerprint']}"
            self.schema = pa.ipc.read_schema(pa.py_buffer(record["schema"]))
            self.splits = record.get("splits")
        else:
            self.ended = True
        return []

    def _take_run(self, run: str) -> None:
        self.ended = False
        self.runs += 1
        if self._run in (None, run) and run != self._last_run:
            self.first_of_run = self.runs << _RUN_SHIFT
        if run != self._last_run:
            for split in self._split.values():
                for done in split.forget_failed():
                    self._uncount(done)
        self._last_run = run

    def _take_lease(self, record: Record) -> list[int]:
        lease, node = record["lease"], record["node"]
        failed = {failure["path"] for failure in record["failures"]}
        self.totals.bytes += record["bytes"]
        self.totals.matches += record["matches"]
        self._failures += [(lease, node, Failure(**failure)) for failure in record["failures"]]
        self._pipelines[lease] = record["pipeline"]
        if record["part"] is not None:
            self.parts[lease] = (record["part"], node)
        if record.get("piece") is not None:
            return self._take_piece(record)
        for path, size, mtime_ns, inode in record["files"]:
            key = _key(node, path)
            self._count_file(key)
            self._split.pop(key, None)
            # A file that failed has no identity: when the job is resumed it is tried again.
            self._done[key] = (b"" if path in failed else _identity(size, mtime_ns, inode), lease)
        return [lease]

    def _count_file(self, key: bytes) -> None:
        self.totals.files += 1
        if key in self._done:
            self._superseded = True
            self.totals.files -= 1

    def _uncount(self, done: DonePiece) -> None:
        self.totals.bytes -= done.bytes
        self.totals.matches -= done.matches

    def _take_piece(self, record: Record) -> list[int]:
        lease, what = record["lease"], record["piece"]
        ((path, size, mtime_ns, inode),) = record["files"]
        key = _key(None, path)
        split = self._split.get(key)
        if split is None or not split.same(size, mtime_ns, inode, what["extent"]):
            self._count_file(key)
            split = self._split[key] = SplitFile(path, size, mtime_ns, inode, what["extent"])
        former, dropped = split.done.get(what["start"]), split.dropped
        if former is not None:
            self._uncount(former)
        piece = Piece(what["start"], what["stop"], _pairs(what["given"]))
        head = tuple((pattern, start, stop) for pattern, start, stop in what["head"])
        end = PieceEnd(what["newlines"], what["newline"], _pairs(what["resume"]), head)
        failed = bool(record["failures"])
        placed = split.add(DonePiece(lease, piece, end, record["bytes"], record["matches"], failed))
        self.totals.matches -= split.dropped - dropped
        self._pieces[lease] = key, piece.start
        whole = split.complete and not split.failed
        self._done[key] = (_identity(size, mtime_ns, inode) if whole else b"", lease)
        if self.splits == "matches":
            return placed
        return [split.latest] if split.complete else []

    def acknowledged(self, lease: int) -> str | None:
        """The pipeline whose work on the lease counts; None where none does yet."""
        return self._pipelines.get(lease)

    def is_current(self, lease: int, node: str | None, path: bytes) -> bool:
        """Whether what the lease says of that file is its last word."""
        if lease in self._pieces:
            key, start = self._pieces[lease]
            done = self._split[key].done.get(start) if key in self._split else None
            return done is not None and done.lease == lease
        return self._done[_key(node, path)][1] == lease

    def failures(self) -> list[Failure]:
        """That a file can't be opened, or shrank and where, is said once, not for each of its pieces."""
        found: dict[Failure | int, Failure] = {}
        for number, (lease, node, failure) in enumerate(self._failures):
            if not self.is_current(lease, node, failure.path):
                continue
            of_the_file = lease in self._pieces and (failure.offset is None or failure.errno == errno.ENODATA)
            key = replace(failure, node=None, offset=None) if of_the_file else number
            if key not in found or (failure.offset or 0) < (found[key].offset or 0):
                found[key] = failure
        return list(found.values())

    def is_piece(self, lease: int) -> bool:
        """Whether an acknowledged lease is a piece of a file."""
        return lease in self._pieces

    def waits(self, lease: int) -> bool:
        """Whether a piece's rows can't be had yet, and will be."""
        if not self.is_current(lease, None, b""):
            return False
        split = self._split[self._pieces[lease][0]]
        return lease not in split.placed if self.splits == "matches" else not split.complete

    def earlier_leases(self) -> list[int]:
        """The leases of earlier runs that have rows."""
        found = [lease for lease in self.parts if lease not in self._pieces]
        for split in self._split.values():
            if self.splits == "matches":
                found += split.placed
            elif split.complete:
                found.append(split.latest)
        return sorted(lease for lease in found if lease < self.first_of_run)

    def rows(self, lease: int, read: Read | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of an acknowledged lease, as far as they still count, with those of a file's pieces put together.
        ``read``: the rows that a lease came with; None: from its part."""
        read = read or self.part
        if lease in self._pieces:
            found = self._joined(lease, read)
        elif self._superseded:
            found = (self._current_rows(lease, self.parts[lease][1], batch) for batch in read(lease))
        else:
            found = iter(read(lease))
        yield from (batch for batch in found if batch.num_rows)

    def _joined(self, lease: int, read: Read) -> Iterator[pa.RecordBatch]:
        from uring_actors.ops.joining import join, put_right  # what else reads a journal needs no operations

        split = self._split.get(self._pieces[lease][0])
        assert self.splits is not None
        if split is None or lease not in split.placed:
            return  # it counts no longer
        if self.splits == "matches":
            done, border = split.border_of(lease)
            for batch in read(lease):
                yield put_right(batch, split.path, border, drop=not done.piece.resume)
            return
        batch = join(self.splits, [list(read(done.lease)) for done in split.in_order()], split.path, split.dropped)
        if batch is not None:
            yield batch

    def part(self, lease: int) -> Iterator[pa.RecordBatch]:
        """The rows in the lease's part, as its pipeline gave them."""
        if lease in self.parts:
            yield from read_part(self.directory / PARTS / self.parts[lease][0])

    def _current_rows(self, lease: int, node: str | None, batch: pa.RecordBatch) -> pa.RecordBatch:
        paths = batch.column("path")
        if not pa.types.is_dictionary(paths.type):
            paths = paths.dictionary_encode()
        current = array([self.is_current(lease, node, path) for path in paths.dictionary.to_pylist()], pa.bool_())
        return batch.filter(current.take(paths.indices))


class Progress(Ledger):
    """The journal's writer, which also knows what needs no work. One thread at a time. Life: open → closed."""

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        schema: bytes,
        run: str,
        *,
        durable: bool,
        resume: bool,
        splits: str | None = None,
        extent: int = 0,
    ) -> None:
        """schema: of the rows, serialized. durable: see ``Journal``. resume: whether there may be progress of another
        run already. splits, extent: how the rows of pieces become a file's, and of how many bytes the extents are.

        Raises:
            OptionError: there is progress and ``resume`` is False, or it is another job's, or another process's.
            UringActorsError: the directory can't be used.
        """
        super().__init__(directory, run)
        self.changed: list[bytes] = []
        """Files that are scanned again because they are no longer what they were."""
        try:
            (directory / PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UringActorsError(
                "cannot make the checkpoint's directory", path=os.fsencode(directory), errno=error.errno
            ) from error
        self._extent = extent
        self._journal = Journal(directory / JOURNAL, durable=durable)
        try:
            self._replay(f"{_VERSION} {fingerprint}", resume)
            if self.fingerprint is None:
                job = {"version": _VERSION, "fingerprint": fingerprint, "schema": schema, "splits": splits}
                self._append({"t": "job", **job})
            self._append({"t": "run", "id": run})
            self._remove_strays()
        except BaseException:
            self._journal.close()
            raise
        self._unlisted = set(self._split)
        """Files in pieces that were not listed since this was opened."""
        self._unseen = {key for key, (_, lease) in self._done.items() if lease < self.first_of_run}

    def _replay(self, wanted: str, resume: bool) -> None:
        for record in self._journal.records:
            self.take(record)
        if self.fingerprint not in (None, wanted):
            raise OptionError(
                "this directory holds the progress of another scan: other paths, patterns or another operation",
                path=os.fsencode(self.directory),
                fix="Give the same ones, or name another directory.",
            )
        if self.runs and not self.first_of_run and not resume:
            raise OptionError(
                "this directory holds the progress of a scan",
                path=os.fsencode(self.directory),
                fix="Go on with it (resume), or name another directory.",
            )

    def _remove_strays(self) -> None:
        known = {name for name, _ in self.parts.values()}
        for path in (self.directory / PARTS).iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def _append(self, record: Record) -> None:
        self._journal.append(record)
        self.take(record)

    @property
    def first_lease(self) -> int:
        """The first id of this process's leases."""
        return self.runs << _RUN_SHIFT

    def left(self, node: str | None, entry: FileEntry, limits: Limits) -> list[FileEntry]:
        """What of a listed file needs work: nothing, all of it, or pieces of it."""
        key = _key(node, entry.path)
        split = self._split.get(key)
        self._unlisted.discard(key)
        if split is not None and self._goes_on(key, split, entry):
            self._unseen.discard(key)
            entry = replace(entry, size=split.size, mtime_ns=split.mtime_ns, inode=split.inode)
        elif self.is_done(node, entry):
            return []
        elif node is not None or self.splits is None or not self._extent or entry.size <= limits.split_bytes:
            return [entry]
        else:
            split = SplitFile(entry.path, entry.size, entry.mtime_ns, entry.inode, self._extent)
        return [replace(entry, piece=piece) for piece in split.missing(limits.bytes)]

    def _goes_on(self, key: bytes, split: SplitFile, entry: FileEntry) -> bool:
        """Whether the pieces that are done count: those of this run do, as the file was listed then."""
        this_run = self._done[key][1] >= self.first_of_run
        return this_run or split.same(entry.size, entry.mtime_ns, entry.inode, self._extent)

    def unlisted(self, limits: Limits) -> list[FileEntry]:
        """Once all is listed: what is missing of files in pieces that were not there any more. Reading it fails, and
        says so; the pieces that are done count."""
        return [
            FileEntry(0, split.path, split.size, 0, split.inode, split.mtime_ns, piece)
            for split in map(self._split.__getitem__, self._unlisted & self._split.keys())
            for piece in split.missing(limits.bytes)
        ]

    def misfit(self, entry: FileEntry) -> FileEntry | None:
        """The piece of the entry's file, if there is one now, that must be scanned again before others count."""
        piece = self._split[_key(None, entry.path)].misfit()
        return None if piece is None else replace(entry, piece=piece)

    def is_done(self, node: str | None, entry: FileEntry) -> bool:
        """Whether a listed file needs no work: it was scanned in this run, or in an earlier one and has not changed
        since, nor had failed."""
        key = _key(node, entry.path)
        self._unseen.discard(key)
        known = self._done.get(key)
        if known is None:
            return False
        identity, lease = known
        if lease >= self.first_of_run:
            return True
        if not identity or identity == _identity(entry.size, entry.mtime_ns, entry.inode):
            return bool(identity)
        self.changed.append(entry.path)
        return False

    @property
    def vanished(self) -> int:
        """Once all is listed: how many files of earlier runs were not there any more."""
        return len(self._unseen)

    def commit(self, lease: Lease, pipeline: str, receipt: Receipt) -> None:
        """From here on, the lease is done."""
        self._append(
            {
                "t": "done",
                "lease": lease.id,
                "pipeline": pipeline,
                "node": lease.node,
                "files": [[entry.path, entry.size, entry.mtime_ns, entry.inode] for entry in lease.files],
                "bytes": receipt.bytes,
                "matches": receipt.matches,
                "part": receipt.part,
                "failures": [asdict(failure) for failure in receipt.failures],
                "piece": self._piece_record(lease.files[0].piece, receipt.piece),
            }
        )

    def _piece_record(self, piece: Piece | None, end: PieceEnd | None) -> Record | None:
        if piece is None:
            return None
        assert end is not None, "a piece leaves something"
        given = {"start": piece.start, "stop": piece.stop, "given": piece.resume, "extent": self._extent}
        return {**given, **asdict(end)}

    def end(self) -> None:
        """Everything is done."""
        self._append({"t": "end"})

    def close(self) -> None:
        """Idempotent."""
        self._journal.close()


def _pairs(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((pattern, end) for pattern, end in pairs)


def _identity(size: int, mtime_ns: int, inode: int) -> bytes:
    return _IDENTITY.pack(size, mtime_ns, inode)


def read_part(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a part."""
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

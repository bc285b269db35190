"""What of a job is done, as its journal has it, and the directory in which both lie.

    DIR/journal               uring_actors/journal.py; records below
    DIR/parts/LEASE.arrow     the rows of one acknowledged lease: an Arrow file, whole or not there

    {"t": "job", …}           first: what is scanned, so that nothing else is resumed here
    {"t": "run", "id"}        a process began (again) to work on it; ``id`` is the same where an orchestrator restarts
    {"t": "done", …}          a lease: its files as they were listed, its failures, the number of its matches
    {"t": "end"}              everything was done

A part is on the disk before the record that names it is written; a part without a record is of no account and
removed. A file counts as done in the lease that named it last. So where a resumed run scans a file again, its
earlier rows are left out when the earlier parts are read (``is_current``).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import pyarrow as pa

from uring_actors.errors import OptionError, UringActorsError
from uring_actors.journal import Journal, Record
from uring_actors.many.leases import Lease
from uring_actors.plan import FileEntry
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

    parts: by lease, the name of its part and the node of its files. ended: whether everything was done.
    """

    def __init__(self, directory: Path, run: str | None = None) -> None:
        self.directory = directory
        self.totals = Totals()
        self.parts: dict[int, tuple[str, str | None]] = {}
        self.ended = False
        self.fingerprint: str | None = None
        self.schema: pa.Schema | None = None
        """Of the rows."""
        self.runs = 0
        self.first_of_run = 0
        """The first id of this run's leases; 0 where it has not begun."""
        self._run = run
        self._last_run: str | None = None
        self._failures: list[tuple[int, str | None, Failure]] = []
        self._done: dict[bytes, tuple[bytes, int]] = {}
        self._pipelines: dict[int, str] = {}
        self._superseded = False

    def take(self, record: Record) -> None:
        """Count one more record."""
        kind = record["t"]
        if kind == "done":
            self._take_lease(record)
        elif kind == "run":
            self._take_run(record["id"])
        elif kind == "job":
            self.fingerprint = f"{record['version']} {record['fingerprint']}"
            self.schema = pa.ipc.read_schema(pa.py_buffer(record["schema"]))
        else:
            self.ended = True

    def _take_run(self, run: str) -> None:
        self.ended = False
        self.runs += 1
        if self._run in (None, run) and run != self._last_run:
            self.first_of_run = self.runs << _RUN_SHIFT
        self._last_run = run

    def _take_lease(self, record: Record) -> None:
        lease, node = record["lease"], record["node"]
        failed = {failure["path"] for failure in record["failures"]}
        for path, size, mtime_ns, inode in record["files"]:
            key = _key(node, path)
            if key in self._done:
                self._superseded = True
                self.totals.files -= 1
            # A file that failed has no identity: when the job is resumed it is tried again.
            self._done[key] = (b"" if path in failed else _identity(size, mtime_ns, inode), lease)
        self.totals.files += len(record["files"])
        self.totals.bytes += record["bytes"]
        self.totals.matches += record["matches"]
        self._failures += [(lease, node, Failure(**failure)) for failure in record["failures"]]
        self._pipelines[lease] = record["pipeline"]
        if record["part"] is not None:
            self.parts[lease] = (record["part"], node)

    def acknowledged(self, lease: int) -> str | None:
        """The pipeline whose work on the lease counts; None where none does yet."""
        return self._pipelines.get(lease)

    def is_current(self, lease: int, node: str | None, path: bytes) -> bool:
        """Whether what the lease says of that file is its last word."""
        return self._done[_key(node, path)][1] == lease

    def failures(self) -> list[Failure]:
        return [failure for lease, node, failure in self._failures if self.is_current(lease, node, failure.path)]

    def earlier_parts(self) -> list[int]:
        """The leases of earlier runs that have rows."""
        return [lease for lease in self.parts if lease < self.first_of_run]

    def rows(self, lease: int) -> Iterator[pa.RecordBatch]:
        """The rows of an acknowledged lease, as far as they still count."""
        name, node = self.parts[lease]
        for batch in read_part(self.directory / PARTS / name):
            if self._superseded:
                batch = self._current_rows(lease, node, batch)
            if batch.num_rows:
                yield batch

    def _current_rows(self, lease: int, node: str | None, batch: pa.RecordBatch) -> pa.RecordBatch:
        paths = batch.column("path")
        if not pa.types.is_dictionary(paths.type):
            paths = paths.dictionary_encode()
        current = pa.array([self.is_current(lease, node, path) for path in paths.dictionary.to_pylist()], pa.bool_())
        return batch.filter(current.take(paths.indices))


class Progress(Ledger):
    """The journal's writer, which also knows what needs no work. One thread at a time. Life: open → closed."""

    def __init__(
        self, directory: Path, fingerprint: str, schema: bytes, run: str, *, durable: bool, resume: bool
    ) -> None:
        """schema: of the rows, serialized. durable: see ``Journal``. resume: whether there may be progress of another
        run already.

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
        self._journal = Journal(directory / JOURNAL, durable=durable)
        try:
            self._replay(f"{_VERSION} {fingerprint}", resume)
            if self.fingerprint is None:
                self._append({"t": "job", "version": _VERSION, "fingerprint": fingerprint, "schema": schema})
            self._append({"t": "run", "id": run})
            self._remove_strays()
        except BaseException:
            self._journal.close()
            raise
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
            }
        )

    def end(self) -> None:
        """Everything is done."""
        self._append({"t": "end"})

    def close(self) -> None:
        """Idempotent."""
        self._journal.close()


def _identity(size: int, mtime_ns: int, inode: int) -> bytes:
    return _IDENTITY.pack(size, mtime_ns, inode)


def read_part(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a part."""
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

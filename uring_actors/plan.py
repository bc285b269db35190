"""From the paths that a caller gives to the files that will be read.

``listing`` lists trees lazily and in batches, so that reading starts while listing goes on, and it opens no file: a
FIFO without a writer or a tape drive would block for ever. What it decides, for each thing it comes upon:

    regular file           a row of a FileBatch, also when it is empty
    directory              listed; if that fails, Failure
    symbolic link          followed where the caller gave it; in a tree not followed. Those that lead nowhere
                           or in a circle are Skipped one by one, the others counted in one Skipped for each
                           path given
    FIFO, socket, device   Skipped
    cannot be stat'ed      Failure
    not selected           counted by reason, one Skipped for each path given (``selection.py``)

Order: a directory's files by name, then its subdirectories by name. Paths are bytes throughout, as the file
system has them, and begin as the caller spelled them. Memory: the entries of one directory and the
directories not yet listed.

**A file is listed once**, however many of the given paths lead to it. Links within trees are not followed, so
two given trees overlap only where the real path of one lies in the other: it is enough to remember which of
the given paths have been reached. Two hard links are two files.

Files are columns from here on (``FileBatch``): a tree of small files is many, and an object for each would cost more
than reading it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

import numpy as np

from uring_actors.errors import InputError, OptionError
from uring_actors.pieces import Piece
from uring_actors.results.errors import Failure, Skipped
from uring_actors.selection import Scope, Selection
from uring_actors.uring import listing as directory

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SPECIAL = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


_PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"),
        *("efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs"),
        *("securityfs", "selinuxfs", "sysfs", "tracefs"),
    )
)
"""File systems of the kernel's own making."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file. ``id`` counts from 0 within one walk; ``size`` is in bytes, at the time of listing."""

    id: int
    path: bytes
    size: int
    device: int
    """``st_dev``: files with the same one share a reader."""
    inode: int
    mtime_ns: int = 0
    """As ``st_mtime_ns``: with size and inode, what tells a changed file from an unchanged one."""
    piece: Piece | None = None
    """What of the file is to be scanned; None: all of it."""

    @property
    def start(self) -> int:
        return 0 if self.piece is None else self.piece.start

    @property
    def stop(self) -> int:
        return self.size if self.piece is None else self.piece.stop

    @property
    def length(self) -> int:
        """How many bytes are to be scanned."""
        return self.stop - self.start

    @property
    def name(self) -> bytes:
        """What tells it from any other file or piece that is scanned at the same time: the path, of a piece with its
        place behind a NUL, which no path can hold. ``path_of`` is the way back."""
        if self.piece is None:
            return self.path
        return b"%b\0%d%b" % (self.path, self.piece.start, b"+" if self.piece.resume else b"")


def path_of(name: bytes) -> bytes:
    """The path in a ``FileEntry.name``."""
    return name.partition(b"\0")[0]


Ints = np.ndarray[Any, np.dtype[np.int64]]
_ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class FileBatch(Sequence[FileEntry]):
    """Regular files as columns; as a sequence, it makes a ``FileEntry`` of a row when asked for one.

    paths: every path with a NUL after it. ends: (n,), where each path's NUL ends in ``paths``. ids: ascending.
    inodes: as int64 with the number's 64 bits. mtimes: in nanoseconds.
    """

    ids: Ints
    sizes: Ints
    devices: Ints
    inodes: Ints
    mtimes: Ints
    ends: Ints
    paths: bytes
    pieces: Mapping[int, Piece] = field(default_factory=dict)
    """By id, of the files that are not to be scanned as a whole."""

    @classmethod
    def of(cls, files: Sequence[FileEntry]) -> FileBatch:
        """The same files as columns, by id."""
        if isinstance(files, FileBatch):
            return files
        files = sorted(files, key=lambda one: one.id)
        rows = [(f.id, f.size, f.device, _signed(f.inode), f.mtime_ns, len(f.path) + 1) for f in files]
        ids, sizes, devices, inodes, mtimes, lengths = np.array(rows, np.int64).reshape(-1, 6).T.copy()
        paths = b"".join(f.path + b"\0" for f in files)
        pieces = {f.id: f.piece for f in files if f.piece is not None}
        return cls(ids, sizes, devices, inodes, mtimes, np.cumsum(lengths), paths, pieces)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> FileEntry: ...
    @overload
    def __getitem__(self, at: slice) -> FileBatch: ...
    def __getitem__(self, at: int | slice) -> FileEntry | FileBatch:
        if isinstance(at, slice):
            first, stop, step = at.indices(len(self))
            return self._between(first, stop) if step == 1 else self.take(np.arange(first, stop, step))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        return FileEntry(
            int(self.ids[at]),
            self.path(at),
            int(self.sizes[at]),
            int(self.devices[at]),
            int(self.inodes[at]) & _ALL_BITS,
            int(self.mtimes[at]),
            self.pieces.get(int(self.ids[at])),
        )

    def entry(self, number: int) -> FileEntry:
        """The file with the id ``number``, which is in the batch."""
        return self[int(np.searchsorted(self.ids, number))]

    def path(self, at: int) -> bytes:
        """Of row ``at``, which is not negative."""
        return self.paths[int(self.ends[at - 1]) if at else 0 : int(self.ends[at]) - 1]

    def _between(self, first: int, stop: int) -> FileBatch:
        if first >= stop:
            first = stop = 0
        if (first, stop) == (0, len(self)):
            return self
        columns = (self.ids, self.sizes, self.devices, self.inodes, self.mtimes, self.ends)
        ids, sizes, devices, inodes, mtimes, ends = (column[first:stop] for column in columns)
        start = int(self.ends[first - 1]) if first else 0
        paths = self.paths[start : int(ends[-1])] if len(ends) else b""
        return FileBatch(ids, sizes, devices, inodes, mtimes, ends - start, paths, self.pieces)

    def take(self, rows: np.ndarray[Any, Any]) -> FileBatch:
        """These rows (ascending), as a batch of their own."""
        if len(rows) == len(self):
            return self
        paths = [self.path(row) + b"\0" for row in rows.tolist()]
        ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        columns = (self.ids, self.sizes, self.devices, self.inodes, self.mtimes)
        ids, sizes, devices, inodes, mtimes = (column[rows] for column in columns)
        return FileBatch(ids, sizes, devices, inodes, mtimes, ends, b"".join(paths), self.pieces)


Listed: TypeAlias = FileBatch | Skipped | Failure


@dataclass(frozen=True, slots=True)
class _Given:
    """A path that the caller gave. ``real``: absolute, with all links resolved."""

    path: bytes
    real: bytes
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class _Directory:
    path: bytes
    real: bytes
    device: int
    scope: Scope | None
    """What selects in it; None: everything."""


def listing(paths: AnyPath | Iterable[AnyPath], selection: Selection | None = None) -> Iterator[Listed]:
    """The files that ``paths`` lead to and ``selection`` wants, in batches, and what is left out and why.

    All of ``paths`` are checked before this returns.

    Raises:
        InputError: one of ``paths`` does not exist or cannot be reached.
        OptionError: ``paths`` is empty.
    """
    return _Walker(_check(paths), selection or Selection()).run()


def walk(
    paths: AnyPath | Iterable[AnyPath], selection: Selection | None = None
) -> Iterator[FileEntry | Skipped | Failure]:
    """``listing``, file by file."""
    batches = listing(paths, selection)
    return (item for one in batches for item in (one if isinstance(one, FileBatch) else (one,)))


def device_name(st_dev: int, path: bytes | None = None) -> str:
    """What to call the device ``st_dev`` in reports; not unique, group by the number.

    The block device's name (``"nvme0n1p2"``), or for a file system without one the file system's
    (``"tmpfs"``). btrfs and overlay report numbers that no mount is listed under; there ``path``, a file on
    the device, tells. The bare number (``"0:42"``) where nothing else is known.
    """
    number = f"{os.major(st_dev)}:{os.minor(st_dev)}"
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError:
        return _file_system(number, path) or number


def devices(paths: AnyPath | Iterable[AnyPath]) -> dict[int, str]:
    """The devices that a walk over ``paths`` will come upon, by ``st_dev``, with their names.

    Those of the given paths come first, then those mounted below them. Pseudo file systems below (/proc) are
    left out: they hold no data worth a reader.

    Raises:
        InputError, OptionError: as ``walk``.
    """
    given = _check(paths)
    found = {one.status.st_dev: one.path for one in given}
    trees = tuple(one.real.rstrip(b"/") + b"/" for one in given if stat.S_ISDIR(one.status.st_mode))
    for mount in _mounts():
        if mount.point.startswith(trees) and mount.kind not in _PSEUDO:
            try:
                found.setdefault(os.stat(mount.point).st_dev, mount.point)
            except OSError:  # the walk will say so, if it comes there
                continue
    return {device: device_name(device, path) for device, path in found.items()}


def _check(paths: AnyPath | Iterable[AnyPath]) -> list[_Given]:
    if isinstance(paths, (str, bytes, os.PathLike)):
        paths = [paths]
    given: list[_Given] = []
    bad: list[tuple[bytes, int]] = []
    for spelled in paths:
        path = os.fsencode(spelled)
        try:
            given.append(_Given(path, os.path.realpath(path), os.stat(path)))
        except OSError as error:
            bad.append((path, error.errno or errno.EIO))
        except ValueError:  # a NUL within the path: no system call can take it
            bad.append((path, errno.EINVAL))
    if bad:
        message = "cannot scan this path"
        if len(bad) > 1:
            message = f"cannot scan {len(bad)} of the {len(bad) + len(given)} paths given; the first"
        raise InputError(message, path=bad[0][0], errno=bad[0][1])
    if not given:
        raise OptionError("no path was given to scan", fix="Name at least one file or directory.")
    return given


_FILES_AT_ONCE = 1024
_BYTES_AT_ONCE = 256 << 20
_SECONDS_AT_MOST = 0.02
"""A slow listing is handed on in small pieces, so that reading starts at once."""
_LOOKS_AT_ONCE = 256
_PATH_ROOM = 256 << 10
_PATH_MOST = 4096
"""Bytes of a path with its NUL."""
_ANY_SIZE = (1 << 63) - 1


class _Collected:
    """Files on their way into a batch."""

    def __init__(self) -> None:
        self.files: Ints = np.empty((_FILES_AT_ONCE, directory.FILE_WORDS), np.int64)
        self.paths = np.empty(_PATH_ROOM, np.uint8)
        self.count = 0
        self._next_id = 0
        self._due = 0.0

    @property
    def ready(self) -> bool:
        """Whether a batch should not grow further."""
        if self.count and time.monotonic() >= self._due:
            return True
        if self.count == _FILES_AT_ONCE or len(self.paths) - self._filled < _PATH_MOST:
            return True
        return int(self.files[: self.count, directory.F_SIZE].sum()) >= _BYTES_AT_ONCE

    def add(self, path: bytes, status: os.stat_result) -> None:
        """Take one more file; there is room."""
        start = self._filled
        end = start + len(path) + 1
        self.paths[start:end] = np.frombuffer(path + b"\0", np.uint8)
        self.files[self.count] = (status.st_size, status.st_dev, _signed(status.st_ino), end, status.st_mtime_ns)
        self.count += 1

    @property
    def _filled(self) -> int:
        return int(self.files[self.count - 1, directory.F_PATH]) if self.count else 0

    def take(self) -> Iterator[FileBatch]:
        """What was collected, if anything."""
        self._due = time.monotonic() + _SECONDS_AT_MOST
        if not self.count:
            return
        rows = self.files[: self.count].T.copy()
        yield FileBatch(
            np.arange(self._next_id, self._next_id + self.count, dtype=np.int64),
            rows[directory.F_SIZE],
            rows[directory.F_DEVICE],
            rows[directory.F_INODE],
            rows[directory.F_MTIME],
            rows[directory.F_PATH],
            self.paths[: self._filled].tobytes(),
        )
        self._next_id += self.count
        self.count = 0


class _Entries:
    """The entries of one directory at a time, in memory that is used again."""

    def __init__(self) -> None:
        self._buffer = np.empty(64 << 10, np.uint8)
        self.entries: Ints = np.empty((0, directory.ENTRY_WORDS), np.int64)
        self.order: Ints = np.empty(0, np.int64)
        self.found: Ints = np.empty(0, np.int64)
        self._status = np.zeros(directory.STAT_BYTES // 8, np.int64)
        self.count = 0

    def read(self, fd: int) -> int:
        """Read the directory; the errno that ended it too early, or 0. What was read before stays."""
        filled, code = 0, 1
        while True:
            filled, code = directory.read_entries(fd, self._buffer.ctypes.data, filled, len(self._buffer))
            if code <= 0:
                break
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        most = directory.count_entries(self._buffer.ctypes.data, filled)
        if most > len(self.order):
            self.entries = np.empty((2 * most, directory.ENTRY_WORDS), np.int64)
            self.order, self.found = np.empty((2, 2 * most), np.int64)
        self.count = directory.index_entries(self._buffer.ctypes.data, filled, self.entries, self.order)
        return -code

    def names(self) -> list[bytes]:
        """All names, sorted."""
        rows = self.entries[self.order[: self.count]]
        starts, lengths = rows[:, directory.E_NAME], rows[:, directory.E_LENGTH]
        text = self._buffer.data
        return [bytes(text[a : a + n]) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def name(self, at: int) -> bytes:
        """The name of the entry that is number ``at`` by name."""
        start, length = self.entries[self.order[at], : directory.E_TYPE].tolist()
        return self._buffer[start : start + length].tobytes()

    def look(self, fd: int, first: int, prefix: Any, largest: int, into: _Collected) -> int:
        """Look at entries from ``first`` on, some at a time; where that ended."""
        stop, into.count = directory.look_at(
            fd,
            self._buffer.ctypes.data,
            self.entries,
            self.order,
            first,
            min(self.count, first + _LOOKS_AT_ONCE),
            prefix,
            largest,
            self._status.ctypes.data,
            into.files,
            into.count,
            into.paths,
            self.found,
            _BYTES_AT_ONCE,
        )
        return stop


class _Walker:
    """One walk over checked paths. Life: created → run once."""

    def __init__(self, given: list[_Given], selection: Selection) -> None:
        self._given = given
        self._selection = selection
        self._reached: set[bytes] = set()
        # By the directory that they lie in: given paths to watch for while it is listed.
        self._below: dict[bytes, set[bytes]] = {}
        for one in given:
            parent, name = os.path.split(one.real)
            if name:
                self._below.setdefault(parent, set()).add(name)
        self._collected = _Collected()
        self._entries = _Entries()
        self._left_out: Counter[tuple[str, bool]] = Counter()  # by reason, and whether directories or files
        self._problems: list[Skipped] = []

    def run(self) -> Iterator[Listed]:
        yield from self._collected.take()  # nothing yet: its time begins
        for one in self._given:
            if one.real in self._reached:
                continue
            self._reached.add(one.real)
            if stat.S_ISDIR(one.status.st_mode):
                yield from self._tree(one)
            else:
                yield from self._given_file(one)
            yield from self._say_left_out(one.path)
        yield from self._collected.take()

    def _say_left_out(self, path: bytes) -> Iterator[Skipped]:
        """One row for each reason; a row for each file could be more than the files that are scanned."""
        for reason in sorted({reason for reason, _ in self._left_out}):
            files, directories = self._left_out[reason, False], self._left_out[reason, True]
            parts = [f"{directories} director{'y' if directories == 1 else 'ies'}"] * (directories > 0)
            parts += [f"{files} file{'' if files == 1 else 's'}"] * (files > 0)
            yield Skipped(path, f"{' and '.join(parts)} left out: {reason}")
        self._left_out.clear()

    def _given_file(self, one: _Given) -> Iterator[Listed]:
        if not stat.S_ISREG(one.status.st_mode):
            yield _special(one.path, stat.S_IFMT(one.status.st_mode))
            return
        largest = self._selection.max_filesize
        if largest is not None and one.status.st_size > largest:
            self._left_out[self._selection.too_large, False] += 1
            return
        self._collected.add(one.path, one.status)
        if self._collected.ready:
            yield from self._collected.take()

    def _tree(self, top: _Given) -> Iterator[Listed]:
        scope = Scope.of(self._selection, top.real) if self._selection.by_name else None
        pending = [_Directory(top.path, top.real, top.status.st_dev, scope)]
        links = 0
        while pending:
            here = pending.pop()
            below: list[_Directory] = []
            try:
                fd = os.open(here.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                yield _failure(here.path, error.errno or errno.EIO, "cannot list the directory", here.device)
                continue
            try:
                number = self._entries.read(fd)
                if number:
                    yield _failure(here.path, number, "cannot list the directory", here.device)
                links += yield from self._directory(here, fd, below)
            finally:
                os.close(fd)
            pending.extend(reversed(below))
        if links:
            noun = "symbolic link below it is" if links == 1 else "symbolic links below it are"
            yield Skipped(top.path, f"{links} {noun} not followed")

    def _directory(self, here: _Directory, fd: int, below: list[_Directory]) -> Generator[Listed, None, int]:
        """The entries that were read of ``here``; its directories go to ``below``. Returns how many links."""
        entries, collected = self._entries, self._collected
        slash = b"" if here.path.endswith(b"/") else b"/"
        spelled, real = here.path + slash, here.real.rstrip(b"/") + b"/"
        prefix = np.frombuffer(spelled, np.uint8)
        largest = self._selection.max_filesize
        scope = self._strike(here)
        yield from self._problems
        self._problems.clear()
        links = at = 0
        while at < entries.count:
            first, at = at, entries.look(fd, at, prefix, _ANY_SIZE if largest is None else largest, collected)
            found = entries.found[first:at]
            for k in np.flatnonzero(found).tolist():
                kind, name = int(found[k]), entries.name(first + k)
                if kind == directory.DT_DIR:
                    inner = scope and scope.enter(name)
                    below.append(_Directory(spelled + name, real + name, here.device, inner))
                elif kind == directory.DT_LNK:
                    if reason := _broken_link(spelled + name, real):
                        yield Skipped(spelled + name, reason)
                    else:
                        links += 1
                elif kind == directory.TOO_LARGE:
                    self._left_out[self._selection.too_large, False] += 1
                elif number := directory.errno_of(kind):
                    yield _failure(spelled + name, number, "cannot read the file's status", here.device)
                elif kind != directory.LEFT_OUT:
                    yield _special(spelled + name, kind << 12)
            if collected.ready:
                yield from collected.take()
        return links

    def _strike(self, here: _Directory) -> Scope | None:
        """Mark the entries that are not to be listed: given paths that were reached, and what is not selected.
        Returns the scope with what the directory itself adds."""
        entries, scope = self._entries, here.scope
        kinds = entries.entries[:, directory.E_TYPE]
        given = self._below.get(here.real)
        if scope is None and given is None:
            return None
        names = entries.names()
        if scope is not None:
            scope = scope.opened(names, self._problems)
        real = here.real.rstrip(b"/") + b"/"
        for row, name in zip(entries.order[: entries.count].tolist(), names, strict=True):
            if given is not None and name in given and real + name in self._reached:
                kinds[row] = directory.LEFT_OUT
                continue
            if scope is not None:
                is_directory = self._is_directory(int(kinds[row]), here.path, name)
                if reason := scope.leaves_out(name, is_directory):
                    self._left_out[reason, is_directory] += 1
                    kinds[row] = directory.LEFT_OUT
                    continue
            if given is not None and name in given:
                self._reached.add(real + name)
        return scope

    @staticmethod
    def _is_directory(kind: int, path: bytes, name: bytes) -> bool:
        if kind != directory.DT_UNKNOWN:
            return kind == directory.DT_DIR
        try:
            return stat.S_ISDIR(os.lstat(os.path.join(path, name)).st_mode)
        except OSError:  # ``look_at`` will say so
            return False


def _broken_link(path: bytes, directory: bytes) -> str | None:
    """Why the link at ``path``, in the real ``directory`` (with its slash), is worth a word; else None."""
    try:
        target = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "symbolic link to something that does not exist"
        return "symbolic link that loops" if error.errno == errno.ELOOP else None
    if stat.S_ISDIR(target.st_mode) and directory.startswith(os.path.realpath(path).rstrip(b"/") + b"/"):
        return "symbolic link to a directory that contains it"
    return None


def _special(path: bytes, kind: int) -> Skipped:
    return Skipped(path, f"{_SPECIAL.get(kind, 'special file')}, not a regular file")


def _signed(number: int) -> int:
    """An unsigned 64-bit number as the int64 with the same bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _failure(path: bytes, number: int, message: str, device: int) -> Failure:
    if number == errno.ENOENT:
        message = "vanished while it was being listed"
    elif number == errno.ENAMETOOLONG:
        message += ": the path is longer than the system takes; scan it from a directory further down"
    return Failure(path, message, errno=number, device=device_name(device, path))


@dataclass(frozen=True, slots=True)
class _Mount:
    number: str
    point: bytes
    kind: str


def _mounts() -> list[_Mount]:
    """This process's mounts (proc_pid_mountinfo(5)), in the order in which they were made."""
    found: list[_Mount] = []
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.readlines()
    except OSError:
        return found
    for line in lines:  # id, parent, number, root, mount point, options, optional ones, "-", type, …
        fields = line.split()
        # The kernel writes blanks and backslashes in octal, which Python's escapes read the same.
        point = fields[4].decode("unicode_escape").encode("latin-1")
        kind = fields[fields.index(b"-") + 1]
        found.append(_Mount(os.fsdecode(fields[2]), point, os.fsdecode(kind)))
    return found


def _file_system(number: str, path: bytes | None) -> str | None:
    """The file system type of the mount with that number, else of the mount that ``path`` lies under."""
    mounts = _mounts()
    for mount in mounts:
        if mount.number == number:
            return mount.kind
    if path is None:
        return None
    real = os.path.realpath(path) + b"/"
    above = [mount for mount in mounts if real.startswith(mount.point.rstrip(b"/") + b"/")]
    # Of several mounts on one point the last is the one to be seen.
    return max(enumerate(above), key=lambda at: (len(at[1].point), at[0]))[1].kind if above else None

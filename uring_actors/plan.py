"""From the paths that a caller gives to the files that will be read.

``walk`` lists trees lazily, so that reading starts while listing goes on, and it opens no file: a FIFO
without a writer or a tape drive would block for ever. What it decides, for each thing it comes upon:

    regular file           FileEntry, also when it is empty
    directory              listed; if that fails, Failure
    symbolic link          followed where the caller gave it; in a tree not followed. Those that lead nowhere
                           or in a circle are Skipped one by one, the others counted in one Skipped for each
                           path given
    FIFO, socket, device   Skipped
    cannot be stat'ed      Failure

Order: a directory's files by name, then its subdirectories by name. Paths are bytes throughout, as the file
system has them, and begin as the caller spelled them. Memory: the entries of one directory and the
directories not yet listed.

**A file is listed once**, however many of the given paths lead to it. Links within trees are not followed, so
two given trees overlap only where the real path of one lies in the other: it is enough to remember which of
the given paths have been reached. Two hard links are two files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from uring_actors.errors import InputError, OptionError
from uring_actors.results.errors import Failure, Skipped

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


def walk(paths: AnyPath | Iterable[AnyPath]) -> Iterator[FileEntry | Skipped | Failure]:
    """The files that ``paths`` lead to, and what is left out of them and why.

    All of ``paths`` are checked before this returns.

    Raises:
        InputError: one of ``paths`` does not exist or cannot be reached.
        OptionError: ``paths`` is empty.
    """
    return _Walker(_check(paths)).run()


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


class _Walker:
    """One walk over checked paths. Life: created → run once."""

    def __init__(self, given: list[_Given]) -> None:
        self._given = given
        self._given_real = frozenset(one.real for one in given)
        self._reached: set[bytes] = set()
        self._next_id = 0

    def run(self) -> Iterator[FileEntry | Skipped | Failure]:
        for one in self._given:
            if not self._reach(one.real):
                continue
            if stat.S_ISDIR(one.status.st_mode):
                yield from self._tree(one)
            else:
                yield self._leaf(one.path, one.status)

    def _reach(self, real: bytes) -> bool:
        """Whether ``real`` is to be listed now: False for a given path that was listed before."""
        if real in self._reached:
            return False
        if real in self._given_real:
            self._reached.add(real)
        return True

    def _tree(self, top: _Given) -> Iterator[FileEntry | Skipped | Failure]:
        links = 0
        pending = [_Directory(top.path, top.real, top.status.st_dev)]
        while pending:
            directory = pending.pop()
            entries, failure = _entries(directory)
            if failure is not None:
                yield failure
            prefix = directory.real.rstrip(b"/") + b"/"
            below: list[_Directory] = []
            for entry in entries:
                real = prefix + entry.name
                if not self._reach(real):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    yield _failure(entry.path, error, "cannot read the file's status", directory.device)
                    continue
                if stat.S_ISDIR(status.st_mode):
                    below.append(_Directory(entry.path, real, status.st_dev))
                elif not stat.S_ISLNK(status.st_mode):
                    yield self._leaf(entry.path, status)
                elif reason := _broken_link(entry.path, prefix):
                    yield Skipped(entry.path, reason)
                else:
                    links += 1
            pending.extend(reversed(below))
        if links:
            noun = "symbolic link below it is" if links == 1 else "symbolic links below it are"
            yield Skipped(top.path, f"{links} {noun} not followed")

    def _leaf(self, path: bytes, status: os.stat_result) -> FileEntry | Skipped:
        if not stat.S_ISREG(status.st_mode):
            kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "special file")
            return Skipped(path, f"{kind}, not a regular file")
        entry = FileEntry(self._next_id, path, status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns)
        self._next_id += 1
        return entry


def _entries(directory: _Directory) -> tuple[list[os.DirEntry[bytes]], Failure | None]:
    """The directory's entries by name, and why they are not all, if so."""
    entries: list[os.DirEntry[bytes]] = []
    failure = None
    try:
        with os.scandir(directory.path) as listing:
            for entry in listing:
                entries.append(entry)
    except OSError as error:
        failure = _failure(directory.path, error, "cannot list the directory", directory.device)
    entries.sort(key=attrgetter("name"))
    return entries, failure


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


def _failure(path: bytes, error: OSError, message: str, device: int) -> Failure:
    if error.errno == errno.ENOENT:
        message = "vanished while it was being listed"
    elif error.errno == errno.ENAMETOOLONG:
        message += ": the path is longer than the system takes; scan it from a directory further down"
    return Failure(path, message, errno=error.errno, device=device_name(device, path))


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

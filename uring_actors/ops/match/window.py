"""Bytes of a file that settling must see again, read through a window that remembers its last stretch.

The file is opened only when it is first needed. ``Window`` turns whatever goes wrong into one of

    ReadFailed        some bytes can't be read (``offset`` says which); others may be
    ├── FileGone      the file can't be opened any more, or is not the one that was listed, or has shrunk
    └── TooLong       a match or a line would need a window above the limit
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from uring_actors.errors import PipelineError
from uring_actors.ops.match.newlines import Bytes, as_bytes

WINDOW_LIMIT = 1 << 30
"""Bytes; what one match or line may need in memory at most."""

_READ_AHEAD = 64 << 10


class ReadFailed(PipelineError):
    """Bytes of the file from ``offset`` on can't be had."""

    offset: int

    def __init__(self, reason: str, offset: int, number: int) -> None:
        super().__init__(reason, offset=offset, errno=number)


class FileGone(ReadFailed):
    """Nothing more can be read of this file: it was replaced, removed or cut short while it was scanned."""


class TooLong(ReadFailed):
    """A match or a line needs more than the window's limit."""


class FileReader(Protocol):
    """What settling needs of a file."""

    def pread(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Up to ``length`` bytes from ``offset``; fewer where a hole or the end comes first, none at the end.

        Raises OSError where the byte at ``offset`` can't be read.
        """

    def close(self) -> None:
        """Give the file back."""


class LocalFile:
    """A file of the local system, opened by path and checked to be the one that was listed."""

    def __init__(self, path: bytes, device: int, inode: int) -> None:
        """Raises OSError: ESTALE where ``path`` now names another file."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        if (found.st_dev, found.st_ino) != (device, inode):
            self.close()
            raise OSError(errno.ESTALE, "the path names another file than when it was listed")

    def pread(self, offset: int, length: int) -> bytes:
        """See FileReader."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Window:
    """Reads of one file of ``size`` bytes; keeps what it read last. Not for two threads at once."""

    def __init__(self, open_reader: Callable[[], FileReader], size: int, limit: int = WINDOW_LIMIT) -> None:
        self.size = size
        self.limit = limit
        self._open_reader = open_reader
        self._reader: FileReader | None = None
        self._text: Bytes = as_bytes(b"")
        self._base = 0
        self._lent: tuple[memoryview, int, int] | None = None

    @contextmanager
    def lent(self, text: memoryview, base: int) -> Iterator[None]:
        """Meanwhile ``text``, bytes of the file from ``base`` on that are in memory anyway, is not read again.

        What ``view`` returned meanwhile may not be used afterwards.
        """
        self._lent = (text, base, base + len(text))
        try:
            yield
        finally:
            self._lent = None

    def has(self, start: int, stop: int) -> bool:
        """Whether ``[start, stop)`` is in bytes that are lent."""
        return self._lent is not None and self._lent[1] <= start and stop <= self._lent[2]

    def lent_stop(self, start: int) -> int:
        """Up to where ``view`` gives lent bytes from ``start`` on; ``start`` where it gives none."""
        if self._lent is None or not self._lent[1] <= max(0, start - 1) < self._lent[2]:
            return start
        stop = self._lent[2]
        return stop if stop == self.size else max(start, stop - 1)

    def lent_for(self, start: int, stop: int) -> tuple[memoryview, int] | None:
        """The lent bytes, and the first one's offset, where they hold ``[start, stop)``."""
        return self._lent[:2] if self._lent is not None and self.has(start, stop) else None

    def view(self, start: int, stop: int, *, before: int = 1) -> tuple[memoryview, int]:
        """Bytes that hold ``[start, stop)``, ``before`` bytes of context before it and one after it, as the file has.

        Returns them (valid as long as the caller keeps them, if not ``is_lent``) and the file offset of the first.
        There may be more on either side, all real: the end is the file's end, or lies beyond ``stop``.
        """
        self.check(start, stop)
        low, high = max(0, start - before), min(self.size, stop + 1)
        if self._lent is not None and self._lent[1] <= low and high <= self._lent[2]:
            return self._lent[0], self._lent[1]
        if low < self._base or high > self._base + len(self._text):
            self._text = as_bytes(b"")
            self._text = self._read(low, high)
            self._base = low
        return self._text.data, self._base

    def is_lent(self, view: memoryview) -> bool:
        """Whether what ``view`` returned is lent: then it is not the caller's for as long as the caller likes."""
        return self._lent is not None and self._lent[0] is view

    def check(self, start: int, stop: int) -> None:
        """Raises TooLong where ``[start, stop)`` is more than a window may hold."""
        if stop - start > self.limit:
            raise TooLong(f"a match or line needs a window of more than {self.limit} bytes", start, errno.EFBIG)

    def close(self) -> None:
        """Idempotent; a later ``view`` opens the file again."""
        reader, self._reader = self._reader, None
        self._text = as_bytes(b"")
        if reader is not None:
            reader.close()

    def _open(self, offset: int) -> FileReader:
        if self._reader is None:
            try:
                self._reader = self._open_reader()
            except OSError as error:
                raise FileGone(error.strerror or str(error), offset, error.errno or errno.EIO) from error
        return self._reader

    def _read(self, low: int, high: int) -> Bytes:
        """``[low, high)``, which must be had, and some read-ahead, which need not."""
        reader = self._open(low)
        stop = min(self.size, max(high, low + _READ_AHEAD))
        pieces: list[bytes | bytearray | memoryview] = []
        done = low
        while done < stop:
            try:
                piece = reader.pread(done, stop - done)
            except OSError as error:
                if done >= high:
                    break
                raise ReadFailed(error.strerror or str(error), done, error.errno or errno.EIO) from error
            if not piece:
                if done >= high:
                    break
                raise FileGone("the file is shorter than when it was listed", done, errno.ESTALE)
            pieces.append(piece)
            done += len(piece)
        return as_bytes(pieces[0] if len(pieces) == 1 else b"".join(pieces))

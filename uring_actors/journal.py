"""A file of records that survives being killed at any byte.

    file     MAGIC, then records one after another
    record   length (u32, little-endian), CRC-32 of the payload (u32), payload: one msgpack map

A record counts when all of it is there and its sum is right. What follows the last that counts is the *torn tail*:
what a process wrote as it was killed. It is cut off when the journal is opened again. One process writes (a lock on
the file sees to that); anybody may follow.

``durable``: each record, and the file's name, has reached the disk when ``append`` returns (fdatasync(2)).
Otherwise the page cache has it: that survives any process, but not the machine.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import msgpack

from uring_actors.errors import OptionError, UringActorsError

Record = dict[str, Any]

MAGIC: Final = b"uring-actors journal 1\n"
_HEAD: Final = struct.Struct("<II")


def encode(record: Record) -> bytes:
    """The record as it lies in the file."""
    payload: bytes = msgpack.packb(record)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def decode(data: bytes) -> tuple[list[Record], int]:
    """The records that count in ``data``, which begins with one, and how many bytes they take."""
    records: list[Record] = []
    at = 0
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            break
        records.append(msgpack.unpackb(payload, strict_map_key=False))
        at += _HEAD.size + length
    return records, at


class Follower:
    """Reads a journal, and what is added to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Record]:
        """The records since the last call; none where there is no file (yet).

        Raises:
            OptionError: the file is no journal.
            UringActorsError: it can't be read.
        """
        try:
            with open(self._path, "rb") as file:
                start = file.read(len(MAGIC))
                if start != MAGIC:
                    if MAGIC.startswith(start):
                        return []
                    raise _no_journal(self._path)
                self._offset = max(self._offset, len(MAGIC))
                file.seek(self._offset)
                records, size = decode(file.read())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UringActorsError(
                "cannot read the journal", path=os.fsencode(self._path), errno=error.errno
            ) from error
        self._offset += size
        return records

    @property
    def offset(self) -> int:
        """How many bytes of the file count."""
        return self._offset


class Journal:
    """The one writer. Life: open → closed. ``records``: what was there when it was opened."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        """Opens or creates it, and cuts a torn tail off.

        Raises:
            OptionError: another process has it open, or it is no journal.
            UringActorsError: it can't be opened or written.
        """
        self.path = path
        self._durable = durable
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._lock()
            self.records = self._recover()
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                "another scan is writing this journal", path=os.fsencode(self.path), fix="Wait for it, or end it."
            ) from None

    def _recover(self) -> list[Record]:
        follower = Follower(self.path)
        records = follower.new()
        try:
            os.ftruncate(self._fd, follower.offset)
            os.lseek(self._fd, follower.offset, os.SEEK_SET)
            if follower.offset == 0:
                self._write(MAGIC)
                if self._durable:
                    sync_directory(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error
        return records

    def append(self, record: Record) -> None:
        """Add a record. Raises UringActorsError; the journal is of no use then."""
        try:
            self._write(encode(record))
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        if self._durable:
            os.fdatasync(self._fd)

    def _failed(self, error: OSError) -> UringActorsError:
        return UringActorsError("cannot write the journal", path=os.fsencode(self.path), errno=error.errno)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_directory(path: Path) -> None:
    """Have the names in a directory reach the disk."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _no_journal(path: Path) -> OptionError:
    return OptionError("this file is no journal of a scan", path=os.fsencode(path), fix="Name another directory.")

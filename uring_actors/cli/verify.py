"""Checksums as lines, and manifests verified: what ``uring-actors checksum`` prints.

Verifying is a scan whose writer compares: it says OK, FAILED, MISSING or FAILED open or read for each line of the
manifest, in the manifest's order, as soon as what comes before it is known.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa

from uring_actors.cli import manifest, running
from uring_actors.results.writers import printable

_OK, _FAILED, _MISSING, _UNREADABLE = b"OK", b"FAILED", b"MISSING", b"FAILED open or read"


class ChecksumLines:
    """A writer of checksum rows as manifest lines."""

    def __init__(self, stream: BinaryIO, terminal: bool, *, base64: bool) -> None:
        self._stream, self._terminal, self._base64 = stream, terminal, base64

    def write(self, batch: pa.RecordBatch) -> None:
        pairs = zip(batch.column("path").to_pylist(), batch.column("crc32c").to_pylist(), strict=True)
        for path, value in pairs:
            line = manifest.line(path, value, base64=self._base64)
            self._stream.write(printable(line[:-1]) + b"\n" if self._terminal else line)
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class How:
    """sha256sum's options for verifying."""

    ignore_missing: bool
    strict: bool
    status: bool
    quiet: bool


class Verifier:
    """The lines of a manifest, and what is known of each. ``paths``: the files to scan, each of them once."""

    def __init__(self, entries: Sequence[manifest.Entry], how: How) -> None:
        self._entries = entries
        self._how = how
        self._found: list[bytes | None] = [None] * len(entries)
        self._said = 0
        self._lines: dict[bytes, list[int]] = {}
        spelled: dict[bytes, bytes] = {}
        for number, entry in enumerate(entries):
            problem = _problem(entry.path)
            if problem is not None:
                self._found[number] = problem
                continue
            # A scan lists a file once, under the first of its names.
            name = spelled.setdefault(os.path.realpath(entry.path), entry.path)
            self._lines.setdefault(name, []).append(number)
        self.paths = list(self._lines)

    def count(self, result: bytes) -> int:
        return self._found.count(result)

    @property
    def complete(self) -> bool:
        """Whether every line has been said."""
        return self._said == len(self._entries)

    def settle(self, path: bytes, crc32c: int) -> None:
        for number in self._lines[path]:
            self._found[number] = _OK if self._entries[number].crc32c == crc32c else _FAILED

    def abandon(self) -> None:
        """The scan is over: what has no checksum by now could not be read."""
        self._found = [result or _UNREADABLE for result in self._found]

    def sayable(self) -> list[bytes]:
        """Lines whose predecessors are all known, and were not yet said."""
        lines = []
        while self._said < len(self._found) and (result := self._found[self._said]) is not None:
            silent = self._how.status or (result == _OK and self._how.quiet)
            if not silent and not (result == _MISSING and self._how.ignore_missing):
                path = self._entries[self._said].path
                # Here sha256sum escapes only a path that would break the line: a backslash alone stays.
                mark, written = manifest.escaped(path) if b"\n" in path else (b"", path)
                lines.append(mark + written + b": " + result)
            self._said += 1
        return lines


class _VerifyingWriter:
    def __init__(self, verifier: Verifier, stream: BinaryIO, terminal: bool) -> None:
        self._verifier, self._stream, self._terminal = verifier, stream, terminal

    def write(self, batch: pa.RecordBatch) -> None:
        for path, value in zip(batch.column("path").to_pylist(), batch.column("crc32c").to_pylist(), strict=True):
            self._verifier.settle(path, value)
        self._say()

    def close(self) -> None:
        self._verifier.abandon()
        self._say()

    def _say(self) -> None:
        for line in self._verifier.sayable():
            self._stream.write((printable(line) if self._terminal else line) + b"\n")
        self._stream.flush()


def run(request: running.Request, manifests: Sequence[bytes], how: How) -> int:
    """Verify; the exit status: 0, or 1 where sha256sum -c has it, or what ends a scan early.

    Raises:
        UringActorsError: a manifest can't be read, or as ``running.run``.
    """
    listed = manifest.Manifest()
    for name in manifests:
        if name == b"-":
            listed.read(name, sys.stdin.buffer)
        else:
            listed.read_file(name)
    verifier = Verifier(listed.entries, how)
    if verifier.paths:
        ended = running.run(
            replace(
                request,
                paths=verifier.paths,
                text=lambda stream, terminal: _VerifyingWriter(verifier, stream, terminal),
            )
        )
        if ended not in (running.EXIT_MATCHES, running.EXIT_ERRORS):
            return ended
    else:  # nothing is there: a scan would refuse to begin
        with running.output(request) as (stream, terminal):
            _VerifyingWriter(verifier, stream, terminal).close()
    return _verdict(listed, verifier, how)


def _verdict(listed: manifest.Manifest, verifier: Verifier, how: How) -> int:
    """What sha256sum says in the end."""
    missing = 0 if how.ignore_missing else verifier.count(_MISSING)
    unread, failed = verifier.count(_UNREADABLE) + missing, verifier.count(_FAILED)
    verified = verifier.count(_OK)
    if not how.status:
        for name, number in listed.improper:
            running.say(f"{os.fsdecode(printable(name))}: {number}: improperly formatted CRC32C checksum line")
        for count, one, many in (
            (len(listed.improper), "line is improperly formatted", "lines are improperly formatted"),
            (unread, "listed file could not be read", "listed files could not be read"),
            (failed, "computed checksum did NOT match", "computed checksums did NOT match"),
        ):
            if count:
                running.say(f"WARNING: {count} {one if count == 1 else many}")
        if not listed.entries:
            running.say("no properly formatted CRC32C checksum lines found")
        elif how.ignore_missing and not verified and not failed:
            running.say("no file was verified")
    bad = unread or failed or not verified or not verifier.complete or (how.strict and listed.improper)
    return 1 if bad else 0


def _problem(path: bytes) -> bytes | None:
    """Why there is nothing to scan at ``path``; None where there is."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except OSError as error:
        running.say(f"{os.fsdecode(printable(path))}: {error.strerror}")
        return _UNREADABLE
    if not stat.S_ISREG(mode):
        running.say(f"{os.fsdecode(printable(path))}: not a regular file")
        return _UNREADABLE
    return None

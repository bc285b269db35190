"""Lines of checksums, as coreutils' sha256sum writes and reads them: ``CHECKSUM  PATH``.

The checksum is eight hexadecimal digits, or what cloud stores give: the four bytes, most significant first, in base64
(``gsutil hash``, the header ``x-goog-hash: crc32c=…``). A path with a newline, a carriage return or a backslash in it
has these as ``\\n``, ``\\r`` and ``\\\\``, and its line begins with a backslash.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field

from uring_actors.errors import UringActorsError

_LINE = re.compile(rb"(?s)(\\?)(?:crc32c=)?(?:([0-9A-Fa-f]{8})|([A-Za-z0-9+/]{6}==)) [ *](.+)")
_TO_ESCAPE = re.compile(rb"[\\\n\r]")
_ESCAPED = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_ESCAPES = {escaped: plain for plain, escaped in _ESCAPED.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file's checksum must be."""

    path: bytes
    crc32c: int


@dataclass(slots=True)
class Manifest:
    """A manifest as read. ``improper``: (manifest, line number from 1) of lines that are none."""

    entries: list[Entry] = field(default_factory=list)
    improper: list[tuple[bytes, int]] = field(default_factory=list)

    def read(self, name: bytes, lines: Iterable[bytes]) -> None:
        """Add a file's lines; empty ones and those that begin with ``#`` are left out."""
        for number, raw in enumerate(lines, 1):
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if not line or line.startswith(b"#"):
                continue
            entry = parse(line)
            if entry is None:
                self.improper.append((name, number))
            else:
                self.entries.append(entry)

    def read_file(self, path: bytes) -> None:
        """Raises UringActorsError where it can't be read."""
        try:
            with open(path, "rb") as file:
                self.read(path, file)
        except OSError as error:
            raise UringActorsError("cannot read the manifest", path=path, errno=error.errno) from error


def parse(line: bytes) -> Entry | None:
    """A line without its end; None where it is improperly formatted."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    escaped, digits, coded, path = match.groups()
    if escaped:
        if not re.fullmatch(rb"(?s)(?:[^\\]|\\[\\nr])+", path):
            return None
        path = re.sub(rb"\\.", lambda found: _ESCAPES[found[0]], path)
    if b"\0" in path:  # no system call takes it
        return None
    return Entry(path, int(digits, 16) if digits else int.from_bytes(b64decode(coded), "big"))


def escaped(path: bytes) -> tuple[bytes, bytes]:
    """What the line of ``path`` begins with, and how the path is written in it."""
    written = _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], path)
    return (b"\\" if written != path else b""), written


def line(path: bytes, crc32c: int, *, base64: bool) -> bytes:
    """The line of a file, with its end."""
    mark, written = escaped(path)
    value = b64encode(crc32c.to_bytes(4, "big")) if base64 else b"%08x" % crc32c
    return b"%s%s  %s\n" % (mark, value, written)

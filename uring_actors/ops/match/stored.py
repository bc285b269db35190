"""Compiled databases kept on disk, by content: large ones take seconds to compile, and milliseconds to load.

A file is named by a digest of all that a database follows from (libhs, its version, the processor, every expression
with its number and flags) and holds a digest of the database, then the database. What is torn, foreign or of another
version is as good as absent, and is written anew. Files are made under another name and renamed, so processes may
write at the same time. What is used keeps its place; the oldest go where all together are more than LIMIT bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence

from uring_actors.hot import private_directory
from uring_actors.ops.match.libhs import Database, HsError, LibHs

LIMIT = 256 << 20
"""Bytes of all files together."""
WORTHWHILE_SECONDS = 0.05
"""What compiles faster is not kept."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_SUFFIX = ".hsdb"


def database(library: LibHs, expressions: Sequence[bytes], ids: Sequence[int], flags: Sequence[int]) -> Database:
    """``library.compile``, or what it gave another time. Raises HsError as that does."""
    directory = private_directory("databases")
    path = os.path.join(directory, _key(library, expressions, ids, flags) + _SUFFIX) if directory else ""
    found = _load(library, path) if path else None
    if found is not None:
        return found
    began = time.monotonic()
    made = library.compile(expressions, ids, flags)
    if path and time.monotonic() - began >= WORTHWHILE_SECONDS:
        with contextlib.suppress(OSError):  # a full disk costs the next start some seconds
            _store(path, made.serialize())
            _trim(directory, path)
    return made


def _key(library: LibHs, expressions: Sequence[bytes], ids: Sequence[int], flags: Sequence[int]) -> str:
    digest = hashlib.sha256(b"%d %b\0%b" % (len(expressions), library.version.encode(), library.platform()))
    for expression, number, flag in zip(expressions, ids, flags, strict=True):
        digest.update(b"%d %d %d " % (number, flag, len(expression)) + expression)
    return digest.hexdigest()


def _load(library: LibHs, path: str) -> Database | None:
    try:
        with open(path, "rb") as file:
            digest, data = file.read(_DIGEST_BYTES), file.read()
        if digest != hashlib.sha256(data).digest():
            return None
        found = library.deserialize(data)
        os.utime(path)
    except (OSError, HsError):
        return None
    return found


def _store(path: str, data: bytes) -> None:
    number, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".new")
    try:
        with open(number, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _trim(directory: str, newest: str) -> None:
    """Remove the files that were used least recently (what a killed process left half-made among them), but not
    ``newest``, until the others fit."""
    files = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                files.append((entry.path == newest, status.st_mtime_ns, status.st_size, entry.path))
    total = sum(size for _, _, size, _ in files)
    for is_newest, _, size, path in sorted(files):
        if total <= LIMIT or is_newest:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size

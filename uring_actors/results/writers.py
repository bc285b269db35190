"""Record batches as bytes on a stream: ``text``, ``jsonl``, ``csv``, ``arrow`` and ``parquet``.

Rows are those of one schema: matches, or what another operation yields (columns of binary, strings and
numbers, lists of as many numbers in every row).

**text** is for people and for ``cut``: one row a line, ``path:line:column:match``, a rule's findings as
``path:line:column:rule:secret``, or all columns for rows that are neither; with ``node:`` before it where rows
say their node. A line or column that is not known (after an I/O error within the file) is ``?``. A
newline within a path or a match is written as the two characters ``\\n``, so that one line is always one
row; all other bytes are written as they are, as grep does. That is not reversible where a match holds a
backslash and an ``n``: ``jsonl`` gives the exact bytes. For a terminal everything that is not printable is
escaped as well (``\\t``, ``\\x1b``, ``\\u202e``), bytes that are not UTF-8 as ``\\xff``: a file's content
must not be able to steer the reader's terminal.

**jsonl** is one JSON object a line with the columns as keys, in their order, in pure ASCII: any bytes
survive, and no line splitter can be misled. Paths and matches that are not UTF-8 appear as ``path_base64``
and ``match_base64`` instead. Unknown lines and columns are ``null``.

**csv** is RFC 4180 with a header and ``\n`` behind each row: see ``results/csv.py`` for its bytes.

**arrow** is an Arrow IPC stream of the batches as they are. **parquet** is a Parquet file (``results/parquet.py``).

Columns are turned into text as wholes and joined by Arrow (jsonl: by a compiled loop, ``results/jsonl.py``);
interpreted code sees each distinct value once and no row. The line writers flush after each batch, so that whoever
reads the pipe sees matches as they come.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from uring_actors.config import FORMATS
from uring_actors.errors import OptionError, UringActorsError
from uring_actors.results.arrays import scalar
from uring_actors.results.columns import is_number, joined, mapped, number_lists, numbers
from uring_actors.results.csv import csv_header, csv_lines
from uring_actors.results.schema import MATCH_SCHEMA

_TEXTS = (("path", "line", "column", "rule", "secret"), ("path", "line", "column", "match"))
"""The columns that a line of text consists of: of a finding, of a match."""


class Writer(Protocol):
    """Takes batches of its schema (other columns are ignored). Life: open → closed.

    ``write`` and ``close`` raise what the stream raises; ``close`` completes the format and flushes, but
    leaves the stream open.
    """

    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


def open_writer(form: str, stream: BinaryIO, *, schema: pa.Schema = MATCH_SCHEMA, terminal: bool = False) -> Writer:
    """A writer of the format ``form`` on ``stream``; ``terminal``: whether a person's terminal reads it.

    Raises:
        OptionError: as ``check_format``.
    """
    check_format(form, terminal=terminal)
    if form == "arrow":
        return _ArrowWriter(stream, schema)
    if form == "parquet":
        from uring_actors.results.parquet import ParquetWriter  # pyarrow.parquet takes 50 ms to import

        return ParquetWriter(stream, schema)
    if form == "csv":
        stream.write(csv_header(schema))
        return _LineWriter(stream, partial(csv_lines, names=schema.names))
    if form == "jsonl":
        from uring_actors.results.jsonl import JsonLinesWriter  # which loads compiled loops

        return JsonLinesWriter(stream, schema.names)
    names = next((names for names in _TEXTS if set(names) <= set(schema.names)), tuple(schema.names))
    if "node" in schema.names and "node" not in names:
        names = ("node", *names)
    return _LineWriter(stream, partial(_text_lines, names=names, terminal=terminal))


def check_format(form: str, *, terminal: bool, named: bool = True) -> None:
    """Raises OptionError where there is no such format, where it is binary and a terminal reads it, or where it needs
    a file and none was ``named``."""
    if form not in FORMATS:
        raise OptionError(f"there is no format {form!r}", fix=f"It must be one of {', '.join(FORMATS)}.")
    if form == "arrow" and terminal:
        raise OptionError("the arrow format is binary", fix="Give a file with -o, or redirect the output.")
    if form == "parquet" and (terminal or not named):
        raise OptionError("the parquet format is a file's, not a stream's", fix="Give a file with -o.")


class _LineWriter:
    """``lines`` makes a binary array of whole lines, newline included, of a batch."""

    def __init__(self, stream: BinaryIO, lines: Callable[[pa.RecordBatch], pa.Array]) -> None:
        self._stream = stream
        self._lines = lines

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._stream.write(_concatenated(self._lines(batch)))
            self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _ArrowWriter:
    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._schema = schema
        self._writer = pa.ipc.new_stream(stream, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch.select(self._schema.names).cast(self._schema))
        self._stream.flush()

    def close(self) -> None:
        self._writer.close()
        self._stream.flush()


@contextmanager
def atomic_file(path: bytes) -> Iterator[BinaryIO]:
    """A file that appears under ``path`` whole, when the block is left, or not at all.

    It is written beside ``path`` under another name and renamed at the end; on any error that is removed and
    what ``path`` held before stays. A link at ``path`` is followed. What is no regular file (``/dev/stdout``,
    a FIFO) can't be replaced and is written to directly.

    Raises:
        UringActorsError: the file cannot be created or completed.
    """
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        with _named(path):
            special = open(path, "wb")  # noqa: SIM115 (flushed_stream closes it)
        with flushed_stream(special) as stream:
            yield stream
        return
    target = os.path.realpath(path)  # only now: a pipe behind /dev/stdout has no path
    directory, name = os.path.split(target)
    with _named(path):
        number, partial = tempfile.mkstemp(prefix=b"." + name[:200] + b".", suffix=b".partial", dir=directory)
    try:
        with open(number, "wb") as stream:
            os.fchmod(number, _new_file_mode() if mode is None else stat.S_IMODE(mode))
            yield stream
            with _named(path):
                stream.flush()
                os.fsync(number)
        with _named(path):
            os.rename(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


@contextmanager
def flushed_stream(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Closes a stream that its user flushes. Closing would try once more to write what a flush could not, and
    raise once more what that has raised.
    """
    try:
        yield stream
    finally:
        with suppress(BrokenPipeError):
            stream.close()


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Turns an OSError about the output file into one that names the path the user gave."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UringActorsError("cannot write the output file", path=path, errno=error.errno) from error


def _mode_of(path: bytes) -> int | None:
    try:
        return os.stat(path).st_mode
    except OSError:  # nothing there, or not to be seen: creating it will tell
        return None


def _new_file_mode() -> int:
    mask = os.umask(0o077)  # there is no call that only reads it
    os.umask(mask)
    return 0o666 & ~mask


def _concatenated(lines: pa.Array) -> memoryview:
    """The array's values, one after another, as they already lie in its data buffer."""
    _, offsets, data = lines.buffers()
    ends = memoryview(offsets).cast("q")
    return memoryview(data)[ends[lines.offset] : ends[lines.offset + len(lines)]]


# text


def _text_lines(batch: pa.RecordBatch, names: Sequence[str], terminal: bool) -> pa.Array:
    parts: list[pa.Array | bytes] = []
    for name in names:
        parts += [b":" if parts else b"", _text(batch.column(name), terminal)]
    return joined(*parts, b"\n")


def _text(column: pa.Array, terminal: bool) -> pa.Array:
    if is_number(column.type):
        return numbers(column, "?")
    if pa.types.is_fixed_size_list(column.type):
        return number_lists(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pa.large_binary())
    column = pc.fill_null(column, scalar(b"?", pa.large_binary()))
    if terminal:
        return mapped(column, printable)
    return pc.replace_substring(column, pattern=b"\n", replacement=b"\\n")


def printable(value: bytes) -> bytes:
    """``value`` with everything escaped that is not printable: what a terminal may be shown."""
    text = value.decode("utf-8", "surrogateescape")
    return value if text.isprintable() else "".join(map(_printable_character, text)).encode()


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's spelling of a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if named is not None:
        return named
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""Rows as JSON, an object a line, spelled out by a compiled loop: a scan may find a row in every line of a log.

Each column becomes COLUMN_* words: where its values lie and how they are written. Numbers (NUMBER) and bytes (BYTES)
are written from Arrow's own buffers. Anything else is made into text first: names, of which there are a few, once for
each distinct one (LISTED); what is rarer row by row (TEXT). What is written is what Python's ``json.dumps`` gives.

A buffer takes rows while it has room for the longest that a row may become, and is handed to the stream then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa

from uring_actors.arena.atomics import load8, load32, load64, store8
from uring_actors.hot import hot
from uring_actors.results.arrays import array
from uring_actors.results.columns import is_number, joined, mapped, number_lists, numbers

COLUMN_KIND: Final = 0
COLUMN_VALUES: Final = 8  # address of i64 numbers, of i64 offsets (BYTES, TEXT), or of i32 indices (LISTED)
COLUMN_TEXT: Final = 16  # address of the bytes that offsets count
COLUMN_OFFSETS: Final = 24  # LISTED: address of the texts' i64 offsets
COLUMN_VALID: Final = 32  # address of a bit for each row, or 0 where none is null
COLUMN_FIRST: Final = 40  # the number that the first row has in all of these
COLUMN_NAME: Final = 48  # address of what stands before the value …
COLUMN_NAME_BYTES: Final = 56
COLUMN_CODED: Final = 64  # … and before base64 in its place, the quote included
COLUMN_CODED_BYTES: Final = 72
_COLUMN_BYTES: Final = 80

NUMBER: Final = 0
BYTES: Final = 1
TEXT: Final = 2
LISTED: Final = 3

_ROOM: Final = 1 << 20
_WIDEST: Final = 6
"""Characters that a byte becomes at most: ``\\u001b``."""
_DIGITS: Final = 20
_SLACK: Final = 64
"""Bytes beyond a value's own: quotes, base64's last four, the end of the line, the place where digits are made."""

_QUOTE, _BACKSLASH, _U = 34, 92, 117
_PLAIN: Final = 1
_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_BASE64, _NULL = 128, 192
_SPELLING = np.frombuffer(
    b"".join(_SHORT.get(chr(byte), "\1" if 32 <= byte < 127 else "\0").encode() for byte in range(128))
    + b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    + b"null",
    np.uint8,
)
"""How each byte of ASCII is written: as it is (_PLAIN), behind a backslash by this letter, or (0) by its number. Then
base64's alphabet, and null."""


@hot
def _copy(out: int, text: int, length: int) -> int:
    for i in range(length):
        store8(out + i, load8(text + i))
    return out + length


@hot
def _decimal(out: int, value: int) -> int:
    if value < 0:
        store8(out, 45)
        out += 1
    at = out + _DIGITS
    while True:
        at -= 1
        if value < 0:  # its absolute value need not be one of int64
            store8(at, 48 - value % -10)
            value //= -10
        else:
            store8(at, 48 + value % 10)
            value //= 10
        if value == 0:
            break
    for i in range(at, out + _DIGITS):
        store8(out + i - at, load8(i))
    return 2 * out + _DIGITS - at


@hot
def _escape(out: int, unit: int) -> int:
    """``\\uXXXX``."""
    store8(out, _BACKSLASH)
    store8(out + 1, _U)
    for i in range(4):
        digit = (unit >> (12 - 4 * i)) & 15
        store8(out + 2 + i, digit + 48 if digit < 10 else digit + 87)
    return out + 6


@hot
def _more(text: int, count: int) -> int:
    """The bits of ``count`` continuation bytes; -1 where one is none."""
    bits = 0
    for i in range(count):
        byte = load8(text + i)
        if byte >> 6 != 2:
            return -1
        bits = bits << 6 | (byte & 63)
    return bits


@hot
def _quoted(out: int, text: int, length: int, spelling: int) -> int:
    """The bytes as a JSON string in ASCII: where it ends, or -1 where they are not UTF-8 (RFC 3629)."""
    store8(out, _QUOTE)
    out += 1
    i = 0
    while i < length:
        byte = load8(text + i)
        how = load8(spelling + (byte & 127))
        if byte < 128 and how == _PLAIN:
            store8(out, byte)
            out += 1
            i += 1
        elif byte < 128:
            if how:
                store8(out, _BACKSLASH)
                store8(out + 1, how)
                out += 2
            else:
                out = _escape(out, byte)
            i += 1
        else:
            count = 1 if 0xC2 <= byte < 0xE0 else 2 if 0xE0 <= byte < 0xF0 else 3 if 0xF0 <= byte < 0xF5 else 4
            if count == 4 or i + count >= length:
                return -1
            bits = _more(text + i + 1, count)
            if bits < 0:
                return -1
            code = (byte & (63 >> count)) << (6 * count) | bits
            least = 0x80 if count == 1 else 0x800 if count == 2 else 0x10000
            if code < least or code > 0x10FFFF or 0xD800 <= code < 0xE000:
                return -1
            if code < 0x10000:
                out = _escape(out, code)
            else:
                out = _escape(out, 0xD800 + ((code - 0x10000) >> 10))
                out = _escape(out, 0xDC00 + ((code - 0x10000) & 0x3FF))
            i += count + 1
    store8(out, _QUOTE)
    return out + 1


@hot
def _base64(out: int, text: int, length: int, spelling: int) -> int:
    for i in range(0, length, 3):
        have = min(3, length - i)
        bits = load8(text + i) << 16
        if have > 1:
            bits |= load8(text + i + 1) << 8
        if have > 2:
            bits |= load8(text + i + 2)
        for k in range(4):
            store8(out + k, load8(spelling + _BASE64 + ((bits >> (18 - 6 * k)) & 63)) if k <= have else 61)
        out += 4
    return out


@hot
def _is_null(column: int, at: int) -> bool:
    valid = load64(column + COLUMN_VALID)
    return valid != 0 and (load8(valid + (at >> 3)) >> (at & 7)) & 1 == 0


@hot
def _bound(columns: int, count: int, row: int) -> int:
    """Bytes that the row becomes at most."""
    bound = 0
    for column in range(columns, columns + count * _COLUMN_BYTES, _COLUMN_BYTES):
        kind, at = load64(column + COLUMN_KIND), load64(column + COLUMN_FIRST) + row
        bound += load64(column + COLUMN_NAME_BYTES) + load64(column + COLUMN_CODED_BYTES) + _SLACK
        if _is_null(column, at):
            continue  # Arrow leaves undefined what lies in a null's place: no index of LISTED to follow
        values = load64(column + COLUMN_VALUES)
        if kind == LISTED:
            values, at = load64(column + COLUMN_OFFSETS), load32(values + 4 * at)
        if kind != NUMBER:
            length = load64(values + 8 * at + 8) - load64(values + 8 * at)
            bound += length * _WIDEST if kind == BYTES else length
    return bound


@hot
def _value(out: int, column: int, row: int, spelling: int) -> int:
    """``"name": value``."""
    begin = out
    out = _copy(out, load64(column + COLUMN_NAME), load64(column + COLUMN_NAME_BYTES))
    at = load64(column + COLUMN_FIRST) + row
    if _is_null(column, at):
        return _copy(out, spelling + _NULL, 4)
    kind, values, text = load64(column + COLUMN_KIND), load64(column + COLUMN_VALUES), load64(column + COLUMN_TEXT)
    if kind == NUMBER:
        return _decimal(out, load64(values + 8 * at))
    if kind == LISTED:
        values, at = load64(column + COLUMN_OFFSETS), load32(values + 4 * at)
    text += load64(values + 8 * at)
    length = load64(values + 8 * at + 8) - load64(values + 8 * at)
    if kind != BYTES:
        return _copy(out, text, length)
    end = _quoted(out, text, length, spelling)
    if end < 0:
        out = _copy(begin, load64(column + COLUMN_CODED), load64(column + COLUMN_CODED_BYTES))
        end = _base64(out, text, length, spelling)
        store8(end, _QUOTE)
        end += 1
    return end


@hot
def write_rows(
    columns: int, count: int, first: int, stop: int, out: int, room: int, spelling: int
) -> tuple[int, int]:
    """Rows from ``first`` on, as long as ``room`` bytes at ``out`` are sure to hold them.

    Returns the next row, and how many bytes were written; negative: what the next row may need, not one having room.
    """
    begin = out
    for row in range(first, stop):
        need = _bound(columns, count, row)
        if out - begin + need > room:
            return row, out - begin if row > first else -need
        for k in range(count):
            out = _value(out, columns + k * _COLUMN_BYTES, row, spelling)
        store8(out, 125)
        store8(out + 1, 10)
        out += 2
    return stop, out - begin


class JsonLinesWriter:
    """A ``results.writers.Writer``."""

    def __init__(self, stream: BinaryIO, names: Sequence[str]) -> None:
        self._stream = stream
        self._names = names
        self._buffer = np.empty(_ROOM, np.uint8)
        self._dictionaries: dict[str, tuple[pa.Array, pa.Array]] = {}
        """By column: the last batch's dictionary, and its values as JSON. There may be thousands of patterns."""

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        held: list[object] = []  # what the words have addresses of
        words = np.array([self._words(name, batch.column(name), held) for name in self._names], np.int64)
        row, buffer = 0, self._buffer
        while row < batch.num_rows:
            row, size = write_rows(
                words.ctypes.data,
                len(self._names),
                row,
                batch.num_rows,
                buffer.ctypes.data,
                len(buffer),
                _SPELLING.ctypes.data,
            )
            if size < 0:
                buffer = np.empty(-size, np.uint8)
            else:
                self._stream.write(buffer[:size].data)
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()

    def _words(self, name: str, column: pa.Array, held: list[object]) -> list[int]:
        kind, values, texts = self._parts(name, column)
        begin = "{" if name == self._names[0] else ", "
        plain, coded = (
            np.frombuffer((begin + text).encode(), np.uint8) for text in (f'"{name}": ', f'"{name}_base64": "')
        )
        held += [values, texts, plain, coded]
        valid = values.buffers()[0] if values.null_count else None
        offsets, text = (None, None) if texts is None else texts.buffers()[1:]
        return [
            kind,
            values.buffers()[1].address,
            text.address if text is not None else 0,
            offsets.address if offsets is not None else 0,
            valid.address if valid is not None else 0,
            values.offset,
            plain.ctypes.data,
            len(plain),
            coded.ctypes.data,
            len(coded),
        ]

    def _parts(self, name: str, column: pa.Array) -> tuple[int, pa.Array, pa.Array | None]:
        """The kind, the array that has COLUMN_VALUES, and the one that has the text."""
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column = column.cast(pa.large_binary())
            return BYTES, column, column
        if pa.types.is_integer(column.type) and column.type != pa.uint64():
            return NUMBER, column.cast(pa.int64()), None
        if pa.types.is_dictionary(column.type):
            return LISTED, column.indices.cast(pa.int32()), self._listed(name, column.dictionary)
        if is_number(column.type):
            text = numbers(column, "null").cast(pa.large_binary())
        elif pa.types.is_fixed_size_list(column.type):
            text = joined(b"[", number_lists(column), b"]")
        else:
            text = mapped(column, _json)
        return TEXT, text, text

    def _listed(self, name: str, dictionary: pa.Array) -> pa.Array:
        known, texts = self._dictionaries.get(name, (None, None))
        if known is None or not dictionary.equals(known):
            texts = array([_json(value) for value in dictionary.to_pylist()], pa.large_binary())
            self._dictionaries[name] = dictionary, texts
        return texts


def _json(value: str | None) -> bytes:
    return json.dumps(value).encode("ascii")

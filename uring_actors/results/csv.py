"""Rows as CSV (RFC 4180), so that any bytes come back.

A column of bytes becomes two, ``path`` and ``path_base64``. Bytes that are UTF-8 without control characters other
than tab, newline and carriage return stand in the first as text; others in the second, the first being empty.
Fields are quoted where they must be; a field may hold newlines. A list of numbers is one quoted field,
with commas between them. Null is the empty field.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence

import pyarrow as pa

from uring_actors.results.columns import is_number, joined, mapped, number_lists, numbers

_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f]")
_QUOTED = re.compile(rb'[",\r\n]')


def csv_header(schema: pa.Schema) -> bytes:
    """The first line."""
    names = [
        name
        for field in schema
        for name in ([field.name, _coded(field.name)] if _is_bytes(field.type) else [field.name])
    ]
    return ",".join(names).encode() + b"\n"


def csv_lines(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
    """A binary array of whole rows, newline included."""
    parts: list[pa.Array | bytes] = []
    for name in names:
        for fields in _fields(batch.column(name)):
            parts += [b"," if parts else b"", fields]
    return joined(*parts, b"\n")


def _fields(column: pa.Array) -> list[pa.Array]:
    if is_number(column.type):
        return [numbers(column, "")]
    if pa.types.is_fixed_size_list(column.type):
        return [joined(b'"', number_lists(column), b'"')]
    if _is_bytes(column.type):
        return [mapped(column, _as_text), mapped(column, _as_base64)]
    return [mapped(column, lambda text: _quoted((text or "").encode()))]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _coded(name: str) -> str:
    return f"{name}_base64"


def _is_text(value: bytes) -> bool:
    try:
        return _CONTROL.search(value.decode()) is None
    except UnicodeDecodeError:
        return False


def _as_text(value: bytes | None) -> bytes:
    return _quoted(value) if value is not None and _is_text(value) else b""


def _as_base64(value: bytes | None) -> bytes:
    return b"" if value is None or _is_text(value) else b64encode(value)


def _quoted(value: bytes) -> bytes:
    return b'"' + value.replace(b'"', b'""') + b'"' if _QUOTED.search(value) else value

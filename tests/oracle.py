"""What a scan must find, by google-re2 over whole files and by counting; shares no code with the pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import re2

from uring_actors import Literal, Regex
from uring_actors.results.schema import MATCH_SCHEMA

Row = tuple[bytes, str, int, int, int | None, int | None]
"""path, pattern, start, end, line, column"""


def compile_oracle(pattern: Regex | Literal):
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 256 << 20
    if isinstance(pattern, Literal):
        text = pattern.text
        options.literal = True
        options.case_sensitive = not pattern.ignore_case
        if isinstance(text, bytes):
            options.encoding = re2.Options.Encoding.LATIN1
            return re2.compile(text, options)
        return re2.compile(text.encode(), options)
    flags = "".join(
        letter for letter, on in (("i", pattern.ignore_case), ("m", pattern.multi_line), ("s", pattern.dot_all)) if on
    )
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    source = (f"(?{flags})" if flags else "") + source
    if pattern.bytes:
        options.encoding = re2.Options.Encoding.LATIN1
        return re2.compile(source.encode("latin-1"), options)
    return re2.compile(source.encode(), options)


def name_of(pattern: Regex | Literal) -> str:
    if pattern.name is not None:
        return pattern.name
    text = pattern.pattern if isinstance(pattern, Regex) else pattern.text
    return text if isinstance(text, str) else text.decode("latin-1")


def matches_in(path: bytes, data: bytes, patterns: Sequence[Regex | Literal]) -> set[Row]:
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
    rows: set[Row] = set()
    for pattern in patterns:
        for found in compile_oracle(pattern).finditer(data):
            start, end = found.span()
            line = int(np.searchsorted(newlines, start))
            column = start + 1 if line == 0 else start - int(newlines[line - 1])
            rows.add((path, name_of(pattern), start, end, line + 1, column))
    return rows


def expected(files: Iterable[Path], patterns: Sequence[Regex | Literal]) -> set[Row]:
    rows: set[Row] = set()
    for file in files:
        rows |= matches_in(os.fsencode(file), file.read_bytes(), patterns)
    return rows


def expected_table(files: Iterable[Path], patterns: Sequence[Regex | Literal]) -> pa.Table:
    """``expected`` with each row's bytes, as ``in_order`` puts a scan's: to be compared without a loop over rows."""
    rows = []
    for file in files:
        data = file.read_bytes()
        rows += [(*row, data[row[2] : row[3]]) for row in matches_in(os.fsencode(file), data, patterns)]
    columns = zip(*rows, strict=True)
    return in_order(pa.table([pa.array(c, field.type) for c, field in zip(columns, _PLAIN, strict=True)], _PLAIN))


_PLAIN = pa.schema(
    [pa.field(name, pa.binary() if name in ("path", "match") else pa.int64()) for name in MATCH_SCHEMA.names]
).set(1, pa.field("pattern", pa.string()))


def in_order(table: pa.Table) -> pa.Table:
    """The rows sorted, in plain columns; two tables of the same rows are equal."""
    return table.cast(_PLAIN).sort_by([("path", "ascending"), ("start", "ascending"), ("pattern", "ascending")])


def found(table: pa.Table) -> set[Row]:
    """The rows of a scan; every row once, and ``match`` really the bytes at that place (checked by the caller's
    files being still there)."""
    columns = [table[name].to_pylist() for name in ("path", "pattern", "start", "end", "line", "column", "match")]
    rows = list(zip(*columns, strict=True))
    for path, _, start, end, _, _, match in rows:
        assert end - start == len(match), (path, start, end, match)
    plain = [row[:6] for row in rows]
    assert len(set(plain)) == len(plain), "a row came twice"
    return set(plain)


def check_bytes(table: pa.Table) -> None:
    """``match`` holds the file's bytes at that place."""
    contents: dict[bytes, bytes] = {}
    columns = (table[name].to_pylist() for name in ("path", "start", "end", "match"))
    for path, start, end, match in zip(*columns, strict=True):
        if path not in contents:
            contents[path] = Path(os.fsdecode(path)).read_bytes()
        assert contents[path][start:end] == match, (path, start, end, match)


def explain_difference(actual: set[Row], wanted: set[Row]) -> str:
    missing, extra = sorted(wanted - actual)[:5], sorted(actual - wanted)[:5]
    return f"{len(wanted - actual)} missing, e.g. {missing}; {len(actual - wanted)} too many, e.g. {extra}"

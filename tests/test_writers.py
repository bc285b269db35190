"""Formats: any bytes survive jsonl and arrow, a line of text is one match, a file appears whole or not."""

from __future__ import annotations

import csv
import errno
import gc
import io
import itertools
import json
import os
import threading
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from uring_actors.errors import OptionError, UringActorsError
from uring_actors.ops.rules.findings import RULES_SCHEMA
from uring_actors.results import jsonl, parquet
from uring_actors.results.jsonl import JsonLinesWriter
from uring_actors.results.schema import MATCH_SCHEMA
from uring_actors.results.writers import atomic_file, check_format, open_writer, printable

Row = dict[str, Any]

# The first text that hypothesis makes on a fresh machine has it tabulate Unicode for some seconds.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

awkward = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b"\n", b"a:b", b'"\\', b"\\n", b"\x1b[2J", "\u2028\x85é".encode(), b"caf\xe9"]),
)
numbers = st.integers(0, 2**63 - 1)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "path": awkward,
            "pattern": st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
            "start": numbers,
            "end": numbers,
            "line": st.none() | numbers,
            "column": st.none() | numbers,
            "match": awkward,
        }
    ),
    max_size=6,
)


def row(match: bytes = b"m", **columns: Any) -> Row:
    return {
        "path": b"p",
        "pattern": "x",
        "start": 0,
        "end": 1,
        "line": 1,
        "column": 1,
        "match": match,
    } | columns


def batch_of(some: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(some, schema=MATCH_SCHEMA)


def written(form: str, *batches: pa.RecordBatch, terminal: bool = False) -> bytes:
    stream = io.BytesIO()
    writer = open_writer(form, stream, terminal=terminal)
    for batch in batches:
        writer.write(batch)
    writer.close()
    return stream.getvalue()


# jsonl


def decoded(line: str) -> Row:
    values = json.loads(line)
    for name in ("path", "match"):
        assert (name in values) != (f"{name}_base64" in values)
        if name in values:
            values[name] = values[name].encode()
        else:
            values[name] = b64decode(values.pop(f"{name}_base64"), validate=True)
            with pytest.raises(UnicodeDecodeError):
                values[name].decode()
    return values


@unhurried
@given(rows)
@example([row(b"\xed\xa0\x80"), row(b'"\\\x00\x7f\xc2\x85')])
def test_jsonl_gives_back_any_bytes(some: list[Row]) -> None:
    text = written("jsonl", batch_of(some)).decode("ascii")
    lines = text.splitlines()
    assert text.count("\n") == len(lines) == len(some)
    assert [decoded(line) for line in lines] == some


def test_jsonl_has_exactly_the_columns_in_their_order() -> None:
    assert written("jsonl", batch_of([row("é".encode())])) == (
        b'{"path": "p", "pattern": "x", "start": 0, "end": 1, "line": 1, "column": 1, "match": "\\u00e9"}\n'
    )
    (names,) = (list(json.loads(line)) for line in written("jsonl", batch_of([row(b"\xff")])).splitlines())
    assert names == ["path", "pattern", "start", "end", "line", "column", "match_base64"]


def dumped(some: list[Row], schema: pa.Schema = MATCH_SCHEMA) -> bytes:
    """By Python's own module: a column of bytes as text, or else in base64."""
    lines = []
    for one in some:
        values: Row = {}
        for name in schema.names:
            value = one[name]
            try:
                values[name] = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                values[f"{name}_base64"] = b64encode(value).decode()
        lines.append(json.dumps(values) + "\n")
    return "".join(lines).encode()


COLUMNS = pa.schema(
    [
        ("match", pa.binary()),
        ("signed", pa.int64()),
        ("small", pa.uint8()),
        ("large", pa.uint64()),
        ("name", pa.dictionary(pa.int8(), pa.string())),
        ("text", pa.string()),
        ("score", pa.float64()),
        ("path", pa.large_binary()),
    ]
)
every_column = st.fixed_dictionaries(
    {
        "match": st.none() | awkward,
        "signed": st.none() | st.sampled_from([-(2**63), 2**63 - 1, 0, -10, 9]) | st.integers(-(2**63), 2**63 - 1),
        "small": st.none() | st.integers(0, 255),
        "large": st.none() | st.integers(0, 2**64 - 1),
        "name": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "score": st.none() | st.sampled_from([0.25, -1.5, 3.75]),
        "path": st.none() | awkward,
    }
)


@unhurried
@given(st.lists(every_column, max_size=12), st.integers(0, 12), st.integers(0, 12), st.integers(1, 3000))
def test_jsonl_is_what_the_json_module_writes(some: list[Row], first: int, last: int, room: int) -> None:
    """Of every kind of column, of slices, whatever fits the buffer at once."""
    batch = pa.RecordBatch.from_pylist(some, schema=COLUMNS)
    stream = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_ROOM", room)
        writer = open_writer("jsonl", stream, schema=COLUMNS)
        writer.write(batch)
        writer.write(batch.slice(first, max(0, last - first)))
    assert stream.getvalue() == dumped(some + some[first:last], COLUMNS)


@pytest.mark.parametrize("listed", [[], ["x"]])
def test_jsonl_follows_no_index_where_a_name_is_null(listed: list[str]) -> None:
    """Arrow says nothing about the index in a null's place: here it points a terabyte away."""
    anywhere = pa.py_buffer(np.array([2**31 - 1, -(2**31)], np.int32))
    indices = pa.Array.from_buffers(pa.int32(), 2, [pa.py_buffer(b"\0"), anywhere])
    names = pa.DictionaryArray.from_arrays(indices, pa.array(listed, pa.string()), safe=False)
    stream = io.BytesIO()
    JsonLinesWriter(stream, ["name"]).write(pa.RecordBatch.from_arrays([names], ["name"]))
    assert stream.getvalue() == b'{"name": null}\n' * 2


def test_jsonl_of_every_character_and_every_pair_of_bytes() -> None:
    characters = [chr(code).encode() for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    some = [row(b"".join(characters[k : k + 4096])) for k in range(0, len(characters), 4096)]
    some += [row(bytes(pair)) for pair in itertools.product(range(256), repeat=2)]
    edges = [0x2E, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    some += [
        row(bytes((lead, *rest)))
        for lead in range(0xE0, 0x100)
        for count in (2, 3)
        for rest in itertools.product(edges, repeat=count)
    ]
    assert written("jsonl", batch_of(some)) == dumped(some)


def test_jsonl_of_a_match_that_is_larger_than_the_buffer() -> None:
    some = [row(b"a"), row(b"\x00" * (1 << 20)), row(b"\xff" * ((1 << 20) + 1)), row(b"x" * (3 << 20)), row(b"b")]
    assert written("jsonl", batch_of(some)) == dumped(some)


# text


@unhurried
@given(rows)
@example([row(b"a\nb", line=None, column=None, path=b"p\nq")])
def test_a_line_of_text_is_a_match(some: list[Row]) -> None:
    def field(value: bytes) -> bytes:
        return value.replace(b"\n", b"\\n")

    def number(value: int | None) -> bytes:
        return b"?" if value is None else b"%d" % value

    expected = [
        b":".join([field(one["path"]), number(one["line"]), number(one["column"]), field(one["match"])])
        for one in some
    ]
    assert written("text", batch_of(some)) == b"".join(line + b"\n" for line in expected)


@unhurried
@given(rows)
def test_a_terminal_gets_printable_text_only(some: list[Row]) -> None:
    text = written("text", batch_of(some), terminal=True).decode()
    assert text.count("\n") == len(some)
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain \\n", "plain \\n"),
        ("naïve 漢字".encode(), "naïve 漢字"),
        (b"a\nb\tc\rd", "a\\nb\\tc\\rd"),
        (b"\x1b[31m\x00\x7f", "\\x1b[31m\\x00\\x7f"),
        (b"caf\xe9\xff", "caf\\xe9\\xff"),
        ("\x9b\u202e\U000e0001".encode(), "\\u009b\\u202e\\U000e0001"),
    ],
)
def test_what_a_terminal_is_shown(value: bytes, shown: str) -> None:
    assert printable(value).decode() == shown


# arrow


@unhurried
@given(rows, rows)
def test_arrow_gives_back_the_batches_whatever_their_dictionaries(one: list[Row], other: list[Row]) -> None:
    table = pa.ipc.open_stream(written("arrow", batch_of(one), batch_of(other))).read_all()
    assert table.schema == MATCH_SCHEMA
    assert table.to_pylist() == one + other


def test_arrow_refuses_a_terminal() -> None:
    with pytest.raises(OptionError, match="binary"):
        open_writer("arrow", io.BytesIO(), terminal=True)


# csv


def csv_rows(data: bytes, schema: pa.Schema) -> list[Row]:
    """Read with Python's own module; a column of bytes from its two."""
    reader = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
    rows: list[Row] = []
    for fields in reader:
        assert None not in fields
        assert None not in fields.values()
        values: Row = {}
        for field in schema:
            text = fields.pop(field.name)
            if pa.types.is_binary(field.type):
                coded = fields.pop(f"{field.name}_base64")
                assert not (text and coded)
                values[field.name] = b64decode(coded, validate=True) if coded else text.encode()
            elif pa.types.is_integer(field.type):
                values[field.name] = int(text) if text else None
            elif pa.types.is_floating(field.type):
                values[field.name] = float(text) if text else None
            else:
                values[field.name] = text
        assert not fields
        rows.append(values)
    return rows


@unhurried
@given(rows)
@example([row(b'a"b,c\r\n\x00', path=b"\r"), row(b"\x80"), row(b""), row("é\u2028\x85".encode())])
def test_csv_gives_back_any_bytes(some: list[Row]) -> None:
    data = written("csv", batch_of(some))
    assert csv_rows(data, MATCH_SCHEMA) == some
    table = pa.csv.read_csv(io.BytesIO(data), parse_options=pa.csv.ParseOptions(newlines_in_values=True))
    assert table.num_rows == len(some)


def test_csv_has_a_header_and_plain_text_where_it_can() -> None:
    assert written("csv", batch_of([row(b"m,\xff", line=None)])).decode().splitlines() == [
        "path,path_base64,pattern,start,end,line,column,match,match_base64",
        "p,,x,0,1,,1,,bSz/",
    ]
    assert written("csv").count(b"\n") == 1


# parquet


@unhurried
@given(rows, rows)
def test_parquet_gives_back_the_rows(one: list[Row], other: list[Row]) -> None:
    table = pq.read_table(io.BytesIO(written("parquet", batch_of(one), batch_of(other))))
    assert table.schema.equals(MATCH_SCHEMA)
    assert table.to_pylist() == one + other


def test_parquet_writes_whole_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS", 4)
    some = [row(b"%d" % number) for number in range(11)]
    file = pq.ParquetFile(io.BytesIO(written("parquet", *(batch_of(some[k : k + 2]) for k in range(0, 11, 2)))))
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [4, 4, 3]
    assert file.read().to_pylist() == some


def test_parquet_that_is_abandoned_says_nothing() -> None:
    """Its writer is dropped when the output is closed already, or has failed."""
    stream = io.BytesIO()
    writer = open_writer("parquet", stream)
    writer.write(batch_of([row()]))
    stream.close()
    del writer
    gc.collect()


def test_parquet_needs_a_file() -> None:
    for options in ({"terminal": True}, {"terminal": False, "named": False}):
        with pytest.raises(OptionError, match="-o"):
            check_format("parquet", **options)
    check_format("parquet", terminal=False)


# findings

FINDING = {
    "path": b"p",
    "pattern": "r",
    "start": 0,
    "end": 2,
    "line": 3,
    "column": 1,
    "match": b"mm",
    "rule": "r",
    "secret": b"s\xff",
    "entropy": 1.5,
    "fingerprint": b"p:r:3",
    "description": "d",
    "tags": "a,b",
}


def test_findings_in_every_format() -> None:
    unknown = FINDING | {"line": None, "column": None, "fingerprint": None, "entropy": 0.0}
    batch = pa.RecordBatch.from_pylist([FINDING, unknown], schema=RULES_SCHEMA)

    def form(name: str) -> bytes:
        stream = io.BytesIO()
        writer = open_writer(name, stream, schema=RULES_SCHEMA)
        writer.write(batch)
        writer.close()
        return stream.getvalue()

    assert form("text") == b"p:3:1:r:s\xff\np:?:?:r:s\xff\n"
    first, second = map(json.loads, form("jsonl").splitlines())
    assert (first["entropy"], first["secret_base64"], first["fingerprint"]) == (1.5, "c/8=", "p:r:3")
    assert (second["line"], second["fingerprint"]) == (None, None)
    assert csv_rows(form("csv"), RULES_SCHEMA) == [FINDING, unknown | {"fingerprint": b""}]
    assert pq.read_table(io.BytesIO(form("parquet"))).to_pylist() == [FINDING, unknown]


def test_numbers_that_json_has_not() -> None:
    schema = pa.schema([("x", pa.float64())])
    stream = io.BytesIO()
    open_writer("jsonl", stream, schema=schema).write(
        pa.RecordBatch.from_pylist([{"x": float("nan")}, {"x": float("-inf")}, {"x": 0.25}], schema=schema)
    )
    assert [json.loads(line)["x"] for line in stream.getvalue().splitlines()] == [None, None, 0.25]


# all of them

SUMS = pa.schema([("path", pa.binary()), ("bytes", pa.int64()), ("sum", pa.uint64()), ("kind", pa.string())])


def test_rows_of_another_schema() -> None:
    one = {"path": b"a\n\xff", "bytes": 3, "sum": 2**64 - 1, "kind": "x\x07"}
    batch = pa.RecordBatch.from_pylist([one], schema=SUMS)

    def form(name: str, terminal: bool = False) -> bytes:
        stream = io.BytesIO()
        writer = open_writer(name, stream, schema=SUMS, terminal=terminal)
        writer.write(batch)
        writer.close()
        return stream.getvalue()

    assert form("text") == b"a\\n\xff:3:18446744073709551615:x\x07\n"
    assert form("text", terminal=True) == b"a\\n\\xff:3:18446744073709551615:x\\x07\n"
    expected = one | {"path_base64": "YQr/"}
    del expected["path"]
    assert json.loads(form("jsonl")) == expected
    assert pa.ipc.open_stream(form("arrow")).read_all().to_pylist() == [one]
    assert pq.read_table(io.BytesIO(form("parquet"))).to_pylist() == [one]
    assert form("csv") == b"path,path_base64,bytes,sum,kind\n,YQr/,3,18446744073709551615,x\x07\n"


@pytest.mark.parametrize("form", ["text", "jsonl", "csv", "arrow", "parquet"])
def test_a_slice_of_a_batch_and_a_wider_one(form: str) -> None:
    some = [row(b"%d" % number, path=b"f%d" % (number // 3), line=number) for number in range(10)]
    sliced = batch_of(some).slice(3, 4)
    wider = sliced.append_column("more", pa.array([0] * 4))
    assert written(form, sliced) == written(form, wider)
    if form == "arrow":  # a slice keeps its whole dictionary
        assert pa.ipc.open_stream(written(form, sliced)).read_all().to_pylist() == some[3:7]
    else:
        assert written(form, sliced) == written(form, batch_of(some[3:7]))


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_no_rows_are_no_bytes(form: str) -> None:
    assert written(form) == written(form, batch_of([])) == b""


def write_one(form: str, stream: BinaryIO) -> None:
    open_writer(form, stream).write(batch_of([row()]))


@pytest.mark.parametrize("form", ["text", "jsonl", "csv", "arrow", "parquet"])
def test_the_error_of_the_stream_comes_through(form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(BrokenPipeError):
        write_one(form, stream)
    stream.close()


def test_an_unknown_format() -> None:
    with pytest.raises(OptionError, match="one of text, jsonl, csv, arrow, parquet"):
        open_writer("xml", io.BytesIO())


# The output file


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_file(os.fsencode(path)) as stream:
        stream.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(os.fsencode(path)) as stream:
            stream.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_existing_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"old")
    real.chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    with atomic_file(os.fsencode(tmp_path / "link")) as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_fifo_is_written_to_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    with atomic_file(os.fsencode(path)) as stream:
        stream.write(b"through")
    reader.join()
    assert got == [b"through"]
    assert path.is_fifo()


def test_a_file_that_cannot_be_created(tmp_path: Path) -> None:
    for path, number in ((tmp_path / "no" / "out", errno.ENOENT), (tmp_path, errno.EISDIR)):
        with (
            pytest.raises(UringActorsError, match="cannot write the output file") as caught,
            atomic_file(os.fsencode(path)),
        ):
            pass
        assert caught.value.errno == number
        assert caught.value.path == os.fsencode(path)

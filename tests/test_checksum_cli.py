"""``uring-actors checksum`` and ``histogram``: held against coreutils' sha256sum where that does the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests.test_bad_input import on_open
from uring_actors.cli import main, manifest

CHECK = 0xE3069283  # of 123456789
NAMES = [b"plain", b"with blank", b" * star", b"new\nline", b"back\\slash", b"carriage\rreturn", b"\xff\xfe", b"\\n"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty directory; its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([*map(str, words), "--engine", "threads"])
        said = capfd.readouterr()
        return status, said.out, said.err

    return call


def coreutils(*words: str) -> tuple[int, bytes]:
    if shutil.which("sha256sum") is None:
        pytest.skip("coreutils are not installed")
    done = subprocess.run(["sha256sum", *words], capture_output=True, env={**os.environ, "LC_ALL": "C"})
    return done.returncode, done.stdout


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────
@given(st.binary(min_size=1).filter(lambda path: b"\0" not in path), st.integers(0, (1 << 32) - 1), st.booleans())
def test_what_was_written_is_read_again(path: bytes, value: int, base64: bool) -> None:
    line = manifest.line(path, value, base64=base64)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert b"\r" not in line
    assert manifest.parse(line[:-1]) == manifest.Entry(path, value)


def test_paths_are_escaped_as_coreutils_does(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / os.fsdecode(name)).write_bytes(b"123456789")
        path = bytes(tmp_path) + b"/" + name
        _, theirs = coreutils(os.fsdecode(path))
        ours = manifest.line(path, CHECK, base64=False)
        assert ours.replace(b"e3069283", b"") == theirs.replace(theirs.lstrip(b"\\")[:64], b"")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"e3069283",
        b"e3069283  ",
        b"e3069283 p",
        b"e306928  p",
        b"e30692833  p",
        b"g3069283  p",
        b"4waSgw=  p",
        b"4waS\xffw==  p",
        b"\\e3069283  a\\tb",
        b"\\e3069283  a\\",
        b"e3069283  a\0b",
    ],
)
def test_improper_lines(line: bytes) -> None:
    assert manifest.parse(line) is None


@pytest.mark.parametrize("value", [b"e3069283", b"E3069283", b"4waSgw==", b"crc32c=4waSgw=="])
@pytest.mark.parametrize("between", [b"  ", b" *"])
def test_forms_of_a_checksum(value: bytes, between: bytes) -> None:
    assert manifest.parse(value + between + b"a  b") == manifest.Entry(b"a  b", CHECK)


# ── computing ────────────────────────────────────────────────────────────────────────────────────────────────
def test_lines_of_a_tree(run: Run) -> None:
    contents = {"a": b"123456789", "d/b": b"", "d/e/c": os.urandom(200_000)}
    for name, content in contents.items():
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_bytes(content)
    status, out, err = run("checksum", "--quiet", "a", "d", "--slot-size", "64K")
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == sorted(f"{crc32c(content):08x}  {name}" for name, content in contents.items())
    status, out, _ = run("checksum", "--quiet", "--base64", "a", "d")
    coded = {name: b64encode(crc32c(content).to_bytes(4, "big")).decode() for name, content in contents.items()}
    assert sorted(out.splitlines()) == sorted(f"{value}  {name}" for name, value in coded.items())


def test_rows_for_scripts(run: Run) -> None:
    Path("a").write_bytes(b"123456789")
    _, out, _ = run("checksum", "--quiet", "--format", "jsonl", "a")
    assert json.loads(out) == {"path": "a", "bytes": 9, "crc32c": CHECK}
    assert run("checksum", "--quiet", "--format", "arrow", "-o", "rows", "a")[:2] == (0, "")
    with pa.ipc.open_stream("rows") as stream:
        assert stream.read_all().to_pylist() == [{"path": b"a", "bytes": 9, "crc32c": CHECK}]


def test_a_file_that_shrinks_has_no_line_but_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good").write_bytes(b"123456789")
    Path("cut").write_bytes(bytes(200_000))
    on_open(monkeypatch, lambda: os.truncate("cut", 100_000))
    status, out, err = run("checksum", "good", "cut", "--slot-size", "64K")
    assert (status, out) == (2, "e3069283  good\n")
    assert "cut at byte 100000: the file shrank while it was scanned" in err


def test_verifying_a_file_that_shrinks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cut").write_bytes(bytes(200_000))
    Path("m").write_text("00000000  cut\n00000000  gone\n")
    on_open(monkeypatch, lambda: os.truncate("cut", 100_000))
    status, out, err = run("checksum", "-c", "m")
    assert (status, out) == (1, "cut: FAILED open or read\ngone: MISSING\n")
    assert "the file shrank" in err
    assert "WARNING: 2 listed files could not be read" in err


@pytest.mark.parametrize(
    "words",
    [
        ["checksum"],
        ["checksum", "a", "-c", "m"],
        ["checksum", "a", "--strict"],
        ["checksum", "a", "--status"],
        ["checksum", "a", "--base64", "--format", "jsonl"],
        ["checksum", "-c", "m", "--format", "arrow"],
        ["checksum", "-c", "m", "--base64"],
        ["checksum", "nothing-here"],
        ["checksum", "-c", "nothing-here"],
        ["histogram"],
        ["histogram", "a", "--block", "0"],
        ["histogram", "a", "--block", "1023"],
        ["histogram", "a", "--block", "x"],
        ["scan", "a", "--operation", "product"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(run: Run, words: list[str]) -> None:
    Path("a").write_bytes(b"x")
    Path("m").write_bytes(b"e3069283  a\n")
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err


# ── verifying ────────────────────────────────────────────────────────────────────────────────────────────────
def write_tree() -> None:
    for number, name in enumerate(NAMES):
        Path(os.fsdecode(name)).write_bytes(b"%d" % number * (number * 20_000))


def manifests() -> None:
    """Of the same files: ``crc`` is ours, ``sha`` is coreutils'."""
    names = [os.fsdecode(name) for name in NAMES]
    Path("sha").write_bytes(coreutils("--", *names)[1])
    lines = [manifest.line(name, crc32c(Path(os.fsdecode(name)).read_bytes()), base64=False) for name in NAMES]
    Path("crc").write_bytes(b"".join(lines))


SCENARIOS = {
    "all well": lambda: None,
    "changed": lambda: Path("plain").write_bytes(b"other"),
    "missing": lambda: Path("with blank").unlink(),
    "both": lambda: (Path("plain").write_bytes(b"other"), Path("with blank").unlink()),
    "a directory": lambda: (Path("plain").unlink(), Path("plain").mkdir()),
    "improper lines": lambda: [append(name, b"rubbish\n\n# comment\n") for name in ("crc", "sha")],
    "only rubbish": lambda: [Path(name).write_bytes(b"rubbish\n") for name in ("crc", "sha")],
    "empty": lambda: [Path(name).write_bytes(b"") for name in ("crc", "sha")],
    "all missing": lambda: [Path(os.fsdecode(name)).unlink() for name in NAMES],
    "carriage returns": lambda: [
        Path(name).write_bytes(Path(name).read_bytes().replace(b"\n", b"\r\n")) for name in ("crc", "sha")
    ],
}


def append(name: str, text: bytes) -> None:
    with open(name, "ab") as file:
        file.write(text)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("flags", [[], ["--quiet"], ["--status"], ["--ignore-missing"], ["--strict"]], ids=str)
def test_verifying_is_coreutils(run: Run, scenario: str, flags: list[str]) -> None:
    write_tree()
    manifests()
    SCENARIOS[scenario]()
    theirs, said = coreutils("-c", *flags, "sha")
    status, _, _ = run("checksum", "-c", "crc", *flags, "-o", "said")
    ours = Path("said").read_bytes() if Path("said").exists() else b""
    assert status == theirs
    assert ours.replace(b": MISSING\n", b": FAILED open or read\n") == said


def test_what_verifying_says_on_stderr(run: Run) -> None:
    write_tree()
    manifests()
    SCENARIOS["both"]()
    append("crc", b"rubbish\n")
    status, out, err = run("checksum", "-c", "crc")
    assert status == 1
    assert "plain: FAILED\nwith blank: MISSING\n" in out
    assert err.splitlines() == [
        f"uring-actors: crc: {len(NAMES) + 1}: improperly formatted CRC32C checksum line",
        "uring-actors: WARNING: 1 line is improperly formatted",
        "uring-actors: WARNING: 1 listed file could not be read",
        "uring-actors: WARNING: 1 computed checksum did NOT match",
    ]
    assert run("checksum", "-c", "crc", "--status") == (1, "", "")


def test_one_file_listed_often_and_under_other_names(run: Run) -> None:
    Path("a").write_bytes(b"123456789")
    os.symlink("a", "link")
    os.link("a", "hard")
    lines = ["e3069283  a", "00000000  ./a", "4waSgw==  link", "e3069283 *hard", "crc32c=4waSgw==  a"]
    Path("m").write_text("".join(f"{line}\n" for line in lines))
    status, out, _ = run("checksum", "-c", "m")
    assert status == 1
    assert out == "a: OK\n./a: FAILED\nlink: OK\nhard: OK\na: OK\n"


def test_several_manifests(run: Run) -> None:
    Path("a").write_bytes(b"123456789")
    Path("b").write_bytes(b"")
    Path("one").write_text("e3069283  a\n")
    Path("two").write_text("00000000  b\n")
    assert run("checksum", "-c", "one", "-c", "two") == (0, "a: OK\nb: OK\n", "")


# ── histogram ────────────────────────────────────────────────────────────────────────────────────────────────
def test_histogram_table(run: Run) -> None:
    Path("a").write_bytes(b"aab\0")
    Path("z").write_bytes(bytes(100_000))
    status, out, err = run("histogram", "--quiet", "a", "z")
    assert (status, err) == (0, "")
    head, *lines = sorted(out.splitlines(), reverse=True)
    assert head.split() == ["entropy", "bytes", "most", "frequent", "path"]
    found = {line.split()[-1]: line for line in lines}
    assert found["a"].split("  ")[-1] == "a"
    assert "1.5000" in found["a"]
    assert "61 'a' 50.0%  00     25.0%  62 'b' 25.0%" in found["a"]
    assert "0.0000" in found["z"]
    assert "00     100.0%" in found["z"]


def test_histogram_blocks_and_counts(run: Run) -> None:
    Path("a").write_bytes(bytes(1500) + b"\xff" * 1500)
    _, out, _ = run("histogram", "--quiet", "--block", "2K", "--counts", "a")
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["entropy", "bytes", "offset"]
    rows = [line for line in lines[1:] if not line.startswith("    ")]
    assert [row.split()[1:3] for row in rows] == [["2048", "0"], ["952", "2048"]]
    assert "    00: 1500 " in out
    _, out, _ = run("histogram", "--quiet", "--block", "2K", "--format", "jsonl", "a")
    first, second = map(json.loads, out.splitlines())
    assert (first["counts"][0], first["counts"][255], second["counts"][255]) == (1500, 548, 952)
    assert second["entropy"] == 0

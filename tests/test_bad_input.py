"""Bad input, through the front door: what can't be scanned is said, and everything else is scanned and right."""

from __future__ import annotations

import errno
import functools
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import broken, elsewhere, oracle
from tests.small_scan import SMALL
from tests.test_exact import PATTERNS, filler, plant
from uring_actors import kernel_host, reader, scanning
from uring_actors.errors import InputError, IoUringUnavailable, MemlockTooSmall, OptionError, PatternError
from uring_actors.ops.match.plan import Kind

ENGINES = ["uring", "pread"]
NEEDLE = b"one needle\n"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, need_uring: Callable[[], None]) -> str:
    if request.param == "uring":
        need_uring()
    return str(request.param)


def start(paths: Any, patterns: Sequence[Any] = ("needle",), **options: Any) -> ua.Scan:
    return ua.scan(paths, patterns=patterns, **{**SMALL, **options})


def scanned(*args: Any, **options: Any) -> tuple[ua.Scan, pa.Table]:
    scan = start(*args, **options)
    return scan, scan.to_table()


def errors(scan: ua.Scan) -> list[tuple[bytes, str, int | None]]:
    table = scan.errors
    rows = list(zip(*(table[name].to_pylist() for name in ("path", "error", "offset")), strict=True))
    assert scan.stats.errors == len(rows)
    assert all(table["message"].to_pylist())
    return rows


def paths(table: pa.Table) -> list[bytes]:
    return sorted(table["path"].to_pylist())


def command(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "uring_actors", "scan", "--engine", "threads", *map(str, arguments)],
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A folder that another user can get to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# ── files that can't be opened ───────────────────────────────────────────────────────────────────────────────
def test_files_and_directories_without_permission(anybodys: Path) -> None:
    top = anybodys / "top"
    for name in ("closed", "open"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_bytes(NEEDLE)
    for name in ("secret", "plain"):
        (top / name).write_bytes(NEEDLE)
        (top / name).chmod(0o644)
    for folder in (top, top / "open"):
        folder.chmod(0o755)
    (top / "open" / "file").chmod(0o644)
    (top / "secret").chmod(0)
    (top / "closed").chmod(0)
    outcome = elsewhere.scan([top], nobody=True, patterns=["needle"], engine="threads", io_engine="pread")
    (top / "closed").chmod(0o700)
    assert outcome.raised is None
    assert sorted(row["path"] for row in outcome.rows) == [bytes(top / "open" / "file"), bytes(top / "plain")]
    failed = {row["path"]: row for row in outcome.errors}
    assert set(failed) == {bytes(top / "secret"), bytes(top / "closed")}
    assert {row["error"] for row in outcome.errors} == {"EACCES"}
    assert {row["errno"] for row in outcome.errors} == {errno.EACCES}
    assert "open" in failed[bytes(top / "secret")]["message"]
    assert "list" in failed[bytes(top / "closed")]["message"]
    assert (outcome.stats.files, outcome.stats.matches, outcome.stats.errors) == (3, 2, 2)


def on_open(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *, after: bool = False) -> None:
    """``act`` once, when the reader opens its first file: between listing and reading, or within reading."""
    real, acted = reader.open_file, []

    def opened(entry: Any, *, direct: bool) -> int:
        first = not acted
        acted.append(entry)
        if first and not after:
            act()
        result = real(entry, direct=direct)
        if first and after:
            act()
        return result

    monkeypatch.setattr(reader, "open_file", opened)


def tree_of_three(folder: Path, big: int = 300_000) -> Path:
    """``a`` (big, at its very end a needle), ``b`` and ``c``."""
    folder.mkdir()
    (folder / "a").write_bytes(b"needle\n" + b"-" * (big - 14) + b"\nneedle")
    (folder / "b").write_bytes(NEEDLE)
    (folder / "c").write_bytes(NEEDLE)
    return folder


def test_a_file_that_vanished_between_listing_and_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    top = tree_of_three(tmp_path / "top")
    on_open(monkeypatch, (top / "a").unlink)
    scan, table = scanned(top, io_engine=engine)
    assert paths(table) == [bytes(top / "b"), bytes(top / "c")]
    assert errors(scan) == [(bytes(top / "a"), "ENOENT", None)]


@pytest.mark.parametrize("kind", ["file", "fifo", "directory", "link"])
def test_something_else_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, kind: str) -> None:
    top = tree_of_three(tmp_path / "top")

    def replace() -> None:
        (top / "a").rename(tmp_path / "moved")
        if kind == "file":
            (top / "a").write_bytes(b"needle in another file\n" * 30000)
        elif kind == "fifo":
            os.mkfifo(top / "a")
        elif kind == "directory":
            (top / "a").mkdir()
        else:
            (top / "a").symlink_to(top / "b")

    on_open(monkeypatch, replace)
    scan, table = scanned(top, io_engine=engine)
    assert paths(table) == [bytes(top / "b"), bytes(top / "c")]
    assert errors(scan) == [(bytes(top / "a"), "ESTALE", None)]
    assert "another file" in scan.errors["message"][0].as_py()


@pytest.mark.parametrize("after", [False, True], ids=["before-open", "after-open"])
@pytest.mark.parametrize("io", ["direct", "buffered"])
@pytest.mark.parametrize("left", [0, 1, 199, 4096, 57344, 200_000])
def test_a_file_that_shrank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, io: str, after: bool, left: int
) -> None:
    top = tree_of_three(tmp_path / "top")
    on_open(monkeypatch, lambda: os.truncate(top / "a", left), after=after)
    scan, table = scanned(top, ["needle", r"-\n?needle", r"\n[^\n]+needle\z"], io_engine=engine, io=io)
    rows = oracle.found(table)
    assert {row for row in rows if row[0] != bytes(top / "a")} == {
        (bytes(top / name), "needle", 4, 10, 1, 5) for name in "bc"
    }
    start_is_left = {(bytes(top / "a"), "needle", 0, 6, 1, 1)} if left >= 6 else set()
    assert {row for row in rows if row[0] == bytes(top / "a")} == start_is_left
    assert errors(scan) == [(bytes(top / "a"), "ENODATA", left)]


def test_what_touch_says_of_a_file_that_shrank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    top = tree_of_three(tmp_path / "top")
    on_open(monkeypatch, lambda: os.truncate(top / "a", 199), after=True)
    scan, table = scanned(top, None, operation="touch", io_engine=engine)
    assert errors(scan) == [(bytes(top / "a"), "ENODATA", 199)]
    assert sorted(table["bytes"].to_pylist()) == [len(NEEDLE), len(NEEDLE), 199]


def test_a_file_cut_short_in_the_middle_of_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    path = tmp_path / "many"
    content = b"a needle\n" * 200_000
    path.write_bytes(content)
    (tmp_path / "next").write_bytes(NEEDLE)
    monkeypatch.setattr(kernel_host, "_QUEUE", 1)
    monkeypatch.setattr(kernel_host, "_FLUSH_SECONDS", 0.0)
    scan = start([path, tmp_path / "next"], io_engine=engine)
    batches = iter(scan)
    first = next(batches)
    os.truncate(path, 800_000)
    rows = oracle.found(pa.Table.from_batches([first, *batches]))
    of_many = {row for row in rows if row[0] == bytes(path)}
    wanted = oracle.matches_in(bytes(path), content, [ua.Regex("needle")])
    assert of_many <= wanted
    assert {row for row in wanted if row[3] <= 800_000} <= of_many
    assert len(of_many) < len(wanted)
    assert (bytes(tmp_path / "next"), "needle", 4, 10, 1, 5) in rows
    ((where, name, offset),) = errors(scan)
    assert (where, name) == (bytes(path), "ENODATA")
    assert offset is not None
    assert offset >= 800_000


def test_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """It is scanned as far as it went when it was listed."""
    top = tree_of_three(tmp_path / "top")
    listed = (top / "a").read_bytes()
    patterns = [ua.Regex(text) for text in ("needle", r"needle\z", r"needle(?:-+x)?", r"(?s)-\n.*")]

    def grow() -> None:
        with open(top / "a", "ab") as file:
            file.write(b"-" * 100_000 + b"x needle\n")

    on_open(monkeypatch, grow, after=True)
    scan, table = scanned(top / "a", patterns, io_engine=engine)
    assert oracle.found(table) == oracle.matches_in(bytes(top / "a"), listed, patterns)
    assert errors(scan) == []


# ── what is no file ──────────────────────────────────────────────────────────────────────────────────────────
def test_special_files_links_empty_files_and_odd_names(tmp_path: Path) -> None:
    top = tree_of_three(tmp_path / "top")
    os.mkfifo(top / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(top / "socket"))
    if os.geteuid() == 0:
        os.mknod(top / "null", 0o600 | 0o020000, os.makedev(1, 3))
        os.mknod(top / "disk", 0o600 | 0o060000, os.makedev(7, 250))
    (top / "dangling").symlink_to("nowhere")
    (top / "loop").symlink_to("loop")
    (top / "up").symlink_to("..")
    (top / "fine").symlink_to("b")
    (top / "empty").touch()
    odd = os.path.join(bytes(top), b"caf\xe9 \n\xff")
    with open(odd, "wb") as file:
        file.write(NEEDLE)
    scan, table = scanned(top)
    listening.close()
    assert set(paths(table)) == {bytes(top / name) for name in "abc"} | {odd}
    assert errors(scan) == []
    said = dict(zip(scan.skipped["path"].to_pylist(), scan.skipped["reason"].to_pylist(), strict=True))
    wanted = {
        "fifo": "FIFO",
        "socket": "socket",
        "dangling": "does not exist",
        "loop": "loops",
        "up": "contains it",
        "": "not followed",
    }
    if os.geteuid() == 0:
        wanted |= {"null": "character device", "disk": "block device"}
    assert set(said) == {bytes(top / name) for name in wanted}
    for name, reason in wanted.items():
        assert reason in said[bytes(top / name)]
    assert scan.stats.skipped == len(wanted)
    assert scan.stats.files == 5


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).touch()])
def test_nothing_but_what_holds_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "it")
    scan, table = scanned(tmp_path / "it")
    assert table.num_rows == 0
    assert errors(scan) == []


def test_an_empty_directory(tmp_path: Path) -> None:
    scan, table = scanned(tmp_path)
    assert (table.num_rows, scan.stats.files, scan.skipped.num_rows) == (0, 0, 0)


def test_exit_statuses(tmp_path: Path) -> None:
    top = tree_of_three(tmp_path / "top")
    os.mkfifo(top / "fifo")
    odd = os.path.join(bytes(top), b"\xff\x1b")
    with open(odd, "wb") as file:
        file.write(b"\xfe needle\n")
    hit = command("-e", "one needle", top)
    assert hit.returncode == 0, hit.stderr
    assert b"FIFO" in hit.stderr
    assert hit.stdout.splitlines() == [bytes(top / name) + b":1:1:one needle" for name in "bc"]
    assert odd + b":1:1:\xfe needle\n" in command("-F", "needle", "-e", r"(?s)\C needle", top).stdout
    none = command("-e", "nowhere", "--quiet", top)
    assert (none.returncode, none.stdout, none.stderr) == (1, b"", b"")
    missing = command("-e", "needle", top / "nowhere", top)
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert b"ENOENT" in missing.stderr
    assert b"nowhere" in missing.stderr
    invalid = command("-e", "a(b", top)
    assert (invalid.returncode, invalid.stdout) == (2, b"")
    assert b"a(b\n" in invalid.stderr
    assert command(top).returncode == 2


# ── what is refused before anything starts ───────────────────────────────────────────────────────────────────
@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a node was started")

    monkeypatch.setattr(scanning, "start_node", never)


@pytest.mark.parametrize("engine", ["threads", "ray"])
@pytest.mark.parametrize(("pattern", "position"), [("a(b", 1), ("x[z-a]", 2), ("ab**", 3), (r"é\8", 1), ("a)", 1)])
def test_an_invalid_pattern(tmp_path: Path, nothing_starts: None, engine: str, pattern: str, position: int) -> None:
    with pytest.raises(PatternError) as raised:
        start(tmp_path, ["fine", pattern], engine=engine)
    assert raised.value.pattern == pattern
    assert raised.value.position == position
    assert raised.value.reason


@pytest.mark.parametrize("pattern", ["a*", "", "x?|y", r"\b", "^", "(?:)", "(a|b*)"])
def test_a_pattern_that_can_match_nothing(tmp_path: Path, nothing_starts: None, pattern: str) -> None:
    with pytest.raises(PatternError):
        start(tmp_path, ["fine", pattern])
    with pytest.raises(PatternError):
        start(tmp_path, [ua.Literal("")])


@pytest.mark.parametrize("patterns", [None, [], ()])
def test_no_patterns(tmp_path: Path, nothing_starts: None, patterns: Any) -> None:
    with pytest.raises(OptionError, match="pattern"):
        start(tmp_path, patterns)


def test_a_path_that_does_not_exist(tmp_path: Path, nothing_starts: None) -> None:
    with pytest.raises(InputError) as raised:
        start([tmp_path, tmp_path / "nowhere"])
    assert raised.value.path == bytes(tmp_path / "nowhere")
    assert raised.value.errno == errno.ENOENT
    with pytest.raises(InputError):
        start("a\0b")
    with pytest.raises(OptionError):
        start([])


# ── io_uring forbidden, memory that may not be locked ────────────────────────────────────────────────────────
def main_in_child(first: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The command line, after ``first``."""
    code = f"{first}; import sys; from uring_actors.cli import main; sys.exit(main(sys.argv[1:]))"
    common = ["scan", "-F", "needle", "--engine", "threads", "--no-progress"]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *common, *map(str, arguments)],
        capture_output=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent.parent,
    )


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_io_uring_forbidden_on_the_command_line(tmp_path: Path, number: int) -> None:
    top = tree_of_three(tmp_path / "top")
    forbid = f"from tests import seccomp; seccomp.deny(error={number})"
    insisted = main_in_child(forbid, "--io-engine", "uring", top)
    assert (insisted.returncode, insisted.stdout) == (2, b"")
    why = b"kernel.io_uring_disabled" if number == errno.EPERM else b"CONFIG_IO_URING"
    assert why in insisted.stderr
    automatic = main_in_child(forbid, top)
    assert (automatic.returncode, automatic.stdout.count(b"\n")) == (0, 4)
    assert automatic.stderr.count(why) == 1


def test_io_uring_forbidden_and_insisted_on(tmp_path: Path) -> None:
    tree_of_three(tmp_path / "top")
    outcome = elsewhere.scan([tmp_path], forbid_uring=True, patterns=["n"], engine="threads", io_engine="uring")
    assert isinstance(outcome.raised, IoUringUnavailable)
    assert outcome.raised.errno == errno.EPERM
    assert "kernel.io_uring_disabled" in str(outcome.raised)
    assert "seccomp" in str(outcome.raised)
    assert outcome.warnings == []


def test_io_uring_forbidden_and_not_insisted_on(tmp_path: Path) -> None:
    top = tree_of_three(tmp_path / "top")
    outcome = elsewhere.scan([top], forbid_uring=True, patterns=["needle"], engine="threads")
    assert outcome.raised is None
    ((kind, text),) = outcome.warnings
    assert kind == "RuntimeWarning"
    for word in ("pread", "kernel.io_uring_disabled", "seccomp", "allow io_uring_setup"):
        assert word in text
    assert sorted((row["path"], row["start"]) for row in outcome.rows) == [
        (bytes(top / "a"), 0),
        (bytes(top / "a"), 299_994),
        (bytes(top / "b"), 4),
        (bytes(top / "c"), 4),
    ]
    assert outcome.stats.io_engine == "pread"
    assert outcome.stats.notes == (text,)
    assert outcome.errors == []


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody whom RLIMIT_MEMLOCK binds")


@pytest.mark.parametrize("io_engine", ["uring", "auto"])
def test_memlock_too_small(anybodys: Path, need_uring: Callable[[], None], io_engine: str) -> None:
    need_uring()
    needs_root()
    path = anybodys / "file"
    path.write_bytes(NEEDLE)
    path.chmod(0o644)
    outcome = elsewhere.scan(
        [path], nobody=True, memlock=1 << 20, patterns=["needle"], engine="threads", io_engine=io_engine
    )
    if io_engine == "uring":
        assert isinstance(outcome.raised, MemlockTooSmall)
        assert (outcome.raised.needed, outcome.raised.limit) == (32 << 20, 1 << 20)
        return
    assert outcome.raised is None
    ((kind, text),) = outcome.warnings
    assert kind == "RuntimeWarning"
    assert "RLIMIT_MEMLOCK" in text
    assert "ulimit -l" in text
    assert [row["match"] for row in outcome.rows] == [b"needle"]
    assert outcome.stats.io_engine == "pread"


@pytest.mark.parametrize("io_engine", ["uring", "auto"])
def test_memlock_that_others_have_used_up(anybodys: Path, need_uring: Callable[[], None], io_engine: str) -> None:
    """The limit would do, but it counts for all of a user's rings: seen only when the buffers are registered."""
    need_uring()
    needs_root()
    path = anybodys / "file"
    path.write_bytes(NEEDLE)
    path.chmod(0o644)
    outcome = elsewhere.scan(
        [path],
        nobody=True,
        memlock=6 << 20,
        at_once=2,
        patterns=["needle"],
        engine="threads",
        io_engine=io_engine,
        slot_bytes=65536,
        slots=64,
    )
    if io_engine == "uring":
        assert isinstance(outcome.raised, MemlockTooSmall)
        return
    assert outcome.raised is None
    ((kind, text),) = outcome.warnings
    assert kind == "RuntimeWarning"
    assert "RLIMIT_MEMLOCK" in text
    assert [row["match"] for row in outcome.rows] == [b"needle"]
    assert outcome.stats.io_engine == "pread"
    assert outcome.stats.notes == (text,)


# ── a medium that fails ──────────────────────────────────────────────────────────────────────────────────────
WIDE = [*PATTERNS, ua.Regex(r"W[a-z \n.,;{}=@]{900}W", name="wide"), ua.Regex(r"(?s)OPEN.*CLOSE", name="greedy")]
HOLE = range(300 << 10, 400 << 10)


@pytest.fixture(scope="module")
def content() -> bytes:
    rng = random.Random(3)
    data = filler(rng, 1_000_000, "text")
    plant(rng, data, [HOLE.start, HOLE.stop, HOLE.start - 700, HOLE.stop + 700])
    for place in (HOLE.start - 500, HOLE.stop - 500, HOLE.start - 902, HOLE.stop, 500_000):
        data[place : place + 902] = b"W" + bytes(rng.choices(b"ab \n", k=900)) + b"W"
    data[HOLE.start - 3000 : HOLE.start - 2996] = b"OPEN"
    data[HOLE.stop + 3000 : HOLE.stop + 3005] = b"CLOSE"
    data[HOLE.start - 2000 : HOLE.start - 1980] = b"unsafe { somewhere  "
    data[HOLE.stop + 1000 : HOLE.stop + 1020] = b"   transmute } then "
    return bytes(data)


@pytest.fixture(scope="module")
def torn(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    files = {"a": NEEDLE * 9000, "torn": content, "z": NEEDLE}
    with broken.disk_with_a_hole(tmp_path_factory.mktemp("torn"), files, "torn", HOLE) as folder:
        yield folder


@functools.cache
def truth(path: bytes, content: bytes) -> tuple[set[oracle.Row], set[oracle.Row]]:
    """What is in the whole file; and behind the hole, as if the file began there."""
    behind = {
        (path, name, start + HOLE.stop, end + HOLE.stop, None, None)
        for _, name, start, end, _, _ in oracle.matches_in(path, content[HOLE.stop :], WIDE)
    }
    return oracle.matches_in(path, content, WIDE), behind


def check_torn(table: pa.Table, path: bytes, content: bytes, reach: int) -> None:
    """Nothing wrong is in it; and everything is that lies more than ``reach`` bytes away from the hole, unless a
    match could reach it from the other side."""
    hole = HOLE
    rows = {row for row in oracle.found(table) if row[0] == path}
    whole, behind = truth(path, content)
    places = {row[:4]: row[4:] for row in whole}
    for row in rows:
        _, _, start, end, line, column = row
        assert end <= hole.start or start >= hole.stop, f"made of bytes that can't be read: {row}"
        if start >= hole.stop:
            assert line is None, row
            assert row[:4] in places or (*row[:4], None, None) in behind, f"made up: {row}"
            if row[:4] in places:
                assert column in (None, places[row[:4]][1]), row
        else:
            assert row[:4] in places, f"made up: {row}"
            assert line in (None, places[row[:4]][0]), row
            assert column in (None, places[row[:4]][1]), row
            assert line is not None or start > hole.start - reach, row
    before = {row for row in whole if row[3] < hole.start - reach}
    assert before <= rows, oracle.explain_difference(rows, before)
    after = {row[:4] for row in whole if row[2] > hole.stop + reach and row[:4] in {r[:4] for r in behind}}
    missing = after - {row[:4] for row in rows}
    assert not missing, sorted(missing)[:5]


@pytest.mark.parametrize("slot_bytes", [65536, 1 << 18])
@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_eio_in_the_middle(torn: Path, content: bytes, engine: str, io: str, slot_bytes: int) -> None:
    broken.drop_cache(torn / "torn")
    scan, table = scanned(
        [torn / "a", torn / "torn", torn / "z"], WIDE, io_engine=engine, io=io, slot_bytes=slot_bytes
    )
    kinds = {plan.kind for plan in scanning.Match.of(WIDE).plans}
    assert {Kind.LITERAL, Kind.BOUNDED, Kind.PREFIX, Kind.LINE, Kind.FILE} <= kinds
    path = bytes(torn / "torn")
    check_torn(table, path, content, slot_bytes)
    fine = oracle.expected([torn / "a", torn / "z"], WIDE)
    assert {row for row in oracle.found(table) if row[0] != path} == fine
    said = errors(scan)
    assert {row[:2] for row in said} == {(path, "EIO")}
    assert all(offset is not None and HOLE.start - slot_bytes <= offset <= HOLE.stop for *_, offset in said)
    assert scan.stats.files == 3


def test_eio_in_the_middle_on_the_command_line(torn: Path) -> None:
    done = command("-F", "needle", "--no-progress", torn)
    assert done.returncode == 2
    assert bytes(torn / "torn") in done.stderr
    assert b"EIO" in done.stderr
    assert b" at byte " in done.stderr
    assert done.stdout.count(bytes(torn / "a") + b":") == 9000
    assert bytes(torn / "z") + b":1:5:needle\n" in done.stdout
    assert bytes(torn / "torn") + b":0:" not in done.stdout


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_a_disk_that_fails_while_it_is_read(
    tmp_path: Path, content: bytes, engine: str, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And works again later: what was read then is scanned."""
    dense = b"".join(b"%07d needle\n" % i for i in range(80_000))
    (tmp_path / "good").write_bytes(NEEDLE)
    monkeypatch.setattr(kernel_host, "_QUEUE", 1)
    monkeypatch.setattr(kernel_host, "_FLUSH_SECONDS", 0.0)
    disk = broken.SwitchedDisk(tmp_path, dense)
    try:
        patterns = ["needle", r"(?m)^0[0-9]+ needle$", r"(?s)0000000 .*0079999 n"]
        scan = start([disk.path, tmp_path / "good"], patterns, io_engine=engine, io=io, slots=2)
        batches = iter(scan)
        rows = [next(batches)]
        while bytes(disk.path) not in rows[-1]["path"].to_pylist():
            rows.append(next(batches))
        disk.fail(True)
        broken.drop_cache(disk.path)
        rows.extend(batches)
    finally:
        disk.close()
    table = pa.Table.from_batches(rows)
    path = bytes(disk.path)
    found = {row for row in oracle.found(table) if row[0] == path}
    wanted = oracle.matches_in(path, dense, [ua.Regex(text) for text in patterns])
    assert 0 < len(found) < len(wanted)
    exact = {row[:4]: row for row in wanted}
    for row in found:
        assert row[4] in (None, exact[row[:4]][4]), row
        assert row[5] in (None, exact[row[:4]][5]), row
    assert (bytes(tmp_path / "good"), "needle", 4, 10, 1, 5) in oracle.found(table)
    assert {row[:2] for row in errors(scan)} == {(path, "EIO")}


def test_too_few_descriptors(tmp_path: Path) -> None:
    """A limit that many files reach: the reader closes some and goes on."""
    for i in range(300):
        (tmp_path / f"{i:03}").write_bytes(NEEDLE)
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    done = main_in_child(few, "--io-engine", "pread", tmp_path)
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 300), done.stderr

"""The command line, against a scan that is made up: options, outputs, exit status, ways of ending early."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pytest

import uring_actors
from uring_actors import doctor
from uring_actors.cli import main
from uring_actors.errors import InputError, NodeFailed
from uring_actors.results.errors import Failure, Skipped, errors_table, skipped_table
from uring_actors.results.schema import MATCH_SCHEMA
from uring_actors.results.stats import ScanStats

MATCH = {"path": b"p", "pattern": "x", "start": 0, "end": 1, "line": 1, "column": 1, "match": b"x"}


@dataclass
class FakeScan:
    """What ``uring_actors.scan`` returns, made up. ``calls``: the arguments it was made with."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)
    stats: ScanStats = field(default_factory=ScanStats)
    fail: BaseException | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    schema: pa.Schema = MATCH_SCHEMA
    closed: bool = False

    def __call__(self, paths: list[bytes], **options: Any) -> FakeScan:
        self.calls.append({"paths": paths, **options})
        for note in self.stats.notes:
            warnings.warn(note, RuntimeWarning, stacklevel=2)
        return self

    def __enter__(self) -> FakeScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for row in self.rows:
            yield pa.RecordBatch.from_pylist([row], schema=MATCH_SCHEMA)
        if self.fail is not None:
            raise self.fail
        self.stats = replace(
            self.stats,
            matches=len(self.rows),
            errors=len(self.failures),
            skipped=len(self.left_out),
            seconds=1.0,
        )

    @property
    def errors(self) -> pa.Table:
        return errors_table(self.failures)

    @property
    def skipped(self) -> pa.Table:
        return skipped_table(self.left_out)


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> FakeScan:
    fake = FakeScan()
    monkeypatch.setattr(uring_actors, "scan", fake, raising=False)
    return fake


Outcome = tuple[int, str, str]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: str) -> Outcome:
        status = main(arguments)
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return run


# Exit status and what is said


def test_matches(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    scan.rows = [MATCH, MATCH | {"line": None, "column": None}]
    status, out, err = cli("scan", "-e", "x", "p")
    assert (status, out) == (0, "p:1:1:x\np:?:?:x\n")
    assert err == (
        "uring-actors: 0 files, 0 bytes, 2 matches, 0 errors, 0 skipped in 1.00 s (0.00 GB/s); "
        "engine ray, kernel on cpu, uring direct, SQPOLL off\n"
    )
    assert scan.closed


def test_no_matches(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    assert cli("scan", "-e", "x", "--quiet", "p") == (1, "", "")


def test_an_operation_that_looks_for_nothing_succeeds(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    assert cli("scan", "--operation", "touch", "--quiet", "p")[0] == 0
    assert scan.calls[0]["operation"] == "touch"
    assert scan.calls[0]["patterns"] is None


def test_errors_win_over_matches_and_are_said_even_quietly(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    scan.rows = [MATCH]
    scan.failures = [
        Failure(b"a\n\xff", "cannot open", 13),
        Failure(b"b", "cannot read", 5, offset=4096, device="nvme0n1", node="n1"),
        Failure(b"c", "it shrank while it was read", error="Shrank"),
    ]
    status, out, err = cli("scan", "-e", "x", "--quiet", "p")
    assert (status, out) == (2, "p:1:1:x\n")
    assert err.splitlines() == [
        "uring-actors: a\\n\\xff: cannot open: EACCES (Permission denied)",
        "uring-actors: b at byte 4096: cannot read: EIO (Input/output error) [device nvme0n1, node n1]",
        "uring-actors: c: it shrank while it was read: Shrank",
    ]


def test_what_was_skipped_is_said_up_to_a_point(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    scan.left_out = [Skipped(b"f%d" % number, "FIFO, not a regular file") for number in range(25)]
    scan.stats = ScanStats(notes=("io_uring is not permitted here",))
    status, _, err = cli("scan", "-e", "x", "p")
    lines = err.splitlines()
    assert status == 1
    assert lines[0] == "uring-actors: note: io_uring is not permitted here"
    assert lines[1] == "uring-actors: skipped f0: FIFO, not a regular file"
    assert lines[21] == "uring-actors: skipped 5 more: FIFO, not a regular file"
    assert len(lines) == 23


@pytest.mark.parametrize(
    "error",
    [NodeFailed("reader", "it was killed", node="n1"), InputError("no", path=b"p"), OSError(5, "EIO")],
)
def test_a_scan_that_fails(scan: FakeScan, cli: Callable[..., Outcome], error: Exception) -> None:
    scan.fail = error
    status, _, err = cli("scan", "-e", "x", "p")
    assert status == 2
    assert err == f"uring-actors: {error}\n"
    assert scan.closed


def test_a_fault_of_ours_is_not_taken_for_no_match(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    scan.fail = BrokenPipeError("within the pipeline")
    assert cli("scan", "-e", "x", "p")[0] == 2
    scan.fail = ZeroDivisionError()
    status, _, err = cli("scan", "-e", "x", "p")
    assert status == 2
    assert "please report" in err


# Options


def test_what_the_scan_is_given(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    cli(
        *("scan", "-e", "a", "-F", "b", "-e", "c", "-i", "--multi-line", "--dot-all"),
        *("--engine", "threads", "--io-engine", "pread", "--io", "buffered", "--sqpoll", "off"),
        *("--lanes", "2", "--slot-size", "64K", "--slots", "8", "--kernel-threads", "3", "p", "q\udcff"),
    )
    (call,) = scan.calls
    patterns = call.pop("patterns")
    assert [getattr(one, "pattern", None) or one.text for one in patterns] == ["a", "c", "b"]
    assert all(one.ignore_case for one in patterns)
    assert patterns[0].multi_line
    assert patterns[0].dot_all
    assert not patterns[0].bytes
    assert call == {
        "paths": [b"p", b"q\xff"],
        "rules": None,
        "operation": "match",
        "engine": "threads",
        "backend": "auto",
        "io_engine": "pread",
        "io": "buffered",
        "sqpoll": "off",
        "lanes": 2,
        "slot_bytes": 65536,
        "slots": 8,
        "kernel_threads": 3,
        "include": (),
        "exclude": (),
        "hidden": True,
        "gitignore": False,
        "max_filesize": None,
        "max_count": None,
        "report": "matches",
    }


def test_patterns_as_bytes(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    cli("scan", "--bytes", "-e", "\udcff", "-F", "é", "p")
    cli("scan", "-F", "\udcff", "p")
    expression, fixed = scan.calls[0]["patterns"]
    assert (expression.pattern, expression.bytes) == (b"\xff", True)
    assert fixed.text == "é".encode()
    assert scan.calls[1]["patterns"][0].text == b"\xff"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["p"], "No pattern was given"),
        (["-e", "x"], "No path was given"),
        (["-e", "x", "--operation", "nop", "p"], "takes no patterns"),
        (["-e", "x", "--slot-size", "100000", "p"], "--slot-size is 100000"),
        (["-e", "x", "--slot-size", "big", "p"], "is not a size"),
        (["-e", "x", "--lanes", "0", "p"], "lanes is 0"),
        (["-e", "x", "--io-engine", "aio", "p"], "'aio' is not one of"),
        (["-e", "x", "--io-engine", "pread", "--sqpoll", "on", "p"], "no submission queue"),
        (["-e", "x", "--nonsense", "p"], "No such option"),
    ],
)
def test_usage_errors_start_nothing(
    scan: FakeScan, cli: Callable[..., Outcome], arguments: list[str], says: str
) -> None:
    status, out, err = cli("scan", *arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert scan.calls == []


def test_explain(scan: FakeScan, cli: Callable[..., Outcome]) -> None:
    status, out, err = cli("scan", "--explain", "-e", "ab{2,3}c", "-F", "a\nb")
    assert (status, err) == (0, "")
    assert "ab{2,3}c\n  kind       bounded" in out
    assert "width      4 to 5 bytes" in out
    assert "a\\nb\n  kind       literal" in out
    assert scan.calls == []


def test_explaining_an_invalid_pattern_points_into_it(cli: Callable[..., Outcome]) -> None:
    status, out, err = cli("scan", "--explain", "-e", "a(b")
    assert (status, out) == (2, "")
    assert err.splitlines()[1] == "  a(b"
    assert err.splitlines()[2].strip() == "^"


# Where rows go


def test_formats(scan: FakeScan, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    scan.rows = [MATCH]
    assert json.loads(cli("scan", "-e", "x", "--format", "jsonl", "p")[1])["match"] == "x"
    path = tmp_path / "rows"
    assert cli("scan", "-e", "x", "--format", "arrow", "-o", str(path), "p")[:2] == (0, "")
    assert pa.ipc.open_stream(path.read_bytes()).read_all().num_rows == 1


def test_an_output_file_of_a_scan_that_fails(scan: FakeScan, cli: Callable[..., Outcome], tmp_path: Path) -> None:
    scan.rows, scan.fail = [MATCH], NodeFailed("reader", "it was killed")
    assert cli("scan", "-e", "x", "-o", str(tmp_path / "rows"), "p")[0] == 2
    assert os.listdir(tmp_path) == []


def test_an_output_file_that_cannot_be_made_starts_nothing(
    scan: FakeScan, cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    status, _, err = cli("scan", "-e", "x", "-o", str(tmp_path / "no" / "rows"), "p")
    assert status == 2
    assert "cannot write the output file" in err
    assert scan.calls == []


# Ends that need a process

ENDLESS = """
import sys, time
import pyarrow as pa
import uring_actors
from uring_actors.results.schema import MATCH_SCHEMA
from uring_actors.results.errors import errors_table, skipped_table
from uring_actors.results.stats import ScanStats

class Scan:
    schema = MATCH_SCHEMA
    stats = ScanStats()
    errors, skipped = errors_table([]), skipped_table([])
    def __enter__(self):
        return self
    def __exit__(self, *error):
        print("closed", file=sys.stderr, flush=True)
    def __iter__(self):
        row = dict(path=b"p", pattern="x", start=0, end=1, line=1, column=1, match=b"x" * 100)
        while True:
            yield pa.RecordBatch.from_pylist([row] * 100, schema=MATCH_SCHEMA)
            time.sleep(0.001)

uring_actors.scan = lambda paths, **options: Scan()
from uring_actors.cli import main
sys.exit(main(["scan", "-e", "x", "--no-progress", *sys.argv[1:], "p"]))
"""


def start(*arguments: str, unbuffered: bool = False) -> subprocess.Popen[bytes]:
    flags = ["-u"] if unbuffered else []
    return subprocess.Popen(
        [sys.executable, *flags, "-W", "error", "-c", ENDLESS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_scan_cleanly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with start("-o", str(tmp_path / "rows")) as process:
        deadline = time.monotonic() + 20
        while not any(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    said = ["uring-actors: interrupted"] if number == signal.SIGINT else []
    assert err.decode().splitlines() == ["closed", *said]
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("output", [[], ["-o", "/dev/stdout"]])
def test_a_reader_that_leaves_ends_the_scan_quietly(output: list[str], unbuffered: bool) -> None:
    with start(*output, unbuffered=unbuffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"p:1:1:x")
        process.stdout.close()
        assert process.stderr.read() == b"closed\n"
        assert process.wait(20) == 0


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    script = """
import sys
from uring_actors.cli import main
status = main(["scan", "--help"])
heavy = {"ray", "numba", "pyarrow", "numpy", "hyperscan", "re2"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else status)
"""
    took = []
    for _ in range(3):  # the best of three, in CPU time: the machine may be busy
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
    assert min(took) < 0.3


# doctor


def test_doctor(cli: Callable[..., Outcome]) -> None:
    status, out, _ = cli("doctor", "--lanes", "2")
    assert status == 0
    names = [line.split("  ")[0] for line in out.splitlines() if not line.startswith(" ")]
    for name in (
        "python",
        "kernel",
        "cores",
        "io_uring",
        "RLIMIT_MEMLOCK",
        "--sqpoll auto",
        "libhs",
        "gpu",
    ):
        assert name in names
    assert "2 lanes want 8" in out


def test_doctor_where_io_uring_is_forbidden(cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_io_uring", lambda: 1)
    _, out, _ = cli("doctor")
    assert "refused (EPERM: Operation not permitted); scans use pread" in out
    assert "kernel.io_uring_disabled to 0" in out
    assert "seccomp" in out

"""Progress and the last line."""

from __future__ import annotations

import io
import os
import pty
import time

import pytest

from uring_actors.results.report import Progress, format_bytes, progress_line, summary
from uring_actors.results.stats import ScanStats

STATS = ScanStats(
    files=1,
    bytes=5_000_000_000,
    matches=2,
    errors=0,
    skipped=3,
    seconds=2.0,
    first_result_seconds=0.25,
    engine="threads",
    devices=("nvme0n1", "nvme1n1"),
)


def test_rates() -> None:
    assert STATS.gb_per_s == 2.5
    assert ScanStats(bytes=1).gb_per_s == 0.0


def test_the_lines() -> None:
    assert progress_line(STATS) == "2.0 s: 1 file, 5.00 GB (2.50 GB/s), 2 matches, 0 errors"
    assert summary(STATS) == (
        "1 file, 5.00 GB, 2 matches, 0 errors, 3 skipped in 2.00 s (2.50 GB/s); first match after 0.25 s; "
        "engine threads, kernel on cpu, uring direct, SQPOLL off; from nvme0n1, nvme1n1"
    )
    assert "first match" not in summary(ScanStats())


def test_the_lines_of_what_finds_no_matches() -> None:
    assert progress_line(STATS, searching=False) == "2.0 s: 1 file, 5.00 GB (2.50 GB/s), 0 errors"
    assert summary(STATS, searching=False).startswith(
        "1 file, 5.00 GB, 0 errors, 3 skipped in 2.00 s (2.50 GB/s); first row after 0.25 s; engine threads"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_999, "1.00 MB"),
        (2_500_000_000, "2.50 GB"),
        (10**18, "1000.00 PB"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


def until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_off_a_terminal_a_line_an_interval() -> None:
    stream = io.StringIO()
    with Progress(lambda: STATS, stream, terminal=False, interval=0.01):
        until(lambda: stream.getvalue().count("\n") >= 3)
    lines = stream.getvalue().splitlines()
    assert set(lines) == {f"uring-actors: {progress_line(STATS)}"}
    time.sleep(0.05)
    assert len(stream.getvalue().splitlines()) == len(lines)


def test_a_short_scan_logs_nothing() -> None:
    stream = io.StringIO()
    with Progress(lambda: STATS, stream, terminal=False):
        pass
    assert stream.getvalue() == ""


def test_on_a_terminal_the_line_is_erased_around_rows_and_at_the_end() -> None:
    stream = io.StringIO()
    with Progress(lambda: STATS, stream, terminal=True, interval=0.01) as progress:
        until(lambda: stream.getvalue())
        with progress.hidden():
            stream.write("ROW\n")
            time.sleep(0.05)
            assert stream.getvalue().endswith("ROW\n")
    text = stream.getvalue()
    assert "\r\x1b[KROW\n" in text
    assert text.endswith("\r\x1b[K")
    assert text.count("\n") == 1


def test_a_line_fits_the_terminal() -> None:
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    with os.fdopen(follower, "w") as stream:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        with Progress(lambda: STATS, stream, terminal=True, interval=0.01):
            time.sleep(0.05)
        shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert progress_line(STATS)[:19] in shown
    assert progress_line(STATS)[:20] not in shown


def test_a_closed_stderr_stops_nothing() -> None:
    stream = io.StringIO()
    with Progress(lambda: STATS, stream, terminal=True, interval=0.01) as progress:
        stream.close()
        time.sleep(0.05)
        with progress.hidden():
            pass

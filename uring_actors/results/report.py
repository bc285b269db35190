"""What a person sees of a running scan on stderr: progress, and one last line.

On a terminal progress is one line, rewritten; elsewhere it is a log line every few seconds. It is drawn by a
thread of its own that only reads snapshots, so that a scan that is stuck shows itself by a line that goes on
while its numbers don't. Nothing here can stop a scan: a stderr that was closed ends the reporting only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from uring_actors.errors import UringActorsError
from uring_actors.results.stats import ScanStats

REWRITE_SECONDS = 0.2
LOG_SECONDS = 5.0

_ERASE = "\r\x1b[K"


class Progress:
    """Draws ``snapshot()`` on ``stream`` while its block runs. Life: created → entered → left."""

    def __init__(
        self,
        snapshot: Callable[[], ScanStats],
        stream: TextIO,
        *,
        terminal: bool,
        interval: float | None = None,
        searching: bool = True,
    ) -> None:
        """``interval``: seconds between two lines; by default ``REWRITE_SECONDS`` or ``LOG_SECONDS``. ``searching``:
        as of ``summary``."""
        self._snapshot = snapshot
        self._stream = stream
        self._terminal = terminal
        self._searching = searching
        self._interval = interval or (REWRITE_SECONDS if terminal else LOG_SECONDS)
        self._drawing = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        if self._terminal:
            self._write(_ERASE)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Keeps the line away while the block writes to the same terminal."""
        with self._drawing:
            if self._terminal:
                self._write(_ERASE)
            yield

    def _run(self) -> None:
        while not self._left.wait(self._interval):
            try:
                line = progress_line(self._snapshot(), searching=self._searching)
            except UringActorsError:  # the scan has failed, and says so itself
                return
            fitting = _ERASE + line[: _width(self._stream) - 1]
            with self._drawing:
                if not self._left.is_set():
                    self._write(fitting if self._terminal else f"uring-actors: {line}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # closed: nobody is watching any more
            self._left.set()


def progress_line(stats: ScanStats, *, searching: bool = True) -> str:
    """``12.0 s: 345 files, 6.78 GB (0.57 GB/s), 9 matches, 0 errors``"""
    matches = f"{_count(stats.matches, 'match')}, " if searching else ""
    return (
        f"{stats.seconds:.1f} s: {_count(stats.files, 'file')}, {format_bytes(stats.bytes)} "
        f"({stats.gb_per_s:.2f} GB/s), {matches}{_count(stats.errors, 'error')}"
    )


def summary(stats: ScanStats, *, searching: bool = True) -> str:
    """The last line: what was done, how fast, and by which engines. ``searching``: whether there are matches to speak
    of, which a checksum, for one, has not."""
    first = stats.first_result_seconds
    matches = f"{_count(stats.matches, 'match')}, " if searching else ""
    parts = [
        f"{_count(stats.files, 'file')}, {format_bytes(stats.bytes)}, {matches}"
        f"{_count(stats.errors, 'error')}, {stats.skipped} skipped "
        f"in {stats.seconds:.2f} s ({stats.gb_per_s:.2f} GB/s)",
        f"first {'match' if searching else 'row'} after {first:.2f} s" if first is not None else "",
        f"engine {stats.engine}, kernel on {stats.backend}, {stats.io_engine} {stats.io}, "
        f"SQPOLL {'on' if stats.sqpoll else 'off'}",
        f"from {', '.join(stats.devices)}" if stats.devices else "",
    ]
    return "; ".join(part for part in parts if part)


def format_bytes(size: int) -> str:
    """``"999 bytes"``, ``"1.00 kB"``, ``"2.50 GB"``: decimal units, as GB/s is."""
    if size < 1000:
        return _count(size, "byte")
    amount = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.995:
            return f"{amount:.2f} {unit}"
    return f"{amount / 1000:.2f} PB"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80

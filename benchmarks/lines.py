"""(h) A pattern that hits in every line, its rows written as JSON, against ripgrep's ``--json``.

What costs then is not the search but each row: confirming it, giving it line, column and bytes, and spelling it out.
The text is a log: the source-like text of the other measurements with a time and a worker before each line, so every
line is another one and holds the worker's mark once.

Both sides write JSON lines into a FIFO that a thread here empties. ripgrep writes an object a line that matches, with
the whole line and where in it the matches are; ours one for each match.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import statistics
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from benchmarks import peers
from benchmarks.data import warm
from benchmarks.model import Missing, Reading, Setting, compare
from benchmarks.scanner import Scanner

MARK = "@worker-"
BARS = {
    "a literal in every line": (MARK, 0.5),
    "several in every line": ("e", 0.5),
    "a regex in every line": (MARK + "[0-9]{1,2}:", 0.5),
}
"""The pattern, and the bar."""
INFORMATION = ("(?m)^.", "[a-z]+_[a-z]+", "[A-Za-z0-9_]+", MARK + "[0-9]+", f".*{MARK}.*")
"""Patterns whose matches RE2 confirms one by one, the last two without a bound to their width."""
_SHARE, _SMALL_SHARE = 8, 64
"""The log is an eighth of the text (JSON of it is thrice that); for INFORMATION, a 64th."""
_PIPE_BYTES = 1 << 20
_TAIL = 4096
"""Bytes that hold rg's last line, the summary."""


def measure(setting: Setting) -> None:
    log, small = setting.directory / "log", setting.directory / "log-small"
    lines = make_log(log, setting.text, setting.size // _SHARE)
    few = make_log(small, setting.text, setting.size // _SMALL_SHARE)
    try:
        warm(log)
        warm(small)
        with Scanner() as scanner:
            for name, (pattern, bar) in BARS.items():
                ours, rgs, command = _rounds(setting, scanner, log, pattern, setting.rounds)
                setting.report.commands[f"rg, {name}"] = peers.shown(command, log=log)
                rows = f"rows: ours {ours[-1].rows}, rg {rgs[-1].rows}, lines {lines}"
                said = (rows, f"seconds a million {_each(ours, rgs)}")
                setting.report.verdicts.append(compare(f"{name} / rg", ours, rgs, bar, peer="ripgrep", notes=said))
            notes = tuple(_information(setting, scanner, small, few, pattern) for pattern in INFORMATION)
        last = setting.report.verdicts[-1]
        setting.report.verdicts[-1] = replace(last, notes=(*last.notes, *notes))
    finally:
        log.unlink()
        small.unlink()


def make_log(path: Path, source: Path, size: int, seed: int = 7) -> int:
    """A log of at most ``size`` bytes from the lines of ``source``; how many lines it has."""
    rng, clock, lines = random.Random(seed), 0, 0
    with source.open("rb") as text, path.open("wb") as out:
        for said in text:
            clock += rng.randrange(2000)
            seconds, thousandth = divmod(clock, 1000)
            hour, minute, second = seconds // 3600 % 24, seconds // 60 % 60, seconds % 60
            stamp = f"2026-11-22T{hour:02}:{minute:02}:{second:02}.{thousandth:03}Z INFO {MARK}{rng.randrange(64)}: "
            line = stamp.encode() + said.rstrip(b"\n") + b"\n"
            size -= len(line)
            if size < 0:
                break
            out.write(line)
            lines += 1
    return lines


def _information(setting: Setting, scanner: Scanner, log: Path, lines: int, pattern: str) -> str:
    ours, rgs, _ = _rounds(setting, scanner, log, pattern, min(3, setting.rounds))
    ratio = statistics.median(a.rate / b.rate for a, b in zip(ours, rgs, strict=True))
    rows = f"rows: ours {ours[-1].rows}, rg {rgs[-1].rows}, lines {lines}"
    return f"{pattern}: {ratio:.2f} of ripgrep; seconds a million {_each(ours, rgs)}; {rows}"


def _each(ours: list[Reading], rgs: list[Reading]) -> str:
    """What a million matches cost."""

    def cost(readings: list[Reading]) -> str:
        wall = statistics.median(1e6 * r.seconds / max(1, r.rows) for r in readings)
        cpu = statistics.median(1e6 * r.cpu / max(1, r.rows) for r in readings)
        return f"{wall:.2f} (CPU {cpu:.2f})"

    return f"matches: ours {cost(ours)}, rg {cost(rgs)}"


def _rounds(
    setting: Setting, scanner: Scanner, log: Path, pattern: str, rounds: int
) -> tuple[list[Reading], list[Reading], list[str]]:
    """Readings of both, in turns, and rg's command line: the faster of its ways to read."""
    fifo = setting.directory / "rows"
    commands = [peers.rg_json_command(log, pattern, mmap=mmap) for mmap in (True, False)]
    command = min(commands, key=lambda each: _rg(each, log, fifo).seconds)
    ours: list[Reading] = []
    rgs: list[Reading] = []
    for _ in range(rounds + 1):
        rgs.append(_rg(command, log, fifo))
        ours.append(_ours(scanner, pattern, log, fifo))
    return ours[1:], rgs[1:], command


def _rg(command: list[str], log: Path, fifo: Path) -> Reading:
    with Drain(fifo) as drain, fifo.open("wb") as out:
        ran = peers.run(command, out=out)
    summary = json.loads(drain.last)
    return Reading(log.stat().st_size, ran.seconds, ran.cpu, rows=summary["data"]["stats"]["matches"])


def _ours(scanner: Scanner, pattern: str, log: Path, fifo: Path) -> Reading:
    with Drain(fifo) as drain:
        reading = scanner.scan(log, patterns=[pattern], engine="threads", jsonl=str(fifo))
    if drain.lines != reading.rows:
        raise Missing(f"{reading.rows} rows were written as {drain.lines} lines")
    return replace(reading, rows=drain.lines)


class Drain:
    """A FIFO, and a thread that empties it to its end: its ``lines``, and the ``last`` one's bytes. Leaving the
    block waits for the end and removes it."""

    def __init__(self, path: Path) -> None:
        self.lines = 0
        self.last = b""
        self._path = path
        os.mkfifo(path)
        self._reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for a writer
        self._held = os.open(path, os.O_WRONLY)  # so that it doesn't end before the first one comes
        fcntl.fcntl(self._reading, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._reading, True)
        self._thread = threading.Thread(target=self._run, name="drain")

    def _run(self) -> None:
        buffer = bytearray(_PIPE_BYTES)
        with open(self._reading, "rb", buffering=0) as rows:
            while count := rows.readinto(buffer):
                self.lines += buffer.count(b"\n", 0, count)
                self.last = (self.last + buffer[max(0, count - _TAIL) : count])[-_TAIL:]
        self.last = self.last.rstrip(b"\n").rpartition(b"\n")[2]

    def __enter__(self) -> Drain:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._held)
        self._thread.join()
        self._path.unlink()

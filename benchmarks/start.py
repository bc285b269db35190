"""(d) From the start of a fresh process to the first rows, with the ``threads`` engine and compiled loops cached."""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks import peers
from benchmarks.data import patterns_of
from benchmarks.model import Setting, Verdict

BAR = 1.5
"""Seconds."""
_PROGRAM = """
import sys, time
import uring_actors as ua
scan = ua.scan(sys.argv[1], patterns=sys.argv[3:], engine="threads")
first = next(iter(scan))
print(time.monotonic() - float(sys.argv[2]), time.process_time(), first.num_rows)
scan.close()
"""


def measure(setting: Setting) -> None:
    """The clock (CLOCK_MONOTONIC) is read before the process is started, and in it when rows are there."""
    patterns = patterns_of("hard")
    seconds, cpu = [], []
    for number in range(setting.rounds + 1):
        command = [sys.executable, "-c", _PROGRAM, str(setting.text), str(time.monotonic()), *patterns]
        wall, used, _ = peers.run(command).output.split()
        if number:  # the first fills the cache of compiled loops
            seconds.append(float(wall))
            cpu.append(float(used))
    note = f"CPU seconds until then, all threads: {statistics.median(cpu):.2f}"
    setting.report.verdicts.append(
        Verdict("start", "s from process start to first rows", tuple(seconds), BAR, at_least=False, notes=(note,))
    )

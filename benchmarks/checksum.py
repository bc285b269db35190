"""(f) CRC32C against TOUCH, page cache, same lanes and settings: what the sum costs beyond reading every byte.

Its notes say, as information, how fast the histogram is beside TOUCH, and CRC32C beside one thread of the crc32c
package over the mapped file. Both sides of a ratio run in one process, round by round.
"""

from __future__ import annotations

import json
import statistics
import sys

from benchmarks.model import Missing, Reading, Setting, compare
from benchmarks.peers import run, shown
from benchmarks.scanner import Scanner

BAR = 0.9


def measure(setting: Setting) -> None:
    readings: dict[str, list[Reading]] = {"touch": [], "checksum": [], "histogram": []}
    with Scanner() as scanner:
        for operation in readings:  # once before it counts: that loads the compiled loops
            scanner.scan(setting.text, operation=operation, engine="threads")
        for _ in range(setting.rounds):
            for operation, list_ in readings.items():
                list_.append(scanner.scan(setting.text, operation=operation, engine="threads"))
    touch = readings["touch"]
    notes = [f"histogram: {_ratio(readings['histogram'], touch)} of TOUCH"]
    command = [sys.executable, "-m", "benchmarks.checksum", str(setting.text)]
    try:
        theirs = [Reading(**json.loads(run(command).output)) for _ in range(setting.rounds)]
        notes.append(f"{_ratio(readings['checksum'], theirs)} of the crc32c package, one thread over the mapped file")
        setting.report.commands["crc32c"] = shown(command, text=setting.text)
    except Missing as reason:
        setting.report.left_out.append(f"the crc32c package: {reason}")
    verdict = compare("CRC32C / TOUCH", readings["checksum"], touch, BAR, peer="TOUCH", notes=tuple(notes))
    setting.report.verdicts.append(verdict)


def _ratio(ours: list[Reading], theirs: list[Reading]) -> str:
    return f"{statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True)):.2f}"


def _peer(path: str) -> None:
    """The crc32c package over the file as mapped, one thread; prints a reading."""
    import mmap
    import resource
    import time

    from crc32c import crc32c

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        crc32c(text)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        size = len(text)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"bytes": size, "seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    _peer(sys.argv[1])

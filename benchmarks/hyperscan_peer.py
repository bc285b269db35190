"""Hyperscan alone, over a file's bytes in memory, with all cores.

    python -m benchmarks.hyperscan_peer FILE PATTERNS (a list, or a rule file)

The file is mapped and all its pages are entered beforehand, so nothing is read or copied. One thread and one scratch
a core; each takes the next block of 1 MiB; a match costs one call of an empty function. Matches that cross a block's
end are missed: this is the engine's speed, not a search. Prints one JSON line.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import resource
import sys
import threading
import time
import tomllib
from pathlib import Path

import hyperscan

_BLOCK = 1 << 20


def _nothing(index: int, start: int, end: int, flags: int, context: object) -> None:
    pass


def _texts(patterns: Path) -> list[str]:
    """One a line, or the expressions of a rule file in gitleaks' format."""
    if patterns.suffix == ".toml":
        return [rule["regex"] for rule in tomllib.loads(patterns.read_text())["rules"] if "regex" in rule]
    return patterns.read_text().splitlines()


def main(path: str, patterns: str) -> None:
    began = time.perf_counter()
    expressions = [text.encode() for text in _texts(Path(patterns))]
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=expressions, ids=list(range(len(expressions))), elements=len(expressions))
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    text = memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ))
    blocks = [text[at : at + _BLOCK] for at in range(0, size, _BLOCK)]
    number = itertools.count()
    scratches = [hyperscan.Scratch(database) for _ in os.sched_getaffinity(0)]

    def work(scratch: hyperscan.Scratch) -> None:
        while (i := next(number)) < len(blocks):
            database.scan(blocks[i], match_event_handler=_nothing, scratch=scratch)

    threads = [threading.Thread(target=work, args=(scratch,)) for scratch in scratches]
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"bytes": size, "seconds": seconds, "cpu": cpu, "startup": start - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

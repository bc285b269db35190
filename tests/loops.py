"""Compile the loops that most tests call: ``python -m tests.loops``, once, before the tests' processes start.

Where they have never run it takes half a minute, and each of the processes would spend that by itself.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import uring_actors as ua
from tests.large_files import EXTENT, PATTERNS, make_large
from tests.small_scan import SMALL
from uring_actors.results.writers import open_writer

SCANS: tuple[dict[str, Any], ...] = (
    {"patterns": [*PATTERNS, ua.Regex("BEGIN.*?END")], "io_engine": "auto"},
    {"patterns": PATTERNS, "io_engine": "pread", "io": "direct"},
    {"patterns": PATTERNS, "io_engine": "liburing"},
    {"patterns": PATTERNS, "report": "count", "lease_bytes": EXTENT},
    *({"operation": name} for name in ("checksum", "histogram", "touch", "nop")),
)


def main() -> None:
    warnings.simplefilter("ignore", RuntimeWarning)  # without io_uring it is pread's that tests call
    with tempfile.TemporaryDirectory(prefix="uring_actors-loops-") as name:
        make_large(Path(name) / "large")
        for number in range(20):
            (Path(name) / str(number)).write_bytes(b"a needle\n" * number)
        for what in SCANS:
            scan = ua.scan(name, **{**SMALL, **what})
            writer = open_writer("jsonl", io.BytesIO(), schema=scan.schema)
            for batch in scan:
                writer.write(batch)


if __name__ == "__main__":
    main()

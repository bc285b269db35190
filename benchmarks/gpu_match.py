"""Files in the page cache → io_uring → the GPU's MATCH, whole scans with rows, beside the CPU kernel on all cores.

    python -m benchmarks.gpu_match [--gib N] [--directory DIR] [--engine threads|ray]

Text is made of this installation's Python sources. For each list of patterns: this project with ``backend="cuda"``
and with ``backend="cpu"``, the same settings, alternating; and Hyperscan over the same bytes in memory, all cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import uring_actors as ua
from benchmarks import peers
from benchmarks.data import LISTS, PATTERNS, make_text, patterns_of
from benchmarks.model import Missing
from uring_actors.megakernel import cuda


def scan_gb_per_s(directory: Path, patterns: list[str], **options: object) -> tuple[float, int]:
    """A whole scan, its end included and its start-up excluded; and how many rows."""
    scan = ua.scan(directory, patterns=patterns, io="buffered", sqpoll="off", **options)
    began = time.perf_counter()
    rows = sum(batch.num_rows for batch in scan)
    seconds = time.perf_counter() - began
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    return scan.stats.bytes / seconds / 1e9, rows


def hyperscan_gb_per_s(path: Path, name: str) -> float:
    reading = peers.hyperscan(peers.hyperscan_command(path, PATTERNS / f"patterns-{name}.txt"))
    return reading.bytes / reading.seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--links", type=int, default=16)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--engine", default="threads")
    parser.add_argument("--lanes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(reason)
    common = {"engine": options.engine, "lanes": options.lanes, "slot_bytes": 4 << 20, "slots": 4}
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        text = directory / "text"
        make_text(text, options.gib << 30)
        for k in range(1, options.links):
            os.link(text, directory / f"text.{k}")
        for which in LISTS:
            patterns = patterns_of(which)
            rates: dict[str, list[float]] = {"cuda": [], "cpu": []}
            rows = set()
            for _ in range(options.rounds):
                for backend, taken in rates.items():
                    rate, count = scan_gb_per_s(directory, patterns, backend=backend, **common)
                    taken.append(rate)
                    rows.add(count)
            for backend, taken in rates.items():
                shown = ", ".join(f"{rate:.1f}" for rate in taken)
                print(f"{which}, {backend} ({options.engine}): median {statistics.median(taken):.1f} of {shown} GB/s")
            print(f"{which}: rows {rows}" + ("" if len(rows) == 1 else "  ROWS DIFFER"))
            try:
                peer = [hyperscan_gb_per_s(text, which) for _ in range(options.rounds)]
                print(
                    f"{which}, Hyperscan in memory, all cores: " + ", ".join(f"{rate:.1f}" for rate in peer) + " GB/s"
                )
            except Missing as error:
                print(f"{which}, Hyperscan: {error}")


if __name__ == "__main__":
    main()

"""Files in the page cache → io_uring → the GPU's TOUCH: whole scans against KvikIO's compat mode.

    python -m benchmarks.gpu_scan [--sweep] [--engines threads,ray] [--gib N] [--links N] [--rounds N] [--directory D]

KvikIO reads the same files into GPU memory without looking at them; this project scans every byte where it landed.
First both are swept (KvikIO's threads; our lanes, slot sizes and depths; without ``--sweep`` a few that are known to
be good), then the best of each take turns. Medians, and both are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import uring_actors as ua
from uring_actors.megakernel import cuda


def make_files(directory: Path, gib: int, links: int) -> list[Path]:
    """One-GiB files, in the page cache when this returns, each under ``links`` names: a scan must be long beside its
    start and end, and memory is not endless."""
    block = np.random.default_rng(3).integers(0, 256, 64 << 20, np.uint8).tobytes()
    paths = []
    for i in range(gib):
        path = directory / f"{i}.bin"
        with path.open("wb") as file:
            for _ in range(16):
                file.write(block)
        paths.append(path)
        for k in range(1, links):
            paths.append(directory / f"{i}.{k}.bin")
            os.link(path, paths[-1])
    return paths


class _FirstByte(threading.Thread):
    """When a scan's first bytes were done. Actors load their compiled loops after ``scan`` has returned."""

    def __init__(self, scan: Any) -> None:
        super().__init__(daemon=True)
        self.at: float | None = None
        self._scan = scan

    def run(self) -> None:
        while not self._scan.stats.bytes:
            time.sleep(0.002)
        self.at = time.perf_counter()


def scan_gb_per_s(directory: Path, **options: object) -> tuple[float, int]:
    """A whole scan, from its first bytes to the end of its last row; and the sum of all bytes."""
    scan = ua.scan(directory, operation="touch", backend="cuda", io="buffered", **options)
    first = _FirstByte(scan)
    first.start()
    table = scan.to_table()
    ended = time.perf_counter()
    first.join()
    assert first.at is not None
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    return sum(table["bytes"].to_pylist()) / (ended - first.at) / 1e9, sum(table["sum"].to_pylist())


def kvikio_gb_per_s(paths: list[Path], threads: int) -> float | None:
    """KvikIO, compat mode, 4 MiB tasks: the files read into GPU memory, nothing scanned."""
    try:
        import kvikio
        import kvikio.defaults
    except ImportError:
        return None
    kvikio.defaults.set({"compat_mode": kvikio.CompatMode.ON, "num_threads": threads, "task_size": 4 << 20})
    buffer = cuda.cupy.empty(paths[0].stat().st_size, cuda.cupy.uint8)
    began = time.perf_counter()
    total = 0
    for path in paths:
        with kvikio.CuFile(path, "r") as file:
            total += file.pread(buffer).get()
    return total / (time.perf_counter() - began) / 1e9


@dataclass(frozen=True, slots=True)
class Shape:
    """What is swept: the arena, and who fills it."""

    lanes: int
    slots: int
    slot_kib: int

    def __str__(self) -> str:
        return f"{self.lanes} lanes of {self.slots} slots of {self.slot_kib} KiB"

    @property
    def options(self) -> dict[str, object]:
        return {"lanes": self.lanes, "slots": self.slots, "slot_bytes": self.slot_kib << 10, "sqpoll": "off"}


def shapes(cores: int, *, sweep: bool) -> list[Shape]:
    """From arenas that fit a core's cache to those that fit none."""
    if not sweep:
        return [Shape(cores * 3 // 4, 4, 512), Shape(cores * 3 // 4, 4, 1024), Shape(cores * 3 // 4, 4, 4096)]
    kinds = [(2, 256), (4, 256), (8, 256), (2, 512), (4, 512), (2, 1024), (4, 1024), (16, 1024), (4, 4096)]
    return [Shape(lanes, *kind) for lanes in (cores // 2, cores * 3 // 4, cores - 1) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=4)
    parser.add_argument("--links", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--engines", default="threads")
    options = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(reason)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        paths = make_files(directory, options.gib, options.links)
        sums = {scan_gb_per_s(directory, engine="threads", lanes=4)[1]}
        threads = max((cores // 2, cores), key=lambda count: kvikio_gb_per_s(paths, count) or 0)
        rates: dict[Shape, float] = {}
        for shape in shapes(cores, sweep=options.sweep):
            rates[shape], total = scan_gb_per_s(directory, engine="threads", **shape.options)
            sums.add(total)
            print(f"scan (threads), {shape}: {rates[shape]:.1f} GB/s", flush=True)
        best = max(rates, key=lambda shape: rates[shape])
        for engine in options.engines.split(","):
            ours, theirs = [], []
            for _ in range(options.rounds):
                rate, total = scan_gb_per_s(directory, engine=engine, **best.options)
                sums.add(total)
                ours.append(rate)
                peer = kvikio_gb_per_s(paths, threads)
                if peer is not None:
                    theirs.append(peer)
            print(f"scan ({engine}), {best}: " + ", ".join(f"{rate:.1f}" for rate in ours) + " GB/s")
            if theirs:
                print(f"KvikIO, {threads} threads: " + ", ".join(f"{rate:.1f}" for rate in theirs) + " GB/s")
                ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                print(f"{engine} / KvikIO: {ratio:.2f} in the median", flush=True)
            else:
                print("KvikIO is not installed")
        print("sums agree" if len(sums) == 1 else f"SUMS DIFFER: {sums}")


if __name__ == "__main__":
    main()

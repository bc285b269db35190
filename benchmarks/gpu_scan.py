"""Files in the page cache → io_uring → the GPU's TOUCH: whole scans, lanes and slot sizes swept.

    python -m benchmarks.gpu_scan [--gib N] [--directory DIR] [--engine threads|ray]

Beside each other, in one run: KvikIO's compat mode reading the same files into GPU memory without looking at them
(where it is installed), and this project scanning every byte where it landed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

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


def scan_gb_per_s(directory: Path, **options: object) -> tuple[float, int]:
    """A whole scan, its end included and its start-up excluded; and the sum of all bytes."""
    scan = ua.scan(directory, operation="touch", backend="cuda", io="buffered", **options)
    began = time.perf_counter()
    table = scan.to_table()
    seconds = time.perf_counter() - began
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    return sum(table["bytes"].to_pylist()) / seconds / 1e9, sum(table["sum"].to_pylist())


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=8)
    parser.add_argument("--links", type=int, default=6)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--engine", default="threads")
    options = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(reason)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        paths = make_files(directory, options.gib, options.links)
        right = {scan_gb_per_s(directory, engine=options.engine, lanes=1)[1]}
        for threads in (1, cores // 2, cores):
            rates = [kvikio_gb_per_s(paths, threads) for _ in range(3)]
            if rates[0] is None:
                print("KvikIO is not installed")
                break
            print(f"KvikIO, compat mode, {threads} threads: " + ", ".join(f"{rate:.1f}" for rate in rates) + " GB/s")
        for slot_bytes in (256 << 10, 1 << 20, 4 << 20):
            for lanes in (1, 4, 8, 12):
                slots = max(4, (16 << 20) // slot_bytes)
                runs = [
                    scan_gb_per_s(
                        directory,
                        engine=options.engine,
                        lanes=lanes,
                        slot_bytes=slot_bytes,
                        slots=slots,
                        sqpoll="off",
                    )
                    for _ in range(2)
                ]
                right |= {total for _, total in runs}
                print(
                    f"scan ({options.engine}), {lanes} lanes, {slots} slots of {slot_bytes >> 10} KiB each: "
                    + ", ".join(f"{rate:.1f}" for rate, _ in runs)
                    + " GB/s"
                )
        print("sums agree" if len(right) == 1 else f"SUMS DIFFER: {right}")


if __name__ == "__main__":
    main()

"""The stream's GIL-free path against fio with the same options, and its ways to read against each other.

    python -m benchmarks.stream [--file FILE | --directory DIR] [--seconds 1] [--rounds 5] [--direct] [--record FILE]

In every round each line is measured once, in turn, so that all of them meet the same machine. Given are medians, with
the smallest and largest. fio runs io_uring with registered buffers and files, gtod_reduce, and the better of single
and batched (32) submission. FILE is read once beforehand, so that it is cached; with --direct both use O_DIRECT.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uring_actors.uring.buffer import GpuMappedBuffer
from uring_actors.uring.ring import IoUringState
from uring_actors.uring.stream import AsyncUringStream
from uring_actors.uring.tail import AtomicTail

FILE_BYTES = 512 << 20


@dataclass
class Line:
    """One line of the table. ``measure`` gives reads a second."""

    name: str
    block: int
    depth: int
    measure: Callable[[float], float]
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def text(self, best: float) -> str:
        rate = self.median
        spread = f"{min(self.rates) / 1e3:.1f}–{max(self.rates) / 1e3:.1f}"
        gigabytes = rate * self.block / 1e9
        latency = f"{1e6 / rate:.2f}" if self.depth == 1 else ""
        return f"| {self.name} | {rate / 1e3:.1f} | {spread} | {gigabytes:.2f} | {rate / best:.2f} | {latency} |"


class Ours:
    """Reads a file through ``read_extents``, in order and round again."""

    def __init__(
        self, path: str, block: int, depth: int, way: str, registered_file: bool, sqpoll: bool, direct: bool
    ) -> None:
        self._block, self._depth, self._way = block, depth, way
        self._fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        ring = IoUringState(max(depth, 2), sqpoll=sqpoll)
        self._stream = AsyncUringStream(ring, GpuMappedBuffer.anonymous(block * depth), AtomicTail())
        if way == "registered":
            ring.register_buffers([self._stream.buffer])
        if registered_file:
            ring.register_files([self._fd])
        self._registered = registered_file
        blocks = os.fstat(self._fd).st_size // block
        numbers = np.arange(min(blocks, max(1, (1 << 30) // block)))
        self._offsets, self._targets = numbers * block, numbers % depth * block

    def __call__(self, seconds: float) -> float:
        done, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            read, errors = self._stream.read_extents(
                0 if self._registered else self._fd,
                self._offsets,
                self._block,
                self._targets,
                path=self._way,
                registered_files=self._registered,
                depth=self._depth,
            )
            assert not errors.any()
            assert (read == self._block).all()
            done += len(read)
        return done / passed

    def close(self) -> None:
        self._stream.ring_state.close()
        os.close(self._fd)


def fio(path: str, block: int, depth: int, *, sqpoll: bool, direct: bool, batch: bool) -> Callable[[float], float]:
    """A measurement of fio's."""
    command = ["fio", "--name=r", f"--filename={path}", "--rw=read", f"--bs={block}", f"--iodepth={depth}"]
    command += ["--ioengine=io_uring", "--fixedbufs", "--registerfiles", "--invalidate=0", "--gtod_reduce=1"]
    command += ["--time_based", f"--direct={int(direct)}", "--output-format=json"]
    if batch:
        size = min(32, depth)
        command += [f"--iodepth_batch_submit={size}", "--iodepth_batch_complete_min=1"]
        command += [f"--iodepth_batch_complete_max={size}"]
    if sqpoll:
        command += ["--sqthread_poll"]

    def measure(seconds: float) -> float:
        done = subprocess.run(
            [*command, f"--runtime={seconds:g}"], capture_output=True, text=True, check=True, timeout=seconds + 60
        )
        read = json.loads(done.stdout)["jobs"][0]["read"]
        return float(read["total_ios"] / (read["runtime"] / 1e3))

    return measure


def lines_of(path: str, block: int, depth: int, direct: bool) -> tuple[list[Line], list[Ours]]:
    """The lines for one block size and depth, fio's first."""
    ways = [
        ("READ_FIXED, registered file", "registered", True, False),
        ("READ_FIXED, plain file", "registered", False, False),
        ("READ, registered file", "plain", True, False),
        ("READ, plain file", "plain", False, False),
        ("READV, registered file", "iovec", True, False),
        ("READV, plain file", "iovec", False, False),
        ("READ_FIXED, registered file, SQPOLL", "registered", True, True),
    ]
    lines = [
        Line("fio", block, depth, fio(path, block, depth, sqpoll=False, direct=direct, batch=False)),
    ]
    if depth > 1:
        lines.append(
            Line("fio, batches", block, depth, fio(path, block, depth, sqpoll=False, direct=direct, batch=True))
        )
    lines.append(Line("fio, SQPOLL", block, depth, fio(path, block, depth, sqpoll=True, direct=direct, batch=False)))
    ours = []
    for name, way, registered, sqpoll in ways:
        ours.append(Ours(path, block, depth, way, registered, sqpoll, direct))
        lines.append(Line(name, block, depth, ours[-1]))
    return lines, ours


def measure(path: str, block: int, depth: int, options: argparse.Namespace) -> list[str]:
    """The table for one block size and depth."""
    lines, ours = lines_of(path, block, depth, options.direct)
    for one in ours:
        one(0.05)
    for _ in range(options.rounds):
        for line in lines:
            line.rates.append(line.measure(options.seconds))
    for one in ours:
        one.close()
    best = max(line.median for line in lines if line.name in ("fio", "fio, batches"))
    size = f"{block >> 20} MiB" if block >> 20 else f"{block >> 10} KiB"
    kind = "O_DIRECT" if options.direct else "page cache"
    return [
        f"## {size}, depth {depth}, {kind}",
        "",
        "| way | k reads/s | smallest–largest | GB/s | to fio's better | µs a read |",
        "| --- | --- | --- | --- | --- | --- |",
        *[line.text(best) for line in lines],
        "",
    ]


def machine() -> str:
    """One line on what it ran on."""
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    version = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{datetime.date.today()}; {cores} cores of {cpu}; Linux {platform.release()}; {version}; "
        f"Python {platform.python_version()}; load {load:.1f} at the beginning"
    )


def prepare(path: str) -> None:
    """Fill the file where it is new, and have it cached."""
    if os.path.getsize(path) < FILE_BYTES:
        with open(path, "wb") as file:
            block = np.random.default_rng(0).bytes(1 << 20)
            for _ in range(FILE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="an existing file, of 512 MiB or more")
    parser.add_argument("--directory", help="where to make one (default: the temporary directory)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--direct", action="store_true", help="O_DIRECT")
    parser.add_argument("--record", help="write the tables here too")
    options = parser.parse_args()
    report = ["# The stream against fio, and its ways to read", "", machine(), ""]
    with tempfile.NamedTemporaryFile(dir=options.directory) as made:
        path = options.file or made.name
        prepare(path)
        for block, depth in [(4096, 64), (1 << 20, 16), (4096, 1)]:
            table = measure(path, block, depth, options)
            print("\n".join(table), flush=True)
            report += table
    if options.record:
        Path(options.record).write_text("\n".join(report))


if __name__ == "__main__":
    main()

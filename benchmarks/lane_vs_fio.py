"""One io_uring lane with a consumer that hands every data slot back at once, against fio on the same file.

    python benchmarks/lane_vs_fio.py FILE [--block 1M] [--slots 16] [--direct] [--sqpoll] [--rounds 3]

Prints GB/s of both, in turns, and the ratio of the medians. FILE should be larger than 1 GB; without --direct it is
read once beforehand, so that all of it is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import threading
import time

import numba

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.atomics import load_acquire, pause
from uring_actors.arena.memory import Arena
from uring_actors.uring.lane import UringLane
from uring_actors.uring.pread import PreadLane
from uring_actors.uring.work import Geometry, Job


@numba.njit(nogil=True)  # type: ignore[misc]
def give_all_back(completions: int, credits_: int, mask: int, lane_bell: int, publisher_bell: int, total: int) -> int:
    """Return every slot as soon as it is announced; how many records failed."""
    failed = seen = 0
    while seen < total:
        record = channel.peek(completions, mask)
        if record == 0:
            for _ in range(200):
                pause()
            key = bell.prepare(publisher_bell)
            if channel.pending(completions) > 0:
                bell.cancel(publisher_bell)
            else:
                bell.sleep(publisher_bell, key, 100_000_000)
            continue
        while record != 0:
            failed += load_acquire(record + abi.RECORD_STATUS) != 0
            channel.push(credits_, mask, load_acquire(record), 0, 0, 0, 0, 0, 0)
            channel.pop(completions)
            seen += 1
            record = channel.peek(completions, mask)
        bell.ring(lane_bell, 1)
    return failed


def run_lane(path: str, size: int, options: argparse.Namespace) -> float:
    arena = Arena.create(ArenaLayout(1, options.slots, options.block, 4096))
    geometry = Geometry(options.block, 0, 0)
    lane = PreadLane(arena, 0, geometry) if options.pread else UringLane(arena, 0, geometry, sqpoll=options.sqpoll)
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if options.direct else 0))
    layout, at = arena.layout, arena.at
    arguments = (
        at(layout.completions(0)),
        at(layout.credits(0)),
        layout.channel_records - 1,
        at(layout.lane_bell(0)),
        at(layout.state + abi.BELL_PUBLISHER),
    )
    give_all_back(*arguments, 0)
    extents, failed = geometry.extents(size), []
    consumer = threading.Thread(target=lambda: failed.append(give_all_back(*arguments, extents)))
    lane.start()
    consumer.start()
    time.sleep(0.2)
    began = time.perf_counter()
    lane.offer([Job(0, 0, fd, size, 0, extents, options.direct)])
    consumer.join()
    seconds = time.perf_counter() - began
    assert lane.failure is None, lane.failure
    assert failed == [0]
    lane.close()
    arena.close()
    os.close(fd)
    return size / seconds / 1e9


def run_fio(path: str, size: int, options: argparse.Namespace) -> float:
    command = ["fio", "--name=r", f"--filename={path}", "--rw=read", f"--bs={options.block}", f"--size={size}"]
    command += ["--ioengine=io_uring", f"--iodepth={options.slots}", "--fixedbufs", "--registerfiles"]
    command += ["--invalidate=0", f"--direct={int(options.direct)}", "--output-format=json"]
    if options.sqpoll:
        command += ["--sqthread_poll"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)["jobs"][0]["read"]
    return float(read["io_bytes"] / (read["runtime"] / 1e3) / 1e9)


def size_of(text: str) -> int:
    """Bytes of 4k, 1M, 512."""
    return int(text.rstrip("kM")) << {"k": 10, "M": 20}.get(text[-1], 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--block", type=size_of, default="1M")
    parser.add_argument("--slots", type=int, default=16)
    for flag in ("--direct", "--sqpoll", "--pread"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = os.path.getsize(options.file) // options.block * options.block
    if not options.direct:
        subprocess.run(["cat", options.file], stdout=subprocess.DEVNULL, check=True)
    run_lane(options.file, size, options)
    rounds = [
        (run_lane(options.file, size, options), run_fio(options.file, size, options)) for _ in range(options.rounds)
    ]
    lane, fio = (statistics.median(column) for column in zip(*rounds, strict=True))
    each = " ".join(f"{ours:.2f}/{theirs:.2f}" for ours, theirs in rounds)
    print(f"GB/s, lane/fio: {each}; medians {lane:.2f}/{fio:.2f} = {lane / fio:.2f}")


if __name__ == "__main__":
    main()

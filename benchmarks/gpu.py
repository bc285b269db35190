"""The CUDA megakernel alone, on slots that are in memory already: hand-over time and bandwidth.

    python -m benchmarks.gpu [--slots N] [--slot-size BYTES]

Prints, from one run: cudaMemcpyAsync of the same registered memory, TOUCH over slots read in place (slot sizes and
grids swept) as a share of it, and the time from publishing one 4 KiB slot to seeing it DONE, at the full grid.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import bench, cuda


@contextmanager
def kernel(arena: Arena, blocks: int | None = None) -> Iterator[cuda.CudaKernel]:
    running = cuda.CudaKernel(arena, blocks=blocks)
    running.start()
    try:
        yield running
        if running.failure is not None:
            raise running.failure
    finally:
        running.close()
        arena.words(arena.layout.control, 1)[abi.CONTROL_SHUTDOWN_WORD] = 0  # for the next one


def fill(arena: Arena) -> None:
    rng = np.random.default_rng(1)
    block = rng.integers(0, 256, 16 << 20, np.uint8)
    data = np.frombuffer(arena.view, np.uint8, offset=arena.layout.data)
    for start in range(0, len(data), len(block)):
        piece = data[start : start + len(block)]
        piece[:] = block[: len(piece)]


def memcpy_gb_per_s(arena: Arena, rounds: int = 7) -> float:
    """One large cudaMemcpyAsync, host to device, of the arena's data slots."""
    cupy: Any = cuda.cupy
    layout = arena.layout
    size = layout.slots * layout.slot_bytes
    cupy.cuda.runtime.hostRegister(arena.address, layout.total, 3)
    target = cupy.empty(size, cupy.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    rates = []
    for _ in range(rounds):
        begin.record(stream)
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, arena.at(layout.data), size, 1, stream.ptr)
        end.record(stream)
        end.synchronize()
        rates.append(size / cupy.cuda.get_elapsed_time(begin, end) / 1e6)
    del target
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.cuda.runtime.hostUnregister(arena.address)
    return statistics.median(rates)


def touch_gb_per_s(arena: Arena, payload: int, blocks: int | None, seconds: float = 1.5) -> tuple[float, bool]:
    """TOUCH over all data slots again and again; the rate, and whether every sum was right."""
    book = arena.address_book()
    per_slot = arena.layout.slot_bytes // payload
    with kernel(arena, blocks):
        bench.pump(book, payload, per_slot, arena.layout.slots * per_slot)  # warm
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            count += bench.pump(book, payload, per_slot, arena.layout.slots * per_slot)
    # The pieces of a data slot share its result block: any of them may have been the last.
    pieces = np.frombuffer(arena.view, np.uint8, per_slot * payload, arena.layout.slot(0)).reshape(per_slot, payload)
    value = int(arena.words(arena.layout.result(0) + abi.RESULT_VALUES, 2).view(np.uint64)[0])
    return count * payload / passed / 1e9, value in pieces.sum(axis=1, dtype=np.int64)


def hand_over_us(arena: Arena, blocks: int | None, rounds: int = 20000) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Microseconds from publishing one 4 KiB TOUCH slot to seeing it DONE, one at a time."""
    book = arena.address_book()
    took = np.zeros(rounds, np.int64)
    with kernel(arena, blocks):
        bench.ping(book, 4096, took[:1000])
        bench.ping(book, 4096, took)
    return took / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--slot-size", type=int, default=1 << 20)
    options = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(reason)
    properties = cuda.cupy.cuda.runtime.getDeviceProperties(0)
    print(
        properties["name"].decode(),
        "multiprocessors",
        properties["multiProcessorCount"],
        "CuPy",
        cuda.cupy.__version__,
    )
    arena = Arena.create(ArenaLayout(1, options.slots, options.slot_size, 4096))
    fill(arena)
    for blocks in (17, 33, 67, None):
        took = hand_over_us(arena, blocks)
        p50, p99 = np.percentile(took, [50, 99])
        print(f"hand-over 4 KiB, {blocks or 'all'} blocks: best {took.min():.1f} p50 {p50:.1f} p99 {p99:.1f} us")
    for size in (64 << 10, 256 << 10, options.slot_size):
        for blocks in (9, 17, 33, None):
            copy = memcpy_gb_per_s(arena)
            rate, right = touch_gb_per_s(arena, size, blocks)
            print(
                f"TOUCH {size >> 10} KiB, {blocks or 'all'} blocks: {rate:.1f} GB/s, cudaMemcpyAsync {copy:.1f}, "
                f"ratio {rate / copy:.3f}, sums {'right' if right else 'WRONG'}"
            )
    arena.close()


if __name__ == "__main__":
    main()

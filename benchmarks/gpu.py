"""The CUDA megakernel alone, on slots that are in memory already: hand-over time and bandwidth.

    python -m benchmarks.gpu [--slots N] [--slot-size BYTES] [--only hand-over|touch|operations] [--plot FILE]

Prints, from one run: the time from publishing one 4 KiB slot to seeing it DONE, and what an idle kernel's polling
takes from a copy; TOUCH over slots read in place (slot sizes and grids swept); every operation. Rates are medians,
beside cudaMemcpyAsync of the same registered memory, measured in alternation.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.data import LISTS, patterns_of
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import bench, cuda
from uring_actors.megakernel.crc32c import crc32c
from uring_actors.ops.match.automaton import Automata, build, search
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.parts import device_plans
from uring_actors.ops.match.pattern import Literal, Regex

RULES = Path(__file__).parent.parent / "tests" / "data" / "gitleaks.toml"


@contextmanager
def started(arena: Arena, running: cuda.CudaKernel) -> Iterator[cuda.CudaKernel]:
    running.start()
    try:
        yield running
        if running.failure is not None:
            raise running.failure
    finally:
        running.close()
        arena.words(arena.layout.control, 1)[abi.CONTROL_SHUTDOWN_WORD] = 0  # for the next one


def fill(arena: Arena, kind: str) -> None:
    """``words``: lines of random lower-case words, where hardly anything is a candidate; ``source``: this
    installation's Python sources."""
    data = np.frombuffer(arena.view, np.uint8, offset=arena.layout.data)
    if kind == "source":
        paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
        block = np.frombuffer(b"".join(path.read_bytes() for path in paths)[: 64 << 20], np.uint8)
    else:
        rng = np.random.default_rng(1)
        block = rng.integers(0x61, 0x7B, 16 << 20, np.uint8)
        block[rng.random(len(block)) < 0.16] = 0x20
        block[rng.random(len(block)) < 0.02] = 0x0A
    for start in range(0, len(data), len(block)):
        piece = data[start : start + len(block)]
        piece[:] = block[: len(piece)]


def pattern_sets() -> dict[str, Automata]:
    """1, 10, 100 and 1,000 literals of 8 to 16 letters; the benchmark's lists; the rule file's rules."""
    rng = np.random.default_rng(7)
    literals = [Literal(bytes(rng.integers(0x61, 0x7B, rng.integers(8, 17), np.uint8)).decode()) for _ in range(1000)]
    lists: dict[str, list[Literal | Regex]] = {f"{n} literals": list(literals[:n]) for n in (1, 10, 100, 1000)}
    lists |= {name: [Regex(pattern) for pattern in patterns_of(name)] for name in LISTS}
    if RULES.exists():
        rules = tomllib.loads(RULES.read_text())["rules"]
        lists["gitleaks' rules"] = [Regex(rule["regex"]) for rule in rules if "regex" in rule]
    return {name: build(device_plans(compile_patterns(patterns))[1]) for name, patterns in lists.items()}


def memcpy_gb_per_s(arena: Arena, rounds: int = 5) -> float:
    """One large cudaMemcpyAsync, host to device, of the arena's data slots, which are registered."""
    cupy: Any = cuda.cupy
    size = arena.layout.slots * arena.layout.slot_bytes
    target = cupy.empty(size, cupy.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    rates = []
    for _ in range(rounds):
        begin.record(stream)
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, arena.at(arena.layout.data), size, 1, stream.ptr)
        end.record(stream)
        end.synchronize()
        rates.append(size / cupy.cuda.get_elapsed_time(begin, end) / 1e6)
    del target
    return statistics.median(rates)


def copy_gb_per_s(arena: Arena) -> float:
    """``memcpy_gb_per_s`` with nothing else on the GPU."""
    runtime = cuda.cupy.cuda.runtime
    runtime.hostRegister(arena.address, arena.layout.total, 3)
    try:
        return memcpy_gb_per_s(arena)
    finally:
        cuda.cupy.get_default_memory_pool().free_all_blocks()
        runtime.hostUnregister(arena.address)


def beside_idle_kernel_gb_per_s(arena: Arena) -> float:
    """``memcpy_gb_per_s`` beside a kernel that polls an empty ring."""
    # The copy's target is allocated before the kernel starts, and goes to the pool.
    cuda.cupy.empty(arena.layout.slots * arena.layout.slot_bytes, cuda.cupy.uint8)
    with started(arena, cuda.CudaKernel(arena)):
        rate = memcpy_gb_per_s(arena)
    cuda.cupy.get_default_memory_pool().free_all_blocks()
    return rate


def scan_gb_per_s(
    arena: Arena,
    opcode: int,
    payload: int,
    blocks: int | None = None,
    automata: Automata | None = None,
    seconds: float = 1.0,
) -> float:
    """The operation over all data slots again and again."""
    book = arena.address_book()
    per_slot = arena.layout.slot_bytes // payload
    running = cuda.CudaKernel(arena, blocks=blocks)
    if automata is not None:
        running.load(automata)
    with started(arena, running):
        bench.pump(book, opcode, payload, per_slot, arena.layout.slots * per_slot)  # warm
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            count += bench.pump(book, opcode, payload, per_slot, arena.layout.slots * per_slot)
    return count * payload / passed / 1e9


def right(arena: Arena, opcode: int, payload: int, automata: Automata | None) -> bool:
    """Whether the first data slot's result block is what the CPU makes of it (whole slots only)."""
    text = np.frombuffer(arena.view, np.uint8, payload, arena.layout.slot(0))
    block = arena.words(arena.layout.result(0), arena.layout.result_bytes // 4)
    values = block[abi.RESULT_VALUES // 4 :].view(np.uint64)
    if opcode == abi.OP_SCAN_TOUCH:
        return int(values[0]) == int(text.sum(dtype=np.int64))
    if opcode == abi.OP_SCAN_HISTOGRAM:
        return bool((values[:256] == np.bincount(text, minlength=256)).all())
    if opcode == abi.OP_SCAN_CRC32C:
        return int(values[0]) == crc32c(text.ctypes.data, payload)
    assert automata is not None
    wanted = sorted(map(tuple, search(automata, text).tolist()))
    hits = block[abi.RESULT_HITS // 4 :][: 4 * arena.layout.hit_capacity].reshape(-1, 4)[: len(wanted)]
    kept = min(len(wanted), arena.layout.hit_capacity)
    found = {(int(pattern), int(end)) for pattern, _, end, _ in hits[:kept]}
    counts = np.add.reduceat(text == 10, np.arange(0, payload, abi.NEWLINE_CHUNK), dtype=np.int64).cumsum()
    index = arena.words(arena.layout.newline_index(0), len(counts))
    return (
        int(block[0]) == len(wanted)
        and found <= set(wanted)
        and int(block[2]) == counts[-1]
        and bool((index[1:] == counts[:-1]).all())
    )


def hand_over_us(arena: Arena, blocks: int | None, rounds: int = 20000) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Microseconds from publishing one 4 KiB TOUCH slot to seeing it DONE, one at a time."""
    book = arena.address_book()
    took = np.zeros(rounds, np.int64)
    with started(arena, cuda.CudaKernel(arena, blocks=blocks)):
        bench.ping(book, abi.OP_SCAN_TOUCH, 4096, took[:1000])
        bench.ping(book, abi.OP_SCAN_TOUCH, 4096, took)
    return took / 1e3


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement: medians in GB/s, and whether results were right (None: not looked at)."""

    what: str
    rate: float
    copy: float
    right: bool | None = None

    @property
    def ratio(self) -> float:
        return self.rate / self.copy

    def __str__(self) -> str:
        verdict = {None: "", True: ", right", False: ", WRONG"}[self.right]
        return f"{self.what}: {self.rate:.1f} GB/s, cudaMemcpyAsync {self.copy:.1f}, ratio {self.ratio:.3f}{verdict}"


ROUNDS = 3


def measure(
    arena: Arena, what: str, opcode: int, size: int, blocks: int | None = None, automata: Automata | None = None
) -> Line:
    """Copy and scan in alternation."""
    copies, rates = [], []
    for _ in range(ROUNDS):
        copies.append(copy_gb_per_s(arena))
        rates.append(scan_gb_per_s(arena, opcode, size, blocks, automata, seconds=0.5))
    whole = size == arena.layout.slot_bytes
    line = Line(
        what,
        statistics.median(rates),
        statistics.median(copies),
        right(arena, opcode, size, automata) if whole else None,
    )
    print(line, flush=True)
    return line


def operations(arena: Arena) -> Iterator[Line]:
    size = arena.layout.slot_bytes
    sets = pattern_sets()
    for kind in ("words", "source"):
        fill(arena, kind)
        yield measure(arena, f"TOUCH, {kind}", abi.OP_SCAN_TOUCH, size)
        yield measure(arena, f"CRC32C, {kind}", abi.OP_SCAN_CRC32C, size)
        yield measure(arena, f"histogram, {kind}", abi.OP_SCAN_HISTOGRAM, size)
        for name, automata in sets.items():
            tables = f"{automata.size >> 10} KiB of tables"
            yield measure(arena, f"MATCH, {kind}, {name}, {tables}", abi.OP_SCAN_MATCH, size, automata=automata)


def plot(lines: Sequence[Line]) -> str:
    """The ratios as bars, an SVG."""
    row, left, width = 18, 360, 400
    height = row * len(lines) + 40
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="14">share of cudaMemcpyAsync</text>',
    ]
    for k, line in enumerate(lines):
        y, length = 24 + k * row, min(1.1, line.ratio) * width / 1.1
        shapes.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(line.what)}</text>')
        shapes.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{row - 4}" fill="#4878a8"/>')
        shapes.append(f'<text x="{left + length + 4:.1f}" y="{y + 11}">{line.ratio:.2f}</text>')
    return "\n".join([*shapes, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--slot-size", type=int, default=1 << 20)
    parser.add_argument("--only", choices=("hand-over", "touch", "operations"))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the operations' ratios, as SVG")
    options = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(reason)
    properties = cuda.cupy.cuda.runtime.getDeviceProperties(0)
    count = properties["multiProcessorCount"]
    print(properties["name"].decode(), count, "multiprocessors, CuPy", cuda.cupy.__version__)
    arena = Arena.create(ArenaLayout(1, options.slots, options.slot_size, 64 << 10))
    fill(arena, "words")
    if options.only in (None, "hand-over"):
        for blocks in (17, 33, 67, None):
            took = hand_over_us(arena, blocks)
            p50, p99 = np.percentile(took, [50, 99])
            print(f"hand-over 4 KiB, {blocks or 'all'} blocks: best {took.min():.1f} p50 {p50:.1f} p99 {p99:.1f} us")
        alone, beside = [], []
        for _ in range(ROUNDS):
            alone.append(copy_gb_per_s(arena))
            beside.append(beside_idle_kernel_gb_per_s(arena))
        print(Line("a copy beside an idle kernel", statistics.median(beside), statistics.median(alone)))
    if options.only in (None, "touch"):
        for size in (64 << 10, 256 << 10, options.slot_size):
            for grid in (9, 33, None):
                measure(arena, f"TOUCH, {size >> 10} KiB, {grid or 'all'} blocks", abi.OP_SCAN_TOUCH, size, grid)
    if options.only in (None, "operations"):
        lines = list(operations(arena))
        if options.plot is not None:
            options.plot.write_text(plot(lines))
    arena.close()


if __name__ == "__main__":
    main()

"""(g) A tree of many small files, page cache, against ripgrep; and how long listing it takes.

The files hold consecutive pieces of the text that the other measurements scan, in folders of some hundred files.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.data import patterns_of
from benchmarks.model import Reading, Setting, compare
from benchmarks.scanner import Scanner
from uring_actors.plan import FileBatch, listing

FILES = 100_000
BARS = {"hard": 1.0, "literal-led": 0.4}
_FOLDER = 200
_SIZES = (512, 16 << 10)


def measure(setting: Setting) -> None:
    tree = setting.directory / "small"
    size = make_tree(tree, setting.text, FILES)
    os.sync()
    try:
        listed = _listing_seconds(tree)
        for name in BARS:
            _measure_list(setting, tree, size, name, f"listing the tree alone: {listed:.2f} s")
    finally:
        shutil.rmtree(tree)


def make_tree(tree: Path, text: Path, count: int, seed: int = 5) -> int:
    """``count`` files of 0.5 to 16 KiB of ``text``, in order and from its beginning again; their bytes in all."""
    rng, total = random.Random(seed), 0
    with text.open("rb") as source:
        for number in range(count):
            folder = tree / f"{number // _FOLDER // 50:03}" / f"{number // _FOLDER:05}"
            if number % _FOLDER == 0:
                folder.mkdir(parents=True)
            size = rng.randint(*_SIZES)
            content = source.read(size)
            if len(content) < size:
                source.seek(0)
                content += source.read(size - len(content))
            total += (folder / f"{number:06}.txt").write_bytes(content)
    return total


def _listing_seconds(tree: Path) -> float:
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        assert sum(len(batch) for batch in listing(tree) if isinstance(batch, FileBatch)) == FILES
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _measure_list(setting: Setting, tree: Path, size: int, name: str, note: str) -> None:
    patterns = patterns_of(name)
    rg = peers.rg_command(tree, patterns, mmap=False)
    setting.report.commands[f"rg, small files, {name}"] = peers.shown(rg, small=tree)
    ours: list[Reading] = []
    rgs: list[Reading] = []
    with Scanner() as scanner:
        scanner.scan(tree, patterns=patterns, engine="threads")
        for _ in range(setting.rounds):
            rgs.append(peers.rg(rg, size))
            ours.append(scanner.scan(tree, patterns=patterns, engine="threads"))
    found = f"rows: ours {ours[-1].rows}, with line and column; rg {rgs[-1].rows}, counted"
    shown = f"seconds: ours {_seconds(ours)}, rg {_seconds(rgs)}"
    setting.report.verdicts.append(
        compare(f"small files, {name} / rg", ours, rgs, BARS[name], peer="ripgrep", notes=(found, shown, note))
    )


def _seconds(readings: list[Reading]) -> str:
    return f"{statistics.median(reading.seconds for reading in readings):.2f}"

"""(d) Memory: the proportional set size (PSS) of every process while 1 GB and 8 GB are scanned.

PSS counts each page once over all processes that share it, the arena included, so the arena's size is taken off.
The 8 GB are eight hard links to the 1 GB file: eight paths, eight times the work.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import make_links, patterns_of
from benchmarks.model import MIB, Missing, Setting, Verdict
from benchmarks.scanner import Scanner
from uring_actors.config import ScanOptions
from uring_actors.node import NodeSpec
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.pattern import Regex
from uring_actors.plan import devices

BARS = {"threads": 400.0, "ray": 1024.0}
"""MiB above the arena."""
GROWTH_BAR = 32.0
"""MiB more for eight times the data."""
_EVERY_SECONDS = 0.05
_TIMES = 8


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest sum seen, in MiB: all processes; of those Ray's own (its servers, agents and idle workers)."""

    everything: float
    ray: float


def measure(setting: Setting) -> None:
    for engine in BARS:
        try:
            _measure_engine(setting, engine)
        except Missing as reason:
            setting.report.left_out.append(f"memory with the {engine} engine: {reason}")


def _measure_engine(setting: Setting, engine: str) -> None:
    arena = _arena_mib(setting, engine)
    links = make_links(setting.text, _TIMES)
    once, often = [], []
    # Two or three runs say as much as many: the peak hardly varies, and Ray takes seconds to start.
    for _ in range(min(setting.rounds, 3)):
        once.append(_peak([setting.text], engine))
        often.append(_peak(links, engine))
    above = tuple(peak.everything - arena for peak in once)
    growth = tuple(b.everything - a.everything for a, b in zip(once, often, strict=True))
    notes = [f"arena {arena:.0f} MiB; all processes {max(p.everything for p in once + often):.0f} MiB at most"]
    if engine == "ray":
        notes.append(f"of it Ray's own processes {max(p.ray for p in once + often):.0f} MiB")
    verdicts = setting.report.verdicts
    figure = "MiB PSS above the arena, all processes"
    verdicts.append(Verdict(f"memory, {engine}", figure, above, BARS[engine], at_least=False, notes=tuple(notes)))
    figure = f"MiB more for {_TIMES} times the data"
    verdicts.append(Verdict(f"memory growth, {engine}", figure, growth, GROWTH_BAR, at_least=False))


def _arena_mib(setting: Setting, engine: str) -> float:
    operation = Match.of([Regex(pattern) for pattern in patterns_of("hard")])
    spec = NodeSpec.decide(operation, ScanOptions(engine=engine), devices([setting.text]))
    return spec.layout.total / MIB


def _peak(paths: list[Path], engine: str) -> Peak:
    """The peak over a scan in a fresh process, sampled every 50 ms and once before it ends."""
    with Scanner() as scanner:
        peaks: list[Peak] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_EVERY_SECONDS):
                peaks.append(pss(scanner.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            scanner.scan(*paths, patterns=patterns_of("hard"), engine=engine)
        finally:
            done.set()
            watcher.join()
    peaks.append(Peak(0.0, 0.0))
    return Peak(max(p.everything for p in peaks), max(p.ray for p in peaks))


def pss(root: int) -> Peak:
    """Now, in MiB: the process ``root`` and all its descendants."""
    sums: Counter[bool] = Counter()
    for pid in family(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        kib = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
        sums[pid != root and _is_rays(command)] += kib
    return Peak((sums[True] + sums[False]) / 1024, sums[True] / 1024)


def _is_rays(command: bytes) -> bool:
    """Whether a process of Ray's family is Ray's own: all but those that run an actor of ours."""
    return not command.startswith(b"ray::") or command.startswith(b"ray::IDLE")


def family(root: int) -> Iterator[int]:
    """The process ``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])

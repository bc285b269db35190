"""What a measurement gives: readings of both sides, and a verdict against a bar."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Reading:
    """One run over ``bytes`` bytes: ``seconds`` of wall time, ``cpu`` seconds (user and system, all threads and
    children), and ``startup``: seconds before the first byte, which ``seconds`` leaves out."""

    bytes: int
    seconds: float
    cpu: float
    startup: float = 0.0
    rows: int = 0

    @property
    def rate(self) -> float:
        """GB/s from the first byte to the end."""
        return self.bytes / self.seconds / 1e9

    @property
    def whole_rate(self) -> float:
        """GB/s with the start-up counted."""
        return self.bytes / (self.seconds + self.startup) / 1e9


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure and its bar. ``values`` are one a round; their median counts."""

    name: str
    figure: str
    """What the figure is, in words, with its unit."""
    values: tuple[float, ...]
    bar: float
    at_least: bool = True
    """Whether the figure must be at least the bar, or at most."""
    ours: str = ""
    theirs: str = ""
    cpu_ratio: float | None = None
    """Of a ratio of speeds: the peer's CPU seconds a byte divided by ours; other load on the machine hardly moves
    it. None where there is no peer."""
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def passed(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(slots=True)
class Report:
    """Everything that one run of the benchmarks found."""

    verdicts: list[Verdict] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    """The peers' command lines, by peer."""
    left_out: list[str] = field(default_factory=list)
    """What could not be measured here, and why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements share."""

    directory: Path
    text: Path
    """The file that is scanned: source-like text, in the page cache."""
    rounds: int
    report: Report

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return self.text.stat().st_size


class Missing(Exception):
    """A measurement can't be made here: a tool or a right is missing."""


def compare(
    name: str,
    ours: Sequence[Reading],
    theirs: Sequence[Reading],
    bar: float,
    *,
    peer: str,
    notes: tuple[str, ...] = (),
) -> Verdict:
    """A verdict on speed: by round, our GB/s divided by the peer's."""
    ratios = tuple(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
    whole = statistics.median(a.whole_rate / b.whole_rate for a, b in zip(ours, theirs, strict=True))
    cpu = _cpu_per_byte(theirs) / _cpu_per_byte(ours)
    return Verdict(
        name,
        f"speed, of {peer}",
        ratios,
        bar,
        ours=_speed(ours),
        theirs=_speed(theirs),
        cpu_ratio=cpu,
        notes=(f"start-up counted: {whole:.2f}", *notes),
    )


def _cpu_per_byte(readings: Sequence[Reading]) -> float:
    return max(1e-12, statistics.median(r.cpu / r.bytes for r in readings))


def _speed(readings: Sequence[Reading]) -> str:
    rate = statistics.median(r.rate for r in readings)
    cpu = statistics.median(r.cpu / r.bytes for r in readings) * GIB
    return f"{rate:.2f} GB/s, {cpu:.2f} CPU s/GiB"

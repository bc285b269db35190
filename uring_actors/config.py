"""The options of a scan, checked where they are made, so that nothing starts with a wrong one.

Light on purpose: the command line imports this for its ``--help``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from uring_actors.errors import OptionError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

SLOT_BYTES_MIN = 64 * KIB
SLOT_BYTES_MAX = 64 * MIB
SLOTS_MIN = 2
"""One slot in flight while the other is scanned: with fewer, reading and scanning never overlap."""
SLOTS_MAX = 4096
LANES_MAX = 64
KERNEL_THREADS_MAX = 1024
LEASE_BYTES_MAX = 1 << 40

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "engine": ("ray", "threads"),
        "backend": ("auto", "cuda", "cpu"),
        "io_engine": ("auto", "uring", "pread", "liburing"),
        "io": ("auto", "direct", "buffered"),
        "sqpoll": ("auto", "on", "off"),
    }
)
"""The options that are one of a few words."""

OPERATIONS = ("match", "checksum", "histogram", "touch", "nop")

REPORTS = ("matches", "count", "files")
"""What MATCH reports: each match, their number for each file, or the files that have any."""

FORMATS = ("text", "jsonl", "csv", "arrow", "parquet")
"""Of the rows on the command line; ``results/writers.py`` makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """How a scan is run. Nothing here changes which matches it finds.

    Raises:
        OptionError: a value makes no sense; ``fix`` says which do.
    """

    engine: str = "ray"
    """``"ray"``: actors, on one node or many. ``"threads"``: the same loops in this process."""
    backend: str = "auto"
    """Where the kernel runs. ``"auto"``: on the GPU where one works and has the operation, else on the CPU."""
    io_engine: str = "auto"
    """``"auto"`` is ``"uring"`` where io_uring is permitted, else ``"pread"`` with a warning. ``"liburing"``, the
    reference, reads through that library's binding (x86-64): slower, for comparison."""
    io: str = "auto"
    """``"direct"``: O_DIRECT, past the page cache. ``"auto"`` is for the reader to choose by file system."""
    sqpoll: str = "auto"
    """Whether a kernel thread polls each submission queue; see ``resolve_sqpoll``."""
    lanes: int = 1
    """io_urings for each device, each with its own thread and data slots."""
    slot_bytes: int = 2 * MIB
    """Size of a data slot: how much of a file is read in one go. A power of two."""
    slots: int = 16
    """Data slots for each lane."""
    kernel_threads: int | None = None
    """Threads of the CPU kernel; None: one for each core."""
    lease_bytes: int = 64 * MIB
    """With many nodes or a checkpoint: files are handed out, and their rows counted, by about so many bytes."""

    def __post_init__(self) -> None:
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise OptionError(f"{name} is {getattr(self, name)!r}", fix=f"It must be one of {', '.join(words)}.")
        _check_int("lanes", self.lanes, 1, LANES_MAX)
        _check_int("slots", self.slots, SLOTS_MIN, SLOTS_MAX)
        if self.kernel_threads is not None:
            _check_int("kernel_threads", self.kernel_threads, 1, KERNEL_THREADS_MAX)
        _check_int("lease_bytes", self.lease_bytes, 1, LEASE_BYTES_MAX)
        _check_int("slot_bytes", self.slot_bytes, SLOT_BYTES_MIN, SLOT_BYTES_MAX)
        if self.slot_bytes & (self.slot_bytes - 1):
            below = 1 << (self.slot_bytes.bit_length() - 1)
            raise OptionError(
                f"slot_bytes is {self.slot_bytes}, which is not a power of two",
                fix=f"The nearest are {format_size(below)} and {format_size(below * 2)}.",
            )
        if self.io_engine == "pread" and self.sqpoll == "on":
            raise OptionError(
                "sqpoll is on, but the pread engine has no submission queue",
                fix="Use io_engine uring, or leave sqpoll at auto.",
            )

    @classmethod
    def of(cls, **options: Any) -> ScanOptions:
        """The options by name; an unknown name is an OptionError that lists those there are."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise OptionError(f"there is no option {name!r}", fix=f"There are {', '.join(known)}.")
        return cls(**options)


def resolve_sqpoll(cores: int, lanes: int, setting: str = "auto") -> bool:
    """Whether SQPOLL is used on a host with ``cores`` usable cores and ``lanes`` lanes in all.

    ``auto``: with two cores for each lane (its own thread and the kernel's poller) and four more for the
    rest. With fewer, the pollers would take the cores that scan.
    """
    if setting != "auto":
        return setting == "on"
    return cores >= 2 * lanes + 4


def parse_size(text: str) -> int:
    """Bytes, from ``"65536"``, ``"64K"``, ``"64KiB"``, ``"1M"``, ``"1g"``: binary units.

    Raises:
        OptionError: it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]+)\s*(?:([kmg])(?:i?b)?|b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise OptionError(f"{text!r} is not a size", fix="Write it as bytes or as 64K, 1M, 1G.")
    unit = (match[2] or "").lower()
    return int(match[1]) * {"": 1, "k": KIB, "m": MIB, "g": GIB}[unit]


def format_size(size: int) -> str:
    """``"64K"``, ``"1M"``: as ``parse_size`` reads it, in the largest unit that divides ``size``."""
    for unit, name in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def _check_int(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}, which is not a whole number", fix="Give an int.")
    if not least <= value <= most:
        in_bytes = name.endswith("_bytes")
        low, high = (format_size(least), format_size(most)) if in_bytes else (str(least), str(most))
        shown = format_size(value) if in_bytes else str(value)
        raise OptionError(f"{name} is {shown}", fix=f"It must be from {low} to {high}.")

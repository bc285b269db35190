"""Scan files where they land: io_uring into GPU-mapped shared memory, a resident kernel, Ray actors.

Names are imported when they are first used: ``uring-actors --help`` must not wait for Numba and Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uring_actors.config import ScanOptions
    from uring_actors.errors import UringActorsError
    from uring_actors.ingest import IngestDriver
    from uring_actors.many.attached import attach
    from uring_actors.many.paths import HostLocal
    from uring_actors.many.warm import release_warm
    from uring_actors.megakernel.megakernel import Megakernel
    from uring_actors.ops.bytesum import Nop, Touch
    from uring_actors.ops.checksum import Checksum
    from uring_actors.ops.histogram import Histogram
    from uring_actors.ops.match.pattern import Literal, Regex
    from uring_actors.ops.match.pattern_file import read_patterns
    from uring_actors.ops.rules.rules import Rules
    from uring_actors.ops.user import operation
    from uring_actors.results.stats import ScanStats
    from uring_actors.scanning import Scan, scan
    from uring_actors.uring.buffer import GpuMappedBuffer
    from uring_actors.uring.pump import UringMegakernelPump
    from uring_actors.uring.reference import LiburingState
    from uring_actors.uring.ring import IoUringState
    from uring_actors.uring.stream import AsyncUringStream, Completion, Iovecs
    from uring_actors.uring.tail import AtomicTail
    from uring_actors.uring.telemetry import IngestTelemetry

_HOMES = {
    "AsyncUringStream": "uring_actors.uring.stream",
    "AtomicTail": "uring_actors.uring.tail",
    "Checksum": "uring_actors.ops.checksum",
    "Completion": "uring_actors.uring.stream",
    "GpuMappedBuffer": "uring_actors.uring.buffer",
    "Histogram": "uring_actors.ops.histogram",
    "HostLocal": "uring_actors.many.paths",
    "IngestDriver": "uring_actors.ingest",
    "IngestTelemetry": "uring_actors.uring.telemetry",
    "IoUringState": "uring_actors.uring.ring",
    "Iovecs": "uring_actors.uring.stream",
    "LiburingState": "uring_actors.uring.reference",
    "Literal": "uring_actors.ops.match.pattern",
    "Megakernel": "uring_actors.megakernel.megakernel",
    "Nop": "uring_actors.ops.bytesum",
    "Regex": "uring_actors.ops.match.pattern",
    "Rules": "uring_actors.ops.rules.rules",
    "Scan": "uring_actors.scanning",
    "ScanOptions": "uring_actors.config",
    "ScanStats": "uring_actors.results.stats",
    "Touch": "uring_actors.ops.bytesum",
    "UringActorsError": "uring_actors.errors",
    "UringMegakernelPump": "uring_actors.uring.pump",
    "attach": "uring_actors.many.attached",
    "operation": "uring_actors.ops.user",
    "read_patterns": "uring_actors.ops.match.pattern_file",
    "release_warm": "uring_actors.many.warm",
    "scan": "uring_actors.scanning",
}

__all__ = [
    "AsyncUringStream",
    "AtomicTail",
    "Checksum",
    "Completion",
    "GpuMappedBuffer",
    "Histogram",
    "HostLocal",
    "IngestDriver",
    "IngestTelemetry",
    "IoUringState",
    "Iovecs",
    "LiburingState",
    "Literal",
    "Megakernel",
    "Nop",
    "Regex",
    "Rules",
    "Scan",
    "ScanOptions",
    "ScanStats",
    "Touch",
    "UringActorsError",
    "UringMegakernelPump",
    "attach",
    "operation",
    "read_patterns",
    "release_warm",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

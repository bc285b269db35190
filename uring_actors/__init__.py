"""Scan files where they land: io_uring into GPU-mapped shared memory, a resident kernel, Ray actors.

Names are imported when they are first used: ``uring-actors --help`` must not wait for Numba and Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uring_actors.config import ScanOptions
    from uring_actors.errors import UringActorsError
    from uring_actors.ops.bytesum import Nop, Touch
    from uring_actors.ops.match.pattern import Literal, Regex
    from uring_actors.results.stats import ScanStats
    from uring_actors.scanning import Scan, scan

_HOMES = {
    "Literal": "uring_actors.ops.match.pattern",
    "Nop": "uring_actors.ops.bytesum",
    "Regex": "uring_actors.ops.match.pattern",
    "Scan": "uring_actors.scanning",
    "ScanOptions": "uring_actors.config",
    "ScanStats": "uring_actors.results.stats",
    "Touch": "uring_actors.ops.bytesum",
    "UringActorsError": "uring_actors.errors",
    "scan": "uring_actors.scanning",
}

__all__ = [
    "Literal",
    "Nop",
    "Regex",
    "Scan",
    "ScanOptions",
    "ScanStats",
    "Touch",
    "UringActorsError",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

"""Whether a process that did one job may do another: nobody takes rows from it any more, and its arenas are freed."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Final

_KEPT_BYTES: Final = 1 << 30
"""Memory of its own with which a process does no other job."""


class Takers:
    """Who is taking rows: each within a ``with`` of this."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def gone(self, seconds: float = 2.0) -> bool:
        """Whether there is none left, within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, seconds)


def nothing_is_left() -> bool:
    """Whether this process has freed its arenas, and is no larger than one that is kept may be."""
    gc.collect()  # pipelines are cycles
    if "/memfd:uring_actors" in Path("/proc/self/maps").read_text():
        return False
    own = Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]
    return int(own) << 10 <= _KEPT_BYTES

"""A thread that runs a GIL-free loop in slices, and keeps the exception that ended it.

Every role is made of these. A step runs some milliseconds without the GIL and returns to Python, which is where
stopping, statistics and errors happen. Life: created → started → stopped (idempotent).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from uring_actors.errors import DeadlineExceeded

SLICE_NS = 20_000_000
"""How long a hot loop may keep a thread before it returns to Python."""


class LoopThread:
    """Calls ``step`` until it returns False or ``stop`` was asked for."""

    def __init__(self, name: str, step: Callable[[], bool], *, wake: Callable[[], None] | None = None) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self._step = step
        self._wake = wake
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and self._step():
                pass
        except BaseException as error:  # the owner's monitor raises it where somebody is listening
            self.failure = error

    def stop(self) -> None:
        """Ask it to end after its current step."""
        self._stopping.set()
        if self._wake is not None:
            self._wake()

    def join(self, seconds: float) -> None:
        """Wait for the end. Raises DeadlineExceeded where the thread is still running after ``seconds``."""
        if self._thread.ident is None:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise DeadlineExceeded(f"thread {self.name} to end", seconds)

"""What must outlive a stream: its reads in flight, and all that the kernel may still touch for their sake.

For each row of the table of reads, ``kept`` holds the memory that it reads into, its own duplicate of the file's
descriptor and its iovec storage, from before its entry is written until after its last completion is reaped. So the
caller may close, drop or replace what it likes. A flight ends with ``close``: reads in flight are cancelled where
the kernel can, waited for where not. A stream that is dropped has its flight closed by a finaliser; where even that
does not end it, the flight is kept for ever (``_LEFT_BEHIND``), because a DMA may still land.

A flight belongs to the thread that uses it first, as its ring does. ``with flight:`` is a turn: one call at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from typing import Any, Protocol

import numpy as np

from uring_actors.errors import DeadlineExceeded, IoUringSyscall, PipelineError
from uring_actors.uring import requests
from uring_actors.uring.engine import Engine
from uring_actors.uring.requests import FLYING, R_STATE, S_CANCELS, S_CLOSING, S_FINISHED, S_FLYING, Requests
from uring_actors.uring.state import RingState

SLICE_NS = 100_000_000
"""How long a wait runs before Python looks at signals."""

_LEFT_BEHIND: list[Flight] = []
_LAST_SECONDS = 5.0


class HasFileno(Protocol):
    """An open file."""

    def fileno(self) -> int: ...


class HeldFile:
    """A duplicate of a descriptor: the file stays open, and the number ours, until this object goes."""

    __slots__ = ("direct", "fd")

    def __init__(self, file: int | HasFileno) -> None:
        self.fd = -1
        number = file if isinstance(file, int) else file.fileno()
        try:
            self.fd = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            self.direct = int(bool(fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_DIRECT))
        except OSError as error:
            fix = (
                "Raise the limit of open files (ulimit -n)." if self.fd < 0 and error.errno == errno.EMFILE else None
            )
            raise IoUringSyscall("fcntl (duplicate the descriptor)", error.errno or 0, fix=fix) from error

    def path(self) -> bytes | None:
        """Where it was opened, as far as the system knows."""
        try:
            return os.readlink(b"/proc/self/fd/%d" % self.fd)
        except OSError:
            return None

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Flight:
    """The reads of one stream on one ring. See the module's page."""

    def __init__(self, ring: RingState) -> None:
        self.ring = ring
        self.table = Requests(ring.entries)
        self.kept: list[Any] = [None] * ring.entries
        self.kept_for_bulk: Any = None
        self.closed = False
        self._engine: Engine | None = None
        self._process = os.getpid()
        self._thread = 0
        self._turn = threading.Lock()
        ring.claim(self)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────────────────
    def __enter__(self) -> Flight:
        if not self._turn.acquire(blocking=False):
            raise PipelineError("the stream is in the middle of another call", fix="Use it from one thread.")
        try:
            if self.closed or self.table.state[S_CLOSING]:
                raise PipelineError("the stream is closed")
            if self._thread != threading.get_native_id():
                self._settle_in()
        except BaseException:
            self._turn.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.release()

    def _settle_in(self) -> None:
        if self._thread:
            raise PipelineError(
                "the stream belongs to the thread that used it first",
                fix="Use it there, or make one for each thread.",
            )
        self._engine = self.ring.make_engine(self.table)
        self._thread = threading.get_native_id()

    @property
    def engine(self) -> Engine:
        """What moves the reads; there is one from the first turn on."""
        assert self._engine is not None, "taken in a turn only"
        return self._engine

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────
    def in_flight(self) -> int:
        """Reads submitted and not yet taken by the stream."""
        state = self.table.state
        return int(state[S_FLYING] + state[S_FINISHED])

    def drop(self, row: int) -> None:
        """A row that the stream has taken: let go of what it held, and free it."""
        self.kept[row] = None
        requests.release(self.table.rows, self.table.state, row)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────
    def close(self, seconds: float) -> None:
        """Cancel what is in flight, or wait for it; results that nobody has taken are dropped. Idempotent. Raises
        DeadlineExceeded where the kernel still holds reads after ``seconds``: everything stays as it is then."""
        if os.getpid() != self._process:
            return  # a forked child's copy: the ring and all that is in flight are the parent's
        if not self._turn.acquire(timeout=seconds):
            raise DeadlineExceeded("the stream's call in another thread", seconds)
        try:
            if self.closed:
                return
            unsent = self._land(time.monotonic_ns() + int(seconds * 1e9), seconds)
            self.closed = True
            self.kept_for_bulk = None
            if not unsent:  # else the entries would be the next owner's to submit
                self.ring.release(self)
        finally:
            self._turn.release()

    def _land(self, until_ns: int, seconds: float) -> bool:
        """Bring every read home; whether entries stay in the queue that the kernel will never see."""
        state = self.table.state
        if self._engine is None:
            return False
        state[S_CLOSING] = 1
        abroad = self._thread != threading.get_native_id()
        if not abroad:
            self._cancel_all(until_ns)
        while True:
            if abroad:
                self.engine.reap()
            else:
                self.engine.wait(min(until_ns, time.monotonic_ns() + SLICE_NS))
            while (row := requests.take(self.table.rows, state, self.table.finished)) >= 0:
                self.drop(row)
            left = int(state[S_FLYING] + state[S_CANCELS])
            if left == 0 or (abroad and self.engine.held() == 0):
                return left > 0
            if time.monotonic_ns() >= until_ns:
                where = ", whose thread is another one" if abroad else ""
                raise DeadlineExceeded(f"{left} reads in flight of a stream{where}", seconds)
            if abroad:
                time.sleep(0.001)

    def _cancel_all(self, until_ns: int) -> None:
        self.engine.turn()
        for row in np.flatnonzero(self.table.rows[:, R_STATE] == FLYING).tolist():
            # A turn for one row may bring others home.
            while self.table.rows[row, R_STATE] == FLYING and not self.engine.cancel(row):
                if time.monotonic_ns() >= until_ns:
                    return
                self.engine.turn()


def let_go(flight: Flight) -> None:
    """The finaliser of a stream that was dropped; also at the interpreter's end."""
    try:
        flight.close(_LAST_SECONDS)
    except PipelineError:
        _LEFT_BEHIND.append(flight)

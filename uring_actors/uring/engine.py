"""What moves a stream's reads: the interface of both engines, and the one on the mapped queues.

An engine works on a ``Requests`` table: it puts rows into a submission queue, hands them over, and acts on what
completes as ``requests.py`` says. It decides nothing by itself. Its methods belong to one thread.
"""

from __future__ import annotations

import errno

from uring_actors.errors import IoUringSyscall, PipelineError
from uring_actors.uring import kernel, queue, requests
from uring_actors.uring.requests import CANCEL, R_STATE, S_CANCELS, Requests


class Engine:
    """The interface. Every method but ``start`` raises IoUringSyscall where io_uring_enter fails for good."""

    def __init__(self, table: Requests) -> None:
        self.table = table

    def start(self, *fields: int) -> None:
        """Fill the first free row (there is one) with ``fields``, those of ``requests.begin`` from ``opcode`` to
        ``user_data``, and write its entry."""
        raise NotImplementedError

    def submit(self) -> None:
        """Hand queued entries over; under SQPOLL, wake the poller if it sleeps."""
        raise NotImplementedError

    def turn(self) -> None:
        """``submit``, and act on what has completed."""
        raise NotImplementedError

    def wait(self, until_ns: int) -> None:
        """``turn`` until a read has finished, none is in flight, or CLOCK_MONOTONIC is ``until_ns``."""
        raise NotImplementedError

    def run(self, until_ns: int) -> None:
        """Read the table's ``extents`` until all have ended or it is ``until_ns``."""
        raise NotImplementedError

    def reap(self) -> None:
        """Act on what has completed without a system call: all that another thread than the ring's own may do."""
        raise NotImplementedError

    def held(self) -> int:
        """How many entries the kernel has, or may take without being told."""
        raise NotImplementedError

    def cancel(self, row: int) -> bool:
        """Ask the kernel to give up a row's read; False where the queue has no room to ask now."""
        raise NotImplementedError


class RingEngine(Engine):
    """On the mapped queues of an ``IoUringState``; no method holds the GIL while it works or waits."""

    def __init__(self, words: queue.Words, table: Requests) -> None:
        super().__init__(table)
        self._queue = words
        self._all = (words, table.rows, table.state, table.counters, table.finished)

    def start(self, *fields: int) -> None:
        table = self.table
        requests.start(self._queue, table.rows, table.state, table.counters, *fields)

    def submit(self) -> None:
        self._check(queue.submit(self._queue, 0, 0))

    def turn(self) -> None:
        self._check(requests.turn(*self._all, self.table.extents))

    def wait(self, until_ns: int) -> None:
        self._check(requests.wait(*self._all, self.table.extents, until_ns))

    def run(self, until_ns: int) -> None:
        self._check(requests.run(*self._all, self.table.extents, until_ns))

    def reap(self) -> None:
        self._check(min(0, requests.reap(*self._all, self.table.extents)))

    def held(self) -> int:
        return queue.held(self._queue)

    def cancel(self, row: int) -> bool:
        if queue.room(self._queue) == 0:
            return False
        assert self.table.rows[row, R_STATE] == requests.FLYING
        kernel.put_cancel(queue.next_sqe(self._queue), row, CANCEL)
        self.table.state[S_CANCELS] += 1
        return True

    def _check(self, code: int) -> None:
        if code <= requests.BROKEN:
            raise PipelineError(f"the ring is broken: {requests.BROKEN_TEXT[code]}", fix="Close the stream.")
        if code < 0:
            raise IoUringSyscall("io_uring_enter", -code, fix=_FIXES.get(-code))


_FIXES = {
    errno.EEXIST: "The ring belongs to the thread that submitted first: use the stream from that thread.",
    errno.EBADF: "The ring is closed.",
}

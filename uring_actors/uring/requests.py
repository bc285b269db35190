"""The table of a stream's reads, and everything that happens to a read between its submission and its completion.

A row is one read; its number is the ``user_data`` of its SQE, so a completion finds its request in whatever order it
comes. A row's life:

    FREE ──begin──▶ FLYING ──settle, finish──▶ FINISHED ──the stream takes it──▶ FREE
                      │  ▲                          (bulk reads skip FINISHED: their result goes into ``extents``)
                      └──┘ short: read on; EAGAIN, EINTR, ECANCELED: again, with a bound

A row is FLYING from the moment its SQE is written until its last completion is reaped, so whatever it names (memory,
file, iovec) must stay for as long: ``flight.py`` sees to that. There are as many rows as the SQ has entries.

Both engines use this table: ``RingEngine`` runs the loops here on the mapped queues without the GIL, the liburing
engine calls ``settle`` and ``finish`` for each completion. All numbers are int64; one thread at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from uring_actors.arena.atomics import clock_ns, fetch_add
from uring_actors.hot import lean
from uring_actors.uring import kernel
from uring_actors.uring.queue import Words, arrival, arrived, next_sqe, overflowed, submit, taken, unsound
from uring_actors.uring.verdict import END, FAIL, MORE, RETRY, judge, resume_at

# ── requests: one row each ───────────────────────────────────────────────────────────────────────────────────
R_STATE: Final = 0
R_NEXT: Final = 1  # the next free row, or −1
R_OPCODE: Final = 2
R_FD: Final = 3  # a descriptor, or an index of the file table
R_FIXED_FILE: Final = 4
R_OFFSET: Final = 5  # in the file; with URING_CMD the kind of command
R_ADDRESS: Final = 6  # in memory
R_WANT: Final = 7  # bytes
R_DONE: Final = 8  # of them, here
R_DIRECT: Final = 9
R_BUFFER: Final = 10  # index of the registered buffer
R_IOVEC: Final = 11  # address of the struct iovec, with READV; of the command, with URING_CMD
R_RETRIES: Final = 12
R_ERRNO: Final = 13  # of a finished read; 0: it succeeded; below: minus the status that a drive gave a command
R_ENDED: Final = 14  # the file ended before all was read
R_BULK: Final = 15  # the row of ``extents``, or −1
R_USER_DATA: Final = 16  # the caller's
R_WORDS: Final = 24

FREE: Final = 0
FLYING: Final = 1
FINISHED: Final = 2

# ── state: one row ───────────────────────────────────────────────────────────────────────────────────────────
S_FREE: Final = 0  # the first free row, or −1
S_FLYING: Final = 1
S_CANCELS: Final = 2  # ASYNC_CANCEL entries in flight
S_FINISHED: Final = 3  # rows that wait in ``finished``
S_FIRST: Final = 4  # where the oldest of them stands
S_CLOSING: Final = 5  # nothing is read on or retried
S_TAIL: Final = 6  # address of the word that counts bulk reads that succeeded
# the bulk call that is running:
S_OPCODE: Final = 8
S_FIXED_FILE: Final = 9
S_BUFFER: Final = 10
S_IOVECS: Final = 11  # one for each row
S_BEGUN: Final = 12  # rows of ``extents``
S_ENDED: Final = 13
S_DEPTH: Final = 14
S_WORDS: Final = 24

# ── extents: one row for each read of a bulk call ────────────────────────────────────────────────────────────
X_FD: Final = 0
X_OFFSET: Final = 1
X_LENGTH: Final = 2
X_ADDRESS: Final = 3
X_DIRECT: Final = 4
X_BYTES: Final = 5  # out: bytes read
X_ERRNO: Final = 6  # out: 0, or why it failed
X_WORDS: Final = 8

# ── counters: as IngestTelemetry has them, in its order ──────────────────────────────────────────────────────
T_SUBMITTED_READS: Final = 0
T_SUBMITTED_BYTES: Final = 1
T_COMPLETED_READS: Final = 2
T_COMPLETED_BYTES: Final = 3
T_PAST_END: Final = 4
T_REGISTERED: Final = 5
T_IOVEC: Final = 6
T_PLAIN: Final = 7
T_PASSTHROUGH: Final = 8
T_CONTINUATIONS: Final = 9
T_RETRIES: Final = 10
T_FAILED: Final = 11
T_BOUNCE: Final = 12
T_WORDS: Final = 13

CANCEL: Final = 1 << 62  # the user_data of an ASYNC_CANCEL entry
_ECANCELED: Final = 125
_CLOCK_EVERY: Final = 32

BROKEN: Final = -1_000_000  # from here on down not −errno but:
BAD_COMPLETION: Final = BROKEN - 1
BAD_COUNT: Final = BROKEN - 2
OVERFLOW: Final = BROKEN - 3
BROKEN_TEXT: Final = {
    BAD_COMPLETION: "a completion names a read that is not in flight",
    BAD_COUNT: "the queue's counts don't add up to the reads in flight",
    OVERFLOW: "the completion queue overflowed",
}


class Requests:
    """The arrays of one stream with up to ``entries`` reads in flight."""

    def __init__(self, entries: int) -> None:
        self.rows: Words = np.zeros((entries, R_WORDS), np.int64)
        self.rows[:, R_NEXT] = np.arange(1, entries + 1)
        self.rows[-1, R_NEXT] = -1
        self.state: Words = np.zeros(S_WORDS, np.int64)
        self.counters: Words = np.zeros(T_WORDS, np.int64)
        self.finished: Words = np.zeros(entries, np.int64)
        self.extents: Words = np.zeros((0, X_WORDS), np.int64)
        self.iovecs: Words = np.zeros((entries, kernel.IOVEC_BYTES // 8), np.int64)
        self.state[S_IOVECS] = self.iovecs.ctypes.data


# ── one read ─────────────────────────────────────────────────────────────────────────────────────────────────
@lean
def begin(
    rows: Words,
    state: Words,
    counters: Words,
    opcode: int,
    fd: int,
    fixed_file: int,
    offset: int,
    address: int,
    want: int,
    direct: int,
    buffer: int,
    iovec: int,
    user_data: int,
    bulk: int,
) -> int:
    """Fill a free row (there is one); its number. ``iovec`` 0: the row's own. An engine puts it in the queue."""
    row = state[S_FREE]
    state[S_FREE] = rows[row, R_NEXT]
    state[S_FLYING] += 1
    rows[row, R_STATE] = FLYING
    rows[row, R_OPCODE] = opcode
    rows[row, R_FD] = fd
    rows[row, R_FIXED_FILE] = fixed_file
    rows[row, R_OFFSET] = offset
    rows[row, R_ADDRESS] = address
    rows[row, R_WANT] = want
    rows[row, R_DONE] = 0
    rows[row, R_DIRECT] = direct
    rows[row, R_BUFFER] = buffer
    rows[row, R_IOVEC] = iovec if iovec != 0 else state[S_IOVECS] + row * kernel.IOVEC_BYTES
    rows[row, R_RETRIES] = 0
    rows[row, R_ERRNO] = 0
    rows[row, R_ENDED] = 0
    rows[row, R_BULK] = bulk
    rows[row, R_USER_DATA] = user_data
    counters[T_SUBMITTED_READS] += 1
    counters[T_SUBMITTED_BYTES] += want
    if opcode == kernel.OP_URING_CMD:
        counters[T_PASSTHROUGH] += 1
    elif opcode == kernel.OP_READ_FIXED:
        counters[T_REGISTERED] += 1
    elif opcode == kernel.OP_READV:
        counters[T_IOVEC] += 1
    else:
        counters[T_PLAIN] += 1
    return row


@lean
def length_of(rows: Words, row: int) -> int:
    """How many bytes to ask for now."""
    return min(rows[row, R_WANT] - rows[row, R_DONE], kernel.MAX_READ_BYTES)


@lean
def settle(rows: Words, state: Words, counters: Words, row: int, res: int) -> bool:
    """Act on a result (bytes, or −errno): True where the read is over, ``finish`` it; False where it is to be put in
    the queue again, R_DONE says from where."""
    done = rows[row, R_DONE]
    if rows[row, R_OPCODE] == kernel.OP_URING_CMD and res >= 0:
        # No byte count but 0, or a status of the drive's own. A command is whole or nothing.
        rows[row, R_DONE] = rows[row, R_WANT] if res == 0 else 0
        rows[row, R_ERRNO] = -res
        return True
    verdict = judge(res, done, rows[row, R_WANT], rows[row, R_DIRECT], rows[row, R_RETRIES])
    if state[S_CLOSING] != 0 and verdict in (MORE, RETRY):
        verdict = FAIL
        res = -_ECANCELED if res >= 0 else res
    if verdict == RETRY:
        counters[T_RETRIES] += 1
        rows[row, R_RETRIES] += 1
        return False
    if verdict == MORE:
        counters[T_CONTINUATIONS] += 1
        rows[row, R_DONE] = resume_at(done + res, rows[row, R_DIRECT])
        return False
    if verdict == FAIL:
        rows[row, R_ERRNO] = -res
        return True
    rows[row, R_ENDED] = 1 if verdict == END else 0
    rows[row, R_DONE] = min(done + res, rows[row, R_WANT])
    return True


@lean
def release(rows: Words, state: Words, row: int) -> None:
    """Make a row free again."""
    rows[row, R_STATE] = FREE
    rows[row, R_NEXT] = state[S_FREE]
    state[S_FREE] = row


@lean
def finish(rows: Words, state: Words, counters: Words, finished: Words, extents: Words, row: int) -> None:
    """A read is over, and the kernel holds nothing of it: hand its row to the stream, or a bulk read's result to
    ``extents``."""
    state[S_FLYING] -= 1
    if rows[row, R_ERRNO] == 0:
        counters[T_COMPLETED_READS] += 1
        counters[T_COMPLETED_BYTES] += rows[row, R_DONE]
        counters[T_PAST_END] += rows[row, R_WANT] - rows[row, R_DONE]
    else:
        counters[T_FAILED] += 1
    bulk = rows[row, R_BULK]
    if bulk < 0:
        rows[row, R_STATE] = FINISHED
        finished[(state[S_FIRST] + state[S_FINISHED]) % len(finished)] = row
        state[S_FINISHED] += 1
        return
    extents[bulk, X_BYTES] = rows[row, R_DONE]
    extents[bulk, X_ERRNO] = rows[row, R_ERRNO]
    state[S_ENDED] += 1
    if rows[row, R_ERRNO] == 0:
        fetch_add(state[S_TAIL], 1)
    release(rows, state, row)


@lean
def take(rows: Words, state: Words, finished: Words) -> int:
    """The row that finished first, or −1. It is the stream's until ``release``."""
    if state[S_FINISHED] == 0:
        return -1
    row = finished[state[S_FIRST]]
    state[S_FIRST] = (state[S_FIRST] + 1) % len(finished)
    state[S_FINISHED] -= 1
    return row


# ── on the mapped queues ─────────────────────────────────────────────────────────────────────────────────────
@lean
def put(queue: Words, rows: Words, row: int) -> None:
    """Write the SQE for what is missing of a read, or for a command. The SQ has room, an entry for each row."""
    if rows[row, R_OPCODE] == kernel.OP_URING_CMD:
        kernel.put_command(next_sqe(queue), 0, rows[row, R_FD], rows[row, R_OFFSET], 0, 0, row, rows[row, R_IOVEC])
        return
    address, length = rows[row, R_ADDRESS] + rows[row, R_DONE], length_of(rows, row)
    if rows[row, R_OPCODE] == kernel.OP_READV:
        kernel.put_iovec(rows[row, R_IOVEC], address, length)
        address, length = rows[row, R_IOVEC], 1
    kernel.put_read(
        next_sqe(queue),
        rows[row, R_OPCODE],
        rows[row, R_FIXED_FILE],
        rows[row, R_FD],
        rows[row, R_OFFSET] + rows[row, R_DONE],
        address,
        length,
        rows[row, R_BUFFER],
        row,
    )


@lean
def start(
    queue: Words,
    rows: Words,
    state: Words,
    counters: Words,
    opcode: int,
    fd: int,
    fixed_file: int,
    offset: int,
    address: int,
    want: int,
    direct: int,
    buffer: int,
    iovec: int,
    user_data: int,
) -> None:
    """``begin`` and ``put`` in one, so that no exception can come between."""
    row = begin(
        rows, state, counters, opcode, fd, fixed_file, offset, address, want, direct, buffer, iovec, user_data, -1
    )
    put(queue, rows, row)


@lean
def reap(queue: Words, rows: Words, state: Words, counters: Words, finished: Words, extents: Words) -> int:
    """Act on all completions that are there; how many, or what is broken."""
    count = arrived(queue)
    for i in range(count):
        cqe = arrival(queue, i)
        row = kernel.cqe_user_data(cqe)
        if row == CANCEL:
            state[S_CANCELS] -= 1
            continue
        if row < 0 or row >= len(rows) or rows[row, R_STATE] != FLYING:
            return BAD_COMPLETION
        if settle(rows, state, counters, row, kernel.cqe_res(cqe)):
            finish(rows, state, counters, finished, extents, row)
        else:
            put(queue, rows, row)
    taken(queue, count)
    if overflowed(queue):
        return OVERFLOW
    return BAD_COUNT if unsound(queue, state[S_FLYING] + state[S_CANCELS]) else count


@lean
def turn(queue: Words, rows: Words, state: Words, counters: Words, finished: Words, extents: Words) -> int:
    """Hand over what is queued and act on what has completed, without waiting; 0, −errno, or what is broken."""
    code = submit(queue, 0, 0)
    if code == 0:
        code = reap(queue, rows, state, counters, finished, extents)
        if code > 0:
            code = submit(queue, 0, 0)  # reads that go on
    return min(code, 0)


@lean
def wait(
    queue: Words, rows: Words, state: Words, counters: Words, finished: Words, extents: Words, until_ns: int
) -> int:
    """``turn`` until a read has finished, none is in flight, or the time is ``until_ns``."""
    code = turn(queue, rows, state, counters, finished, extents)
    while code == 0 and state[S_FINISHED] == 0 and state[S_FLYING] + state[S_CANCELS] > 0:
        left = until_ns - clock_ns()
        if left <= 0:
            break
        code = submit(queue, 1, left)
        if code == 0:
            code = min(0, reap(queue, rows, state, counters, finished, extents))
    return code


@lean
def begin_extents(rows: Words, state: Words, counters: Words, extents: Words) -> int:
    """Fill a row with the bulk call's next read, where depth and rows allow; the row, or −1."""
    i = state[S_BEGUN]
    if i >= len(extents) or state[S_FREE] < 0 or state[S_FLYING] >= state[S_DEPTH]:
        return -1
    state[S_BEGUN] += 1
    return begin(
        rows,
        state,
        counters,
        state[S_OPCODE],
        extents[i, X_FD],
        state[S_FIXED_FILE],
        extents[i, X_OFFSET],
        extents[i, X_ADDRESS],
        extents[i, X_LENGTH],
        extents[i, X_DIRECT],
        state[S_BUFFER],
        0,
        0,
        i,
    )


@lean
def run(
    queue: Words, rows: Words, state: Words, counters: Words, finished: Words, extents: Words, until_ns: int
) -> int:
    """Read ``extents``, as many at a time as the depth allows, until all have ended or the time is ``until_ns``,
    about: the clock, a system call here, is read once in ``_CLOCK_EVERY`` rounds."""
    left, rounds = until_ns - clock_ns(), 0
    while state[S_ENDED] < len(extents) and left > 0:
        row = begin_extents(rows, state, counters, extents)
        while row >= 0:
            put(queue, rows, row)
            row = begin_extents(rows, state, counters, extents)
        code = submit(queue, 1, left)
        if code < 0:
            return code
        code = reap(queue, rows, state, counters, finished, extents)
        if code < 0:
            return code
        rounds += 1
        if code == 0 or rounds % _CLOCK_EVERY == 0:
            left = until_ns - clock_ns()
    return 0

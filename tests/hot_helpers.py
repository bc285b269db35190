"""Compiled loops and a second process for the tests of the arena's foundation.

Every loop takes ``base`` first, the arena's address in the process that runs it, and offsets from there.
"""

from __future__ import annotations

import multiprocessing
import threading

import numba

from uring_actors.arena import abi
from uring_actors.arena import atomics as a
from uring_actors.arena import bell as b
from uring_actors.arena import channel as c
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena

WRAP = abi.WRAP
DEADLINE_NS = 60_000_000_000  # a whole loop
LONG_NS = 5_000_000_000  # one sleep: so long that only a lost wake-up makes it expire
LAYOUT = ArenaLayout(lanes=1, slots_per_lane=4, slot_bytes=1 << 18, result_bytes=4096)
_HEAD, _TAIL, _RECORDS = abi.CHANNEL_HEAD, abi.CHANNEL_TAIL, abi.CHANNEL_RECORDS

# Offsets in the data slots' memory that the tests use as scratch; each word on its own cache line.
WORD, WORD_2, OUT, SLEEP_WORD, BELL_A, BELL_B = (LAYOUT.data + 64 * i for i in range(6))
CHANNEL = LAYOUT.slot(1)

loop = numba.njit(nogil=True)


# ── counters that several change ─────────────────────────────────────────────────────────────────────────────


@loop
def add_loop(base, word, rounds):
    for _ in range(rounds):
        a.fetch_add(base + word, 3)
    return 0


@loop
def swap_loop(base, word, rounds):
    """Add 3 by compare-and-swap; how often it had to be tried again."""
    again = 0
    for _ in range(rounds):
        old = a.load_acquire(base + word)
        while not a.compare_swap(base + word, old, old + 3):
            again += 1
            old = a.load_acquire(base + word)
    return again


@loop
def ring_soon(base, word, pause_ns):
    """Wait a little, change the word, wake whoever sleeps on it; the word's new value."""
    a.futex_wait(base + SLEEP_WORD, 0, pause_ns)
    a.fetch_add(base + word, 1)
    a.syscall(a.SYS_FUTEX, base + word, a.FUTEX_WAKE, 1, 0, 0, 0)
    return a.load_acquire(base + word)


# ── records that say what they must be ───────────────────────────────────────────────────────────────────────


@loop
def mix(number, salt):
    """63 well-mixed bits of ``number``."""
    x = number * 0x5851F42D4C957F2D + salt * 0x14057B7EF767814F
    x ^= (x >> 29) & 0x7FFFFFFFF
    x *= 0x369DEA0F31A53F85
    return x ^ ((x >> 32) & WRAP)


@loop
def random(state):
    """xorshift64, kept to 62 bits of state."""
    state ^= (state << 13) & 0x3FFFFFFFFFFFFFFF
    state ^= state >> 7
    state ^= (state << 17) & 0x3FFFFFFFFFFFFFFF
    return state


@loop
def dawdle(base, state):
    """Now and then a spin or a short sleep, as ``state`` has it."""
    if state & 0x3FF == 0:
        a.futex_wait(base + SLEEP_WORD, 0, ((state >> 12) & 15) * 1000)
    elif state & 0x3F == 1:
        for _ in range((state >> 12) & 255):
            a.pause()


@loop
def produce(base, channel, mask, data_bell, room_bell, first, count, seed, spins):
    """Push ``count`` records numbered from ``first``. Returns (wake-ups lost, sleeps, records pushed)."""
    lost, sleeps, state = 0, 0, seed
    channel, data_bell, room_bell = base + channel, base + data_bell, base + room_bell
    deadline = a.clock_ns() + DEADLINE_NS
    for i in range(count):
        n = first + i
        while not c.push(channel, mask, mix(n, 1), mix(n, 2), mix(n, 3), mix(n, 4), mix(n, 5), n, mix(n, 7)):
            b.ring(data_bell, 1)  # what was pushed quietly
            spin = spins
            while spin > 0 and c.room(channel, mask) == 0:
                a.pause()
                spin -= 1
            if spin > 0:
                continue
            key = b.prepare(room_bell)
            if c.room(channel, mask) != 0:
                b.cancel(room_bell)
                continue
            start = a.clock_ns()
            b.sleep(room_bell, key, LONG_NS)
            sleeps += 1
            now = a.clock_ns()
            if now - start >= LONG_NS and c.room(channel, mask) != 0:
                lost += 1
            if now > deadline:
                return lost, sleeps, i
        if seed != 0:
            state = random(state)
            dawdle(base, state)
        if (state >> 20) & 3 != 1:  # the others are announced by a later ring
            b.ring(data_bell, 1)
    b.ring(data_bell, 1)
    return lost, sleeps, count


@loop
def consume(base, channel, mask, data_bell, room_bell, first, count, seed, spins):
    """Take ``count`` records. Returns (wake-ups lost, sleeps, out of order, torn, records taken)."""
    lost, sleeps, disorder, torn, state = 0, 0, 0, 0, seed
    channel, data_bell, room_bell = base + channel, base + data_bell, base + room_bell
    deadline = a.clock_ns() + DEADLINE_NS
    taken = 0
    while taken < count:
        record = c.peek(channel, mask)
        if record == 0:
            spin = spins
            while spin > 0 and c.pending(channel) == 0:
                a.pause()
                spin -= 1
            if spin > 0:
                continue
            key = b.prepare(data_bell)
            if c.pending(channel) != 0:
                b.cancel(data_bell)
                continue
            start = a.clock_ns()
            b.sleep(data_bell, key, LONG_NS)
            sleeps += 1
            now = a.clock_ns()
            if now - start >= LONG_NS and c.pending(channel) != 0:
                lost += 1
            if now > deadline:
                break
            continue
        n = first + taken
        if a.load32(record + abi.RECORD_STATUS) != n & WRAP:
            disorder += 1
            n = n & ~WRAP | a.load32(record + abi.RECORD_STATUS)
        if (
            a.load32(record + abi.RECORD_DATA_SLOT) != mix(n, 1) & WRAP
            or a.load32(record + abi.RECORD_BYTES_READ) != mix(n, 2) & WRAP
            or a.load32(record + abi.RECORD_FILE_ID) != mix(n, 3) & WRAP
            or a.load32(record + abi.RECORD_EXTENT_ID) != mix(n, 4) & WRAP
            or a.load64(record + abi.RECORD_FILE_OFFSET) != mix(n, 5)
            or a.load32(record + abi.RECORD_FLAGS) != mix(n, 7) & WRAP
        ):
            torn += 1
        if seed != 0:
            state = random(state)
            dawdle(base, state)
        # Not read again: a producer that overwrote the record before this would show as a torn one.
        c.pop(channel)
        taken += 1
        b.ring(room_bell, 1)
    return lost, sleeps, disorder, torn, taken


# ── ping-pong ────────────────────────────────────────────────────────────────────────────────────────────────


@loop
def prepare_without_fence(bell):
    """``bell.prepare`` as one might write it: plain stores, no read-modify-write, no fence."""
    a.store_release(bell + 4, a.load_acquire(bell + 4) + 1)
    return a.load_acquire(bell)


@loop
def retract_without_fence(bell):
    a.store_release(bell + 4, a.load_acquire(bell + 4) - 1)


@loop
def sleep_without_fence(bell, key, timeout_ns):
    a.futex_wait(bell, key, timeout_ns)
    retract_without_fence(bell)


@loop
def ring_without_fence(bell, wake):
    if a.load_acquire(bell + 4) != 0:
        a.fetch_add(bell, 1)
        a.syscall(a.SYS_FUTEX, bell, a.FUTEX_WAKE, wake, 0, 0, 0)


def make_ping_pong(prepare, cancel, sleep, ring):
    """Two players; each waits for the other's word to reach its round, then stores its own and rings.

    Spins before sleeping are random and about as long as the other's answer takes, so that sleeper and ringer meet
    again and again within a few instructions. Returns (wake-ups lost, sleeps, rounds).
    """

    @loop
    def ping_pong(base, mine, my_bell, other, other_bell, first, rounds, seed, spins, timeout_ns):
        lost, sleeps, state = 0, 0, seed
        mine, my_bell, other, other_bell = base + mine, base + my_bell, base + other, base + other_bell
        deadline = a.clock_ns() + DEADLINE_NS
        for i in range(1, rounds + 1):
            if first:
                a.store_release(mine, i)
                ring(other_bell, 1)
            state = random(state)
            spin = (state >> 10) & spins
            while spin > 0 and a.load_acquire(other) != i & WRAP:
                spin -= 1
            while a.load_acquire(other) != i & WRAP:
                key = prepare(my_bell)
                if a.load_acquire(other) == i & WRAP:
                    cancel(my_bell)
                    break
                start = a.clock_ns()
                sleep(my_bell, key, timeout_ns)
                sleeps += 1
                now = a.clock_ns()
                if now - start >= timeout_ns and a.load_acquire(other) == i & WRAP:
                    lost += 1
                if now > deadline:
                    return lost, sleeps, i
            if not first:
                a.store_release(mine, i)
                ring(other_bell, 1)
        return lost, sleeps, rounds

    return ping_pong


ping_pong = make_ping_pong(b.prepare, b.cancel, b.sleep, b.ring)
ping_pong_without_fence = make_ping_pong(
    prepare_without_fence, retract_without_fence, sleep_without_fence, ring_without_fence
)


# ── many sleepers on one bell ────────────────────────────────────────────────────────────────────────────────


@loop
def take_tokens(base, tokens, bell, stop, spins):
    """Take tokens until told to stop. Returns (tokens taken, sleeps, wake-ups lost)."""
    taken, sleeps, lost = 0, 0, 0
    tokens, bell, stop = base + tokens, base + bell, base + stop
    while True:
        left = a.load_acquire(tokens)
        if left != 0:
            if a.compare_swap(tokens, left, left - 1):
                taken += 1
                for _ in range(taken & spins):
                    a.pause()
            continue
        key = b.prepare(bell)
        if a.load_acquire(tokens) != 0:
            b.cancel(bell)
            continue
        if a.load_acquire(stop) != 0:
            b.cancel(bell)
            return taken, sleeps, lost
        start = a.clock_ns()
        b.sleep(bell, key, LONG_NS)
        sleeps += 1
        if a.clock_ns() - start >= LONG_NS and a.load_acquire(tokens) != 0:
            lost += 1


@loop
def give_tokens(base, tokens, bell, rounds, seed):
    """Give 1 to 4 tokens a round and wake that many. Returns how many were given."""
    given, state = 0, seed
    for _ in range(rounds):
        state = random(state)
        some = 1 + ((state >> 8) & 3)
        a.fetch_add(base + tokens, some)
        b.ring(base + bell, some)
        given += some
        for _ in range((state >> 20) & 127):
            a.pause()
    return given


@loop
def wait_loop(base, bell, channel, mask, count, spins):
    """Take ``count`` records with ``wait_pending``. Returns (records, waits that found nothing)."""
    taken, empty = 0, 0
    while taken < count:
        some = b.wait_pending(base + bell, base + channel, spins, LONG_NS)
        if some == 0:
            empty += 1
        for _ in range(some):
            record = c.peek(base + channel, mask)
            if a.load32(record + abi.RECORD_FILE_ID) != taken & WRAP:
                return -taken, empty
            c.pop(base + channel)
            taken += 1
    return taken, empty


@loop
def feed_loop(base, bell, channel, mask, count, seed):
    """Push ``count`` numbered records with pauses, ringing after each."""
    state = seed
    for i in range(count):
        while not c.push(base + channel, mask, 0, 0, i, 0, 0, 0, 0):
            a.pause()
        b.ring(base + bell, 1)
        state = random(state)
        dawdle(base, state)
    return count


@loop
def watch_tail(base, tail, order, ring, mask, count):
    """Watch a pump's tail until it is ``count``. Returns (the tail, slots that it announced and that were EMPTY, how
    often it was seen to move)."""
    seen, ahead, looks = 0, 0, 0
    deadline = a.clock_ns() + DEADLINE_NS
    while seen < count and a.clock_ns() < deadline:
        now = a.load_acquire(base + tail)
        if now == seen:
            continue
        looks += 1
        for position in range(seen, now):
            slot = a.load_acquire(base + order + 4 * (position & mask))
            if a.load_acquire(base + ring + slot * abi.RING_SLOT_BYTES) == abi.EMPTY:
                ahead += 1
        seen = now
    return seen, ahead, looks


# ── where they run ───────────────────────────────────────────────────────────────────────────────────────────


class InThread:
    """A loop on a thread; ``result()`` joins it."""

    def __init__(self, function, *args):
        self._answer = None
        self._thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self._thread.start()

    def _run(self, function, args):
        self._answer = function(*args)

    def result(self):
        self._thread.join(2 * DEADLINE_NS / 1e9)
        return self._answer


def serve(handle, pipe):
    """The other process: attaches the arena and runs the loops that it is told to."""
    arena = Arena.attach(handle)
    pipe.send("attached")
    while (order := pipe.recv()) is not None:
        name, args = order
        pipe.send(globals()[name](arena.address, *args))
    arena.close()


class Peer:
    """A spawned process that runs loops of this module on the same arena."""

    def __init__(self, arena):
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(arena.handle(), there), daemon=True)
        self._process.start()
        there.close()
        assert self._pipe.recv() == "attached"

    def start(self, function, *args):
        """``args`` are what follows ``base``."""
        self._pipe.send((function.__name__, args))

    def result(self):
        assert self._pipe.poll(2 * DEADLINE_NS / 1e9), "the other process doesn't answer"
        return self._pipe.recv()

    def close(self):
        self._pipe.send(None)
        self._process.join(10)
        self._pipe.close()

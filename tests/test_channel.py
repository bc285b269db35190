"""Channels and bells between two processes: nothing lost, doubled, torn or reordered, and no wake-up lost."""

from __future__ import annotations

import time

import pytest

from tests import hot_helpers as h
from uring_actors.arena import abi, bell, channel
from uring_actors.arena.abi import WRAP

JUST_BEFORE_THE_WRAP = (1 << 32) - 1000


def start_counters_at(arena, value):
    arena.words(h.CHANNEL + abi.CHANNEL_HEAD, 1)[0] = value
    arena.words(h.CHANNEL + abi.CHANNEL_TAIL, 1)[0] = value


def exchange(arena, peer, mask, count, *, seed, spins, start=0):
    """Records from this process to the other. Returns both sides' sleeps and the seconds it took."""
    start_counters_at(arena, start)
    args = (h.CHANNEL, mask, h.BELL_A, h.BELL_B, start, count)
    for function in (h.produce, h.consume):  # compiled before the clock starts
        one_by_one = (*args[:-1], 0)
        function(arena.address, *one_by_one, seed, spins)
    peer.start(h.consume, *one_by_one, seed, spins)
    peer.result()

    began = time.perf_counter()
    peer.start(h.consume, *args, 7 * seed, spins)
    lost, sleeps, pushed = h.produce(arena.address, *args, seed, spins)
    their_lost, their_sleeps, disorder, torn, taken = peer.result()
    seconds = time.perf_counter() - began
    assert (pushed, taken) == (count, count)
    assert (disorder, torn) == (0, 0)
    assert (lost, their_lost) == (0, 0)
    for name in ("CHANNEL_HEAD", "CHANNEL_TAIL"):
        assert arena.words(h.CHANNEL + getattr(abi, name), 1)[0] == (start + count) & WRAP
    for at in (h.BELL_A, h.BELL_B):
        assert arena.words(at, 2)[1] == 0, "a sleeper is still counted"
    return sleeps, their_sleeps, seconds


def test_two_million_records_under_random_pauses(scratch, peer):
    sleeps, their_sleeps, seconds = exchange(
        scratch, peer, 255, 2_000_000, seed=88172645463325252 >> 2, spins=50, start=JUST_BEFORE_THE_WRAP
    )
    print(f"{seconds / 2e6 * 1e9:.0f} ns a record; slept {sleeps} and {their_sleeps} times")
    assert sleeps + their_sleeps > 0


@pytest.mark.parametrize(
    ("mask", "count", "spins"),
    [(0, 100_000, 0), (0, 50_000, 500), (1, 100_000, 20), (3, 100_000, 0), (4095, 300_000, 0)],
)
def test_sizes_from_a_single_record_on(scratch, peer, mask, count, spins):
    sleeps, their_sleeps, seconds = exchange(
        scratch, peer, mask, count, seed=0x2545F4914F6CDD1D >> 2, spins=spins, start=JUST_BEFORE_THE_WRAP
    )
    print(f"{mask + 1}: {seconds / count * 1e9:.0f} ns a record; slept {sleeps} and {their_sleeps} times")


def test_without_pauses(scratch, peer):
    sleeps, their_sleeps, seconds = exchange(scratch, peer, 1023, 500_000, seed=0, spins=2000)
    print(f"{seconds / 5e5 * 1e9:.0f} ns a record; slept {sleeps} and {their_sleeps} times")


@pytest.mark.parametrize("start", [0, 5, WRAP - 1, WRAP])
@pytest.mark.parametrize("mask", [0, 1, 7])
def test_full_and_empty(scratch, start, mask):
    start_counters_at(scratch, start)
    at, records = scratch.at(h.CHANNEL), scratch.words(h.CHANNEL + 128, 8 * (mask + 1))
    for lap in range(3):
        assert channel.pending(at) == channel.peek(at, mask) == 0
        for i in range(mask + 1):
            assert channel.room(at, mask) == mask + 1 - i
            assert channel.push(at, mask, i, lap, 3, 4, -5, WRAP, 1 << 31)
            assert channel.pending(at) == i + 1
        assert channel.room(at, mask) == 0
        before = records.copy()
        assert not channel.push(at, mask, 99, 99, 99, 99, 99, 99, 99)
        assert (records == before).all()
        for i in range(mask + 1):
            record = channel.peek(at, mask)
            assert record == at + 128 + 32 * ((start + lap * (mask + 1) + i) % (mask + 1))
            assert channel.peek(at, mask) == record
            words = scratch.words(record - scratch.address, 8)
            assert list(words) == [i, lap, 3, 4, WRAP - 4, WRAP, WRAP, 1 << 31]
            channel.pop(at)
            assert channel.room(at, mask) == i + 1
    assert scratch.words(h.CHANNEL + 128 + 32 * (mask + 1), 8).sum() == 0, "written past the end"


# ── bells ────────────────────────────────────────────────────────────────────────────────────────────────────


def play(arena, peer, function, rounds, *, spins, timeout_ns):
    """A ping-pong with the other process: (wake-ups lost, sleeps, seconds)."""
    ours = (h.WORD, h.BELL_A, h.WORD_2, h.BELL_B)
    theirs = (h.WORD_2, h.BELL_B, h.WORD, h.BELL_A)
    for warm in (True, False):
        arena.words(h.WORD, 1)[0] = arena.words(h.WORD_2, 1)[0] = 0
        count = 10 if warm else rounds
        began = time.perf_counter()
        peer.start(function, *theirs, False, count, 3141592653589793, spins, timeout_ns)
        lost, sleeps, played = function(arena.address, *ours, True, count, 2718281828459045, spins, timeout_ns)
        their_lost, their_sleeps, their_played = peer.result()
        seconds = time.perf_counter() - began
        assert (played, their_played) == (count, count)
    return lost + their_lost, sleeps + their_sleeps, seconds


def test_no_wake_up_is_lost_in_a_million_rounds(scratch, peer):
    rounds = 1_000_000
    lost, sleeps, seconds = play(scratch, peer, h.ping_pong, rounds, spins=16383, timeout_ns=h.LONG_NS)
    print(f"{seconds / rounds * 1e9:.0f} ns a round, {sleeps} sleeps")
    assert lost == 0
    assert sleeps > 1000, "hardly anybody slept: this tested nothing"
    assert scratch.words(h.BELL_A, 2)[1] == scratch.words(h.BELL_B, 2)[1] == 0


def test_a_wake_up_each_round(scratch, peer):
    rounds = 50_000
    lost, sleeps, seconds = play(scratch, peer, h.ping_pong, rounds, spins=0, timeout_ns=h.LONG_NS)
    print(f"{seconds / sleeps * 1e9:.0f} ns a wake-up, {sleeps / rounds:.2f} sleeps a round")
    assert lost == 0


@pytest.mark.slow(reason="shows that the test above can fail; how often depends on the processor")
def test_without_fences_wake_ups_are_lost(scratch, peer):
    # Counted on two x86-64 cores with others at work: 137 in 300,000 rounds (and 56 in 2,000,000 in another set-up).
    lost, sleeps, seconds = play(
        scratch, peer, h.ping_pong_without_fence, 150_000, spins=16383, timeout_ns=20_000_000
    )
    print(f"{lost} wake-ups lost without fences; {sleeps} sleeps, {seconds:.1f} s")
    if lost == 0:
        pytest.skip("no wake-up was lost without fences on this machine this time")


def test_many_sleepers_on_one_bell(scratch):
    stop = h.SLEEP_WORD
    takers = [h.InThread(h.take_tokens, scratch.address, h.WORD, h.BELL_A, stop, 63) for _ in range(4)]
    given = h.give_tokens(scratch.address, h.WORD, h.BELL_A, 100_000, 1234567890123)
    scratch.words(stop, 1)[0] = 1
    bell.ring(scratch.at(h.BELL_A), 1 << 30)
    results = [taker.result() for taker in takers]
    print(results)
    assert sum(taken for taken, _, _ in results) == given
    assert [lost for _, _, lost in results] == [0] * 4
    assert scratch.words(h.WORD, 1)[0] == 0
    assert scratch.words(h.BELL_A, 2)[1] == 0


def test_ringing_without_sleepers_changes_nothing(scratch):
    bell.ring(scratch.at(h.BELL_A), 1)
    assert list(scratch.words(h.BELL_A, 2)) == [0, 0]


def test_ringing_after_prepare_keeps_the_sleeper_awake(scratch):
    key = bell.prepare(scratch.at(h.BELL_A))
    assert list(scratch.words(h.BELL_A, 2)) == [0, 1]
    bell.ring(scratch.at(h.BELL_A), 1)
    began = time.monotonic()
    bell.sleep(scratch.at(h.BELL_A), key, h.LONG_NS)
    assert time.monotonic() - began < 0.8 * h.LONG_NS / 1e9
    assert list(scratch.words(h.BELL_A, 2)) == [1, 0]
    bell.prepare(scratch.at(h.BELL_A))
    bell.cancel(scratch.at(h.BELL_A))
    assert list(scratch.words(h.BELL_A, 2)) == [1, 0]


def test_the_bells_sequence_wraps(scratch):
    at, words = scratch.at(h.BELL_A), scratch.words(h.BELL_A, 2)
    words[0] = WRAP
    key = bell.prepare(at)
    assert key == WRAP
    sleeper = h.InThread(bell.sleep, at, key, h.LONG_NS)
    time.sleep(0.05)
    began = time.monotonic()
    bell.ring(at, 1)
    sleeper.result()
    assert time.monotonic() - began < 0.8 * h.LONG_NS / 1e9
    assert list(words) == [0, 0]


# ── adaptive waiting ─────────────────────────────────────────────────────────────────────────────────────────


def test_wait_pending_finds_what_is_there_without_sleeping(scratch):
    at = scratch.at(h.CHANNEL)
    channel.push(at, 7, 0, 0, 0, 0, 0, 0, 0)
    channel.push(at, 7, 0, 0, 0, 0, 0, 0, 0)
    for spins in (0, 1, 1000):
        began = time.monotonic()
        assert bell.wait_pending(scratch.at(h.BELL_A), at, spins, h.LONG_NS) == 2
        assert time.monotonic() - began < 0.8 * h.LONG_NS / 1e9
        assert scratch.words(h.BELL_A, 2)[1] == 0


@pytest.mark.parametrize("spins", [0, 100])
def test_wait_pending_gives_up_in_time(scratch, spins):
    began = time.monotonic()
    assert bell.wait_pending(scratch.at(h.BELL_A), scratch.at(h.CHANNEL), spins, 50_000_000) == 0
    assert 0.05 <= time.monotonic() - began < 10
    assert scratch.words(h.BELL_A, 2)[1] == 0


@pytest.mark.parametrize("spins", [0, 30, 2000])
def test_wait_pending_between_processes(scratch, peer, spins):
    count = 50_000
    peer.start(h.feed_loop, h.BELL_A, h.CHANNEL, 63, count, 1618033988749894)
    taken, empty = h.wait_loop(scratch.address, h.BELL_A, h.CHANNEL, 63, count, spins)
    assert peer.result() == taken == count
    print(f"{spins} spins: {empty} waits found nothing")
    assert scratch.words(h.BELL_A, 2)[1] == 0

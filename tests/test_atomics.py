"""Each intrinsic against Python's integers, and what it must do between threads and processes."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import numba
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from tests import hot_helpers as h
from uring_actors.arena import atomics as a
from uring_actors.arena.abi import WRAP

i64 = types.int64
words64 = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([0, 1, -1, WRAP, WRAP + 1, 1 << 31, -(1 << 31)])
words32 = st.integers(0, WRAP) | st.sampled_from([0, 1, 1 << 31, WRAP - 1, WRAP])
GUARD = 0xA5A5A5A5


def compiled(signature):
    return numba.njit(signature, nogil=True)


@compiled(i64(i64))
def load_acquire(at):
    return a.load_acquire(at)


@compiled(i64(i64))
def load32(at):
    return a.load32(at)


@compiled(i64(i64))
def load64(at):
    return a.load64(at)


@compiled(i64(i64))
def load8(at):
    return a.load8(at)


@compiled(types.void(i64, i64))
def store_release(at, value):
    a.store_release(at, value)


@compiled(types.void(i64, i64))
def store32(at, value):
    a.store32(at, value)


@compiled(types.void(i64, i64))
def store64(at, value):
    a.store64(at, value)


@compiled(types.boolean(i64, i64, i64))
def compare_swap(at, expected, value):
    return a.compare_swap(at, expected, value)


@compiled(i64(i64, i64))
def fetch_add(at, value):
    return a.fetch_add(at, value)


@compiled(i64(i64, i64, i64, i64, i64, i64, i64))
def syscall(number, b, c, d, e, f, g):
    return a.syscall(number, b, c, d, e, f, g)


@compiled(i64(i64, i64, i64))
def futex_wait(at, expected, timeout_ns):
    return a.futex_wait(at, expected, timeout_ns)


@compiled(i64())
def clock_ns():
    return a.clock_ns()


@compiled(types.void())
def fence_and_pause():
    a.fence()
    a.pause()


@pytest.fixture(scope="module")
def cell(shared_arena):
    """Four 32-bit words; the tests use the second and third, the others guard them."""
    words = shared_arena.words(h.WORD, 4)
    return shared_arena.at(h.WORD), words


def put(words, low, high=GUARD):
    words[:] = [GUARD, GUARD, low, high]


def around(words):
    return [int(word) for word in words[[0, 1, 3]]]


@pytest.mark.parametrize("load", [load_acquire, load32])
@given(word=words32)
def test_32_bit_loads_zero_extend(cell, load, word):
    at, words = cell
    put(words, word)
    assert load(at + 8) == word


@pytest.mark.parametrize("store", [store_release, store32])
@given(value=words64)
def test_32_bit_stores_truncate_and_touch_nothing_else(cell, store, value):
    at, words = cell
    put(words, 7)
    store(at + 8, value)
    assert words[2] == value & WRAP
    assert around(words) == [GUARD] * 3


@given(value=words64)
def test_64_bit_words(cell, value):
    at, words = cell
    put(words, 7)
    store64(at + 8, value)
    assert load64(at + 8) == value
    assert int(words[2]) | int(words[3]) << 32 == value & (1 << 64) - 1
    assert around(words)[:2] == [GUARD] * 2


@given(word=words32, byte=st.integers(0, 3))
def test_bytes_zero_extend_at_any_address(cell, word, byte):
    at, words = cell
    put(words, word)
    assert load8(at + 8 + byte) == (word >> 8 * byte) & 255


@given(word=words32, expected=words64, value=words64, same=st.booleans())
def test_compare_swap(cell, word, expected, value, same):
    at, words = cell
    if same:  # the upper half of what is expected must not matter
        expected = (expected & ~WRAP) | word
    put(words, word)
    swapped = compare_swap(at + 8, expected, value)
    assert swapped is (expected & WRAP == word)
    assert words[2] == (value & WRAP if swapped else word)
    assert around(words) == [GUARD] * 3


@given(word=words32, value=words64)
def test_fetch_add_wraps_and_returns_the_former_value(cell, word, value):
    at, words = cell
    put(words, word)
    assert fetch_add(at + 8, value) == word
    assert words[2] == (word + value) & WRAP
    assert around(words) == [GUARD] * 3


def test_fence_and_pause_compile_to_something():
    fence_and_pause()
    assembly = "".join(fence_and_pause.inspect_asm().values())
    if a._MACHINE == "x86_64":
        assert "pause" in assembly
        assert "mfence" in assembly or "lock" in assembly


# ── no update is lost ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loop", [h.add_loop, h.swap_loop])
@pytest.mark.parametrize("where", ["threads", "processes", "both"])
def test_no_update_is_lost(scratch, peer, loop, where):
    rounds, begin = 300_000, (1 << 32) - 100_000
    scratch.words(h.WORD, 1)[0] = begin
    others = 0
    if where != "threads":
        peer.start(loop, h.WORD, rounds)
        others += 1
    threads = []
    if where != "processes":
        threads.append(h.InThread(loop, scratch.address, h.WORD, rounds))
        others += 1
    loop(scratch.address, h.WORD, rounds)
    for thread in threads:
        assert thread.result() is not None
    if where != "threads":
        peer.result()
    assert scratch.words(h.WORD, 1)[0] == (begin + 3 * rounds * (1 + others)) & WRAP


# ── system calls ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_system_call_returns_its_result_or_minus_errno(cell, tmp_path):
    at, words = cell
    (tmp_path / "file").write_bytes(b"0123456789abcdef")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    words[:] = GUARD
    assert syscall(a.SYS_PREAD64, fd, at + 4, 8, 3, 0, 0) == 8
    assert words.tobytes()[4:12] == b"3456789a"
    assert around(words)[::2] == [GUARD] * 2
    assert syscall(a.SYS_PREAD64, fd, at, 8, 16, 0, 0) == 0
    assert syscall(a.SYS_PREAD64, fd, 0, 8, 0, 0, 0) == -errno.EFAULT
    assert syscall(a.SYS_PREAD64, fd, at, 8, -1, 0, 0) == -errno.EINVAL
    assert syscall(a.SYS_CLOSE, fd, 0, 0, 0, 0, 0) == 0
    assert syscall(a.SYS_CLOSE, fd, 0, 0, 0, 0, 0) == -errno.EBADF
    assert syscall(a.SYS_PREAD64, fd, at, 8, 0, 0, 0) == -errno.EBADF
    assert syscall(100_000, 0, 0, 0, 0, 0, 0) == -errno.ENOSYS


@pytest.mark.parametrize("timeout", [0, 1, 2_000_000, 1_100_000_000])
def test_futex_wait_sleeps_as_long_as_told(cell, timeout):
    at, words = cell
    words[0] = WRAP
    begin = time.monotonic_ns()
    assert futex_wait(at, WRAP, timeout) == -errno.ETIMEDOUT
    assert timeout <= time.monotonic_ns() - begin < timeout + 500_000_000


def test_futex_wait_does_not_sleep_where_the_word_differs(cell):
    at, words = cell
    words[0] = 5
    begin = time.monotonic_ns()
    assert futex_wait(at, 6, h.LONG_NS) == -errno.EAGAIN
    assert time.monotonic_ns() - begin < 1_000_000_000
    assert futex_wait(at, 5, -1) == -errno.EINVAL
    assert futex_wait(at + 1, 5, 0) == -errno.EINVAL  # not aligned
    assert futex_wait(0, 5, 0) == -errno.EFAULT


def test_futex_wait_is_woken_by_another_mapping_of_the_same_word(shared_arena, peer, cell):
    at, words = cell
    words[:] = 0
    peer.start(h.ring_soon, h.WORD, 50_000_000)
    begin = time.monotonic_ns()
    result = futex_wait(at, 0, h.LONG_NS)
    assert result in (0, -errno.EAGAIN)
    assert time.monotonic_ns() - begin < h.LONG_NS
    assert peer.result() == 1


def test_futex_wait_ends_at_a_signal(cell):
    at, words = cell
    words[0] = 0
    seen = []
    former = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    timer.start()
    try:
        assert futex_wait(at, 0, h.LONG_NS) == -errno.EINTR
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, former)
    assert seen == [1]


def test_clock_is_the_monotonic_one():
    for _ in range(1000):
        before = time.monotonic_ns()
        now = clock_ns()
        assert before <= now <= time.monotonic_ns()

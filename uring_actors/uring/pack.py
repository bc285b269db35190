"""Small files, many to a data slot, by plain system calls: open, look, read, close, without the GIL.

A ring pays where reads are long or wait; for a small file that is in the page cache its chain of open, read and close
costs more than the four system calls. Those of a file that is not cached would wait one after the other: so the
read asks first for what is there (RWF_NOWAIT), and where that isn't all, the file is put off, the kernel is told that
it will be wanted, and up to ``_PUT_OFF`` such reads are under way before the first is waited for.

A packed slot begins with a directory, an entry for each file (``abi.PACKED_*``); then come the files' bytes, each
file on a cache line of its own. A file that can't be opened or read is its entry's matter; the others don't notice.
"""

from __future__ import annotations

import os
import platform
from typing import Final

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.atomics import SYS_CLOSE, SYS_PREAD64, load32, load64, store32, store64, syscall
from uring_actors.hot import lean
from uring_actors.uring.verdict import FAIL, MORE, RETRY, WHOLE, judge
from uring_actors.uring.work import (
    C_COMPLETED,
    C_COMPLETED_BYTES,
    C_EXTENTS,
    C_FAILED,
    C_IO_ERRORS,
    C_PACKED,
    C_PACKED_FILES,
    C_RETRIES,
    C_SHORT,
    C_SUBMITTED,
    C_SUBMITTED_BYTES,
    C_UNOPENED,
    CHANNEL_MASK,
    COMPLETIONS,
    CURRENT,
    DATA,
    FIRST_SLOT,
    FREE,
    FREE_COUNT,
    J_END,
    J_NEXT_EXTENT,
    J_TABLE,
    LENT,
    NO_ROOM,
    PACKED_ENTRIES,
    PUBLISHER_BELL,
    R_NEXT,
    R_STATE,
    SCRATCH,
    SLOT_BYTES,
    SLOT_LENT,
    Words,
    end_job,
)

# ── what a packed job's table says: addresses of a batch's columns ───────────────────────────────────────────
T_IDS: Final = 0
T_SIZES: Final = 8
T_DEVICES: Final = 16
T_INODES: Final = 24
T_ENDS: Final = 32
T_PATHS: Final = 40
TABLE_WORDS: Final = 6

_IOVEC: Final = 256  # in the scratch, behind a struct stat
_PUT_OFF: Final = 64

_X86: Final = platform.machine() == "x86_64"
_SYS_OPENAT: Final = 257 if _X86 else 56
_SYS_FSTAT: Final = 5 if _X86 else 80
_SYS_PREADV2: Final = 327 if _X86 else 286
_SYS_FADVISE64: Final = 221 if _X86 else 223
_AT_FDCWD: Final = -100
_RWF_NOWAIT: Final = 8
_WILLNEED: Final = 3
# A FIFO that took a file's place must not block.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_ST_INO: Final = 8
_ST_MODE: Final = 24 if _X86 else 16
_S_IFREG: Final = 0o100000
_EINTR, _EAGAIN, _ENFILE, _EMFILE = 4, 11, 23, 24

# Words of an entry that only the lane uses, while it fills the slot: the kernel's results come later.
_E_FD: Final = abi.PACKED_HITS  # of a file that was put off, and one; else 0
_E_WANT: Final = abi.PACKED_RESULT


@lean
def _fail(counters: Words, entry: int, number: int, opened: bool) -> None:
    """Leave why the file is not all there."""
    store32(entry + abi.PACKED_ERRNO, number)
    counters[C_FAILED] += 1
    if not opened:
        counters[C_UNOPENED] += 1
        store32(entry + abi.PACKED_OFFSET, 0)


@lean
def _open(path: int, device: int, inode: int, scratch: int) -> int:
    """Open a listed file; its descriptor, or −errno: ESTALE where something else is there now."""
    fd = -_EINTR
    while fd == -_EINTR:
        fd = syscall(_SYS_OPENAT, _AT_FDCWD, path, _OPEN_FLAGS, 0, 0, 0)
    if fd < 0:
        return fd
    code = syscall(_SYS_FSTAT, fd, scratch, 0, 0, 0, 0)
    if code == 0:
        same = load64(scratch) == device and load64(scratch + _ST_INO) == inode
        if same and load32(scratch + _ST_MODE) & 0xF000 == _S_IFREG:
            return fd
        code = -abi.ESTALE
    syscall(SYS_CLOSE, fd, 0, 0, 0, 0, 0)
    return code


@lean
def _read_now(counters: Words, fd: int, address: int, want: int, scratch: int) -> int:
    """What of the file's first ``want`` bytes is there without waiting."""
    store64(scratch + _IOVEC, address)
    store64(scratch + _IOVEC + 8, want)
    counters[C_SUBMITTED] += 1
    counters[C_SUBMITTED_BYTES] += want
    counters[C_PACKED] += 1
    res = syscall(_SYS_PREADV2, fd, scratch + _IOVEC, 1, 0, 0, _RWF_NOWAIT)
    if res <= 0:
        return 0
    counters[C_COMPLETED] += 1
    counters[C_COMPLETED_BYTES] += res
    return res


@lean
def _read_on(counters: Words, entry: int, fd: int, address: int, done: int, want: int) -> None:
    """Read the rest, however long it takes; PACKED_BYTES and, where it isn't all, PACKED_ERRNO."""
    retries = 0
    while done < want:
        counters[C_SUBMITTED] += 1
        counters[C_SUBMITTED_BYTES] += want - done
        counters[C_PACKED] += 1
        res = syscall(SYS_PREAD64, fd, address + done, want - done, done, 0, 0)
        verdict = judge(res, done, want, 0, retries)
        if res > 0:
            counters[C_COMPLETED] += 1
            counters[C_COMPLETED_BYTES] += res
            done += res
        if verdict == RETRY:
            counters[C_RETRIES] += 1
            retries += 1
        elif verdict == MORE:
            counters[C_SHORT] += 1
        elif verdict != WHOLE:
            if verdict == FAIL:
                counters[C_IO_ERRORS] += 1
            _fail(counters, entry, -res if verdict == FAIL else abi.ENODATA, True)
            break
    store32(entry + abi.PACKED_BYTES, done)


@lean
def _finish_put_off(counters: Words, base: int, first: int, count: int) -> None:
    """Read what was put off of entries ``first`` to ``count`` of the slot at ``base``."""
    for i in range(first, count):
        entry = base + i * abi.PACKED_ENTRY_BYTES
        fd = load32(entry + _E_FD) - 1
        if fd >= 0:
            address = base + load32(entry + abi.PACKED_OFFSET)
            _read_on(counters, entry, fd, address, load32(entry + abi.PACKED_BYTES), load32(entry + _E_WANT))
            syscall(SYS_CLOSE, fd, 0, 0, 0, 0, 0)
            store32(entry + _E_FD, 0)
            store32(entry + _E_WANT, 0)


@lean
def _begin_slot(state: Words, reads: Words) -> int:
    """Take a free data slot; there is one. It is announced before anything else happens, so it counts as lent."""
    slot = int(state[FREE])
    state[FREE] = reads[slot, R_NEXT]
    state[FREE_COUNT] -= 1
    state[LENT] += 1
    reads[slot, R_STATE] = SLOT_LENT
    return slot


@lean
def pack(state: Words, reads: Words, jobs: Words, counters: Words) -> int:
    """Fill a free data slot (there is one) with files of the current job, which is a packed one, and announce it; a
    job that is through is handed back. 1, or NO_ROOM."""
    job, slot = state[CURRENT], _begin_slot(state, reads)
    table, at, end = jobs[job, J_TABLE], jobs[job, J_NEXT_EXTENT], jobs[job, J_END]
    base = state[DATA] + slot * state[SLOT_BYTES]
    used = state[PACKED_ENTRIES] * abi.PACKED_ENTRY_BYTES
    count = put_off = first_put_off = 0
    while at < end and count < state[PACKED_ENTRIES]:
        want = load64(load64(table + T_SIZES) + 8 * at)
        if used + want > state[SLOT_BYTES]:
            break
        entry = base + count * abi.PACKED_ENTRY_BYTES
        for k in range(0, abi.PACKED_ENTRY_BYTES, 8):
            store64(entry + k, 0)
        store32(entry + abi.PACKED_FILE_ID, load64(load64(table + T_IDS) + 8 * at))
        store32(entry + abi.PACKED_OFFSET, used)
        path = load64(table + T_PATHS) + (load64(load64(table + T_ENDS) + 8 * (at - 1)) if at > 0 else 0)
        device, inode = load64(load64(table + T_DEVICES) + 8 * at), load64(load64(table + T_INODES) + 8 * at)
        fd = _open(path, device, inode, state[SCRATCH])
        if (fd == -_EMFILE or fd == -_ENFILE) and put_off > 0:
            _finish_put_off(counters, base, first_put_off, count)
            put_off, first_put_off = 0, count
            fd = _open(path, device, inode, state[SCRATCH])
        if fd < 0:
            _fail(counters, entry, -fd, False)
        else:
            done = _read_now(counters, fd, base + used, want, state[SCRATCH])
            store32(entry + abi.PACKED_BYTES, done)
            if done == want:
                syscall(SYS_CLOSE, fd, 0, 0, 0, 0, 0)
            else:
                syscall(_SYS_FADVISE64, fd, 0, want, _WILLNEED, 0, 0)
                store32(entry + _E_FD, fd + 1)
                store32(entry + _E_WANT, want)
                put_off += 1
            used = (used + want + abi.CACHE_LINE - 1) // abi.CACHE_LINE * abi.CACHE_LINE
        count += 1
        at += 1
        if put_off == _PUT_OFF:
            _finish_put_off(counters, base, first_put_off, count)
            put_off, first_put_off = 0, count
    if put_off > 0:
        _finish_put_off(counters, base, first_put_off, count)
    total = 0
    for i in range(count):
        total += load32(base + i * abi.PACKED_ENTRY_BYTES + abi.PACKED_BYTES)
    counters[C_EXTENTS] += count
    counters[C_PACKED_FILES] += count
    jobs[job, J_NEXT_EXTENT] = at
    slot += state[FIRST_SLOT]
    if not channel.push(state[COMPLETIONS], state[CHANNEL_MASK], slot, total, count, 0, 0, 0, abi.FLAG_PACKED):
        return NO_ROOM
    bell.ring(state[PUBLISHER_BELL], 1)
    if at == end:
        state[CURRENT] = -1
        if not end_job(state, jobs, counters, job):
            return NO_ROOM
    return 1

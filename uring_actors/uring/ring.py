"""One io_uring: set up, mapped, its buffers and files registered, closed.

    created (set up, perhaps disabled) → enabled, by the thread that submits → closed

A lane or a stream owns the ring and works on its mapped queues through ``queue`` (see ``queue.py``, who writes what
too); nothing here is called for a read.

Set-up asks for the fastest flags first and steps down where a kernel answers EINVAL (5.11 is the oldest that has
everything needed). Every errno of set-up becomes an error that says why and what to do.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.private import PrivateMemory
from uring_actors.errors import IoUringSyscall, IoUringUnavailable, MemlockTooSmall, OptionError
from uring_actors.uring import kernel, queue
from uring_actors.uring.engine import Engine, RingEngine
from uring_actors.uring.requests import Requests
from uring_actors.uring.state import RingState

_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
_CAP_IPC_LOCK: Final = 14
_PREAD = "Or use the pread engine (--io-engine pread)."

_libc_syscall = ctypes.CDLL(None, use_errno=True).syscall
_libc_syscall.restype = ctypes.c_long
_libc_syscall.argtypes = [ctypes.c_long] * 7


def _syscall(number: int, *args: int) -> int:
    """A system call's result, or −errno."""
    result: int = _libc_syscall(number, *args, *[0] * (6 - len(args)))
    return -ctypes.get_errno() if result < 0 else result


# ── why not ──────────────────────────────────────────────────────────────────────────────────────────────────
def _not_permitted() -> str:
    try:
        value = _DISABLED.read_text().strip()
    except OSError:
        value = "absent"
    if value == "2":
        return "kernel.io_uring_disabled is 2 (off for everybody): set it to 0 with sysctl."
    if value == "1" and os.geteuid() != 0:
        return (
            "kernel.io_uring_disabled is 1 (for privileged processes and kernel.io_uring_group only): join that "
            "group, or set it to 0 with sysctl."
        )
    return (
        f"kernel.io_uring_disabled is {value}, so a seccomp filter or a security module forbids it, as containers "
        "do by default: allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp "
        "profile."
    )


def setup_error(number: int, *, entries: int = 0, sqpoll: bool = False, big: bool = False) -> Exception:
    """The error for a failed io_uring_setup(2), by its errno. ``big``: SQE128 or CQE32 was asked for."""
    if number == errno.EPERM or number == errno.EACCES:
        return IoUringUnavailable("io_uring_setup", number, fix=f"{_not_permitted()} {_PREAD}")
    if number == errno.ENOSYS:
        return IoUringUnavailable(
            "io_uring_setup", number, fix=f"The kernel lacks io_uring (5.11 or newer, CONFIG_IO_URING). {_PREAD}"
        )
    if number == errno.ENOMEM:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        needed = entries * kernel.SQE_BYTES + 2 * entries * kernel.CQE_BYTES
        if limit != resource.RLIM_INFINITY:
            return MemlockTooSmall(needed=needed, limit=limit)
        return IoUringSyscall("io_uring_setup", number, fix="The system or the container is out of memory.")
    if number == errno.EMFILE or number == errno.ENFILE:
        return IoUringSyscall("io_uring_setup", number, fix="Raise the limit of open files (ulimit -n).")
    if number == errno.EINVAL:
        what = "SQPOLL's CPU may not exist, or " if sqpoll else ""
        what += "the kernel is older than 5.19 and has no SQE128 and CQE32, or " if big else ""
        return IoUringSyscall(
            "io_uring_setup", number, fix=f"{what}{entries} entries are not between 1 and {kernel.MAX_ENTRIES}."
        )
    return IoUringSyscall("io_uring_setup", number)


def has_ipc_lock() -> bool:
    """Whether this process may lock memory beyond RLIMIT_MEMLOCK (CAP_IPC_LOCK is effective)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


def check_memlock(needed: int) -> None:
    """Raise MemlockTooSmall where RLIMIT_MEMLOCK surely forbids registering ``needed`` bytes."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit != resource.RLIM_INFINITY and needed > limit and not has_ipc_lock():
        raise MemlockTooSmall(needed=needed, limit=limit)


# ── the ring ─────────────────────────────────────────────────────────────────────────────────────────────────
def _flag_ladder(sqpoll: bool) -> list[int]:
    """Set-up flags, best first. SQPOLL excludes the ways of running completion work in the submitter."""
    single = kernel.SETUP_SINGLE_ISSUER | kernel.SETUP_R_DISABLED
    if sqpoll:
        return [single | kernel.SETUP_NO_SQARRAY, single, 0]
    defer = single | kernel.SETUP_DEFER_TASKRUN
    return [defer | kernel.SETUP_NO_SQARRAY, defer, single | kernel.SETUP_COOP_TASKRUN, kernel.SETUP_COOP_TASKRUN, 0]


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Where the mapped ring's words lie in this process, and its sizes."""

    fd: int
    sq_head: int
    sq_tail: int
    sq_flags: int
    sq_entries: int
    sqes: int
    cq_head: int
    cq_tail: int
    cq_overflow: int
    cq_entries: int
    cqes: int
    sqe_shift: int = kernel.SQE_SHIFT  # log2 of an entry's bytes
    cqe_shift: int = kernel.CQE_SHIFT


class IoUringState(RingState):
    """An io_uring with ``entries`` submission and ``cq_entries`` completion entries (the kernel rounds up to powers
    of two; without ``cq_entries``, twice as many).

    Where ``flags`` has R_DISABLED, the thread that will submit calls ``enable`` first (a stream does): the ring then
    belongs to it alone, and ``update_file`` and submissions from another thread fail (EEXIST). Buffers and files
    are registered before that, by anybody.

    sqpoll_idle_ms: after how much idleness the kernel's poller sleeps; sqpoll_cpu: the core that it is bound to.
    sqe128, cqe32: entries of 128 and of 32 bytes (5.19), for NVMe passthrough, which needs both; the addresses say
    the strides. Raises IoUringUnavailable, MemlockTooSmall, IoUringSyscall.
    """

    def __init__(
        self,
        entries: int = 64,
        cq_entries: int | None = None,
        sqpoll: bool = False,
        sqpoll_idle_ms: int = 50,
        sqpoll_cpu: int | None = None,
        sqe128: bool = False,
        cqe32: bool = False,
    ) -> None:
        super().__init__()
        cq_entries = 2 * entries if cq_entries is None else cq_entries
        if not (0 < entries <= kernel.MAX_ENTRIES and entries <= cq_entries <= 2 * kernel.MAX_ENTRIES):
            raise OptionError(f"{entries} submission and {cq_entries} completion entries make no ring")
        self.sqpoll = sqpoll
        self.sqe128 = sqe128
        self.cqe32 = cqe32
        self._enabled = False
        self._pins: list[Any] = []
        self._maps: list[mmap.mmap] = []
        self.fd, params = self._set_up(entries, cq_entries, sqpoll_idle_ms, sqpoll_cpu)
        self.flags: int = params.flags
        self.features: int = params.features
        try:
            self._require(kernel.FEAT_SINGLE_MMAP | kernel.FEAT_NODROP | kernel.FEAT_EXT_ARG)
            self.addresses = self._map(params)
            self.entries = self.addresses.sq_entries
            self._words = PrivateMemory(abi.CACHE_LINE + kernel.UPDATE_TOTAL)
            self.queue = self._queue_words()
        except BaseException:
            self.close()
            raise

    def _set_up(self, entries: int, cq_entries: int, idle_ms: int, cpu: int | None) -> tuple[int, kernel.Params]:
        base = kernel.SETUP_CQSIZE | (kernel.SETUP_SQPOLL if self.sqpoll else 0)
        if self.sqpoll and cpu is not None:
            base |= kernel.SETUP_SQ_AFF
        base |= (kernel.SETUP_SQE128 if self.sqe128 else 0) | (kernel.SETUP_CQE32 if self.cqe32 else 0)
        result = -errno.EINVAL
        for extra in _flag_ladder(self.sqpoll):
            params = kernel.Params(flags=base | extra, cq_entries=cq_entries)
            if self.sqpoll:
                params.sq_thread_idle = idle_ms
                params.sq_thread_cpu = cpu or 0
            result = _syscall(kernel.SYS_SETUP, entries, ctypes.addressof(params))
            if result != -errno.EINVAL:
                break
        if result < 0:
            raise setup_error(-result, entries=entries, sqpoll=self.sqpoll, big=self.sqe128 or self.cqe32)
        return result, params

    def _require(self, features: int) -> None:
        if self.features & features != features:
            raise IoUringUnavailable(
                "io_uring_setup", errno.ENOSYS, fix=f"This kernel's io_uring is too old (5.11 is needed). {_PREAD}"
            )

    def _map(self, params: kernel.Params) -> RingAddresses:
        # One mapping holds both rings (FEAT_SINGLE_MMAP), a second one the SQEs.
        array = 0 if self.flags & kernel.SETUP_NO_SQARRAY else params.sq_off.array + params.sq_entries * 4
        sqe_shift = kernel.SQE128_SHIFT if self.sqe128 else kernel.SQE_SHIFT
        cqe_shift = kernel.CQE32_SHIFT if self.cqe32 else kernel.CQE_SHIFT
        size = max(array, params.cq_off.cqes + (params.cq_entries << cqe_shift))
        ring = self._pinned(size, kernel.OFF_SQ_RING)
        sqes = self._pinned(params.sq_entries << sqe_shift, kernel.OFF_SQES)
        if array:  # entry n of the array stays n for ever: the indirection is not used
            indices = (ctypes.c_uint32 * params.sq_entries).from_address(ring + params.sq_off.array)
            indices[:] = range(params.sq_entries)
        sq, cq = params.sq_off, params.cq_off
        return RingAddresses(
            fd=self.fd,
            sq_head=ring + sq.head,
            sq_tail=ring + sq.tail,
            sq_flags=ring + sq.flags,
            sq_entries=params.sq_entries,
            sqes=sqes,
            cq_head=ring + cq.head,
            cq_tail=ring + cq.tail,
            cq_overflow=ring + cq.overflow,
            cq_entries=params.cq_entries,
            cqes=ring + cq.cqes,
            sqe_shift=sqe_shift,
            cqe_shift=cqe_shift,
        )

    def _pinned(self, size: int, offset: int) -> int:
        mapped = mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=offset)
        pin = (ctypes.c_char * size).from_buffer(mapped)
        self._maps.append(mapped)
        self._pins.append(pin)
        return ctypes.addressof(pin)

    def _queue_words(self) -> queue.Words:
        ring, words = self.addresses, self._words.address
        update = words + abi.CACHE_LINE
        values = {
            queue.RING: ring.fd,
            queue.SQ_HEAD: ring.sq_head,
            queue.SQ_TAIL: ring.sq_tail,
            queue.SQ_FLAGS: ring.sq_flags,
            queue.SQ_MASK: ring.sq_entries - 1,
            queue.SQES: ring.sqes,
            queue.CQ_HEAD: ring.cq_head,
            queue.CQ_TAIL: ring.cq_tail,
            queue.CQ_OVERFLOW: ring.cq_overflow,
            queue.CQ_MASK: ring.cq_entries - 1,
            queue.CQES: ring.cqes,
            queue.SQPOLL: int(self.sqpoll),
            queue.ARG: words,
            queue.UPDATE: update,
            queue.SQE_SHIFT: ring.sqe_shift,
            queue.CQE_SHIFT: ring.cqe_shift,
        }
        row: queue.Words = np.zeros(queue.QUEUE_WORDS, np.int64)
        for index, value in values.items():
            row[index] = value
        view = self._words.view
        view[kernel.ARG_TIMESPEC : kernel.ARG_TIMESPEC + 8] = (words + kernel.ARG_SECONDS).to_bytes(8, "little")
        start = abi.CACHE_LINE + kernel.UPDATE_FDS
        view[start : start + 8] = (update + kernel.UPDATE_FD).to_bytes(8, "little")
        return row

    def _register(self, opcode: int, address: int, count: int) -> int:
        return _syscall(kernel.SYS_REGISTER, self.fd, opcode, address, count)

    def _register_buffers(self, ranges: list[tuple[int, int]]) -> None:
        needed = sum(length for _, length in ranges)
        check_memlock(needed)
        vectors = (kernel.Iovec * len(ranges))(*[kernel.Iovec(a, n) for a, n in ranges])
        result = _syscall_retrying(
            lambda: self._register(kernel.REGISTER_BUFFERS, ctypes.addressof(vectors), len(ranges))
        )
        if result < 0:
            raise buffers_error(-result, needed)

    def _register_files(self, fds: list[int]) -> None:
        table = (ctypes.c_int32 * len(fds))(*fds)
        result = self._register(kernel.REGISTER_FILES, ctypes.addressof(table), len(fds))
        if result < 0:
            raise files_error(-result)

    def _update_file(self, index: int, fd: int) -> None:
        update = (ctypes.c_uint32 * (kernel.UPDATE_TOTAL // 4))()
        base = ctypes.addressof(update)
        update[kernel.UPDATE_OFFSET // 4] = index
        update[kernel.UPDATE_FD // 4] = fd & 0xFFFFFFFF
        ctypes.c_uint64.from_address(base + kernel.UPDATE_FDS).value = base + kernel.UPDATE_FD
        result = self._register(kernel.REGISTER_FILES_UPDATE, base, 1)
        if result < 0:
            raise files_error(-result)

    @property
    def takes_commands(self) -> bool:
        """See ``RingState``."""
        return self.sqe128 and self.cqe32

    def make_engine(self, requests: Requests) -> Engine:
        """See ``RingState``."""
        self.enable()
        return RingEngine(self.queue, requests)

    def enable(self) -> None:
        """Make the calling thread the one that submits. Once; nothing where the ring was never disabled."""
        if self._enabled:
            return
        if self.flags & kernel.SETUP_R_DISABLED:
            result = self._register(kernel.REGISTER_ENABLE_RINGS, 0, 0)
            if result < 0:
                raise IoUringSyscall("io_uring_register (enable)", -result)
        self._enabled = True

    def enter(self, submit: int, wait: int, timeout_ns: int | None = None) -> int:
        """io_uring_enter(2): hand over ``submit`` entries, wait for ``wait`` completions (``timeout_ns``: at most so
        long); how many entries the kernel took, or −errno. For callers in Python; a lane's loop has its own."""
        if self.closed:
            raise IoUringSyscall("io_uring_enter", errno.EBADF, fix="The ring is closed.")
        argument = (ctypes.c_uint64 * (kernel.ARG_TOTAL // 8))()
        if timeout_ns is not None:
            argument[kernel.ARG_TIMESPEC // 8] = ctypes.addressof(argument) + kernel.ARG_SECONDS
            argument[kernel.ARG_SECONDS // 8], argument[kernel.ARG_NANOSECONDS // 8] = divmod(timeout_ns, 10**9)
        flags = kernel.ENTER_GETEVENTS | kernel.ENTER_EXT_ARG | (kernel.ENTER_SQ_WAKEUP if self.sqpoll else 0)
        return _syscall(kernel.SYS_ENTER, self.fd, submit, wait, flags, ctypes.addressof(argument), kernel.ARG_BYTES)

    def _close(self) -> None:
        # The owner has seen to it that nothing is in flight.
        self._pins.clear()
        for mapped in self._maps:
            mapped.close()
        os.close(self.fd)

    def __del__(self) -> None:
        # Whoever has reads in flight has a reference, so there are none. Absent where set-up failed.
        if not self.__dict__.get("closed", True) and "fd" in self.__dict__:
            self.closed = True
            self._close()


def buffers_error(number: int, needed: int) -> Exception:
    """The error for a failed registration of ``needed`` bytes of buffers, by its errno."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # The limit counts for all of a user's processes, and root of a user namespace isn't exempt.
    if number == errno.ENOMEM and limit != resource.RLIM_INFINITY:
        return MemlockTooSmall(needed=needed, limit=limit)
    fixes = {errno.EBUSY: "Buffers were registered already.", errno.EFAULT: "Nothing is mapped there."}
    return IoUringSyscall("io_uring_register (buffers)", number, fix=fixes.get(number))


def files_error(number: int) -> Exception:
    """The error for a failed registration or update of files, by its errno."""
    fixes = {
        errno.EBUSY: "Files were registered already.",
        errno.EBADF: "It is no open descriptor.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
        errno.EEXIST: "The ring belongs to the thread that enabled it: update the table there.",
    }
    return IoUringSyscall("io_uring_register (files)", number, fix=fixes.get(number))


def _syscall_retrying(call: Any, tries: int = 8) -> int:
    """Pinning many pages may be interrupted."""
    result = -errno.EINTR
    for _ in range(tries):
        result = call()
        if result != -errno.EINTR:
            break
    return int(result)


# ── whether, and how ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Probe:
    """Whether io_uring can be used here: ``error`` is None, or why it can't."""

    error: Exception | None
    flags: int
    features: int

    @property
    def available(self) -> bool:
        return self.error is None


@functools.cache
def probe() -> Probe:
    """Set up a small ring, once in a process, and see."""
    try:
        ring = IoUringState(2, 4)
    except (IoUringSyscall, MemlockTooSmall) as error:
        return Probe(error, 0, 0)
    try:
        return Probe(None, ring.flags, ring.features)
    finally:
        ring.close()

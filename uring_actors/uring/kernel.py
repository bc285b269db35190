"""io_uring's kernel interface: numbers, structures, and the layout of a submission and a completion entry.

Source: linux/io_uring.h, io_uring_setup(2), io_uring_enter(2), io_uring_register(2). Only what this package uses.
Nothing else in the package knows how an SQE or a CQE is laid out; a test holds this page against a second
implementation. Offsets are bytes from the start of the structure.
"""

from __future__ import annotations

import ctypes
from typing import Final

from uring_actors.arena.atomics import load32, load64, store32, store64
from uring_actors.hot import hot

# System calls: the same numbers on every architecture.
SYS_SETUP: Final = 425
SYS_ENTER: Final = 426
SYS_REGISTER: Final = 427

# ── io_uring_setup: flags, with the kernel that brought them ────────────────────────────────────────────────
SETUP_SQPOLL: Final = 1 << 1
SETUP_SQ_AFF: Final = 1 << 2
SETUP_CQSIZE: Final = 1 << 3  # 5.5
SETUP_R_DISABLED: Final = 1 << 6  # 5.10
SETUP_COOP_TASKRUN: Final = 1 << 8  # 5.19
SETUP_SQE128: Final = 1 << 10  # 5.19; every SQE of the ring has 128 bytes
SETUP_CQE32: Final = 1 << 11  # 5.19; every CQE of the ring has 32 bytes
SETUP_SINGLE_ISSUER: Final = 1 << 12  # 6.0
SETUP_DEFER_TASKRUN: Final = 1 << 13  # 6.1; wants SINGLE_ISSUER
SETUP_NO_SQARRAY: Final = 1 << 16  # 6.6

FEAT_SINGLE_MMAP: Final = 1 << 0  # 5.4
FEAT_NODROP: Final = 1 << 1  # 5.5
FEAT_EXT_ARG: Final = 1 << 8  # 5.11

OFF_SQ_RING: Final = 0
OFF_SQES: Final = 0x10000000

# ── io_uring_enter ───────────────────────────────────────────────────────────────────────────────────────────
ENTER_GETEVENTS: Final = 1 << 0
ENTER_SQ_WAKEUP: Final = 1 << 1
ENTER_EXT_ARG: Final = 1 << 3

SQ_NEED_WAKEUP: Final = 1 << 0  # bits of the SQ's flags word
SQ_CQ_OVERFLOW: Final = 1 << 1

# ── io_uring_register ────────────────────────────────────────────────────────────────────────────────────────
REGISTER_BUFFERS: Final = 0
REGISTER_FILES: Final = 2
REGISTER_FILES_UPDATE: Final = 6
REGISTER_ENABLE_RINGS: Final = 12

MAX_ENTRIES: Final = 32768
MAX_READ_BYTES: Final = 1 << 30  # the kernel cuts a longer one short (at 0x7ffff000)
MAX_BUFFER_BYTES: Final = 1 << 30
MAX_BUFFERS: Final = 1 << 14

# ── struct io_uring_sqe ──────────────────────────────────────────────────────────────────────────────────────
OP_READV: Final = 1
OP_READ_FIXED: Final = 4  # not 22: that is plain READ, which ignores registered buffers
OP_ASYNC_CANCEL: Final = 14
OP_READ: Final = 22
OP_URING_CMD: Final = 46  # 5.19; a command of the file's own driver
SQE_FIXED_FILE: Final = 1 << 0

SQE_BYTES: Final = 64
SQE_SHIFT: Final = 6
SQE_OPCODE: Final = 0  # u8
SQE_FLAGS: Final = 1  # u8
SQE_IOPRIO: Final = 2  # u16
SQE_FD: Final = 4  # s32: a descriptor, or an index with SQE_FIXED_FILE
SQE_OFFSET: Final = 8  # u64
SQE_ADDRESS: Final = 16  # u64
SQE_LENGTH: Final = 24  # u32
SQE_RW_FLAGS: Final = 28  # u32
SQE_USER_DATA: Final = 32  # u64
SQE_BUF_INDEX: Final = 40  # u16; the personality (u16) and a descriptor (s32) follow
SQE_ADDR3: Final = 48  # u64
SQE_PAD: Final = 56  # u64

# The same for URING_CMD on a ring with SQE128: the driver's command stands in the entry's end.
SQE128_BYTES: Final = 128
SQE128_SHIFT: Final = 7
SQE_COMMAND_OP: Final = 8  # u32: the driver's number for the kind of command; 4 bytes of padding follow
SQE_COMMAND_FLAGS: Final = 28  # u32
SQE_COMMAND: Final = 48
COMMAND_BYTES: Final = SQE128_BYTES - SQE_COMMAND
COMMAND_FIXED: Final = 1 << 0  # the address lies in the registered buffer of index buf_index

# ── struct io_uring_cqe ──────────────────────────────────────────────────────────────────────────────────────
CQE_BYTES: Final = 16
CQE_SHIFT: Final = 4
CQE_USER_DATA: Final = 0  # u64
CQE_RES: Final = 8  # s32: bytes, or −errno
CQE_FLAGS: Final = 12
CQE32_BYTES: Final = 32
CQE32_SHIFT: Final = 5
CQE_EXTRA: Final = 16  # two u64, on a ring with CQE32

IOVEC_BYTES: Final = 16

# ── struct io_uring_getevents_arg, followed here by the struct __kernel_timespec that it points to ──────────
ARG_SIGMASK: Final = 0  # u64
ARG_SIGMASK_BYTES: Final = 8  # u32
ARG_MIN_WAIT_US: Final = 12  # u32
ARG_TIMESPEC: Final = 16  # u64, an address
ARG_BYTES: Final = 24
ARG_SECONDS: Final = 24
ARG_NANOSECONDS: Final = 32
ARG_TOTAL: Final = 40

# ── struct io_uring_files_update, followed here by the one descriptor that it points to ─────────────────────
UPDATE_OFFSET: Final = 0  # u32
UPDATE_RESERVED: Final = 4  # u32
UPDATE_FDS: Final = 8  # u64, an address
UPDATE_FD: Final = 16  # s32
UPDATE_TOTAL: Final = 24


def _u32(*names: str) -> list[tuple[str, type[ctypes.c_uint32]]]:
    return [(name, ctypes.c_uint32) for name in names]


class SqOffsets(ctypes.Structure):
    """struct io_sqring_offsets: where the SQ's words lie in the mapped ring."""

    _fields_ = [
        *_u32("head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "resv1"),
        ("user_addr", ctypes.c_uint64),
    ]


class CqOffsets(ctypes.Structure):
    """struct io_cqring_offsets."""

    _fields_ = [
        *_u32("head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "resv1"),
        ("user_addr", ctypes.c_uint64),
    ]


class Params(ctypes.Structure):
    """struct io_uring_params."""

    _fields_ = [
        *_u32("sq_entries", "cq_entries", "flags", "sq_thread_cpu", "sq_thread_idle", "features", "wq_fd"),
        ("resv", ctypes.c_uint32 * 3),
        ("sq_off", SqOffsets),
        ("cq_off", CqOffsets),
    ]


class Iovec(ctypes.Structure):
    """struct iovec, ``IOVEC_BYTES`` long."""

    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_uint64)]


@hot
def put_read(
    sqe: int,
    opcode: int,
    fixed_file: int,
    fd: int,
    offset: int,
    address: int,
    length: int,
    buffer: int,
    user_data: int,
) -> None:
    """Write one entry that reads from ``offset`` of a file; ``fixed_file`` is 1 where ``fd`` is an index of the
    file table. READ_FIXED: ``length`` bytes to ``address``, which must lie in the registered buffer of index
    ``buffer``. READ: the same without one. READV: ``address`` is that of ``length`` iovecs."""
    store32(sqe + SQE_OPCODE, opcode | (fixed_file * SQE_FIXED_FILE) << 8)
    store32(sqe + SQE_FD, fd)
    store64(sqe + SQE_OFFSET, offset)
    store64(sqe + SQE_ADDRESS, address)
    store32(sqe + SQE_LENGTH, length)
    store32(sqe + SQE_RW_FLAGS, 0)
    store64(sqe + SQE_USER_DATA, user_data)
    store64(sqe + SQE_BUF_INDEX, buffer)  # and no personality, no second descriptor
    store64(sqe + SQE_ADDR3, 0)
    store64(sqe + SQE_PAD, 0)


@hot
def put_read_fixed(
    sqe: int, fixed_file: int, fd: int, offset: int, address: int, length: int, buffer: int, user_data: int
) -> None:
    """``put_read`` into a registered buffer."""
    put_read(sqe, OP_READ_FIXED, fixed_file, fd, offset, address, length, buffer, user_data)


@hot
def put_cancel(sqe: int, target: int, user_data: int) -> None:
    """Write one ASYNC_CANCEL entry for the submission whose user data is ``target``."""
    put_read(sqe, OP_ASYNC_CANCEL, 0, -1, 0, target, 0, 0, user_data)


@hot
def put_iovec(iovec: int, address: int, length: int) -> None:
    """Write a ``struct iovec``."""
    store64(iovec, address)
    store64(iovec + 8, length)


@hot
def put_command(
    sqe: int, fixed_file: int, fd: int, command_op: int, flags: int, buffer: int, user_data: int, command: int
) -> None:
    """Write one URING_CMD entry of 128 bytes: the ``COMMAND_BYTES`` at ``command`` (8-byte aligned) for the driver
    behind ``fd``. With COMMAND_FIXED in ``flags`` the address in it lies in registered buffer ``buffer``."""
    store32(sqe + SQE_OPCODE, OP_URING_CMD | (fixed_file * SQE_FIXED_FILE) << 8)
    store32(sqe + SQE_FD, fd)
    store64(sqe + SQE_COMMAND_OP, command_op)
    store64(sqe + SQE_ADDRESS, 0)
    store32(sqe + SQE_LENGTH, 0)
    store32(sqe + SQE_COMMAND_FLAGS, flags)
    store64(sqe + SQE_USER_DATA, user_data)
    store64(sqe + SQE_BUF_INDEX, buffer)
    for word in range(0, COMMAND_BYTES, 8):
        store64(sqe + SQE_COMMAND + word, load64(command + word))


@hot
def cqe_user_data(cqe: int) -> int:
    """What the entry's SQE was labelled with."""
    return load64(cqe + CQE_USER_DATA)


@hot
def cqe_res(cqe: int) -> int:
    """Bytes, or −errno."""
    return (load32(cqe + CQE_RES) ^ 0x80000000) - 0x80000000


@hot
def cqe_extra(cqe: int) -> int:
    """The first of the two further results; only on a ring with CQE32."""
    return load64(cqe + CQE_EXTRA)

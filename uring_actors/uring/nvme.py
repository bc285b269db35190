"""NVMe passthrough: Read commands, checked, sent by io_uring to a drive's generic node, answers decoded.

A command is 64 bytes: an NVMe submission entry with the data pointer's place taken by an address and lengths, which
is how the first 64 bytes of ``struct nvme_uring_cmd`` lie (linux/nvme_ioctl.h). It is sent by IORING_OP_URING_CMD on
a ring with SQE128 and CQE32 to /dev/ngXnY (Linux 5.19; 6.1 for registered buffers and everything proven here).

Invariants:

* **A drive writes block count × block size, whatever ``data_len`` says.** The kernel maps ``data_len`` bytes and
  never compares the two; where the first is larger, the drive overwrites whatever lies behind. So ``check_command``
  does, and nothing here reaches the ring without it. The block size comes from the drive, not from the caller.
* Only Read (opcode 2) is accepted. This library reads; a write, a trim or a vendor's command is refused.
* No metadata: a namespace formatted with it (protection information, or 520-byte blocks and the like) is refused,
  for its transfers are longer than block count × block size.
* The 64 bytes are copied when they are submitted, and the descriptor is duplicated when first seen: what the caller
  does to either afterwards changes nothing. Between a namespace's first command and ``close`` it must not be
  reformatted to another block size.

Alignment: an address is a multiple of 4 (PRP entries; for anything less the kernel would copy through a buffer of its
own). An offset or a length is a multiple of the block size. Page-aligned addresses give the longest
transfers (``NvmeNamespace.piece``).

A completion's result is 0 on success (never a byte count), positive for the drive's own status, negative for −errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.atomics import load_acquire, store_release
from uring_actors.arena.private import PrivateMemory
from uring_actors.errors import (
    DeadlineExceeded,
    IoUringSyscall,
    NvmeCommandRefused,
    NvmePassthroughDisabled,
    NvmeStatus,
    OptionError,
    PipelineError,
    QueueFull,
)
from uring_actors.hot import hot
from uring_actors.uring import kernel
from uring_actors.uring.ring import IoUringState

# ── linux/nvme_ioctl.h ───────────────────────────────────────────────────────────────────────────────────────
IOCTL_ID: Final = 0x4E40  # the namespace id of a namespace's node
IOCTL_ADMIN: Final = 0xC0484E41  # struct nvme_passthru_cmd, 72 bytes
URING_CMD_IO: Final = 0xC0484E80  # struct nvme_uring_cmd, 72 bytes

COMMAND_BYTES: Final = 64
_COMMAND: Final = struct.Struct("<BBHIIIQQII6I")
assert _COMMAND.size == COMMAND_BYTES

# ── NVM Express, NVM command set: Read ───────────────────────────────────────────────────────────────────────
OPCODE_READ: Final = 0x02
_IDENTIFY: Final = 0x06  # admin
MAX_BLOCKS: Final = 1 << 16  # of one command
ADDRESS_ALIGNMENT: Final = 4
_FORCE_UNIT_ACCESS: Final = 1 << 30  # of dword 12
_LIMITED_RETRY: Final = 1 << 31
_DATASET_MANAGEMENT: Final = 0xFF  # of dword 13: hints
_BROADCAST: Final = 0xFFFFFFFF  # as a namespace id: all of them

SWITCH: Final = "URING_ACTORS_NVME_PASSTHROUGH"
"""Environment variable; 0, off or no switches passthrough off for the process."""

_WRAP: Final = abi.WRAP
_TRANSIENT: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ECANCELED})
_TRIES: Final = 8


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class NvmeCommand:
    """The 64 bytes, field by field and in their order."""

    opcode: int = OPCODE_READ
    flags: int = 0  # fused operation and data pointer kind
    command_id: int = 0  # the kernel gives its own
    nsid: int = 1
    cdw2: int = 0
    cdw3: int = 0
    metadata: int = 0
    address: int = 0
    metadata_length: int = 0
    data_length: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @property
    def lba(self) -> int:
        """A Read's first block."""
        return self.cdw11 << 32 | self.cdw10

    @property
    def blocks(self) -> int:
        """A Read's count of blocks: the field holds one less."""
        return (self.cdw12 & 0xFFFF) + 1

    def encode(self) -> bytes:
        """The 64 bytes. Raises OptionError where a number doesn't fit its field."""
        try:
            return _COMMAND.pack(*[getattr(self, field.name) for field in fields(self)])
        except struct.error as error:
            raise OptionError(f"no NVMe command: {error}") from None


def encode_read(
    nsid: int, lba: int, blocks: int, block_size: int, address: int, *, force_unit_access: bool = False
) -> bytes:
    """A Read of ``blocks`` blocks of ``block_size`` bytes from block ``lba`` of namespace ``nsid`` to ``address``.

    Raises OptionError where that is no Read: 1 to 65,536 blocks, a namespace id that isn't 0 or the broadcast.
    """
    if not 0 < nsid < _BROADCAST:
        raise OptionError(f"a Read goes to one namespace, not to {nsid:#x}")
    if not (lba >= 0 and lba + blocks <= 1 << 64 and 0 < blocks <= MAX_BLOCKS):
        raise OptionError(f"a Read has 1 to {MAX_BLOCKS} blocks of 64-bit numbers, not {blocks} from {lba}")
    _check_block_size(block_size)
    return NvmeCommand(
        nsid=nsid,
        address=address,
        data_length=blocks * block_size,
        cdw10=lba & 0xFFFFFFFF,
        cdw11=lba >> 32,
        cdw12=(blocks - 1) | (_FORCE_UNIT_ACCESS if force_unit_access else 0),
    ).encode()


def parse_command(command: bytes | bytearray | memoryview) -> NvmeCommand:
    """The command in exactly 64 bytes. Raises NvmeCommandRefused (a QueueFull) for any other number."""
    raw = memoryview(command).tobytes()
    if len(raw) != COMMAND_BYTES:
        raise NvmeCommandRefused(
            f"it has {len(raw)} bytes", fix=f"An NVMe command has exactly {COMMAND_BYTES}; encode_read makes one."
        )
    return NvmeCommand(*_COMMAND.unpack(raw))


def check_command(command: NvmeCommand, *, block_size: int, buffer_start: int, buffer_length: int) -> None:
    """Raise NvmeCommandRefused unless ``command`` is a Read that can write nowhere but in the mapped buffer, the
    ``buffer_length`` bytes from address ``buffer_start``, on a namespace of ``block_size`` bytes a block.

    Accepted: opcode Read with flags 0, no metadata, dwords 12 and 13 with nothing but the block count, force unit
    access, limited retry and the dataset hints. All else is refused, reserved fields included: no one knows what a
    later drive makes of them.
    """
    _check_block_size(block_size)
    refused = _not_a_plain_read(command)
    if refused:
        raise NvmeCommandRefused(refused, fix="Only plain Reads are sent; encode_read makes one.")
    needed = command.blocks * block_size
    if needed > command.data_length:
        raise NvmeCommandRefused(
            f"{command.blocks} blocks of {block_size} bytes are {needed} bytes, and its data length is "
            f"{command.data_length}: the drive would write past it",
            fix="Give a data length of block count × block size. The count's field holds one less than the count.",
        )
    if command.address % ADDRESS_ALIGNMENT:
        raise NvmeCommandRefused(
            f"its address {command.address:#x} is no multiple of {ADDRESS_ALIGNMENT}",
            fix="Align the buffer, best to a page.",
        )
    if not (
        buffer_start <= command.address and command.address + command.data_length <= buffer_start + buffer_length
    ):
        raise NvmeCommandRefused(
            f"its {command.data_length} bytes at {command.address:#x} are not in the mapped buffer, "
            f"{buffer_length} bytes at {buffer_start:#x}",
            fix="Read into the mapped buffer, or give the stream another one (replace_buffer).",
        )


def _not_a_plain_read(command: NvmeCommand) -> str:
    if command.opcode != OPCODE_READ:
        return f"its opcode is {command.opcode:#04x}, not Read ({OPCODE_READ:#04x})"
    if command.flags:
        return f"its flags are {command.flags:#04x}: neither fused operations nor another data pointer are known"
    if command.metadata or command.metadata_length:
        return "it transfers metadata"
    if command.cdw2 or command.cdw3 or command.cdw14 or command.cdw15:
        return "its dwords 2, 3, 14 and 15 (protection tags) are not 0"
    if command.cdw12 & ~(0xFFFF | _FORCE_UNIT_ACCESS | _LIMITED_RETRY):
        return f"its dword 12 is {command.cdw12:#010x}: protection checks and reserved bits must be 0"
    if command.cdw13 & ~_DATASET_MANAGEMENT:
        return f"its dword 13 is {command.cdw13:#010x}: reserved bits must be 0"
    return ""


def _check_block_size(block_size: int) -> None:
    if block_size < 512 or block_size & (block_size - 1):
        raise OptionError(f"a block has a power of two of at least 512 bytes, not {block_size}")


# ── namespaces ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class NvmeNamespace:
    """A namespace, as the kernel and the drive describe it.

    device: its generic node's name, ng0n1. blocks: its size, in blocks of block_size bytes. max_transfer: the most
    bytes of one command (MDTS, or the kernel's own limit). max_segments: the most pieces of memory of one command.
    """

    device: str
    nsid: int
    block_size: int
    blocks: int
    max_transfer: int
    max_segments: int

    @property
    def piece(self) -> int:
        """The most bytes that surely fit one command into page-aligned memory whose pages lie anywhere: 6.1 counts
        every page as a segment. A multiple of the block size."""
        page = mmap.PAGESIZE
        limit = min(self.max_transfer, MAX_BLOCKS * self.block_size)
        if self.max_segments > 0:
            limit = min(limit, max(page, (self.max_segments - 1) * page))
        return max(limit // max(page, self.block_size) * max(page, self.block_size), self.block_size)

    def check(self, command: NvmeCommand, *, buffer_start: int, buffer_length: int) -> None:
        """``check_command`` for a command to this namespace, refused too where it names another."""
        check_command(command, block_size=self.block_size, buffer_start=buffer_start, buffer_length=buffer_length)
        if command.nsid != self.nsid:
            raise NvmeCommandRefused(
                f"it is for namespace {command.nsid}, and the descriptor is namespace {self.nsid}",
                device=self.device,
                fix=f"Encode it with nsid {self.nsid}.",
            )


_OPEN_GENERIC: Final = "Open the namespace's generic character node, /dev/ngXnY (Linux 5.13 or newer)."


def namespace_of(fd: int, *, sysfs: Path = Path("/sys")) -> NvmeNamespace:
    """The namespace behind the open generic node ``fd``.

    The sizes come from sysfs, and from an Identify Namespace where the process may send one (root; anybody since
    6.2); the two must agree. Raises OptionError where ``fd`` is something else, PipelineError where the namespace
    can't be read this way (metadata, no capacity, blocks larger than the kernel handles).
    """
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode):
        kind = "a block device" if stat.S_ISBLK(status.st_mode) else "no device"
        raise OptionError(f"descriptor {fd} is {kind}, no NVMe generic node", fix=_OPEN_GENERIC)
    node = (sysfs / f"dev/char/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
    if not node.name.startswith("ng"):
        raise OptionError(f"descriptor {fd} is {node.name}, no NVMe generic node", fix=_OPEN_GENERIC)
    block = node.parent / f"nvme{node.name[2:]}"
    try:
        block_size = int((block / "queue/logical_block_size").read_text())
        namespace = NvmeNamespace(
            device=node.name,
            nsid=_nsid(fd),
            block_size=block_size,
            blocks=int((block / "size").read_text()) * 512 // block_size,
            max_transfer=int((block / "queue/max_hw_sectors_kb").read_text()) * 1024,
            max_segments=int((block / "queue/max_segments").read_text()),
        )
    except OSError as error:
        raise PipelineError(
            "the namespace's block device isn't described in sysfs",
            device=node.name,
            errno=error.errno,
            fix="Mount /sys, and see whether the drive is still there.",
        ) from None
    if namespace.blocks == 0:
        raise PipelineError(
            "the kernel gives this namespace no capacity: its blocks are larger than a page, or carry metadata",
            device=node.name,
            fix="Format it with 512 or 4096-byte blocks and no metadata (nvme format).",
        )
    described = _identify(fd, namespace.nsid)
    metadata = _metadata_in_sysfs(block) if described is None else described[1]
    if metadata:
        raise PipelineError(
            f"its blocks carry {metadata} bytes of metadata" if metadata > 0 else "its blocks carry metadata",
            device=node.name,
            fix="Format the namespace without metadata (nvme format); until then read it through its file system.",
        )
    if described is not None and described[0] != block_size:
        raise PipelineError(
            f"the drive has blocks of {described[0]} bytes and the kernel thinks {block_size}",
            device=node.name,
            fix="Let the kernel look again (nvme ns-rescan).",
        )
    return namespace


def _nsid(fd: int) -> int:
    return fcntl.ioctl(fd, IOCTL_ID)


def _identify(fd: int, nsid: int) -> tuple[int, int] | None:
    """(bytes of a block, bytes of its metadata) by Identify Namespace; None where the process may not ask.

    Source: NVM command set specification, "Identify Namespace Data Structure": FLBAS is byte 26 (the format's low
    four bits, the high two in bits 6:5), the formats' 4 bytes each begin at byte 128: metadata bytes u16, log2 of
    the block's bytes u8.
    """
    answer = mmap.mmap(-1, 4096)
    pin = (ctypes.c_char * 4096).from_buffer(answer)
    try:
        request = NvmeCommand(opcode=_IDENTIFY, nsid=nsid, address=ctypes.addressof(pin), data_length=4096)
        fcntl.ioctl(fd, IOCTL_ADMIN, bytearray(request.encode() + bytes(8)))
        used = answer[26]
        at = 128 + 4 * (used & 0xF | (used >> 5 & 3) << 4)
        metadata, log2 = struct.unpack_from("<HB", answer, at)
        return 1 << log2, metadata
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTTY):
            return None
        raise PipelineError("Identify Namespace failed", errno=error.errno, fix="See the kernel's log.") from None
    finally:
        del pin
        answer.close()


def _metadata_in_sysfs(block: Path) -> int:
    """Bytes of metadata a block, −1 for some, 0 for none, as far as sysfs tells."""
    try:
        return int((block / "metadata_bytes").read_text())  # 6.8
    except OSError:
        pass
    try:
        return 0 if (block / "integrity/format").read_text().strip() in ("", "none") else -1
    except OSError:
        return 0


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────
# NVMe base specification, "Status Code"; by type << 8 | code. Those that a Read may meet.
_STATUS: Final = {
    0x001: "invalid command opcode",
    0x002: "invalid field in command",
    0x003: "command identifier conflict",
    0x004: "data transfer error",
    0x005: "aborted by loss of power",
    0x006: "internal error",
    0x007: "abort requested",
    0x008: "aborted by deletion of its queue",
    0x00B: "invalid namespace or format",
    0x00C: "command sequence error",
    0x010: "invalid use of controller memory buffer",
    0x011: "invalid SGL descriptor",
    0x013: "invalid PRP offset",
    0x015: "operation denied",
    0x01C: "sanitize failed",
    0x01D: "sanitize in progress",
    0x020: "namespace is write protected",
    0x021: "command interrupted",
    0x022: "transient transport error",
    0x080: "LBA out of range",
    0x081: "capacity exceeded",
    0x082: "namespace not ready",
    0x083: "reservation conflict",
    0x084: "format in progress",
    0x180: "conflicting attributes",
    0x181: "invalid protection information",
    0x280: "write fault",
    0x281: "unrecovered read error",
    0x282: "end-to-end guard check error",
    0x283: "end-to-end application tag check error",
    0x284: "end-to-end reference tag check error",
    0x286: "access denied",
    0x287: "deallocated or unwritten block",
    0x300: "internal path error",
    0x301: "asymmetric access persistent loss",
    0x302: "asymmetric access inaccessible",
    0x303: "asymmetric access transition",
    0x360: "controller pathing error",
    0x370: "host pathing error",
    0x371: "aborted by the host",
}
_TYPE: Final = ("generic", "command specific", "media", "path", "type 4", "type 5", "type 6", "vendor specific")
_STATUS_FIX: Final = {
    0x001: "The drive doesn't know the command; send Reads.",
    0x00B: "See that the namespace is attached (nvme list).",
    0x080: "The range lies past the namespace's end: the file, or its map of extents, is not this namespace's.",
    0x081: "The range lies past the namespace's end.",
    0x082: "The namespace is starting or being formatted: wait, then try again.",
    0x083: "Another host holds a reservation (nvme resv-report).",
    0x281: "The medium can't give these blocks back: restore the file from a copy and look at the drive's health "
    "(nvme smart-log).",
    0x286: "The range is locked: unlock the drive (sedutil, TCG Opal).",
}
_TYPE_FIX: Final = {
    2: "Look at the drive's health (nvme smart-log) and its error log (nvme error-log).",
    3: "The path to the drive failed: look at the kernel's log and the fabric or the slot.",
}

_ERRNO_FIX: Final = {
    errno.EOPNOTSUPP: "The ring lacks SQE128 or CQE32, or the descriptor takes no NVMe commands, as a block device "
    "node doesn't: set the ring up with both, and open /dev/ngXnY.",
    errno.EINVAL: "The command names another namespace than the descriptor's, has flags, is longer than the drive's "
    "transfer limit (max_hw_sectors_kb) or lies on more pieces of memory than it takes (max_segments), or, on 6.1, "
    "the registered buffer has more pages than that from the address on: read in pieces (NvmePassthrough.read does), "
    "register short buffers.",
    errno.ENOTTY: "The descriptor's driver doesn't know this command operation: I/O commands go to the namespace's "
    "node (/dev/ngXnY), admin commands to the controller's (/dev/nvmeX).",
    errno.EFAULT: "The address isn't mapped for writing, can't be pinned (a device's memory without peer-to-peer "
    "pages), or isn't in the registered buffer that was named.",
    errno.EACCES: "The kernel doesn't allow this user passthrough: before 6.2 it needs CAP_SYS_ADMIN when the "
    "command is sent, not when the node is opened; later it needs the node opened, and Reads only.",
    errno.EPERM: "A security module or a container forbids NVMe passthrough.",
    errno.ENODEV: "The drive is gone: removed, or given up by the kernel (see its log).",
    errno.ENXIO: "The drive is gone.",
    errno.EBADF: "The descriptor is closed.",
    errno.EINTR: "The command was cancelled: it timed out, or the controller was reset. See the kernel's log.",
    errno.ENOMEM: "The kernel has no memory for the command just now.",
    errno.EAGAIN: "The drive's queues are full: reap completions first.",
}


def status_name(status: int) -> str:
    """The name of the drive's ``status`` (bits 10:0 count: type and code)."""
    key = status & 0x7FF
    return _STATUS.get(key) or f"{_TYPE[key >> 8]} status {key & 0xFF:#04x}"


def completion_error(
    result: int, *, lba: int | None = None, block_size: int = 0, device: str | None = None
) -> NvmeStatus | IoUringSyscall | None:
    """What a completion's ``result`` means: None for 0, NvmeStatus for the drive's answer, IoUringSyscall for −errno.

    lba, block_size, device: where the command went, for the error to name (its ``offset`` is in bytes).
    """
    if result == 0:
        return None
    where: dict[str, Any] = {"device": device}
    if lba is not None and block_size:
        where["offset"] = lba * block_size
    if result > 0:
        key = result & 0x7FF
        return NvmeStatus(
            result, status_name(result), lba=lba, fix=_STATUS_FIX.get(key) or _TYPE_FIX.get(key >> 8), **where
        )
    return IoUringSyscall("io_uring (NVMe passthrough)", -result, fix=_ERRNO_FIX.get(-result), **where)


# ── the ring ─────────────────────────────────────────────────────────────────────────────────────────────────
def require_passthrough(switch: str | None = None) -> None:
    """Raise NvmePassthroughDisabled where the environment (``switch``: its value, for tests) switches it off."""
    value = os.environ.get(SWITCH, "") if switch is None else switch
    if value.strip().lower() in ("0", "off", "no", "false"):
        raise NvmePassthroughDisabled(f"{SWITCH}={value}", fix="Unset it, or choose another read engine.")


@hot
def _load(address: int) -> int:
    return load_acquire(address)


@hot
def _publish(address: int, value: int) -> None:
    store_release(address, value)


@hot
def _reap(cq_head: int, cq_tail: int, cqes: int, mask: int, shift: int, rows: np.ndarray) -> int:
    """Move what has completed into ``rows`` (token, result, the command's own result); how many."""
    head = load_acquire(cq_head)
    count = min((load_acquire(cq_tail) - head) & _WRAP, len(rows))
    for i in range(count):
        cqe = cqes + (((head + i) & mask) << shift)
        rows[i, 0] = kernel.cqe_user_data(cqe)
        rows[i, 1] = kernel.cqe_res(cqe)
        rows[i, 2] = kernel.cqe_extra(cqe)
    store_release(cq_head, (head + count) & _WRAP)
    return count


@dataclass(frozen=True, slots=True)
class NvmeCompletion:
    """A reaped command: the caller's ``user_data``, how many bytes the drive wrote, or why it didn't."""

    user_data: int
    bytes: int
    error: NvmeStatus | IoUringSyscall | None


@dataclass(frozen=True, slots=True)
class _Flight:
    """What is kept for a command until it is reaped; ``keep`` is the caller's memory."""

    user_data: int
    command: NvmeCommand
    namespace: NvmeNamespace
    keep: object


@dataclass(slots=True)
class _Piece:
    """A part of a synchronous read; ``tries`` counts what was sent of it."""

    lba: int
    blocks: int
    address: int
    tries: int = 0


class NvmePassthrough:
    """A ring with SQE128 and CQE32 that sends Reads to NVMe namespaces, up to ``depth`` at a time.

    open → closed. The thread that submits first owns it. ``submit`` queues, ``flush`` hands over, ``reap`` collects;
    ``read`` does all three for one range. Counters: ``queued`` are written and not handed over, ``held`` are the
    kernel's; their sum never exceeds ``depth``, which the ring has room for, so neither queue can overflow.

    buffers: (address, length in bytes) each, to be registered; a command sent with ``buf_index`` must lie in that
    buffer. 6.1 refuses a buffer that has more than ``max_segments`` pages from the command's address on, however
    short the command. identify: how a descriptor's namespace is found (tests give another).

    Raises NvmePassthroughDisabled, and what IoUringState and register_buffers raise.
    """

    def __init__(
        self,
        depth: int = 64,
        *,
        buffers: Sequence[tuple[int, int]] = (),
        identify: Callable[[int], NvmeNamespace] = namespace_of,
    ) -> None:
        require_passthrough()
        if not 0 < depth <= kernel.MAX_ENTRIES:
            raise OptionError(f"a depth is 1 to {kernel.MAX_ENTRIES}, not {depth}")
        entries = abi.power_of_two(depth)
        self.depth = depth
        self.queued = self.held = 0
        self._closed = False
        self._identify = identify
        self._targets: dict[tuple[int, int, int], tuple[int, NvmeNamespace]] = {}
        self._flights: dict[int, _Flight] = {}
        self._free = list(range(depth))
        self._buffers = tuple(buffers)
        self._rows = np.zeros((2 * entries, 3), np.int64)
        self._command = PrivateMemory(kernel.COMMAND_BYTES)  # zero behind the 64 bytes: timeout and reserved
        self._ring = IoUringState(entries, 2 * entries, sqe128=True, cqe32=True)
        self._tail = _load(self._ring.addresses.sq_tail)
        try:
            if buffers:
                self._ring.register_buffers(buffers)
        except BaseException:
            self._ring.close()
            raise

    def __enter__(self) -> NvmePassthrough:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, fd: int) -> NvmeNamespace:
        """The namespace behind ``fd``, asked for once. Raises what ``namespace_of`` raises."""
        return self._target(fd)[1]

    def inflight(self) -> int:
        """Commands submitted and not reaped."""
        return self.queued + self.held

    def submit(
        self,
        fd: int,
        user_data: int,
        command: bytes | bytearray | memoryview,
        *,
        buffer_start: int,
        buffer_length: int,
        buf_index: int | None = None,
        keep: object = None,
    ) -> None:
        """Queue the 64-byte ``command`` for the namespace node ``fd``, to write only to the ``buffer_length`` bytes
        at ``buffer_start``, which must stay mapped until it is reaped (``keep``: an object that is held until then).

        buf_index: send it through that registered buffer. Raises QueueFull where ``depth`` are in flight,
        NvmeCommandRefused as ``check_command`` does, or for another namespace's command or one outside buf_index.
        """
        parsed = parse_command(command)
        own, namespace = self._target(fd)
        namespace.check(parsed, buffer_start=buffer_start, buffer_length=buffer_length)
        if buf_index is not None:
            self._check_registered(parsed, buf_index)
        if not self._free:
            raise QueueFull("NVMe passthrough", fix="Reap completions, then submit again.")
        token = self._free.pop()
        self._flights[token] = _Flight(user_data, parsed, namespace, keep)
        ring = self._ring.addresses
        self._command.view[:COMMAND_BYTES] = parsed.encode()
        kernel.put_command(
            ring.sqes + ((self._tail & (ring.sq_entries - 1)) << ring.sqe_shift),
            0,
            own,
            URING_CMD_IO,
            0 if buf_index is None else kernel.COMMAND_FIXED,
            buf_index or 0,
            token,
            self._command.address,
        )
        self._tail = (self._tail + 1) & _WRAP
        self.queued += 1
        assert self.queued + self.held == len(self._flights) <= self.depth

    def flush(self) -> None:
        """Hand what is queued to the kernel. Raises IoUringSyscall."""
        self._hand_over(0, None)

    def reap(self, wait: int = 0, seconds: float | None = None) -> list[NvmeCompletion]:
        """Flush, wait for ``wait`` completions (at most ``seconds``), and collect all that are there, in the order
        in which they completed. Fewer than ``wait`` when the time was up. Raises IoUringSyscall."""
        self._hand_over(min(wait, self.inflight()), seconds)
        ring = self._ring.addresses
        mask = ring.cq_entries - 1
        count = _reap(ring.cq_head, ring.cq_tail, ring.cqes, mask, ring.cqe_shift, self._rows)
        self.held -= count
        rows = self._rows[:count].tolist()
        done = [self._settle(token, result) for token, result, _ in rows]
        assert self.queued + self.held == len(self._flights)
        return done

    def read(
        self, fd: int, offset: int, length: int, address: int, *, buf_index: int | None = None, seconds: float = 60.0
    ) -> int:
        """Read ``length`` bytes at byte ``offset`` of the namespace to ``address``; ``length``, or an error.

        Cut into pieces that the drive takes, ``depth`` of them in flight. EAGAIN, EINTR and ECANCELED are tried
        again, 8 times at most. Raises NvmeStatus or IoUringSyscall for the lowest failed block, once nothing is in
        flight any more; OptionError for a range that isn't whole blocks. After DeadlineExceeded, or where
        io_uring_enter itself fails, ``inflight`` says what the drive still holds: until ``close`` has returned, the
        memory at ``address`` may be written to.
        """
        if self.inflight():
            raise OptionError("a synchronous read wants a passthrough with nothing in flight")
        namespace = self.namespace(fd)
        waiting = self._pieces(namespace, offset, length, address)
        deadline = time.monotonic() + seconds
        sent: dict[int, _Piece] = {}
        failed: list[tuple[int, Exception]] = []
        while waiting or sent:
            while waiting and self._free:
                piece = waiting.pop()
                piece.tries += 1
                self.submit(
                    fd,
                    piece.lba,
                    encode_read(namespace.nsid, piece.lba, piece.blocks, namespace.block_size, piece.address),
                    buffer_start=address,
                    buffer_length=length,
                    buf_index=buf_index,
                )
                sent[piece.lba] = piece
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{len(sent)} NVMe commands", seconds, device=namespace.device)
            for done in self.reap(1, left):
                piece = sent.pop(done.user_data)
                if done.error is None:
                    continue
                if done.error.errno in _TRANSIENT and piece.tries < _TRIES:
                    if not failed:
                        waiting.append(piece)
                else:
                    failed.append((piece.lba, done.error))
                    waiting.clear()
        if failed:
            raise min(failed, key=lambda pair: pair[0])[1]
        return length

    def close(self, seconds: float = 60.0) -> None:
        """Wait for what is in flight, close everything; idempotent. Raises DeadlineExceeded where the drive still
        holds commands after ``seconds``: their memory must stay mapped, and ``close`` may be tried again."""
        if self._closed:
            return
        deadline = time.monotonic() + seconds
        while self.inflight():
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{self.inflight()} NVMe commands in flight", seconds)
            self.reap(self.inflight(), left)
        self._closed = True
        self._ring.close()
        for own, _ in self._targets.values():
            os.close(own)
        self._targets.clear()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────
    def _target(self, fd: int) -> tuple[int, NvmeNamespace]:
        """This object's own descriptor for what ``fd`` is open on, and its namespace.

        Known by the node, not by the number, which is soon another file's. A node that is made anew, after its drive
        was exchanged, has another inode: the old one can't be given out again while our descriptor holds it.
        """
        if self._closed:
            raise OptionError("the passthrough is closed")
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_rdev)
        found = self._targets.get(key)
        if found is None:
            own = os.dup(fd)
            try:
                found = own, self._identify(own)
            except BaseException:
                os.close(own)
                raise
            self._targets[key] = found
        return found

    def _check_registered(self, command: NvmeCommand, buf_index: int) -> None:
        if not 0 <= buf_index < len(self._buffers):
            raise NvmeCommandRefused(
                f"buffer {buf_index} is not among the {len(self._buffers)} registered",
                fix="Give the buffers to the constructor.",
            )
        start, length = self._buffers[buf_index]
        if not (start <= command.address and command.address + command.data_length <= start + length):
            raise NvmeCommandRefused(
                f"its {command.data_length} bytes at {command.address:#x} are not in registered buffer {buf_index}",
                fix=f"That buffer is {length} bytes at {start:#x}.",
            )

    def _hand_over(self, wait: int, seconds: float | None) -> None:
        if self._closed:
            raise OptionError("the passthrough is closed")
        self._ring.enable()
        _publish(self._ring.addresses.sq_tail, self._tail)
        deadline = None if seconds is None else time.monotonic() + seconds
        for _ in range(_TRIES):
            left = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1e9))
            result = self._ring.enter(self.queued, wait, left)
            if result >= 0:
                self.queued -= result
                self.held += result
                if self.queued == 0:
                    return
            elif result == -errno.ETIME:
                return
            elif -result not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
                raise IoUringSyscall("io_uring_enter", -result)
        if self.queued:
            raise IoUringSyscall(
                "io_uring_enter", errno.EAGAIN, fix="The kernel takes no entries just now: reap, then try again."
            )

    def _settle(self, token: int, result: int) -> NvmeCompletion:
        flight = self._flights.pop(token)
        self._free.append(token)
        command, namespace = flight.command, flight.namespace
        if result == 0:
            return NvmeCompletion(flight.user_data, command.blocks * namespace.block_size, None)
        error = completion_error(result, lba=command.lba, block_size=namespace.block_size, device=namespace.device)
        return NvmeCompletion(flight.user_data, 0, error)

    @staticmethod
    def _pieces(namespace: NvmeNamespace, offset: int, length: int, address: int) -> list[_Piece]:
        """The range as commands of about the same length, the first one last."""
        size = namespace.block_size
        if offset < 0 or length < 0 or offset % size or length % size:
            raise OptionError(
                f"{length} bytes at {offset} are not whole blocks of {size} bytes", device=namespace.device
            )
        count = -(-length // namespace.piece)
        unit = max(size, mmap.PAGESIZE)
        step = -(-length // (max(count, 1) * unit)) * unit
        starts = range(0, length, max(step, 1))
        return [
            _Piece((offset + at) // size, min(step, length - at) // size, address + at) for at in reversed(starts)
        ]

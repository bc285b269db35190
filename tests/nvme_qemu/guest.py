"""What runs in the guest: the cases, each against the kernel's NVMe driver and an emulated drive.

    python -m tests.nvme_qemu.guest RESULTS      all cases; RESULTS gets a JSON object, name → null or what was wrong

The host imports only ``CASES``, for their names. A case is a function that asserts; those that break a drive come
last. ``Raw`` sends what the library would refuse, to see what the kernel answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import mmap
import os
import platform
import random
import re
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.nvme_qemu.drives import BAD, BAD_LBA, DATA, FOUR, GONE, TAGGED, TRANSFER_LIMIT, Drive
from uring_actors.errors import (
    IoUringSyscall,
    NvmeCommandRefused,
    NvmeStatus,
    OptionError,
    PipelineError,
    QueueFull,
)
from uring_actors.uring import kernel, nvme
from uring_actors.uring.gpudirect import GpuDirectCapability, NativeReader, State
from uring_actors.uring.nvme import NvmeCommand, NvmePassthrough, encode_read, namespace_of, parse_command
from uring_actors.uring.ring import IoUringState

CASES: dict[str, Callable[[], None]] = {}
PAGE = mmap.PAGESIZE
LINUX = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
NOBODY = 65534
MAP_HUGETLB = 0x40000  # asm-generic/mman.h


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────
class Memory:
    """Page-aligned memory with a canary of a page on either side of what is handed out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size + 2 * PAGE + (2 << 20))
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._pin = (ctypes.c_char * len(self._map)).from_buffer(self._map)
        self.address = ctypes.addressof(self._pin) + PAGE
        self.clear()

    def __len__(self) -> int:
        return self.size

    def clear(self) -> None:
        self._map[: self.size + 2 * PAGE] = b"\xa5" * (self.size + 2 * PAGE)

    def bytes(self, at: int, length: int) -> bytes:
        return self._map[PAGE + at : PAGE + at + length]

    def untouched(self, first: int, last: int) -> bool:
        """Whether nothing was written outside of the bytes ``first`` to ``last``."""
        before, after = self._map[: PAGE + first], self._map[PAGE + last : 2 * PAGE + self.size]
        return before.count(0xA5) == len(before) and after.count(0xA5) == len(after)

    def check(self, drive: Drive, at: int, offset: int, length: int) -> None:
        """The bytes are the drive's, and nothing else was written."""
        assert self.bytes(at, length) == drive.content(offset, length), f"wrong bytes: {length} at {offset}"
        assert self.untouched(at, at + length), f"written outside: {length} at {offset}"


@contextlib.contextmanager
def fails(kind: type[Exception]) -> Iterator[list[Any]]:
    """The block must raise ``kind``; what it raised is in the list afterwards."""
    caught: list[Any] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"no {kind.__name__}"


def controller(drive: Drive) -> Path:
    for _ in range(200):
        for path in Path("/sys/class/nvme").glob("nvme*"):
            with contextlib.suppress(OSError):
                if (path / "serial").read_text().strip() == drive.name and any(path.glob("ng*")):
                    return path
        time.sleep(0.05)
    raise AssertionError(f"no controller {drive.name}")


def node(drive: Drive) -> str:
    return f"/dev/{next(controller(drive).glob('ng*')).name}"


def block_node(drive: Drive) -> str:
    return node(drive).replace("/ng", "/nvme")


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


class Raw:
    """A ring that sends anything to anything, one at a time."""

    def __init__(
        self, *, sqe128: bool = True, cqe32: bool = True, buffers: list[tuple[int, int]] | None = None
    ) -> None:
        self.ring = IoUringState(4, 8, sqe128=sqe128, cqe32=cqe32)
        if buffers:
            self.ring.register_buffers(buffers)
        self.ring.enable()

    def send(
        self, fd: int, command: bytes, *, operation: int = nvme.URING_CMD_IO, flags: int = 0, buf_index: int = 0
    ) -> int:
        words = self.ring.addresses
        tail = ctypes.c_uint32.from_address(words.sq_tail)
        head = ctypes.c_uint32.from_address(words.cq_head)
        area = (ctypes.c_uint64 * 10).from_buffer_copy(command.ljust(kernel.COMMAND_BYTES, b"\0"))
        # On a ring with small entries the command runs over into the next one: such a ring is used once.
        assert words.sqe_shift == kernel.SQE128_SHIFT or tail.value == 0
        sqe = words.sqes + ((tail.value % words.sq_entries) << words.sqe_shift)
        kernel.put_command(sqe, 0, fd, operation, flags, buf_index, 1, ctypes.addressof(area))
        tail.value += 1
        taken = self.ring.enter(1, 1, 10**10)
        assert taken == 1, taken
        cqe = words.cqes + ((head.value % words.cq_entries) << words.cqe_shift)
        assert kernel.cqe_user_data(cqe) == 1
        result = kernel.cqe_res(cqe)
        head.value += 1
        return result

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.close()


def raw(command: bytes, drive: Drive = DATA, **options: int) -> int:
    with opened(node(drive)) as fd, Raw() as ring:
        return ring.send(fd, command, **options)


def read_of(drive: Drive, lba: int, blocks: int, address: int, **changes: int) -> bytes:
    """A Read with some fields changed."""
    command = parse_command(encode_read(drive.nsid, lba, blocks, drive.block_size, address))
    values = {name: getattr(command, name) for name in NvmeCommand.__dataclass_fields__} | changes
    return NvmeCommand(**values).encode()


def refused(drive: Drive, command: bytes, memory: Memory) -> str:
    """Why the library doesn't send ``command`` into ``memory``."""
    with opened(node(drive)) as fd, NvmePassthrough(4) as passthrough:
        try:
            passthrough.submit(fd, 1, command, buffer_start=memory.address, buffer_length=memory.size)
        except NvmeCommandRefused as error:
            assert passthrough.inflight() == 0
            return error.reason
    raise AssertionError("not refused")


def one(drive: Drive, command: bytes, memory: Memory) -> nvme.NvmeCompletion:
    """The library's completion of one command."""
    with opened(node(drive)) as fd, NvmePassthrough(4) as passthrough:
        passthrough.submit(fd, 77, command, buffer_start=memory.address, buffer_length=memory.size)
        (done,) = passthrough.reap(1, 10)
        assert done.user_data == 77
        return done


# ── what works ───────────────────────────────────────────────────────────────────────────────────────────────
@case
def a_namespace_is_described() -> None:
    for drive in (DATA, FOUR):
        with opened(node(drive)) as fd:
            found = namespace_of(fd)
        assert found.nsid == drive.nsid, found
        assert found.block_size == drive.block_size, found
        assert found.blocks * found.block_size == drive.size, found
        assert found.max_transfer == TRANSFER_LIMIT, found
        assert found.max_segments > 0, found
        assert found.device == node(drive).removeprefix("/dev/")


@case
def reads_of_many_places_and_sizes() -> None:
    memory = Memory(TRANSFER_LIMIT)
    rng = random.Random(5)
    last = DATA.size // 512
    counts = [1, 2, 3, 7, 8, 9, 15, 16, 17, 64, 127, 128, 129, 500, 1000]
    places = [0, 1, 7, 8, 4095, last - 1000] + [rng.randrange(last - 1000) for _ in range(6)]
    with opened(node(DATA)) as fd, NvmePassthrough(1) as passthrough:
        for lba in places:
            for blocks in counts if lba < 8 else rng.sample(counts, 4):
                at = rng.choice([0, 4, 512, 4096, 8191 & ~3])
                memory.clear()
                command = encode_read(1, lba, blocks, 512, memory.address + at)
                passthrough.submit(fd, lba, command, buffer_start=memory.address, buffer_length=memory.size)
                (done,) = passthrough.reap(1, 10)
                assert (done.user_data, done.bytes, done.error) == (lba, blocks * 512, None), done
                memory.check(DATA, at, lba * 512, blocks * 512)


@case
def the_first_and_the_last_block() -> None:
    memory = Memory(PAGE)
    for drive in (DATA, FOUR):
        for lba in (0, drive.size // drive.block_size - 1):
            memory.clear()
            assert one(drive, read_of(drive, lba, 1, memory.address), memory).error is None
            memory.check(drive, 0, lba * drive.block_size, drive.block_size)


@case
def blocks_of_4_kib() -> None:
    memory = Memory(64 * 1024)
    for lba, blocks in ((0, 1), (5, 3), (1000, 16)):
        memory.clear()
        done = one(FOUR, read_of(FOUR, lba, blocks, memory.address), memory)
        assert (done.bytes, done.error) == (blocks * 4096, None)
        memory.check(FOUR, 0, lba * 4096, blocks * 4096)


@case
def the_longest_transfer() -> None:
    """Exactly the limit, in memory that is contiguous (a huge page)."""
    Path("/proc/sys/vm/nr_hugepages").write_text("1")
    area = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    pin = (ctypes.c_char * len(area)).from_buffer(area)
    command = encode_read(1, 64, TRANSFER_LIMIT // 512, 512, ctypes.addressof(pin))
    with opened(node(DATA)) as fd, NvmePassthrough(1) as passthrough:
        passthrough.submit(fd, 1, command, buffer_start=ctypes.addressof(pin), buffer_length=len(area))
        (done,) = passthrough.reap(1, 10)
    assert (done.bytes, done.error) == (TRANSFER_LIMIT, None), str(done.error)
    assert area[:TRANSFER_LIMIT] == DATA.content(64 * 512, TRANSFER_LIMIT)
    assert area[TRANSFER_LIMIT:].count(0) == len(area) - TRANSFER_LIMIT


def scattered(size: int) -> tuple[mmap.mmap, ctypes.Array[ctypes.c_char]]:
    """Memory whose neighbouring pages were allocated far apart."""
    fd = os.memfd_create("scattered")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    pages = list(range(0, size, PAGE))
    random.Random(3).shuffle(pages)
    for page in pages:
        memory[page] = 1
    return memory, (ctypes.c_char * size).from_buffer(memory)


@case
def the_longest_transfer_on_scattered_pages() -> None:
    """6.1 counts each page as a segment and takes 127; the library's own pieces fit."""
    memory, pin = scattered(8 * TRANSFER_LIMIT)
    address = ctypes.addressof(pin)
    result = raw(encode_read(1, 0, TRANSFER_LIMIT // 512, 512, address))
    assert result == (-errno.EINVAL if LINUX < (6, 2) else 0), result
    with opened(node(DATA)) as fd, NvmePassthrough(8) as passthrough:
        assert passthrough.read(fd, 0, TRANSFER_LIMIT, address) == TRANSFER_LIMIT
        assert memory[:TRANSFER_LIMIT] == DATA.content(0, TRANSFER_LIMIT)


@case
def a_long_read_is_cut_to_fit() -> None:
    size = 5 * (1 << 20) + 3 * 512
    memory = Memory(size + PAGE)
    with opened(node(DATA)) as fd, NvmePassthrough(4) as passthrough:
        for offset, length, at in ((0, size, 0), (512 * 77, size, 512), (4096, TRANSFER_LIMIT + 512, 0), (0, 512, 0)):
            memory.clear()
            assert passthrough.read(fd, offset, length, memory.address + at) == length
            memory.check(DATA, at, offset, length)
        assert passthrough.read(fd, 0, 0, memory.address) == 0
    with opened(node(FOUR)) as fd, NvmePassthrough(64) as passthrough:
        memory.clear()
        assert passthrough.read(fd, 4096 * 3, 5 << 20, memory.address) == 5 << 20
        memory.check(FOUR, 0, 4096 * 3, 5 << 20)


@case
def many_in_flight() -> None:
    """Each completion finds its request; a 65th is refused and goes in after a reap."""
    depth, total, size = 64, 500, 4096
    memory = Memory(depth * size)
    rng = random.Random(9)
    with opened(node(DATA)) as fd, opened(node(FOUR)) as other, NvmePassthrough(depth) as passthrough:
        free, where, done = list(range(depth)), {}, 0
        submitted = 0
        while done < total:
            while free and submitted < total:
                slot = free.pop()
                drive, target = rng.choice([(DATA, fd), (FOUR, other)])
                offset = rng.randrange(drive.size // 4096) * 4096
                where[slot] = (drive, offset)
                command = encode_read(
                    drive.nsid,
                    offset // drive.block_size,
                    4096 // drive.block_size,
                    drive.block_size,
                    memory.address + slot * size,
                )
                passthrough.submit(target, slot, command, buffer_start=memory.address, buffer_length=memory.size)
                submitted += 1
            if passthrough.inflight() == depth:
                with fails(QueueFull) as error:
                    passthrough.submit(target, 0, command, buffer_start=memory.address, buffer_length=memory.size)
                assert not isinstance(error[0], NvmeCommandRefused), error[0]
            for completion in passthrough.reap(1, 10):
                drive, offset = where.pop(completion.user_data)
                assert completion.error is None, completion
                assert memory.bytes(completion.user_data * size, size) == drive.content(offset, size)
                free.append(completion.user_data)
                done += 1
        assert passthrough.inflight() == 0
    assert memory.untouched(0, memory.size)


@case
def a_registered_buffer() -> None:
    memory = Memory(64 * 1024)
    with opened(node(DATA)) as fd, NvmePassthrough(4, buffers=[(memory.address, 64 * 1024)]) as passthrough:
        assert passthrough.read(fd, 1 << 20, 64 * 1024, memory.address, buf_index=0) == 64 * 1024
    memory.check(DATA, 0, 1 << 20, 64 * 1024)


@case
def a_descriptor_exchanged_before_the_flush() -> None:
    """The number is another drive's by the time the kernel looks; the read still comes from the one it was for."""
    memory = Memory(PAGE)
    with NvmePassthrough(4) as passthrough:
        fd = os.open(node(DATA), os.O_RDONLY)
        passthrough.submit(
            fd, 1, read_of(DATA, 9, 8, memory.address), buffer_start=memory.address, buffer_length=PAGE
        )
        os.close(fd)
        with opened(node(FOUR)) as again:
            assert again == fd
            (done,) = passthrough.reap(1, 10)
    assert done.error is None, done
    memory.check(DATA, 0, 9 * 512, 4096)


@case
def the_example_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/native-path.md").read_text()
    (example,) = re.findall(r"<!-- run: tests/nvme_qemu/guest\.py -->\n```py\n(.*?)```", page, re.DOTALL)
    said = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(said):
        exec(example.replace("/dev/ng0n1", node(DATA)), names)
    assert names["memory"][:] == DATA.content(0, 1 << 20)
    assert said.getvalue().endswith("7 4096 None\n"), said.getvalue()
    os.close(names["fd"])


@case
def the_native_path_with_host_memory() -> None:
    """The submission side of NVMe → GPU memory, with host memory where the peer mapping would be."""
    memory = Memory(1 << 20)
    pretended = GpuDirectCapability(State.AVAILABLE, "host memory in the peer mapping's place")
    with NativeReader(node(DATA), memory, capability=pretended) as reader:
        assert reader.read(8192, 700 * 1024, at=4096) == 700 * 1024
        memory.check(DATA, 4096, 8192, 700 * 1024)
        with fails(NvmeCommandRefused):
            reader.read(0, 1 << 20, at=512)
    real = GpuDirectCapability.probe()
    assert real.state is State.UNAVAILABLE, real  # the guest has no GPU
    assert "NVIDIA" in real.reason, real


# ── the drive's answers ──────────────────────────────────────────────────────────────────────────────────────
@case
def past_the_end() -> None:
    memory = Memory(8192)
    last = DATA.size // 512
    for lba, blocks in ((last, 1), (last - 1, 2), (1 << 40, 8)):
        command = read_of(DATA, lba, blocks, memory.address)
        assert raw(command) == 0x4080
        error = one(DATA, command, memory).error
        assert isinstance(error, NvmeStatus), error
        assert (error.status, error.code_type, error.code, error.dnr) == (0x4080, 0, 0x80, True)
        assert (error.name, error.lba, error.offset) == ("LBA out of range", lba, lba * 512)
        assert error.device == node(DATA).removeprefix("/dev/")
        assert error.fix
    with opened(node(DATA)) as fd, NvmePassthrough(8) as passthrough:
        with fails(NvmeStatus) as error:
            passthrough.read(fd, DATA.size - 4096, 8192, memory.address)
        assert error[0].status == 0x4080
        assert passthrough.inflight() == 0


@case
def an_unknown_opcode() -> None:
    memory = Memory(PAGE)
    command = read_of(DATA, 0, 1, memory.address, opcode=0x7E)
    assert raw(command) == 0x4001
    assert "opcode" in refused(DATA, command, memory)


@case
def a_media_error() -> None:
    memory = Memory(PAGE)
    error = one(BAD, read_of(BAD, BAD_LBA, 1, memory.address), memory).error
    assert isinstance(error, NvmeStatus), error
    assert (error.status, error.code_type, error.code, error.dnr) == (0x281, 2, 0x81, False)
    assert error.name == "unrecovered read error"
    assert (error.lba, error.offset) == (BAD_LBA, BAD_LBA * 512)
    with opened(block_node(BAD), os.O_RDONLY | os.O_DIRECT) as fd, contextlib.closing(mmap.mmap(-1, PAGE)) as area:
        with fails(OSError) as failed:
            os.preadv(fd, [memoryview(area)[:512]], BAD_LBA * 512)
        assert failed[0].errno == errno.ENODATA, failed[0]
    assert one(BAD, read_of(BAD, BAD_LBA + 8, 1, memory.address), memory).error is None


@case
def one_bad_block_in_a_long_read() -> None:
    """It is named by the piece that it lies in, and nothing is in flight when the error arrives."""
    memory = Memory(2 << 20)
    with opened(node(BAD)) as fd, NvmePassthrough(8) as passthrough:
        with fails(NvmeStatus) as error:
            passthrough.read(fd, 0, 2 << 20, memory.address)
        assert error[0].status == 0x281
        assert error[0].lba is not None
        assert error[0].lba <= BAD_LBA < error[0].lba + TRANSFER_LIMIT // 512
        assert passthrough.inflight() == 0
        assert passthrough.read(fd, 0, 4096, memory.address) == 4096


# ── the kernel's answers ─────────────────────────────────────────────────────────────────────────────────────
@case
def a_ring_with_small_entries() -> None:
    memory = Memory(PAGE)
    command = read_of(DATA, 0, 1, memory.address)
    with opened(node(DATA)) as fd:
        for sqe128, cqe32 in ((False, False), (True, False), (False, True)):
            with Raw(sqe128=sqe128, cqe32=cqe32) as ring:
                result = ring.send(fd, command)
                assert result == -errno.EOPNOTSUPP, (sqe128, cqe32, result)
    assert memory.untouched(0, 0)
    error = nvme.completion_error(-errno.EOPNOTSUPP)
    assert error is not None
    assert "SQE128" in str(error)


@case
def another_namespace() -> None:
    memory = Memory(PAGE)
    for drive, nsid in ((DATA, 2), (FOUR, 1)):
        command = read_of(drive, 0, 1, memory.address, nsid=nsid)
        assert raw(command, drive) == -errno.EINVAL
        assert f"namespace {nsid}" in refused(drive, command, memory)


@case
def command_flags() -> None:
    memory = Memory(PAGE)
    for flags in (0x01, 0x40, 0x80):
        command = read_of(DATA, 0, 1, memory.address, flags=flags)
        assert raw(command) == -errno.EINVAL
        assert "flags" in refused(DATA, command, memory)


@case
def more_than_the_transfer_limit() -> None:
    memory = Memory(2 * TRANSFER_LIMIT)
    command = read_of(DATA, 0, TRANSFER_LIMIT // 512 + 1, memory.address)
    assert raw(command) == -errno.EINVAL
    error = one(DATA, command, memory).error
    assert isinstance(error, IoUringSyscall), error
    assert error.errno == errno.EINVAL
    assert "max_hw_sectors_kb" in str(error)
    assert memory.untouched(0, 0)


@case
def an_unknown_operation() -> None:
    memory = Memory(PAGE)
    command = read_of(DATA, 0, 1, memory.address)
    wrong_size = nvme.URING_CMD_IO & ~(0x3FFF << 16) | 64 << 16
    for operation in (0, 0xC0484EFF, wrong_size):
        assert raw(command, operation=operation) == -errno.ENOTTY, hex(operation)


@case
def an_admin_command_on_the_namespace() -> None:
    memory = Memory(PAGE)
    identify = NvmeCommand(opcode=6, nsid=1, address=memory.address, data_length=4096).encode()
    assert raw(identify, operation=0xC0484E82) == -errno.ENOTTY


@case
def the_block_device() -> None:
    memory = Memory(PAGE)
    with opened(block_node(DATA)) as fd:
        with Raw() as ring:
            result = ring.send(fd, read_of(DATA, 0, 1, memory.address))
        assert result == (-errno.EOPNOTSUPP if LINUX < (6, 2) else -errno.EINVAL), result
        with fails(OptionError) as error:
            namespace_of(fd)
        assert "/dev/ng" in str(error[0])


@case
def a_bad_address() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_long
    libc.mmap.argtypes = [ctypes.c_long] * 6
    address = libc.mmap(0, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for place in (PAGE, address):
        assert raw(read_of(DATA, 0, 8, place)) == -errno.EFAULT, hex(place)


@case
def a_bad_registered_buffer() -> None:
    memory = Memory(16 * PAGE)
    inside = (memory.address, 8 * PAGE)
    with opened(node(DATA)) as fd, Raw(buffers=[inside]) as ring:
        good = read_of(DATA, 0, 8, memory.address)
        assert ring.send(fd, good, flags=kernel.COMMAND_FIXED, buf_index=1) == -errno.EFAULT
        outside = read_of(DATA, 0, 8, memory.address + 8 * PAGE)
        assert ring.send(fd, outside, flags=kernel.COMMAND_FIXED) == -errno.EFAULT
        across = read_of(DATA, 0, 16, memory.address + 7 * PAGE)
        assert ring.send(fd, across, flags=kernel.COMMAND_FIXED) == -errno.EFAULT
    assert memory.untouched(0, 0)
    with opened(node(DATA)) as fd, NvmePassthrough(4, buffers=[inside]) as passthrough:
        for command, index in ((good, 1), (good, -1), (outside, 0), (across, 0)):
            with fails(NvmeCommandRefused) as error:
                passthrough.submit(
                    fd, 1, command, buffer_start=memory.address, buffer_length=memory.size, buf_index=index
                )
            assert "registered" in str(error[0])


@case
def a_registered_buffer_longer_than_the_transfer() -> None:
    """6.1 counts the buffer's pages from the transfer's first on, to the buffer's end and not to the transfer's,
    and refuses more than the drive's segments, whatever the transfer's length; later kernels count the transfer's."""
    with opened(node(DATA)) as fd:
        most = namespace_of(fd).max_segments
        for pages in (2, 16, most, most + 1, 2 * most):
            memory = Memory(pages * PAGE)
            with Raw(buffers=[(memory.address, memory.size)]) as ring:
                for page, blocks in ((0, 1), (0, 16), (1, 8), (pages - 1, 8)):
                    command = read_of(DATA, 0, blocks, memory.address + page * PAGE)
                    result = ring.send(fd, command, flags=kernel.COMMAND_FIXED)
                    too_many = LINUX < (6, 2) and pages - page > most
                    assert result == (-errno.EINVAL if too_many else 0), (pages, page, blocks, result)


@case
def a_long_registered_buffer() -> None:
    """Through a buffer that 6.1 takes whole, and one that it does not."""
    memory = Memory(1 << 20)
    with opened(node(DATA)) as fd:
        half = (namespace_of(fd).max_segments - 1) * PAGE // 2 // PAGE * PAGE
        with NvmePassthrough(4, buffers=[(memory.address, half), (memory.address, memory.size)]) as passthrough:
            assert passthrough.read(fd, 0, half, memory.address, buf_index=0) == half
            memory.check(DATA, 0, 0, half)
            if LINUX >= (6, 2):
                assert passthrough.read(fd, 0, half, memory.address, buf_index=1) == half
                return
            with fails(IoUringSyscall) as error:
                passthrough.read(fd, 0, half, memory.address, buf_index=1)
            assert error[0].errno == errno.EINVAL
            assert "registered buffer" in str(error[0]), error[0]


@case
def more_than_the_transfer_limit_registered() -> None:
    memory = Memory(2 * TRANSFER_LIMIT)
    with opened(node(DATA)) as fd, Raw(buffers=[(memory.address, memory.size)]) as ring:
        command = read_of(DATA, 0, TRANSFER_LIMIT // 512 + 8, memory.address)
        assert ring.send(fd, command, flags=kernel.COMMAND_FIXED) == -errno.EINVAL
    assert memory.untouched(0, 0)


def as_nobody(work: Callable[[], int]) -> int:
    """``work``'s small number, done by a child that is root no more."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@case
def another_user_with_root_s_descriptor() -> None:
    memory = Memory(PAGE)
    fd = os.open(node(DATA), os.O_RDONLY)

    def send() -> int:
        with Raw() as ring:
            return -ring.send(fd, read_of(DATA, 0, 8, memory.address))

    assert as_nobody(send) == (errno.EACCES if LINUX < (6, 2) else 0)

    def describe() -> int:
        """Identify is root's before 6.2; sysfs tells enough."""
        return int(namespace_of(fd).block_size != 512)

    assert as_nobody(describe) == 0
    os.close(fd)


# ── what the kernel doesn't check ────────────────────────────────────────────────────────────────────────────
@case
def more_blocks_than_data_length() -> None:
    """The reason for the library's own check: sent raw, the drive writes 4,096 bytes where 512 were mapped. (All of
    it in one page, so that here it can hurt nobody.)"""
    memory = Memory(PAGE)
    command = read_of(DATA, 16, 8, memory.address, data_length=512)
    assert "would write past it" in refused(DATA, command, memory)
    assert memory.untouched(0, 0)
    assert raw(command) == 0
    assert memory.bytes(0, 4096) == DATA.content(16 * 512, 4096)
    # The block size is the drive's: eight blocks that fit a drive of 512 bytes a block don't fit this one.
    command = read_of(FOUR, 0, 8, memory.address, data_length=4096)
    assert "would write past it" in refused(FOUR, command, memory)


@case
def outside_the_mapped_buffer() -> None:
    memory = Memory(4 * PAGE)
    for at, blocks in ((-512, 8), (4 * PAGE, 1), (4 * PAGE - 512, 2), (0, 33)):
        assert "not in the mapped buffer" in refused(DATA, read_of(DATA, 0, blocks, memory.address + at), memory)
    assert "multiple of 4" in refused(DATA, read_of(DATA, 0, 1, memory.address + 2), memory)
    assert memory.untouched(0, 0)


@case
def writes_and_metadata_are_refused() -> None:
    memory = Memory(PAGE)
    for changes in (
        {"opcode": 1},
        {"opcode": 8},
        {"opcode": 9},
        {"metadata": memory.address},
        {"metadata_length": 8},
    ):
        refused(DATA, read_of(DATA, 0, 1, memory.address, **changes), memory)
    with opened(node(DATA)) as fd, NvmePassthrough(2) as passthrough:
        assert passthrough.read(fd, 0, 512, memory.address) == 512
    assert memory.bytes(0, 512) == DATA.content(0, 512)


@case
def a_namespace_with_metadata_is_refused() -> None:
    with opened(node(TAGGED)) as fd, NvmePassthrough(2) as passthrough:
        with fails(PipelineError) as error:
            passthrough.namespace(fd)
        assert "metadata" in str(error[0]), error[0]
        assert error[0].device == node(TAGGED).removeprefix("/dev/")


@case
def dev_null_takes_any_command() -> None:
    memory = Memory(PAGE)
    with opened("/dev/null") as fd, Raw() as ring:
        assert ring.send(fd, struct.pack("<Q", 0) + read_of(DATA, 0, 1, memory.address)[8:]) == 0


# ── last, for it takes a drive away ──────────────────────────────────────────────────────────────────────────
@case
def a_drive_is_removed() -> None:
    memory = Memory(PAGE)
    with opened(node(GONE)) as fd, NvmePassthrough(4) as passthrough:
        assert passthrough.read(fd, 0, 4096, memory.address) == 4096
        (controller(GONE) / "device/remove").write_text("1")
        with fails(IoUringSyscall) as error:
            passthrough.read(fd, 0, 4096, memory.address)
        assert error[0].errno == errno.ENODEV, error[0]
        assert "gone" in str(error[0])


def warm() -> None:
    """Compile what the cases call, on the host, whose processor is not emulated: see test_nvme_emulated.py."""
    memory = Memory(PAGE)
    nowhere = nvme.NvmeNamespace("null", 1, 512, 1 << 20, 1 << 19, 127)
    with opened("/dev/null") as fd, NvmePassthrough(2, identify=lambda _: nowhere) as passthrough:
        passthrough.read(fd, 0, 512, memory.address)
    dev_null_takes_any_command()


def main(results: Path) -> int:
    found: dict[str, str | None] = {}
    print(f"Linux {platform.release()}, {time.clock_gettime(time.CLOCK_BOOTTIME):.0f} s after boot", flush=True)
    for name, function in CASES.items():
        began = time.monotonic()
        try:
            function()
            found[name] = None
        except BaseException:
            found[name] = traceback.format_exc()
        print(f"{name}: {'ok' if found[name] is None else 'FAILED'}, {time.monotonic() - began:.2f} s", flush=True)
        results.write_text(json.dumps(found))
    return 0 if set(found.values()) == {None} else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

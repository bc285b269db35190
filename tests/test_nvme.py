"""NVMe passthrough without a drive: commands, checks, statuses, and the ring on /dev/null, which answers 0 to any
command. What a drive and its driver answer is in test_nvme_emulated.py."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import pickle
import random
import subprocess
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.errors import (
    DeadlineExceeded,
    IoUringSyscall,
    IoUringUnavailable,
    NvmeCommandRefused,
    NvmePassthroughDisabled,
    NvmeStatus,
    OptionError,
    PipelineError,
    QueueFull,
)
from uring_actors.uring import kernel, nvme, ring
from uring_actors.uring.nvme import (
    NvmeCommand,
    NvmeNamespace,
    NvmePassthrough,
    check_command,
    completion_error,
    encode_read,
    namespace_of,
    parse_command,
    require_passthrough,
    status_name,
)
from uring_actors.uring.ring import IoUringState

NOWHERE = NvmeNamespace("ng9n9", nsid=3, block_size=512, blocks=1 << 30, max_transfer=1 << 19, max_segments=127)
START, LENGTH = 1 << 20, 1 << 16  # a mapped buffer that nobody writes to


def possible() -> str:
    """Why NVMe passthrough's ring can't be had here, or nothing."""
    try:
        IoUringState(2, 4, sqe128=True, cqe32=True).close()
    except (IoUringSyscall, PipelineError) as error:
        return str(error)
    return ""


needs_ring = pytest.mark.skipif(bool(possible()), reason=f"no ring with SQE128 and CQE32: {possible()}")


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def passthrough() -> Iterator[NvmePassthrough]:
    with NvmePassthrough(8, identify=lambda _: NOWHERE) as made:
        yield made


def a_read(lba: int = 0, blocks: int = 1, address: int = START) -> bytes:
    return encode_read(NOWHERE.nsid, lba, blocks, NOWHERE.block_size, address)


def submit(to: NvmePassthrough, fd: int, user_data: int = 0, command: bytes | None = None, **options: object) -> None:
    to.submit(fd, user_data, command or a_read(), buffer_start=START, buffer_length=LENGTH, **options)


# ── the ABI ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_command_lies_as_in_the_header(tmp_path: Path) -> None:
    """struct nvme_uring_cmd and the numbers beside it, from the header of this system."""
    if not Path("/usr/include/linux/nvme_ioctl.h").exists():
        pytest.skip("no kernel headers here")
    theirs = ["opcode", "flags", "rsvd1", "nsid", "cdw2", "cdw3", "metadata", "addr", "metadata_len", "data_len"]
    theirs += [f"cdw{n}" for n in range(10, 16)]
    headers = ("stddef.h", "stdio.h", "linux/ioctl.h", "linux/nvme_ioctl.h")
    source = "".join(f"#include <{header}>\n" for header in headers) + "int main(void){"
    source += "".join(f'printf("%zu ", offsetof(struct nvme_uring_cmd, {field}));' for field in theirs)
    source += 'printf("%zu %zu %u %u %u", offsetof(struct nvme_uring_cmd, timeout_ms), sizeof(struct nvme_uring_cmd),'
    source += "(unsigned)NVME_URING_CMD_IO, (unsigned)NVME_IOCTL_ID, (unsigned)NVME_IOCTL_ADMIN_CMD);}"
    (tmp_path / "a.c").write_text(source)
    try:
        built = subprocess.run(["cc", "-o", tmp_path / "a", tmp_path / "a.c"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    if built.returncode:
        pytest.skip("this system's header is too old")
    found = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout.split()
    ours = []
    for name in NvmeCommand.__dataclass_fields__:
        alone = NvmeCommand(**({"opcode": 0, "nsid": 0} | {name: 1})).encode()
        ours.append(alone.index(1))
    numbers = [nvme.COMMAND_BYTES, 72, nvme.URING_CMD_IO, nvme.IOCTL_ID, nvme.IOCTL_ADMIN]
    assert [int(word) for word in found] == ours + numbers


def test_put_command() -> None:
    entry = (ctypes.c_uint8 * 136)(*[0xFF] * 136)
    words = (ctypes.c_uint64 * 10)(*range(1, 11))
    kernel.put_command(
        ctypes.addressof(entry), 1, 5, nvme.URING_CMD_IO, kernel.COMMAND_FIXED, 3, 77, ctypes.addressof(words)
    )
    raw = bytes(entry)
    assert raw[:8] == bytes([46, 1, 0, 0, 5, 0, 0, 0])
    assert int.from_bytes(raw[8:12], "little") == nvme.URING_CMD_IO
    assert raw[12:28] == bytes(16)
    assert raw[28:32] == bytes([1, 0, 0, 0])
    assert int.from_bytes(raw[32:40], "little") == 77
    assert raw[40:48] == bytes([3]) + bytes(7)
    assert raw[48:128] == bytes(words)
    assert raw[128:] == b"\xff" * 8


def test_big_entries_double_the_strides() -> None:
    assert 1 << kernel.SQE128_SHIFT == kernel.SQE128_BYTES == 128
    assert 1 << kernel.CQE32_SHIFT == kernel.CQE32_BYTES == 32
    assert kernel.COMMAND_BYTES == 80
    if possible():
        pytest.skip(possible())
    for sqe128 in (False, True):
        for cqe32 in (False, True):
            made = IoUringState(4, 8, sqe128=sqe128, cqe32=cqe32)
            assert made.addresses.sqe_shift == 6 + sqe128
            assert made.addresses.cqe_shift == 4 + cqe32
            made.close()


def test_an_older_kernel_is_named() -> None:
    assert "5.19" in str(ring.setup_error(errno.EINVAL, entries=4, big=True))
    assert "5.19" not in str(ring.setup_error(errno.EINVAL, entries=4))


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────
block_sizes = st.sampled_from([512, 4096])
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
commands = st.builds(
    NvmeCommand,
    opcode=st.sampled_from([2, 2, 2, 1, 0, 9, 0x7E, 255]),
    flags=st.sampled_from([0, 0, 0, 1, 0x40, 255]),
    command_id=st.integers(0, 65535),
    nsid=u32,
    cdw2=st.sampled_from([0, 0, 0, 1]),
    cdw3=st.sampled_from([0, 0, 0, 1]),
    metadata=st.sampled_from([0, 0, 0, START]),
    address=st.one_of(u64, st.integers(START - 9000, START + LENGTH + 9000), st.just(START)),
    metadata_length=st.sampled_from([0, 0, 0, 8]),
    data_length=st.one_of(u32, st.integers(0, LENGTH // 512).map(lambda n: n * 512)),
    cdw10=u32,
    cdw11=u32,
    cdw12=st.one_of(u32, st.integers(0, 200), st.integers(0, 200).map(lambda n: n | 1 << 30)),
    cdw13=st.sampled_from([0, 0, 7, 1 << 16]),
    cdw14=st.sampled_from([0, 0, 0, 1]),
    cdw15=st.sampled_from([0, 0, 0, 1]),
)


@given(commands)
def test_a_command_survives_its_bytes(command: NvmeCommand) -> None:
    raw = command.encode()
    assert len(raw) == 64
    for form in (raw, bytearray(raw), memoryview(raw)):
        assert parse_command(form) == command


@given(st.integers(1, 2**32 - 2), u64, st.integers(1, 1 << 16), block_sizes, u64, st.booleans())
def test_encode_read(nsid: int, lba: int, blocks: int, block_size: int, address: int, unit_access: bool) -> None:
    if lba + blocks > 1 << 64 or blocks * block_size >= 1 << 32:
        with pytest.raises(OptionError):
            encode_read(nsid, lba, blocks, block_size, address)
        return
    command = parse_command(encode_read(nsid, lba, blocks, block_size, address, force_unit_access=unit_access))
    assert (command.opcode, command.flags, command.nsid) == (2, 0, nsid)
    assert (command.lba, command.blocks, command.address) == (lba, blocks, address)
    assert command.data_length == blocks * block_size
    assert bool(command.cdw12 & 1 << 30) == unit_access
    if address % 4 == 0:
        check_command(command, block_size=block_size, buffer_start=address, buffer_length=blocks * block_size)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 0, 1, 512, 0),
        (0xFFFFFFFF, 0, 1, 512, 0),
        (1 << 32, 0, 1, 512, 0),
        (1, -1, 1, 512, 0),
        (1, 1 << 64, 1, 512, 0),
        (1, 0, 0, 512, 0),
        (1, 0, 65537, 512, 0),
        (1, 0, 1, 0, 0),
        (1, 0, 1, 520, 0),
        (1, 0, 1, 256, 0),
        (1, 0, 1, 512, -4),
        (1, 0, 1, 512, 1 << 64),
        (1, 0, 65536, 65536, 0),
    ],
)
def test_what_is_no_read(arguments: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(OptionError):
        encode_read(*arguments)


@given(st.binary(max_size=200).filter(lambda raw: len(raw) != 64))
def test_exactly_64_bytes(raw: bytes) -> None:
    with pytest.raises(QueueFull) as caught:
        parse_command(raw)
    assert isinstance(caught.value, NvmeCommandRefused)
    assert f"{len(raw)} bytes" in str(caught.value)


@pytest.mark.parametrize("wrong", [64, "x" * 64, None])
def test_bytes_are_wanted(wrong: object) -> None:
    with pytest.raises(TypeError):
        parse_command(wrong)


@given(commands, block_sizes)
def test_whatever_is_accepted_writes_only_inside(command: NvmeCommand, block_size: int) -> None:
    """The property that everything else here serves, of any 64 bytes."""
    command = parse_command(command.encode())
    try:
        check_command(command, block_size=block_size, buffer_start=START, buffer_length=LENGTH)
    except NvmeCommandRefused:
        return
    assert command.opcode == 2
    written = ((command.cdw12 & 0xFFFF) + 1) * block_size
    assert written <= command.data_length
    assert command.address >= START
    assert command.address + command.data_length <= START + LENGTH
    assert command.metadata == command.metadata_length == command.flags == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"opcode": 1}, "opcode is 0x01"),
        ({"opcode": 9}, "opcode is 0x09"),
        ({"flags": 1}, "flags"),
        ({"flags": 0x40}, "flags"),
        ({"metadata": START}, "metadata"),
        ({"metadata_length": 8}, "metadata"),
        ({"cdw2": 1}, "dwords 2"),
        ({"cdw3": 1}, "dwords 2"),
        ({"cdw14": 1}, "14"),
        ({"cdw15": 1}, "15"),
        ({"cdw12": 7 | 1 << 29}, "dword 12"),
        ({"cdw12": 7 | 1 << 16}, "dword 12"),
        ({"cdw13": 1 << 8}, "dword 13"),
        ({"cdw12": 8}, "9 blocks of 512 bytes are 4608 bytes, and its data length is 4096"),
        ({"cdw12": 0xFFFF}, "would write past it"),
        ({"data_length": 0}, "would write past it"),
        ({"data_length": 4095}, "would write past it"),
        ({"data_length": LENGTH + 1}, "not in the mapped buffer"),
        ({"address": START - 4}, "not in the mapped buffer"),
        ({"address": START + LENGTH - 4092}, "not in the mapped buffer"),
        ({"address": 2**64 - 4}, "not in the mapped buffer"),
        ({"address": START + 2}, "multiple of 4"),
    ],
)
def test_each_refusal(changes: dict[str, int], said: str) -> None:
    whole = parse_command(a_read(0, 8))
    check_command(whole, block_size=512, buffer_start=START, buffer_length=LENGTH)
    values = {name: getattr(whole, name) for name in NvmeCommand.__dataclass_fields__} | changes
    with pytest.raises(NvmeCommandRefused) as caught:
        check_command(NvmeCommand(**values), block_size=512, buffer_start=START, buffer_length=LENGTH)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"command_id": 9}, {"cdw13": 0xFF}, {"cdw12": 7 | 3 << 30}, {"cdw12": 0}, {"data_length": 8192}]
)
def test_each_liberty(changes: dict[str, int]) -> None:
    values = {"nsid": 3, "address": START, "data_length": 4096, "cdw12": 7} | changes
    check_command(NvmeCommand(**values), block_size=512, buffer_start=START, buffer_length=LENGTH)


def test_the_buffer_s_borders() -> None:
    for at, blocks in ((0, LENGTH // 512), (LENGTH - 512, 1), (4, 127)):
        check_command(
            parse_command(a_read(5, blocks, START + at)), block_size=512, buffer_start=START, buffer_length=LENGTH
        )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────
@given(st.integers(1, 0x7FFF))
def test_every_status(status: int) -> None:
    error = completion_error(status, lba=7, block_size=4096, device="ng0n1")
    assert isinstance(error, NvmeStatus)
    assert error.code == status % 256
    assert error.code_type == status // 256 % 8
    assert error.more == bool(status & 0x2000)
    assert error.dnr == bool(status & 0x4000)
    assert (error.lba, error.offset, error.device) == (7, 28672, "ng0n1")
    assert f"{status:#06x}" in str(error)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


@pytest.mark.parametrize(
    ("status", "name", "dnr"),
    [
        (0x4080, "LBA out of range", True),
        (0x4001, "invalid command opcode", True),
        (0x281, "unrecovered read error", False),
        (0x371, "aborted by the host", False),
        (0x0C1, "generic status 0xc1", False),
        (0x77F, "vendor specific status 0x7f", False),
    ],
)
def test_names_of_statuses(status: int, name: str, dnr: bool) -> None:
    assert status_name(status) == name
    error = completion_error(status)
    assert isinstance(error, NvmeStatus)
    assert (error.name, error.dnr, error.lba) == (name, dnr, None)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EOPNOTSUPP, "SQE128"),
        (errno.EINVAL, "max_hw_sectors_kb"),
        (errno.ENOTTY, "/dev/ngXnY"),
        (errno.EFAULT, "pinned"),
        (errno.EACCES, "CAP_SYS_ADMIN"),
        (errno.ENODEV, "gone"),
        (errno.EINTR, "timed out"),
    ],
)
def test_each_errno_says_why(number: int, said: str) -> None:
    error = completion_error(-number, lba=1, block_size=512, device="ng0n1")
    assert isinstance(error, IoUringSyscall)
    assert (error.errno, error.offset, error.device) == (number, 512, "ng0n1")
    assert said in str(error)


def test_zero_is_success() -> None:
    assert completion_error(0) is None
    assert isinstance(completion_error(-errno.ERANGE), IoUringSyscall)


# ── the switch ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("value", ["0", "off", "No", " false "])
def test_switched_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvme.SWITCH, value)
    with pytest.raises(NvmePassthroughDisabled) as caught:
        NvmePassthrough()
    assert nvme.SWITCH in str(caught.value)


@pytest.mark.parametrize("value", ["", "1", "on"])
def test_not_switched_off(value: str) -> None:
    require_passthrough(value)


# ── the ring, on /dev/null ───────────────────────────────────────────────────────────────────────────────────
@needs_ring
def test_each_completion_is_its_request_s(null: int, passthrough: NvmePassthrough) -> None:
    rng = random.Random(1)
    expected: dict[int, int] = {}
    for round_ in range(300):
        for _ in range(rng.randrange(passthrough.depth + 1 - passthrough.inflight())):
            user_data, blocks = rng.getrandbits(63), rng.randrange(1, 129)
            submit(passthrough, null, user_data, a_read(round_, blocks))
            expected[user_data] = blocks * 512
        if rng.random() < 0.5:
            passthrough.flush()
        for done in passthrough.reap(min(1, passthrough.inflight()), 5):
            assert done.error is None
            assert expected.pop(done.user_data) == done.bytes
        assert passthrough.inflight() == len(expected)
    assert not expected or passthrough.reap(len(expected), 5)


@needs_ring
def test_a_full_queue_is_refused_and_takes_more_after_a_reap(null: int, passthrough: NvmePassthrough) -> None:
    for i in range(8):
        submit(passthrough, null, i)
    with pytest.raises(QueueFull) as caught:
        submit(passthrough, null, 8)
    assert not isinstance(caught.value, NvmeCommandRefused)
    assert sorted(done.user_data for done in passthrough.reap(8, 5)) == list(range(8))
    submit(passthrough, null, 8)
    assert [done.user_data for done in passthrough.reap(1, 5)] == [8]
    assert passthrough.reap(0) == passthrough.reap(3, 0.01) == []


@needs_ring
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (b"", "0 bytes"),
        (bytes(63), "63 bytes"),
        (bytes(65), "65 bytes"),
        (bytes(64), "opcode"),
        (encode_read(4, 0, 1, 512, START), "namespace 4"),
        (encode_read(3, 0, 1, 512, START - 512), "mapped buffer"),
    ],
)
def test_what_is_refused_leaves_nothing(null: int, passthrough: NvmePassthrough, command: bytes, said: str) -> None:
    with pytest.raises(QueueFull) as caught:
        passthrough.submit(null, 1, command, buffer_start=START, buffer_length=LENGTH)
    assert said in str(caught.value)
    assert passthrough.inflight() == 0


@needs_ring
def test_registered_buffers(null: int) -> None:
    memory = mmap.mmap(-1, 1 << 16)
    pin = ctypes.c_char.from_buffer(memory)
    start = ctypes.addressof(pin)
    with NvmePassthrough(4, buffers=[(start, 8192)], identify=lambda _: NOWHERE) as made:
        fits = encode_read(3, 0, 16, 512, start)
        made.submit(null, 1, fits, buffer_start=start, buffer_length=1 << 16, buf_index=0)
        assert made.reap(1, 5)[0].error is None
        for command, index in ((fits, 1), (fits, -1), (encode_read(3, 0, 17, 512, start), 0)):
            with pytest.raises(NvmeCommandRefused):
                made.submit(null, 1, command, buffer_start=start, buffer_length=1 << 16, buf_index=index)
    del pin
    memory.close()


@needs_ring
def test_memory_is_kept_until_reaped(null: int, passthrough: NvmePassthrough) -> None:
    class Memory:
        pass

    memory = Memory()
    alive = weakref.ref(memory)
    submit(passthrough, null, keep=memory)
    del memory
    assert alive() is not None
    passthrough.reap(1, 5)
    assert alive() is None


@needs_ring
def test_a_namespace_is_asked_for_once_and_known_by_its_node(tmp_path: Path) -> None:
    asked = []

    def identify(fd: int) -> NvmeNamespace:
        asked.append(os.fstat(fd).st_rdev)
        return NOWHERE

    null, zero = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    with NvmePassthrough(4, identify=identify) as made:
        for fd in (null, zero, null, zero):
            assert made.namespace(fd) is NOWHERE
        submit(made, null)
        os.dup2(zero, null)  # the number is another device's now
        assert made.namespace(null) is NOWHERE
        assert made.reap(1, 5)[0].error is None  # /dev/zero would answer EOPNOTSUPP
        assert len(asked) == 2
    for fd in (null, zero):
        os.close(fd)


@needs_ring
def test_closing(null: int) -> None:
    made = NvmePassthrough(4, identify=lambda _: NOWHERE)
    for i in range(4):
        submit(made, null, i)
    mine = [made._ring.fd, *[own for own, _ in made._targets.values()]]
    assert len(mine) == 2
    made.close()
    assert made.inflight() == 0
    for fd in mine:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    made.close()
    for use in (lambda: submit(made, null), made.reap, made.flush, lambda: made.namespace(null)):
        with pytest.raises(OptionError):
            use()


@pytest.mark.parametrize("depth", [0, -1, 32769])
def test_a_senseless_depth(depth: int) -> None:
    with pytest.raises(OptionError):
        NvmePassthrough(depth)


# ── synchronous reads ────────────────────────────────────────────────────────────────────────────────────────
@given(
    st.integers(0, 3000),
    st.integers(0, 6000),
    st.sampled_from([512, 4096]),
    st.sampled_from([4, 64, 512, 2048]),
    st.sampled_from([0, 1, 2, 33, 127, 256]),
    st.integers(0, 3),
)
def test_pieces_cover_the_range_and_fit(
    first: int, count: int, block_size: int, limit_kib: int, segments: int, page: int
) -> None:
    namespace = NvmeNamespace("ng0n1", 1, block_size, 1 << 30, limit_kib * 1024, segments)
    address = START + page * 512
    pieces = NvmePassthrough._pieces(namespace, first * block_size, count * block_size, address)[::-1]
    at = 0
    for piece in pieces:
        assert piece.lba == first + at // block_size
        assert piece.address == address + at
        assert 0 < piece.blocks * block_size <= min(namespace.max_transfer, 65536 * block_size)
        if segments > 1:
            assert -(-piece.blocks * block_size // mmap.PAGESIZE) < max(segments, 2)
        at += piece.blocks * block_size
    assert at == count * block_size
    if pieces:
        assert len(pieces) == -(-count * block_size // namespace.piece)


@pytest.mark.parametrize(("offset", "length"), [(-512, 512), (1, 512), (0, 511), (0, -512)])
def test_only_whole_blocks(offset: int, length: int) -> None:
    with pytest.raises(OptionError):
        NvmePassthrough._pieces(NOWHERE, offset, length, START)


@needs_ring
def test_a_read_of_many_pieces(null: int, passthrough: NvmePassthrough) -> None:
    size = 50 * NOWHERE.max_transfer
    assert passthrough.read(null, 0, size, START) == size
    assert passthrough.read(null, 0, 0, START) == 0
    submit(passthrough, null)
    with pytest.raises(OptionError):
        passthrough.read(null, 0, 512, START)


def answers(monkeypatch: pytest.MonkeyPatch, change: Callable[[int], int]) -> None:
    """Let ``change`` turn the n-th completion's result into another."""
    real, count = nvme._reap, iter(range(1 << 20))

    def reap(*arguments: object) -> int:
        got = real(*arguments)
        rows = arguments[-1]
        for i in range(got):
            rows[i, 1] = change(next(count))
        return got

    monkeypatch.setattr(nvme, "_reap", reap)


@needs_ring
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ECANCELED])
def test_what_passes_is_tried_again(
    null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answers(monkeypatch, lambda n: -number if n < 7 or n % 5 == 0 else 0)
    assert passthrough.read(null, 0, 20 * NOWHERE.max_transfer, START) == 20 * NOWHERE.max_transfer


@needs_ring
def test_but_not_for_ever(null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    answers(monkeypatch, lambda n: (tries.append(n), -errno.EAGAIN)[1])
    with pytest.raises(IoUringSyscall) as caught:
        passthrough.read(null, 0, 512, START)
    assert caught.value.errno == errno.EAGAIN
    assert len(tries) == 8
    assert passthrough.inflight() == 0


@needs_ring
def test_the_lowest_failed_block_is_named(
    null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, lambda n: 0x281 if n >= 2 else 0)
    with pytest.raises(NvmeStatus) as caught:
        passthrough.read(null, 0, 40 * NOWHERE.piece, START)
    assert caught.value.lba == 2 * NOWHERE.piece // 512
    assert passthrough.inflight() == 0


@needs_ring
def test_what_would_pass_doesn_t_hide_a_failure(
    null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [0x281, -errno.EAGAIN, -errno.EINTR]
    answers(monkeypatch, lambda n: results[n])
    pieces = [nvme._Piece(lba, 1, START) for lba in range(3)]
    monkeypatch.setattr(NvmePassthrough, "_pieces", lambda *_: pieces)
    with pytest.raises(NvmeStatus) as caught:
        passthrough.read(null, 0, 512, START)
    assert caught.value.lba == 2  # sent first
    assert passthrough.inflight() == 0


@needs_ring
def test_a_file_takes_no_commands(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with NvmePassthrough(4, identify=lambda _: NOWHERE) as made, pytest.raises(IoUringSyscall) as caught:
        made.read(fd, 0, 512, START)
    assert caught.value.errno == errno.EOPNOTSUPP
    os.close(fd)


@needs_ring
def test_a_drive_that_never_answers(null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(nvme, "_reap", lambda *_: 0)
        with pytest.raises(DeadlineExceeded):
            passthrough.read(null, 0, 512, START, seconds=0.05)
        with pytest.raises(DeadlineExceeded):
            passthrough.close(0.05)
        assert passthrough.inflight() == 1
    passthrough.close()
    assert passthrough.inflight() == 0


@needs_ring
def test_calls_of_enter_that_fail(null: int, passthrough: NvmePassthrough, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(passthrough, null)
    with monkeypatch.context() as patch:
        patch.setattr(IoUringState, "enter", lambda *_: -errno.EBADF)
        with pytest.raises(IoUringSyscall) as caught:
            passthrough.flush()
        assert caught.value.errno == errno.EBADF
        patch.setattr(IoUringState, "enter", lambda *_: -errno.EBUSY)
        with pytest.raises(IoUringSyscall) as caught:
            passthrough.flush()
        assert caught.value.errno == errno.EAGAIN
    assert len(passthrough.reap(1, 5)) == 1


# ── namespaces ───────────────────────────────────────────────────────────────────────────────────────────────
def sysfs(tmp_path: Path, **files: str) -> Path:
    """A /sys in which the device number of /dev/null is ng2n1's; ``files`` of its block device, / as __."""
    block = tmp_path / "devices/nvme2/nvme2n1"
    contents = {
        "size": "65536",
        "queue__logical_block_size": "4096",
        "queue__max_hw_sectors_kb": "512",
        "queue__max_segments": "127",
    } | files
    for name, value in contents.items():
        path = block / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    (tmp_path / "devices/nvme2/ng2n1").mkdir()
    status = os.stat("/dev/null")
    link = tmp_path / f"dev/char/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "devices/nvme2/ng2n1")
    return tmp_path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int] | None], None]:
    monkeypatch.setattr(nvme, "_nsid", lambda _: 5)

    def tell(answer: tuple[int, int] | None) -> None:
        monkeypatch.setattr(nvme, "_identify", lambda *_: answer)

    return tell


@pytest.mark.parametrize("answer", [None, (4096, 0)])
def test_a_namespace(tmp_path: Path, null: int, told: Callable[..., None], answer: tuple[int, int] | None) -> None:
    told(answer)
    assert namespace_of(null, sysfs=sysfs(tmp_path)) == NvmeNamespace("ng2n1", 5, 4096, 8192, 524288, 127)


@pytest.mark.parametrize(
    ("files", "answer", "said"),
    [
        ({"size": "0"}, (4096, 0), "no capacity"),
        ({}, (4096, 8), "8 bytes of metadata"),
        ({"metadata_bytes": "16"}, None, "16 bytes of metadata"),
        ({"integrity__format": "T10-DIF-TYPE1-CRC"}, None, "metadata"),
        ({}, (512, 0), "blocks of 512 bytes and the kernel thinks 4096"),
    ],
)
def test_a_namespace_that_can_t_be_read(
    tmp_path: Path, null: int, told: Callable[..., None], files: dict[str, str], answer: object, said: str
) -> None:
    told(answer)
    with pytest.raises(PipelineError) as caught:
        namespace_of(null, sysfs=sysfs(tmp_path, **files))
    assert said in str(caught.value)
    assert caught.value.device == "ng2n1"
    assert caught.value.fix


@pytest.mark.parametrize("files", [{"metadata_bytes": "0"}, {"integrity__format": "none"}])
def test_no_metadata_in_sysfs(tmp_path: Path, null: int, told: Callable[..., None], files: dict[str, str]) -> None:
    told(None)
    assert namespace_of(null, sysfs=sysfs(tmp_path, **files)).nsid == 5


def test_a_drive_that_is_gone(tmp_path: Path, null: int, told: Callable[..., None]) -> None:
    told(None)
    root = sysfs(tmp_path)
    (root / "devices/nvme2/nvme2n1/size").unlink()
    with pytest.raises(PipelineError) as caught:
        namespace_of(null, sysfs=root)
    assert caught.value.errno == errno.ENOENT


def test_what_is_no_generic_node(tmp_path: Path, null: int) -> None:
    with pytest.raises(OptionError) as caught:
        namespace_of(null)
    assert "/dev/ngXnY" in str(caught.value)
    (tmp_path / "f").touch()
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with contextlib.closing(os.fdopen(fd)), pytest.raises(OptionError):
        namespace_of(fd)


def test_identify_may_be_forbidden_or_fail(null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvme._identify(null, 1) is None  # ENOTTY

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(nvme.fcntl, "ioctl", fail)
    with pytest.raises(PipelineError):
        nvme._identify(null, 1)


def test_ring_errors_have_one_root() -> None:
    assert issubclass(IoUringUnavailable, PipelineError)

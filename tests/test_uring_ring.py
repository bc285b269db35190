"""The ring: the kernel's ABI against a second implementation, set-up, registration, and what is refused."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from uring_actors.errors import IoUringSyscall, IoUringUnavailable, MemlockTooSmall, OptionError
from uring_actors.uring import kernel, ring
from uring_actors.uring.ring import IoUringState, probe, setup_error

needs_io_uring = pytest.mark.skipif(not probe().available, reason=f"no io_uring here: {probe().error}")
TESTS = Path(__file__).parent


def child(code: str) -> str:
    """Run ``code`` in a fresh process; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ── the ABI ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_numbers_agree_with_liburing() -> None:
    liburing = pytest.importorskip("liburing")
    names = {
        "SETUP_": "IORING_SETUP_",
        "FEAT_": "IORING_FEAT_",
        "ENTER_": "IORING_ENTER_",
        "SQ_NEED_WAKEUP": "IORING_SQ_NEED_WAKEUP",
        "SQ_CQ_OVERFLOW": "IORING_SQ_CQ_OVERFLOW",
        "OFF_": "IORING_OFF_",
        "SQE_FIXED_FILE": "IOSQE_FIXED_FILE",
        "OP_": "IORING_OP_",
        "REGISTER_": "IORING_REGISTER_",
    }
    compared = 0
    for ours, value in vars(kernel).items():
        for prefix, theirs in names.items():
            other = getattr(liburing, ours.replace(prefix, theirs, 1), None) if ours.startswith(prefix) else None
            if other is not None:
                assert int(other) == value, ours
                compared += 1
    assert compared >= 15


def test_structure_sizes() -> None:
    """linux/io_uring.h: io_uring_params 120, the offsets 40 each, an SQE 64, a CQE 16."""
    assert ctypes.sizeof(kernel.Params) == 120
    assert ctypes.sizeof(kernel.SqOffsets) == ctypes.sizeof(kernel.CqOffsets) == 40
    assert ctypes.sizeof(kernel.Iovec) == 16
    assert 1 << kernel.SQE_SHIFT == kernel.SQE_BYTES == 64
    assert 1 << kernel.CQE_SHIFT == kernel.CQE_BYTES == 16


def test_an_entry_lies_as_in_the_header(tmp_path: Path) -> None:
    """struct io_uring_sqe, field by field, from the header of this system."""
    header = Path("/usr/include/linux/io_uring.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    fields = ["opcode", "flags", "ioprio", "fd", "off", "addr", "len", "rw_flags", "user_data", "buf_index", "addr3"]
    source = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/io_uring.h>\nint main(void){"
    source += "".join(f'printf("%zu ", offsetof(struct io_uring_sqe, {field}));' for field in fields)
    source += 'printf("%zu %zu %zu %zu", sizeof(struct io_uring_getevents_arg), sizeof(struct io_uring_files_update),'
    source += "offsetof(struct io_uring_cqe, res), offsetof(struct io_uring_files_update, fds));}"
    (tmp_path / "a.c").write_text(source)
    try:
        built = subprocess.run(["cc", "-o", tmp_path / "a", tmp_path / "a.c"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    if built.returncode:
        pytest.skip("this system's header is too old")
    found = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout.split()
    ours = [kernel.SQE_OPCODE, kernel.SQE_FLAGS, kernel.SQE_IOPRIO, kernel.SQE_FD, kernel.SQE_OFFSET]
    ours += [kernel.SQE_ADDRESS, kernel.SQE_LENGTH, kernel.SQE_RW_FLAGS, kernel.SQE_USER_DATA, kernel.SQE_BUF_INDEX]
    ours += [kernel.SQE_ADDR3, kernel.ARG_BYTES, kernel.UPDATE_FD, kernel.CQE_RES, kernel.UPDATE_FDS]
    assert [int(word) for word in found] == ours


def test_put_read_fixed() -> None:
    entry = (ctypes.c_uint8 * 64)(*[0xFF] * 64)
    kernel.put_read_fixed(ctypes.addressof(entry), 1, 5, 1 << 40, 0x1234567890, 4096, 3, 77)
    raw = bytes(entry)
    assert raw[:8] == bytes([4, 1, 0, 0, 5, 0, 0, 0])
    assert int.from_bytes(raw[8:16], "little") == 1 << 40
    assert int.from_bytes(raw[16:24], "little") == 0x1234567890
    assert int.from_bytes(raw[24:32], "little") == 4096
    assert int.from_bytes(raw[32:40], "little") == 77
    assert raw[40:] == bytes([3]) + bytes(23)


def test_a_negative_result_keeps_its_sign() -> None:
    entry = (ctypes.c_uint8 * 16)(*(5).to_bytes(8, "little"), *(-5).to_bytes(4, "little", signed=True), 0, 0, 0, 0)
    assert kernel.cqe_res(ctypes.addressof(entry)) == -5
    assert kernel.cqe_user_data(ctypes.addressof(entry)) == 5


# ── set-up ───────────────────────────────────────────────────────────────────────────────────────────────────
def read_once(made: IoUringState, fd: int, fixed: int, address: int, length: int) -> int:
    """One READ_FIXED, by hand; its result."""
    words = made.addresses
    tail = ctypes.c_uint32.from_address(words.sq_tail)
    head = ctypes.c_uint32.from_address(words.cq_head)
    sqe = words.sqes + (tail.value % words.sq_entries) * kernel.SQE_BYTES
    kernel.put_read_fixed(sqe, fixed, fd, 0, address, length, 0, 9)
    tail.value += 1
    flags = kernel.ENTER_GETEVENTS | (kernel.ENTER_SQ_WAKEUP if made.sqpoll else 0)
    assert ring._syscall(kernel.SYS_ENTER, made.fd, 1, 1, flags, 0, 0) == 1
    cqe = words.cqes + (head.value % words.cq_entries) * kernel.CQE_BYTES
    assert kernel.cqe_user_data(cqe) == 9
    result = kernel.cqe_res(cqe)
    head.value += 1
    return result


@needs_io_uring
@pytest.mark.parametrize("sqpoll", [False, True])
@pytest.mark.parametrize("rungs", [0, 1, 2, 3, 4])
def test_reads_with_every_set_of_flags(
    tmp_path: Path, sqpoll: bool, rungs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the newest kernel's flags down to none."""
    ladder = ring._flag_ladder(sqpoll)[rungs:]
    if not ladder:
        pytest.skip("SQPOLL has fewer sets")
    monkeypatch.setattr(ring, "_flag_ladder", lambda _: ladder)
    (tmp_path / "f").write_bytes(b"x" * 5000)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    memory = mmap.mmap(-1, 16384)
    pin = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(pin)
    made = IoUringState(8, 16, sqpoll, sqpoll_idle_ms=20)
    made.register_buffers([(address, 8192)])
    made.register_files(4)
    made.enable()
    assert read_once(made, fd, 0, address, 8192) == 5000
    assert memory[:5000] == b"x" * 5000
    made.update_file(2, fd)
    assert read_once(made, 2, 1, address, 100) == 100
    made.update_file(2, -1)
    assert read_once(made, 2, 1, address, 100) == -errno.EBADF
    # The proof that READ_FIXED uses the registered buffer: outside of it, it is refused.
    assert read_once(made, fd, 0, address + 8192, 4096) == -errno.EFAULT
    assert read_once(made, fd, 0, address + 4096, 8192) == -errno.EFAULT
    made.close()
    made.close()
    with pytest.raises(IoUringSyscall):
        made.register_files(1)
    os.close(fd)
    del pin
    memory.close()


@needs_io_uring
def test_the_ring_belongs_to_the_thread_that_enabled_it() -> None:
    import threading

    made = IoUringState(2, 4)
    if not made.flags & kernel.SETUP_SINGLE_ISSUER:
        made.close()
        pytest.skip("this kernel has no SINGLE_ISSUER")
    made.register_files(1)
    thread = threading.Thread(target=made.enable)
    thread.start()
    thread.join()
    with pytest.raises(IoUringSyscall) as caught:
        made.update_file(0, -1)
    assert caught.value.errno == errno.EEXIST
    made.close()


@pytest.mark.parametrize(("entries", "completions"), [(0, 4), (8, 4), (1 << 20, 1 << 21)])
def test_senseless_sizes(entries: int, completions: int) -> None:
    with pytest.raises(OptionError):
        IoUringState(entries, completions)


@needs_io_uring
def test_senseless_buffers() -> None:
    made = IoUringState(2, 4)
    for bad in ([], [(0, 4096)], [(4096, 0)], [(4096, (1 << 30) + 1)]):
        with pytest.raises(OptionError):
            made.register_buffers(bad)
    with pytest.raises(IoUringSyscall):
        made.register_buffers([(4096, 4096)])  # nothing is mapped there
    made.close()


# ── why not ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("number", range(1, 134))
def test_every_errno_of_set_up(number: int) -> None:
    error = setup_error(number, entries=8)
    if number in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        assert isinstance(error, IoUringUnavailable)
        assert "pread" in str(error)
    elif number == errno.ENOMEM:
        assert isinstance(error, MemlockTooSmall | IoUringSyscall)
    else:
        assert isinstance(error, IoUringSyscall)
        assert not isinstance(error, IoUringUnavailable)
        assert error.errno == number


@pytest.mark.parametrize(("value", "words"), [("2\n", "is 2"), ("1\n", "io_uring_disabled is 1"), ("0\n", "seccomp")])
def test_not_permitted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    (tmp_path / "v").write_text(value)
    monkeypatch.setattr(ring, "_DISABLED", tmp_path / "v")
    text = str(setup_error(errno.EPERM))
    assert words in text
    assert "kernel.io_uring_disabled" in text


def test_forbidden_by_seccomp() -> None:
    text = child("""
        import errno, seccomp
        seccomp.deny(seccomp.IO_URING, errno.EPERM)
        from uring_actors.uring.ring import probe
        assert not probe().available
        print(type(probe().error).__name__, probe().error)
    """)
    assert text.startswith("IoUringUnavailable")
    assert "seccomp" in text
    assert "kernel.io_uring_disabled" in text


def test_no_such_system_call() -> None:
    text = child("""
        import errno, seccomp
        seccomp.deny(seccomp.IO_URING, errno.ENOSYS)
        from uring_actors.uring.ring import probe
        print(type(probe().error).__name__, probe().error)
    """)
    assert text.startswith("IoUringUnavailable")
    assert "5.11" in text


@needs_io_uring
@pytest.mark.skipif(os.geteuid() != 0, reason="has to become an ordinary user")
def test_memlock_too_small() -> None:
    text = child("""
        import ctypes, mmap, os, resource
        from uring_actors.errors import MemlockTooSmall
        from uring_actors.uring.ring import IoUringState, has_ipc_lock
        import uring_actors.uring.ring as ring
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        assert not has_ipc_lock()
        memory = mmap.mmap(-1, 8 << 20)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        made = IoUringState(2, 4)
        for check in (ring.check_memlock, lambda needed: None):     # before the kernel says so, and after
            ring.check_memlock = check
            try:
                made.register_buffers([(address, 8 << 20)])
            except MemlockTooSmall as error:
                print(error.needed, error.limit, error.fix)
        made.register_buffers([(address, 1 << 19)])
    """)
    lines = text.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{8 << 20} {1 << 20}") and "ulimit -l" in line for line in lines)

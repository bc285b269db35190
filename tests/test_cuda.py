"""The CUDA kernel's source against the ABI, and scans through the GPU."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uring_actors as ua
from tests.mock_device import MockDevice
from tests.oracle import matches_in
from uring_actors import kernel_host
from uring_actors.errors import OptionError
from uring_actors.megakernel import cuda, protocol
from uring_actors.megakernel.nvrtc import compile_log


def test_every_constant_of_the_source_is_generated() -> None:
    source = (Path(cuda.__file__).parent / "kernel.cu").read_text()
    used = set(re.findall(r"\bUA_([A-Z0-9_]+)\b", source))
    assert used
    assert used <= set(protocol.constants())


def test_the_header_has_the_abis_values() -> None:
    defined = dict(re.findall(r"^#define UA_([A-Z0-9_]+) (\d+)u(?:ll)?$", protocol.cuda_header(), re.MULTILINE))
    assert {name: int(value) for name, value in defined.items()} == protocol.constants()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_source_compiles_without_warnings(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra dev)")
    assert compile_log(cuda.source(), architecture, cuda.compile_options()) == ""


def test_insisting_on_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    reason = cuda.unavailable()
    if reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError, match="backend is cuda, but"):
        ua.scan(tmp_path, operation="touch", engine="threads", backend="cuda")


REDUCTIONS = ["touch", "checksum", "histogram", ua.Histogram(block=4096), "nop"]


@pytest.mark.parametrize("operation", REDUCTIONS, ids=str)
@pytest.mark.parametrize("slot_bytes", [65536, 1 << 20])
def test_reductions_on_a_device_equal_those_on_the_cpu(
    tmp_path: Path, slot_bytes: int, device: str, operation: Any
) -> None:
    for size in (0, 1, 199, 4095, 4096, 4097, slot_bytes - 1, slot_bytes, slot_bytes + 1, 5 * slot_bytes + 77):
        (tmp_path / f"f{size}").write_bytes(bytes(i * i % 251 for i in range(size)))
    tables = []
    for backend in ("cpu", "cuda"):
        options = {"engine": "threads", "backend": backend, "slot_bytes": slot_bytes, "slots": 4}
        scan = ua.scan(tmp_path, operation=operation, **options)
        tables.append(sorted(scan.to_table().to_pylist(), key=str))
        assert scan.stats.backend == backend
        assert scan.errors.num_rows == 0
    assert tables[0] == tables[1]
    assert tables[0]


PIECES = [
    b"AKIAIOSFODNN7EXAMPLE", b"AKIAAKIA", b"ghp_0123456789abcdefghijABCDEFGHIJ012345", b"BEGIN RSA PRIVATE KEY",
    b"unsafe { a\n transmute", b"unsafe {} transmute", b"123-45-6789", b"123-45-678", b"aaab" * 3, b"needle", b"need",
    b"x" * 40, b"\n", b"\n\n", b" ", b"Secret = abc", "paſs".encode(), b"\xff\x00",
]  # fmt: skip
PATTERNS = [
    ua.Regex(r"AKIA[0-9A-Z]{16}"),
    ua.Regex(r"gh[pousr]_[A-Za-z0-9]{36}"),
    ua.Literal("BEGIN RSA PRIVATE KEY"),
    ua.Literal("x" * 38),
    ua.Literal("needle"),
    ua.Regex(r"unsafe \{[^}]*transmute"),
    ua.Regex(r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b"),
    ua.Regex(r"(?:aa|ab){2,6}"),
    ua.Regex(r"(?i)secret\s*=\s*\w+"),
    ua.Regex(r"(?i)paſs"),
    ua.Regex(r"^AKIA.*$", multi_line=True),
]


def write_texts(directory: Path, sizes: list[int]) -> None:
    rng = random.Random(5)
    text = b"".join(rng.choice(PIECES) for _ in range(max(sizes) // 4))
    for number, size in enumerate(sizes):
        (directory / f"f{number}-{size}").write_bytes(text[number * 13 :][:size])


def rows_of(scan: Any) -> list[tuple[Any, ...]]:
    columns = ("path", "pattern", "start", "end", "line", "column")
    return sorted(tuple(row[name] for name in columns) for row in scan.to_table().to_pylist())


LARGE = pytest.param(1 << 20, marks=pytest.mark.slow(reason="hundreds of thousands of rows to compare"))


@pytest.fixture(params=["mock", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Scans with ``backend="cuda"`` run on a GPU, or on a mock device."""
    if request.param == "mock":
        monkeypatch.setattr(kernel_host, "CudaKernel", MockDevice)
        monkeypatch.setattr(cuda, "looks_possible", lambda: True)
        monkeypatch.setattr(cuda, "unavailable", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("slot_bytes", [65536, 1 << 18, LARGE])
def test_matches_on_a_device_are_re2s(tmp_path: Path, slot_bytes: int, device: str) -> None:
    write_texts(
        tmp_path, [0, 1, 199, 4095, 4096, 4097, slot_bytes - 1, slot_bytes, slot_bytes + 1, 3 * slot_bytes + 77]
    )
    scan = ua.scan(tmp_path, patterns=PATTERNS, engine="threads", backend="cuda", slot_bytes=slot_bytes, slots=4)
    assert scan.stats.backend == "cuda"
    rows = rows_of(scan)
    assert scan.errors.num_rows == 0
    wanted = [row for path in tmp_path.iterdir() for row in matches_in(bytes(path), path.read_bytes(), PATTERNS)]
    assert rows == sorted(wanted)


def test_more_hits_than_a_result_block_holds(tmp_path: Path, device: str) -> None:
    (tmp_path / "dense").write_bytes(b"ab\n" * 30_000)
    patterns = [ua.Literal("a"), ua.Literal("ab"), ua.Regex("b\n?")]
    tables = [
        rows_of(ua.scan(tmp_path, patterns=patterns, engine="threads", backend=backend, slot_bytes=65536))
        for backend in ("cuda", "cpu")
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 90_000


@pytest.mark.parametrize("count", [1, 100, 3000])
def test_many_literals_on_a_device(tmp_path: Path, count: int, device: str) -> None:
    rng = random.Random(count)
    words = sorted({"".join(rng.choice("abcdefgh") for _ in range(rng.randint(5, 40))) for _ in range(count)})
    text = "".join(rng.choice([*words, "abcd", "\n"]) for _ in range(30_000)).encode()
    (tmp_path / "text").write_bytes(text)
    patterns = [ua.Literal(word) for word in words]
    tables = [
        rows_of(ua.scan(tmp_path, patterns=patterns, engine="threads", backend=backend, slot_bytes=65536))
        for backend in ("cuda", "cpu")
    ]
    assert tables[0] == tables[1]
    assert tables[0]


def test_crc_tables_against_one_bit_at_a_time() -> None:
    def slow(data: bytes, crc: int) -> int:
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc

    tables = cuda.crc_tables()
    word = bytes(range(7, 7 + 16))
    assert slow(word, 0) == np.bitwise_xor.reduce([tables[256 * place + byte] for place, byte in enumerate(word)])
    crc = 0x12345678
    stride = tables[protocol.CRC_STRIDE_WORD :]
    jumped = np.bitwise_xor.reduce([stride[256 * k + (crc >> 8 * k & 255)] for k in range(4)])
    assert slow(bytes(16 * 1023), crc) == jumped


def test_auto_leaves_to_the_cpu_what_the_gpu_can_only_do_slowly(tmp_path: Path, device: str) -> None:
    (tmp_path / "text").write_bytes(b"a1 b2")
    slow = [ua.Literal("b2"), ua.Regex("[a-z][0-9]?[a-z]?")]
    with pytest.warns(RuntimeWarning, match=r"nothing to look for in 1 of the patterns \('\[a-z\]"):
        scan = ua.scan(tmp_path, patterns=slow, engine="threads", backend="auto")
    assert scan.stats.backend == "cpu"
    rows = rows_of(scan)
    insisted = ua.scan(tmp_path, patterns=slow, engine="threads", backend="cuda")
    assert insisted.stats.backend == "cuda"
    assert rows_of(insisted) == rows
    assert len(rows) == 3


def test_a_block_that_the_gpu_cannot_align(tmp_path: Path, device: str) -> None:
    (tmp_path / "text").write_bytes(bytes(10_000))
    with pytest.raises(OptionError, match="blocks of a multiple of 16 bytes, not of 5001"):
        ua.scan(tmp_path, operation=ua.Histogram(block=5001), engine="threads", backend="cuda")


SERVING = """
import sys, time
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.megakernel.cuda import CudaKernel
kernel = CudaKernel(Arena.create(ArenaLayout(1, 4, 65536, 4096)))
kernel.start()
print("serving", flush=True)
{then}
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("then", "end"),
    [("time.sleep(60)", signal.SIGTERM), ("time.sleep(60)", signal.SIGKILL), ("sys.exit(0)", None), ("1 / 0", None)],
)
def test_the_kernel_ends_with_its_process(tmp_path: Path, then: str, end: signal.Signals | None) -> None:
    """However it ends; the next kernel on this GPU then runs as ever."""
    code = SERVING.format(then=then)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        if end is not None:
            process.send_signal(end)
        status = process.wait(20)
    assert status == (-end if end else 1 if "/" in then else 0)
    (tmp_path / "text").write_bytes(b"abc" * 1000)
    table = ua.scan(tmp_path, operation="touch", engine="threads", backend="cuda").to_table()
    assert table["sum"].to_pylist() == [(97 + 98 + 99) * 1000]


HANGING = """
import os, sys, time
import uring_actors as ua

CUDA = (
    "__device__ void stuck(const volatile unsigned char* payload, unsigned bytes, unsigned before, unsigned after,"
    " unsigned long long offset, long long* state) { while (payload[0] != 300) {} }"
)

@ua.operation(state=("n",), combine="sum", cuda=CUDA, compiled=False)
def stuck(payload):
    return 0

began = time.monotonic()
try:
    ua.scan(sys.argv[1], operation=stuck, engine="threads", backend="cuda").to_table()
except ua.UringActorsError as error:
    print(time.monotonic() - began, error, flush=True)
os._exit(0)
"""


@pytest.mark.gpu
def test_a_kernel_that_hangs_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc" * 1000)
    ran = subprocess.run([sys.executable, "-c", HANGING, tmp_path], capture_output=True, text=True, timeout=60)
    seconds, _, message = ran.stdout.partition(" ")
    assert "the megakernel hangs" in message, ran
    assert float(seconds) < 30  # of which compiling takes most
    table = ua.scan(tmp_path, operation="touch", engine="threads", backend="cuda").to_table()
    assert table["bytes"].to_pylist() == [3000]


RESTARTING = """
import sys
import uring_actors as ua

CUDA = (
    "__device__ void stuck(const volatile unsigned char* payload, unsigned bytes, unsigned before, unsigned after,"
    " unsigned long long offset, long long* state) { while (payload[0] == '!') {}"
    " if (threadIdx.x == 0) state[0] = bytes; }"
)

@ua.operation(state=("n",), combine="sum", cuda=CUDA, compiled=False)
def stuck(payload):
    return len(payload)

tree, checkpoint = sys.argv[1:]
scan = ua.scan(tree, operation=stuck, backend="cuda", checkpoint=checkpoint, lease_bytes=1)
rows = scan.to_table().to_pylist()
print(sorted((row["path"].rpartition(b"/")[2].decode(), row["n"]) for row in rows))
print([(row["path"].rpartition(b"/")[2].decode(), row["message"]) for row in scan.errors.to_pylist()])
"""


@pytest.mark.gpu
@pytest.mark.timeout(240)  # four pipelines are started, and hang for five seconds each
def test_after_a_hang_a_new_pipeline_goes_on(tmp_path: Path) -> None:
    """The file that makes the kernel hang is given up and said; all others are scanned, by the pipelines after."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "b", "c", "d"):
        (tree / name).write_bytes(name.encode() * 1000 if name != "b" else b"!" * 1000)
    command = [sys.executable, "-c", RESTARTING, tree, tmp_path / "checkpoint"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran
    rows, errors = ran.stdout.splitlines()
    assert rows == str([("a", 1000), ("c", 1000), ("d", 1000)])
    assert errors.startswith("[('b', 'given up: "), errors
    assert "hangs" in errors

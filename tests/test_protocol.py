"""SPEC's ring protocol, one suite for every kernel: the CPU's, a mock device and, marked ``gpu``, CUDA's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from crc32c import crc32c

from tests.mock_device import MockDevice
from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.errors import PipelineError
from uring_actors.megakernel import cuda
from uring_actors.megakernel.megakernel import Kernel, Megakernel, scan_args
from uring_actors.ops.match.automaton import build, search
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.parts import device_plans
from uring_actors.ops.match.pattern import Literal

KINDS = ["cpu", "mock", pytest.param("cuda", marks=pytest.mark.gpu)]
MAKE: dict[str, Callable[[Arena], Kernel | None]] = {
    "cpu": lambda _: None,
    "mock": MockDevice,
    "cuda": cuda.CudaKernel,
}
CHUNK = 1 << 16
UNWRITTEN = 0xABCDEF01
DONE, FAULT = abi.DONE, abi.FAULT


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Megakernel]]:
    """Starts a kernel on one arena, again and again; the earlier one is closed."""
    arena = Arena.create(ArenaLayout(1, 4, CHUNK, 8192))
    running: list[Megakernel] = []

    def close() -> None:
        for kernel in running:
            kernel.close()
            kernel.control = np.zeros(0, np.uint32)
        running.clear()

    def start() -> Megakernel:
        close()
        arena.words(arena.layout.control, 1)[abi.CONTROL_SHUTDOWN_WORD] = 0
        running.append(Megakernel(arena, kernel=MAKE[request.param](arena)))
        running[0].start()
        return running[0]

    yield start
    close()
    arena.close()


@pytest.fixture
def kernel(make: Callable[[], Megakernel]) -> Megakernel:
    return make()


def run(kernel: Megakernel, opcode: int, args: tuple[int, ...] = (), **options: int) -> int:
    """The status of a slot; the ring is used round and round."""
    slot = kernel.tail & (kernel.ring_slots - 1)
    kernel.publish(slot, opcode, args, **options)
    kernel.wait([slot], 20)
    return kernel.status(slot)


def reason(kernel: Megakernel) -> int:
    return kernel.read_slot((kernel.tail - 1) & (kernel.ring_slots - 1)).priority


def indexed(text: np.ndarray, begin: int, size: int) -> list[int]:
    """The newline index of a slot of which only this payload was searched, as ``abi`` describes it."""
    index = [UNWRITTEN] * (CHUNK // 4096)
    for chunk in range(1, -(-size // 4096)):
        index[begin // 4096 + chunk] = int((text[begin : begin + chunk * 4096] == 10).sum())
    return index


def eventually(condition: Callable[[], bool]) -> None:
    """A GPU shows its counters a little later than its slots."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_words_are_stored_added_swapped_and_observed(kernel: Megakernel) -> None:
    assert run(kernel, abi.OP_STORE_U32, (0xFFFFFFFE, 1000)) == DONE
    assert run(kernel, abi.OP_ATOMIC_ADD, (3, 1000)) == DONE
    assert run(kernel, abi.OP_LOAD_U32, (1000, 5)) == DONE
    assert kernel.observables()[5] == kernel.control[1000] == 1
    assert run(kernel, abi.OP_COMPARE_SWAP, (2, 7, 1000)) == DONE
    assert kernel.control[1000] == 1
    assert run(kernel, abi.OP_COMPARE_SWAP, (1, 7, 1000)) == DONE
    assert kernel.control[1000] == 7


@pytest.mark.parametrize(
    ("opcode", "args"),
    [
        (abi.OP_STORE_U32, (1, 1024)),
        (abi.OP_ATOMIC_ADD, (1, 0xFFFFFFFF)),
        (abi.OP_LOAD_U32, (1024, 0)),
        (abi.OP_LOAD_U32, (0, 1024 - 160)),
        (abi.OP_COMPARE_SWAP, (0, 1, 1024)),
        (abi.OP_DFA_STEP, (0, 256, 0, 0)),
        (abi.OP_DFA_STEP, (CHUNK // 1024, 0, 0, 0)),
        (abi.OP_DFA_STEP, (0xFFFFFFFF, 255, 0, 0)),
        (abi.OP_DFA_STEP, (0, 0, 4, 0)),
        (abi.OP_DFA_STEP, (0, 0, 0, 1024)),
        (abi.OP_MEMCPY, (0, 0, CHUNK * 4, 0, 1)),
        (abi.OP_MEMCPY, (CHUNK * 4 - 1, 0, 0, 0, 2)),
        (abi.OP_MEMCPY, (0, 1, 0, 0, 1)),
        (abi.OP_MEMCPY, (0, 0, 15, 0, 16)),
        (abi.OP_MEMCPY, (0, 0x80000000, 0, 0, 1)),
        (abi.OP_SCAN_TOUCH, scan_args(4, 16)),
        (abi.OP_PACKED_SLOT, (1, abi.OP_BATCH_FENCE)),
        (abi.OP_PACKED_SLOT, (1, abi.OP_PACKED_SLOT)),
        (abi.OP_PACKED_SLOT, (5, abi.OP_STORE_U32, 1, 1000, abi.OP_STORE_U32, 1, 1001, abi.OP_STORE_U32, 1, 1002)),
        (abi.OP_PACKED_SLOT, (0xFFFFFFFF, 0)),
    ],
)
def test_arguments_out_of_range(kernel: Megakernel, opcode: int, args: tuple[int, ...]) -> None:
    if opcode == abi.OP_SCAN_TOUCH and isinstance(kernel._kernel, cuda.CudaKernel | MockDevice) is False:
        pytest.skip("the CPU kernel trusts its publisher with data slots")
    before = bytes(kernel.arena.view[kernel.arena.layout.data : kernel.arena.layout.data + 64])
    observables = kernel.observables().copy()
    assert run(kernel, opcode, args) == FAULT
    assert reason(kernel) == abi.REASON_ARGUMENT
    assert bytes(kernel.arena.view[kernel.arena.layout.data : kernel.arena.layout.data + 64]) == before
    assert (kernel.observables() == observables).all()
    assert run(kernel, abi.OP_NOP) == DONE


@pytest.mark.parametrize("opcode", [8, 0xFFF0, 0xFFFF, 0x40000FFF, 0x80000000, 0xFFFFFFFE])
def test_unknown_opcodes(kernel: Megakernel, opcode: int) -> None:
    assert run(kernel, opcode) == FAULT
    assert reason(kernel) == abi.REASON_OPCODE
    assert run(kernel, abi.OP_NOP) == DONE


def test_counters(kernel: Megakernel) -> None:
    for _ in range(3):
        assert run(kernel, abi.OP_BATCH_FENCE) == DONE
    assert run(kernel, abi.OP_NOP) == DONE
    assert run(kernel, 8) == FAULT
    eventually(lambda: kernel.done_count == 5)
    assert kernel.epoch == 3
    assert kernel.metrics()[abi.OP_BATCH_FENCE] == 3
    assert sum(kernel.metrics()) == 4


def test_a_forbidden_tenant_never_runs(kernel: Megakernel) -> None:
    kernel.allow(7, False)
    assert run(kernel, abi.OP_STORE_U32, (5, 1000), tenant=7) == FAULT
    assert reason(kernel) == abi.REASON_TENANT
    assert run(kernel, abi.OP_STORE_U32, (5, 1001), tenant=30) == FAULT
    assert kernel.control[1000] == kernel.control[1001] == 0
    kernel.allow(7)
    assert run(kernel, abi.OP_STORE_U32, (5, 1000), tenant=7) == DONE
    assert kernel.control[1000] == 5


@pytest.mark.parametrize(
    ("source", "target", "count"), [(0, CHUNK, 4096), (3, CHUNK + 5, 199), (CHUNK, 0, 0), (16, 0, 16)]
)
def test_memcpy(kernel: Megakernel, source: int, target: int, count: int) -> None:
    data = np.frombuffer(kernel.arena.view, np.uint8, 4 * CHUNK, kernel.arena.layout.data)
    data[:] = np.arange(4 * CHUNK) * 7 % 251
    wanted = data.copy()
    wanted[target : target + count] = wanted[source : source + count]
    assert run(kernel, abi.OP_MEMCPY, (source, 0, target, 0, count)) == DONE
    assert (data == wanted).all()
    del data


def test_dfa_step(kernel: Megakernel) -> None:
    table = kernel.arena.words(kernel.arena.layout.slot(2), 3 * 256)
    table[:] = np.arange(3 * 256) * 11
    assert run(kernel, abi.OP_DFA_STEP, (2, 0x61, 2, 9)) == DONE
    assert kernel.observables()[9] == (2 * 256 + 0x61) * 11


def test_packed_operations_run_in_order(kernel: Megakernel) -> None:
    packed = (3, abi.OP_STORE_U32, 5, 1000, abi.OP_ATOMIC_ADD, 6, 1000, abi.OP_LOAD_U32, 1000, 3)
    assert run(kernel, abi.OP_PACKED_SLOT, packed) == DONE
    assert kernel.observables()[3] == 11
    assert run(kernel, abi.OP_PACKED_SLOT, (2, abi.OP_STORE_U32, 1, 5000, abi.OP_STORE_U32, 9, 1001)) == FAULT
    assert kernel.control[1001] == 9
    assert run(kernel, abi.OP_PACKED_SLOT, (0,)) == DONE


def test_the_debug_log(kernel: Megakernel) -> None:
    assert run(kernel, abi.OP_PRINTF, (42, 1, 2, 3)) == DONE
    assert run(kernel, abi.OP_LOAD_MISS, (7, 8, 9)) == DONE
    eventually(lambda: len(kernel.read_log()) == 2)
    assert kernel.read_log() == [(42, (1, 2, 3)), (abi.OP_LOAD_MISS, (7, 8, 9))]


def test_a_full_log_loses_what_does_not_fit(kernel: Megakernel) -> None:
    room = (abi.LOG_BYTES - 4) // 16
    for i in range(0, room + 10, 2):
        assert run(kernel, abi.OP_PACKED_SLOT, (2, abi.OP_PRINTF, i, 0, 0, 0, abi.OP_PRINTF, i + 1, 0, 0, 0)) == DONE
    eventually(lambda: len(kernel.read_log()) == room)
    assert [record.format for record in kernel.read_log()] == list(range(room))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 199, 4095, 4096, 4097, 16384, 32769, CHUNK - 1, CHUNK])
def test_reductions(kernel: Megakernel, size: int) -> None:
    text = np.frombuffer(kernel.arena.view, np.uint8, CHUNK, kernel.arena.layout.slot(1))
    text[:] = np.random.default_rng(size).integers(0, 256, CHUNK)
    part = text[:size]
    assert run(kernel, abi.OP_SCAN_TOUCH, scan_args(1, size)) == DONE
    assert kernel.result(1).values[0] == part.sum(dtype=np.uint64)
    assert run(kernel, abi.OP_SCAN_CRC32C, scan_args(1, size)) == DONE
    assert kernel.result(1).values[:2] == (crc32c(bytes(part)), size)
    assert run(kernel, abi.OP_SCAN_HISTOGRAM, scan_args(1, size)) == DONE
    counts = kernel.arena.words(kernel.arena.layout.result(1) + abi.RESULT_VALUES, 512).view(np.uint64)
    assert (counts == np.bincount(part, minlength=256)).all()
    del text, part, counts


@pytest.mark.parametrize("block", [4096, 16, 48, 65536])
def test_states_of_blocks(kernel: Megakernel, block: int) -> None:
    """An extent from the middle of a file: the first and last of its blocks are cut."""
    size, offset = 3000, 8192 + 1024
    text = np.frombuffer(kernel.arena.view, np.uint8, size, kernel.arena.layout.slot(3) + 4096)
    text[:] = np.random.default_rng(block).integers(0, 256, size)
    args = scan_args(3, size, payload_offset=4096, file_offset=offset, operation=block)
    assert run(kernel, abi.OP_SCAN_CRC32C, args) == DONE
    borders = [b - offset for b in range(offset + 1, offset + size) if b % block == 0]
    parts = np.split(text, borders)
    states = kernel.arena.words(kernel.arena.layout.result(3) + abi.RESULT_VALUES, 4 * len(parts)).view(np.uint64)
    assert states.reshape(-1, 2).tolist() == [[crc32c(bytes(part)), len(part)] for part in parts]
    assert run(kernel, abi.OP_SCAN_HISTOGRAM, scan_args(3, size, payload_offset=4096, operation=16)) == FAULT
    assert reason(kernel) == abi.REASON_RESULT
    del text, parts, states


def test_matches_of_a_loaded_set(kernel: Megakernel) -> None:
    device = kernel._kernel
    if not isinstance(device, MockDevice | cuda.CudaKernel):
        pytest.skip("the CPU kernel matches by libhs")
    layout = kernel.arena.layout
    text = np.frombuffer(kernel.arena.view, np.uint8, CHUNK, layout.slot(0))
    index = kernel.arena.words(layout.newline_index(0), CHUNK // abi.NEWLINE_CHUNK)
    for words in (["needle", "eedl"], [f"word{i}x" for i in range(300)]):
        automata = build(device_plans(compile_patterns([Literal(word) for word in words]))[1])
        number = device.load(automata)
        pieces = [f"{word} \n".encode() for word in words] * 9
        text[:] = np.frombuffer(b"".join(pieces).ljust(CHUNK, b".")[:CHUNK], np.uint8)
        shapes = [(0, CHUNK, 0), (4096, 5000, 7), (64, 1, 0), (32, 0, 0), (0, 40000, 33), (4080, 8192, 0)]
        for more in (-1, 0, 1):
            shapes += [(16, 32768 + more, 4000), (8176, 4096 * 3 + more, 9)]
        for begin, size, halo in shapes:
            index[:] = UNWRITTEN
            args = scan_args(0, size, payload_offset=begin, halo_bytes=halo, operation=number)
            assert run(kernel, abi.OP_SCAN_MATCH, args) == DONE
            result = kernel.result(0)
            wanted = sorted(map(tuple, search(automata, text[begin : begin + size + halo]).tolist()))
            found = sorted((pattern, end) for pattern, _, end, _ in result.hits)
            assert result.hit_count == len(wanted)
            assert result.overflow == (len(wanted) > layout.hit_capacity)
            assert found == wanted if not result.overflow else set(found) <= set(wanted)
            newlines = np.flatnonzero(text[begin : begin + size] == 10).tolist()
            assert (result.newlines, result.last_newline) == (len(newlines), newlines[-1] if newlines else None)
            assert index.tolist() == indexed(text, begin, size)
        device.unload(number)
        assert run(kernel, abi.OP_SCAN_MATCH, scan_args(0, 64, operation=number)) == FAULT
        assert reason(kernel) == abi.REASON_ARGUMENT
    del text, index


def test_a_kernel_is_followed_by_another(make: Callable[[], Megakernel]) -> None:
    """Stop and start in one process, on the same ring: positions and counters go on."""
    kernel = make()
    for _ in range(3):
        assert run(kernel, abi.OP_BATCH_FENCE) == DONE
    for fences in (6, 9):
        kernel = make()
        for _ in range(3):
            assert run(kernel, abi.OP_BATCH_FENCE) == DONE
        eventually(lambda: kernel.done_count == fences)  # noqa: B023 called in this round
        assert kernel.epoch == fences


def test_a_slot_may_end_the_kernel(kernel: Megakernel) -> None:
    assert run(kernel, abi.OP_SHUTDOWN) == DONE
    eventually(lambda: kernel.control[abi.CONTROL_SHUTDOWN_WORD] == 1)
    kernel.publish(kernel.tail & (kernel.ring_slots - 1), abi.OP_NOP)
    time.sleep(0.05)
    assert kernel.status((kernel.tail - 1) & (kernel.ring_slots - 1)) == abi.PUBLISHED
    assert kernel._kernel.failure is None


def test_sets_come_and_go_while_the_kernel_runs(kernel: Megakernel) -> None:
    device = kernel._kernel
    if not isinstance(device, cuda.CudaKernel):
        pytest.skip("only the GPU has memory of its own")
    automata = build(device_plans(compile_patterns([Literal("abc")]))[1])
    numbers = [device.load(automata) for _ in range(16)]
    assert sorted(numbers) == list(range(16))
    with pytest.raises(PipelineError, match="no room"):
        device.load(automata)
    device.unload(5)
    assert device.load(automata) == 5

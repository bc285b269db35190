"""The megakernel's ring and the CPU kernel: publish, order, tail, claim, done, fault, retire, epoch, tenant mask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.arena import abi, bell, channel
from uring_actors.arena.memory import Arena
from uring_actors.errors import PipelineError
from uring_actors.megakernel import cpu, cuda, feed, reduce, ring
from uring_actors.publisher import Publisher, ScanJob
from uring_actors.uring.work import Geometry

MakeArena = Callable[..., Arena]
JUST_BELOW_WRAP = 2**32 - 5
SLICE = 20_000_000


def start_counters(arena: Arena, value: int) -> None:
    for offset in (abi.STATE_TAIL, abi.STATE_CLAIM, abi.STATE_RETIRED):
        arena.words(arena.layout.state + offset, 1)[0] = value


def control(arena: Arena) -> np.ndarray:
    return arena.words(arena.layout.control, abi.CONTROL_WORDS)


def publish(
    arena: Arena, position: int, slot: int, opcode: int = abi.OP_SCAN_NOP, tenant: int = 0, **scan: int
) -> None:
    book = arena.address_book()
    fields = {"data_slot": 0, "payload": 0, "offset": 0, "file_id": slot} | scan
    ring.write_scan(
        book, slot, fields["data_slot"], fields["payload"], fields["offset"], 0, 0, fields["file_id"], 0, 0, 0, 0
    )
    ring.stage(book, position, slot, opcode, tenant, abi.PRIORITY_NORMAL)
    ring.announce(book, (position + 1) & abi.WRAP)


class Kernel:
    """A kernel of compiled operations, on the CPU or the GPU, closed at the end of the block."""

    def __init__(self, arena: Arena, threads: int = 1, spins: int = 50, where: str = "cpu") -> None:
        self.kernel: cpu.CpuKernel | cuda.CudaKernel
        if where == "cuda":
            self.kernel = cuda.CudaKernel(arena)
        else:
            self.kernel = cpu.CpuKernel(arena, threads, spins=spins, make_worker=lambda: None)

    def __enter__(self) -> cpu.CpuKernel | cuda.CudaKernel:
        self.kernel.start()
        return self.kernel

    def __exit__(self, *_: object) -> None:
        self.kernel.close()
        assert self.kernel.failure is None


on_each_kernel = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def collect(arena: Arena, position: int, count: int, seconds: float = 5) -> np.ndarray:
    """``count`` terminal slots from ``position`` on, in publish order."""
    book, found = arena.address_book(), []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        rows = np.zeros((3, ring.COLUMNS), np.int64)
        n = ring.collect(book, (position + len(found)) & abi.WRAP, rows, 10, SLICE, 10_000_000)
        found += rows[:n].tolist()
        assert time.monotonic() < deadline, f"only {len(found)} of {count} slots came back"
    return np.array(found)


@on_each_kernel
@pytest.mark.parametrize("start", [0, JUST_BELOW_WRAP, 2**31 - 3])
def test_slots_pass_round_the_ring_many_times(make_arena: MakeArena, start: int, where: str) -> None:
    arena = make_arena(slots=2)
    start_counters(arena, start)
    slots = arena.layout.ring_slots
    book = arena.address_book()
    with Kernel(arena, threads=2, where=where):
        for round_ in range(50):
            position = (start + round_ * slots) & abi.WRAP
            # A different order of slots every round; a GPU's scheduler counts on slot = position.
            order = [(i * 3 + round_) % slots if where == "cpu" else (position + i) % slots for i in range(slots)]
            for i, slot in enumerate(order):
                publish(arena, (position + i) & abi.WRAP, slot)
            rows = collect(arena, position, slots)
            assert rows[:, ring.COLUMN_RING_SLOT].tolist() == order
            assert (rows[:, ring.COLUMN_STATUS] == abi.DONE).all()
            assert ring.retire(book, feed.retired_channel(book), arena.layout.channel_records - 1, rows, slots)
            for _ in range(slots):
                channel.pop(feed.retired_channel(book))
    words = {name: int(arena.words(arena.layout.state + at, 1)[0]) for name, at in STATE.items()}
    assert words == dict.fromkeys(STATE, (start + 50 * slots) & abi.WRAP)
    assert control(arena)[abi.CONTROL_DONE_COUNT_WORD] == 50 * slots


STATE = {"tail": abi.STATE_TAIL, "claim": abi.STATE_CLAIM, "retired": abi.STATE_RETIRED}


def test_every_slot_is_claimed_once(make_arena: MakeArena) -> None:
    arena = make_arena(slots=512)
    start_counters(arena, JUST_BELOW_WRAP)
    book = arena.address_book()
    count = arena.layout.ring_slots
    claimed: list[list[int]] = [[] for _ in range(4)]

    def claimer(mine: list[int]) -> None:
        while len(mine) < count and (slot := ring.claim(book)) != -2:
            if slot >= 0:
                mine.append(slot)
            elif stop.is_set():
                return

    stop = threading.Event()
    threads = [threading.Thread(target=claimer, args=(mine,)) for mine in claimed]
    for thread in threads:
        thread.start()
    for i in range(count):
        publish(arena, (JUST_BELOW_WRAP + i) & abi.WRAP, i)
    deadline = time.monotonic() + 20
    while sum(map(len, claimed)) < count and time.monotonic() < deadline:
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(slot for mine in claimed for slot in mine) == list(range(count))
    assert ring.claim(book) == ring.NOTHING


def test_collecting_stops_at_the_first_slot_that_is_not_done(make_arena: MakeArena) -> None:
    arena = make_arena()
    book = arena.address_book()
    for i in range(3):
        publish(arena, i, i)
        assert ring.claim(book) == i
    rows = np.zeros((8, ring.COLUMNS), np.int64)
    ring.finish(book, 2, abi.DONE)
    assert ring.collect(book, 0, rows, 0, SLICE, 1_000_000) == 0
    ring.finish(book, 0, abi.FAULT)
    assert ring.collect(book, 0, rows, 0, SLICE, 1_000_000) == 1
    assert rows[0, ring.COLUMN_STATUS] == abi.FAULT
    ring.finish(book, 1, abi.DONE)
    assert ring.collect(book, 0, rows, 0, SLICE, 1_000_000) == 3
    assert ring.collect(book, 3, rows, 0, SLICE, 1_000_000) == 0


@on_each_kernel
@pytest.mark.parametrize("tenant", [0, 7, 29, 30, 31, 2**32 - 1])
def test_a_forbidden_tenant_faults_and_never_runs(make_arena: MakeArena, tenant: int, where: str) -> None:
    arena = make_arena()
    words = control(arena)
    if tenant < abi.TENANTS:
        words[abi.CONTROL_TENANT_MASK_WORD + tenant] = 1
    publish(arena, 0, 0, abi.OP_BATCH_FENCE, tenant)
    publish(arena, 1, 1, abi.OP_BATCH_FENCE, (tenant + 1) % abi.TENANTS)
    with Kernel(arena, where=where):
        rows = collect(arena, 0, 2)
    assert rows[:, ring.COLUMN_STATUS].tolist() == [abi.FAULT, abi.DONE]
    assert words[abi.CONTROL_EPOCH_WORD] == 1  # the second slot's
    assert words[abi.CONTROL_DONE_COUNT_WORD] == 2


@on_each_kernel
def test_unknown_opcodes_fault(make_arena: MakeArena, where: str) -> None:
    arena = make_arena()
    opcodes = [abi.OP_NOP, abi.OP_SCAN_NOP, 0x12345678, abi.OP_SCAN_MATCH]  # no worker here for the last
    for i, opcode in enumerate(opcodes):
        publish(arena, i, i, opcode)
    with Kernel(arena, where=where):
        rows = collect(arena, 0, 4)
    assert rows[:, ring.COLUMN_STATUS].tolist() == [abi.DONE, abi.DONE, abi.FAULT, abi.FAULT]
    metrics = control(arena)[abi.CONTROL_METRICS_WORD : abi.CONTROL_METRICS_WORD + abi.CONTROL_METRICS_COUNT]
    assert metrics.sum() == 2


@on_each_kernel
def test_shutdown_ends_the_kernel_at_once(make_arena: MakeArena, where: str) -> None:
    arena = make_arena()
    with Kernel(arena, threads=3, where=where):
        time.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < 20


@given(st.binary(max_size=5000), st.integers(0, 15))
def test_sum_bytes(data: bytes, shift: int) -> None:
    memory = np.zeros(len(data) + 32, np.uint8)
    memory[shift : shift + len(data)] = np.frombuffer(data, np.uint8)
    assert reduce.sum_bytes(memory.ctypes.data + shift, len(data)) == sum(data)


@pytest.mark.parametrize("size", [0, 1, 199, 4095, 4096, 4097, 65535, 65536])
def test_sum_of_the_largest_bytes_does_not_overflow(size: int) -> None:
    memory = np.full(size + 1, 255, np.uint8)
    assert reduce.sum_bytes(memory.ctypes.data, size) == 255 * size


@on_each_kernel
@pytest.mark.parametrize(("offset", "size"), [(0, 65536), (0, 1), (4096, 4097), (4096, 199)])
def test_touch_sums_the_payload_alone(make_arena: MakeArena, offset: int, size: int, where: str) -> None:
    arena = make_arena()
    data = np.frombuffer(arena.view, np.uint8, 65536, arena.layout.slot(2))
    data[:] = np.random.default_rng(size).integers(0, 256, 65536, np.uint8)
    publish(arena, 0, 0, abi.OP_SCAN_TOUCH, data_slot=2, payload=size, offset=offset)
    with Kernel(arena, where=where):
        rows = collect(arena, 0, 1)
    assert rows[0, ring.COLUMN_VALUE] == data[offset : offset + size].sum(dtype=np.int64)


class FakeLane:
    """Plays a lane's part on its channels: completions out, credits back."""

    def __init__(self, arena: Arena, lane: int) -> None:
        book = arena.address_book()
        self.mask = arena.layout.channel_records - 1
        self.completions = feed.completion_channel(book, lane)
        self.credits = feed.credit_channel(book, lane)
        first = lane * arena.layout.slots_per_lane
        self.free = list(range(first, first + arena.layout.slots_per_lane))

    def complete(self, file_id: int, nbytes: int, *, slot: int | None = None, status: int = 0) -> None:
        data_slot = self.free.pop() if slot is None else slot
        assert channel.push(self.completions, self.mask, data_slot, nbytes, file_id, 3, 1 << 40, status, 1)

    def take_credits(self) -> None:
        while channel.peek(self.credits, self.mask):
            record = channel.peek(self.credits, self.mask)
            self.free.append(int(np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint32 * 1).from_address(record))[0]))
            channel.pop(self.credits)


@pytest.mark.parametrize("start", [0, JUST_BELOW_WRAP])
def test_publisher_carries_every_completion_and_hands_credits_back(make_arena: MakeArena, start: int) -> None:
    arena = make_arena(lanes=3, slots=2)
    start_counters(arena, start)
    book = arena.address_book()
    job = ScanJob(Geometry(4096, 0, 0), abi.OP_SCAN_NOP)
    publisher = Publisher(arena, job, spins=50)
    lanes = [FakeLane(arena, i) for i in range(3)]
    seen: list[int] = []
    sent = 0
    position = start
    with Kernel(arena, threads=2):
        publisher.start()
        deadline = time.monotonic() + 30
        while len(seen) < 3000:
            assert time.monotonic() < deadline
            for lane in lanes:
                lane.take_credits()
                if lane.free and sent < 3000:
                    lane.complete(sent, 1 + sent % 6000)
                    sent += 1

            bell.ring(arena.at(arena.layout.state + abi.BELL_PUBLISHER), 1)
            rows = np.zeros((4, ring.COLUMNS), np.int64)
            n = ring.collect(book, position, rows, 10, SLICE, 1_000_000)
            for row in rows[:n]:
                number = int(row[ring.COLUMN_FILE_ID])
                nbytes = 1 + number % 6000
                assert row[ring.COLUMN_PAYLOAD_BYTES] == min(nbytes, 4096)
                assert row[ring.COLUMN_HALO_BYTES] == max(0, nbytes - 4096)
                assert row[ring.COLUMN_FILE_OFFSET] == 1 << 40
                assert row[ring.COLUMN_EXTENT_ID] == 3
                seen.append(number)
            assert ring.retire(book, feed.retired_channel(book), arena.layout.channel_records - 1, rows, n)
            position = (position + n) & abi.WRAP
        publisher.close()
    assert publisher.failure is None
    assert sorted(seen) == list(range(3000))
    assert publisher.stats().published == 3000
    assert publisher.stats().retired >= 3000 - 6  # the last may still be in the channel


def test_publisher_marks_failures_and_publishes_them_without_a_scan(make_arena: MakeArena) -> None:
    arena = make_arena()
    job = ScanJob(Geometry(65536, 0, 0), abi.OP_SCAN_TOUCH)
    publisher = Publisher(arena, job, spins=0)
    lane = FakeLane(arena, 0)
    lane.complete(1, 0, slot=abi.NO_DATA_SLOT, status=2)
    lane.complete(2, 10, status=5)
    with Kernel(arena):
        publisher.start()
        rows = collect(arena, 0, 2)
        publisher.close()
    assert rows[:, ring.COLUMN_ERRNO].tolist() == [2, 5]
    assert (rows[:, ring.COLUMN_FLAGS] & abi.FLAG_FAILED != 0).all()
    assert rows[:, ring.COLUMN_OPCODE].tolist() == [abi.OP_SCAN_NOP, abi.OP_SCAN_TOUCH]


def test_publisher_refuses_a_ring_slot_in_flight(make_arena: MakeArena) -> None:
    arena = make_arena()
    arena.words(arena.layout.ring, arena.layout.ring_slots * 16).reshape(-1, 16)[:, 0] = abi.CLAIMED
    publisher = Publisher(arena, ScanJob(Geometry(65536, 0, 0), abi.OP_SCAN_NOP), spins=0)
    FakeLane(arena, 0).complete(1, 10)
    publisher.start()
    deadline = time.monotonic() + 5
    while publisher.failure is None and time.monotonic() < deadline:
        time.sleep(0.01)
    publisher.close()
    assert isinstance(publisher.failure, PipelineError)
    assert "still in flight" in str(publisher.failure)
    assert int(arena.words(arena.layout.state + abi.STATE_TAIL, 1)[0]) == 0


@given(
    st.sampled_from([1 << 16, 1 << 20, 1 << 24]),
    st.integers(0, 16384),
    st.booleans(),
)
def test_a_job_fits_its_data_slot(slot_bytes: int, halo: int, lead: bool) -> None:
    geometry = ScanJob.fit(slot_bytes, 0, halo=halo, lead=lead).geometry
    assert geometry.payload % 4096 == 0
    assert geometry.payload > 0
    assert geometry.lead + geometry.payload + halo <= slot_bytes


@on_each_kernel
def test_a_kernel_can_be_started_again(make_arena: MakeArena, where: str) -> None:
    for _ in range(3):
        arena = make_arena()
        publish(arena, 0, 0, abi.OP_BATCH_FENCE)
        with Kernel(arena, where=where):
            assert collect(arena, 0, 1)[0, ring.COLUMN_STATUS] == abi.DONE


@pytest.mark.gpu
def test_control_operations_on_the_gpu(make_arena: MakeArena) -> None:
    arena = make_arena()
    words = control(arena)
    words[300] = 5
    arguments = [
        (abi.OP_STORE_U32, (77, 301)),
        (abi.OP_ATOMIC_ADD, (10, 300)),
        (abi.OP_LOAD_U32, (300, 3)),
        (abi.OP_COMPARE_SWAP, (0, 9, 302)),
        (abi.OP_STORE_U32, (1, abi.CONTROL_WORDS)),
    ]
    for i, (opcode, values) in enumerate(arguments):
        arena.words(arena.layout.ring + i * 64 + abi.SLOT_ARGS, len(values))[:] = values
        ring.stage(arena.address_book(), i, i, opcode, 0, abi.PRIORITY_NORMAL)
        ring.announce(arena.address_book(), i + 1)
        if i == 0:
            kernel = Kernel(arena, where="cuda")
            kernel.__enter__()
        collect(arena, i, 1)
    kernel.__exit__()
    assert [int(words[i]) for i in (300, 301, 302)] == [15, 77, 9]
    assert words[abi.CONTROL_OBSERVABLE_WORD + 3] == 15
    assert collect(arena, 4, 1)[0, ring.COLUMN_STATUS] == abi.FAULT


@pytest.mark.gpu
def test_priorities_and_the_bound_on_starvation(make_arena: MakeArena) -> None:
    """Published while the kernel is not running: then it finds all at once. One worker block, so the order is its."""
    arena = make_arena(slots=256)
    book = arena.address_book()
    count = 200
    for i in range(count):  # every slot counts up a word and notes when it ran: LOAD_U32 of the count
        priority = abi.PRIORITY_IDLE if i < 20 else abi.PRIORITY_CRITICAL
        arena.words(arena.layout.ring + i * 64 + abi.SLOT_ARGS, 2)[:] = (1, 400 if priority else 401)
        ring.stage(book, i, i, abi.OP_ATOMIC_ADD, 0, priority)
    ring.announce(book, count)
    kernel = cuda.CudaKernel(arena, blocks=2)
    kernel.start()
    rows = collect(arena, 0, count)
    time.sleep(0.1)
    kernel.close()
    words = control(arena)
    assert (rows[:, ring.COLUMN_STATUS] == abi.DONE).all()
    assert (words[400], words[401]) == (20, 180)
    served = words[abi.CONTROL_PRIORITY_FAIRNESS_WORD :][:5].tolist()
    assert served == [180, 0, 0, 0, 20]
    assert words[abi.CONTROL_STARVATION_WORD] >= 1  # 180 critical slots passed the idle ones over more than 64 times


@pytest.mark.gpu
@pytest.mark.parametrize(("offset", "size"), [(8, 16), (65536, 1), (4096, 61441), (2**32 - 16, 16)])
def test_payloads_that_the_gpu_cannot_read_fault(make_arena: MakeArena, offset: int, size: int) -> None:
    arena = make_arena()
    publish(arena, 0, 0, abi.OP_SCAN_TOUCH, data_slot=1, payload=size, offset=offset)
    with Kernel(arena, where="cuda"):
        assert collect(arena, 0, 1)[0, ring.COLUMN_STATUS] == abi.FAULT

"""The ABI, frozen: whatever moves fails here. Change these numbers only together with ``abi.VERSION``."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout

CONSTANTS = {
    "VERSION": 3,
    "MAGIC": 0x4E52415443415255,
    "PAGE": 4096,
    "CACHE_LINE": 64,
    "HEADER_MAGIC": 0,
    "HEADER_VERSION": 8,
    "HEADER_LANES": 12,
    "HEADER_NONCE": 16,
    "HEADER_TOTAL": 32,
    "HEADER_SLOT_BYTES": 40,
    "HEADER_RESULT_BYTES": 48,
    "HEADER_SLOTS_PER_LANE": 56,
    "HEADER_RING_SLOTS": 60,
    "CONTROL_SHUTDOWN_WORD": 0,
    "CONTROL_DONE_COUNT_WORD": 1,
    "CONTROL_TENANT_MASK_WORD": 2,
    "CONTROL_TENANT_MASK_COUNT": 30,
    "CONTROL_TENANT_QUOTA_WORD": 32,
    "CONTROL_TENANT_QUOTA_COUNT": 32,
    "CONTROL_TENANT_FAIRNESS_WORD": 64,
    "CONTROL_TENANT_FAIRNESS_COUNT": 32,
    "CONTROL_METRICS_WORD": 96,
    "CONTROL_METRICS_COUNT": 32,
    "CONTROL_EPOCH_WORD": 128,
    "CONTROL_PRIORITY_OFFSET_WORD": 129,
    "CONTROL_PRIORITY_OFFSET_COUNT": 6,
    "CONTROL_STARVATION_WORD": 135,
    "CONTROL_PRIORITY_FAIRNESS_WORD": 136,
    "CONTROL_PRIORITY_FAIRNESS_COUNT": 5,
    "CONTROL_OBSERVABLE_WORD": 160,
    "CONTROL_WORDS": 1024,
    "TENANTS": 30,
    "STATE_TAIL": 0,
    "STATE_CLAIM": 64,
    "STATE_RETIRED": 128,
    "STATE_STOP": 192,
    "STATE_ENOUGH": 2048,
    "PACKED_ENTRY_BYTES": 64,
    "PACKED_FILE_ID": 0,
    "PACKED_ERRNO": 4,
    "PACKED_OFFSET": 8,
    "PACKED_BYTES": 12,
    "PACKED_HITS": 16,
    "PACKED_RESULT": 20,
    "PACKED_NEWLINES": 24,
    "PACKED_LAST_NEWLINE": 28,
    "PACKED_ENTRIES_MOST": 4096,
    "ENOUGH_WORDS": 512,
    "BELL_PUBLISHER": 256,
    "BELL_KERNEL": 320,
    "BELL_HOST": 384,
    "STATE_BYTES": 4096,
    "SAMPLE_BUSY": 8,
    "SAMPLE_BEGUN": 16,
    "SAMPLE_READ": 24,
    "SAMPLE_PUBLISHED": 32,
    "SAMPLE_DONE": 40,
    "SAMPLE_EVERY": 64,
    "RING_SLOT_BYTES": 64,
    "SLOT_STATUS": 0,
    "SLOT_OPCODE": 4,
    "SLOT_TENANT": 8,
    "SLOT_PRIORITY": 12,
    "SLOT_REASON": 12,
    "REASON_TENANT": 1,
    "REASON_OPCODE": 2,
    "REASON_ARGUMENT": 3,
    "REASON_RESULT": 4,
    "REASON_OPERATION": 5,
    "SLOT_ARGS": 16,
    "SLOT_ARG_COUNT": 12,
    "SLOT_DATA_SLOT": 16,
    "SLOT_PAYLOAD_BYTES": 20,
    "SLOT_PAYLOAD_OFFSET": 24,
    "SLOT_HALO_BYTES": 28,
    "SLOT_FILE_OFFSET": 32,
    "SLOT_FILE_ID": 40,
    "SLOT_EXTENT_ID": 44,
    "SLOT_OPERATION": 48,
    "SLOT_FLAGS": 52,
    "SLOT_ERRNO": 56,
    "SLOT_POSITION": 60,
    "EMPTY": 0,
    "PUBLISHED": 1,
    "CLAIMED": 2,
    "DONE": 3,
    "WAIT_IO": 4,
    "YIELD": 5,
    "REQUEUE": 6,
    "FAULT": 7,
    "PRIORITY_CRITICAL": 0,
    "PRIORITY_HIGH": 1,
    "PRIORITY_NORMAL": 2,
    "PRIORITY_LOW": 3,
    "PRIORITY_IDLE": 4,
    "OP_NOP": 0,
    "OP_STORE_U32": 1,
    "OP_ATOMIC_ADD": 2,
    "OP_LOAD_U32": 3,
    "OP_COMPARE_SWAP": 4,
    "OP_MEMCPY": 5,
    "OP_DFA_STEP": 6,
    "OP_BATCH_FENCE": 7,
    "OP_LOAD_MISS": 0xFFFD,
    "OP_PRINTF": 0xFFFE,
    "OP_PACKED_SLOT": 0x80000001,
    "OP_SHUTDOWN": 0xFFFFFFFF,
    "OP_SCAN_NOP": 0x40000000,
    "OP_SCAN_TOUCH": 0x40000001,
    "OP_SCAN_MATCH": 0x40000002,
    "OP_SCAN_CRC32C": 0x40000003,
    "OP_SCAN_HISTOGRAM": 0x40000004,
    "OP_USER_FIRST": 0x00010000,
    "OP_USER_LAST": 0x3FFFFFFF,
    "FLAG_FIRST": 1,
    "FLAG_LAST": 2,
    "FLAG_PACKED": 4,
    "FLAG_FAILED": 8,
    "FLAG_TIMED": 16,
    "NO_DATA_SLOT": 0xFFFFFFFF,
    "ENODATA": 61,
    "ESTALE": 116,
    "RECORD_RING_SLOT": 4,
    "RECORD_PAYLOAD": 8,
    "CHANNEL_HEAD": 0,
    "CHANNEL_TAIL": 64,
    "CHANNEL_RECORDS": 128,
    "RECORD_BYTES": 32,
    "RECORD_DATA_SLOT": 0,
    "RECORD_BYTES_READ": 4,
    "RECORD_FILE_ID": 8,
    "RECORD_EXTENT_ID": 12,
    "RECORD_FILE_OFFSET": 16,
    "RECORD_STATUS": 24,
    "RECORD_FLAGS": 28,
    "RESULT_COUNT": 0,
    "RESULT_OVERFLOW": 4,
    "RESULT_NEWLINES": 8,
    "RESULT_LAST_NEWLINE": 12,
    "RESULT_VALUES": 16,
    "RESULT_VALUE_COUNT": 6,
    "RESULT_HITS": 64,
    "USER_WORDS": 510,
    "HIT_BYTES": 16,
    "HIT_PATTERN": 0,
    "HIT_START": 4,
    "HIT_END": 8,
    "HIT_FLAGS": 12,
    "NO_NEWLINE": 0xFFFFFFFF,
    "HIT_NO_START": 0xFFFFFFFF,
    "NEWLINE_CHUNK": 4096,
    "LOG_BYTES": 16384,
    "LOG_RECORD_WORDS": 4,
    "WRAP": 0xFFFFFFFF,
}

# lanes, slots_per_lane, slot_bytes, result_bytes → where everything lies
LAYOUTS = {
    (1, 1, 4096, 4096): {
        "slots": 1,
        "packed_entries": 4,
        "ring_slots": 2,
        "channel_records": 2,
        "channel_bytes": 192,
        "hit_capacity": 252,
        "header": 0,
        "control": 4096,
        "state": 8192,
        "ring": 16384,
        "order": 20480,
        "log": 24576,
        "channels": 40960,
        "results": 45056,
        "newlines": 49152,
        "newline_bytes": 64,
        "data": 53248,
        "total": 57344,
    },
    (3, 5, 65536, 8192): {
        "slots": 15,
        "packed_entries": 64,
        "ring_slots": 32,
        "channel_records": 32,
        "channel_bytes": 1152,
        "hit_capacity": 508,
        "header": 0,
        "control": 4096,
        "state": 8192,
        "ring": 16384,
        "order": 20480,
        "log": 24576,
        "channels": 40960,
        "results": 49152,
        "newlines": 172032,
        "newline_bytes": 64,
        "data": 176128,
        "total": 1159168,
    },
    (70, 16, 1048576, 16384): {
        "slots": 1120,
        "packed_entries": 1024,
        "ring_slots": 4096,
        "channel_records": 4096,
        "channel_bytes": 131200,
        "hit_capacity": 1020,
        "header": 0,
        "control": 4096,
        "state": 8192,
        "ring": 20480,
        "order": 282624,
        "log": 299008,
        "channels": 315392,
        "results": 18817024,
        "newlines": 37167104,
        "newline_bytes": 1024,
        "data": 38313984,
        "total": 1212719104,
    },
}

layouts = st.builds(
    ArenaLayout,
    lanes=st.integers(1, 40),
    slots_per_lane=st.integers(1, 300),
    slot_bytes=st.integers(1, 600).map(lambda pages: pages * 4096),
    result_bytes=st.integers(1, 40).map(lambda pages: pages * 4096),
)


def parts(layout: ArenaLayout) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of the arena's parts in the documented order; sizes from first principles."""
    lanes, slots, ring = layout.lanes, layout.lanes * layout.slots_per_lane, layout.ring_slots
    return [
        ("header", layout.header, 64),
        ("control", layout.control, 4096),
        ("state", layout.state, 4096 + 64 * lanes),
        ("ring", layout.ring, 64 * ring),
        ("order", layout.order, 4 * ring),
        ("log", layout.log, 16384),
        ("channels", layout.channels, (2 * lanes + 1) * (128 + 32 * layout.channel_records)),
        ("results", layout.results, slots * layout.result_bytes),
        ("newlines", layout.newlines, slots * -(-layout.slot_bytes // 65536) * 64),
        ("data", layout.data, slots * layout.slot_bytes),
    ]


def test_no_constant_has_moved_come_or_gone():
    found = {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}
    assert found == CONSTANTS


@pytest.mark.parametrize("numbers", LAYOUTS)
def test_no_part_of_a_layout_has_moved(numbers):
    layout = ArenaLayout(*numbers)
    assert {name: getattr(layout, name) for name in LAYOUTS[numbers]} == LAYOUTS[numbers]


def test_the_properties_pinned_are_all_there_are():
    properties = {name for name, value in vars(ArenaLayout).items() if isinstance(value, property)}
    for pinned in LAYOUTS.values():
        assert set(pinned) == properties


def test_per_lane_and_per_slot_offsets():
    layout = ArenaLayout(3, 5, 65536, 8192)
    assert [layout.lane_bell(lane) for lane in range(3)] == [12288, 12352, 12416]
    assert [layout.completions(lane) for lane in range(3)] == [40960, 43264, 45568]
    assert [layout.credits(lane) for lane in range(3)] == [42112, 44416, 46720]
    assert layout.retired() == 47872
    assert [layout.result(slot) for slot in (0, 1, 14)] == [49152, 57344, 163840]
    assert [layout.newline_index(slot) for slot in (0, 1, 14)] == [172032, 172096, 172928]
    assert [layout.slot(slot) for slot in (0, 1, 14)] == [176128, 241664, 1093632]


@given(layouts)
def test_parts_follow_each_other_on_page_borders(layout):
    end = 0
    for name, offset, size in parts(layout):
        assert offset % 4096 == 0, name
        assert end <= offset < end + 4096, f"{name} overlaps or leaves a page unused"
        end = offset + size
    assert end == layout.total


@given(layouts)
def test_bells_channels_results_and_slots_do_not_overlap_and_keep_their_alignment(layout):
    lines = [layout.state + line for line in (0, 64, 128, 192, 256, 320, 384)]
    lines += [layout.lane_bell(lane) for lane in range(layout.lanes)]
    spans = [(line, 64) for line in lines]
    size = 128 + 32 * layout.channel_records
    channels = [end(lane) for lane in range(layout.lanes) for end in (layout.completions, layout.credits)]
    spans += [(channel, size) for channel in [*channels, layout.retired()]]
    last = layout.lanes * layout.slots_per_lane - 1
    for slot in {0, last // 2, last}:
        spans += [(layout.result(slot), layout.result_bytes), (layout.slot(slot), layout.slot_bytes)]
        spans += [(layout.newline_index(slot), layout.slot_bytes // 1024)]
        assert layout.result(slot) % 4096 == layout.slot(slot) % 4096 == 0
    spans.sort()
    assert all(offset % 64 == 0 for offset, _ in spans)
    for (offset, size), (following, _) in itertools.pairwise(spans):
        assert offset + size <= following
    assert spans[-1][0] + spans[-1][1] == layout.total


@given(layouts)
def test_counts_are_powers_of_two_with_room_for_failures(layout):
    assert layout.ring_slots & (layout.ring_slots - 1) == 0
    assert 2 * layout.slots <= layout.ring_slots < 4 * layout.slots
    assert layout.channel_records == layout.ring_slots
    assert abi.RESULT_HITS + layout.hit_capacity * abi.HIT_BYTES == layout.result_bytes


@given(st.integers(0, 1 << 40))
def test_power_of_two(count):
    power = abi.power_of_two(count)
    assert power.bit_count() == 1
    assert power >= count
    assert power == 1 or power // 2 < count


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 1, 4096, 4096),
        (1, 0, 4096, 4096),
        (-1, 1, 4096, 4096),
        (1, 1, 0, 4096),
        (1, 1, 4095, 4096),
        (1, 1, 4096, 2048),
        (1, 1, 4096, 6144),
        (2, (1 << 29) + 1, 4096, 4096),
        (1, 1, 1 << 63, 4096),
    ],
)
def test_layouts_that_make_no_sense_are_refused(numbers):
    with pytest.raises(ValueError, match=r"arena|multiple"):
        ArenaLayout(*numbers)

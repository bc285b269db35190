"""The binary interface between the processes, the kernels and the GPU. Frozen: a test pins every offset.

Words are 32-bit little-endian unless said; offsets here are bytes unless a name ends in ``_WORD``. CUDA constants
are generated from this module. Change ``VERSION`` with anything else in here.

The arena, page-aligned parts in this order (``ArenaLayout`` has their offsets):

    header · control words · state lines · ring · publish order · debug log · channels · result blocks ·
    newline indexes · data slots

Who writes what (one writer at a time, each hand-over a release-store that the next owner reads with acquire):

    =====================  ==========================================================================
    state TAIL             publisher
    state CLAIM            the kernel's threads, by compare-and-swap
    state RETIRED          kernel host
    state ENOUGH           kernel host; lanes read it
    ring slot              publisher while EMPTY, DONE or FAULT; from PUBLISHED on the kernel
    order[n]               publisher, before TAIL passes it
    channel tail, records  its producer;  channel head: its consumer
    data slot              lane (kernel: DMA) → publisher → kernel → kernel host → back by credit
    a lane's SAMPLE words  whoever has the timed extent's data slot; BUSY: lane sets it, publisher clears it
    result block           the kernel while its data slot is CLAIMED, then the kernel host reads
    newline index          as its data slot's result block
    =====================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = 3
MAGIC: Final = int.from_bytes(b"URACTARN", "little")
PAGE: Final = 4096
CACHE_LINE: Final = 64

# ── header (one page) ────────────────────────────────────────────────────────────────────────────────────────
HEADER_MAGIC: Final = 0  # u64
HEADER_VERSION: Final = 8
HEADER_LANES: Final = 12
HEADER_NONCE: Final = 16  # 16 bytes
HEADER_TOTAL: Final = 32  # u64, bytes
HEADER_SLOT_BYTES: Final = 40  # u64
HEADER_RESULT_BYTES: Final = 48  # u64
HEADER_SLOTS_PER_LANE: Final = 56
HEADER_RING_SLOTS: Final = 60

# ── control words (SPEC §3), as word indices ─────────────────────────────────────────────────────────────────
CONTROL_SHUTDOWN_WORD: Final = 0
CONTROL_DONE_COUNT_WORD: Final = 1
CONTROL_TENANT_MASK_WORD: Final = 2  # one word a tenant: 0 lets it run, anything else makes its slots FAULT
CONTROL_TENANT_MASK_COUNT: Final = 30
CONTROL_TENANT_QUOTA_WORD: Final = 32
CONTROL_TENANT_QUOTA_COUNT: Final = 32
CONTROL_TENANT_FAIRNESS_WORD: Final = 64
CONTROL_TENANT_FAIRNESS_COUNT: Final = 32
CONTROL_METRICS_WORD: Final = 96
CONTROL_METRICS_COUNT: Final = 32
CONTROL_EPOCH_WORD: Final = 128
CONTROL_PRIORITY_OFFSET_WORD: Final = 129
CONTROL_PRIORITY_OFFSET_COUNT: Final = 6
CONTROL_STARVATION_WORD: Final = 135
CONTROL_PRIORITY_FAIRNESS_WORD: Final = 136
CONTROL_PRIORITY_FAIRNESS_COUNT: Final = 5
CONTROL_OBSERVABLE_WORD: Final = 160
CONTROL_WORDS: Final = 1024
TENANTS: Final = CONTROL_TENANT_MASK_COUNT

# ── state lines: one word each, on its own cache line; bells are two words (``bell.py``) ────────────────────
STATE_TAIL: Final = 0
STATE_CLAIM: Final = 64
STATE_RETIRED: Final = 128
STATE_STOP: Final = 192
BELL_PUBLISHER: Final = 256
BELL_KERNEL: Final = 320
BELL_HOST: Final = 384
# Files of which nothing more is wanted, for the lanes: a table of words in which file ``id`` has word ``id mod n``,
# and is meant where that holds ``id + 1``. Two files may share a word, and then the earlier is read to its end.
STATE_ENOUGH: Final = 2048
ENOUGH_WORDS: Final = 512
STATE_BYTES: Final = PAGE
# After the state lines, one line for each lane: its bell, and the times of the one extent that is being timed
# (``samples.py``). Words of 64 bits but the first: ns of CLOCK_MONOTONIC.
SAMPLE_BUSY: Final = 8  # u32: the lane is timing an extent whose times nobody has taken yet
SAMPLE_BEGUN: Final = 16  # the lane: its read was begun
SAMPLE_READ: Final = 24  # the lane: it was read
SAMPLE_PUBLISHED: Final = 32  # the publisher
SAMPLE_DONE: Final = 40  # the kernel; 0 from one that has no such clock, then the kernel host when it sees it done
SAMPLE_EVERY: Final = 64  # extents that a lane begins from one that is timed to the next, at least

# ── ring slot: 16 words, one cache line ──────────────────────────────────────────────────────────────────────
RING_SLOT_BYTES: Final = 64
SLOT_STATUS: Final = 0
SLOT_OPCODE: Final = 4
SLOT_TENANT: Final = 8
SLOT_PRIORITY: Final = 12
SLOT_REASON: Final = 12  # of a slot that became FAULT: REASON_*
SLOT_ARGS: Final = 16
SLOT_ARG_COUNT: Final = 12
# a scan's arguments (args 4–15 of SPEC §3 are words 4–15)
SLOT_DATA_SLOT: Final = 16
SLOT_PAYLOAD_BYTES: Final = 20
SLOT_PAYLOAD_OFFSET: Final = 24
SLOT_HALO_BYTES: Final = 28
SLOT_FILE_OFFSET: Final = 32  # u64: file offset of the payload's first byte
SLOT_FILE_ID: Final = 40
SLOT_EXTENT_ID: Final = 44
SLOT_OPERATION: Final = 48
SLOT_FLAGS: Final = 52
SLOT_ERRNO: Final = 56  # with FLAG_FAILED: why bytes are missing
# The position that the slot is published at, written after the arguments and before the status. Who fetches the
# line in pieces (a GPU over PCIe) knows by it that the later pieces are as new as the first.
SLOT_POSITION: Final = 60

EMPTY: Final = 0
PUBLISHED: Final = 1
CLAIMED: Final = 2
DONE: Final = 3
WAIT_IO: Final = 4
YIELD: Final = 5
REQUEUE: Final = 6
FAULT: Final = 7

REASON_TENANT: Final = 1  # the mask forbids its tenant
REASON_OPCODE: Final = 2  # the kernel has no such operation
REASON_ARGUMENT: Final = 3  # an argument is out of range, or the payload misaligned
REASON_RESULT: Final = 4  # the result block is too small
REASON_OPERATION: Final = 5  # the operation itself failed

PRIORITY_CRITICAL: Final = 0
PRIORITY_HIGH: Final = 1
PRIORITY_NORMAL: Final = 2
PRIORITY_LOW: Final = 3
PRIORITY_IDLE: Final = 4

OP_NOP: Final = 0
OP_STORE_U32: Final = 1
OP_ATOMIC_ADD: Final = 2
OP_LOAD_U32: Final = 3
OP_COMPARE_SWAP: Final = 4
OP_MEMCPY: Final = 5
OP_DFA_STEP: Final = 6
OP_BATCH_FENCE: Final = 7
OP_LOAD_MISS: Final = 0xFFFD
OP_PRINTF: Final = 0xFFFE
OP_PACKED_SLOT: Final = 0x80000001
OP_SHUTDOWN: Final = 0xFFFFFFFF
OP_SCAN_NOP: Final = 0x40000000
OP_SCAN_TOUCH: Final = 0x40000001
OP_SCAN_MATCH: Final = 0x40000002
OP_SCAN_CRC32C: Final = 0x40000003
OP_SCAN_HISTOGRAM: Final = 0x40000004
OP_USER_FIRST: Final = 0x00010000  # what users register (``ops/user.py``)
OP_USER_LAST: Final = 0x3FFFFFFF

FLAG_FIRST: Final = 1  # the file's first extent
FLAG_LAST: Final = 2  # the file's last
FLAG_PACKED: Final = 4  # several files in one data slot
FLAG_FAILED: Final = 8  # bytes are missing at the end (maybe all): SLOT_ERRNO says why; the rest is scanned
FLAG_TIMED: Final = 16  # its stages are timed, in its lane's line
NO_DATA_SLOT: Final = 0xFFFFFFFF

# ── a packed data slot (FLAG_PACKED): a directory at its head, then the files' bytes ─────────────────────────
# The ring slot's file id says how many files there are, its payload bytes what they have in all. The lane writes an
# entry; the kernel writes the results (from hits on), which the lane has left at zero.
PACKED_ENTRY_BYTES: Final = 64
PACKED_FILE_ID: Final = 0
PACKED_ERRNO: Final = 4  # 0, or why bytes are missing
PACKED_OFFSET: Final = 8  # of the file's bytes in the data slot; 0: the file could not be opened
PACKED_BYTES: Final = 12
PACKED_HITS: Final = 16
PACKED_RESULT: Final = 20  # bytes from where a result block's hits or values begin to the file's
PACKED_NEWLINES: Final = 24
PACKED_LAST_NEWLINE: Final = 28
PACKED_ENTRIES_MOST: Final = 4096
ENODATA: Final = 61  # a status of ours: the file ended before the size that it was listed with
ESTALE: Final = 116  # another one: the path leads to another file than the one listed

# ── channel: head line, tail line, then records ──────────────────────────────────────────────────────────────
CHANNEL_HEAD: Final = 0
CHANNEL_TAIL: Final = 64
CHANNEL_RECORDS: Final = 128
RECORD_BYTES: Final = 32
RECORD_DATA_SLOT: Final = 0
RECORD_BYTES_READ: Final = 4  # real bytes from the payload's first byte on, halo included
RECORD_FILE_ID: Final = 8
RECORD_EXTENT_ID: Final = 12
RECORD_FILE_OFFSET: Final = 16  # u64: file offset of the payload's first byte
RECORD_STATUS: Final = 24  # 0, or an errno: ENODATA where the file ended before the size it was listed with
RECORD_FLAGS: Final = 28
# A record kernel host → publisher has the data slot, the ring slot, its payload's bytes, its status and its flags;
# publisher → lane only the data slot.
RECORD_RING_SLOT: Final = 4
RECORD_PAYLOAD: Final = 8

# ── result block: one for each data slot ─────────────────────────────────────────────────────────────────────
RESULT_COUNT: Final = 0
RESULT_OVERFLOW: Final = 4  # non-zero: hits are missing, the slot must be done again on the CPU
RESULT_NEWLINES: Final = 8
RESULT_LAST_NEWLINE: Final = 12  # offset in the payload, or NO_NEWLINE
RESULT_VALUES: Final = 16  # operation results: six u64; a reduction's states go on to the block's end
RESULT_VALUE_COUNT: Final = 6
RESULT_HITS: Final = 64
USER_WORDS: Final = (PAGE - RESULT_VALUES) // 8  # of a user operation's state: what the smallest block holds
HIT_BYTES: Final = 16
HIT_PATTERN: Final = 0
HIT_START: Final = 4  # offsets from the payload's first byte; HIT_NO_START: a candidate, only its end is known
HIT_END: Final = 8
HIT_FLAGS: Final = 12  # 0
NO_NEWLINE: Final = 0xFFFFFFFF
HIT_NO_START: Final = 0xFFFFFFFF

# ── newline index: one for each data slot, a word for each of its chunks; MATCH writes it ────────────────────
# A payload (of a packed slot: each file's) at ``offset`` in the data slot has chunks of its own, counted from its
# first byte. Word ``offset // NEWLINE_CHUNK + k`` has the newlines before its chunk k. The word of chunk 0 is neither
# written nor read, so that no two files of a packed slot share a word.
NEWLINE_CHUNK: Final = 4096

LOG_BYTES: Final = 4 * PAGE
LOG_RECORD_WORDS: Final = 4

WRAP: Final = 0xFFFFFFFF  # counters wrap at 32 bits


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << max(0, count - 1).bit_length()


def packed_entries(slot_bytes: int) -> int:
    """How many files a packed data slot can hold: at most a sixteenth of it is directory."""
    return min(PACKED_ENTRIES_MOST, slot_bytes // (16 * PACKED_ENTRY_BYTES))


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Where everything lies. All of it follows from four numbers, which the header repeats.

    lanes, slots_per_lane: data slots are numbered lane by lane, ``lane * slots_per_lane + i``.
    slot_bytes, result_bytes: sizes of a data slot and of its result block, multiples of a page.
    """

    lanes: int
    slots_per_lane: int
    slot_bytes: int
    result_bytes: int

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.slots_per_lane < 1:
            raise ValueError(f"an arena needs a lane and a slot, not {self.lanes} and {self.slots_per_lane}")
        for name in ("slot_bytes", "result_bytes"):
            if getattr(self, name) < PAGE or getattr(self, name) % PAGE:
                raise ValueError(f"{name} must be a multiple of {PAGE}, not {getattr(self, name)}")
        # Positions are told apart by 32-bit counters that wrap, so a ring may hold at most half of them.
        if self.ring_slots > 1 << 31 or self.total >= 1 << 63:
            raise ValueError(f"{self.slots} slots of {self.slot_bytes} bytes are more than an arena can address")

    @property
    def slots(self) -> int:
        return self.lanes * self.slots_per_lane

    @property
    def ring_slots(self) -> int:
        """A power of two. Failures take a ring slot but no data slot, so there are more than data slots."""
        return power_of_two(2 * self.slots)

    @property
    def channel_records(self) -> int:
        """Entries of every channel: a power of two that holds whatever can be on its way."""
        return self.ring_slots

    @property
    def channel_bytes(self) -> int:
        return CHANNEL_RECORDS + self.channel_records * RECORD_BYTES

    @property
    def hit_capacity(self) -> int:
        return (self.result_bytes - RESULT_HITS) // HIT_BYTES

    @property
    def newline_bytes(self) -> int:
        """Of a data slot's newline index: on cache lines of its own."""
        return -(-self.slot_bytes // NEWLINE_CHUNK * 4 // CACHE_LINE) * CACHE_LINE

    @property
    def packed_entries(self) -> int:
        """How many files a packed data slot can hold."""
        return packed_entries(self.slot_bytes)

    @property
    def header(self) -> int:
        return 0

    @property
    def control(self) -> int:
        return PAGE

    @property
    def state(self) -> int:
        return self.control + _pages(CONTROL_WORDS * 4)

    @property
    def ring(self) -> int:
        return self.state + STATE_BYTES + _pages(self.lanes * CACHE_LINE)

    @property
    def order(self) -> int:
        return self.ring + _pages(self.ring_slots * RING_SLOT_BYTES)

    @property
    def log(self) -> int:
        return self.order + _pages(self.ring_slots * 4)

    @property
    def channels(self) -> int:
        return self.log + LOG_BYTES

    @property
    def results(self) -> int:
        return self.channels + _pages((2 * self.lanes + 1) * self.channel_bytes)

    @property
    def newlines(self) -> int:
        return self.results + self.slots * self.result_bytes

    @property
    def data(self) -> int:
        return self.newlines + _pages(self.slots * self.newline_bytes)

    @property
    def total(self) -> int:
        return self.data + self.slots * self.slot_bytes

    def lane_bell(self, lane: int) -> int:
        return self.state + STATE_BYTES + lane * CACHE_LINE

    def completions(self, lane: int) -> int:
        """The channel lane → publisher."""
        return self.channels + 2 * lane * self.channel_bytes

    def credits(self, lane: int) -> int:
        """The channel publisher → lane."""
        return self.channels + (2 * lane + 1) * self.channel_bytes

    def retired(self) -> int:
        """The channel kernel host → publisher."""
        return self.channels + 2 * self.lanes * self.channel_bytes

    def result(self, slot: int) -> int:
        return self.results + slot * self.result_bytes

    def newline_index(self, slot: int) -> int:
        return self.newlines + slot * self.newline_bytes

    def slot(self, slot: int) -> int:
        return self.data + slot * self.slot_bytes

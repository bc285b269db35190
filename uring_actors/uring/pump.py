"""``UringMegakernelPump``: a stream joined to a megakernel's ring, so that one thread runs a compact loop.

    submit_file_scan ──▶ read ──▶ success: its ring slot is PUBLISHED, then the tail moves
                             └──▶ failure: named, with chunk and slot, which are free again

A chunk is ``chunk_bytes`` of the stream's buffer, which lies in the megakernel's data slots. The caller chooses ring
slot and chunk; either is refused with QueueFull as long as a read or the kernel has it. Reads complete in any order:
each finds its slot by its number, which is the read's ``user_data``.

**The tail never runs ahead**: it is the stream's word, and one is added after a slot's status became PUBLISHED, so
whoever sees it at n finds n slots published. The ring's own tail, by which the kernel claims, is moved before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from uring_actors.arena import abi
from uring_actors.errors import ChunkFailed, IoUringSyscall, OptionError, PipelineError, QueueFull
from uring_actors.megakernel.megakernel import Control, Megakernel, scan_args
from uring_actors.uring.flight import HasFileno
from uring_actors.uring.stream import AsyncUringStream, Completion
from uring_actors.uring.tail import read_word
from uring_actors.uring.telemetry import IngestTelemetry

_EPOCH: Final = 4 * abi.CONTROL_EPOCH_WORD


class _Staged(NamedTuple):
    """What a slot will say when its read has succeeded."""

    chunk: int
    slot: int
    address: int
    file_offset: int
    tenant: int
    opcode: int
    args: tuple[int, int, int]


class UringMegakernelPump:
    """See the module's page.

    stream: the pump's alone until ``into_stream``. chunk_bytes: of one read, and of one step of ``chunk_idx``.
    buf_index: read into this registered buffer (READ_FIXED), which must hold the stream's; None: READV.
    """

    def __init__(self, stream: AsyncUringStream, chunk_bytes: int, *, buf_index: int | None = None) -> None:
        if not 0 < chunk_bytes <= len(stream.buffer):
            raise OptionError(f"a chunk of {chunk_bytes} bytes is not in a buffer of {len(stream.buffer)}")
        stream.lend()
        self._stream = stream
        self.chunk_bytes = chunk_bytes
        self._buf_index = buf_index
        self._staged: dict[int, _Staged] = {}  # by slot: read, or waiting for its slot
        self._ready: deque[tuple[_Staged, Completion]] = deque()
        self._failures: deque[ChunkFailed] = deque()
        self._slot_of_chunk: dict[int, int] = {}  # who used a chunk last, and
        self._chunk_of_slot: dict[int, int] = {}  # what a slot was used for last
        self._ring: Megakernel | None = None  # the last one drained into

    # ── in ───────────────────────────────────────────────────────────────────────────────────────────────────
    def submit_file_scan(
        self,
        fd: int | HasFileno,
        file_offset: int,
        len: int,  # noqa: A002
        chunk_idx: int,
        slot_idx: int,
        tenant_id: int,
        opcode: int,
        args: Sequence[int] = (0, 0, 0),
    ) -> None:
        """Read ``len`` (= ``chunk_bytes``) bytes at ``file_offset`` into chunk ``chunk_idx``, and have ring slot
        ``slot_idx`` run ``opcode`` on them.

        args: three words of the caller's: the slot's file id, extent id and operation parameter. At a file's end
        fewer bytes arrive: the slot's payload size is what did, and it carries FLAG_LAST.

        Raises QueueFull where the slot or the chunk is in flight, the ring of the stream full, or the chunk not in
        the buffer; OptionError for numbers that make no sense.
        """
        self._check_lent()
        if len != self.chunk_bytes:
            raise OptionError(f"a scan reads a chunk of {self.chunk_bytes} bytes, not {len}")
        words = _three_words(args, opcode, tenant_id)
        self._check_slot(slot_idx)
        self._check_chunk(chunk_idx)
        target = chunk_idx * self.chunk_bytes
        address = self._stream.buffer.address + target
        staged = _Staged(chunk_idx, slot_idx, address, file_offset, tenant_id, opcode, words)
        self._stream.submit_for_pump(fd, file_offset, len, target, slot_idx, self._buf_index)
        self._staged[slot_idx] = staged
        former = self._chunk_of_slot.get(slot_idx)
        if former is not None and self._slot_of_chunk.get(former) == slot_idx:
            del self._slot_of_chunk[former]
        self._slot_of_chunk[chunk_idx] = slot_idx
        self._chunk_of_slot[slot_idx] = chunk_idx

    def _check_slot(self, slot: int) -> None:
        if slot < 0 or (self._ring is not None and slot >= self._ring.ring_slots):
            raise OptionError(f"there is no ring slot {slot}")
        if self._in_use(slot):
            raise QueueFull(
                f"ring slot {slot}", fix="It is in flight: drain, and wait until the kernel is done with it."
            )

    def _check_chunk(self, chunk: int) -> None:
        slot = self._slot_of_chunk.get(chunk)
        if slot is not None and self._in_use(slot):
            raise QueueFull(f"chunk {chunk}", fix=f"Ring slot {slot} is in flight with it: drain, and wait for that.")

    def _in_use(self, slot: int) -> bool:
        """Whether a read or the kernel has this slot."""
        return slot in self._staged or (self._ring is not None and not self._ring.writable(slot))

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────
    def drain_into_ring(self, ring: Megakernel) -> int:
        """Reap, and publish the ring slot of each read that succeeded; how many.

        Failures are queued: the first is raised after everything was published, each later call raises the next.
        Raises ChunkFailed, which names chunk, ring slot, path and offset; QueueFull where the kernel still has a slot
        that was to be published: it stays with the pump, for the next call.
        """
        self._check_lent()
        self._ring = ring
        for completion in self._stream.drain():
            self._land(completion)
        published, busy = self._publish(ring)
        if self._failures:
            raise self._failures.popleft()
        if busy is not None:
            raise QueueFull(f"ring slot {busy}", fix="The kernel has it: wait until it is done, then drain again.")
        return published

    def _land(self, completion: Completion) -> None:
        slot = completion.user_data
        error = completion.error
        if error is None:
            self._ready.append((self._staged[slot], completion))
            return
        staged = self._staged.pop(slot)
        assert isinstance(error, IoUringSyscall), "a pump sends no commands"
        failed = ChunkFailed(
            staged.chunk,
            slot,
            error.syscall,
            error.errno or 0,
            fix=error.fix,
            path=error.path,
            offset=error.offset,
        )
        self._failures.append(failed)

    def _publish(self, ring: Megakernel) -> tuple[int, int | None]:
        """How many were published; and a slot that the kernel still has, if any."""
        published, busy = 0, None
        for _ in range(len(self._ready)):
            staged, completion = self._ready[0]
            if not ring.writable(staged.slot):
                self._ready.rotate(-1)
                busy = staged.slot
                continue
            words = self._slot_args(ring, staged, completion)
            ring.publish(staged.slot, staged.opcode, words, tenant=staged.tenant)
            self._ready.popleft()
            self._stream.tail.add(1)  # only now: the slot is PUBLISHED
            del self._staged[staged.slot]
            published += 1
        return published, busy

    def _slot_args(self, ring: Megakernel, staged: _Staged, completion: Completion) -> tuple[int, ...]:
        layout = ring.arena.layout
        data_slot, inside = divmod(staged.address - ring.arena.address - layout.data, layout.slot_bytes)
        if not 0 <= data_slot < layout.slots:
            raise OptionError(
                "the stream's buffer is not in this ring's data slots", fix="Make it from Megakernel.buffer."
            )
        file_id, extent_id, operation = staged.args
        first = abi.FLAG_FIRST if staged.file_offset == 0 else 0
        return scan_args(
            data_slot,
            completion.bytes,
            payload_offset=inside,
            file_offset=staged.file_offset,
            file_id=file_id,
            extent_id=extent_id,
            operation=operation,
            flags=first | (abi.FLAG_LAST if completion.ended else 0),
        )

    def observe_epoch(self, control: Control) -> int:
        """The epoch in a megakernel's control words (``Megakernel.control``): how many BATCH_FENCEs it has run. All
        that was published before a fence that this counts, and claimed by the same thread, is done."""
        if len(control) <= abi.CONTROL_EPOCH_WORD:
            raise OptionError(f"{len(control)} words are no control words")
        return read_word(control.ctypes.data + _EPOCH)

    # ── around ───────────────────────────────────────────────────────────────────────────────────────────────
    def wait(self, timeout: float | None = None) -> None:
        """Wait until ``drain_into_ring`` finds a read that is over; see ``AsyncUringStream.wait_for_completion``."""
        self._check_lent()
        if not self._ready and not self._failures:
            self._stream.wait(timeout)

    def inflight(self) -> int:
        """Chunks submitted and neither published nor failed."""
        return len(self._staged)

    def reading(self, slot_idx: int) -> bool:
        """Whether ring slot ``slot_idx`` is the pump's: its chunk is being read, or waits to be published."""
        return slot_idx in self._staged

    def telemetry(self) -> IngestTelemetry:
        """The stream's."""
        return self._stream.telemetry()

    def into_stream(self) -> AsyncUringStream:
        """Give the stream back; the pump is of no more use. Raises QueueFull while chunks are in flight."""
        self._check_lent()
        if self._staged:
            raise QueueFull("pump", fix="Chunks are in flight: drain_into_ring until inflight() is 0.")
        self._stream.take_back()
        stream, self._stream = self._stream, None  # type: ignore[assignment]
        return stream

    def close(self, seconds: float = 30.0) -> None:
        """Close the stream and its ring: reads in flight are cancelled or waited for. Idempotent."""
        if self._stream is not None:
            self._stream.close(seconds)
            self._stream.ring_state.close(seconds)

    def _check_lent(self) -> None:
        if self._stream is None:
            raise PipelineError("the pump has given its stream back")


def _three_words(args: Sequence[int], opcode: int, tenant: int) -> tuple[int, int, int]:
    if len(args) != 3 or any(not 0 <= word <= abi.WRAP for word in (*args, opcode, tenant)):
        raise OptionError(f"opcode {opcode}, tenant {tenant} and {args} are not two and three words of 32 bits")
    return args[0], args[1], args[2]

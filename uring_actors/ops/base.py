"""What an operation is: an opcode, the context that it needs, and how its results become rows.

The kernel runs an operation on each slot; *settling* then makes the extents of a file into its rows, on the kernel
host, in one thread. A settler sees every slot of the scan once, in publish order, with its data slot still in
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.errors import errno_name
from uring_actors.megakernel import ring
from uring_actors.megakernel.cpu import Worker
from uring_actors.megakernel.cuda import DeviceFunction
from uring_actors.ops.match.automaton import Automata
from uring_actors.pieces import PieceEnd
from uring_actors.plan import FileEntry
from uring_actors.results.errors import Failure

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""What ``ring.collect`` reports: one row a slot, columns ``ring.COLUMN_*``."""


class NotOnDevice(Exception):
    """The CUDA kernel can't run this operation; the text says why, as the end of a sentence."""


class Settler(Protocol):
    """Extents into rows. Used by one thread, except for the counters."""

    files: int
    """Files settled, failed ones included."""
    bytes: int
    """Payload bytes of settled extents."""
    failures: list[Failure]
    settled: list[int]
    """Ids of files settled, failed ones included; the kernel host takes them out."""
    ends: dict[int, PieceEnd]
    """By id, what the settled pieces of files leave; the kernel host takes them out."""

    @property
    def matches(self) -> int:
        """Rows, or what is counted instead of them."""

    def expect(self, files: Sequence[FileEntry]) -> None:
        """These files' extents will come. Empty files have none and are settled at once."""

    def settle(self, rows: Rows) -> None:
        """Take these slots. After it returns, their data slots belong to the lanes again."""

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        """Batches that are ready; with ``everything`` also what has not filled one yet."""


class Operation(Protocol):
    """One kind of scan. Picklable: it is made in the driver and sent to the kernel host."""

    @property
    def opcode(self) -> int: ...

    @property
    def halo(self) -> int:
        """Bytes that must follow the payload, where the file has them."""

    @property
    def lead(self) -> bool:
        """Whether bytes must stand before the payload."""

    @property
    def automata(self) -> Automata | None:
        """What the CUDA kernel must have in its memory to run it."""

    def on_device(self, *, insist: bool) -> Operation:
        """The operation as the CUDA kernel runs it, with the same rows. Raises NotOnDevice where it has no form
        there, or, unless ``insist``, where the CPU kernel is the better choice."""

    @property
    def device_functions(self) -> Sequence[DeviceFunction]:
        """What the CUDA kernel must be compiled with."""

    @property
    def parameter(self) -> int:
        """The slots' operation parameter (``abi.SLOT_OPERATION``)."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know before it starts."""

    @property
    def packs(self) -> bool:
        """Whether it is run on packed data slots too (``megakernel/packed.py``): its compiled part looks for
        ``abi.FLAG_PACKED``, works on each file by itself, and says in the file's entry where in the result block its
        results are. Settling gets a row for each file, as ever (COLUMN_RESULT has that place). For all other
        operations small files have slots of their own."""

    @property
    def splits(self) -> str | None:
        """The way in which the rows of a file's pieces (``pieces.py``) become the file's (``ops/joining.py``); None:
        it can't be run on pieces. A settler knows a piece by ``FileEntry.name``, which stands where a path would be,
        in its rows and failures too."""

    def result_bytes(self, slot_bytes: int) -> int:
        """What a data slot's result block must hold at least."""

    @property
    def schema(self) -> pa.Schema: ...

    def make_worker(self, arena: Arena) -> Worker | None:
        """A kernel thread's part, where Python must run it or its compiled form needs parameters; None where not."""

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        """For one scan whose full extents have ``payload`` bytes."""


_REASONS = {
    abi.REASON_TENANT: "its tenant is not allowed to run",
    abi.REASON_OPCODE: "it has no such operation",
    abi.REASON_ARGUMENT: "an argument is out of range, or the payload is misaligned",
    abi.REASON_RESULT: "the result block is too small",
    abi.REASON_OPERATION: "the operation failed",
}


def extents(entry: FileEntry, payload: int) -> range:
    """The numbers of the extents of a file, or of a piece of one."""
    assert entry.start % payload == 0, "a piece begins in the middle of an extent"
    return range(entry.start // payload, -(-entry.stop // payload))


def read_failure(entry: FileEntry, row: Sequence[int]) -> Failure:
    """The row in ``errors`` for a slot that has FLAG_FAILED: what is missing, and from which byte on."""
    number = row[ring.COLUMN_ERRNO]
    offset = row[ring.COLUMN_FILE_OFFSET] + row[ring.COLUMN_PAYLOAD_BYTES]
    if number == abi.ENODATA:
        message = f"the file shrank while it was scanned: it had {entry.size} bytes when it was listed"
        return Failure(entry.path, message, errno=number, offset=offset)
    if number == abi.ESTALE:
        message = "another file took this path between listing and reading; scan it again"
        return Failure(entry.path, message, errno=number)
    whole = row[ring.COLUMN_FLAGS] & abi.FLAG_FIRST and row[ring.COLUMN_DATA_SLOT] == abi.NO_DATA_SLOT
    if whole:
        return Failure(entry.path, "cannot open the file", errno=number)
    return Failure(
        entry.path,
        f"cannot read the file ({errno_name(number)}); the rest of the extent is not scanned",
        errno=number,
        offset=offset,
    )


def fault_failure(entry: FileEntry, row: Sequence[int]) -> Failure:
    """The row in ``errors`` for a slot that the kernel handed back as FAULT."""
    reason = _REASONS.get(row[ring.COLUMN_REASON], "no reason given")
    return Failure(
        entry.path,
        f"the kernel refused this extent (opcode {row[ring.COLUMN_OPCODE]:#x}): {reason}",
        offset=row[ring.COLUMN_FILE_OFFSET],
        error="FAULT",
    )

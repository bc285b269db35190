"""Drive a reduction by hand: a file cut into extents, run by the CPU kernel slot by slot, settled in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import cpu, ring
from uring_actors.ops.reduction import Reduction
from uring_actors.plan import FileEntry

LEAD = 4096


class Drive:
    """An arena and one operation. ``rows`` scans files that lie in memory."""

    def __init__(self, operation: Reduction, slot_bytes: int = 65536) -> None:
        pages = -(-operation.result_bytes(slot_bytes) // abi.PAGE)
        self.arena = Arena.create(ArenaLayout(1, 2, slot_bytes, pages * abi.PAGE))
        self.operation = operation
        self.book = self.arena.address_book()
        self.worker = operation.make_worker(self.arena)
        self.slot = 0

    def close(self) -> None:
        self.arena.close()

    def scan(
        self,
        files: Sequence[bytes],
        payload: int,
        order: Sequence[tuple[int, int]],
        spoilt: dict[tuple[int, int], tuple[int, int]] | None = None,
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Rows and failures. order: (file, extent) of each extent, as they are settled. spoilt: of an extent, how
        many of its bytes were read and the errno that says why no more."""
        settler = self.operation.make_settler(self.arena, payload)
        settler.expect([FileEntry(i, b"f%d" % i, len(data), 0, 0) for i, data in enumerate(files)])
        for file, extent in order:
            data, start = files[file], extent * payload
            size, errno = (spoilt or {}).get((file, extent), (min(payload, len(data) - start), 0))
            row = self.run(data, start, size, file, extent, errno)
            settler.settle(row[None, :])
        assert settler.files == len(files)
        found = [row for batch in settler.take(everything=True) for row in batch.to_pylist()]
        return sorted(found, key=lambda row: (row["path"], row.get("offset", 0))), settler.failures

    def run(self, data: bytes, start: int, size: int, file: int, extent: int, errno: int) -> Any:
        """One extent through the kernel; how ``ring.collect`` would describe it."""
        self.slot = 1 - self.slot
        halo = data[start + size : start + size + self.operation.halo] if not errno else b""
        base = self.arena.layout.slot(self.slot)
        slot = bytearray(b"\xaa" * self.arena.layout.slot_bytes)  # whatever was there before
        slot[LEAD : LEAD + size + len(halo)] = data[start : start + size] + halo
        if start:
            slot[LEAD - 1] = data[start - 1]
        self.arena.view[base : base + len(slot)] = slot
        flags = abi.FLAG_FAILED if errno else 0
        ring.write_scan(
            self.book,
            self.slot,
            self.slot,
            size,
            LEAD,
            len(halo),
            start,
            file,
            extent,
            self.operation.parameter,
            flags,
            errno,
        )
        opcode = self.operation.opcode if size else abi.OP_SCAN_NOP
        ring.stage(self.book, 0, self.slot, opcode, 0, abi.PRIORITY_NORMAL)
        if not cpu.execute(self.book, self.slot, cpu.NO_PARAMETERS):
            assert self.worker is not None
            words = self.arena.words(self.arena.layout.ring + self.slot * abi.RING_SLOT_BYTES, 16)
            try:
                self.worker.run(words.tolist())
                ring.finish(self.book, self.slot, abi.DONE)
            except cpu.Refused:
                ring.finish(self.book, self.slot, abi.FAULT)
        row = np.zeros(ring.COLUMNS, np.int64)
        ring.describe(self.book, self.slot, row)
        return row


def extents_of(files: Sequence[bytes], payload: int) -> list[tuple[int, int]]:
    """(file, extent) of every extent, in order."""
    return [(i, k) for i, data in enumerate(files) for k in range(-(-len(data) // payload))]

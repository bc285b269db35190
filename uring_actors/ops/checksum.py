"""CHECKSUM: the CRC32C (Castagnoli) of each file, as RFC 3720 and the cloud stores have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.megakernel.crc32c import combine
from uring_actors.megakernel.reduce import CRC32C_WORDS
from uring_actors.ops.reduction import SplitReduction, State, Words
from uring_actors.results.arrays import array


@dataclass(frozen=True)
class Checksum(SplitReduction):
    """CRC32C. Rows: path, bytes, crc32c (uint32); none for a file of which bytes are missing."""

    opcode = abi.OP_SCAN_CRC32C
    words = CRC32C_WORDS
    on_gpu = True
    splits = "checksum"

    @property
    def empty(self) -> State:
        return 0, 0

    def load(self, words: Words) -> State:
        """The checksum, and how many bytes it is of."""
        return int(words[0]), int(words[1])

    def load_row(self, size: int, values: Sequence[Any]) -> State:
        return values[0], size

    def combine(self, left: State, right: State) -> State:
        return combine(left[0], right[0], right[1]), left[1] + right[1]

    def finish(self, state: State, size: int) -> int:
        return int(state[0])

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field("crc32c", pa.uint32(), nullable=False)]

    def columns(self, values: list[Any]) -> list[pa.Array]:
        return [array(values, pa.uint32())]

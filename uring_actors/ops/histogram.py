"""HISTOGRAM: how often each byte value occurs in a file or in each block of it, and the entropy that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.errors import OptionError
from uring_actors.hot import hot
from uring_actors.megakernel.reduce import HISTOGRAM_WORDS
from uring_actors.ops.reduction import SplitReduction, State, Words
from uring_actors.results.arrays import array

Floats = np.ndarray[Any, np.dtype[np.float64]]

BLOCK_MIN: Final = 1024
BLOCK_MAX: Final = abi.WRAP
"""Bytes of a block. In smaller ones there would be more counts than bytes."""


@dataclass(frozen=True)
class Histogram(SplitReduction):
    """Byte counts. Rows: path, bytes, entropy (Shannon's, in bits a byte; 0 without bytes), counts (256 of them).

    block: with it a row for each block of that many bytes (the file's last may be shorter), and a column offset after
    path; an empty file has none. Of a file of which bytes are missing only whole blocks have rows.
    """

    block: int = 0

    opcode = abi.OP_SCAN_HISTOGRAM
    words = HISTOGRAM_WORDS
    on_gpu = True

    def __post_init__(self) -> None:
        if self.block and not BLOCK_MIN <= self.block <= BLOCK_MAX:
            raise OptionError(
                f"a histogram's block is {self.block} bytes",
                fix=f"It must be from {BLOCK_MIN} bytes to {BLOCK_MAX}, or 0 for whole files.",
            )

    @property
    def splits(self) -> str | None:
        return None if self.block else "histogram"

    @property
    def empty(self) -> State:
        return np.zeros(HISTOGRAM_WORDS, np.int64)

    def load(self, words: Words) -> State:
        return words.copy()

    def load_row(self, size: int, values: Sequence[Any]) -> State:
        return np.array(values[1], np.int64)

    def load_blocks(self, words: Words) -> Sequence[Any]:
        return list(words.copy())

    def combine(self, left: State, right: State) -> State:
        return left + right

    @property
    def fields(self) -> list[pa.Field]:
        counts = pa.list_(pa.field("item", pa.uint64(), nullable=False), HISTOGRAM_WORDS)
        return [pa.field("entropy", pa.float64(), nullable=False), pa.field("counts", counts, nullable=False)]

    def columns(self, values: list[Any]) -> list[pa.Array]:
        counts = np.stack(values)
        flat = array(counts.view(np.uint64).ravel(), pa.uint64())
        return [
            array(entropies(counts), pa.float64()),
            pa.FixedSizeListArray.from_arrays(flat, type=self.fields[1].type),
        ]


_TABLE: Final = np.array([0.0, *(count * np.log2(count) for count in range(1, 4096))])
"""c · log2(c): a logarithm for each count would take longer than the counting, where blocks are small."""


def entropies(counts: Words) -> Floats:
    """Shannon's entropy of each row of 256 counts, in bits; 0 where all are 0."""
    found = np.zeros(len(counts), np.float64)
    _entropies(counts, found)
    return found


@hot
def _entropies(counts: Words, found: Floats) -> None:
    for row in range(counts.shape[0]):
        total, weighed = 0, 0.0
        for value in range(256):
            count = counts[row, value]
            total += count
            weighed += _TABLE[count] if count < 4096 else count * math.log2(count)
        if total > 0:  # −Σ c/n · log2(c/n); rounding must not make less than nothing of it
            found[row] = max(0.0, math.log2(total) - weighed / total)

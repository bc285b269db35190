"""NOP and TOUCH: operations that measure the pipeline itself.

NOP touches no byte: its rows say how many bytes of each file arrived. TOUCH reads every byte and adds the sum of
their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.megakernel.reduce import TOUCH_WORDS
from uring_actors.ops.reduction import SplitReduction, State, Words
from uring_actors.results.arrays import array


@dataclass(frozen=True)
class Nop(SplitReduction):
    """Read everything, look at nothing. Rows: path, bytes."""

    opcode = abi.OP_SCAN_NOP
    words = 0
    on_gpu = True
    partial = True
    splits = "nop"

    @property
    def empty(self) -> State:
        return 0

    def load(self, words: Words) -> State:
        return 0

    def load_row(self, size: int, values: Sequence[Any]) -> State:
        return 0

    def combine(self, left: State, right: State) -> State:
        return left + right

    @property
    def fields(self) -> list[pa.Field]:
        return []

    def columns(self, values: list[Any]) -> list[pa.Array]:
        return []


@dataclass(frozen=True)
class Touch(Nop):
    """Read every byte. Rows: path, bytes, sum (of the values of all bytes that could be read)."""

    opcode = abi.OP_SCAN_TOUCH
    words = TOUCH_WORDS
    splits = "touch"

    def load(self, words: Words) -> State:
        return int(words[0])

    def load_row(self, size: int, values: Sequence[Any]) -> State:
        return values[0]

    @property
    def fields(self) -> list[pa.Field]:
        return [pa.field("sum", pa.int64(), nullable=False)]

    def columns(self, values: list[Any]) -> list[pa.Array]:
        return [array(values, pa.int64())]

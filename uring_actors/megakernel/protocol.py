"""The protocol's constants for CUDA, generated from ``arena/abi.py``: one definition for both sides."""

from __future__ import annotations

from typing import Final

from uring_actors.arena import abi
from uring_actors.megakernel import crc32c

# What the host lays down in the device's memory before the kernel reads it; all in 32-bit words unless said.
SETS: Final = 16
"""Pattern sets that a kernel can hold. Each has an entry of ``SET_WORDS`` words; tables lie behind the entries."""
SET_WORDS: Final = 32
SET_GROUPS_WORD: Final = 0
SET_SHIFT_WORD: Final = 1
SET_DEPTH_WORD: Final = 2
SET_CLASSES_WORD: Final = 3  # this and the next three: bytes from the first entry on
SET_NEXT_WORD: Final = 4
SET_FIRST_WORD: Final = 5
SET_ACCEPTS_WORD: Final = 6
SET_LOADED_WORD: Final = 7
SET_ROOTS_WORD: Final = 8

CRC_POLYNOMIAL: Final = crc32c.POLYNOMIAL
CRC_BYTE_WORD: Final = 15 * 256  # of 16 tables, by the place of a byte among 16, that of the last: one byte's step
CRC_STRIDE_WORD: Final = 16 * 256  # four tables: times x^(8 · (16,384 - 16))
CRC_POWERS_WORD: Final = 20 * 256  # x^(8 · 2^k), k from 0 to 31
CRC_WORDS: Final = CRC_POWERS_WORD + 32

SCRATCH_BYTES: Final = 37 << 10
"""Shared memory of a block for the operation at hand, beside what it declares."""

PACKED_WORDS: Final = abi.SLOT_ARG_COUNT - 1
"""Of a packed slot's arguments: the last word has the slot's position."""


def constants() -> dict[str, int]:
    """Every integer of the ABI and of this module, by name."""
    both = {**vars(abi), **globals()}
    return {name: value for name, value in both.items() if name.isupper() and isinstance(value, int)}


def cuda_header() -> str:
    """``#define UA_NAME value`` for each; values beyond 32 bits as unsigned long long."""
    lines = [f"#define UA_{name} {value}{'u' if value < 1 << 32 else 'ull'}" for name, value in constants().items()]
    return "\n".join(lines) + "\n"

"""CRC32C (Castagnoli) of bytes in memory, and of two neighbours from the sums of each.

A CRC is the remainder of a polynomial over GF(2), here in the reflected form that RFC 3720 and every cloud store use:
bit 31 is the coefficient of x^0. Appending n bytes multiplies by x^(8n), so the sums of two neighbouring stretches
give that of both: ``combine``. The hardware form rests on the same: the crc32 instruction takes three cycles but
starts anew in each, so three stretches are summed at once and joined afterwards, through tables of the factor for
their fixed length.

Which form runs is chosen once, at import, by what Numba compiles for: ``crc32c`` is ``hardware`` or ``software``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from uring_actors.arena.atomics import load8, load64
from uring_actors.hot import hot, intrinsic

Table = np.ndarray[Any, np.dtype[np.int64]]

POLYNOMIAL: Final = 0x82F63B78
_ONES: Final = 0xFFFFFFFF
_LONG: Final = 8192
_SHORT: Final = 256
"""Bytes of each of the three stretches: long ones while there is enough, so that joining costs nothing."""


# ── polynomials ──────────────────────────────────────────────────────────────────────────────────────────────
def multiply(a: int, b: int) -> int:
    """a · b modulo the polynomial."""
    product, bit = 0, 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


def factor(length: int) -> int:
    """x^(8 · length): what appending ``length`` bytes multiplies by."""
    factor, square = 1 << 31, 1 << 23  # x^0 and x^8
    while length:
        if length & 1:
            factor = multiply(square, factor)
        square = multiply(square, square)
        length >>= 1
    return factor


_multiply = hot(multiply)


@hot
def combine(left: int, right: int, right_bytes: int) -> int:
    """The CRC32C of two neighbours, of which the right one has ``right_bytes`` bytes: ``left · factor(right_bytes)``
    plus ``right``, in a microsecond for any length."""
    square = 1 << 23
    while right_bytes > 0:
        if right_bytes & 1:
            left = _multiply(square, left)
        square = _multiply(square, square)
        right_bytes >>= 1
    return left ^ right


def factor_table(factor: int) -> Table:
    """``table[k, b] = factor · (b << 8k)``: four lookups multiply by ``factor``."""
    table = np.zeros((4, 256), np.int64)
    for bit in range(32):
        product = multiply(factor, 1 << bit)
        rows = np.arange(256) >> (bit % 8) & 1 == 1
        table[bit // 8, rows] ^= product
    return table


def of_byte(byte: int) -> int:
    """What one byte contributes, as the last of a word."""
    for _ in range(8):
        byte = byte >> 1 ^ POLYNOMIAL if byte & 1 else byte >> 1
    return byte


def _slices() -> Table:
    """``table[k, b]``: what byte b contributes k bytes before the end of a word (slicing by eight)."""
    table = np.zeros((8, 256), np.int64)
    table[0] = [of_byte(byte) for byte in range(256)]
    for k in range(1, 8):
        table[k] = table[k - 1] >> 8 ^ table[0][table[k - 1] & 0xFF]
    return table


_OVER_LONG = factor_table(factor(_LONG))
_OVER_SHORT = factor_table(factor(_SHORT))
_SLICES = _slices()


# ── the two forms ────────────────────────────────────────────────────────────────────────────────────────────
def _instruction(name: str, bits: int, crc_bits: int) -> Callable[..., int]:
    """The crc32 instruction over ``bits`` of data, as an intrinsic: (crc, data) → crc."""

    def crc32(typingctx: Any, crc: Any, data: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide, narrow = ir.IntType(crc_bits), ir.IntType(bits)
            function = builder.module.declare_intrinsic(name, (), ir.FunctionType(wide, [wide, narrow]))
            given = [
                value if value.type == kind else builder.trunc(value, kind)
                for value, kind in zip(args, (wide, narrow), strict=True)
            ]
            result = builder.call(function, given)
            return result if crc_bits == 64 else builder.zext(result, ir.IntType(64))

        return types.int64(types.int64, types.int64), codegen

    return intrinsic(crc32)


_crc_word = _instruction("llvm.x86.sse42.crc32.64.64", 64, 64)
_crc_byte = _instruction("llvm.x86.sse42.crc32.32.8", 8, 32)


@hot
def _over(table: Table, crc: int) -> int:
    """``crc`` times the table's factor."""
    return table[0, crc & 0xFF] ^ table[1, crc >> 8 & 0xFF] ^ table[2, crc >> 16 & 0xFF] ^ table[3, crc >> 24]


@hot
def _three(crc: int, address: int, length: int) -> tuple[int, int, int]:
    """The unfinished sums of three neighbours of ``length`` bytes each; the first goes on from ``crc``."""
    second = address + length
    third = second + length
    a, b, c = crc, 0, 0
    for i in range(0, length, 8):
        a = _crc_word(a, load64(address + i))
        b = _crc_word(b, load64(second + i))
        c = _crc_word(c, load64(third + i))
    return a, b, c


@hot
def hardware(address: int, length: int) -> int:
    """The CRC32C of ``length`` bytes, by the processor's own instruction (SSE 4.2)."""
    crc = _ONES
    stop = address + length
    while address < stop and address & 7:
        crc = _crc_byte(crc, load8(address))
        address += 1
    while stop - address >= 3 * _LONG:
        a, b, c = _three(crc, address, _LONG)
        crc = _over(_OVER_LONG, _over(_OVER_LONG, a) ^ b) ^ c
        address += 3 * _LONG
    while stop - address >= 3 * _SHORT:
        a, b, c = _three(crc, address, _SHORT)
        crc = _over(_OVER_SHORT, _over(_OVER_SHORT, a) ^ b) ^ c
        address += 3 * _SHORT
    while stop - address >= 8:
        crc = _crc_word(crc, load64(address))
        address += 8
    while address < stop:
        crc = _crc_byte(crc, load8(address))
        address += 1
    return crc ^ _ONES


@hot
def software(address: int, length: int) -> int:
    """The CRC32C of ``length`` bytes, by tables: eight bytes a step."""
    crc = _ONES
    stop = address + length
    while address < stop and address & 7:
        crc = crc >> 8 ^ _SLICES[0, (crc ^ load8(address)) & 0xFF]
        address += 1
    while stop - address >= 8:
        word = load64(address) ^ crc
        crc = (
            _SLICES[7, word & 0xFF]
            ^ _SLICES[6, word >> 8 & 0xFF]
            ^ _SLICES[5, word >> 16 & 0xFF]
            ^ _SLICES[4, word >> 24 & 0xFF]
            ^ _SLICES[3, word >> 32 & 0xFF]
            ^ _SLICES[2, word >> 40 & 0xFF]
            ^ _SLICES[1, word >> 48 & 0xFF]
            ^ _SLICES[0, word >> 56 & 0xFF]
        )
        address += 8
    while address < stop:
        crc = crc >> 8 ^ _SLICES[0, (crc ^ load8(address)) & 0xFF]
        address += 1
    return crc ^ _ONES


def has_instruction(features: str) -> bool:
    """Whether a processor with these features, as LLVM writes them, has x86's crc32 for 64 bits."""
    return {"+crc32", "+sse4.2", "+64bit"} <= set(features.split(","))


# What Numba compiles for: this processor, or that of NUMBA_CPU_NAME.
HARDWARE: Final = has_instruction(cpu_target.target_context.codegen().magic_tuple()[2])
crc32c: Final = hardware if HARDWARE else software
"""The CRC32C of ``length`` bytes at ``address``, for hot functions."""

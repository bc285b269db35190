"""How often each byte value occurs, in memory."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from uring_actors.arena.atomics import load8, load32, load64, store32, store64
from uring_actors.hot import hot, intrinsic

_TABLES: Final = 8
_TABLE_BYTES: Final = 256 * 4


@intrinsic
def _tables(typingctx: Any) -> Any:
    """The address of ``_TABLES`` tables of 256 32-bit words on the calling function's stack; not zeroed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = ir.ArrayType(ir.IntType(64), _TABLES * _TABLE_BYTES // 8)
        return builder.ptrtoint(cgutils.alloca_once(builder, words), ir.IntType(64))

    return types.int64(), codegen


@hot
def _count(table: int, value: int) -> None:
    at = table + ((value & 0xFF) << 2)
    store32(at, load32(at) + 1)


@hot
def count_bytes(address: int, length: int, counts: int) -> None:
    """Store the 256 counts (64-bit words, to ``counts``) of ``length`` bytes, fewer than 2³².

    Eight tables in turns: with one, equal neighbours would wait for each other's store.
    """
    tables = _tables()
    for i in range(0, _TABLES * _TABLE_BYTES, 8):
        store64(tables + i, 0)
    stop = address + length
    while address < stop and address & 7:
        _count(tables, load8(address))
        address += 1
    while stop - address >= 8:
        word = load64(address)
        for k in range(_TABLES):
            _count(tables + k * _TABLE_BYTES, word >> (k << 3))
        address += 8
    while address < stop:
        _count(tables, load8(address))
        address += 1
    for i in range(256):
        total = 0
        for k in range(_TABLES):
            total += load32(tables + k * _TABLE_BYTES + (i << 2))
        store64(counts + (i << 3), total)

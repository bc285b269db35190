"""Atomic words, fences and raw system calls for hot functions, as LLVM intrinsics.

Addresses are int64. A 32-bit load is zero-extended into int64; a store or an operand is truncated. Orders:

* ``load_acquire``/``store_release`` hand over what was written before the store to whoever sees it;
* read-modify-write operations are sequentially consistent;
* ``fence`` is a full barrier (seq_cst). Store, then load of *another* word needs it on both sides: that is
  what the sleeping protocol of ``bell.py`` is made of.

A system call returns its result or −errno, and needs no Python, no errno variable and no GIL.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, empty-body"
from __future__ import annotations

import platform

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from uring_actors.hot import intrinsic

binding.initialize_native_asmparser()  # inline assembly is the system calls' and the pause instruction's way in

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_MACHINE = platform.machine()

FUTEX_WAIT = 0
FUTEX_WAKE = 1
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(_MACHINE, -1)
SYS_PREAD64 = {"x86_64": 17, "aarch64": 67}.get(_MACHINE, -1)
SYS_CLOSE = {"x86_64": 3, "aarch64": 57}.get(_MACHINE, -1)
SYS_CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}.get(_MACHINE, -1)

# (instruction, result register, argument registers: number, then six arguments, clobbers)
_SYSCALL = {
    "x86_64": ("syscall", "={rax},{rax},{rdi},{rsi},{rdx},{r10},{r8},{r9},~{rcx},~{r11},~{memory}"),
    "aarch64": ("svc #0", "={x0},{x8},{x0},{x1},{x2},{x3},{x4},{x5},~{memory}"),
}


def _pointer(builder, address, width):
    return builder.inttoptr(address, width.as_pointer())


@intrinsic
def load_acquire(typingctx, address):
    """The 32-bit word at ``address``; acquire."""

    def codegen(context, builder, signature, args):
        word = builder.load_atomic(_pointer(builder, args[0], _I32), "acquire", 4)
        return builder.zext(word, _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store_release(typingctx, address, value):
    """Store the low 32 bits of ``value`` at ``address``; release."""

    def codegen(context, builder, signature, args):
        word = builder.trunc(args[1], _I32)
        builder.store_atomic(word, _pointer(builder, args[0], _I32), "release", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load32(typingctx, address):
    """The 32-bit word at ``address``, zero-extended; no order (for words that an acquire has handed over)."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.load(_pointer(builder, args[0], _I32), align=4), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store32(typingctx, address, value):
    """Store the low 32 bits of ``value``; no order."""

    def codegen(context, builder, signature, args):
        builder.store(builder.trunc(args[1], _I32), _pointer(builder, args[0], _I32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load64(typingctx, address):
    """The 64-bit word at ``address`` (8-byte aligned) as int64; no order."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[0], _I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def store64(typingctx, address, value):
    """Store a 64-bit word (8-byte aligned); no order."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], _I64), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def load8(typingctx, address):
    """The byte at ``address``, zero-extended; no order."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.load(_pointer(builder, args[0], _I8), align=1), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def store8(typingctx, address, value):
    """Store the low 8 bits of ``value``; no order."""

    def codegen(context, builder, signature, args):
        builder.store(builder.trunc(args[1], _I8), _pointer(builder, args[0], _I8), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def compare_swap(typingctx, address, expected, value):
    """If the 32-bit word equals ``expected``, store ``value``; whether it did. seq_cst."""

    def codegen(context, builder, signature, args):
        result = builder.cmpxchg(
            _pointer(builder, args[0], _I32),
            builder.trunc(args[1], _I32),
            builder.trunc(args[2], _I32),
            "seq_cst",
            "seq_cst",
        )
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def fetch_add(typingctx, address, value):
    """Add to the 32-bit word, wrapping; its former value. seq_cst."""

    def codegen(context, builder, signature, args):
        word = builder.trunc(args[1], _I32)
        old = builder.atomic_rmw("add", _pointer(builder, args[0], _I32), word, "seq_cst")
        return builder.zext(old, _I64)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def fence(typingctx):
    """A full barrier (seq_cst)."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pause(typingctx):
    """Tell the core that this is a spinning loop."""

    def codegen(context, builder, signature, args):
        instruction = "pause" if _MACHINE == "x86_64" else "yield"
        builder.asm(ir.FunctionType(ir.VoidType(), []), instruction, "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


def _emit_syscall(builder, args):
    instruction, constraint = _SYSCALL[_MACHINE]
    return builder.asm(ir.FunctionType(_I64, [_I64] * 7), instruction, constraint, args, side_effect=True)


@intrinsic
def syscall(typingctx, number, a, b, c, d, e, f):
    """A raw system call: its result, or −errno."""

    def codegen(context, builder, signature, args):
        return _emit_syscall(builder, list(args))

    return types.int64(*[types.int64] * 7), codegen


def _timespec(builder, nanoseconds):
    """A ``struct timespec`` on the stack; its address."""
    spec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
    zero, one = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.IntType(32), 1)
    billion = ir.Constant(_I64, 1_000_000_000)
    builder.store(builder.sdiv(nanoseconds, billion), builder.gep(spec, [zero, zero]))
    builder.store(builder.srem(nanoseconds, billion), builder.gep(spec, [zero, one]))
    return builder.ptrtoint(spec, _I64)


@intrinsic
def futex_wait(typingctx, address, expected, timeout_ns):
    """Sleep while the word equals ``expected``, at most ``timeout_ns``; futex(2), shared between processes."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(_I64, 0)
        number, operation = ir.Constant(_I64, SYS_FUTEX), ir.Constant(_I64, FUTEX_WAIT)
        spec = _timespec(builder, args[2])
        return _emit_syscall(builder, [number, args[0], operation, args[1], spec, zero, zero])

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def clock_ns(typingctx):
    """CLOCK_MONOTONIC in nanoseconds."""

    def codegen(context, builder, signature, args):
        spec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        address, zero = builder.ptrtoint(spec, _I64), ir.Constant(_I64, 0)
        number, monotonic = ir.Constant(_I64, SYS_CLOCK_GETTIME), ir.Constant(_I64, 1)
        _emit_syscall(builder, [number, monotonic, address, zero, zero, zero, zero])
        i32 = ir.IntType(32)
        seconds = builder.load(builder.gep(spec, [ir.Constant(i32, 0), ir.Constant(i32, 0)]))
        nanoseconds = builder.load(builder.gep(spec, [ir.Constant(i32, 0), ir.Constant(i32, 1)]))
        return builder.add(builder.mul(seconds, ir.Constant(_I64, 1_000_000_000)), nanoseconds)

    return types.int64(), codegen

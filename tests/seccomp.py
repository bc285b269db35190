"""A seccomp filter that makes chosen system calls fail, for a child process (it can't be taken off again).

    seccomp.deny([425, 426, 427], errno.EPERM)      # io_uring_setup, _enter, _register

Source: seccomp(2), linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

IO_URING = (425, 426, 427)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER = 0  # offset in struct seccomp_data


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("true", ctypes.c_uint8),
        ("false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def deny(numbers: Sequence[int] = IO_URING, error: int = errno.EPERM) -> None:
    """From now on, this thread's (and its children's) system calls ``numbers`` fail with ``error``."""
    code = [(_LOAD_WORD, 0, 0, _NUMBER)]
    code += [(_JUMP_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | error)]
    instructions = (_Instruction * len(code))(*[_Instruction(*line) for line in code])
    program = _Program(len(code), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    for args in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0),
    ):
        if libc.prctl(*args):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({args[0]}): {os.strerror(number)}")

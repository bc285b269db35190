"""Runs a command under a container runtime's seccomp profile: ``python -m tests.sandbox PROFILE COMMAND…``.

What runc does with the profile, through the same library (libseccomp): the default action, then each entry for this
architecture. Names that the library does not know are left out, as runc leaves them out.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_COMPARE = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN = -1  # __NR_SCMP_ERROR


class _Argument(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint),
        ("compare", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


def library() -> Any:
    """libseccomp; None where it isn't there."""
    name = ctypes.util.find_library("seccomp") or "libseccomp.so.2"
    try:
        found = ctypes.CDLL(name, use_errno=True)
    except OSError:
        return None
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Argument),
    ]  # fmt: skip
    found.seccomp_load.argtypes = [ctypes.c_void_p]
    return found


def _action(entry: Mapping[str, Any], default: int = errno.EPERM) -> int:
    return _ALLOW if entry["action"] == "SCMP_ACT_ALLOW" else _ERRNO | int(entry.get("errnoRet", default))


def enter(profile: Mapping[str, Any]) -> None:
    """Put this process (and its children) under the profile."""
    seccomp = library()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    default = _ERRNO | profile["defaultErrnoRet"]
    context = seccomp.seccomp_init(ctypes.c_uint32(default))
    for entry in profile["syscalls"]:
        if _action(entry) == default:
            continue
        arguments = [
            _Argument(a["index"], _COMPARE[a["op"]], a["value"], a["valueTwo"]) for a in entry.get("args", [])
        ]
        array = (_Argument * max(1, len(arguments)))(*arguments)
        for name in entry["names"]:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            if number == _UNKNOWN:
                continue
            done = seccomp.seccomp_rule_add_array(context, _action(entry), number, len(arguments), array)
            if done:
                raise OSError(-done, f"seccomp_rule_add({name}): {os.strerror(-done)}")
    done = seccomp.seccomp_load(context)
    if done:
        raise OSError(-done, f"seccomp_load: {os.strerror(-done)}")


def main(arguments: Sequence[str]) -> None:
    profile, *command = arguments
    enter(json.loads(Path(profile).read_text()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

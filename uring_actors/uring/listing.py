"""Directories listed and their files looked at without the GIL, by system calls: getdents64(2), newfstatat(2).

A directory is read whole into a buffer (``read_entries``), its entries are sorted by name (``index_entries``), and
files become rows of columns (``look_at``). ``plan.py`` decides everything else. A file costs one system call, the
one that tells its size; what getdents64 says to be a directory or a link costs none.
"""

from __future__ import annotations

import platform
import stat
from typing import Any, Final

import numpy as np

from uring_actors.arena.atomics import load8, load32, load64, syscall
from uring_actors.hot import hot, lean

Words = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_X86: Final = platform.machine() == "x86_64"
_SYS_GETDENTS64: Final = 217 if _X86 else 61
_SYS_NEWFSTATAT: Final = 262 if _X86 else 79
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
# struct stat: st_dev, st_ino, st_size and st_mtim lie alike on both machines
_ST_INO: Final = 8
_ST_MODE: Final = 24 if _X86 else 16
_ST_SIZE: Final = 48
_ST_MTIME: Final = 88
_ST_MTIME_NS: Final = 96
STAT_BYTES: Final = 256

# struct linux_dirent64: d_ino, d_off, d_reclen (16), d_type, then the name with its NUL
_D_RECLEN: Final = 16
_D_TYPE: Final = 18
_D_NAME: Final = 19
NAME_MAX: Final = 255
_PATH_MOST: Final = 4095  # what a system call takes
_ENAMETOOLONG: Final = 36
LEAST_ROOM: Final = 4096
"""Bytes that ``read_entries`` wants to have free: more than one entry."""

DT_UNKNOWN: Final = 0
DT_FIFO: Final = 1
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_BLK: Final = 6
DT_REG: Final = 8
DT_LNK: Final = 10
DT_SOCK: Final = 12
"""A mode's type is one of these shifted by 12 bits."""

# ``index_entries``: one row an entry
E_NAME: Final = 0  # offset of the name in the buffer
E_LENGTH: Final = 1
E_TYPE: Final = 2  # DT_*
E_KEY: Final = 3  # the name's first seven bytes, for sorting
ENTRY_WORDS: Final = 4

LEFT_OUT: Final = -1  # as an E_TYPE: the caller does not want it
TOO_LARGE: Final = 1 << 20  # ``look_at``: a file above the limit

# columns of files
F_SIZE: Final = 0
F_DEVICE: Final = 1
F_INODE: Final = 2
F_PATH: Final = 3  # where the path ends in the blob, its NUL included
F_MTIME: Final = 4  # in nanoseconds
FILE_WORDS: Final = 5


@lean
def read_entries(fd: int, buffer: int, filled: int, room: int) -> tuple[int, int]:
    """Read on until the directory's end, or until less than LEAST_ROOM of ``room`` bytes is free. How many bytes are
    filled; and 0 at the end, 1 for want of room, or −errno."""
    while room - filled >= LEAST_ROOM:
        count = syscall(_SYS_GETDENTS64, fd, buffer + filled, room - filled, 0, 0, 0)
        if count <= 0:
            return filled, count
        filled += count
    return filled, 1


@lean
def count_entries(buffer: int, filled: int) -> int:
    """How many entries there are, ``.`` and ``..`` included."""
    count, at = 0, 0
    while at < filled:
        at += load8(buffer + at + _D_RECLEN) | load8(buffer + at + _D_RECLEN + 1) << 8
        count += 1
    return count


@lean
def _is_dots(name: int) -> bool:
    if load8(name) != 46:
        return False
    second = load8(name + 1)
    return second == 0 or (second == 46 and load8(name + 2) == 0)


@lean
def _before(buffer: int, entries: Words, a: int, b: int) -> bool:
    """Whether entry ``a``'s name sorts before entry ``b``'s, byte by byte."""
    if entries[a, E_KEY] != entries[b, E_KEY]:
        return bool(entries[a, E_KEY] < entries[b, E_KEY])
    first, second = buffer + entries[a, E_NAME], buffer + entries[b, E_NAME]
    for i in range(NAME_MAX + 1):
        x, y = load8(first + i), load8(second + i)
        if x != y:
            return x < y
        if x == 0:
            return False
    return False


@lean
def _sift(buffer: int, entries: Words, order: Words, top: int, count: int) -> None:
    moved = order[top]
    while True:
        child = 2 * top + 1
        if child >= count:
            break
        if child + 1 < count and _before(buffer, entries, order[child], order[child + 1]):
            child += 1
        if not _before(buffer, entries, moved, order[child]):
            break
        order[top] = order[child]
        top = child
    order[top] = moved


@lean
def index_entries(buffer: int, filled: int, entries: Words, order: Words) -> int:
    """Describe every entry but ``.`` and ``..`` in ``entries``, and put their numbers by name into ``order``; how
    many. Both have room for ``count_entries``."""
    count, at = 0, 0
    while at < filled:
        name = at + _D_NAME
        if not _is_dots(buffer + name):
            length, key = 0, 0
            while True:
                byte = load8(buffer + name + length)
                if byte == 0:
                    break
                if length < 7:
                    key |= byte << (8 * (6 - length))
                length += 1
            entries[count, E_NAME] = name
            entries[count, E_LENGTH] = length
            entries[count, E_TYPE] = load8(buffer + at + _D_TYPE)
            entries[count, E_KEY] = key
            order[count] = count
            count += 1
        at += load8(buffer + at + _D_RECLEN) | load8(buffer + at + _D_RECLEN + 1) << 8
    for top in range(count // 2 - 1, -1, -1):  # heap sort: no memory, no bad case
        _sift(buffer, entries, order, top, count)
    for last in range(count - 1, 0, -1):
        order[0], order[last] = order[last], order[0]
        _sift(buffer, entries, order, 0, last)
    return count


@hot
def look_at(
    fd: int,
    buffer: int,
    entries: Words,
    order: Words,
    first: int,
    stop: int,
    prefix: Bytes,
    largest: int,
    scratch: int,
    files: Words,
    used: int,
    paths: Bytes,
    found: Words,
    enough_bytes: int,
) -> tuple[int, int]:
    """Look at entries ``order[first:stop]`` of the directory ``fd`` until ``files`` or ``paths`` (the paths, joined)
    is full or the files added have ``enough_bytes``; where it stopped, and how many rows ``files`` has now.

    Regular files of at most ``largest`` bytes are added to ``files``, ``used`` rows of which are taken, each path
    being ``prefix`` and the name. ``found[k]`` becomes 0 for them, and for entry ``order[k]`` else: its DT_*,
    LEFT_OUT, TOO_LARGE, or what ``errno_of`` takes.
    """
    filled = files[used - 1, F_PATH] if used > 0 else 0
    total = 0
    for k in range(first, stop):
        entry = order[k]
        kind = entries[entry, E_TYPE]
        if kind != DT_REG and kind != DT_UNKNOWN:
            found[k] = kind
            continue
        length = entries[entry, E_LENGTH]
        if used == files.shape[0] or filled + prefix.size + length + 1 > paths.size or total >= enough_bytes:
            return k, used
        if prefix.size + length > _PATH_MOST:
            found[k] = -_ENAMETOOLONG - 1
            continue
        name = buffer + entries[entry, E_NAME]
        flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
        code = syscall(_SYS_NEWFSTATAT, fd, name, scratch, flags, 0, 0)
        if code < 0:
            found[k] = code - 1  # so that EPERM is not LEFT_OUT
            continue
        kind = (load32(scratch + _ST_MODE) & 0xF000) >> 12
        size = load64(scratch + _ST_SIZE)
        if kind != DT_REG:
            found[k] = kind
            continue
        if size > largest:
            found[k] = TOO_LARGE
            continue
        found[k] = 0
        for i in range(prefix.size):
            paths[filled + i] = prefix[i]
        filled += prefix.size
        for i in range(length + 1):  # with its NUL
            paths[filled + i] = load8(name + i)
        filled += length + 1
        files[used, F_SIZE] = size
        files[used, F_DEVICE] = load64(scratch)
        files[used, F_INODE] = load64(scratch + _ST_INO)
        files[used, F_PATH] = filled
        files[used, F_MTIME] = load64(scratch + _ST_MTIME) * 1_000_000_000 + load64(scratch + _ST_MTIME_NS)
        used += 1
        total += size
    return stop, used


def errno_of(found: int) -> int:
    """The errno that ``look_at`` left as ``found``, 0 where it left none."""
    return -found - 1 if found < LEFT_OUT else 0


assert stat.S_IFMT(stat.S_IFREG) == DT_REG << 12

"""``@hot``: a Numba function that releases the GIL and is cached on disk.

Numba's own cache is keyed by the file that holds the function, so it misses a change in another module whose
constants or helpers were compiled in (it would then run with yesterday's layout). Here the cache directory's name
is a digest of every module that hot functions may live in or take constants from (``_SOURCES``): any change
there means a new, empty directory.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_SOURCES = ("hot.py", "arena", "uring", "megakernel", "ops")


def _digest() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for name in _SOURCES:
        root = _PACKAGE / name
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def cache_directory() -> str:
    """Where compiled loops are kept: under XDG_CACHE_HOME or ~/.cache, else under the temporary directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for root in (base, os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")):
        path = os.path.join(root, "uring_actors", _digest())
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError:
            continue
        # Code is loaded from here: a directory that another user could write to is not taken.
        if os.stat(path).st_uid == os.getuid() and os.access(path, os.W_OK):
            return path
    return ""


def hot(function: F) -> F:
    """Compile at the first call; GIL-free, so pass addresses and numbers, never objects.

    Words are int64 throughout (addresses fit; counters are masked to 32 bits): a mix of int64 and uint64
    silently becomes float64 in Numba.
    """
    parts = function.__module__.split(".")
    if parts[0] != "uring_actors" or parts[1] not in _SOURCES:
        raise TypeError(f"a hot function must live in one of {_SOURCES}, not in {function.__module__}")
    saved, config.CACHE_DIR = config.CACHE_DIR, cache_directory()
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = saved
    return cast(F, compiled)

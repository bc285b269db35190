"""``@hot`` and ``@lean``: a Numba function that releases the GIL and is cached on disk; ``@callback``: one for C;
``@intrinsic``: what they may call beside each other, in LLVM's own instructions.

Numba's own cache is keyed by the file that holds the function, so it misses a change in another module whose
constants or helpers were compiled in (it would then run with yesterday's layout). Here the cache directory's name
is a digest of every module that hot functions may live in or take constants from (``_SOURCES``): any change
there means a new, empty directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import extending
from numba.core import config

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_SOURCES = ("hot.py", "arena", "uring", "megakernel", "ops", "results")


def _digest() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for name in _SOURCES:
        root = _PACKAGE / name
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _private(path: str) -> bool:
    """Whether ``path`` is (or can be made) a directory that nobody but this user can put code in."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


@functools.cache
def cache_directory() -> str:
    """Where compiled loops are kept."""
    return private_directory(_digest())


def private_directory(name: str) -> str:
    """``name`` among what this package keeps: under XDG_CACHE_HOME or ~/.cache, else under the temporary directory.

    Code is loaded from here, so no directory on the way from the root that is ours may be another user's to write
    to: whoever can write to a parent can exchange the child. Empty where no such place can be had.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    roots = [os.path.join(os.path.realpath(tempfile.gettempdir()), f"cache-{os.geteuid()}")]
    if os.path.isabs(home):  # it isn't where the user has no home: "~/.cache"
        roots.insert(0, os.path.realpath(home))
    for root in roots:
        ours = os.path.join(root, "uring_actors")
        path = os.path.join(ours, name)
        if _private(root) and _private(ours) and _private(path) and os.access(path, os.W_OK | os.X_OK):
            return path
    return ""


def hot(function: F) -> F:
    """Compile at the first call; GIL-free, so pass addresses and numbers, never objects.

    Words are int64 throughout (addresses fit; counters are masked to 32 bits): a mix of int64 and uint64
    silently becomes float64 in Numba.
    """
    return _compiled(function)


def lean(function: F) -> F:
    """``hot`` without reference counts: its arrays are borrowed from its caller, who holds them until it returns, and
    it can make none. Counting them is an atomic operation for each array at every call from one hot function to
    another, which was a fifth of what a 4 KiB read costs."""
    return _compiled(function, _nrt=False)


def callback(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function to be called back by a C library: ``address`` is what the library gets. It is called in
    whatever thread, without the GIL, and can't raise. ``result``, ``arguments``: Numba types, as C has them."""

    def compiled(function: Callable[..., Any]) -> Any:
        with _cached(function) as cached:
            return numba.cfunc(result(*arguments), cache=cached, error_model="numpy", _nrt=False)(function)

    return compiled


def intrinsic(function: Callable[..., Any]) -> Callable[..., int]:
    """``numba.extending.intrinsic``, as hot functions see what it makes: a function of words, without the first
    parameter."""
    return cast(Callable[..., int], extending.intrinsic(function))


def _compiled(function: F, **options: bool) -> F:
    with _cached(function) as cached:
        compiled = numba.njit(nogil=True, cache=cached, error_model="numpy", **options)(function)
    return cast(F, compiled)


@contextlib.contextmanager
def _cached(function: Callable[..., Any]) -> Iterator[bool]:
    """Meanwhile Numba caches in our directory. False where there is none, and nothing is cached: Numba's own choice,
    __pycache__, doesn't see what changed elsewhere."""
    parts = function.__module__.split(".")
    if len(parts) < 2 or parts[0] != "uring_actors" or parts[1] not in _SOURCES:
        raise TypeError(f"a hot function must live in one of {_SOURCES}, not in {function.__module__}")
    directory = cache_directory()
    saved, config.CACHE_DIR = config.CACHE_DIR, directory
    try:
        yield bool(directory)
    finally:
        config.CACHE_DIR = saved

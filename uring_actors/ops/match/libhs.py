"""libhs, the C library of Hyperscan and of Vectorscan (its fork with the same interface), called straight.

Databases are compiled here and scanned by address in compiled loops (``megakernel/match.py``). The Python binding
does not allow that: each of its scans and matches passes through Python and the GIL. ``find`` takes the system's
``libhs.so.5`` (Debian: libhyperscan5), else the one that the package ``vectorgrep`` brings. The interface is that of
hs_compile.h and hs_runtime.h, stable since version 5. Standard library only: ``doctor`` uses it as well.

A ``Database`` and a ``Scratch`` own what libhs allocated and free it with themselves.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from importlib import util
from pathlib import Path

_SONAME = "libhs.so.5"
_PACKAGE = "vectorgrep"
_MODE_BLOCK = 1
FLAG_DOTALL = 2
FLAG_SINGLEMATCH = 8
_ERRORS = {
    -1: "a parameter is invalid",
    -2: "out of memory",
    -3: "the scan was ended by its callback",
    -4: "the pattern compiler failed",
    -5: "the database is of another version",
    -6: "the database is for another processor",
    -7: "the database is for another mode",
    -8: "memory is not aligned as it must be",
    -9: "the allocator gave memory that is not aligned",
    -10: "the scratch is in use",
    -11: "this processor is not supported",
    -12: "a scratch is missing",
    -13: "an unexpected internal error",
}


class HsError(Exception):
    """libhs refused a call; ``code`` is its own (HS_INVALID and so on)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.message, self.code = message, code

    def __str__(self) -> str:
        return self.message


def error_text(code: int) -> str:
    """What a code of libhs means."""
    return f"{_ERRORS.get(code, 'unknown error')} (libhs {code})"


class _CompileError(ctypes.Structure):
    """hs_compile_error_t."""

    _fields_ = (("message", ctypes.c_char_p), ("expression", ctypes.c_int))


class _Platform(ctypes.Structure):
    """hs_platform_info_t."""

    _fields_ = (
        ("tune", ctypes.c_uint),
        ("cpu_features", ctypes.c_ulonglong),
        ("reserved1", ctypes.c_ulonglong),
        ("reserved2", ctypes.c_ulonglong),
    )


class LibHs:
    """A loaded libhs. ``version`` is its own text; ``scan`` the address of hs_scan, for compiled callers."""

    def __init__(self, path: str) -> None:
        """Raises OSError where ``path`` is no such library, HsError where this processor is too old for it."""
        library = ctypes.CDLL(path)
        try:
            library.hs_version.restype = ctypes.c_char_p
            self.version = bytes(library.hs_version()).decode("ascii", "replace")
            # Taken by address: a processor-specific symbol is resolved by looking it up.
            self.scan = ctypes.cast(library.hs_scan, ctypes.c_void_p).value or 0
            valid = library.hs_valid_platform()
        except AttributeError as error:
            raise OSError(f"{path} is not libhs: {error}") from error
        if valid != 0:
            raise HsError(error_text(valid), valid)
        self.path = path
        self._library = library

    def platform(self) -> bytes:
        """What databases that are compiled here depend on, besides the version: processor and tuning."""
        info = _Platform()
        self._check(self._library.hs_populate_platform(ctypes.byref(info)))
        return bytes(info)

    def compile(
        self, expressions: Sequence[bytes], ids: Sequence[int], flags: Sequence[int] | None = None
    ) -> Database:
        """One database (block mode) for all expressions; ``flags`` is FLAG_DOTALL for all by default.

        Raises HsError, whose message says what is wrong.
        """
        count = len(expressions)
        sources = (ctypes.c_char_p * count)(*expressions)
        all_flags = (ctypes.c_uint * count)(*(flags or [FLAG_DOTALL] * count))
        numbers = (ctypes.c_uint * count)(*ids)
        handle, failure = ctypes.c_void_p(), ctypes.POINTER(_CompileError)()
        code = self._library.hs_compile_multi(
            sources, all_flags, numbers, count, _MODE_BLOCK, None, ctypes.byref(handle), ctypes.byref(failure)
        )
        if code != 0:
            message = failure.contents.message.decode("utf-8", "replace") if failure else error_text(code)
            self._library.hs_free_compile_error(failure)
            raise HsError(message, code)
        return Database(self._library, handle)

    def deserialize(self, data: bytes) -> Database:
        """A database that ``Database.serialize`` gave. Raises HsError where it is damaged, or of another version or
        processor."""
        handle = ctypes.c_void_p()
        self._check(self._library.hs_deserialize_database(data, ctypes.c_size_t(len(data)), ctypes.byref(handle)))
        return Database(self._library, handle)

    @staticmethod
    def _check(code: int) -> None:
        if code != 0:
            raise HsError(error_text(code), code)


class Database:
    """A compiled database. Immutable: any number of threads may scan with it, each with a scratch of its own."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle
        self.address: int = handle.value or 0
        weakref.finalize(self, library.hs_free_database, handle).atexit = False

    @property
    def size(self) -> int:
        """Bytes in memory."""
        size = ctypes.c_size_t()
        LibHs._check(self._library.hs_database_size(self._handle, ctypes.byref(size)))
        return size.value

    def serialize(self) -> bytes:
        """As bytes, for ``LibHs.deserialize``."""
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        LibHs._check(self._library.hs_serialize_database(self._handle, ctypes.byref(data), ctypes.byref(size)))
        try:
            return ctypes.string_at(data, size.value)
        finally:
            _free(data)

    def scratch(self) -> Scratch:
        """Working memory for one thread's scans of this database."""
        handle = ctypes.c_void_p()
        LibHs._check(self._library.hs_alloc_scratch(self._handle, ctypes.byref(handle)))
        return Scratch(self._library, handle)


class Scratch:
    """Working memory of one thread: a second scan with it while one runs fails."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self.address: int = handle.value or 0
        weakref.finalize(self, library.hs_free_scratch, handle).atexit = False


def _free(data: ctypes.c_void_p) -> None:
    """What libhs allocated for its caller comes from malloc."""
    ctypes.CDLL(None).free(data)


def candidates() -> list[str]:
    """Where a libhs may be, best first: the system's own is tuned for the processors that its makers still sell."""
    spec = util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations or [] if spec is not None else []
    bundled = [str(path) for folder in folders for path in sorted(Path(folder, "lib").glob(f"{_SONAME}.*"))]
    return [_SONAME, *bundled]


@cache
def find() -> LibHs | None:
    """The first libhs that works here; None where there is none."""
    for path in candidates():
        try:
            return LibHs(path)
        except (OSError, HsError):
            continue
    return None

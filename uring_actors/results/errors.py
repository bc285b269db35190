"""What could not be scanned: failures (they make the exit status 2) and what was skipped on purpose.

A ``Failure`` is something that should have been scanned and was not, or not whole: an unreadable file, a
directory without permission, an I/O error. A ``Skipped`` is something that a scan leaves out by its rules: a
FIFO, a device node, a symbolic link. Both are small values that any part of the pipeline may make; the tables
are what the user sees as ``scan.errors`` and ``scan.skipped``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from uring_actors.errors import UringActorsError, errno_name
from uring_actors.results.arrays import array

ERROR_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("device", pa.string()),
        pa.field("node", pa.string()),
        pa.field("errno", pa.int32()),
        pa.field("error", pa.string()),
        pa.field("message", pa.string(), nullable=False),
    ]
)
"""One row a failure. ``offset``: bytes from the file's start, null where the whole path failed. ``error``:
the name of ``errno`` (``"EIO"``), or another short name where no system call failed."""

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that should have been scanned and was not, or not whole. ``message`` says what was tried."""

    path: bytes
    message: str
    errno: int | None = None
    offset: int | None = None
    device: str | None = None
    node: str | None = None
    error: str | None = None
    """A short name; that of ``errno`` where none is given."""

    def __post_init__(self) -> None:
        if self.error is None and self.errno is not None:
            object.__setattr__(self, "error", errno_name(self.errno))

    @classmethod
    def from_error(cls, error: UringActorsError, *, path: bytes) -> Failure:
        """What ``error`` says, as a row; ``path`` stands in where the error names none."""
        return cls(
            path=error.path if error.path is not None else path,
            message=f"{error.message}. {error.fix}" if error.fix else error.message,
            errno=error.errno,
            offset=error.offset,
            device=error.device,
            node=error.node,
            error=None if error.errno is not None else type(error).__name__,
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is left out by the rules; ``reason`` says which."""

    path: bytes
    reason: str


def errors_table(failures: Iterable[Failure]) -> pa.Table:
    """``failures``, in their order, as a table of ``ERROR_SCHEMA``."""
    return _table(list(failures), ERROR_SCHEMA)


def skipped_table(skipped: Iterable[Skipped]) -> pa.Table:
    """``skipped``, in their order, as a table of ``SKIPPED_SCHEMA``."""
    return _table(list(skipped), SKIPPED_SCHEMA)


def _table(rows: list[Failure] | list[Skipped], schema: pa.Schema) -> pa.Table:
    columns = [array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)

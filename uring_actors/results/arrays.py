"""``pyarrow.array`` for the columns that rows have.

A process's first ``pyarrow.array`` imports pandas where that is installed: half a second, while the first rows wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NUMBERS: Final[dict[pa.DataType, Any]] = {
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}
_OFFSETS: Final[dict[pa.DataType, Any]] = {
    pa.binary(): np.int32,
    pa.string(): np.int32,
    pa.large_binary(): np.int64,
    pa.large_string(): np.int64,
}


def array(values: Any, kind: pa.DataType, *, null: NDArray[np.bool_] | None = None) -> pa.Array:
    """``values`` as an Arrow array of type ``kind``: numbers, bool, or bytes and str for binary and string types.

    In a sequence None is null; ``null`` says of each number of a NumPy array whether it is.

    Raises OverflowError where the bytes are too many for the type's offsets.
    """
    if kind in _NUMBERS:
        if not isinstance(values, np.ndarray):
            values, null = _without_none(list(values), 0)
        data = np.ascontiguousarray(values, _NUMBERS[kind])
        return pa.Array.from_buffers(kind, len(data), [_validity(null), pa.py_buffer(data)])
    if kind == pa.bool_():
        values, null = _without_none(list(values), False)
        return pa.Array.from_buffers(kind, len(values), [_validity(null), _bits(np.array(values, np.bool_))])
    texts, null = _without_none(list(values), b"")
    parts = [text.encode() if isinstance(text, str) else text for text in texts]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    width = _OFFSETS[kind]
    if offsets[-1] > np.iinfo(width).max:
        raise OverflowError(f"{offsets[-1]} bytes don't fit an array of type {kind}")
    buffers = [_validity(null), pa.py_buffer(offsets.astype(width)), pa.py_buffer(b"".join(parts))]
    return pa.Array.from_buffers(kind, len(parts), buffers)


def scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """``pyarrow.scalar``, as ``array``."""
    return array([value], kind)[0]


def values_of(column: pa.Array) -> NDArray[Any]:
    """Numbers as NumPy has them; not a copy. Where ``nulls_of`` says null, Arrow leaves undefined what is there."""
    values: NDArray[Any] = np.frombuffer(column.buffers()[1] or b"", _NUMBERS[column.type])
    return values[column.offset : column.offset + len(column)]


def nulls_of(column: pa.Array) -> NDArray[np.bool_]:
    """Of each value whether it is null."""
    valid = column.buffers()[0]
    if valid is None:
        return np.zeros(len(column), np.bool_)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), count=column.offset + len(column), bitorder="little")
    null: NDArray[np.bool_] = bits[column.offset :] == 0
    return null


def _without_none(values: list[Any], filler: Any) -> tuple[Sequence[Any], NDArray[np.bool_] | None]:
    if None not in values:
        return values, None
    null = np.array([value is None for value in values])
    return [filler if value is None else value for value in values], null


def _validity(null: NDArray[np.bool_] | None) -> Any:
    """Arrow's bitmap; None where nothing is null."""
    if null is None or not null.any():
        return None
    return _bits(~null)


def _bits(flags: NDArray[np.bool_]) -> Any:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))

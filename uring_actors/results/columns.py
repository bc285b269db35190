"""Columns turned into bytes as wholes: what the line formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from uring_actors.results.arrays import array, scalar


def joined(*parts: pa.Array | bytes) -> pa.Array:
    """The parts joined row by row, as a large_binary array: a batch's text may be larger than 2 GiB."""
    columns = [
        scalar(part, pa.large_binary()) if isinstance(part, bytes) else part.cast(pa.large_binary()) for part in parts
    ]
    return pc.binary_join_element_wise(*columns, scalar(b"", pa.large_binary()))


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def numbers(column: pa.Array, unknown: str) -> pa.Array:
    """Decimal; ``unknown`` for null, and for what is no finite number."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, scalar(None, column.type))
    return pc.fill_null(column.cast(pa.large_string()), scalar(unknown, pa.large_string()))


def number_lists(column: pa.Array) -> pa.Array:
    """The numbers of each list (none of them null), with commas between them."""
    size, values = column.type.list_size, column.flatten().cast(pa.string())
    ends = array(range(0, (len(column) + 1) * size, size), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(ends, values), ",")


def mapped(column: pa.Array, change: Callable[[Any], bytes]) -> pa.Array:
    """``change`` of each distinct value, in the values' places."""
    coded = pa.types.is_dictionary(column.type)
    encoded = column if coded else column.dictionary_encode(null_encoding="encode")
    changed = [change(value) for value in encoded.dictionary.to_pylist()]
    return array(changed, pa.large_binary()).take(encoded.indices)

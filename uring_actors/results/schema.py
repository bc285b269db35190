"""The columns of the rows that a scan yields."""

from __future__ import annotations

import pyarrow as pa

MATCH_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("pattern", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("column", pa.int64()),
        pa.field("match", pa.binary(), nullable=False),
    ]
)

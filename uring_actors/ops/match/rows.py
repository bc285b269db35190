"""The shapes that matches have on their way: ``Marked`` (places relative to an extent), ``Rows`` (absolute).

Arrays of one length, a match each. Match bytes lie joined in ``data``, match k in ``data[offsets[k]:offsets[k+1]]``.
Those of unbounded patterns, mostly a handful, come as plain tuples (``Row``).
Everything here owns its memory: nothing points into a data slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from uring_actors.ops.match.newlines import Bytes, Ints, copy_ranges


class Row(NamedTuple):
    """One match as ``Rows`` has it."""

    pattern: int
    start: int
    end: int
    line: int
    column: int
    text: bytes | memoryview


@dataclass(slots=True, eq=False)
class Marked:
    """Matches in the order of (start, pattern), with newlines counted from a common origin.

    ``start`` and ``end`` are file offsets. ``newlines`` counts those between the origin and ``start``;
    ``newline`` is the file offset of the last of them, or NO_NEWLINE.
    """

    pattern: NDArray[np.int32]
    start: Ints
    end: Ints
    newlines: Ints
    newline: Ints
    offsets: Ints
    data: Bytes

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: NDArray[np.intp]) -> Marked:
        """The rows of ``index``, in its order."""
        first = self.offsets[:-1][index]
        offsets, data = copy_ranges(self.data, first, self.offsets[1:][index])
        return Marked(
            self.pattern[index],
            self.start[index],
            self.end[index],
            self.newlines[index],
            self.newline[index],
            offsets,
            data,
        )

    @staticmethod
    def merge(parts: Sequence[Marked]) -> Marked:
        """All of the parts' rows, in order again."""
        whole = Marked(
            np.concatenate([p.pattern for p in parts]),
            np.concatenate([p.start for p in parts]),
            np.concatenate([p.end for p in parts]),
            np.concatenate([p.newlines for p in parts]),
            np.concatenate([p.newline for p in parts]),
            *_join(parts),
        )
        return whole.take(in_order(whole.start, whole.pattern))


@dataclass(slots=True, eq=False)
class Rows:
    """Settled matches of one file. ``line`` and ``column`` count from 1; 0 stands for unknown (null)."""

    pattern: NDArray[np.int32]
    start: Ints
    end: Ints
    line: Ints
    column: Ints
    offsets: Ints
    data: Bytes

    def __len__(self) -> int:
        return len(self.start)

    @staticmethod
    def of(rows: Sequence[Row]) -> Rows:
        """The same as arrays; at least one."""
        pattern, start, end, line, column, text = zip(*rows, strict=True)
        return Rows(
            np.array(pattern, np.int32),
            np.array(start, np.int64),
            np.array(end, np.int64),
            np.array(line, np.int64),
            np.array(column, np.int64),
            *_joined(text),
        )

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """The parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return Rows(
            np.concatenate([p.pattern for p in parts]),
            np.concatenate([p.start for p in parts]),
            np.concatenate([p.end for p in parts]),
            np.concatenate([p.line for p in parts]),
            np.concatenate([p.column for p in parts]),
            *_join(parts),
        )


def _joined(texts: Sequence[bytes | memoryview]) -> tuple[Ints, Bytes]:
    offsets = np.array([0, *accumulate(map(len, texts))], np.int64)
    return offsets, np.frombuffer(texts[0] if len(texts) == 1 else b"".join(texts), np.uint8)


def _join(parts: Sequence[Marked] | Sequence[Rows]) -> tuple[Ints, Bytes]:
    ends = []
    total = 0
    for part in parts:
        ends.append(part.offsets[1:] + total)
        total += int(part.offsets[-1])
    data = np.concatenate([p.data for p in parts])
    data.flags.writeable = False
    return np.concatenate([np.zeros(1, np.int64), *ends]), data


def in_order(start: Ints, pattern: Ints | NDArray[np.int32]) -> NDArray[np.intp]:
    """The permutation that sorts by (start, pattern); no two matches have both in common."""
    return np.lexsort((pattern, start))


NO_INTS: Ints = np.zeros(0, np.int64)
NO_PATTERNS: NDArray[np.int32] = np.zeros(0, np.int32)
NO_BYTES: Bytes = np.zeros(0, np.uint8)
NO_BYTES.flags.writeable = False
_ZERO: Ints = np.zeros(1, np.int64)

NO_MARKED = Marked(NO_PATTERNS, NO_INTS, NO_INTS, NO_INTS, NO_INTS, _ZERO, NO_BYTES)
NO_ROWS = Rows(NO_PATTERNS, NO_INTS, NO_INTS, NO_INTS, NO_INTS, _ZERO, NO_BYTES)

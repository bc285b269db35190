"""Cut a file into data slots as a reader does, and settle it: what the tests of confirming and settling share.

The oracle is google-re2 over the whole file, with lines and columns counted byte by byte. Candidates come from RE2 as
well, not from an engine: every end of every match of the candidate expression from every start, plus noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import re2

from uring_actors.ops.match.confirm import Confirmer, Unread
from uring_actors.ops.match.newlines import Newlines, as_bytes
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.planset import PlanSet, compile_source
from uring_actors.ops.match.settle import Fault, FileSettler, Settled

Row = tuple[int, int, int, int | None, int | None, bytes]
"""Pattern, start, end, line, column, bytes."""


def plan(
    index: int,
    kind: Kind,
    source: bytes,
    widths: tuple[int, int | None] = (1, None),
    *,
    candidate: bytes | None = None,
    candidate_widths: tuple[int, int] = (0, 0),
    latin1: bool = True,
) -> PatternPlan:
    """A plan by hand; ``candidate`` defaults to the whole pattern where it is bounded."""
    literal = source if kind is Kind.LITERAL else None
    if kind in (Kind.LITERAL, Kind.BOUNDED):
        candidate, candidate_widths = source, (widths[0], widths[1] or 0)
    return PatternPlan(
        index,
        f"p{index}",
        kind,
        source.decode("latin-1"),
        source,
        latin1,
        widths[0],
        widths[1],
        literal,
        candidate,
        *candidate_widths,
        "by hand",
    )


def literal(index: int, text: bytes) -> PatternPlan:
    return plan(index, Kind.LITERAL, text, (len(text), len(text)))


def candidates_of(p: PatternPlan, data: bytes) -> list[tuple[int, int]]:
    """(start, end) of every match of the candidate expression, from every start and to every end."""
    if p.candidate is None:
        return []
    if p.kind is Kind.LITERAL:
        assert p.literal
        return [(i, i + len(p.literal)) for i in range(len(data)) if data.startswith(p.literal, i)]
    if p.kind is Kind.BOUNDED:
        regex = compile_source(p)
    else:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        regex = re2.compile(p.candidate, options)
    return [
        (s, e)
        for s in range(len(data))
        for e in range(s + max(1, p.candidate_min), min(len(data), s + p.candidate_max) + 1)
        if regex.fullmatch(data, s, e)
    ]


def place(data: bytes, start: int) -> tuple[int, int]:
    return data.count(b"\n", 0, start) + 1, start - (data.rfind(b"\n", 0, start) + 1) + 1


def expected(plans: Sequence[PatternPlan], data: bytes) -> list[Row]:
    rows: list[Row] = []
    for p in plans:
        for m in compile_source(p).finditer(data):
            rows.append((p.index, m.start(), m.end(), *place(data, m.start()), data[m.start() : m.end()]))
    return sorted(rows)


class Memory:
    """A FileReader over bytes; ``holes`` are [start, stop) that can't be read."""

    def __init__(self, data: bytes, holes: Sequence[tuple[int, int]] = ()) -> None:
        self.data = data
        self.holes = holes
        self.read = 0
        self.closed = False

    def pread(self, offset: int, length: int) -> bytes:
        stop = offset + length
        for low, high in self.holes:
            if low <= offset < high:
                raise OSError(5, "hole")
            if offset < low < stop:
                stop = low
        piece = self.data[offset:stop]
        self.read += len(piece)
        return piece

    def close(self) -> None:
        self.closed = True


def as_rows(settled: Sequence[Settled]) -> list[Row]:
    rows: list[Row] = []
    for group in settled:
        r = group.rows
        for k in range(len(r)):
            text = r.data[r.offsets[k] : r.offsets[k + 1]].tobytes()
            line, column = int(r.line[k]) or None, int(r.column[k]) or None
            rows.append((int(r.pattern[k]), int(r.start[k]), int(r.end[k]), line, column, text))
    return sorted(rows, key=lambda row: row[:3])


class Cut:
    """One file in slots of ``payload`` bytes: confirms each extent once, and settles in any order."""

    def __init__(self, plans: Sequence[PatternPlan], data: bytes, payload: int, rng: random.Random) -> None:
        self.plans = PlanSet(plans)
        self.data = data
        self.payload = payload
        self.rng = rng
        self.confirmer = Confirmer(self.plans)
        self.candidates = sorted(
            ((p.index, s, e) for p in plans for s, e in candidates_of(p, data)), key=lambda hit: hit[1]
        )
        self.noisy = [p for p in plans if p.candidate is not None and p.kind is not Kind.LITERAL]

    def starts(self) -> list[int]:
        return list(range(0, len(self.data), self.payload))

    def hits(self, start: int, end: int) -> list[tuple[int, int]]:
        """What an engine reports of ``data[start:end]`` and the byte before: pattern, end from ``start`` on."""
        return [(i, e - start) for i, s, e in self.candidates if s >= start - 1 and e <= end]

    def extent(self, start: int) -> Any:
        """Confirm the extent at ``start``, from a slot with rubbish around what a reader would have read."""
        data, halo = self.data, self.plans.halo + self.rng.choice((0, 0, 1, 2))
        stop = min(len(data), start + self.payload)
        end = min(len(data), stop + halo)
        before = self.rng.choice((1, 8))
        lead = data[max(0, start - 1) : start].rjust(before, b"q")
        slot = bytearray(lead + data[start:end] + b"zz\n")
        hits = self.hits(start, end)
        dense = self.rng.random() < 0.3
        for p in self.noisy:
            if dense:
                hits += [(p.index, e) for e in range(end - start + 1)]
            hits += [(p.index, self.rng.randint(0, end - start)) for _ in range(self.rng.randrange(4))]
        self.rng.shuffle(hits)
        counted = None
        if self.rng.random() < 0.5:  # as a kernel counts them
            index = np.array([data.count(b"\n", start, low) for low in range(start, stop + 1, 4096)], np.uint32)
            index[0] = self.rng.getrandbits(32)  # nobody writes it
            last = data.rfind(b"\n", start, stop)
            text = as_bytes(slot).ctypes.data + before
            counted = Newlines(data.count(b"\n", start, stop), max(-1, last - start), text, index.ctypes.data)
        patterns, ends = np.array([h[0] for h in hits], np.int32), np.array([h[1] for h in hits], np.int64)
        result = self.confirmer.confirm(
            memoryview(slot),
            at=before,
            payload=stop - start,
            after=end - stop,
            offset=start,
            patterns=patterns,
            ends=ends,
            newlines=counted,
        )
        slot[:] = b"#" * len(slot)  # the slot is somebody else's from here on
        return result

    def _is_empty(self, result: Any) -> bool:
        """Whether it may be settled as an extent in which no engine saw anything; chosen at random."""
        if isinstance(result, Unread) or self.plans.in_slot or self.plans.without_candidates:
            return False
        return not len(result.marked) and not result.candidates and self.rng.random() < 0.7

    def settle(
        self,
        open_reader: Callable[[], Any] | None = None,
        *,
        unread: Sequence[int] = (),
        window_limit: int = 1 << 30,
        lend: bool = False,
    ) -> tuple[list[Row], list[Fault]]:
        """``lend``: some extents' bytes are lent to the window meanwhile, as far as they can be read."""
        settler = FileSettler(
            self.plans, len(self.data), open_reader or (lambda: Memory(self.data)), window_limit=window_limit
        )
        order = list(enumerate(self.starts()))
        if self.rng.random() < 0.7:
            self.rng.shuffle(order)
        settled: list[Settled] = []
        empty = []
        for k, start in order:
            stop = min(len(self.data), start + self.payload)
            result = Unread(start, stop, 5) if k in unread else self.extent(start)
            if self._is_empty(result) and settler.add_empty(k, stop, result.newlines, result.newline):
                empty.append(k)
            elif not lend or isinstance(result, Unread) or self.rng.random() < 0.5:
                settled += settler.add(k, result)
            else:
                low = max(0, start - (k - 1 not in unread))
                high = min([stop + self.plans.halo, *(lost * self.payload for lost in unread if lost > k)])
                with settler.window.lent(memoryview(self.data)[low:high], low):
                    settled += settler.add(k, result)
        assert settler.finished
        assert sorted([s.extent for s in settled] + empty) == list(range(len(order)))
        return as_rows(settled), [f for s in settled for f in s.faults]

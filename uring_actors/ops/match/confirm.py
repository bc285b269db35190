"""An extent's matches, from the bytes of its data slot alone, so that the slot is free at once.

The owner of a match is the extent ``[a, b)`` that it starts in. For each LITERAL, BOUNDED or SLOT pattern this
makes the chain of matches that start in ``[a, b)``, as if nothing before ``a`` had matched; the file's settler puts
right what a match that runs in from the extent before changes (``settle.py``).

Why the bytes of the slot are enough, and why one search for each candidate is exact. Let f(s) be where RE2's match
that starts at s ends (undefined where none does). f depends only on the bytes from s - 1 (context of ``\\b``, ``^``)
to s + W (the widest match, and one byte of context), never on where a search began. A file's matches are the chain:
the least s >= resume with f(s) defined, then resume = f(s). Engines report a superset of all f(s).

Candidate ends e are taken in ascending order, and each is searched in [max(resume, e - W), e + W]:

1. For a start s < e the cut at e + W changes nothing, since s + W < e + W. A match found at or after e may be cut
   and is left to its own candidate.
2. After candidate e no s >= resume has f(s) <= e. Were there one with f(s) < e, its own candidate, taken earlier,
   would have left resume above s. With f(s) = e, the search for e begins at or before s, so it accepts some
   s' <= s; by what was shown for earlier candidates f(s') <= s is impossible, so resume = f(s') > s.
3. So no start in [resume, e - W) has a match (it would end before e), and what the search accepts is the least
   start from resume on: the chain's next match.

Two shortcuts follow. Where nothing before e starts a match, resume may rise to e, f being what it is. Where nothing
was found at all, no match from here lies within [pos, e + W], so candidates up to e + W are done.

Every f(s) with s < b is at most b + W - 1 and so among the candidates of an extent whose halo is W + 1 or more.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uring_actors.arena.atomics import load8
from uring_actors.hot import hot
from uring_actors.ops.match.machine import ASKED, Walk
from uring_actors.ops.match.newlines import (
    NO_INDEX,
    Bytes,
    Index,
    Ints,
    Newlines,
    as_bytes,
    copy_index,
    count_newlines,
    empty_index,
    newlines_before,
)
from uring_actors.ops.match.plan import Kind
from uring_actors.ops.match.planset import Pattern, PlanSet
from uring_actors.ops.match.rows import NO_INTS, NO_MARKED, NO_PATTERNS, Marked, in_order
from uring_actors.pieces import NO_NEWLINE

_FEW = 4
"""Candidates up to which RE2 is as fast as the start of a compiled loop."""

_TRUST = 1 << 7

# A candidate as one number, so that one sort orders and one comparison removes duplicates: pattern, then end.
_END_BITS = 40
_END_MASK = (1 << _END_BITS) - 1

Spans = NDArray[np.int64]
"""Rows of pattern, start, end: relative to the payload."""
Candidates = dict[int, Ints]
"""By pattern: where in the file its candidates end; ascending, without duplicates."""


@dataclass(slots=True, eq=False)
class ExtentMatches:
    """What an extent leaves behind; owns its memory, and nobody changes it. Offsets are the file's.

    ``marked`` counts newlines from ``start``. ``newline`` is the last newline in [start, stop), or NO_NEWLINE.
    ``candidates`` are those of patterns that are settled against the file. ``index`` is the payload's newline index
    where there may be rows of such patterns.
    """

    start: int
    stop: int
    newlines: int
    newline: int
    marked: Marked = NO_MARKED
    candidates: Candidates = field(default_factory=dict)
    index: Index = field(default_factory=lambda: NO_INDEX)


@dataclass(frozen=True, slots=True)
class Unread:
    """An extent whose bytes could not be read, or not be searched: takes the place of its ExtentMatches."""

    start: int
    stop: int
    errno: int
    reason: str = "the extent could not be read"


# What these compiled functions make goes into arrays of the caller: to return an array costs more than to pass one.


@hot
def _keys(patterns: NDArray[Any], ends: NDArray[Any], keys: Ints) -> int:
    """Candidates as keys; how many. An end at or before the payload's start belongs to a start before it."""
    count = 0
    for k in range(ends.size):
        if ends[k] > 0:
            keys[count] = (np.int64(patterns[k]) << _END_BITS) | np.int64(ends[k])
            count += 1
    return count


@hot
def _split(keys: Ints, literal_width: Ints, payload: int, spans: Spans, rest: Ints) -> tuple[int, int]:
    """Sorted candidates: the literals' chains to ``spans``, the others' keys to ``rest``; how many. Duplicates go."""
    found = 0
    others = 0
    before = np.int64(-1)
    current = np.int64(-1)
    resume = np.int64(0)
    for key in keys:
        if key == before:
            continue
        before = key
        which = key >> _END_BITS
        width = literal_width[which]
        if width == 0:
            rest[others] = key
            others += 1
            continue
        if which != current:
            current = which
            resume = np.int64(0)
        stop = key & _END_MASK
        if stop - width >= resume and stop - width < payload:
            spans[found, 0] = which
            spans[found, 1] = stop - width
            spans[found, 2] = stop
            found += 1
            resume = stop
    return found, others


@hot
def _survey(spans: Spans) -> tuple[bool, int]:
    """Whether they stand in the order of (start, pattern), and how many bytes they have."""
    ordered = True
    size = 0
    for k in range(len(spans)):
        size += spans[k, 2] - spans[k, 1]
        if k > 0 and spans[k, 1] <= spans[k - 1, 1]:
            ordered &= spans[k, 1] == spans[k - 1, 1] and spans[k, 0] > spans[k - 1, 0]
    return ordered, size


@hot
def _mark(
    text: int,
    index: int,
    spans: Spans,
    offset: int,
    pattern: NDArray[np.int32],
    numbers: NDArray[np.int64],
    offsets: Ints,
    data: Bytes,
) -> None:
    """Of ordered spans what ``Marked`` has; ``numbers``: start, end, newlines and newline."""
    start, end, newlines, newline = numbers
    offsets[0] = 0
    for k in range(len(spans)):
        pattern[k], start[k], end[k] = spans[k, 0], spans[k, 1], spans[k, 2]
        offsets[k + 1] = offsets[k] + end[k] - start[k]
    newlines_before(text, index, start, newlines, newline)
    for k in range(len(spans)):
        source = text + start[k] - offsets[k]
        for i in range(offsets[k], offsets[k + 1]):
            data[i] = load8(source + i)
        start[k] += offset
        end[k] += offset
        if newline[k] >= 0:
            newline[k] += offset


def mark(text: int, index: int, spans: Spans, offset: int) -> Marked:
    """Spans, in any order, as rows with their bytes and newlines, which ``newlines_before`` counts. The payload at
    address ``text`` is at ``offset`` in the file."""
    ordered, size = _survey(spans)
    if not ordered:
        spans = spans[in_order(spans[:, 1], spans[:, 0])]
    count = len(spans)
    pattern, offsets = np.empty(count, np.int32), np.empty(count + 1, np.int64)
    numbers, data = np.empty((4, count), np.int64), np.empty(size, np.uint8)
    _mark(text, index, spans, offset, pattern, numbers, offsets, data)
    data.flags.writeable = False
    start, end, newlines, newline = numbers
    return Marked(pattern, start, end, newlines, newline, offsets, data)


def _part_chain(pattern: Pattern, view: memoryview, at: int, payload: int, ends: list[int], spans: list[int]) -> None:
    """As ``_bounded_chain``, where ``ends`` are those of a part that every match holds.

    A match from s holds a part that ends at some e with s < e <= s + W, so it lies in [e - W, e + W]. Stretches that
    touch are searched as one. Of a start s in one, that stretch reaches to s + W or further: were it cut before,
    the part of the match from s would lie behind the cut, and its stretch would touch this one. So the cut changes
    nothing, and what the stretches' searches find one after the other is the chain.
    """
    index, width, limit = pattern.plan.index, pattern.width, min(len(view), at + payload + pattern.width)
    resume, k = at, 0
    while k < len(ends) and resume < at + payload:
        low, high = ends[k] + at - width, ends[k] + at + width
        k += 1
        while k < len(ends) and ends[k] + at - width <= high:
            high = ends[k] + at + width
            k += 1
        resume = max(resume, low)
        while resume < at + payload:
            start, past = pattern.search(view, resume, min(high, limit))
            if start < 0 or start >= at + payload:
                break
            spans += (index, start - at, past - at)
            resume = past


def _program_chain(pattern: Pattern, view: memoryview, at: int, payload: int, ends: Ints) -> Spans | None:
    """As ``_bounded_chain``, by the pattern's program, and RE2 for the starts that it isn't sure of; None where these
    are too many."""
    program = pattern.program
    if program is None:
        return None
    text, border, trust = as_bytes(view), at + payload, _TRUST
    walk = Walk(program, ends + at, pattern.plan.min_width, pattern.width, border, border)
    walk.stand(at, at)
    parts: list[Ints] = []
    while not walk.done:
        sure = walk.advance(text, 0, len(text))
        if len(walk.spans):
            parts.append(walk.spans.copy())
            trust = min(_TRUST, trust + len(walk.spans))
        if sure:
            continue
        trust -= ASKED
        if trust <= 0 or walk.tired:
            return None
        # What f(s) depends on is in sight; a match that is found behind s may be cut.
        start = walk.next
        found, past = pattern.search(view, start, min(start + pattern.width + 1, len(text)))
        if found == start:
            parts.append(np.array([[start, past]], np.int64))
            walk.stand(past, past)
        else:
            walk.stand(walk.resume, start + 1)
    spans = np.empty((sum(map(len, parts)), 3), np.int64)
    spans[:, 0] = pattern.plan.index
    if parts:
        np.subtract(np.concatenate(parts), at, out=spans[:, 1:])
    return spans


def _bounded_chain(
    pattern: Pattern, view: memoryview, at: int, payload: int, ends: list[int], spans: list[int]
) -> None:
    """Add the matches to ``spans`` (index, start, end; relative to ``view[at:]``). The module's text says why this is
    exact."""
    if pattern.plan.kind is Kind.PART:
        _part_chain(pattern, view, at, payload, ends, spans)
        return
    search = pattern.search
    index, width, least = pattern.plan.index, pattern.width, pattern.plan.min_width
    border = at + payload
    limit = min(len(view), border + width)
    resume, clear = at, 0
    for end in ends:
        end += at
        if end <= clear or end < resume + least:
            continue
        if end > limit or resume >= border:
            break
        # Not min and max: calls are what this loop spends its time on.
        low, stop = end - width, end + width
        start, past = search(view, low if low > resume else resume, stop if stop < limit else limit)
        if start < 0:
            clear = stop
            resume = max(resume, end)
        elif start >= end:
            resume = end
        elif start >= border:
            break
        else:
            spans += (index, start - at, past - at)
            resume = past


def _slot_chain(pattern: Pattern, view: memoryview, at: int, payload: int, spans: list[int]) -> None:
    """As ``_bounded_chain``, by RE2 alone: a start below the payload's end is never cut at ``payload + W``."""
    search, index = pattern.search, pattern.plan.index
    stop = min(len(view), at + payload + pattern.width)
    resume = at
    while resume < at + payload:
        start, resume = search(view, resume, stop)
        if start < 0 or start >= at + payload:
            break
        spans += (index, start - at, resume - at)


class Confirmer:
    """Confirms extents for one set of plans. Immutable; any number of threads may share it."""

    def __init__(self, plans: PlanSet) -> None:
        self._plans = plans

    def confirm(
        self,
        slot: Any,
        *,
        at: int,
        payload: int,
        after: int,
        offset: int,
        patterns: NDArray[Any] = NO_PATTERNS,
        ends: NDArray[Any] = NO_INTS,
        newlines: Newlines | None = None,
    ) -> ExtentMatches:
        """One extent.

        ``slot`` is a contiguous buffer: the payload at ``[at, at + payload)``, ``after`` bytes of the file behind
        it (``min(plans.halo, bytes left in the file)`` or more) and, unless ``offset`` (the payload's place in the
        file) is 0, at least one byte of the file before it. ``patterns`` and ``ends`` are the candidates in any
        order, ends relative to the payload. ``newlines``: the payload's, as a kernel has counted them; None: they are
        counted here.

        The slot is free when this returns.
        """
        if newlines is None:
            text, index = as_bytes(slot), empty_index(payload)
            newlines = count_newlines(text, at, payload, index)
        last = newlines.last + offset if newlines.count else NO_NEWLINE
        extent = ExtentMatches(offset, offset + payload, newlines.count, last)
        if len(patterns) or self._plans.in_slot:
            # RE2 sees real bytes only: one before the payload (none at the file's start, where \A must hold), and
            # what the halo holds.
            first = at - 1 if offset else at
            assert first >= 0, "no byte of context before the payload"
            view = memoryview(slot)[first : at + payload + after]
            self._confirm(extent, view, at - first, patterns, ends, newlines)
        if extent.candidates or self._plans.without_candidates:
            extent.index = copy_index(newlines.index, payload)
        return extent

    def _confirm(
        self,
        extent: ExtentMatches,
        view: memoryview,
        at: int,
        patterns: NDArray[Any],
        ends: NDArray[Any],
        newlines: Newlines,
    ) -> None:
        payload = extent.stop - extent.start
        keys, rest = np.empty((2, len(ends)), np.int64)
        spans = np.empty((len(ends), 3), np.int64)
        keys = keys[: _keys(patterns, ends, keys)]
        keys.sort()
        found, others = _split(keys, self._plans.literal_width, payload, spans, rest)
        spans = spans[:found]
        chained, chains = self._chains(extent, view, at, payload, rest[:others])
        if chained:
            chains.append(np.fromiter(chained, np.int64, len(chained)).reshape(-1, 3))
        if chains:
            spans = np.concatenate([spans, *chains])
        if len(spans):
            extent.marked = mark(newlines.text, newlines.index, spans, extent.start)

    def _chains(
        self, extent: ExtentMatches, view: memoryview, at: int, payload: int, rest: Ints
    ) -> tuple[list[int], list[Spans]]:
        """Chains as ``_bounded_chain`` has them, and those that programs made; to ``extent`` the candidates
        that are left to the file's settler."""
        spans: list[int] = []
        chains: list[Spans] = []
        for alone in self._plans.in_slot:
            _slot_chain(alone, view, at, payload, spans)
        keys = rest.tolist()
        stop = 0
        while stop < len(keys):
            start, index = stop, keys[stop] >> _END_BITS
            stop = bisect_left(keys, (index + 1) << _END_BITS, start)
            pattern = self._plans.bounded.get(index)
            if pattern is None:
                extent.candidates[index] = (rest[start:stop] & _END_MASK) + extent.start
                continue
            if stop - start > _FEW and pattern.plan.kind is Kind.BOUNDED:
                chain = _program_chain(pattern, view, at, payload, rest[start:stop] & _END_MASK)
                if chain is not None:
                    chains.append(chain)
                    continue
            _bounded_chain(pattern, view, at, payload, [key & _END_MASK for key in keys[start:stop]], spans)
        return spans, chains

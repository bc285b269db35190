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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uring_actors.hot import hot
from uring_actors.ops.match.newlines import Bytes, Ints, as_bytes, copy_ranges, count_newlines, last_newline
from uring_actors.ops.match.newlines import mark_newlines as _mark
from uring_actors.ops.match.plan import Kind
from uring_actors.ops.match.planset import Pattern, PlanSet
from uring_actors.ops.match.rows import NO_INTS, NO_MARKED, NO_NEWLINE, Hit, Marked, in_order

# A candidate as one number, so that one sort orders and one comparison removes duplicates: pattern, then end.
_END_BITS = 40
_END_MASK = (1 << _END_BITS) - 1

Candidates = Mapping[int, Sequence[int]]
"""By pattern: where in the file its candidates end; ascending, without duplicates."""
Found = tuple[int, int, int]
"""What a kernel reports and counted: pattern, end, newlines before the end; relative to the payload."""


@dataclass(frozen=True, slots=True, eq=False)
class ExtentMatches:
    """What an extent leaves behind; owns its memory. Offsets are the file's.

    Matches are in ``marked`` or, where they are few, in ``hits``: both count newlines from ``start``. ``newline`` is
    the last newline in [start, stop), or NO_NEWLINE. ``candidates`` are those of patterns that are settled against
    the file. ``counted``: newlines between ``start`` and some offsets, by offset, where they are known anyway.
    """

    start: int
    stop: int
    newlines: int
    newline: int
    marked: Marked = NO_MARKED
    candidates: Candidates = field(default_factory=dict)
    hits: Sequence[Hit] = ()
    counted: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unread:
    """An extent whose bytes could not be read, or not be searched: takes the place of its ExtentMatches."""

    start: int
    stop: int
    errno: int
    reason: str = "the extent could not be read"


@hot
def _split(
    keys: Ints, literal_width: Ints, payload: int, pattern: Ints, start: Ints, end: Ints, rest: Ints
) -> tuple[int, int]:
    """Sorted candidates: the literals' chains to ``pattern``, ``start``, ``end``; the others to ``rest``.

    Duplicates go. Returns how many of each there are.
    """
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
            pattern[found] = which
            start[found] = stop - width
            end[found] = stop
            found += 1
            resume = stop
    return found, others


Spans = tuple[Ints, Ints, Ints]
"""Pattern, start, end: relative to the payload."""


def mark(
    text: Bytes, origin: int, payload: int, spans: Spans, offset: int, newlines: int = -1, newline: int = NO_NEWLINE
) -> tuple[Marked, int, int]:
    """Spans as rows, with their bytes and newlines; and the payload's newlines and the last one's offset.

    ``text[origin:origin + payload]`` is the payload, at ``offset`` in the file. ``newlines``, ``newline``: as of
    ``Confirmer.confirm``.
    """
    order = in_order(spans[1], spans[0])
    pattern, start, end = (part[order] for part in spans)
    counts = np.empty(len(start), np.int64)
    lasts = np.empty(len(start), np.int64)
    if newlines < 0:
        newlines, newline = _mark(text, origin, origin + payload, start + origin, counts, lasts)
        newline -= origin
    elif len(start):  # behind the last match nothing is left to count
        _mark(text, origin, origin + int(start[-1]), start + origin, counts, lasts)
    offsets, data = copy_ranges(text, start + origin, end + origin)
    shift = offset - origin
    before = np.where(lasts >= 0, lasts + shift, NO_NEWLINE)
    marked = Marked(pattern.astype(np.int32), start + offset, end + offset, counts, before, offsets, data)
    return marked, newlines, newline + offset if newlines else NO_NEWLINE


def _part_chain(pattern: Pattern, view: memoryview, at: int, payload: int, ends: list[int]) -> list[int]:
    """As ``_bounded_chain``, where ``ends`` are those of a part that every match holds.

    A match from s holds a part that ends at some e with s < e <= s + W, so it lies in [e - W, e + W]. Stretches that
    touch are searched as one. Of a start s in one, that stretch reaches to s + W or further: were it cut before,
    the part of the match from s would lie behind the cut, and its stretch would touch this one. So the cut changes
    nothing, and what the stretches' searches find one after the other is the chain.
    """
    width, limit = pattern.width, min(len(view), at + payload + pattern.width)
    spans: list[int] = []
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
            spans += (start - at, past - at)
            resume = past
    return spans


def _bounded_chain(pattern: Pattern, view: memoryview, at: int, payload: int, ends: list[int]) -> list[int]:
    """Starts and ends, alternating, relative to ``view[at:]``; the module's text says why this is exact."""
    if pattern.plan.kind is Kind.PART:
        return _part_chain(pattern, view, at, payload, ends)
    search = pattern.search
    width, least = pattern.width, pattern.plan.min_width
    limit = min(len(view), at + payload + width)
    spans: list[int] = []
    resume, clear = at, 0
    for end in ends:
        end += at
        if end <= clear or end < resume + least:
            continue
        if end > limit or resume >= at + payload:
            break
        stop = min(end + width, limit)
        start, past = search(view, max(resume, end - width), stop)
        if start < 0:
            clear = stop
            resume = max(resume, end)
        elif start >= end:
            resume = end
        elif start >= at + payload:
            break
        else:
            spans += (start - at, past - at)
            resume = past
    return spans


def _slot_chain(pattern: Pattern, view: memoryview, at: int, payload: int) -> list[int]:
    """As ``_bounded_chain``, by RE2 alone: a start below the payload's end is never cut at ``payload + W``."""
    search = pattern.search
    stop = min(len(view), at + payload + pattern.width)
    spans: list[int] = []
    resume = at
    while resume < at + payload:
        start, resume = search(view, resume, stop)
        if start < 0 or start >= at + payload:
            break
        spans += (start - at, resume - at)
    return spans


def _literal_chain(ends: list[int], width: int, payload: int) -> list[int]:
    """As ``_bounded_chain``, for a literal: its candidates are its occurrences."""
    spans: list[int] = []
    resume = 0
    for end in ends:
        if resume <= end - width < payload:
            spans += (end - width, end)
            resume = end
    return spans


_NEAR = 1 << 10


def newline_before(view: memoryview, low: int, stop: int) -> int:
    """Where the last newline of ``view[low:stop]`` is, -1 where there is none. It is mostly near."""
    near = max(low, stop - _NEAR)
    found = bytes(view[near:stop]).rfind(b"\n")
    if found >= 0:
        return near + found
    return last_newline(as_bytes(view), low, near)


class Confirmer:
    """Confirms extents for one set of plans. Immutable; any number of threads may share it."""

    def __init__(self, plans: PlanSet) -> None:
        self._plans = plans
        self._none_in_slot = not plans.in_slot

    def confirm(
        self,
        slot: Any,
        *,
        at: int,
        payload: int,
        after: int,
        offset: int,
        patterns: NDArray[np.int32] | None = None,
        ends: Ints | None = None,
        newlines: int = -1,
        newline: int = NO_NEWLINE,
    ) -> ExtentMatches:
        """One extent.

        ``slot`` is a contiguous buffer: the payload at ``[at, at + payload)``, ``after`` bytes of the file behind
        it (``min(plans.halo, bytes left in the file)`` or more) and, unless ``offset`` (the payload's place in the
        file) is 0, at least one byte of the file before it. ``patterns`` and ``ends`` are the candidates in any
        order, ends relative to the payload. ``newlines`` and ``newline`` are how many newlines the payload has
        and the last one's offset in the payload, where a kernel has counted them already (-1: count here).

        The slot is free when this returns.
        """
        if (patterns is None or not len(patterns)) and self._none_in_slot:
            if newlines < 0:
                text = as_bytes(slot)
                newlines = count_newlines(text, at, at + payload)
                newline = last_newline(text, at, at + payload) - at if newlines else NO_NEWLINE
            last = newline + offset if newlines else NO_NEWLINE
            return ExtentMatches(offset, offset + payload, newlines, last)
        # RE2 sees real bytes only: one before the payload (none at the file's start, where \A must hold), and
        # what the halo holds.
        first = at - 1 if offset else at
        assert first >= 0, "no byte of context before the payload"
        view = memoryview(slot)[first : at + payload + after]
        return self._confirm(view, at - first, payload, offset, patterns, ends, newlines, newline)

    def _confirm(
        self,
        view: memoryview,
        at: int,
        payload: int,
        offset: int,
        patterns: NDArray[np.int32] | None,
        ends: Ints | None,
        known_newlines: int,
        known_newline: int,
    ) -> ExtentMatches:
        literals: Spans = (NO_INTS, NO_INTS, NO_INTS)
        rest = NO_INTS
        if patterns is not None and ends is not None and len(patterns):
            literals, rest = self._sort(patterns, ends, payload)
        chains, candidates = self._chains(view, at, payload, rest)
        spans = _join(literals, chains)
        if known_newlines >= 0 and not len(spans[0]):  # false candidates, or unbounded patterns' only
            marked, newlines = NO_MARKED, known_newlines
            newline = known_newline + offset if newlines else NO_NEWLINE
        else:
            text = as_bytes(view)
            marked, newlines, newline = mark(text, at, payload, spans, offset, known_newlines, known_newline)
        return ExtentMatches(
            offset,
            offset + payload,
            newlines,
            newline,
            marked,
            {index: [end + offset for end in ends] for index, ends in candidates.items()},
        )

    def confirm_few(
        self,
        slot: memoryview,
        *,
        at: int,
        payload: int,
        after: int,
        offset: int,
        found: Sequence[Found],
        newlines: int,
        newline: int,
    ) -> ExtentMatches:
        """``confirm`` for a handful of candidates that a kernel has counted newlines for, in plain Python: arrays of
        a few numbers cost more than they save, and most extents have no more than these. For plans without SLOT."""
        assert self._none_in_slot
        first = at - 1 if offset else at
        view, at = slot[first : at + payload + after], at - first
        by_pattern: dict[int, list[int]] = {}
        counted = {end: count for _, end, count in found}
        for index, end, _ in sorted(set(found)):
            if end > 0:  # an end at or before the payload's start belongs to a start before it
                by_pattern.setdefault(index, []).append(end)
        hits: list[Hit] = []
        candidates: dict[int, list[int]] = {}
        for index, ends in by_pattern.items():
            pattern = self._plans.patterns[index]
            if pattern.literal is not None:
                spans = _literal_chain(ends, len(pattern.literal), payload)
            elif index in self._plans.bounded:
                spans = _bounded_chain(pattern, view, at, payload, ends)
            else:
                candidates[index] = [end + offset for end in ends]
                continue
            for start, end in zip(spans[::2], spans[1::2], strict=True):
                text = bytes(view[at + start : at + end])
                before = self._newlines_before(view, at, end, counted) - text.count(b"\n")
                last = newline_before(view, at, at + start) - at + offset if before else NO_NEWLINE
                hits.append(Hit(start + offset, index, end + offset, before, last, text))
        hits.sort()
        return ExtentMatches(
            offset,
            offset + payload,
            newlines,
            newline + offset if newlines else NO_NEWLINE,
            candidates=candidates,
            hits=hits,
            counted={end + offset: count for end, count in counted.items()} if candidates else {},
        )

    @staticmethod
    def _newlines_before(view: memoryview, at: int, end: int, counted: Mapping[int, int]) -> int:
        """Newlines in the payload before ``end``. A match mostly ends where one of its candidates does."""
        if end not in counted:
            return count_newlines(as_bytes(view), at, at + end)
        return counted[end]

    def _sort(self, patterns: NDArray[np.int32], ends: Ints, payload: int) -> tuple[Spans, Ints]:
        """The literals' chains, and the other candidates as sorted keys."""
        real = ends > 0  # an end at or before the payload's start belongs to a start before it
        keys = (patterns[real].astype(np.int64) << _END_BITS) | ends[real]
        keys.sort()
        pattern, start, end, rest = np.empty((4, len(keys)), np.int64)
        found, others = _split(keys, self._plans.literal_width, payload, pattern, start, end, rest)
        return (pattern[:found], start[:found], end[:found]), rest[:others]

    def _chains(
        self, view: memoryview, at: int, payload: int, rest: Ints
    ) -> tuple[list[tuple[int, list[int]]], dict[int, list[int]]]:
        """Chains that RE2 confirms, by pattern; and the candidates that are left to the file's settler."""
        chains = [(p.plan.index, _slot_chain(p, view, at, payload)) for p in self._plans.in_slot]
        # By pattern. Most extents have a few candidates: np.split and its like take longer than all the rest.
        unbounded: dict[int, list[int]] = {}
        stop = 0
        while stop < len(rest):
            start, index = stop, int(rest[stop] >> _END_BITS)
            stop = int(np.searchsorted(rest, (index + 1) << _END_BITS))
            ends = (rest[start:stop] & _END_MASK).tolist()
            pattern = self._plans.bounded.get(index)
            if pattern is None:
                unbounded[index] = ends
            else:
                chains.append((index, _bounded_chain(pattern, view, at, payload, ends)))
        return chains, unbounded


def _join(literals: Spans, chains: list[tuple[int, list[int]]]) -> Spans:
    parts = [literals]
    for index, spans in chains:
        if spans:
            pairs = np.array(spans, np.int64).reshape(-1, 2)
            parts.append((np.full(len(pairs), index, np.int64), pairs[:, 0], pairs[:, 1]))
    if len(parts) == 1:
        return literals
    pattern, start, end = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return pattern, start, end

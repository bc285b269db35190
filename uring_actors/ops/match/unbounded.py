"""Patterns without a maximum width, searched in order against the file.

A ``Search`` is told, extent by extent, which candidates an engine saw and how far the file is known
(``frontier``: every candidate that starts before it has been learnt), and puts what is decided into a list. It may
look at bytes past the frontier where a match demands it, and it may fall behind where it can't decide yet; at the
frontier ``size`` it has emitted everything.

What makes a result final. In the file's bytes up to w, cut between two characters, the pattern cut short
(``syntax.cut_short``) is looked for. It finds what RE2 finds in the whole file where that is decided by these bytes:
a match that ends before w. What ends at w isn't decided: the match may go on behind w, or be another. RE2 prefers one
way through the pattern to another, and a way that w interrupts ends at w, so it hides what is found by lesser ways
only; a lazy ``.*?end`` is decided where it ends. Starts of which nothing is found, not even an end at w, have no
match in the file. At the file's end everything is final. Where a pattern can't be cut short, nothing is decided
before.

A read that fails leaves the search where it was; ``restart`` begins a new chain behind the trouble. What had been
emitted stays right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from uring_actors.ops.match import machine
from uring_actors.ops.match.newlines import Bytes, Ints, as_bytes, copy_ranges, first_newline, last_newline
from uring_actors.ops.match.plan import Kind, LazyGap
from uring_actors.ops.match.planset import Expression, Pattern
from uring_actors.ops.match.program import Program
from uring_actors.ops.match.rows import NO_INTS
from uring_actors.ops.match.utf8 import is_utf8
from uring_actors.ops.match.window import ReadFailed, TooLong, Window


class Found(NamedTuple):
    """One match: file offsets, and its bytes (which are not shared with a data slot)."""

    start: int
    end: int
    text: bytes | memoryview


class Matches:
    """What a search emits, one by one or many at a time; both in the order of their starts."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.many: list[tuple[Ints, Ints, Bytes]] = []
        """Starts (file offsets), where each one's bytes begin and end among all, and these."""

    def append(self, found: Found) -> None:
        self.found.append(found)


class Search(Protocol):
    """One pattern's search through one file."""

    @property
    def at(self) -> int:
        """Matches that start before this have been emitted, or are given up."""

    def learn(self, ends: Ints) -> None:
        """More candidate ends (file offsets): ascending, without duplicates."""

    def advance(self, frontier: int, newline: int, out: Matches) -> None:
        """Emit what is decided up to ``frontier`` (``newline``: the last one before it, -1 if there is none).

        Raises ReadFailed; ``out`` keeps what was found before.
        """

    def decided(self, frontier: int, newline: int) -> int:
        """After ``advance``: no match that is still to come starts before this."""

    def suspect(self, start: int, stop: int) -> None:
        """No engine saw ``[start, stop)``: there may be candidates that begin in it."""

    def restart(self, at: int) -> None:
        """Give up what starts before ``at``, and go on from there with nothing matched."""

    @property
    def idle(self) -> bool:
        """Whether ``advance`` has nothing to do, wherever the frontier is, until candidates are learnt."""


def search_for(pattern: Pattern, window: Window) -> Search:
    """The search that the pattern's kind asks for."""
    kind = pattern.plan.kind
    if kind is Kind.PREFIX:
        return PrefixSearch(pattern, window)
    if kind is Kind.LINE:
        return LineSearch(pattern, window) if pattern.plan.candidate is not None else EveryLineSearch(pattern, window)
    assert kind is Kind.FILE, kind
    return FileSearch(pattern, window)


def _union(known: Ints, ends: Ints) -> Ints:
    if not len(known) or not len(ends):
        return ends if len(ends) else known
    both = np.concatenate([known, ends])
    if known[-1] >= ends[0]:
        both.sort(kind="stable")  # of two that are sorted: a merge (np.union1d makes sets of them)
        both = both[np.flatnonzero(np.diff(both, prepend=-1))]
    return both


def _emit_lines(
    pattern: Pattern, program: Program | None, window: Window, start: int, stop: int, out: Matches
) -> Program | None:
    """All matches within ``[start, stop)``, which begins and ends at borders of lines. The pattern's ``program``, or
    None where it is not worth being run again.

    No match holds a newline, so none is cut, and the chain over the file is the lines' chains in a row. Of many
    lines the pattern's program finds what it is sure of, and RE2 what comes next where it isn't.
    """
    view, base = window.view(start, stop)
    position = start - base
    if program is not None and stop - start >= _MANY_LINES:
        text, trust = as_bytes(view), _TRUST
        walk = machine.Walk.through(program, start, stop)
        while trust > 0 and not (walk.done or walk.tired):
            sure = walk.advance(text, base, window.size)
            _emit_spans(text, base, walk.spans, out)
            trust = min(_TRUST, trust + len(walk.spans))
            if not (sure or walk.tired):
                trust -= machine.ASKED
                begin, past = pattern.search(view, walk.next - base, stop - base)
                if begin < 0:
                    return program
                out.append(Found(begin + base, past + base, bytes(view[begin:past])))
                walk.stand(past + base, past + base)
        if walk.done:
            return program
        program = None
        position = max(walk.resume, walk.next) - base
    while True:
        begin, position = pattern.search(view, position, stop - base)
        if begin < 0:
            return program
        out.append(Found(begin + base, position + base, bytes(view[begin:position])))


def _emit_spans(text: Bytes, base: int, spans: Ints, out: Matches) -> None:
    """Matches that a program found, by file offsets; ``base`` is that of the text's first byte."""
    if len(spans):
        starts, ends = spans.T
        out.many.append((starts.copy(), *copy_ranges(text, starts - base, ends - base)))


class EveryLineSearch:
    """LINE without candidates: whole lines, as soon as an extent completes some."""

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self.at = 0
        self._pattern = pattern
        self._program = pattern.program
        self._window = window

    def learn(self, ends: Ints) -> None:
        """There are none."""

    def suspect(self, start: int, stop: int) -> None:
        """All lines are searched anyway."""

    @property
    def idle(self) -> bool:
        """See Search."""
        return False

    def advance(self, frontier: int, newline: int, out: Matches) -> None:
        """See Search."""
        stop = frontier if frontier == self._window.size else newline
        if stop > self.at:
            self._program = _emit_lines(self._pattern, self._program, self._window, self.at, stop, out)
            self.at = stop + 1

    def decided(self, frontier: int, newline: int) -> int:
        """See Search."""
        return self.at

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)


_MANY_LINES = 1 << 10
"""Bytes of lines for which a compiled loop is started."""
_LINE_STEP = 4 << 10
_NEAR = 1 << 10


class LineSearch:
    """LINE with candidates: the lines that hold one, each once."""

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self.at = 0
        self._pattern = pattern
        self._program = pattern.program
        self._window = window
        self._ends = NO_INTS

    def learn(self, ends: Ints) -> None:
        """See Search."""
        self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search. A match that starts before ``start`` is in the line of that byte."""
        self.learn(np.array([start + 1]))

    @property
    def idle(self) -> bool:
        """See Search."""
        return not len(self._ends)

    def advance(self, frontier: int, newline: int, out: Matches) -> None:
        """See Search. A line that crosses the frontier is read to its end: its matches are all emitted now.

        Lines whose candidates are near each other are searched as one, with those in between, which have no match: to
        find a line's borders takes longer than to search it.
        """
        k, near = 0, _NEAR
        ends = self._ends.tolist()
        while k < len(ends):
            first, end = k, ends[k]
            k += 1
            if end <= self.at:  # in a line that is done
                continue
            while k < len(ends) and ends[k] - ends[k - 1] <= near:
                k += 1
            try:
                start, stop = self._line_start(end - 1), self._line_stop(ends[k - 1] - 1)
                self._program = _emit_lines(self._pattern, self._program, self._window, start, stop, out)
            except ReadFailed:
                if k == first + 1:
                    raise
                k, near = first, -1  # what can be had, line by line
                continue
            self.at = stop + 1
        self._ends = NO_INTS

    def decided(self, frontier: int, newline: int) -> int:
        """See Search. The last line may still show a candidate."""
        return max(self.at, newline + 1)

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)

    def _line_start(self, position: int) -> int:
        """Where the line with the byte at ``position`` begins; what lies before ``at`` is not looked at."""
        stop, step = position, _LINE_STEP
        while stop > self.at:
            self._window.check(stop, position)
            start = max(self.at, stop - step)
            view, base = self._window.view(start, stop)
            newline = last_newline(as_bytes(view), start - base, stop - base)
            if newline >= 0:
                return newline + base + 1
            stop, step = start, 2 * step
        return self.at

    def _line_stop(self, position: int) -> int:
        """The first newline from ``position`` on, or the file's end."""
        start, step = position, _LINE_STEP
        while start < self._window.size:
            self._window.check(position, start)
            stop = min(self._window.size, start + step)
            view, base = self._window.view(start, stop)
            newline = first_newline(as_bytes(view), start - base, stop - base)
            if newline >= 0:
                return newline + base
            start, step = stop, 2 * step
        return self._window.size


def _decided(
    expression: Expression, window: Window, at: int, stop: int, *, anchored: bool = False
) -> tuple[int, int]:
    """The bounds of the leftmost match from ``at`` on, where the file's bytes up to ``stop`` decide it.

    Otherwise the least start that is not decided, and -1. ``anchored``: only the start ``at`` is looked at.
    """
    view, base = window.view(at, stop)
    position, end = at - base, stop - base
    if stop == window.size:
        start, past = (expression.match if anchored else expression.search)(view, position, end)
        if start < 0:
            return at + 1 if anchored else stop, -1
    else:
        find = expression.cut_match if anchored else expression.cut_search
        if not expression.latin1:
            end = _between_characters(view, end)
        if find is None or end <= position:
            return at, -1
        start, past = find(view[:end], position, end)
        if start < 0:  # anchored: otherwise there is at least the text's end
            return at + 1, -1
        if past == end:
            return start + base, -1
    return start + base, past + base


def _found(window: Window, start: int, end: int) -> Found:
    view, base = window.view(start, end, before=0)
    return Found(start, end, bytes(view[start - base : end - base]))


def _aligned(expression: Expression, window: Window, at: int) -> int:
    """``at``, or a place a little before it that is in no character."""
    if expression.latin1:
        return at
    view, base = window.view(max(0, at - 3), at)
    return _between_characters(view, at - base) + base


def _between_characters(view: memoryview, at: int) -> int:
    """``at``, or less: a place in UTF-8 text that is in no character, whatever RE2 takes for one."""
    if view[at] & 0xC0 != 0x80:
        return at
    for place in range(at, max(at - _LONGEST_CHARACTER, -1), -1):
        if view[place] & 0xC0 != 0x80:
            return place
    return at  # behind three continuation bytes no character goes on


_CHUNK = 1 << 20


class FileSearch:
    """FILE: windows from ``at`` on, each keeping from the last what is not decided; linear in the file's size.

    A window [at, w) gives all matches up to the least start u that it doesn't decide. The next window begins at u,
    and is at least twice as long as what it takes over, so that bytes are searched a bounded number of times.

    With candidates (a necessary part of every match), nothing is read until one lies wholly behind ``at``.
    """

    def __init__(self, pattern: Pattern, window: Window, at: int = 0) -> None:
        self.at = at
        assert pattern.whole is not None, "it is confirmed in the slot"
        self._pattern = pattern
        self._whole = pattern.whole
        self._window = window
        self._ends = NO_INTS
        self._reach = 0  # the next window must go this far to be worth a try

    def learn(self, ends: Ints) -> None:
        """See Search."""
        self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search."""
        self.learn(np.array([stop - 1 + self._pattern.plan.candidate_max]))

    @property
    def idle(self) -> bool:
        """See Search."""
        return not len(self._ends) and self._pattern.plan.candidate is not None

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)
        self._reach = 0

    def advance(self, frontier: int, newline: int, out: Matches) -> None:
        """See Search."""
        size = self._window.size
        while self.at < frontier and self._wanted():
            if self._reach > frontier and frontier < size:
                return
            stop = min(frontier, max(self.at + _CHUNK, self._reach))
            if self._whole.cut_search is None:
                if frontier < size:
                    return
                stop = size
            try:
                self._step(stop, out)
            except TooLong:
                raise
            except ReadFailed as error:
                # What lies before the trouble may still be decided, with its last byte as context.
                if error.offset - 1 > self.at:
                    self._step(error.offset - 1, out)
                raise

    def decided(self, frontier: int, newline: int) -> int:
        """See Search. A candidate may be any way behind the start."""
        return self.at

    def _wanted(self) -> bool:
        if self._pattern.plan.candidate is None:
            return True
        least = self.at + self._pattern.plan.candidate_min
        self._ends = self._ends[np.searchsorted(self._ends, least) :]
        return len(self._ends) > 0

    def _step(self, stop: int, out: Matches) -> None:
        """One window."""
        while self.at < stop:
            self.at, end = _decided(self._whole, self._window, self.at, stop)
            if end < 0:
                break
            out.append(_found(self._window, self.at, end))
            self.at = end
        self._reach = self.at + 2 * (stop - self.at)


def _parts(ends: Ints) -> Iterator[Ints]:
    """A few at a time."""
    for first in range(0, len(ends), 1 << 10):
        yield ends[first : first + (1 << 10)]


_FEW_CANDIDATES = 4
"""Up to so many, RE2 is as fast."""
_TRUST = 1 << 10
_FEW_STARTS = 3
"""Starts of one candidate up to which each is tried for itself."""

_FIRST_WINDOW = 128
_LONGEST_STRETCH = 1 << 10
_GAP_STEP = 60 << 10
"""One step is in one read of the window."""
_NEAR_LITERAL = 512
_LONGEST_CHARACTER = 4
_CUT = _LONGEST_CHARACTER - 1
"""Bytes of a character that may be left out where text is cut between two."""
_MOST_WAITING = 1 << 16
"""Candidates that are kept while a gap is followed from extent to extent."""
_LATER, _NOWHERE = -2, -1
_LARGE = 1 << 20
"""Bytes of a match that is not copied from its window."""
_ALLOWANCE = 1 << 20


class PrefixSearch:
    """PREFIX: every start that a candidate allows, in ascending order.

    Of a pattern with a lazy front (``plan.Lead``) the core is searched, and each match begins with as much of the
    front as is there. Where attempts have run over more than four times the file (many starts, all alive for long),
    the rest of the file is left to the linear FileSearch.
    """

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self._pattern = pattern
        self._core = pattern.core
        self._window = window
        self._ends = NO_INTS
        self._resume = 0  # where the last match ended
        self._next = 0  # no core that starts between the two has a match
        self._spent = 0
        self._barren = (-1, -1)  # a gap that goes on between these leads to no match
        self._clear = (-1, -1)  # no gap ends between these
        self._waiting = False  # what starts at ``_next`` is in a gap that is followed as extents come
        self._trust = _TRUST  # in the program
        self._linear: FileSearch | None = None

    @property
    def at(self) -> int:
        """See Search."""
        if self._linear is not None:
            return self._linear.at
        return max(self._resume, self._next - self._core.front_most)

    def learn(self, ends: Ints) -> None:
        """See Search."""
        if self._linear is not None:
            self._linear.learn(ends)
        else:
            self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search. A match that starts before ``start`` has its candidate from the extent before."""
        if self._linear is not None:
            self._linear.suspect(start, stop)

    @property
    def idle(self) -> bool:
        """See Search."""
        return not len(self._ends) if self._linear is None else self._linear.idle

    def restart(self, at: int) -> None:
        """See Search."""
        self._resume = max(self._resume, at)
        self._waiting = False
        if self._linear is not None:
            self._linear.restart(at)

    def advance(self, frontier: int, newline: int, out: Matches) -> None:
        """See Search."""
        if self._linear is None:
            self._try_candidates(frontier, out)
        if self._linear is not None:
            self._linear.advance(frontier, newline, out)

    def decided(self, frontier: int, newline: int) -> int:
        """See Search."""
        return self.at if self._linear is not None or self._waiting else max(self._resume, frontier)

    def _try_candidates(self, frontier: int, out: Matches) -> None:
        limit = frontier + self._core.front_most
        self._waiting = False
        program = self._core.program
        if program is not None and self._trust > 0 and len(self._ends) >= _FEW_CANDIDATES:
            self._run(program, frontier, limit, out)
        else:
            for low, stop in self._stretches(limit):
                if not self._try_stretch(low, stop, frontier, out):
                    break
        if self._linear is not None:
            self._linear.learn(self._ends)
            return
        # A candidate that starts at the frontier or behind it comes again, with the extent that it starts in.
        self._next = min(self._next, frontier)
        self._ends = self._ends[np.searchsorted(self._ends, self._next) :] if self._waiting else NO_INTS

    def _run(self, program: Program, frontier: int, limit: int, out: Matches) -> None:
        """All candidates by the core's program; by RE2 the starts of those that it isn't sure of."""
        core, window = self._core, self._window
        walk = machine.Walk(program, self._ends, core.least, core.most, frontier, limit)
        asked = -1
        while not walk.done:
            at = walk.stand(self._resume, self._next)
            try:
                view, base = window.view(max(0, at - core.front_most), walk.end + _FIRST_WINDOW)
            except ReadFailed:
                sure = False  # perhaps what lies before the trouble is enough
            else:
                text = as_bytes(view)[: at - base + window.limit]
                sure = walk.advance(text, base, window.size)
                self._resume, self._next = walk.resume, walk.next
                _emit_spans(text, base, walk.spans, out)
            if sure or (at < self._next != asked and not window.is_lent(view)):
                asked = self._next  # with more in sight it may be
                continue
            if not self._try_stretch(self._next, min(walk.end - core.least + 1, limit), frontier, out):
                return
            self._trust -= machine.ASKED
            walk.skip()
        self._trust = min(_TRUST, self._trust + len(self._ends))

    def _try_stretch(self, low: int, stop: int, frontier: int, out: Matches) -> bool:
        """Cores that start in [``low``, ``stop``), by RE2. False: no more of them are to be tried."""
        self._next = max(self._next, self._resume, low)
        if not self._try(stop, frontier, out):
            return False
        if self._spent > 4 * self._window.size + _ALLOWANCE:
            self._linear = FileSearch(self._pattern, self._window, self.at)
        return self._linear is None

    def _stretches(self, most: int) -> Iterator[tuple[int, int]]:
        """Where cores may start, up to ``most``: those of candidates that are near each other in one."""
        least, reach = self._core.least, self._core.most
        low = stop = -1
        for end in itertools.chain.from_iterable(part.tolist() for part in _parts(self._ends)):
            if end - reach > stop or end - low > _LONGEST_STRETCH:
                if stop > low:
                    yield low, min(stop, most)
                low = end - reach
            stop = end - least + 1
        if stop > low:
            yield low, min(stop, most)

    def _try(self, stop: int, frontier: int, out: Matches) -> bool:
        """Emit the matches of cores in [``_next``, ``stop``). False: there is one that is not the frontier's yet."""
        size, core = self._window.size, self._core
        length = _FIRST_WINDOW
        while self._next < stop and self._spent <= 4 * size + _ALLOWANCE:
            at = self._next
            high = size if core.expression.cut_match is None else min(size, max(stop + core.least, at) + length)
            try:
                more = self._walk(high, stop, frontier, out)
            except TooLong:
                raise
            except ReadFailed as error:
                # Perhaps what lies before the trouble is enough.
                if error.offset - 1 <= self._next:
                    raise
                high = error.offset - 1
                more = self._walk(high, stop, frontier, out)
                if more and self._next == at:
                    raise
            if more and core.gap is not None and self._next < stop and high - self._next >= core.gap.crossed:
                more = self._cross_gap(core.gap, high, frontier, out)
            if not more:
                return False
            length = _FIRST_WINDOW if self._next > at else 4 * length
        return True

    def _walk(self, high: int, stop: int, frontier: int, out: Matches) -> bool:
        """``_try``, as far as the file's bytes up to ``high`` decide it: up to ``_next``."""
        core, whole = self._core, self._core.expression
        view, base = self._window.view(max(self._resume, self._next - core.front_most), high)
        at, limit, end = self._next - base, stop - base, high - base
        final = high == self._window.size
        match, search = (whole.match, whole.search) if final else (whole.cut_match, whole.cut_search)
        if not final and not whole.latin1:
            end = _between_characters(view, end)
        if match is None or search is None or end <= at:
            return True
        text = view if final else view[:end]
        head = core.head if final or limit + core.head_most <= end else None  # else it doesn't see all of them
        head_stop = min(limit + core.head_most, end)
        while at < limit:
            if limit - at <= _FEW_STARTS:
                start, past = at, match(text, at, end)[1]
            elif head is not None:
                start = head(view, at, head_stop)[0]
                if not 0 <= start < limit:
                    at = limit
                    break
                past = match(text, start, end)[1]
            else:
                start, past = search(text, at, end)
                if not 0 <= start < limit:
                    self._spent += end - at
                    at = limit
                    break
            if past < 0:
                self._spent += end - start if final else 0  # otherwise RE2 has stopped early
                at = start + 1
                continue
            at = start
            if past == end and not final:
                self._spent += end - at
                break
            self._spent += past - at
            if not self._emit(view, base, at, past, frontier, out):
                return False
            at = past
        self._next = at + base
        return True

    def _emit(self, view: memoryview, base: int, start: int, past: int, frontier: int, out: Matches) -> bool:
        """The match with the core ``view[start:past]``. False: it is not the frontier's yet."""
        first, core = start, self._core
        if core.front is not None:
            low = max(self._resume - base, start - core.front_most)
            first = core.front(view[:start], low, start)[0]
        if first + base >= frontier:
            self._next = start + base
            return False
        text = view[first:past]
        shared = self._window.is_lent(view) or past - first < _LARGE
        out.append(Found(first + base, past + base, bytes(text) if shared else text))
        self._resume = self._next = past + base
        return True

    def _cross_gap(self, gap: LazyGap, high: int, frontier: int, out: Matches) -> bool:
        """As ``_walk``, for the match that is alive from ``_next`` to ``high`` (``plan.LazyGap``)."""
        start = self._next
        past = self._behind_gap(gap, high - gap.tail - _CUT, frontier)
        if past == _LATER:
            self._waiting = True
            return False
        if past == _NOWHERE:
            self._next += 1
            return True
        view, base = self._window.view(max(self._resume, start - self._core.front_most), past)
        return self._emit(view, base, start - base, past - base, frontier, out)

    def _behind_gap(self, gap: LazyGap, at: int, frontier: int) -> int:
        """Where a match ends whose gap reaches behind ``at``; _NOWHERE, or _LATER: it is behind the frontier. Looks
        at each stretch of the gap once.

        A gap whose end can be told by a look for its literals is followed no further than to the frontier, so in
        bytes that are in memory anyway; others are read ahead.
        """
        rest, size = self._core.rest, self._window.size
        assert rest is not None, "there is no gap"
        began = at
        while True:
            low, high = self._clear
            if low <= at <= high:
                began, at = min(began, low), high
            at = _aligned(rest, self._window, at)
            if self._barren[0] <= at <= self._barren[1]:
                self._barren = min(began, self._barren[0]), self._barren[1]
                return _NOWHERE
            lent, least = self._window.lent_stop(at), gap.tail + _CUT
            known = max(frontier, lent)
            follow = self._core.literals is not None and len(self._ends) < _MOST_WAITING
            if follow and frontier < size and known - at < least + _NEAR_LITERAL:
                self._clear = began, at
                return _LATER
            high = size if rest.cut_match is None else min(size, at + least + _GAP_STEP)
            try:
                if (clear := self._unbroken(gap, at, min(known, max(high, lent)) if follow else high)) is not None:
                    if clear > at + _LONGEST_CHARACTER:
                        at = clear
                        continue
                    high = min(high, at + least + _NEAR_LITERAL)
                start, past = _decided(rest, self._window, at, high, anchored=True)
            except ReadFailed as error:
                # Perhaps it ends before the trouble.
                high = error.offset - 1
                if high <= at:
                    raise
                start, past = _decided(rest, self._window, at, high, anchored=True)
                if past < 0 and start == at:
                    raise
            self._spent += (past if past >= 0 else high) - at
            if past >= 0:
                return past
            if start > at:
                self._barren = began, at
                return _NOWHERE
            at = high - gap.tail - _CUT

    def _unbroken(self, gap: LazyGap, at: int, high: int) -> int | None:
        """Up to where what is behind the gap can't begin, from ``at`` on; None where a look for its literals doesn't
        tell."""
        if self._core.literals is None:
            return None
        view, base = self._window.view(at, high)
        whole = self._pattern.plan.latin1
        stop = high - base if whole or high == self._window.size else _between_characters(view, high - base)
        text = as_bytes(view)
        first, plain = self._core.literals.first(text, at - base, stop)
        if not whole and not plain and not is_utf8(text, at - base, first):  # the gap may end here
            return None
        return max(at, base + first - gap.tail)

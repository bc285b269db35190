"""Patterns without a maximum width, searched in order against the file.

A ``Search`` is told, extent by extent, which candidates an engine saw and how far the file is known
(``frontier``: every candidate that starts before it has been learnt), and puts what is decided into a list. It may
look at bytes past the frontier where a match demands it, and it may fall behind where it can't decide yet; at the
frontier ``size`` it has emitted everything.

What makes a result final. Matches from a start s that end within a window [.., w) depend on the window's bytes and
one byte of context after it, which the window has. If the bytes from s to w are not ``alive``, no match from s ends
beyond w, so what RE2 finds from s with endpos w is what it finds in the whole file. At the file's end everything is
final. Without an ``alive`` expression every start counts as alive.

A read that fails leaves the search where it was; ``restart`` begins a new chain behind the trouble. What had been
emitted stays right.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from uring_actors.ops.match.newlines import as_bytes, borders, first_newline, last_newline
from uring_actors.ops.match.plan import Kind
from uring_actors.ops.match.planset import Pattern
from uring_actors.ops.match.window import ReadFailed, TooLong, Window


class Found(NamedTuple):
    """One match: file offsets, and its bytes."""

    start: int
    end: int
    text: bytes


class Search(Protocol):
    """One pattern's search through one file."""

    at: int
    """Matches that start before this have been emitted, or are given up."""

    def learn(self, ends: Sequence[int]) -> None:
        """More candidate ends (file offsets): ascending, without duplicates."""

    def advance(self, frontier: int, newline: int, out: list[Found]) -> None:
        """Emit what is decided up to ``frontier`` (``newline``: the last one before it, -1 if there is none).

        Raises ReadFailed; ``out`` keeps what was found before.
        """

    def decided(self, frontier: int, newline: int) -> int:
        """After ``advance``: no match that is still to come starts before this."""

    def suspect(self, start: int, stop: int) -> None:
        """No engine saw ``[start, stop)``: there may be candidates that begin in it."""

    def restart(self, at: int) -> None:
        """Give up what starts before ``at``, and go on from there with nothing matched."""


def search_for(pattern: Pattern, window: Window) -> Search:
    """The search that the pattern's kind asks for."""
    kind = pattern.plan.kind
    if kind is Kind.PREFIX:
        return PrefixSearch(pattern, window)
    if kind is Kind.LINE:
        return LineSearch(pattern, window) if pattern.plan.candidate is not None else EveryLineSearch(pattern, window)
    assert kind is Kind.FILE, kind
    return FileSearch(pattern, window)


def _union(known: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    return sorted({*known, *ends}) if known else ends


def _emit_lines(pattern: Pattern, window: Window, start: int, stop: int, out: list[Found]) -> None:
    """All matches within ``[start, stop)``, which begins and ends at borders of lines.

    No match holds a newline, so none is cut, and the chain over the file is the lines' chains in a row.
    """
    view, base = window.view(start, stop)
    position = start - base
    while True:
        begin, position = pattern.search(view, position, stop - base)
        if begin < 0:
            return
        out.append(Found(begin + base, position + base, bytes(view[begin:position])))


class EveryLineSearch:
    """LINE without candidates: whole lines, as soon as an extent completes some."""

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self.at = 0
        self._pattern = pattern
        self._window = window

    def learn(self, ends: Sequence[int]) -> None:
        """There are none."""

    def suspect(self, start: int, stop: int) -> None:
        """All lines are searched anyway."""

    def advance(self, frontier: int, newline: int, out: list[Found]) -> None:
        """See Search."""
        stop = frontier if frontier == self._window.size else newline
        if stop > self.at:
            _emit_lines(self._pattern, self._window, self.at, stop, out)
            self.at = stop + 1

    def decided(self, frontier: int, newline: int) -> int:
        """See Search."""
        return self.at

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)


_LINE_STEP = 4 << 10
_NEAR = 1 << 10


class LineSearch:
    """LINE with candidates: the lines that hold one, each once."""

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self.at = 0
        self._pattern = pattern
        self._window = window
        self._ends: Sequence[int] = ()

    def learn(self, ends: Sequence[int]) -> None:
        """See Search."""
        self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search. A match that starts before ``start`` is in the line of that byte."""
        self.learn((start + 1,))

    def advance(self, frontier: int, newline: int, out: list[Found]) -> None:
        """See Search. A line that crosses the frontier is read to its end: its matches are all emitted now.

        Lines whose candidates are near each other are searched as one, with those in between, which have no match: to
        find a line's borders takes longer than to search it.
        """
        k, near = 0, _NEAR
        while k < len(self._ends):
            first, end = k, self._ends[k]
            k += 1
            if end <= self.at:  # in a line that is done
                continue
            while k < len(self._ends) and self._ends[k] - self._ends[k - 1] <= near:
                k += 1
            try:
                start, stop = self._line_start(end - 1), self._line_stop(self._ends[k - 1] - 1)
                _emit_lines(self._pattern, self._window, start, stop, out)
            except ReadFailed:
                if k == first + 1:
                    raise
                k, near = first, -1  # what can be had, line by line
                continue
            self.at = stop + 1
        self._ends = ()

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


_CHUNK = 1 << 20
_SMALLEST_CHUNK = 256


class FileSearch:
    """FILE: windows from ``at`` on, each keeping from the last what is not decided; linear in the file's size.

    In a window [at, w) let u be the least start whose bytes up to w are alive. Every start before u is decided, so
    the chain goes on with what RE2 finds there; the next window begins at u, and is at least twice as long as
    what it takes over, so that bytes are searched a bounded number of times.

    With candidates (a necessary part of every match), nothing is read until one lies wholly behind ``at``.
    """

    def __init__(self, pattern: Pattern, window: Window, at: int = 0) -> None:
        self.at = at
        self._pattern = pattern
        self._window = window
        self._ends: Sequence[int] = ()
        self._chunk = _CHUNK
        self._reach = 0  # the next window must go this far to be worth a try

    def learn(self, ends: Sequence[int]) -> None:
        """See Search."""
        self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search."""
        self.learn((stop - 1 + self._pattern.plan.candidate_max,))

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)
        self._reach = 0

    def advance(self, frontier: int, newline: int, out: list[Found]) -> None:
        """See Search."""
        size = self._window.size
        while self.at < frontier and self._wanted():
            if self._reach > frontier and frontier < size:
                return
            stop = min(frontier, max(self.at + self._chunk, self._reach))
            if self._pattern.alive is None:
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
        if self._ends and self._ends[0] < least:
            self._ends = self._ends[bisect_left(self._ends, least) :]
        return len(self._ends) > 0

    def _step(self, stop: int, out: list[Found]) -> None:
        """One window."""
        view, base = self._window.view(self.at, stop)
        decided = self._decided(view, base, stop)
        at = self.at
        while at < decided:
            start, end = self._pattern.search(view, at - base, stop - base)
            if start < 0 or start + base >= decided:
                at = decided
                break
            out.append(Found(start + base, end + base, bytes(view[start:end])))
            at = end + base
        # A match that ends behind the least alive start makes us look for the next one: cheap in small windows.
        self._chunk = max(_SMALLEST_CHUNK, self._chunk // 4) if at > decided else min(_CHUNK, 2 * self._chunk)
        self.at = at
        self._reach = at + 2 * (stop - at)

    def _decided(self, view: memoryview, base: int, stop: int) -> int:
        """The least start that may match beyond ``stop``; ``stop`` where none does."""
        if stop == self._window.size:
            return stop
        if self._pattern.alive_suffix is None:
            return self.at
        start, _ = self._pattern.alive_suffix(view[: stop - base], self.at - base, stop - base)
        return stop if start < 0 else start + base


_MANY_STARTS = 4
"""Starts of one candidate from which on windows are quicker than to try each."""

_FIRST_WINDOW = 128
_FOREIGN_WINDOW = 512
"""Where a byte that no match holds ends the search before the window does, mostly."""
_ALLOWANCE = 1 << 20


class PrefixSearch:
    """PREFIX: every start that a candidate allows, in ascending order, each tried where it stands.

    A candidate that ends at e begins in [e - candidate_max, e - candidate_min]. Where attempts have run over more
    than four times the file (many starts, all alive for long), the rest of the file is left to the linear FileSearch.
    """

    def __init__(self, pattern: Pattern, window: Window) -> None:
        self.at = 0
        self._pattern = pattern
        self._window = window
        self._ends: Sequence[int] = ()
        self._spent = 0
        self._linear: FileSearch | None = None

    def learn(self, ends: Sequence[int]) -> None:
        """See Search."""
        if self._linear is not None:
            self._linear.learn(ends)
        else:
            self._ends = _union(self._ends, ends)

    def suspect(self, start: int, stop: int) -> None:
        """See Search. A match that starts before ``start`` has its candidate from the extent before."""
        if self._linear is not None:
            self._linear.suspect(start, stop)

    def restart(self, at: int) -> None:
        """See Search."""
        self.at = max(self.at, at)
        if self._linear is not None:
            self._linear.restart(at)

    def advance(self, frontier: int, newline: int, out: list[Found]) -> None:
        """See Search."""
        if self._linear is None:
            self._try_starts(frontier, out)
        if self._linear is not None:
            self._linear.advance(frontier, newline, out)
            self.at = self._linear.at

    def decided(self, frontier: int, newline: int) -> int:
        """See Search."""
        return max(self.at, frontier) if self._linear is None else self._linear.at

    def _try_starts(self, frontier: int, out: list[Found]) -> None:
        if not self._ends:
            return
        plan = self._pattern.plan
        many = plan.candidate_max - plan.candidate_min >= _MANY_STARTS
        look = self._windows if many and plan.alive is not None else self._one_by_one
        for end in self._ends:
            start, stop = max(self.at, end - plan.candidate_max), min(end - plan.candidate_min + 1, frontier)
            if start >= stop:
                continue
            self.at = start
            look(end, stop, out)
            if self._spent > 4 * self._window.size + _ALLOWANCE:
                self._linear = FileSearch(self._pattern, self._window, self.at)
                self._linear.learn(self._ends)
                return
        # A candidate that starts at the frontier or behind it comes again, with the extent that it starts in.
        self._ends = ()

    def _one_by_one(self, end: int, stop: int, out: list[Found]) -> None:
        """Try every start from ``at`` up to ``stop``."""
        while self.at < stop:
            found = self._attempt(self.at)
            if found is not None:
                out.append(found)
                self.at = found.end
            else:
                self.at += 1
            if self._spent > 4 * self._window.size + _ALLOWANCE:
                return

    def _windows(self, end: int, stop: int, out: list[Found]) -> None:
        """The same where there are many starts: most are ruled out together, in a window that ends behind ``end``."""
        size = self._window.size
        first = length = _FIRST_WINDOW if self._pattern.foreign is None else _FOREIGN_WINDOW
        while self.at < stop:
            high = min(size, max(end, self.at) + length)
            try:
                grown = self._search(end, high, stop, out)
            except TooLong:
                raise
            except ReadFailed as error:
                # Perhaps what lies before the trouble is enough.
                if error.offset - 1 <= self.at:
                    raise
                if self._search(end, error.offset - 1, stop, out):
                    raise
                continue
            length = 4 * length if grown else first

    def _search(self, end: int, high: int, stop: int, out: list[Found]) -> bool:
        """One step within the file's bytes up to ``high``: the next match, or none up to ``stop``. True: undecided.

        A byte that no match holds ends all matches before it. Where the window has none, the starts before the least
        one that is alive at the window's end are decided.
        """
        view, base = self._window.view(self.at, high)
        last, low = high - base, self.at - base
        final = high == self._window.size
        if self._pattern.foreign is not None:
            before, behind = borders(as_bytes(view), self._pattern.foreign, low, min(end - base, last), last)
            low = min(before + 1, stop - base)
            final, last = final or behind < last, behind
        undecided = min(stop, high) - base
        if not final:
            assert self._pattern.alive_suffix is not None, "windows are for patterns with an alive expression"
            start, _ = self._pattern.alive_suffix(view[:last], low, last)
            if start >= 0:
                undecided = min(undecided, start)
        if undecided > low:
            start, past = self._pattern.search(view, low, last)
            self._spent += (past if start >= 0 else last) - low
            if start >= 0 and start < undecided:
                out.append(Found(start + base, past + base, bytes(view[start:past])))
                self.at = past + base
                return False
        else:
            self._spent += last - low
        self.at = undecided + base
        return self.at < stop

    def _attempt(self, start: int) -> Found | None:
        """The match that starts at ``start``."""
        size = self._window.size
        length = _FIRST_WINDOW if self._pattern.alive is not None else size - start
        while True:
            stop = min(size, start + length)
            try:
                final, found = self._look(start, stop)
            except TooLong:
                raise
            except ReadFailed as error:
                # Perhaps what lies before the trouble is enough.
                if error.offset - 1 <= start:
                    raise
                final, found = self._look(start, error.offset - 1)
                if not final:
                    raise
            if final:
                return found
            length *= 4

    def _look(self, start: int, stop: int) -> tuple[bool, Found | None]:
        """What matches at ``start`` within ``stop``, and whether that is final."""
        view, base = self._window.view(start, stop)
        _, end = self._pattern.match(view, start - base, stop - base)
        alive = self._pattern.alive
        final = stop == self._window.size or (alive is not None and alive(view, start - base, stop - base)[1] < 0)
        # Count what RE2 must have looked at: it stops early in a window that it finds dead.
        if not final or (end < 0 and stop == self._window.size):
            self._spent += stop - start
        if not final or end < 0:
            return final, None
        end += base
        self._spent += end - start
        return True, Found(start, end, bytes(view[start - base : end - base]))

"""A file's extents, made into its rows.

    waiting (extents may come in any order) → settled in order, one after the other → finished

The settler knows, at the border it has reached: how many newlines lie before it and where the last one is, and for
each pattern where its last match ended (``resume``). From these an extent's relative rows become the file's.

A match that ends behind its extent's border changes what the next extent should have found for that pattern, since
that one began as if nothing had matched. Its matches that start before ``resume`` go. Where the last that went ends
behind ``resume``, others may start in between: the stretch is read again and searched from ``resume`` until the
true chain stands where the extent's chain stood, after which both are the same.

After an extent that could not be read, nothing is known of the newlines in it: rows keep their offsets, their line is
null, and their column is null until the first newline. Chains begin anew at the next extent.

Nothing that is not known to be right is emitted: what can't be decided becomes a ``Fault``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from uring_actors.arena import abi
from uring_actors.hot import hot
from uring_actors.ops.match.confirm import ExtentMatches, Unread, mark
from uring_actors.ops.match.newlines import NO_INDEX, Bytes, Index, Ints, as_bytes, count_before
from uring_actors.ops.match.planset import Pattern, PlanSet
from uring_actors.ops.match.rows import NO_ROWS, Marked, Row, Rows
from uring_actors.ops.match.unbounded import Found, Matches, Search, search_for
from uring_actors.ops.match.window import WINDOW_LIMIT, FileGone, FileReader, ReadFailed, TooLong, Window
from uring_actors.pieces import LOST, NO_NEWLINE, UNKNOWN, Piece, PieceEnd

_APART = 4 * abi.NEWLINE_CHUNK
"""Matches that start so far from each other have what lies between them left out when newlines are counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble at ``offset``: rows that start at ``since`` or later may be missing, or begin a new chain.

    ``pattern`` is the index of the pattern concerned; None stands for all, or for all unbounded ones where the
    file could not be read again.
    """

    offset: int
    errno: int
    reason: str
    since: int
    pattern: int | None = None


@dataclass(slots=True, eq=False)
class Settled:
    """What became final when an extent was settled: rows that start in it, and rows of unbounded patterns."""

    extent: int
    rows: Rows = NO_ROWS
    faults: tuple[Fault, ...] = ()


class FileSettler:
    """One file's settler, or one piece's (``pieces.py``), which begins at the piece's border. Not for two threads at
    once; ``close`` it when it will not be finished.

    ``window`` reads the file, for whoever needs what lies around a row; it opens the file again after ``close``.
    """

    def __init__(
        self,
        plans: PlanSet,
        size: int,
        open_reader: Callable[[], FileReader],
        *,
        window_limit: int = WINDOW_LIMIT,
        piece: Piece | None = None,
        first: int = 0,
    ) -> None:
        """``size`` is the file's as it was listed; ``open_reader`` is called only when the file is needed again.
        ``piece``: what is settled, without unbounded patterns; its first extent has the number ``first``."""
        self.size = size
        self._plans = plans
        self._piece = piece or Piece(0, size)
        self._head: list[tuple[int, int, int]] | None = None if piece is None else []
        self._waiting: dict[int, ExtentMatches | Unread] = {}
        self._next = first
        self._frontier = self._piece.start
        self._lines = 0
        self._newline = NO_NEWLINE
        # By pattern, where a match crosses the frontier: its end.
        self._resume: dict[int, int] = dict(self._piece.resume)
        self.window = Window(open_reader, size, window_limit)
        self._unbounded = _Unbounded(plans, self.window) if plans.unbounded and size else None

    @property
    def finished(self) -> bool:
        """Whether all of the file has been settled (or given up)."""
        return self._frontier == self._piece.stop

    @property
    def end(self) -> PieceEnd:
        """What the piece leaves, once all of its extents have come."""
        if not self.finished:  # the file shrank
            return LOST
        head = sorted(self._head or (), key=lambda match: match[1])
        return PieceEnd(self._lines, self._newline, tuple(sorted(self._resume.items())), tuple(head))

    def decided(self) -> int:
        """No row that is still to come starts before this offset."""
        if self._unbounded is None:
            return self._frontier
        return min(self._frontier, self._unbounded.decided(self._frontier, self._newline))

    def add_empty(self, extent: int, stop: int, newlines: int, newline: int) -> bool:
        """Take extent number ``extent``, up to ``stop``, in which no engine saw anything, where nothing else hangs on
        it: it is the next, no match runs into it, and no search has anything to do. It has ``newlines``, the last at
        ``newline``. False: not taken, it is for ``add``."""
        if extent != self._next or self._waiting or self._resume:
            return False
        if self._unbounded is not None and self._unbounded.searching:
            return False
        if newlines:
            self._newline = newline
            if self._lines != UNKNOWN:
                self._lines += newlines
        self._frontier = stop
        if self._unbounded is not None:
            self._unbounded.borders.add(stop, self._lines, self._newline)
        self._next += 1
        if self.finished:
            self.close()
        return True

    def add(self, extent: int, result: ExtentMatches | Unread) -> list[Settled]:
        """Take extent number ``extent``; what became final by it, in order. Whoever has its bytes in memory lends
        them to ``window`` meanwhile.

        Every extent appears in exactly one ``Settled``, its own, unless ``add_empty`` took it; it may come out of a
        later call.
        """
        assert extent >= self._next, f"extent {extent} was settled before"
        assert extent not in self._waiting, f"extent {extent} came twice"
        self._waiting[extent] = result
        done = []
        while (ready := self._waiting.pop(self._next, None)) is not None:
            assert ready.start == self._frontier <= ready.stop <= self._piece.stop, "extents don't meet"
            done.append(self._lose(ready) if isinstance(ready, Unread) else self._settle(ready))
            self._next += 1
        if self.finished:
            self.close()
        return done

    def close(self) -> None:
        """Give the file back. Idempotent."""
        self.window.close()

    def _lose(self, extent: Unread) -> Settled:
        self._lines = self._newline = UNKNOWN
        self._cross(extent.stop)
        faults = [Fault(extent.start, extent.errno, extent.reason, extent.start)]
        parts = [] if self._unbounded is None else self._unbounded.pass_over(extent, faults)
        return Settled(self._next, Rows.join(parts) if parts else NO_ROWS, tuple(faults))

    def _settle(self, extent: ExtentMatches) -> Settled:
        faults: list[Fault] = []
        marked, rows, reach = extent.marked, NO_ROWS, 0
        if self._resume and len(marked):
            marked = self._meet(extent, marked, faults)
        if self._head is not None and extent.start <= self._piece.start + self._plans.halo:
            self._note_head(marked)
        if len(marked):
            rows, reach = _absolute(marked, self._lines, self._newline)
        if extent.newlines:
            self._newline = extent.newline
        if self._lines != UNKNOWN:
            self._lines += extent.newlines
        self._cross(extent.stop)
        if reach > extent.stop:
            for k in np.flatnonzero(marked.end > extent.stop).tolist():
                self._resume[int(marked.pattern[k])] = int(marked.end[k])
        if self._unbounded is not None and (parts := self._unbounded.advance(extent, self._newline, faults)):
            rows = Rows.join([rows, *parts] if len(rows) else parts)
        return Settled(self._next, rows, tuple(faults))

    def _note_head(self, marked: Marked) -> None:
        """Remember the matches that a match from before the piece may overlap."""
        assert self._head is not None
        few = np.flatnonzero(marked.start <= self._piece.start + self._plans.halo)
        places = [(int(marked.pattern[k]), int(marked.start[k]), int(marked.end[k])) for k in few.tolist()]
        patterns, border = self._plans.patterns, self._piece.start
        self._head += [place for place in places if place[1] < border + patterns[place[0]].width - 1]

    def _cross(self, border: int) -> None:
        """The frontier is at ``border`` now."""
        self._frontier = border
        if self._resume:
            self._resume = {index: end for index, end in self._resume.items() if end > border}
        if self._unbounded is not None:
            self._unbounded.borders.add(border, self._lines, self._newline)

    # -- where a match runs in from the extent before -----------------------------------------------------------

    def _meet(self, extent: ExtentMatches, marked: Marked, faults: list[Fault]) -> Marked:
        """The extent's rows as they are when the chains begin at ``resume``, not at the extent's start."""
        keep = np.ones(len(marked), np.bool_)
        parts = []
        for index, resume in self._resume.items():
            mine = np.flatnonzero(marked.pattern == index)
            starts, ends = marked.start[mine], marked.end[mine]
            first = int(np.searchsorted(starts, resume))
            if first and ends[first - 1] > resume:
                try:
                    first, part = self._search_again(extent, index, resume, starts, ends)
                    parts.append(part)
                except ReadFailed as error:
                    first = len(mine)
                    faults.append(_fault(error, resume, index))
            keep[mine[:first]] = False
        if not keep.all():
            parts.append(marked.take(np.flatnonzero(keep)))
        else:
            parts.append(marked)
        return Marked.merge(parts) if len(parts) > 1 else parts[0]

    def _search_again(
        self, extent: ExtentMatches, index: int, resume: int, starts: Ints, ends: Ints
    ) -> tuple[int, Marked]:
        """How many of one pattern's rows go, and those that take their place."""
        pattern = self._plans.patterns[index]
        # ``resume`` lies behind the extent's start, so its context is in the extent.
        view, base = self.window.view(extent.start, min(self.size, extent.stop + pattern.width), before=0)
        if pattern.literal is not None:
            dropped = len(starts)
            first = literal_chain(as_bytes(view), pattern.literal, resume - base, extent.stop - base)
            bounds = np.stack([first, first + len(pattern.literal)], axis=1) + base
        else:
            dropped, bounds = _chain_until_met(pattern, view, base, resume, extent.stop, starts, ends)
        spans = np.column_stack([np.full(len(bounds), index, np.int64), bounds - extent.start])
        return dropped, mark(as_bytes(view).ctypes.data + extent.start - base, 0, spans, extent.start)


@hot
def literal_chain(text: Bytes, literal: Bytes, start: int, stop: int) -> Ints:
    """Non-overlapping places of ``literal`` that begin in ``text[start:stop]``, greedily from ``start``."""
    width = literal.size
    stop = min(stop, text.size - width + 1)
    places = np.empty(max(0, stop - start) // width + 1, np.int64)
    found = 0
    at = start
    while at < stop:
        same = 0
        while same < width and text[at + same] == literal[same]:
            same += 1
        if same == width:
            places[found] = at
            found += 1
            at += width
        else:
            at += 1
    return places[:found]


def _chain_until_met(
    pattern: Pattern, view: memoryview, base: int, resume: int, stop: int, starts: Ints, ends: Ints
) -> tuple[int, Ints]:
    """The true chain from ``resume`` until it stands where the chain of ``starts`` and ``ends`` stood.

    Both take the least start from where they stand, so they are the same once nothing starts between the two
    places. Returns how many of the old chain's matches are void, and the new ones (starts and ends, file offsets).
    A match that starts before ``limit`` ends before ``limit + W``: the cut there changes nothing.
    """
    spans: list[int] = []
    void = int(np.searchsorted(starts, resume))
    while void and resume < (limit := min(int(ends[void - 1]), stop)):
        end = min(limit + pattern.width - base, len(view))
        start, past = pattern.search(view, resume - base, end)
        if start < 0 or start + base >= limit:
            break
        resume = past + base
        spans += (start + base, resume)
        while void < len(starts) and starts[void] < resume:
            void += 1
    return void, np.array(spans, np.int64).reshape(-1, 2)


@hot
def _place(start: Ints, end: Ints, newlines: Ints, newline: Ints, lines: int, before: int) -> int:
    """Newlines become lines, the last newline's offset the column; the furthest end. ``_absolute`` says of what."""
    reach = 0
    for k in range(start.size):
        last = before if newline[k] == NO_NEWLINE else newline[k]
        newlines[k] = 0 if lines == UNKNOWN else lines + newlines[k] + 1
        newline[k] = 0 if last == UNKNOWN else start[k] - last
        reach = max(reach, end[k])
    return reach


def _absolute(marked: Marked, lines: int, newline: int) -> tuple[Rows, int]:
    """``marked`` counts from a border with ``lines`` newlines before it, the last at ``newline``; its arrays become
    the rows'. And where the match that ends last ends."""
    line, column = marked.newlines, marked.newline
    reach = _place(marked.start, marked.end, line, column, lines, newline)
    return Rows(marked.pattern, marked.start, marked.end, line, column, marked.offsets, marked.data), reach


def _fault(error: ReadFailed, since: int, pattern: int | None) -> Fault:
    return Fault(error.offset, error.errno or 0, error.message, since, pattern)


class _Borders:
    """What is known at each border of extents, from the file's start on: three numbers each."""

    def __init__(self) -> None:
        self._at = array("q", [0])
        self._lines = array("q", [0])
        self._newline = array("q", [NO_NEWLINE])

    def add(self, at: int, lines: int, newline: int) -> None:
        """``at`` is not below the last one's."""
        self._at.append(at)
        self._lines.append(lines)
        self._newline.append(newline)

    def before(self, offset: int) -> tuple[int, int | None, int, int]:
        """The last border at or before ``offset`` and the next one (None: there is none yet)."""
        k = bisect_right(self._at, offset)
        following = self._at[k] if k < len(self._at) else None
        return self._at[k - 1], following, self._lines[k - 1], self._newline[k - 1]


class _Unbounded:
    """The searches of a file's unbounded patterns, and how their matches become rows.

    A search that waits for candidates is made when its first one comes: most files have none.
    """

    def __init__(self, plans: PlanSet, window: Window) -> None:
        self.borders = _Borders()
        self._plans = plans
        self._window = window
        self._searches: dict[int, Search] = {p.plan.index: search_for(p, window) for p in plans.without_candidates}
        self._stuck: dict[int, int] = {}  # searches that wait for an extent behind this offset
        self._given_up: set[int] = set()
        self._index = NO_INDEX  # of the extent that was settled last …
        self._indexed = 0  # … which begins here

    @property
    def searching(self) -> bool:
        """Whether a search has something to do in an extent without candidates."""
        return bool(self._stuck) or not all(search.idle for search in self._searches.values())

    def decided(self, frontier: int, newline: int) -> int:
        """No match that is still to be found starts before this offset; as ``Search.decided``."""
        bounds = [
            search.at if index in self._stuck else search.decided(frontier, newline)
            for index, search in self._searches.items()
        ]
        # Of searches that no candidate has called into being yet.
        if self._plans.line_candidates.difference(self._searches, self._given_up):
            bounds.append(max(0, newline + 1))
        if self._plans.file_candidates.difference(self._searches, self._given_up):
            bounds.append(0)
        return min(bounds, default=frontier)

    def advance(self, extent: ExtentMatches, newline: int, faults: list[Fault]) -> list[Rows]:
        """Rows that are decided now that ``extent`` is settled (``newline``: the last before its end)."""
        for index in [index for index, offset in self._stuck.items() if extent.start > offset]:
            del self._stuck[index]
            self._searches[index].restart(extent.start)
        for index, ends in extent.candidates.items():
            search = self._search(index)
            if search is not None and index not in self._stuck:
                search.learn(ends)
        self._index, self._indexed = extent.index, extent.start
        return self._advance_all(extent, newline, faults)

    def pass_over(self, extent: Unread, faults: list[Fault]) -> list[Rows]:
        """As ``advance`` for an extent that no engine saw: the searches try what the file itself gives."""
        for pattern in self._plans.unbounded:
            search = self._search(pattern.plan.index)
            if search is not None:
                search.suspect(extent.start, extent.stop)
        self._index = NO_INDEX
        return self._advance_all(extent, UNKNOWN, faults)

    def _search(self, index: int) -> Search | None:
        search = self._searches.get(index)
        if search is None and index not in self._given_up:
            search = self._searches[index] = search_for(self._plans.patterns[index], self._window)
        return search

    def _advance_all(self, extent: ExtentMatches | Unread, newline: int, faults: list[Fault]) -> list[Rows]:
        found: list[tuple[int, int, Found]] = []
        parts: list[Rows] = []
        for index in [i for i in self._searches if i not in self._stuck]:
            if search := self._searches.get(index):  # else the file is gone, and with it all searches
                matches = Matches()
                self._run(index, search, extent, newline, matches, faults)
                found += [(one.start, index, one) for one in matches.found]
                parts += [self._rows_of_many(index, *many) for many in matches.many]
        if found:
            parts.append(self._rows_of(found))
        return parts

    def _rows_of(self, found: list[tuple[int, int, Found]]) -> Rows:
        """Rows of matches by start and pattern."""
        found.sort(key=lambda match: match[:2])
        lines, columns = self._places(np.array([match[0] for match in found], np.int64))
        rows = [
            Row(index, one.start, one.end, line, column, one.text)
            for (_, index, one), line, column in zip(found, lines.tolist(), columns.tolist(), strict=True)
        ]
        return Rows.of(rows)

    def _rows_of_many(self, index: int, starts: Ints, offsets: Ints, data: Bytes) -> Rows:
        patterns = np.full(len(starts), index, np.int32)
        return Rows(patterns, starts, starts + np.diff(offsets), *self._places(starts), offsets, data)

    def _gone(self) -> int:
        """Give all searches up; the least offset that one of them had not decided yet."""
        waiting = len(self._searches) + len(self._given_up) < len(self._plans.unbounded)
        least = 0 if waiting else min(search.at for search in self._searches.values())
        self._given_up = {pattern.plan.index for pattern in self._plans.unbounded}
        self._searches.clear()
        return least

    def _run(
        self,
        index: int,
        search: Search,
        extent: ExtentMatches | Unread,
        newline: int,
        matches: Matches,
        faults: list[Fault],
    ) -> None:
        told = False
        while True:
            try:
                search.advance(extent.stop, newline, matches)
                return
            except FileGone as error:
                faults.append(_fault(error, self._gone(), None))
                return
            except TooLong as error:
                faults.append(_fault(error, search.at, index))
                del self._searches[index]
                self._given_up.add(index)
                return
            except ReadFailed as error:
                if not told:
                    faults.append(_fault(error, search.at, index))
                    told = True
                if error.offset >= extent.start or isinstance(extent, Unread):
                    self._stuck[index] = error.offset
                    return
                # Where the byte before the extent is lost, its first byte lacks its context.
                search.restart(max(extent.start, error.offset + 2))

    def _places(self, starts: Ints) -> tuple[Ints, Ints]:
        """Lines and columns (0: unknown) of ascending ``starts``, counted from the border before each."""
        line, column = np.zeros((2, len(starts)), np.int64)
        done = 0
        while done < len(starts):
            border, following, lines, newline = self.borders.before(int(starts[done]))
            stop = len(starts) if following is None else int(np.searchsorted(starts, following))
            index = self._index if border == self._indexed else NO_INDEX
            if len(index) and not self._window.has(border, int(starts[stop - 1])):
                # Only what is near them is read.
                apart = np.flatnonzero(np.diff(starts[done:stop]) > _APART)
                stop = done + 1 + int(apart[0]) if len(apart) else stop
            part = slice(done, stop)
            with suppress(ReadFailed):  # the rows stand, without line and column
                counts, lasts = self._count(border, index, starts[part])
                last = np.where(lasts < 0, newline, border + lasts)
                line[part] = 0 if lines == UNKNOWN else lines + counts + 1
                column[part] = np.where(last == UNKNOWN, 0, starts[part] - last)
            done = stop
        return line, column

    def _count(self, border: int, index: Index, starts: Ints) -> tuple[Ints, Ints]:
        """Newlines between ``border`` and each of ``starts``, and how far behind it the last one is (or -1).

        ``index`` is that of the payload which begins at the border, or NO_INDEX.
        """
        chunk = 0
        if len(index):  # the last newline before the first start, if there is one, is in this chunk or behind it
            chunk = upto = (int(starts[0]) - border) // abi.NEWLINE_CHUNK
            while chunk and index[chunk] == index[upto]:
                chunk -= 1
        view, base = self._window.view(border + chunk * abi.NEWLINE_CHUNK, int(starts[-1]), before=0)
        counts, lasts = np.empty((2, len(starts)), np.int64)
        count_before(as_bytes(view), border - base, index, starts - border, counts, lasts)
        return counts, lasts

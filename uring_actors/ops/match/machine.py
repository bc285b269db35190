"""Compiled loops that run a pattern's program (``program.py``): one start, a candidate's starts, all candidates'.

Places are offsets in the file. Of its ``size`` bytes [``base``, ``stop``) are in sight, byte k at address
``origin`` + k. No start is tried without the byte before it in sight.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from uring_actors.arena.atomics import load8, load32, load64, store64
from uring_actors.hot import hot
from uring_actors.ops.match.newlines import Bytes, Ints
from uring_actors.ops.match.program import (
    ASSERTIONS,
    BEYOND,
    FIRST,
    IN,
    INSTRUCTION_BYTES,
    OP_ASSERT,
    OP_BYTE,
    OP_JUMP,
    OP_LAZY_RUN,
    OP_PEEK,
    OP_RUN,
    OP_SAVE,
    OP_SPLIT,
    OUT,
    Program,
)
from uring_actors.ops.match.tree import Assert

NONE: Final = -1
ASK: Final = -2

BUDGET: Final = 1 << 12
"""Steps for one start; eight bytes of a run are one."""
_STACK: Final = 1 << 8
"""Choices that may be open at once."""
_CHOICE_BYTES: Final = 24
_STACK_WORDS: Final = _STACK * _CHOICE_BYTES // 8 + 1
_BYTES_A_STEP: Final = 8

# A choice's first word: what it is, and above that its instruction (_UNDO: the number of what was saved).
_OTHER: Final = 0  # the other way of a split, from a place
_FEWER: Final = 1  # of a run: least place, and the one that was tried
_MORE: Final = 2  # of a lazy run: the place that was tried, and how many more it may be
_UNDO: Final = 3  # a group's place as it was before

_BEGIN_TEXT: Final = ASSERTIONS.index(Assert.BEGIN_TEXT)
_END_TEXT: Final = ASSERTIONS.index(Assert.END_TEXT)
_BEGIN_LINE: Final = ASSERTIONS.index(Assert.BEGIN_LINE)
_END_LINE: Final = ASSERTIONS.index(Assert.END_LINE)
_WORD: Final = ASSERTIONS.index(Assert.WORD)


@hot
def _is_word(byte: int) -> bool:
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95


@hot
def _holds(what: int, origin: int, base: int, stop: int, size: int, at: int) -> int:
    """Whether the assertion holds at ``at``: OUT, IN or BEYOND."""
    if (at == base and base > 0) or (at == stop and stop < size):
        return BEYOND
    if what == _BEGIN_TEXT:
        return IN if at == 0 else OUT
    if what == _END_TEXT:
        return IN if at == size else OUT
    before = load8(origin + at - 1) if at > 0 else 10
    behind = load8(origin + at) if at < size else 10
    if what == _BEGIN_LINE:
        return IN if before == 10 else OUT
    if what == _END_LINE:
        return IN if behind == 10 else OUT
    border = _is_word(before) != _is_word(behind)
    return IN if border == (what == _WORD) else OUT


@hot
def _attempt(
    code: int, sets: int, origin: int, base: int, stop: int, size: int, start: int, stack: int, groups: int
) -> int:
    """Where the match that starts at ``start`` ends; NONE or ASK. ``groups``: the address of the places where OP_SAVE
    puts what it says; 0: nobody wants to know. Behind the stack: how many steps were left (less than none, where a
    run was long)."""
    pc, at, top, left = 0, start, 0, BUDGET
    while True:
        left -= 1
        store64(stack + _STACK * _CHOICE_BYTES, left)
        if left < 0 or top >= _STACK - 1:
            return ASK
        here = code + pc * INSTRUCTION_BYTES
        operation, a = load32(here), load32(here + 4)
        failed = False
        pc += 1
        if operation == OP_BYTE:
            if at == stop:
                if stop < size:
                    return ASK
                failed = True
            else:
                how = load8(sets + (a << 8) + load8(origin + at))
                if how == BEYOND:
                    return ASK
                failed = how == OUT
                at += 1
        elif operation in (OP_RUN, OP_LAZY_RUN):
            least, most = load32(here + 8), load32(here + 12)
            table, goal = sets + (a << 8), at + (most if operation == OP_RUN else least)
            end, limit = at, min(goal, stop)
            while end < limit and load8(table + load8(origin + end)) == IN:
                end += 1
            if end < limit:
                if load8(table + load8(origin + end)) == BEYOND:
                    return ASK
            elif limit < goal and stop < size:
                return ASK
            left -= (end - at) // _BYTES_A_STEP
            if end - at < least:
                failed = True
            else:
                choice = stack + top * _CHOICE_BYTES
                if operation == OP_RUN and end - at > least:
                    store64(choice, pc << 2 | _FEWER)
                    store64(choice + 8, at + least)
                    store64(choice + 16, end)
                    top += 1
                elif operation == OP_LAZY_RUN and most > least:
                    store64(choice, pc << 2 | _MORE)
                    store64(choice + 8, end)
                    store64(choice + 16, most - least)
                    top += 1
                at = end
        elif operation == OP_SPLIT:
            choice = stack + top * _CHOICE_BYTES
            store64(choice, load32(here + 8) << 2 | _OTHER)
            store64(choice + 8, at)
            top += 1
            pc = a
        elif operation == OP_JUMP:
            pc = a
        elif operation == OP_PEEK:
            failed = at == size or (at < stop and load8(sets + (a << 8) + load8(origin + at)) == OUT)
        elif operation == OP_SAVE:
            if groups != 0:
                if top > 0:
                    choice = stack + top * _CHOICE_BYTES
                    store64(choice, a << 2 | _UNDO)
                    store64(choice + 8, load64(groups + 8 * a))
                    top += 1
                store64(groups + 8 * a, at)
        elif operation == OP_ASSERT:
            how = _holds(a, origin, base, stop, size, at)
            if how == BEYOND:
                return ASK
            failed = how == OUT
        else:
            return at
        while failed:
            if top == 0:
                return NONE
            top -= 1
            choice = stack + top * _CHOICE_BYTES
            what, first = load64(choice), load64(choice + 8)
            kind = what & 3
            pc = what >> 2
            if kind == _UNDO:
                store64(groups + 8 * pc, first)
                continue
            left -= 1
            failed = False
            if kind == _OTHER:
                at = first
            elif kind == _FEWER:
                at = load64(choice + 16) - 1
                if at > first:
                    store64(choice + 16, at)
                    top += 1
            else:
                if first == stop:
                    if stop < size:
                        return ASK
                    failed = True
                    continue
                table = sets + (load32(code + (pc - 1) * INSTRUCTION_BYTES + 4) << 8)
                how = load8(table + load8(origin + first))
                if how == BEYOND:
                    return ASK
                if how == OUT:
                    failed = True
                    continue
                at = first + 1
                more = load64(choice + 16) - 1
                if more > 0:
                    store64(choice + 8, at)
                    store64(choice + 16, more)
                    top += 1


@hot
def _groups(code: int, sets: int, text: Bytes, start: int, places: Ints) -> int:
    stack = np.empty(_STACK_WORDS, np.int64)
    places[:] = -1
    size = text.size
    return _attempt(code, sets, text.ctypes.data, 0, size, size + 1, start, stack.ctypes.data, places.ctypes.data)


@hot
def _entropies(
    code: int,
    sets: int,
    text: Bytes,
    base: int,
    size: int,
    starts: Ints,
    ends: Ints,
    number: int,
    places: Ints,
    found: NDArray[np.float64],
    secrets: Ints,
) -> None:
    stack = np.empty(_STACK_WORDS, np.int64)
    counts = np.zeros(256, np.int64)
    origin, stop = text.ctypes.data - base, base + text.size
    for k in range(starts.size):
        at = starts[k]
        if (at == base and base > 0) or at < base or at >= stop:
            continue
        places[:] = -1
        past = _attempt(code, sets, origin, base, stop, size, at, stack.ctypes.data, places.ctypes.data)
        if past != ends[k]:
            continue
        group = number
        if group == 0:
            group = 1
            while 2 * group < places.size and places[2 * group + 1] <= places[2 * group]:
                group += 1
        if 2 * group >= places.size:
            continue
        low, high = places[2 * group], places[2 * group + 1]
        counts[:] = 0
        plain = high > low
        for i in range(low, high):
            byte = load8(origin + i)
            counts[byte] += 1
            plain &= byte < 128
        if plain:
            secrets[k, 0], secrets[k, 1] = low, high
            bits = 0.0
            for i in range(low, high):  # each byte's share of them
                bits -= math.log2(counts[load8(origin + i)] / (high - low))
            found[k] = bits / (high - low)


class Groups:
    """Where a pattern's groups are in a match. Not for two threads at once."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._places = np.empty(2 * program.groups + 2, np.int64)

    def entropies(
        self, text: Bytes, base: int, size: int, starts: Ints, ends: Ints, number: int
    ) -> tuple[NDArray[np.float64], Ints]:
        """For each match the bits a byte that group ``number`` of it has (0: the first group that is not empty), and
        where that group begins and ends in the file.

        ``text`` is the file's bytes from ``base`` on. Infinite and -1 where that isn't known, or the bytes are no
        ASCII.
        """
        found, places = np.full(len(starts), np.inf), np.full((len(starts), 2), -1)
        _entropies(*self._program.addresses, text, base, size, starts, ends, number, self._places, found, places)
        return found, places

    def find(self, text: Bytes, start: int) -> tuple[int, list[int]]:
        """Where the match at ``start`` ends, NONE or ASK (also where the bytes behind ``text`` may decide).

        Group k is at the 2k-th to (2k + 1)-th number (-1: it is not in the match). The first two are nobody's.
        """
        end = _groups(*self._program.addresses, text, start, self._places)
        return end, self._places.tolist()


_RESUME: Final = 0
_NEXT: Final = 1
_CANDIDATE: Final = 2
_FOUND: Final = 3
_LEFT: Final = 4
_STATES: Final = 5

_STEPS_A_CANDIDATE: Final = 1 << 10
"""About as many as take RE2's time for it."""
_STEPS_A_MATCH: Final = 1 << 9

MOST_SPANS: Final = 1 << 10
ASKED: Final = 8
"""A program that leaves more than one in so many candidates to RE2 only costs time."""


class Walk:
    """Through a pattern's candidates, by its program: that of the core where it has a front (PREFIX).

    ``resume``: where the last match ended. ``next``: no core that starts between the two has a match. ``spans``: the
    matches of the last ``advance``, rows of start and end. ``tired``: it has taken more steps than it is worth, and
    gets no further.
    """

    def __init__(
        self, program: Program, ends: Ints, least: int, most: int, frontier: int, limit: int, room: int | None = None
    ) -> None:
        """Cores begin ``most`` to ``least`` bytes before one of ``ends``, and before ``limit``; the first match that
        begins at ``frontier`` or behind it, front and all, ends the walk. ``room``: matches of one ``advance`` at
        most; None: a candidate has not more than one."""
        self._program = program
        self._ends = ends
        self._numbers = least, most, frontier, limit
        self._most = most
        self._state = np.zeros(_STATES, np.int64)
        self._state[_LEFT] = _STEPS_A_CANDIDATE * len(ends)
        self._room = np.empty((min(MOST_SPANS, len(ends) if room is None else room), 2), np.int64)

    @classmethod
    def through(cls, program: Program, start: int, stop: int) -> Walk:
        """Through all starts of ``[start, stop)``, with a step for each byte, and more for each match."""
        walk = cls(program, np.array([stop]), 0, stop - start, stop, stop, MOST_SPANS)
        walk._state[_LEFT] = stop - start
        walk.stand(start, start)
        return walk

    @property
    def tired(self) -> bool:
        return bool(self._state[_LEFT] < 0)

    @property
    def done(self) -> bool:
        return bool(self._state[_CANDIDATE] >= len(self._ends))

    @property
    def end(self) -> int:
        """Where the candidate ends that is next."""
        return int(self._ends[self._state[_CANDIDATE]])

    @property
    def resume(self) -> int:
        return int(self._state[_RESUME])

    @property
    def next(self) -> int:
        return int(self._state[_NEXT])

    @property
    def spans(self) -> Ints:
        return self._room[: self._state[_FOUND]]

    def stand(self, resume: int, following: int) -> int:
        """Begin from here; the least start that is to be tried."""
        self._state[_RESUME], self._state[_NEXT] = resume, following
        return max(resume, following, self.end - self._most)

    def skip(self) -> None:
        """Go on with the next candidate."""
        self._state[_CANDIDATE] += 1

    def advance(self, text: Bytes, base: int, size: int) -> bool:
        """As far as ``text``, the file's bytes from ``base`` on, decides it. False: the start at ``next`` isn't
        decided. True and not ``done``: there are more matches."""
        program = self._program
        numbers = program.front, program.front_most, *self._numbers
        return _walk(*program.addresses, *numbers, text, base, size, self._ends, self._state, self._room)


@hot
def _walk(
    code: int,
    sets: int,
    front: int,
    front_most: int,
    least: int,
    most: int,
    frontier: int,
    limit: int,
    text: Bytes,
    base: int,
    size: int,
    ends: Ints,
    state: Ints,
    spans: Ints,
) -> bool:
    origin, stop = text.ctypes.data - base, base + text.size
    room = np.empty(_STACK_WORDS, np.int64)
    stack = room.ctypes.data
    first_set, front_set = sets + (FIRST << 8), sets + (front << 8)
    state[_FOUND] = 0
    while state[_CANDIDATE] < ends.size:
        end = ends[state[_CANDIDATE]]
        at = max(state[_NEXT], state[_RESUME], end - most)
        high = min(end - least + 1, limit)
        while at < high:
            if at == size:
                break
            if at >= stop or (at <= base and base > 0):
                state[_NEXT] = at
                return False
            if load8(first_set + load8(origin + at)) == OUT:
                at += 1
                continue
            if state[_LEFT] < 0:
                state[_NEXT] = at
                return False
            past = _attempt(code, sets, origin, base, stop, size, at, stack, 0)
            state[_LEFT] -= BUDGET - load64(stack + _STACK * _CHOICE_BYTES)
            if past == NONE:
                at += 1
                continue
            begin = at
            if past != ASK and front >= 0:
                lowest = max(state[_RESUME], at - front_most)
                how = IN
                while begin > lowest and begin > base and how == IN:
                    how = load8(front_set + load8(origin + begin - 1))
                    begin -= how == IN
                if how == BEYOND or (how == IN and begin > lowest):
                    past = ASK
            if past == ASK:
                state[_NEXT] = at
                return False
            if begin >= frontier:
                state[_NEXT] = at
                state[_CANDIDATE] = ends.size
                return True
            if state[_FOUND] == len(spans):
                state[_NEXT] = at
                return True
            spans[state[_FOUND], 0] = begin
            spans[state[_FOUND], 1] = past
            state[_FOUND] += 1
            state[_LEFT] += _STEPS_A_MATCH
            state[_RESUME] = past
            at = past
        state[_NEXT] = max(state[_NEXT], at)
        state[_CANDIDATE] += 1
    return True

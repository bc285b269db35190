"""A job's patterns, compiled once and shared by every thread and file (RE2 objects are immutable).

``never_capture`` makes every group plain: only the match's bounds are wanted, and those the automata give without
the slower engines that captures need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import re2

from uring_actors.ops.match.needles import Needles
from uring_actors.ops.match.newlines import Bytes, Ints, as_bytes
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.program import Program, program_of
from uring_actors.ops.match.syntax import cut_short

_ROOMY = 32 << 20
"""Bytes for the automata of an unbounded pattern, when they come to that. Counted repetitions make many states, and
RE2 is ten times as slow where it has to forget them."""


def _options(*, latin1: bool, roomy: bool = False) -> Any:
    options = re2.Options()
    if roomy:
        options.max_mem = _ROOMY
    options.never_capture = True
    options.log_errors = False
    if latin1:
        options.encoding = re2.Options.Encoding.LATIN1
    return options


def compile_source(plan: PatternPlan) -> Any:
    """google-re2's object for the pattern itself; a literal is taken byte by byte."""
    if plan.kind is Kind.LITERAL:
        options = _options(latin1=True)
        options.literal = True
        return re2.compile(plan.literal, options)
    return re2.compile(plan.re2, _options(latin1=plan.latin1, roomy=not plan.kind.confirmed_in_slot))


Find = Callable[[memoryview, int, int], tuple[int, int]]
"""(text, position, end position) → the bounds of what was found, (-1, -1) for nothing.

0 <= position <= end position <= len(text); the bytes outside count as context.
"""


def _find(regex: Any, anchor: str) -> Find:
    """google-re2's ``search``, ``match`` or ``fullmatch``, without the iterator and the match object around it.

    Those take two thirds of the time of a short search. Where a later release has moved what lies beneath, the
    public method does the same.
    """
    try:
        inner, how = regex._regexp.Match, getattr(re2._re2.RE2.Anchor, anchor)
    except AttributeError:
        method = getattr(regex, {"UNANCHORED": "search", "ANCHOR_START": "match", "ANCHOR_BOTH": "fullmatch"}[anchor])

        def find(text: memoryview, position: int, stop: int) -> tuple[int, int]:
            found = method(text, position, stop)
            return (-1, -1) if found is None else found.span()

    else:

        def find(text: memoryview, position: int, stop: int) -> tuple[int, int]:
            bounds: tuple[int, int] = inner(how, text, position, stop)[0]
            return bounds

    return find


Spans = Callable[[bytes | memoryview, int, int], Sequence[tuple[int, int]]]
"""As ``Find``, for the whole stretch: the bounds of the match and of each group; the first (-1, -1) for nothing."""


def find_groups(regex: Any) -> Spans:
    """google-re2's ``fullmatch`` with its groups, as ``_find`` has it without."""
    try:
        inner, how = regex._regexp.Match, re2._re2.RE2.Anchor.ANCHOR_BOTH
    except AttributeError:

        def find(text: bytes | memoryview, position: int, stop: int) -> Sequence[tuple[int, int]]:
            found = regex.fullmatch(text, position, stop)
            return [(-1, -1)] if found is None else [found.span(k) for k in range(regex.groups + 1)]

    else:

        def find(text: bytes | memoryview, position: int, stop: int) -> Sequence[tuple[int, int]]:
            spans: Sequence[tuple[int, int]] = inner(how, text, position, stop)
            return spans

    return find


def _not_searched(text: memoryview, position: int, stop: int) -> tuple[int, int]:
    raise AssertionError("a literal's candidates are its matches: nobody searches for it")


def _widest(plan: PatternPlan) -> int:
    """Bytes that an engine or RE2 looks for in a slot, at most."""
    return (plan.max_width or 0) if plan.kind.confirmed_in_slot else plan.candidate_max


def halo_of(plans: Sequence[PatternPlan]) -> int:
    """As ``PlanSet.halo``."""
    return max((1 + _widest(plan) for plan in plans), default=0)


class Expression:
    """RE2's searches for one source, in UTF-8 or Latin-1.

    ``search`` finds the leftmost match, ``match`` the one that starts at the position. ``cut_search`` and
    ``cut_match`` are the same of the source cut short (``syntax.cut_short``), for *texts* that end where something
    was cut; None where it has no such form. That is compiled when it is first needed.
    """

    def __init__(self, source: bytes, *, latin1: bool) -> None:
        self.latin1 = latin1
        self._source = source
        regex = re2.compile(source, _options(latin1=latin1, roomy=True))
        self.search, self.match = _find(regex, "UNANCHORED"), _find(regex, "ANCHOR_START")

    @cached_property
    def cut_search(self) -> Find | None:
        return None if self._cut is None else _find(self._cut, "UNANCHORED")

    @cached_property
    def cut_match(self) -> Find | None:
        return None if self._cut is None else _find(self._cut, "ANCHOR_START")

    @cached_property
    def _cut(self) -> Any:
        encoding = "latin-1" if self.latin1 else "utf-8"
        source = cut_short(self._source.decode(encoding), latin1=self.latin1)
        try:
            return source and re2.compile(source.encode(encoding), _options(latin1=self.latin1, roomy=True))
        except re2.error:  # too large
            return None


class Pattern:
    """One plan with what RE2 made of it.

    ``search`` finds the leftmost match. ``width`` is the maximum width, 0 where there is none. ``whole`` is there for
    patterns that are searched against the file.
    """

    __slots__ = ("_core", "literal", "plan", "search", "whole", "width")

    def __init__(self, plan: PatternPlan) -> None:
        self.plan = plan
        self.search: Find
        self.whole: Expression | None = None
        if plan.kind is Kind.LITERAL:
            self.search = _not_searched  # no RE2: there may be tens of thousands
        elif plan.kind.confirmed_in_slot:
            self.search = _find(compile_source(plan), "UNANCHORED")
        else:
            self.whole = Expression(plan.re2, latin1=plan.latin1)
            self.search = self.whole.search
        self.width: int = plan.max_width or 0
        self.literal: Bytes | None = None if plan.literal is None else as_bytes(plan.literal)
        self._core: Core | None = None

    @property
    def program(self) -> Program | None:
        return program_of(self.plan.re2, latin1=self.plan.latin1)

    @property
    def core(self) -> Core:
        """Of PREFIX. Made when it is first needed: most patterns have no candidate."""
        if self._core is None:
            self._core = Core(self)
        return self._core


class Core:
    """What a PREFIX pattern is looked for by (``plan.Lead``).

    ``front`` finds how far the front reaches back from the *text*'s end; ``head`` the next possible start. The core
    of a candidate that ends at e begins in [e - ``most``, e - ``least``].
    """

    def __init__(self, pattern: Pattern) -> None:
        assert pattern.whole is not None, "patterns that are confirmed in the slot have no core"
        plan = pattern.plan
        lead = plan.lead
        self.least, self.most = plan.candidate_min, plan.candidate_max
        self.expression = pattern.whole
        self.front: Find | None = None
        self.front_most = 0
        self.head: Find | None = None
        self.head_most = 0
        if lead is not None and lead.front is not None:
            front = b"(?:" + lead.front + rb")\z"
            self.front = _find(re2.compile(front, _options(latin1=plan.latin1)), "UNANCHORED")
            self.front_most = lead.front_max
            self.most -= lead.front_max
            self.expression = Expression(lead.core, latin1=plan.latin1)
        if lead is not None and lead.head is not None:
            self.head = _find(re2.compile(lead.head, _options(latin1=True)), "UNANCHORED")
            self.head_most = lead.head_max
        self.program = program_of(
            plan.re2 if lead is None else lead.core,
            latin1=plan.latin1,
            front=None if lead is None else lead.front,
        )
        self.gap = None if lead is None else lead.gap
        self.literals: Needles | None = None
        if self.gap is not None and self.gap.literals:
            self.literals = Needles(self.gap.literals, self.gap.openings, self.gap.tail)
        self.rest = None if self.gap is None else Expression(self.gap.rest, latin1=plan.latin1)


class PlanSet:
    """The plans of a job by index, their kinds apart.

    ``halo`` is how many bytes must follow an extent's payload (fewer only at the file's end): one more than the
    widest thing an engine or RE2 looks for in a slot. An unbounded pattern's candidates count as well: one that
    lies across two extents is reported by the first alone.
    """

    def __init__(self, plans: Sequence[PatternPlan]) -> None:
        self.patterns: dict[int, Pattern] = {plan.index: Pattern(plan) for plan in plans}
        self.size = 1 + max(self.patterns, default=-1)
        kinds = {kind: [p for p in self.patterns.values() if p.plan.kind is kind] for kind in Kind}
        self.bounded: dict[int, Pattern] = {p.plan.index: p for p in (*kinds[Kind.BOUNDED], *kinds[Kind.PART])}
        self.in_slot: list[Pattern] = kinds[Kind.SLOT]
        self.unbounded: list[Pattern] = [p for p in self.patterns.values() if not p.plan.kind.confirmed_in_slot]
        self.without_candidates: list[Pattern] = [p for p in self.unbounded if p.plan.candidate is None]
        self.line_candidates, self.file_candidates = (
            frozenset(p.plan.index for p in kinds[kind] if p.plan.candidate is not None)
            for kind in (Kind.LINE, Kind.FILE)
        )
        self.literal_width: Ints = np.zeros(self.size, np.int64)
        for p in kinds[Kind.LITERAL]:
            assert p.plan.literal
            self.literal_width[p.plan.index] = len(p.plan.literal)
        for p in (*self.bounded.values(), *kinds[Kind.SLOT]):
            assert p.plan.max_width is not None
        self.halo = halo_of(plans)

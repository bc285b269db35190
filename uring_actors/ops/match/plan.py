"""How each pattern will be run: the contract between the front-end, the engines and settling.

The front-end (``frontend.py``) makes one ``PatternPlan`` of each pattern; engines and settling read nothing
else. Widths are in bytes. The meaning of a pattern is google-re2's (DESIGN: «Matching, exactly»).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from uring_actors.ops.match.spelled import Word


class Kind(Enum):
    """Where a pattern's matches come from."""

    LITERAL = "literal"
    """A fixed byte string: the engine's candidate is the match, without confirmation."""
    BOUNDED = "bounded"
    """The engine reports candidate ends (a superset of RE2's); RE2 confirms each in the data slot."""
    PART = "part"
    """As BOUNDED, but what the engine reports are ends of a part that every match holds."""
    SLOT = "re2-slot"
    """No engine takes it, but its width is bounded: RE2 alone searches every data slot."""
    PREFIX = "prefix"
    """Unbounded, but it begins with a bounded part: the engine reports that part's ends, RE2 confirms from
    there, against the file."""
    LINE = "line"
    """Unbounded, and no match can contain a newline: the engine reports ends of a necessary part (or nothing
    does), RE2 searches the lines that hold one (or all), against the file."""
    FILE = "file"
    """Anything else: RE2 searches the file. Where the plan has a candidate expression, a file without a
    candidate has no match; a match may begin any distance before one."""

    @property
    def confirmed_in_slot(self) -> bool:
        """Whether the bytes of a data slot are enough to decide its matches."""
        return self in (Kind.LITERAL, Kind.BOUNDED, Kind.PART, Kind.SLOT)


@dataclass(frozen=True, slots=True)
class LazyGap:
    """That a pattern is ``A x{n,}? B``, with one character or class ``x``, and bounded ``A`` and ``B``.

    ``entry`` is how many bytes ``A x{n}`` takes at most, ``tail`` how many ``B`` does. ``rest`` is ``x*?B``, as RE2
    reads it. Let a match be undecided at w, ``entry + tail`` bytes or more behind its start, and u be ``tail`` bytes
    before w or more, and still ``entry`` behind the start. Then what is alive at w is in the gap or in a ``B`` that
    begins at u or later, so the gap was reached and is unbroken up to u; and no ``B`` before u led to a match. So the
    match ends where that of ``rest`` does that begins at u. (w lies between two characters: where text was to be cut
    within one, up to three bytes before that.)
    """

    entry: int
    tail: int
    rest: bytes
    literals: tuple[bytes, ...] = ()
    """One of these is in every ``B``, and ``x`` is any character. Empty: nothing like it is known."""
    openings: tuple[Word, ...] = ()
    """Every ``B`` begins with one of these. Empty: they are too many."""

    @property
    def crossed(self) -> int:
        """Bytes from the start from which on this is so, wherever characters end."""
        return self.entry + self.tail + 8


@dataclass(frozen=True, slots=True)
class Lead:
    """How the matches of a PREFIX pattern are found quicker than by trying every start.

    ``front`` and ``core`` are of ``syntax.lazy_front``: a match of the pattern is one of the core, and as much of the
    front as stands before it. None and the whole pattern where it has no such front.

    ``head`` is a short expression, in the dialect of ``PatternPlan.candidate`` within RE2's limits, that every match
    of the core begins with. None: there is none that is short.
    """

    front: bytes | None
    front_max: int
    """Bytes."""
    core: bytes
    head: bytes | None
    head_max: int
    gap: LazyGap | None = None


@dataclass(frozen=True, slots=True)
class PatternPlan:
    """One pattern, ready to be run.

    ``candidate`` is an expression in the byte-level dialect that engines take (see ``frontend.py``); it is
    what the engine searches: the whole pattern (LITERAL, BOUNDED) or a bounded necessary part (PART, PREFIX, LINE,
    FILE), ``candidate_min`` to ``candidate_max`` bytes wide. Only its ends mean something: it leaves out what
    is optional at that part's front. None where no engine is used.
    """

    index: int
    name: str
    kind: Kind
    source: str
    """As the user wrote it: RE2 syntax, or the literal's text (Latin-1 for bytes)."""
    re2: bytes
    """What google-re2 compiles, flags included (UTF-8 source; for ``latin1`` Latin-1 source)."""
    latin1: bool
    """Whether RE2 must be told that text and pattern are Latin-1 (``bytes=True``)."""
    min_width: int
    max_width: int | None
    literal: bytes | None
    candidate: bytes | None
    candidate_min: int
    candidate_max: int
    reason: str
    """One sentence for ``--explain``: why this kind."""
    lead: Lead | None = None
    """Of PREFIX, where something is known."""
    once: bool = False
    """Whether all that matters is that a file has it: an engine then reports one end a block."""

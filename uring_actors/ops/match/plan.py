"""How each pattern will be run: the contract between the front-end, the engines and settling.

The front-end (``frontend.py``) makes one ``PatternPlan`` of each pattern; engines and settling read nothing
else. Widths are in bytes. The meaning of a pattern is google-re2's (DESIGN: «Matching, exactly»).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
class PatternPlan:
    """One pattern, ready to be run.

    ``candidate`` is an expression in the byte-level dialect that engines take (see ``frontend.py``); it is
    what the engine searches: the whole pattern (LITERAL, BOUNDED) or a bounded necessary part (PART, PREFIX, LINE,
    FILE), ``candidate_min`` to ``candidate_max`` bytes wide. Only its ends mean something: it leaves out what
    is optional at that part's front. None where no engine is used.

    ``alive`` is an RE2 expression to be compiled as Latin-1, dot matching everything: a byte string that
    fully matches it may be a proper beginning of a longer match; one that does not can't. None: unknown, take
    every string as alive.
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
    alive: bytes | None
    reason: str
    """One sentence for ``--explain``: why this kind."""
    alphabet: int | None = None
    """Bit ``b``: whether byte ``b`` may be in a match. None: any may, or it is confirmed in the slot."""
    once: bool = False
    """Whether all that matters is that a file has it: an engine then reports one end a block, which is believed
    unconfirmed, and goes to the sink as seen. Only for LITERAL and BOUNDED plans whose candidate is exact."""

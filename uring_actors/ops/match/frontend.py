"""Patterns in, plans out: decides for each pattern where its matches come from (``Kind``).

The dialect of ``PatternPlan.candidate`` is what RE2 (as Latin-1) and Hyperscan (without UTF-8) both read
alike: literal bytes and ``\\xHH``, explicit classes of bytes, groups ``(?:…)``, alternation, greedy counts,
and the assertions ``\\A \\z \\b \\B (?m:^) (?m:$)``. Counts may go beyond RE2's limit of 1,000.

A candidate expression reports ends only. It may be wider than the pattern, and may leave out what is optional
at the pattern's front: a candidate's end is right, its start means nothing. ``candidate_max`` is the width of
the part *before* that, so that a search that begins ``candidate_max`` bytes before the end misses nothing.

Engines are owed, in every block, one real byte on each side of every match that the block must report (fewer
only at the file's ends). ``\\A`` and ``\\z`` in a candidate then hold at every block's border: a superset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from uring_actors.errors import OptionError, PatternError, PatternErrors
from uring_actors.ops.match import lower as low
from uring_actors.ops.match.fixed import fixed
from uring_actors.ops.match.pattern import Literal, Pattern, Regex, Source
from uring_actors.ops.match.plan import Kind, LazyGap, Lead, PatternPlan
from uring_actors.ops.match.spelled import Word, shortest, spelled
from uring_actors.ops.match.syntax import (
    LAST_CODE_POINT,
    LAST_LATIN1,
    NO_FLAGS,
    lazy_front,
    lazy_gap,
    parse,
    re2_options,
)
from uring_actors.ops.match.tree import Chars, Concat, Node, complement, depth, fold

MAX_HALO = 4096
"""Bytes. Wider patterns are searched as if they had no maximum width."""

WORTHWHILE = 2.0
"""The least selectivity (``lower.selectivity``) of a part that is worth reporting; rarer is better."""

LONGEST_HEAD = 24
"""Bytes (``Lead.head``)."""

MOST_GAP_LITERALS = 4
MOST_OPENINGS = 16
LONGEST_OPENING = 32
"""Bytes."""

_FIXED = "fixed bytes"


def compile_re2(plan: PatternPlan) -> Any:
    """google-re2's compiled pattern: the judge of what matches."""
    return re2.compile(plan.re2, re2_options(plan.latin1))


def compile_patterns(patterns: Sequence[Pattern], *, max_halo: int = MAX_HALO) -> tuple[PatternPlan, ...]:
    """A plan for each pattern, in order. No halo needed (``candidate_max`` + 1) exceeds ``max_halo`` bytes.

    Raises OptionError where there is no pattern or no halo, PatternError for a pattern that is invalid, or
    that can match nothing (PatternErrors: for several).
    """
    if not patterns:
        raise OptionError("no patterns", fix="Give at least one pattern.")
    if max_halo < 2:
        raise OptionError(f"max_halo is {max_halo}", fix="Make it at least 2 bytes.")
    plans: list[PatternPlan] = []
    errors: list[PatternError] = []
    for index, pattern in enumerate(patterns):
        try:
            plans.append(_plan(index, pattern, max_halo))
        except PatternError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else PatternErrors(errors)
    return tuple(plans)


def _plan(index: int, pattern: Pattern, max_halo: int) -> PatternPlan:
    given = pattern.pattern if isinstance(pattern, Regex) else pattern.text
    try:
        if isinstance(pattern, Regex):
            return _analysed(index, pattern, pattern.source(), given, max_halo)
        if not pattern.text:
            raise PatternError("an empty literal is everywhere", pattern=given)
        source = pattern.source()
        return _fixed(index, pattern, source, given, max_halo) or _analysed(index, pattern, source, given, max_halo)
    except PatternError as error:
        if pattern.origin is None:
            raise
        raise PatternError(
            error.reason, pattern=error.pattern, position=error.position, origin=pattern.origin, fix=error.fix
        ) from None


def _fixed(index: int, pattern: Literal, source: Source, given: str | bytes, max_halo: int) -> PatternPlan | None:
    """A literal's plan, without parsing it; None where that doesn't do."""
    text = given if isinstance(given, str) else given.decode("latin-1")
    found = fixed(text, latin1=source.latin1, ignore_case=pattern.ignore_case)
    if found is None or found.most > max_halo - 1:
        return None
    least, most = found.least, found.most
    return PatternPlan(
        index=index,
        name=pattern.label,
        kind=Kind.BOUNDED if found.folded else Kind.LITERAL,
        source=text,
        re2=source.re2,
        latin1=source.latin1,
        min_width=least,
        max_width=most,
        literal=None if found.folded else pattern.content,
        candidate=found.candidate,
        candidate_min=least,
        candidate_max=most,
        reason=_width_in_words(least, most) if found.folded else _FIXED,
    )


def _width_in_words(least: int, most: int) -> str:
    return f"{least} to {most} bytes wide" if least != most else f"{least} bytes wide"


def _analysed(index: int, pattern: Pattern, source: Source, given: str | bytes, max_halo: int) -> PatternPlan:
    try:
        tree = _parsed(source)
    except PatternError as error:
        raise PatternError(error.reason, pattern=given, position=_position(given, source, error)) from None
    analysis = _Analysis(tree, source.latin1, max_halo)
    if analysis.least == 0:
        raise PatternError(
            "it can match nothing (its minimum width is 0)",
            pattern=given,
            fix="Make something in it mandatory: a+ instead of a*, for instance.",
        )
    choice = analysis.choose()
    shown = pattern.label if isinstance(pattern, Literal) else source.text
    return PatternPlan(
        index=index,
        name=pattern.label,
        kind=choice.kind,
        source=shown if pattern.name is None else _shown(given),
        re2=source.re2,
        latin1=source.latin1,
        min_width=analysis.least,
        max_width=analysis.most,
        literal=analysis.literal if choice.kind is Kind.LITERAL else None,
        candidate=choice.candidate,
        candidate_min=choice.width[0],
        candidate_max=choice.width[1],
        reason=choice.reason,
        lead=_lead(source, choice.part) if choice.part is not None else None,
    )


def _shown(given: str | bytes) -> str:
    return given if isinstance(given, str) else given.decode("latin-1")


def _position(given: str | bytes, source: Source, error: PatternError) -> int:
    """The error's position as an index into the pattern as it was given."""
    if isinstance(given, str) or source.latin1:
        return error.position
    return len(source.text[: error.position].encode())


def _parsed(source: Source) -> Node:
    """The tree, with RE2's consent."""
    tree = parse(source.text, source.flags, latin1=source.latin1)
    try:
        re2.compile(source.re2, re2_options(source.latin1))
    except re2.error as error:
        raise PatternError(f"RE2 refuses it: {words(error)}", pattern=source.text) from None
    return tree


def words(error: Exception) -> str:
    """What ``re2.error`` says."""
    what = error.args[0] if error.args else ""
    return what.decode("utf-8", "replace") if isinstance(what, bytes) else str(what)


@dataclass(frozen=True, slots=True)
class _Choice:
    kind: Kind
    reason: str
    candidate: bytes | None = None
    width: tuple[int, int] = (0, 0)
    part: Node | None = None
    """Of PREFIX: what ``candidate`` was made of."""


class _Analysis:
    """What is known of one pattern. ``exact`` has RE2's words (on valid text), ``wide`` an engine's."""

    def __init__(self, tree: Node, latin1: bool, max_halo: int) -> None:
        self.limit = max_halo - 1
        self.exact = low.lower(tree, latin1=latin1)
        self.wide = low.lower(tree, latin1=latin1, widen=True)
        self.least, self.most = low.widths(self.exact)
        self.literal = low.literal_of(self.exact) if _is_plain(tree) else None
        self.too_deep = depth(self.wide) > low.MOST_DEPTH

    def choose(self) -> _Choice:
        if self.most is not None and self.most <= self.limit:
            return self._whole(self.least, self.most)
        return self._part()

    def _whole(self, least: int, most: int) -> _Choice:
        if self.too_deep:
            reason = f"nested more than {low.MOST_DEPTH} deep: RE2 searches alone"
            return _Choice(Kind.SLOT, reason, width=(least, most))
        if self.literal is not None:
            return _Choice(Kind.LITERAL, _FIXED, low.spell(self.exact), (least, most))
        wide = low.ends_only(low.harmless_assertions(self.wide))
        return _Choice(Kind.BOUNDED, _width_in_words(least, most), low.spell(wide), (least, most))

    def _part(self) -> _Choice:
        why = "no maximum width" if self.most is None else f"{self.most} bytes wide: too wide for the halo"
        fallback = Kind.FILE if low.can_hold_newline(self.exact) else Kind.LINE
        if self.too_deep:
            return _Choice(fallback, f"{why}; nested more than {low.MOST_DEPTH} deep: RE2 searches alone")
        prefix = self._clearer(low.bounded_prefix(self.wide, self.limit))
        if low.selectivity(prefix) >= WORTHWHILE:
            return self._reported(Kind.PREFIX, prefix, f"{why}; begins with a bounded part")
        part = self._clearer(low.necessary_part(self.wide, self.limit))
        if low.selectivity(part) >= WORTHWHILE:
            return self._reported(fallback, part, f"{why}; a bounded part is in every match")
        return _Choice(fallback, f"{why}; no part of it is rare enough to look for")

    @staticmethod
    def _clearer(part: Node) -> Node:
        """The part without a vague tail, where enough is left."""
        clear = low.without_vague_tail(part)
        return clear if low.selectivity(clear) >= WORTHWHILE else part

    @staticmethod
    def _reported(kind: Kind, part: Node, reason: str) -> _Choice:
        least, most = low.widths(part)
        assert most is not None, "prefixes and necessary parts are bounded"
        wide = low.ends_only(low.harmless_assertions(part))
        return _Choice(kind, reason, low.spell(wide), (least, most), part if kind is Kind.PREFIX else None)


def _lead(source: Source, prefix: Node) -> Lead:
    """``prefix`` is the one that candidates are of."""
    encoding = "latin-1" if source.latin1 else "utf-8"
    core = source.re2
    front: bytes | None = None
    front_max = 0
    if (found := lazy_front(core.decode(encoding), latin1=source.latin1)) is not None:
        before, behind = found
        row = low.lower(parse(before, latin1=source.latin1), latin1=source.latin1, widen=True)
        if isinstance(prefix, Concat) and prefix.parts[0] == row:  # so the core's candidates are the pattern's
            front, core = before.encode(encoding), behind.encode(encoding)
            front_max = low.widths(row)[1] or 0
    tree = low.lower(parse(core.decode(encoding), latin1=source.latin1), latin1=source.latin1, widen=True)
    head = low.bounded_prefix(tree, LONGEST_HEAD)
    least, most = low.widths(head)
    assert most is not None, "prefixes are bounded"
    gap = _gap(core.decode(encoding), source.latin1)
    return Lead(front, front_max, core, low.spell(head) if least else None, most, gap)


def _gap(core: str, latin1: bool) -> LazyGap | None:
    gap = lazy_gap(core, latin1=latin1)
    if gap is None:
        return None

    before, x, behind = (
        low.lower(parse(part, latin1=latin1), latin1=latin1) for part in (gap.before, gap.x, gap.behind)
    )
    entry, (_, each), (least, tail) = low.widths(before)[1], low.widths(x), low.widths(behind)
    if entry is None or not each or not least or tail is None:
        return None
    rest = f"(?:{gap.x})*?(?:{gap.behind})".encode("latin-1" if latin1 else "utf-8")
    anything = Chars(complement((), LAST_LATIN1 if latin1 else LAST_CODE_POINT))
    literals = low.required_literals(behind) if parse(gap.x, latin1=latin1) == anything else None
    few = tuple(sorted(literals)) if literals is not None and len(literals) <= MOST_GAP_LITERALS else ()
    wide = low.lower(parse(gap.behind, latin1=latin1), latin1=latin1, widen=True)
    return LazyGap(entry + gap.least * each, tail, rest, few, _openings(wide) if few else ())


def _openings(tree: Node) -> tuple[Word, ...]:
    """Words with one of which every match begins; none where they are too many."""
    for width in (LONGEST_OPENING, LONGEST_OPENING // 2, LONGEST_OPENING // 4):
        words = spelled(low.bounded_prefix(tree, width))
        if words and () not in words and len(words) <= MOST_OPENINGS:
            return shortest(words)
    return ()


def _is_plain(tree: Node) -> bool:
    """Whether every character is one code point (so that no UTF-8 border is loose)."""
    single = fold(
        tree,
        lambda node, below: (
            len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]
            if isinstance(node, Chars)
            else all(below)
        ),
    )
    return bool(single)


def engineless(plan: PatternPlan) -> Kind:
    """The kind that a plan falls back to where no engine takes its candidate expression."""
    if plan.kind.confirmed_in_slot:
        return Kind.SLOT
    if plan.kind in (Kind.LINE, Kind.FILE):
        return plan.kind
    # The flags are spelled at the front of what RE2 reads.
    tree = parse(plan.re2.decode("latin-1" if plan.latin1 else "utf-8"), NO_FLAGS, latin1=plan.latin1)
    return Kind.FILE if low.can_hold_newline(low.lower(tree, latin1=plan.latin1)) else Kind.LINE


def explain(plans: Iterable[PatternPlan]) -> list[dict[str, str | int | None]]:
    """One row for each plan, for ``--explain``: widths and halo in bytes."""
    return [
        {
            "pattern": plan.source,
            "name": plan.name,
            "kind": plan.kind.value,
            "min_width": plan.min_width,
            "max_width": plan.max_width,
            "halo": plan.candidate_max + 1 if plan.candidate_max else 0,
            "candidate": None if plan.candidate is None else plan.candidate.decode("latin-1"),
            "reason": plan.reason,
        }
        for plan in plans
    ]

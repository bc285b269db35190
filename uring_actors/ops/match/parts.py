"""What a kernel without Hyperscan looks for: for each plan a *part* of which every match holds a word.

The CUDA kernel's side of MATCH; ``automaton.py`` makes its tables of the parts. A word is a sequence of at most
``MOST_WIDTH`` byte sets (a plain byte is a set of one). RE2 confirms on the host, as with any other engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Final

from uring_actors.ops.match import lower as low
from uring_actors.ops.match.frontend import WORTHWHILE, engineless
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.spelled import Word, shortest, spelled
from uring_actors.ops.match.syntax import NO_FLAGS, parse
from uring_actors.ops.match.tree import ByteSet, Concat, Node, depth

MOST_WIDTH: Final = 32
"""Bytes of the longest word: what a thread of the CUDA kernel warms up on fits the piece before its own."""

_WIDTHS = (MOST_WIDTH, 20, 12, 8, 5)
"""Widths that are tried for a part, the longest first: one that is spelled by too many words is cut shorter."""
_ENOUGH = 8.0
"""Rarity (``_rarity``) from which on a longer word is not worth its states."""
_FEW_BYTES = 0.25
"""Rarity of a set of some bytes, digits for instance; a larger set is vague."""
_MOST_VAGUE = 6
"""Vague places of a word: each may double the states of its automaton."""


@dataclass(frozen=True, slots=True)
class Part:
    """Words of which every match of the pattern holds one."""

    pattern: int
    words: tuple[Word, ...]


def device_plans(plans: Sequence[PatternPlan]) -> tuple[tuple[PatternPlan, ...], tuple[Part, ...]]:
    """The plans as a kernel without Hyperscan runs them, and what it searches for.

    A plan without a part keeps no candidate: RE2 searches alone for it, which its ``reason`` says.
    """
    changed, parts = [], []
    for plan in plans:
        new, words = _device_plan(plan)
        changed.append(new)
        if words:
            parts.append(Part(plan.index, words))
    return tuple(changed), tuple(parts)


def _device_plan(plan: PatternPlan) -> tuple[PatternPlan, tuple[Word, ...]]:
    if plan.kind is Kind.LITERAL:
        assert plan.literal is not None
        word = tuple(1 << byte for byte in plan.literal)
        if len(word) <= MOST_WIDTH:
            return plan, (word,)
        reason = f"fixed bytes, of which {MOST_WIDTH} are looked for"
        return _in_slot(replace(plan, literal=None), reason), (_best_window(word),)
    if plan.candidate is None:
        return plan, ()
    tree = parse(plan.re2.decode("latin-1" if plan.latin1 else "utf-8"), NO_FLAGS, latin1=plan.latin1)
    wide = low.drop_assertions(low.lower(tree, latin1=plan.latin1, widen=True))
    if depth(wide) > low.MOST_DEPTH:
        return _without(plan)
    if plan.kind is Kind.PREFIX:
        words = _prefix_words(wide)
        if words:
            return _reported(plan, plan.kind, words), words
    words = _necessary_words(wide)
    if not words:
        return _without(plan)
    if plan.kind is Kind.BOUNDED:
        return _in_slot(plan, f"{plan.reason}; a part of it is looked for"), words
    if plan.kind is Kind.PREFIX:
        return _reported(plan, Kind.FILE if low.can_hold_newline(wide) else Kind.LINE, words), words
    return _reported(plan, plan.kind, words), words


def _in_slot(plan: PatternPlan, reason: str) -> PatternPlan:
    return replace(plan, kind=Kind.PART, candidate=None, reason=reason)


def _reported(plan: PatternPlan, kind: Kind, words: tuple[Word, ...]) -> PatternPlan:
    widths = [len(word) for word in words]
    spelled = b"|".join(low.spell(Concat(tuple(map(ByteSet, word)))) for word in words)
    return replace(plan, kind=kind, candidate=spelled, candidate_min=min(widths), candidate_max=max(widths))


def _without(plan: PatternPlan) -> tuple[PatternPlan, tuple[Word, ...]]:
    reason = f"{plan.reason}; no part of it suits the GPU: RE2 searches alone"
    kind = engineless(plan)
    widths = (plan.candidate_min, plan.candidate_max) if kind.confirmed_in_slot else (0, 0)
    return replace(
        plan, kind=kind, candidate=None, candidate_min=widths[0], candidate_max=widths[1], reason=reason
    ), ()


def _prefix_words(tree: Node) -> tuple[Word, ...]:
    """Words with one of which every match begins."""
    for width in _WIDTHS:
        words = _words(low.bounded_prefix(tree, width))
        if words:
            cut = shortest({_head(word) for word in words})
            if min(map(_rarity, cut)) >= WORTHWHILE:
                return cut
    return ()


def _necessary_words(tree: Node) -> tuple[Word, ...]:
    """Words of which every match holds one; the rarest choice."""
    best: tuple[Word, ...] = ()
    runs: tuple[Word, ...] = ()
    worth = 0.0
    for width in _WIDTHS:
        words = _words(low.necessary_part(tree, width))
        if not words:
            continue
        runs = runs or shortest({_best_run(word) for word in words})
        cut = shortest({_best_window(word) for word in words})
        rare = min(map(_rarity, cut))
        if rare > worth:
            best, worth = cut, rare
        if worth >= _ENOUGH / 2:
            break
    if worth >= WORTHWHILE:
        return best
    return runs if runs and min(map(_rarity, runs)) >= WORTHWHILE else ()


def _words(tree: Node) -> tuple[Word, ...]:
    """All words of a bounded tree, by byte sets; none where there are too many, or the empty one is among them."""
    found = spelled(low.starts_only(low.ends_only(tree)))
    return () if found is None or () in found else tuple(sorted(found))


@lru_cache(maxsize=4096)
def _rarity_of_set(mask: int) -> float:
    """As ``lower.selectivity``, but for digits and the like: text is full of long numbers."""
    rare = low.selectivity(ByteSet(mask))
    return _FEW_BYTES if _FEW_BYTES < rare < 1 else rare


def _rarity(word: Word) -> float:
    return sum(map(_rarity_of_set, word))


def _head(word: Word) -> Word:
    """The word's beginning, without a tail that tells little."""
    return word[: _reach(word, 0)]


def _best_window(word: Word) -> Word:
    """The rarest stretch of the word, without what tells little at its ends; the shortest of several."""
    best, worth = word[:MOST_WIDTH], -1.0
    for start in range(len(word)):
        if start and _rarity_of_set(word[start]) < _FEW_BYTES:
            continue
        window = word[start : _reach(word, start)]
        rare = _rarity(window)
        if rare > worth or (rare == worth and len(window) < len(best)):
            best, worth = window, rare
    return best


def _best_run(word: Word) -> Word:
    """The rarest of the word's best window and the longest stretch of one set: forty hexadecimal digits."""
    runs = [tuple(run) for _, run in groupby(word)]
    return max((_best_window(word), *(run[:MOST_WIDTH] for run in runs)), key=_rarity)


def _reach(word: Word, start: int) -> int:
    """Where a window from ``start`` on had best end."""
    rare, stop, vague = 0.0, start + 1, 0
    for place in range(start, min(len(word), start + MOST_WIDTH)):
        more = _rarity_of_set(word[place])
        rare += more
        vague += more < _FEW_BYTES
        if vague > _MOST_VAGUE:
            break
        if more >= _FEW_BYTES or rare < _ENOUGH / 2:
            stop = place + 1
        if rare >= _ENOUGH:
            break
    return stop

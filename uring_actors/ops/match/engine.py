"""Hyperscan as the finder of candidates: one database for all plans, scanned block by block.

An ``Engine`` is immutable once made, and may be shared by threads; a scratch may not: one per thread. Where
Hyperscan is missing, or refuses an expression, the plan goes on without an engine (``Engine.plans`` has the
final plans, each with its reason).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from uring_actors.ops.match.frontend import engineless
from uring_actors.ops.match.plan import PatternPlan

hyperscan: Any
try:
    import hyperscan
except ImportError:  # not an x86-64 machine
    hyperscan = None

_END_BITS = 32  # Hyperscan's blocks are shorter than 4 GiB
_END_MASK = (1 << _END_BITS) - 1

NO_HYPERSCAN = "Hyperscan is not available on this machine"


class Engine:
    """Finds where candidates end. ``plans`` are the given ones, changed where no engine takes them."""

    def __init__(self, plans: Sequence[PatternPlan]) -> None:
        self._databases: list[Any] = []
        refused: dict[int, str] = {}
        wanted = [plan for plan in plans if plan.candidate is not None]
        if hyperscan is None:
            refused = {plan.index: NO_HYPERSCAN for plan in wanted}
        elif wanted:
            self._databases = _compile(wanted, refused)
        self.plans = tuple(
            _without_engine(plan, refused[plan.index]) if plan.index in refused else plan for plan in plans
        )

    @property
    def size(self) -> int:
        """Bytes that the compiled databases take."""
        return sum(database.size() for database in self._databases)

    def scratch(self) -> Any:
        """Working memory for ``scan``, for one thread at a time."""
        return [hyperscan.Scratch(database) for database in self._databases]

    def scan(self, text: memoryview, scratch: Any) -> list[tuple[int, int]]:
        """(pattern index, end) of every candidate in ``text``, each once, by pattern and end."""
        packed: list[int] = []
        on_match = _collector(packed)
        for database, memory in zip(self._databases, scratch, strict=True):
            database.scan(text, match_event_handler=on_match, scratch=memory)
        return [(value >> _END_BITS, value & _END_MASK) for value in sorted(set(packed))] if packed else []


def _collector(packed: list[int]) -> Callable[..., None]:
    """Index and end in one integer: sorting and removing doubles then cost a quarter of what pairs do."""
    append = packed.append

    def on_match(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
        append(index << _END_BITS | end)

    return on_match


def _without_engine(plan: PatternPlan, why: str) -> PatternPlan:
    kind = engineless(plan)
    reason = f"{plan.reason}; without an engine: {why}"
    if kind.confirmed_in_slot:
        return replace(plan, kind=kind, candidate=None, reason=reason)
    return replace(plan, kind=kind, candidate=None, candidate_min=0, candidate_max=0, reason=reason)


def _compile(plans: Sequence[PatternPlan], refused: dict[int, str]) -> list[Any]:
    """Databases that together hold all plans but those put into ``refused``."""
    try:
        return [_database(plans)]
    except hyperscan.error as error:
        if len(plans) == 1:
            refused[plans[0].index] = f"Hyperscan refuses its expression: {error}"
            return []
    taken = [plan for plan in plans if not _refusal(plan, refused)]
    if len(taken) < len(plans):
        return _compile(taken, refused) if taken else []
    # Each is fine alone, and together they are too large.
    half = len(plans) // 2
    return _compile(plans[:half], refused) + _compile(plans[half:], refused)


def _refusal(plan: PatternPlan, refused: dict[int, str]) -> bool:
    return not _compile([plan], refused)


def _database(plans: Sequence[PatternPlan]) -> Any:
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=[plan.candidate for plan in plans],
        ids=[plan.index for plan in plans],
        elements=len(plans),
        flags=[
            hyperscan.HS_FLAG_DOTALL | (hyperscan.HS_FLAG_SINGLEMATCH if plan.once else 0) for plan in plans
        ],
    )
    return database

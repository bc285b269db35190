"""libhs (Hyperscan or Vectorscan) as the finder of candidates: one database for all plans, scanned block by block.

An ``Engine`` is immutable once made, and may be shared by threads; a ``Finder`` may not: one per thread. Where libhs
is missing, or refuses an expression, the plan goes on without an engine (``Engine.plans`` has the final plans, each
with its reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.book import Book
from uring_actors.errors import PipelineError
from uring_actors.megakernel import match
from uring_actors.megakernel.words import SHORTEST, WordTable
from uring_actors.ops.match import libhs, stored
from uring_actors.ops.match.frontend import engineless
from uring_actors.ops.match.newlines import as_bytes
from uring_actors.ops.match.plan import PatternPlan

Hits = np.ndarray[Any, np.dtype[np.uint32]]
"""One row a hit, as in a result block: pattern, start, end, flags."""

_HIT_WORDS, _PATTERN, _END = abi.HIT_BYTES // 4, abi.HIT_PATTERN // 4, abi.HIT_END // 4
_ROOM = 1 << 10
MANY = 5000
"""Literals from which a table of words is faster than libhs."""

NO_LIBHS = "neither libhs.so.5 (Hyperscan) nor the package vectorgrep is installed on this machine"


class Engine:
    """Finds where candidates end. ``plans`` are the given ones, changed where no engine takes them."""

    def __init__(self, plans: Sequence[PatternPlan]) -> None:
        self._library = libhs.find()
        self._databases: list[libhs.Database] = []
        refused: dict[int, str] = {}
        wanted = [plan for plan in plans if plan.candidate is not None]
        self._words: WordTable | None = None
        if self._library is not None and len(words := [plan for plan in wanted if _is_long(plan)]) >= MANY:
            self._words = WordTable([plan.literal or b"" for plan in words], [plan.index for plan in words])
            wanted = [plan for plan in wanted if not _is_long(plan)]
        if self._library is None:
            refused = {plan.index: NO_LIBHS for plan in wanted}
        elif wanted:
            self._databases = _compile(self._library, wanted, refused)
        self.plans = tuple(
            _without_engine(plan, refused[plan.index]) if plan.index in refused else plan for plan in plans
        )

    @property
    def size(self) -> int:
        """Bytes that the compiled databases take."""
        return sum(database.size for database in self._databases) + (self._words.size if self._words else 0)

    def scratch(self) -> Finder:
        """What one thread at a time searches with."""
        return Finder(self._library.scan if self._library else 0, self._databases, self._words)

    def scan(self, text: memoryview, scratch: Finder) -> list[tuple[int, int]]:
        """(pattern index, end) of every candidate in ``text``, each once, by pattern and end."""
        hits = scratch.find(text)
        return sorted(set(zip(hits[:, _PATTERN].tolist(), hits[:, _END].tolist(), strict=True)))


class Finder:
    """One thread's search: scratches, and the words that the compiled loop reads (``parameters``)."""

    def __init__(self, scan: int, databases: Sequence[libhs.Database], words: WordTable | None = None) -> None:
        self._held = [(database, database.scratch()) for database in databases]
        self._words = words
        self.parameters: Book = np.zeros(match.MATCH_WORDS + 2 * len(databases), np.int64)
        self.parameters[match.MATCH_SCAN] = scan
        self.parameters[match.MATCH_CALLBACK] = match.on_match.address
        self.parameters[match.MATCH_TABLE] = words.address if words else 0
        self.parameters[match.MATCH_DATABASES] = len(databases)
        addresses = [address for pair in self._held for address in (pair[0].address, pair[1].address)]
        self.parameters[match.MATCH_WORDS :] = addresses

    def find(self, text: memoryview, *, lead: int = 0, room: int = _ROOM) -> Hits:
        """Candidates in ``text``, ends relative to what follows its first ``lead`` bytes: in the order of their ends
        within a database, a few perhaps twice. ``room``: how many there are, where that is known.

        Raises PipelineError where libhs fails.
        """
        address = as_bytes(text).ctypes.data
        while True:
            hits: Hits = np.empty((room, _HIT_WORDS), np.uint32)
            count = match.search(self.parameters, address, len(text), lead, hits.ctypes.data, room)
            self.check()
            if count <= room:
                return hits[:count]
            room = count

    def check(self) -> None:
        """Raise PipelineError where the last search failed in libhs."""
        code = int(self.parameters[match.MATCH_ERROR])
        if code:
            raise PipelineError(f"the pattern engine failed: {libhs.error_text(code)}")


def _is_long(plan: PatternPlan) -> bool:
    return plan.literal is not None and len(plan.literal) >= SHORTEST and not plan.once


def _without_engine(plan: PatternPlan, why: str) -> PatternPlan:
    kind = engineless(plan)
    reason = f"{plan.reason}; without an engine: {why}"
    if kind.confirmed_in_slot:
        return replace(plan, kind=kind, candidate=None, reason=reason)
    return replace(plan, kind=kind, candidate=None, candidate_min=0, candidate_max=0, reason=reason)


def _compile(library: libhs.LibHs, plans: Sequence[PatternPlan], refused: dict[int, str]) -> list[libhs.Database]:
    """Databases that together hold all plans but those put into ``refused``."""
    try:
        return [_database(library, plans)]
    except libhs.HsError as error:
        if len(plans) == 1:
            refused[plans[0].index] = f"Hyperscan refuses its expression: {error}"
            return []
    taken = [plan for plan in plans if not _refusal(library, plan, refused)]
    if len(taken) < len(plans):
        return _compile(library, taken, refused) if taken else []
    # Each is fine alone, and together they are too large.
    half = len(plans) // 2
    return _compile(library, plans[:half], refused) + _compile(library, plans[half:], refused)


def _refusal(library: libhs.LibHs, plan: PatternPlan, refused: dict[int, str]) -> bool:
    return not _compile(library, [plan], refused)


def _database(library: libhs.LibHs, plans: Sequence[PatternPlan]) -> libhs.Database:
    return stored.database(
        library,
        [plan.candidate or b"" for plan in plans],
        [plan.index for plan in plans],
        [libhs.FLAG_DOTALL | (libhs.FLAG_SINGLEMATCH if plan.once else 0) for plan in plans],
    )

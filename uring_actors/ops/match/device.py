"""MATCH as the CUDA kernel runs it: automata of necessary parts on the device, RE2 on the host.

    kernel.cu       automata over payload and halo → ends of parts in the result block, newlines counted
    settling        as on the CPU; a slot with more ends than its block holds is searched again, here

``Match.on_device`` makes one. The rows are those of ``Match``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import ring
from uring_actors.ops.base import NotOnDevice
from uring_actors.ops.match.automaton import Automata, TooLarge, build, search
from uring_actors.ops.match.engine import Hits
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.parts import Part, device_plans
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.planset import PlanSet


@dataclass(frozen=True)
class DeviceMatch(Match):
    """See the module's page. Pickles as plans and parts; tables are built where it runs."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def from_match(cls, match: Match, *, insist: bool) -> DeviceMatch:
        """Raises NotOnDevice where the tables would be too large, and, unless ``insist``, where RE2 would have to
        search alone for a pattern for which the CPU kernel has an engine."""
        plans, parts = device_plans(match.plans)
        left = [old.name for old, new in zip(match.plans, plans, strict=True) if alone(new) and not alone(old)]
        if left and not insist:
            raise NotOnDevice(f"the GPU has nothing to look for in {len(left)} of the patterns ({left[0]!r})")
        made = cls(plans, match.report, match.max_count, parts)
        try:
            made.tables  # noqa: B018 built now, so that it is known whether they fit
        except TooLarge as error:
            raise NotOnDevice(f"the patterns don't suit the GPU: {error}") from None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.plans, self.report, self.max_count, self.parts)

    def on_device(self, *, insist: bool) -> DeviceMatch:
        return self

    @cached_property
    def tables(self) -> Automata:
        return build(self.parts)

    @property
    def automata(self) -> Automata:
        return self.tables

    @cached_property
    def plan_set(self) -> PlanSet:
        return PlanSet(self.plans)

    def make_worker(self, arena: Arena) -> None:
        """The CUDA kernel runs it."""

    def _overflowed(self, arena: Arena) -> Callable[[list[int]], Hits]:
        return _Again(arena, self.tables).hits


def alone(plan: PatternPlan) -> bool:
    """Whether RE2 searches alone for this plan's matches."""
    return plan.candidate is None and plan.kind not in (Kind.LITERAL, Kind.PART)


class _Again:
    """Searches a slot again whose result block could not hold all."""

    def __init__(self, arena: Arena, automata: Automata) -> None:
        self._data, self._slot_bytes = arena.layout.data, arena.layout.slot_bytes
        self._view = arena.view
        self._automata = automata

    def hits(self, row: list[int]) -> Hits:
        """The slot's hits as its block would have them; ``row`` is what ``ring.collect`` reports."""
        start = self._data + row[ring.COLUMN_DATA_SLOT] * self._slot_bytes + row[ring.COLUMN_PAYLOAD_OFFSET]
        stop = start + row[ring.COLUMN_PAYLOAD_BYTES] + row[ring.COLUMN_HALO_BYTES]
        found = search(self._automata, self._view[start:stop])
        hits = np.zeros((len(found), abi.HIT_BYTES // 4), np.uint32)
        hits[:, abi.HIT_PATTERN // 4] = found[:, 0]
        hits[:, abi.HIT_START // 4] = abi.HIT_NO_START
        hits[:, abi.HIT_END // 4] = found[:, 1]
        return hits

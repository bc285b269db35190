"""MATCH as the CUDA kernel runs it: automata of necessary parts on the device, RE2 on the host.

    kernel.cu       automata over payload and halo → ends of parts in the result block, newlines counted
    settling        as on the CPU; a slot with more ends than its block holds is searched again, here

``Match.on_device`` makes one. The rows are those of ``Match``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.megakernel import ring
from uring_actors.ops.base import NotOnDevice, Settler
from uring_actors.ops.match.automaton import Automata, TooLarge, build, search
from uring_actors.ops.match.engine import Hits
from uring_actors.ops.match.operation import MatchSettler
from uring_actors.ops.match.parts import Part, device_plans
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.planset import PlanSet
from uring_actors.results.schema import MATCH_SCHEMA


@dataclass(frozen=True)
class DeviceMatch:
    """See the module's page. Pickles as plans and parts; tables are built where it runs."""

    plans: tuple[PatternPlan, ...]
    parts: tuple[Part, ...]

    opcode = abi.OP_SCAN_MATCH
    lead = True
    schema = MATCH_SCHEMA
    device_functions = ()
    parameter = 0  # the number of the pattern set, which is the only one
    notes = ()

    @classmethod
    def of(cls, plans: Sequence[PatternPlan], *, insist: bool) -> DeviceMatch:
        """Raises NotOnDevice where the tables would be too large, and, unless ``insist``, where RE2 would have to
        search alone for a pattern for which the CPU kernel has an engine."""
        made = cls(*device_plans(plans))
        left = [old.name for old, new in zip(plans, made.plans, strict=True) if alone(new) and not alone(old)]
        if left and not insist:
            raise NotOnDevice(f"the GPU has nothing to look for in {len(left)} of the patterns ({left[0]!r})")
        try:
            made.automata  # noqa: B018 built now, so that it is known whether they fit
        except TooLarge as error:
            raise NotOnDevice(f"the patterns don't suit the GPU: {error}") from None
        return made

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.plans, self.parts)

    def on_device(self, *, insist: bool) -> DeviceMatch:
        return self

    @cached_property
    def automata(self) -> Automata:
        return build(self.parts)

    @cached_property
    def plan_set(self) -> PlanSet:
        return PlanSet(self.plans)

    @property
    def halo(self) -> int:
        return self.plan_set.halo

    def result_bytes(self, slot_bytes: int) -> int:
        return slot_bytes // 4

    def make_worker(self, arena: Arena) -> None:
        """The CUDA kernel runs it."""

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        again = _Again(arena, self.automata)
        return MatchSettler(arena, self.plan_set, [plan.name for plan in self.plans], payload, again.hits)


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

"""Rule files on the GPU: automata look for the rules' expressions; keywords are looked for when a finding depends on
them, since words like "key" are everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uring_actors.arena.memory import Arena
from uring_actors.ops.base import NotOnDevice, Settler
from uring_actors.ops.match.automaton import Automata
from uring_actors.ops.match.device import DeviceMatch
from uring_actors.ops.match.operation import Match
from uring_actors.ops.rules.keywords import Keywords
from uring_actors.ops.rules.operation import Findings, RuleScan
from uring_actors.ops.rules.rules import Rules


@dataclass(frozen=True)
class DeviceRuleScan(RuleScan):
    """``RuleScan`` as the CUDA kernel runs it, with the same rows."""

    match: DeviceMatch

    @classmethod
    def from_rules(cls, rules: Rules, *, insist: bool) -> DeviceRuleScan:
        """Raises NotOnDevice; see ``DeviceMatch.from_match``."""
        keyed = [rule.id for rule in rules.rules if rule.regex is None and rule.keywords]
        if keyed:
            raise NotOnDevice(f"rule {keyed[0]!r} asks for keywords alone, which the CPU kernel looks for")
        plans = rules.plans[: len(rules.searched)]
        return cls(rules, DeviceMatch.from_match(Match(plans), insist=insist))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rules, self.match)

    @property
    def _match(self) -> Match:
        return self.match

    @property
    def automata(self) -> Automata:
        return self.match.automata

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        keywords = Keywords(self.rules.plans[len(self.rules.searched) :])
        return self.match.settler(arena, payload, Findings(self.rules, keywords))

    def on_device(self, *, insist: bool) -> DeviceRuleScan:
        return self

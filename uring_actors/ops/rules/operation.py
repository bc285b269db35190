"""Scanning by a rule file: MATCH finds what the rules' expressions match, exactly; here its rows become findings.

A rule counts only in files that hold one of its keywords, wherever in the file that is; and a generic rule's finding
goes where another rule has found the same. So a file's findings are held until its end, and come out in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.megakernel.cpu import Worker
from uring_actors.ops.base import Operation, Settler
from uring_actors.ops.match.automaton import Automata
from uring_actors.ops.match.newlines import Ints
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.rows import Rows
from uring_actors.ops.match.window import ReadFailed, Window
from uring_actors.ops.rules.findings import RULES_SCHEMA, Finding, FindingBatches
from uring_actors.ops.rules.judge import Changed, CompiledRule, path_tests
from uring_actors.ops.rules.keywords import Keywords
from uring_actors.ops.rules.rules import Rule, Rules, fold_keyword
from uring_actors.results.errors import Failure


@dataclass(frozen=True)
class RuleScan:
    """Search by rules. Rows: ``RULES_SCHEMA``."""

    rules: Rules

    opcode = abi.OP_SCAN_MATCH
    lead = True
    schema = RULES_SCHEMA
    device_functions = ()
    parameter = 0
    notes = ()
    packs = False
    splits = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rules,)

    @cached_property
    def _match(self) -> Match:
        return Match(self.rules.plans)

    @property
    def automata(self) -> Automata | None:
        return None

    @property
    def halo(self) -> int:
        return self._match.halo

    def make_worker(self, arena: Arena) -> Worker | None:
        return self._match.make_worker(arena)

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        return self._match.settler(arena, payload, Findings(self.rules))

    def on_device(self, *, insist: bool) -> Operation:
        from uring_actors.ops.rules.device import DeviceRuleScan  # which settles as this module does

        return DeviceRuleScan.from_rules(self.rules, insist=insist)

    def result_bytes(self, slot_bytes: int) -> int:
        return self._match.result_bytes(slot_bytes)


_MANY = 8
"""Matches of one rule that are worth a compiled loop."""


class _File:
    """A file's findings so far."""

    __slots__ = ("absent", "allowed", "findings", "keywords", "wanted", "window")

    def __init__(self) -> None:
        self.window: Window | None = None
        """Where its matches are."""
        self.absent: set[int] = set()
        """Keywords that it was looked through for in vain."""
        self.findings: list[Finding] = []
        self.keywords: set[int] = set()
        self.allowed: bool | None = None
        """Whether no rule looks into this file; None: it hasn't been asked."""
        self.wanted: dict[int, bool] = {}
        """By rule, where it has been asked: whether the rule looks into this file."""


class Findings:
    """What becomes of MATCH's rows (``match.reports.Report``)."""

    sifts = True

    def __init__(self, rules: Rules, sought: Keywords | None = None) -> None:
        """``sought`` looks for keywords where no engine does."""
        self.matches = 0
        self._sought = sought
        self._rules = [CompiledRule(rule, rules.allowlists) for rule in rules.rules]
        self._everywhere = path_tests(rules.allowlists)
        self._searched = [k for k, rule in enumerate(rules.rules) if rule.regex is not None]
        self._paths = [k for k, rule in enumerate(rules.rules) if rule.regex is None]
        self.every_file = bool(self._paths)
        first = len(self._searched)
        places = {word: first + k for k, word in enumerate(rules.keywords)}
        self._first_keyword = first
        self._keywords = [{places[fold_keyword(word)] for word in rule.keywords} for rule in rules.rules]
        self._generic = [_is_generic(rule) for rule in rules.rules]
        self._batches = FindingBatches(rules.rules)
        self._files: dict[int, _File] = {}
        self._ready: list[pa.RecordBatch] = []
        self._failures: list[Failure] = []

    def add(self, number: int, path: bytes, rows: Rows, decided: Callable[[], int], window: Window) -> bool:
        file = self._file(number)
        file.window = window
        data = rows.data.data
        columns: Sequence[NDArray[Any]]
        columns = (rows.pattern, rows.start, rows.end, rows.line, rows.column, rows.offsets[:-1], rows.offsets[1:])
        if len(rows) >= _MANY:
            weak, secrets = self._weigh(rows, window)
            columns = [column[~weak] for column in (*columns, *secrets.T)]
        else:
            unknown = np.full(len(rows), -1)
            columns = (*columns, unknown, unknown)
        for plan, start, end, line, column, low, high, *secret in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if plan >= len(self._searched):  # a keyword, where no engine runs
                file.keywords.add(plan)
                continue
            which = self._searched[plan]
            if not self._wants(file, which, path):
                continue
            match = bytes(data[low:high])
            try:
                verdict = self._rules[which].judge(path, window, start, end, match, *secret)
            except (ReadFailed, Changed) as error:
                self._fail(path, which, start, error)
                continue
            if verdict is not None:
                file.findings.append(Finding(start, which, end, line, column, match, *verdict))
        return True

    def _weigh(self, rows: Rows, window: Window) -> tuple[NDArray[np.bool_], Ints]:
        """Matches of rules with many of them, all at once: as ``CompiledRule.weigh_many``."""
        weak, secrets = np.zeros(len(rows), np.bool_), np.full((len(rows), 2), -1)
        counts = np.bincount(rows.pattern, minlength=len(self._searched))[: len(self._searched)]
        for plan in np.flatnonzero(counts >= _MANY).tolist():
            mine = np.flatnonzero(rows.pattern == plan)
            rule = self._rules[self._searched[plan]]
            weak[mine], secrets[mine] = rule.weigh_many(window, rows.start[mine], rows.end[mine])
        return weak, secrets

    def sift(self, number: int, path: bytes, patterns: set[int]) -> set[int]:
        """Keywords are only noted: their expressions are exact. Rules that don't look into the file are left out."""
        file = self._file(number)
        keywords = {plan for plan in patterns if plan >= len(self._searched)}
        file.keywords |= keywords
        rest = patterns - keywords
        return keywords | {plan for plan in rest if not self._wants(file, self._searched[plan], path)}

    def end(self, number: int, path: bytes, *, opened: bool, empty: bool = False) -> None:
        file = self._files.pop(number, None)
        if file is None:  # nothing was found in it
            if empty or not (opened and self._paths):
                return
            file = _File()
        found = [f for f in file.findings if self._counts(file, path, f)]
        if file.window is not None:
            file.window.close()
        if any(self._generic[f.rule] for f in found):
            found = self._without_echoes(found)
        found.sort(key=lambda f: f[:2])
        paths = [k for k in self._paths if self._holds_keyword(file, k) and self._wants(file, k, path)]
        found[:0] = [Finding(0, k, 0, 0, 0, b"", b"", 0.0) for k in paths]
        self.matches += len(found)
        self._ready.extend(self._batches.add(path, found))

    def take(self, *, everything: bool) -> list[pa.RecordBatch]:
        if everything:
            self._ready.extend(self._batches.flush())
        ready, self._ready = self._ready, []
        return ready

    def take_failures(self) -> list[Failure]:
        failures, self._failures = self._failures, []
        return failures

    def _file(self, number: int) -> _File:
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = _File()
        return file

    def _wants(self, file: _File, which: int, path: bytes) -> bool:
        answer = file.wanted.get(which)
        if answer is None:
            if file.allowed is None:
                file.allowed = any(test(path) for test in self._everywhere)
            answer = file.wanted[which] = not file.allowed and self._rules[which].wants(path)
        return answer

    def _holds_keyword(self, file: _File, which: int) -> bool:
        return not self._keywords[which] or not self._keywords[which].isdisjoint(file.keywords)

    def _counts(self, file: _File, path: bytes, finding: Finding) -> bool:
        """Whether the file holds a keyword of the finding's rule."""
        if self._holds_keyword(file, finding.rule):
            return True
        if self._sought is None or file.window is None:
            return False
        try:
            return self._seek(self._sought, file, finding, file.window)
        except ReadFailed as error:
            self._fail(path, finding.rule, finding.start, error)
            return False

    def _seek(self, sought: Keywords, file: _File, finding: Finding, window: Window) -> bool:
        open_ = sorted(self._keywords[finding.rule] - file.absent)
        for keyword in open_:
            if sought.in_match(keyword - self._first_keyword, finding.match):
                file.keywords.add(keyword)
                return True
        for keyword in open_:
            if sought.in_file(keyword - self._first_keyword, window):
                file.keywords.add(keyword)
                return True
            file.absent.add(keyword)
        return False

    def _without_echoes(self, found: list[Finding]) -> list[Finding]:
        """Without the generic rules' findings whose secret a particular rule has found on the same line."""
        particular = defaultdict(list)
        for f in found:
            if f.line and not self._generic[f.rule]:
                particular[f.fingerprint_line].append(f.secret)
        return [
            f
            for f in found
            if not (
                self._generic[f.rule] and any(f.secret in secret for secret in particular.get(f.fingerprint_line, ()))
            )
        ]

    def _fail(self, path: bytes, which: int, start: int, error: ReadFailed | Changed) -> None:
        rule = self._rules[which].rule.id
        why = error.message if isinstance(error, ReadFailed) else "the file changed while it was scanned"
        number = error.errno if isinstance(error, ReadFailed) else None
        message = f"a match of rule {rule!r} could not be judged: {why}"
        self._failures.append(Failure(path, message, errno=number, offset=start))


def _is_generic(rule: Rule) -> bool:
    """What gitleaks takes for a rule that finds what better ones find too."""
    return "generic" in rule.id.lower()

"""Runs cases through whole scans (reader, Hyperscan, RE2, settler) and, cut at many places, through the settler.

One scan takes many cases: a file for each, and all of their patterns over all files; of its rows only a case's own
patterns in its own file count.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import uring_actors as ua
from tests.extents import Cut
from tests.regex_testdata import differences
from tests.regex_testdata.cases import Case, Match
from uring_actors.errors import PatternError
from uring_actors.ops.match.frontend import compile_patterns

PASS, FAIL, UNSUPPORTED = "pass", "fail", "unsupported"

_CASES_A_SCAN = 50
_PAYLOADS = (1, 2, 3, 7, 64)
_MOST_PIECES = 300
"""Of one case's text, for its cuts: confirming costs some microseconds a piece and pattern."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case; ``reason`` is empty where it passed."""

    case: Case
    status: str
    reason: str = ""


def run(cases: Iterable[Case]) -> Iterator[Outcome]:
    """The outcome of every case, in order."""
    source = iter(cases)
    while group := list(islice(source, _CASES_A_SCAN)):
        settled = [_settled_early(case) for case in group]
        left = [case for case, outcome in zip(group, settled, strict=True) if outcome is None]
        found = iter(_scan(left))
        yield from (outcome or _compared(case, next(found)) for case, outcome in zip(group, settled, strict=True))


def patterns_of(case: Case) -> list[ua.Regex]:
    """Its patterns as a scan takes them. An anchored search for one match is one at the text's begin."""
    shape = r"\A(?:{})" if case.anchored else "{}"
    return [
        ua.Regex(shape.replace("{}", regex), ignore_case=case.case_insensitive, bytes=not case.unicode)
        for regex in case.regexes
    ]


def _settled_early(case: Case) -> Outcome | None:
    """The outcome of a case that needs no search."""
    refusal = None
    try:
        if case.regexes:
            compile_patterns(patterns_of(case))
    except PatternError as error:
        refusal = error.reason
    if not case.compiles:
        if refusal is not None:
            return Outcome(case, PASS)
        reason = differences.of_case(case)
        return Outcome(case, UNSUPPORTED if reason else FAIL, reason or "it compiles, and should not")
    reason = differences.of_search(case) or (refusal and f"refused: {refusal}") or differences.of_case(case)
    return Outcome(case, UNSUPPORTED, reason) if reason else None


def _scan(cases: Sequence[Case]) -> list[list[Match]]:
    """The matches of each case, by one scan, in the order in which they start."""
    if not cases:
        return []
    patterns = [
        ua.Regex(regex.pattern, f"{i}.{k}", ignore_case=regex.ignore_case, bytes=regex.bytes)
        for i, case in enumerate(cases)
        for k, regex in enumerate(patterns_of(case))
    ]
    found: list[list[Match]] = [[] for _ in cases]
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(cases):
            (Path(folder) / str(i)).write_bytes(case.haystack)
        scan = ua.scan(folder, patterns=patterns, engine="threads", io_engine="pread", slot_bytes=65536, slots=4)
        table = scan.to_table()
        assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    columns = (table[name].to_pylist() for name in ("path", "pattern", "start", "end"))
    for path, name, start, end in zip(*columns, strict=True):
        i, k = map(int, name.split("."))
        if i == int(Path(path.decode()).name):
            found[i].append((k, start, end))
    return [_in_order(matches) for matches in found]


def _in_order(matches: Iterable[Match]) -> list[Match]:
    """By start, end and pattern."""
    return sorted(matches, key=lambda match: (*match[1:], match[0]))


def _compared(case: Case, found: list[Match]) -> Outcome:
    reason = _cut_differently(case, found)
    if reason is not None:
        return Outcome(case, FAIL, reason)
    if case.search_kind == "overlapping":  # which patterns match: all that Rust's own RegexSet says
        wanted_ids, found_ids = ({match[0] for match in matches} for matches in (case.matches, found))
        if wanted_ids == found_ids:
            return Outcome(case, PASS)
        return Outcome(case, FAIL, f"patterns {sorted(found_ids)} match, not {sorted(wanted_ids)}")
    # Where patterns' own matches don't overlap, one leftmost search for all of them finds the same.
    if any(one[2] > other[1] for one, other in pairwise(found)):
        return Outcome(case, UNSUPPORTED, "overlapping matches of several patterns are all reported")
    if found[: case.match_limit] == list(case.matches):
        return Outcome(case, PASS)
    return Outcome(case, FAIL, f"found {found[: case.match_limit]}, not {list(case.matches)}")


def _cut_differently(case: Case, found: list[Match]) -> str | None:
    """How cutting the text into extents changes what is found; None where it doesn't."""
    plans = compile_patterns(patterns_of(case))
    rng = random.Random(case.name)
    for payload in _PAYLOADS:
        if not payload < len(case.haystack) <= payload * _MOST_PIECES:
            continue
        rows, faults = Cut(plans, case.haystack, payload, rng).settle()
        pieces = _in_order((row[0], row[1], row[2]) for row in rows)
        if faults or pieces != found:
            return f"in extents of {payload} bytes {pieces} is found, {faults} fails; in one {found}"
    return None

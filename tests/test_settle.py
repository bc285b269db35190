"""Extents of any size, in any order, settle to what RE2 finds in the whole file."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.extents import Cut, Memory, expected, literal, place, plan
from uring_actors.ops.match import machine, unbounded, window
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.pattern import Regex
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.planset import Pattern, compile_source
from uring_actors.ops.match.settle import FileSettler
from uring_actors.ops.match.unbounded import LineSearch, Matches
from uring_actors.ops.match.window import LocalFile, ReadFailed, Window

LITERALS = [literal(0, b"aa"), literal(1, b"foo"), literal(2, b"a"), literal(3, b"\n\n"), literal(4, b"\xff\x00")]

BOUNDED_SOURCES: list[tuple[bytes, tuple[int, int]]] = [
    (rb"aa|aab", (2, 3)),
    (rb"aab|aa", (2, 3)),
    (rb"a{2,5}", (2, 5)),
    (rb"a{2,5}?", (2, 5)),
    (rb"\bfoo\b", (3, 3)),
    (rb"(?m)^a[ab]{0,3}$", (1, 4)),
    (rb"(?m)^foo", (3, 3)),
    (rb"\Aa{1,3}", (1, 3)),
    (rb"b{1,3}\z", (1, 3)),
    (rb"ab{0,4}c|b", (1, 6)),
    (rb"\Boo|o\b", (1, 2)),
    (rb"(?s).{0,6}x", (1, 7)),
    (rb".{0,40}x", (1, 41)),
    (rb"(?s)[^b]b?.", (2, 3)),
    (rb"\s{1,3}foo", (4, 6)),
]
BOUNDED = [plan(i, Kind.BOUNDED, s, w) for i, (s, w) in enumerate(BOUNDED_SOURCES)]
SLOT = [plan(i, Kind.SLOT, s, w) for i, (s, w) in enumerate(BOUNDED_SOURCES)]
UTF8 = [
    plan(0, Kind.BOUNDED, b"x.{2}y", (4, 10), latin1=False),
    plan(1, Kind.SLOT, "é|\\pL{2}".encode(), (2, 8), latin1=False),
    plan(2, Kind.BOUNDED, rb"[^a]", (1, 4), latin1=False),
]
PREFIX = [
    plan(0, Kind.PREFIX, rb"a(?:b+c)?", candidate=rb"a", candidate_widths=(1, 1)),
    plan(1, Kind.PREFIX, rb"(?s)foo.*bar", candidate=rb"foo", candidate_widths=(3, 3)),
    plan(2, Kind.PREFIX, rb"ab{0,3}c+|b+", candidate=rb"ab{0,3}c|b", candidate_widths=(1, 5)),
    plan(3, Kind.PREFIX, rb"(?s)foo.*?bar", candidate=rb"fo{2}", candidate_widths=(3, 3)),
    plan(4, Kind.PREFIX, rb"\ba+\b", candidate=rb"a", candidate_widths=(1, 1)),
    plan(5, Kind.PREFIX, rb"(?m)^ab+$", candidate=rb"ab", candidate_widths=(2, 2)),
    plan(6, Kind.PREFIX, rb"o+\z|ob*", candidate=rb"o", candidate_widths=(1, 1)),
]
LINE = [
    plan(0, Kind.LINE, rb"[a-z]+@x", candidate=rb"@x", candidate_widths=(2, 2)),
    plan(1, Kind.LINE, rb"(?m)^ab+$", candidate=rb"ab", candidate_widths=(2, 2)),
    plan(2, Kind.LINE, rb"(?m)^ab+$"),
    plan(3, Kind.LINE, rb"a.*b"),
    plan(4, Kind.LINE, rb"a.*b", candidate=rb"b", candidate_widths=(1, 1)),
    plan(5, Kind.LINE, rb"\Aa+|b+\z"),
    plan(6, Kind.LINE, rb"o+|[ab]+?\b", candidate=rb"[oab]", candidate_widths=(1, 1)),
]
FILE = [
    plan(0, Kind.FILE, rb"\s+foo", candidate=rb"foo", candidate_widths=(3, 3)),
    plan(1, Kind.FILE, rb"(?s)foo.*bar|x"),
    plan(2, Kind.FILE, rb"(?s)foo.*?bar|o"),
    plan(3, Kind.FILE, rb"a+|ab+c"),
    plan(4, Kind.FILE, rb"\s+foo", candidate=rb"o{2}", candidate_widths=(2, 2)),
    plan(5, Kind.FILE, rb"ab|b(?s:.*)z"),
    plan(6, Kind.FILE, rb"(?m)^\s*a+$"),
]
KINDS = {
    "literal": LITERALS,
    "bounded": BOUNDED,
    "slot": SLOT,
    "utf8": UTF8,
    "prefix": PREFIX,
    "line": LINE,
    "file": FILE,
    "utf8 unbounded": [
        plan(0, Kind.FILE, "é+x".encode(), latin1=False),
        plan(
            1,
            Kind.PREFIX,
            "é[^a]*".encode(),
            candidate=rb"\xc3\xa9",
            candidate_widths=(2, 2),
            latin1=False,
        ),
        plan(2, Kind.LINE, "é+.*x".encode(), latin1=False),
    ],
}
MIXED = [
    literal(0, b"aa"),
    plan(1, Kind.BOUNDED, rb"\bfoo\b", (3, 3)),
    plan(2, Kind.SLOT, rb"[ab]{1,4}c?", (1, 5)),
    plan(3, Kind.PREFIX, rb"a(?:b+c)?", candidate=rb"a", candidate_widths=(1, 1)),
    plan(4, Kind.LINE, rb"[a-z]+@x", candidate=rb"@x", candidate_widths=(2, 2)),
    plan(5, Kind.FILE, rb"\s+foo"),
]

PIECES = [
    b"a",
    b"aa",
    b"b",
    b"bc",
    b"c",
    b"foo",
    b"bar",
    b"x",
    b"@x",
    b"\n",
    b" ",
    b"\n\n",
    b"z",
    b"\xff",
    b"\x00",
    b"y",
]
texts = st.lists(st.sampled_from([*PIECES, "é".encode()]), max_size=60).map(b"".join)
payloads = st.one_of(st.integers(1, 9), st.integers(1, 64))


def settles(plans: Sequence[PatternPlan], data: bytes, payload: int, seed: int = 0) -> None:
    rows, faults = Cut(plans, data, payload, random.Random(seed)).settle(lend=True)
    assert rows == expected(plans, data)
    assert faults == []


@pytest.mark.parametrize("kind", KINDS)
def test_as_re2_over_the_whole_file(kind: str) -> None:
    @settings(max_examples=examples(100), deadline=None)
    @given(data=texts, payload=payloads, seed=st.integers(0, 9))
    def check(data: bytes, payload: int, seed: int) -> None:
        settles(KINDS[kind], data, payload, seed)

    check()


@pytest.fixture
def tiny_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that must grow, and chunks that cut, within texts of a few bytes."""
    monkeypatch.setattr(unbounded, "_FIRST_WINDOW", 2)
    monkeypatch.setattr(unbounded, "_CHUNK", 5)
    monkeypatch.setattr(unbounded, "_LINE_STEP", 2)
    monkeypatch.setattr(window, "_READ_AHEAD", 1)


@pytest.mark.usefixtures("tiny_windows")
@pytest.mark.parametrize("kind", ["prefix", "line", "file", "utf8 unbounded"])
def test_windows_that_grow(kind: str) -> None:
    test_as_re2_over_the_whole_file(kind)


@pytest.mark.parametrize("trust", [1 << 10, 20])
@pytest.mark.parametrize("room", [1, 3])
def test_lines_by_programs(trust: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the lines are, as long as the program is trusted; and few matches at a time."""
    monkeypatch.setattr(unbounded, "_MANY_LINES", 0)
    monkeypatch.setattr(unbounded, "_TRUST", trust)
    monkeypatch.setattr(machine, "MOST_SPANS", room)
    for kind in ("line", "utf8 unbounded"):
        assert any(Pattern(one).program is not None for one in KINDS[kind] if one.kind is Kind.LINE)
        test_as_re2_over_the_whole_file(kind)


@pytest.mark.parametrize("strange", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("payload", [2000, 1 << 16])
def test_more_matches_than_a_program_gives_at_once(strange: float, payload: int) -> None:
    """Some are left to RE2, for they are beyond ASCII; or all, where these are too many."""
    rng = random.Random(payload)
    lines = [
        rng.choice([b"ab", b"b c", b""]) + (b"\xc3\xa9\xff" if rng.random() < strange else b"") for _ in range(3000)
    ]
    data = b"\n".join(lines)
    plans = compile_patterns([Regex("(?m)^.{1,3}"), Regex(r"(?m)\w?.$"), Regex("[^b]+b?")])
    assert {one.kind for one in plans} == {Kind.BOUNDED, Kind.FILE}
    settles(plans, data, payload, 0)


@pytest.mark.usefixtures("tiny_windows")
@pytest.mark.parametrize("allowance", [-(1 << 20), -200, 0])
def test_the_linear_way_takes_over_anywhere(allowance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbounded, "_ALLOWANCE", allowance)
    test_as_re2_over_the_whole_file("prefix")


@settings(max_examples=examples(100), deadline=None)
@given(data=texts, payload=payloads, seed=st.integers(0, 9))
def test_kinds_together(data: bytes, payload: int, seed: int) -> None:
    settles(MIXED, data, payload, seed)


SAMPLES = {
    "a's": b"a" * 97,
    "a's and newlines": b"a" * 40 + b"\n" + b"a" * 41,
    "ab": b"ab" * 40 + b"c",
    "words": b"foo bar\nfoo  foo\n\n foo@x abc foo.bar" * 3,
    "long line": b"abc" * 60 + b"@x" + b"o" * 50,
    "newlines": b"\n" * 70,
    "no newline at the end": b"ab\nabb",
    "invalid UTF-8": b"x\xc3y\xffx\xc3\xa9\xc3\xa9y\xf0\x9f\x98" * 4,
    "one byte": b"a",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_at_every_border(kind: str, sample: str) -> None:
    for payload in (1, 2, 3, 4, 5, 7, 8, 11, 16, 64, 200):
        settles(KINDS[kind], SAMPLES[sample], payload, payload)


@pytest.mark.parametrize("index", range(len(BOUNDED)))
def test_each_with_the_halo_that_it_needs(index: int) -> None:
    """Alone, so that no wider pattern lends it bytes."""
    for payload in (1, 2, 3, 5, 8, 13):
        for sample in ("words", "a's", "ab"):
            settles([BOUNDED[index]], SAMPLES[sample], payload, payload)
            settles([SLOT[index]], SAMPLES[sample], payload, payload)


def test_a_candidate_too_early_does_not_accept_a_match_cut_short() -> None:
    data = b"x" * 5 + b"a" * 5 + b"x" * 5 + b"aaab" * 3
    for seed in range(40):
        settles([BOUNDED[2]], data, 64, seed)


def test_chains_that_never_meet_are_searched_again_once() -> None:
    data = b"a" * 100_001
    reader = Memory(data)
    rows, _ = Cut([literal(0, b"aaa")], data, 10_000, random.Random(1)).settle(lambda: reader)
    assert [r[1] for r in rows] == list(range(0, 99_999, 3))
    assert reader.closed
    assert reader.read < 11 * (64 << 10)


def test_an_unread_extent_takes_lines_and_leaves_offsets() -> None:
    data = b"a\nxx foo \n.......\n..foo foo\nfoo"
    rows, faults = Cut([literal(0, b"foo")], data, 10, random.Random(0)).settle(unread=[1])
    assert [(f.offset, f.errno, f.pattern) for f in faults] == [(10, 5, None)]
    assert [r[1:5] for r in rows] == [(5, 8, 2, 4), (20, 23, None, None), (24, 27, None, None), (28, 31, None, 1)]


(GAP,) = compile_patterns([Regex(r"(?s)foo.*?bar")])
HOLED = [
    *MIXED,
    plan(6, Kind.LINE, rb"a.*b"),
    plan(7, Kind.FILE, rb"(?s)foo.*bar|x"),
    *(
        replace(p, index=i)
        for i, p in enumerate([PREFIX[1], PREFIX[3], LINE[1], LINE[4], FILE[0], FILE[2], FILE[3], FILE[4], GAP], 8)
    ),
]


@settings(max_examples=examples(150), deadline=None)
@given(
    data=texts.filter(bool),
    payload=st.integers(2, 24),
    seed=st.integers(0, 9),
    pick=st.integers(0, 99),
    near=st.sampled_from([1, unbounded._NEAR_LITERAL]),
    many=st.sampled_from([1, unbounded._MANY_LINES]),
)
def test_a_hole_costs_rows_but_makes_none_up(
    data: bytes, payload: int, seed: int, pick: int, near: int, many: int
) -> None:
    assert GAP.lead is not None
    assert GAP.lead.gap is not None
    assert GAP.lead.gap.literals == (b"bar",)
    cut = Cut(HOLED, data, payload, random.Random(seed))
    starts = cut.starts()
    lost = pick % len(starts)
    low, high = starts[lost], min(len(data), starts[lost] + payload)
    with mock.patch.object(unbounded, "_NEAR_LITERAL", near), mock.patch.object(unbounded, "_MANY_LINES", many):
        rows, faults = cut.settle(lambda: Memory(data, [(low, high)]), unread=[lost], lend=True)
    assert [f.offset for f in faults if f.pattern is None] == [low]
    newline = data.find(b"\n", high)
    for index, start, end, line, column, text in rows:
        assert text == data[start:end]
        assert compile_source(HOLED[index]).match(data, start).end() == end
        if start < low:
            assert (line, column) == place(data, start)
        else:
            assert start >= high
            assert line is None
            assert column == (place(data, start)[1] if 0 <= newline < start else None)
    for p in HOLED:
        since = min(f.since for f in faults if f.pattern in (None, p.index))
        assert [r for r in rows if r[0] == p.index and r[1] < since] == [
            r for r in expected([p], data) if r[1] < since
        ]


def test_a_failure_that_passes_loses_only_lines() -> None:
    """The slot's read failed, the settler's own reads succeed: unbounded matches are all there."""
    data = b"foo  \n" * 20 + b" bar"
    plans = [plan(0, Kind.FILE, rb"(?s)foo.*?\n")]
    rows, faults = Cut(plans, data, 16, random.Random(0)).settle(unread=[2])
    assert [r[:3] for r in rows] == [r[:3] for r in expected(plans, data)]
    assert len(faults) == 1


@pytest.mark.parametrize("pattern", [LINE[4], FILE[0]])
def test_a_match_whose_candidate_lies_in_a_hole_is_not_lost_silently(pattern: PatternPlan) -> None:
    data = b"xx\na  foob"
    for seed in range(20):  # with and without a false candidate before the hole
        cut = Cut([pattern], data, 5, random.Random(seed))
        rows, faults = cut.settle(lambda: Memory(data, [(5, 10)]), unread=[1])
        assert rows == []
        assert any(f.pattern == pattern.index and f.since <= 4 for f in faults)


def test_a_file_cut_short_while_it_is_settled() -> None:
    data = b"ab\n" * 50
    plans = [plan(0, Kind.LINE, rb"ab+"), literal(1, b"ab")]
    rows, faults = Cut(plans, data, 15, random.Random(0)).settle(lambda: Memory(data[:70]))
    assert [r[1] for r in rows if r[0] == 1] == list(range(0, 150, 3))
    assert [r[1] for r in rows if r[0] == 0] == list(range(0, 60, 3))
    assert [(f.errno, f.pattern) for f in faults] == [(errno.ESTALE, None)]


def test_lines_searched_as_one_lose_no_more_than_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"ab\n" * 5000

    def found(hole: int) -> tuple[list[tuple[int, bytes]], int, int]:
        search = LineSearch(Pattern(LINE[1]), Window(partial(Memory, data, [(hole, hole + 1)]), len(data)))
        search.learn(np.arange(2, len(data), 3))
        out, failed = Matches(), -1
        try:
            search.advance(len(data), len(data) - 1, out)
        except ReadFailed as error:
            failed = error.offset
        rows = [(one.start, bytes(one.text)) for one in out.found]
        for starts, offsets, text in out.many:
            rows += [(s, text[a:b].tobytes()) for s, a, b in zip(starts, offsets, offsets[1:], strict=False)]
        return rows, search.at, failed

    holes = [3, 4096, 7000, 9001, len(data) - 1, len(data)]
    together = [found(hole) for hole in holes]
    monkeypatch.setattr(unbounded, "_NEAR", -1)
    assert together == [found(hole) for hole in holes]
    assert [len(out) > 0 for out, _, _ in together] == [False, False, True, True, True, True]
    assert together[-1][0] == [(start, b"ab") for start in range(0, len(data), 3)]


def test_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ab\n" * 50)
    listed = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"ab\n" * 50)
    os.replace(other, path)
    plans = [plan(0, Kind.LINE, rb"ab+"), plan(1, Kind.LINE, rb"b"), literal(2, b"ab")]
    cut = Cut(plans, path.read_bytes(), 15, random.Random(0))
    rows, faults = cut.settle(lambda: LocalFile(os.fsencode(path), listed.st_dev, listed.st_ino))
    assert {r[0] for r in rows} == {2}
    assert [(f.errno, f.pattern) for f in faults] == [(errno.ESTALE, None)]


def test_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(SAMPLES["words"])
    listed = path.stat()
    cut = Cut(MIXED, path.read_bytes(), 15, random.Random(0))
    rows, faults = cut.settle(lambda: LocalFile(os.fsencode(path), listed.st_dev, listed.st_ino))
    assert rows == expected(MIXED, SAMPLES["words"])
    assert faults == []


def test_what_cannot_be_searched_again_is_dropped() -> None:
    data = b"a" * 31
    rows, faults = Cut([literal(0, b"aa")], data, 5, random.Random(0)).settle(lambda: Memory(data, [(0, 31)]))
    # The second extent should begin at 6; its chain from 5 goes. The third starts anew.
    assert [r[1] for r in rows] == [0, 2, 4, 10, 12, 14, 20, 22, 24]
    assert [(f.offset, f.since, f.pattern) for f in faults] == [(5, 6, 0), (15, 16, 0), (25, 26, 0)]


@pytest.mark.parametrize("kind", [Kind.PREFIX, Kind.FILE, Kind.LINE])
def test_a_window_above_the_limit_is_an_error_of_that_pattern(kind: Kind) -> None:
    source = rb"foo.*bar" if kind is Kind.LINE else rb"(?s)foo.*bar"
    candidate = None if kind is Kind.FILE else rb"foo"
    long = plan(0, kind, source, candidate=candidate, candidate_widths=(3, 3))
    data = b"foo" + b"a" * 3000 + b"bar"
    rows, faults = Cut([long, literal(1, b"bar")], data, 100, random.Random(0)).settle(window_limit=1000)
    assert [r[0] for r in rows] == [1]
    assert [(f.errno, f.pattern) for f in faults] == [(errno.EFBIG, 0)]


def test_many_starts_that_all_live_long_fall_to_the_linear_way() -> None:
    data = b"foo" * 20_000
    plans = [plan(0, Kind.PREFIX, rb"(?s)foo.*bar", candidate=rb"foo", candidate_widths=(3, 3))]
    reader = Memory(data)
    rows, faults = Cut(plans, data, 10_000, random.Random(0)).settle(lambda: reader)
    assert (rows, faults) == ([], [])
    assert reader.read < 200 * len(data)


def test_an_empty_file_is_finished_at_once() -> None:
    cut = Cut(MIXED, b"", 8, random.Random(0))
    settler = FileSettler(cut.plans, 0, lambda: Memory(b""))
    assert settler.finished
    assert len(settler.add(0, cut.extent(0))[0].rows) == 0

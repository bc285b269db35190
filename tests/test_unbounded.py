"""What decides matches without a maximum width, each piece against google-re2 over the whole text."""

from __future__ import annotations

import errno
import random

import numpy as np
import pytest
import re2
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import strategies as own
from tests.examples import examples
from tests.extents import Cut, Memory, expected
from uring_actors.ops.match import lower as low
from uring_actors.ops.match import syntax, unbounded
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.machine import Walk
from uring_actors.ops.match.newlines import as_bytes
from uring_actors.ops.match.pattern import Regex
from uring_actors.ops.match.plan import Kind, LazyGap, PatternPlan
from uring_actors.ops.match.planset import Expression
from uring_actors.ops.match.window import Window

FUZZ = settings(
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def compiled(text: str, latin1: bool) -> Expression:
    return Expression(text.encode("latin-1" if latin1 else "utf-8"), latin1=latin1)


def check_decided(text: str, latin1: bool, data: bytes) -> None:
    """Whatever is said to be decided by the beginning of ``data`` is so in all of it."""
    expression = compiled(text, latin1)
    whole = re2.compile(text.encode("latin-1" if latin1 else "utf-8"), syntax.re2_options(latin1))
    window = Window(lambda: Memory(data), len(data))
    for at in range(len(data)):
        here, leftmost = whole.match(data, at), whole.search(data, at)
        for stop in range(at, len(data) + 1):
            start, end = unbounded._decided(expression, window, at, stop, anchored=True)
            if end >= 0:
                assert here is not None
                assert (start, end) == here.span()
            else:
                assert start == at or here is None, (at, stop)
            start, end = unbounded._decided(expression, window, at, stop)
            if end >= 0:
                assert leftmost is not None
                assert (start, end) == leftmost.span()
            else:
                assert leftmost is None or leftmost.start() >= start, (at, stop)
            assert stop < len(data) or end >= 0 or start == stop, "at the end all is decided"


@settings(FUZZ, max_examples=examples(150))
@given(st.data(), st.booleans())
def test_what_a_beginning_decides_is_so_in_the_whole(data: st.DataObject, latin1: bool) -> None:
    text = data.draw(own.usable_patterns(latin1=latin1))
    tree = low.lower(syntax.parse(text, latin1=latin1), latin1=latin1)
    check_decided(text, latin1, data.draw(own.texts(tree))[:40])


@FUZZ
@given(st.data())
def test_loose_utf8_decides_nothing_wrong(data: st.DataObject) -> None:
    """RE2 takes overlong forms where ranges merge into U+0080–U+10FFFF, however they came about."""
    parts = [r"[\x80-\x{7FF}]", r"[\x{800}-\x{FFFF}]", r"[\x{10000}-\x{10FFFF}]", ".", "[^a]", r"\pL", "a"]
    pattern = "|".join(data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4)))
    heads = [b"\xe0\x80", b"\xf0\x80\x80", b"\xf4\xbf\xbf", b"\xed\xa0", b"\xc3", b"\xf4\x8f\xbf", b"", b"a"]
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(heads), st.integers(0x7F, 0xC2)), max_size=6))
    check_decided(
        f"(?:{pattern})+{data.draw(st.sampled_from(['', 'a', '?', r'(?s:.)']))}",
        False,
        b"".join(head + bytes([last]) for head, last in chosen),
    )


@pytest.mark.parametrize(
    ("text", "data", "stop", "end"),
    [
        ("(?s)foo.*?bar", b"foo bar bar bar", 8, 7),  # a lazy gap is decided where it ends
        ("(?s)foo.*bar", b"foo bar bar bar", 14, -1),
        ("foo.*bar", b"foo bar bar\nbar", 12, 11),
        ("a(?:b+c)?", b"abbbd", 4, -1),
        ("a(?:b+c)?", b"abbbd_", 5, 1),
        ("a(?:b+c)??", b"abbbd", 2, 1),
        (r"a+\b", b"aa b", 3, 2),
        ("(?s)a.*?é", "aééé".encode(), 5, 3),
        ("(?s)a.*?é", "aééé".encode(), 4, -1),  # within a character
        (r"a\Q+*\E+?b", b"a+***bb ", 7, 6),
    ],
)
def test_a_match_is_decided_early(text: str, data: bytes, stop: int, end: int) -> None:
    window = Window(lambda: Memory(data), len(data))
    assert unbounded._decided(compiled(text, False), window, 0, stop, anchored=True) == (0, end)


@pytest.mark.parametrize(
    ("text", "front", "core"),
    [
        (r"[\w.]{0,50}?key", r"(?:[\w.]){0,50}", "key"),
        (r"(?i)(?s)é{0,3}?a|b", None, None),
        (r"(?i)é{0,3}?(?:a|b)", "(?i)(?:é){0,3}", "(?i)(?:a|b)"),
        (r"[\w.]{0,50}key", None, None),
        (r"(?U)a{0,5}?b", None, None),
        (r"(?:ab){0,5}?c", None, None),
        (r"(a{0,5}?b)c", None, None),
        (r"a{1,5}?b", None, None),
        (r"a{0,5}?\C", None, None),
        (r"\b{0,5}?b", None, None),
    ],
)
def test_lazy_fronts(text: str, front: str | None, core: str | None) -> None:
    assert syntax.lazy_front(text) == (None if front is None else (front, core))


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        ("(?i)foo.*?bar", ("(?i)foo", "(?i).", 0, "(?i)bar")),
        ("a(?s)b.+?c(?i)d", ("a(?s)b", "(?s).", 1, "(?s)c(?i)d")),
        (r"a[\s\S]{64,}?b", ("a", r"[\s\S]", 64, "b")),
        ("foo.*bar", None),
        ("a(?:.*?)b", None),
        ("(?U)a.*?b", None),
        ("a.*?b|c", None),
        (r"a\Qx\E*?b", None),
    ],
)
def test_lazy_gaps(text: str, gap: tuple[str, str, int, str] | None) -> None:
    assert syntax.lazy_gap(text) == gap


def test_what_is_known_of_a_pattern() -> None:
    (plan,) = compile_patterns([Regex(r"(?i)[\w.]{0,9}?secret\d{2}[\s\S]{4,}?KEY(?: BLOCK)?-{5}")])
    assert plan.kind is Kind.PREFIX
    assert plan.lead is not None
    assert plan.lead.front == rb"(?i)(?:[\w.]){0,9}"
    assert plan.lead.core == rb"(?i)secret\d{2}[\s\S]{4,}?KEY(?: BLOCK)?-{5}"
    assert plan.lead.head is not None
    assert re2.match(plan.lead.head, b"secret12____")
    gap = plan.lead.gap
    assert gap is not None
    assert (gap.entry, gap.tail, gap.literals) == (7 + 2 + 4 * 4, 3 + 2 + 6 + 2 + 5, (b"-----",))


PATTERNS = [
    r"[ab]{0,3}?foo[abx]+c?",
    r"(?i)[\w.-]{0,5}?(?:key|foo|ba[rz])[ \t]{0,4}=(\w{4,}|[a-z0-9]{3,}=)(?:[;\s]|$)",
    r"[é-ñb]{0,4}?foo.+?b",
    r"(?s)foo.*?bar",
    r"(?s)foo.{3,}?ba(?:r|zz)",
    r"(?s)foo[^;]*?bar\b",
    r"(?s)a{0,2}?foo.*?(?:--|key=)",
    r"foo(?:.*?)bar",
    r"(?s)foo(?:a|ab).*?b{1,3}",
    r"(?s)foo(?:a|ab).*?b{1,3}?x",
    r"(?m)^foo.*?=$",
    r"foo+|foo\s+bar",
    r"(?s)foo.*?\z|foo.*b",
    r"\bfoo[^é]*?ébar",
]
PIECES = [b"foo", b"bar", b"key", b"=", b"a", b"b", b"ba", b"zz", b"--", b"x", b";", b"\n", b" ", b"\xff", b"\xc3"]
texts = st.lists(st.sampled_from([*PIECES, "é".encode(), "ſ".encode()]), max_size=60).map(b"".join)
payloads = st.one_of(st.integers(1, 9), st.integers(1, 200))


def settles(plans: tuple[PatternPlan, ...], data: bytes, payload: int, seed: int) -> None:
    rows, faults = Cut(plans, data, payload, random.Random(seed)).settle(lend=True)
    assert rows == expected(plans, data)
    assert faults == []


@pytest.mark.parametrize("window", [1, 128])
@pytest.mark.parametrize("latin1", [False, True])
def test_derived_plans_settle_to_what_the_whole_file_has(
    latin1: bool, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unbounded, "_FIRST_WINDOW", window)
    monkeypatch.setattr(unbounded, "_GAP_STEP", window)
    monkeypatch.setattr(unbounded, "_NEAR_LITERAL", window)
    monkeypatch.setattr(unbounded, "_LONGEST_STRETCH", 8 * window)
    monkeypatch.setattr(unbounded, "_LARGE", 8 * window)
    known = [Regex(text, bytes=latin1) for text in PATTERNS if text.isascii() or not latin1]
    plans = compile_patterns(known)
    assert {plan.kind for plan in plans} == {Kind.PREFIX}
    leads = [plan.lead for plan in plans if plan.lead is not None]
    assert sum(lead.front is not None for lead in leads) >= 2
    assert sum(lead.gap is not None for lead in leads) >= 4
    assert any(lead.gap is not None and lead.gap.literals for lead in leads)

    @FUZZ
    @given(data=texts, payload=payloads, seed=st.integers(0, 9))
    def check(data: bytes, payload: int, seed: int) -> None:
        settles(plans, data, payload, seed)

    check()


@FUZZ
@given(st.data())
def test_patterns_with_a_lazy_front_or_gap(data: st.DataObject) -> None:
    letters = st.sampled_from(["a", "b", "[ab]", "[^b]", "é", ".", r"\w", r"\s"])
    front = data.draw(st.just("") | st.builds(lambda x, n: f"{x}{{0,{n}}}?", letters, st.integers(1, 4)))
    gap = data.draw(st.just("") | st.builds(lambda x, n: f"{x}{{{n},}}?", letters, st.integers(0, 3)))
    head = data.draw(st.sampled_from(["foo", "fo{1,2}a?", "(?:foo|bar)", r"\bfoo", "key"]))
    behind = data.draw(own.usable_patterns(max_leaves=4))
    flags = data.draw(st.sampled_from(["", "(?s)", "(?i)", "(?im)", "(?U)"]))
    text = f"{flags}{front}{head}{gap}(?:{behind})"
    (plan,) = compile_patterns([Regex(text)], max_halo=data.draw(st.sampled_from([16, 4096])))
    assume(plan.kind is Kind.PREFIX)
    word = own.words(low.lower(syntax.parse(text), latin1=False))
    pieces = st.lists(st.sampled_from([*PIECES, "é".encode()]) | word | st.binary(max_size=3), max_size=12)
    settles((plan,), b"".join(data.draw(pieces))[:200], data.draw(payloads), 0)


# -- what it costs


def prefix_search(text: str, data: bytes, reader: Memory) -> unbounded.PrefixSearch:
    (plan,) = compile_patterns([Regex(text)])
    assert plan.kind is Kind.PREFIX
    search = unbounded.PrefixSearch(unbounded_pattern(plan), Window(lambda: reader, len(data)))
    assert plan.candidate is not None
    candidate = re2.compile(plan.candidate, syntax.re2_options(True))
    search.learn(np.array([m.end() for m in candidate.finditer(data)], np.int64))
    return search


def unbounded_pattern(plan: PatternPlan) -> unbounded.Pattern:
    return unbounded.Pattern(plan)


def test_a_lazy_match_is_read_about_once_and_nothing_behind_it() -> None:
    data = b"BEGIN " + b"x\xc3\xa9- " * 400_000 + b"-----END\n" + b"y" * 4_000_000
    reader = Memory(data)
    search = prefix_search(r"BEGIN[\s\S]{8,}?-----END", data, reader)
    out = unbounded.Matches()
    search.advance(len(data), -1, out)
    end = data.index(b"END\n") + 3
    assert [(f.start, f.end, bytes(f.text)) for f in out.found] == [(0, end, data[:end])]
    assert reader.read < 2.2 * end


def test_a_gap_that_leads_nowhere_is_crossed_once() -> None:
    data = (b"BEGIN and no end" + b"." * 1000) * 2000
    reader = Memory(data)
    search = prefix_search(r"BEGIN[\s\S]{8,}?-----END", data, reader)
    out = unbounded.Matches()
    search.advance(len(data), -1, out)
    assert (out.found, out.many) == ([], [])
    assert search._linear is None
    assert reader.read < 80 * len(data)  # to the end from each start: a thousand times


@pytest.mark.parametrize("ends", [True, False])
def test_a_gap_is_followed_in_what_is_in_memory_anyway(ends: bool) -> None:
    """Extents that are lent while they are settled; what looks like the gap's end and is none doesn't matter."""
    payload, halo = 1 << 18, 64
    data = b"." * 1000 + b"BEGIN" + b"x\xc3\xa9 ----- END --- Xx\n" * 300_000
    stop = len(data) + 8
    data += (b"eNd-----" if ends else b"eNo-----") + b"y" * 3_000_000
    reader = Memory(data)
    search = prefix_search(r"(?i)BEGIN[\s\S]{8,}?END(?: X)?-----", data, reader)
    out = unbounded.Matches()
    before_the_end = 0
    for start in range(0, len(data), payload):
        lead, frontier = max(0, start - 1), min(len(data), start + payload)
        with search._window.lent(memoryview(data)[lead : min(len(data), frontier + halo)], lead):
            search.advance(frontier, -1, out)
        if frontier + 1024 < stop:  # so far it may look ahead
            assert (search.decided(frontier, -1), search.idle, out.found) == (1000, False, [])
            before_the_end = reader.read
    # A little of the match's beginning for each extent.
    assert before_the_end < 0.3 * stop
    assert search.idle
    assert search.decided(len(data), -1) == len(data)
    assert [(f.start, f.end, bytes(f.text)) for f in out.found] == ([(1000, stop, data[1000:stop])] if ends else [])
    assert reader.read < (1.4 if ends else 0.4) * stop


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("(?s)foo.*?bar", "foo" + "z" * 125 + "baré and more, " + "y" * 900 + " a later bar.\n"),
        ("foo[^#]*?bar", "foo" + "z" * 125 + "baré and more, " + "y" * 900 + " a later bar.\n"),
        (r"(?s)foo.*?\bbar", "foo" + "z" * 1000 + "xbar" + "z" * 504 + " baré " + "y" * 900 + " later bar"),
        ("foo[^#]*?bar", "foo" + "z" * 61565 + "baré " + "y" * 90000 + " later bar"),
    ],
)
@pytest.mark.parametrize("character", ["é", "€", "😀"])
@pytest.mark.parametrize("more", range(-4, 4))
def test_what_ends_where_a_character_is_cut(text: str, data: str, character: str, more: int) -> None:
    """Of windows and steps of any size one ends there."""
    found = data.replace("z", "z" * (1 + more % 8), 1).replace("é", character).encode()
    search = prefix_search(text, found, Memory(found))
    out = unbounded.Matches()
    search.advance(len(found), -1, out)
    whole = re2.compile(text.encode(), syntax.re2_options(False))
    assert [(f.start, f.end) for f in out.found] == [m.span() for m in whole.finditer(found)]


def test_candidates_in_an_open_gap_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbounded, "_MOST_WAITING", 100)
    data = b"foo= " * 4000 + b"bar"
    search = prefix_search("(?s)foo=.*?barbaz", data, Memory(data))
    candidates, out = search._ends, unbounded.Matches()
    search._ends = candidates[:0]
    for frontier in (*range(1000, len(data), 1000), len(data)):
        search.learn(candidates[(candidates > frontier - 1000) & (candidates <= frontier)])
        search.advance(frontier, -1, out)
        assert len(search._ends) <= 300
    assert (out.found, out.many) == ([], [])


@pytest.mark.parametrize(
    ("text", "line"), [(r"\w+ .*Z", b"some words of prose "), (r"[a-z ]+;$", b"a b c d e f g h ")]
)
def test_a_program_gives_up_lines_that_it_is_slow_in(text: str, line: bytes) -> None:
    (plan,) = compile_patterns([Regex(text)])
    assert plan.kind is Kind.LINE
    data = (line * 50 + b"\n") * 100
    pattern = unbounded_pattern(plan)
    assert pattern.program is not None
    walk = Walk.through(pattern.program, 0, len(data))
    assert not walk.advance(as_bytes(data), 0, len(data))
    assert walk.tired
    assert walk.next < 10_000
    data = data.replace(b"\n", b"Z\n", 1) + b"x Z;"
    out = unbounded.Matches()
    window = Window(lambda: Memory(data), len(data))
    assert unbounded._emit_lines(pattern, pattern.program, window, 0, len(data), out) is None
    found = [(one.start, one.end) for one in out.found]
    found += [(s, s + n) for starts, offsets, _ in out.many for s, n in zip(starts, np.diff(offsets), strict=True)]
    whole = re2.compile(text.encode(), syntax.re2_options(False))
    assert sorted(found) == [m.span() for m in whole.finditer(data)]


def test_a_match_before_what_cannot_be_read_is_found() -> None:
    data = b"BEGIN" + b"." * 100_000 + b"-----END" + b"." * 100_000
    text = r"BEGIN[\s\S]{8,}?-----END"
    end = data.index(b"END") + 3
    for hole in (end + 2, end + 3, end + 500, end + 70_000):
        search = prefix_search(text, data, Memory(data, [(hole, len(data))]))
        out = unbounded.Matches()
        search.advance(len(data), -1, out)
        assert [(f.start, f.end) for f in out.found] == [(0, end)], hole
    search = prefix_search(text, data, Memory(data, [(end - 1, end)]))
    with pytest.raises(unbounded.ReadFailed) as failed:
        search.advance(len(data), -1, unbounded.Matches())
    assert (failed.value.offset, failed.value.errno) == (end - 1, errno.EIO)


def test_gap_numbers_are_enough() -> None:
    """``LazyGap.crossed`` leaves room for both ends to move to the border of a character."""
    gap = LazyGap(10, 5, b"x")
    assert gap.crossed - 2 * 3 >= gap.entry + gap.tail

"""The front-end against google-re2: what it accepts, what it derives, and what candidates promise."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
import re2
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import strategies as own
from tests.examples import examples
from uring_actors.errors import OptionError, PatternError
from uring_actors.ops.match import engine as engine_module
from uring_actors.ops.match import libhs, syntax
from uring_actors.ops.match import lower as low
from uring_actors.ops.match.engine import Engine
from uring_actors.ops.match.frontend import compile_patterns, compile_re2, explain
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.tree import Chars, Node, complement, fold, mask_of, ranges_of, union

FUZZ = settings(
    deadline=None,
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def all_matches(plan: PatternPlan, text: bytes) -> list[tuple[int, int]]:
    """RE2's match at every start: the members of every possible chain of matches."""
    compiled = compile_re2(plan)
    found = (compiled.match(text, start) for start in range(len(text) + 1))
    return [match.span() for match in found if match is not None]


def tree_of(plan: PatternPlan, widen: bool = False) -> Node:
    text = plan.re2.decode("latin-1" if plan.latin1 else "utf-8")
    return low.lower(syntax.parse(text, latin1=plan.latin1), latin1=plan.latin1, widen=widen)


# -- the syntax


def parses(text: str, latin1: bool) -> bool:
    try:
        syntax.parse(text, latin1=latin1)
    except PatternError as error:
        if not 0 <= error.position <= len(text):
            raise AssertionError(f"position {error.position} of {text!r}") from error
        return False
    return True


@FUZZ
@given(own.patterns(max_leaves=12))
def test_accepts_what_re2_accepts(text: str) -> None:
    assert parses(text, latin1=False) == own.accepted(text)


@FUZZ
@given(own.patterns(latin1=True, max_leaves=12))
def test_accepts_what_re2_accepts_in_latin1(text: str) -> None:
    assert parses(text, latin1=True) == own.accepted(text, latin1=True)


@settings(FUZZ, max_examples=examples(500))
@given(own.garbage())
def test_refuses_what_re2_refuses(text: str) -> None:
    assert parses(text, latin1=False) == own.accepted(text)
    if text.isascii():
        assert parses(text, latin1=True) == own.accepted(text, latin1=True)


@FUZZ
@given(own._classes(False), st.booleans())
def test_classes_have_res_members(text: str, ignore_case: bool) -> None:
    text = f"(?i){text}" if ignore_case else text
    assume(own.accepted(text))
    tree = syntax.parse(text)
    assume(isinstance(tree, Chars))  # «[a]]» is a class and a bracket
    assert isinstance(tree, Chars)
    assert tree.ranges == syntax.members(text, latin1=False)


@FUZZ
@given(own._classes(True), st.booleans())
def test_latin1_classes_have_res_members(text: str, ignore_case: bool) -> None:
    text = f"(?i){text}" if ignore_case else text
    assume(own.accepted(text, latin1=True))
    tree = syntax.parse(text, latin1=True)
    assume(isinstance(tree, Chars))  # «[a]]» is a class and a bracket
    assert isinstance(tree, Chars)
    assert tree.ranges == syntax.members(text, latin1=True)


@pytest.mark.parametrize("latin1", [False, True])
def test_folds_of_ascii_are_res(latin1: bool) -> None:
    for code in range(0x80):
        asked = syntax.members(rf"(?i)\x{{{code:x}}}", latin1)
        assert syntax.fold_case(((code, code),), latin1) == asked, chr(code)


@pytest.mark.parametrize("name", sorted(syntax._POSIX))
def test_posix_classes_are_res(name: str) -> None:
    for negation in ("", "^"):
        text = f"[[:{negation}{name}:]]"
        tree = syntax.parse(text)
        assert isinstance(tree, Chars)
        assert tree.ranges == syntax.members(text, False)


def test_ascii_patterns_ask_nothing_of_unicode() -> None:
    syntax._all_code_points.cache_clear()
    syntax.members.cache_clear()
    compile_patterns([Regex(r"(?i)\bkiss[a-z]+\s\w{3}[^x]."), Literal("Kiss", ignore_case=True)])
    assert syntax._all_code_points.cache_info().currsize == 0


BAD = [
    ("a(", "missing closing )", 1),
    ("(a(b)", "missing closing )", 0),
    ("a)b", "unexpected )", 1),
    ("ab[cd", "missing closing ]", 2),
    ("[]", "missing closing ]", 0),
    ("[^]", "missing closing ]", 0),
    ("[[:alpha:]", "missing closing ]", 0),
    ("x[[:foo:]]", "unknown POSIX class", 2),
    ("x[z-a]", "the range's ends are the wrong way round", 2),
    (r"[a-\d]", r"unknown escape \d", 3),
    ("*a", "nothing to repeat", 0),
    ("a|*", "nothing to repeat", 2),
    ("(?:+)", "nothing to repeat", 3),
    ("a**", "a repetition of a repetition", 2),
    ("a{2}{3}", "a repetition of a repetition", 4),
    ("a??+", "a repetition of a repetition", 3),
    ("a{1001}", "repeats more than 1000 times", 1),
    ("b(a{100}){11}", "repeats more than 1000 times", 9),
    ("a{3,2}", "the repetition's bounds are the wrong way round", 1),
    ("ab\\", "trailing backslash", 2),
    (r"ab\y", r"unknown escape \y", 2),
    (r"é\é", r"unknown escape \é", 1),
    (r"\1", "a backreference, which no RE2 pattern can have", 0),
    (r"a\x4", "bad hexadecimal escape", 1),
    (r"a\x{}", "bad hexadecimal escape", 1),
    (r"a\x{110000}", "beyond the last character", 1),
    (r"a\pX", "unknown Unicode class", 1),
    (r"\p{Foo}", "unknown Unicode class", 0),
    (r"\p{Greek", "missing closing }", 0),
    ("a(?z)", "unknown group flag 'z'", 3),
    ("(?i-)a", "no flag behind the -", 4),
    ("(?i", "missing closing )", 0),
    ("(?<=a)b", "unknown group flag '<'", 2),
    ("(?P<n-a>x)", "not a group name", 4),
    ("(?P<n", "the group's name has no closing >", 0),
]


@pytest.mark.parametrize(("text", "reason", "position"), BAD)
def test_errors_say_where(text: str, reason: str, position: int) -> None:
    assert not own.accepted(text)
    with pytest.raises(PatternError) as caught:
        compile_patterns([Regex(text)])
    assert (caught.value.reason, caught.value.position) == (reason, position)
    assert caught.value.pattern == text


def test_errors_in_bytes_count_bytes() -> None:
    with pytest.raises(PatternError) as caught:
        compile_patterns([Regex("é)".encode())])
    assert (caught.value.position, caught.value.pattern) == (2, "é)".encode())
    with pytest.raises(PatternError, match="not valid UTF-8") as caught:
        compile_patterns([Regex(b"ab\xff")])
    assert caught.value.position == 2
    with pytest.raises(PatternError) as caught:
        compile_patterns([Regex("a€", bytes=True)])
    assert caught.value.position == 1


def test_what_is_refused() -> None:
    with pytest.raises(OptionError):
        compile_patterns([])
    with pytest.raises(PatternError, match="everywhere"):
        compile_patterns([Literal("")])
    for text in ("", "a*", "|a", "^", r"\b", "(?:a?|b)*", "a{0}"):
        with pytest.raises(PatternError, match="minimum width is 0"):
            compile_patterns([Regex(text)])
    with pytest.raises(PatternError, match="RE2 refuses it: pattern too large"):
        compile_patterns([Regex(r"(?:\pL{20}){50}")])


def test_nesting_does_not_exhaust_the_stack() -> None:
    for text in ("(" * 3000 + "a" + ")" * 3000, "(?:" * 3000 + "a" + ")?b" * 3000):
        (plan,) = compile_patterns([Regex(text)])
        assert plan.min_width >= 1
    assert plan.kind is Kind.SLOT
    (plan,) = compile_patterns([Regex("x" + "(?:" * 300 + "a" + "b)*" * 300)])
    assert (plan.kind, plan.candidate) == (Kind.LINE, None)


# -- sets


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=6))
def test_range_arithmetic(pairs: list[tuple[int, int]]) -> None:
    ranges = union((min(pair), max(pair)) for pair in pairs)
    members = {code for low_, high in pairs for code in range(min(low_, high), max(low_, high) + 1)}
    assert {code for low_, high in ranges for code in range(low_, high + 1)} == members
    assert complement(complement(ranges, 255), 255) == ranges
    assert ranges_of(mask_of(ranges)) == ranges


# -- bytes


def check_bytes(plan: PatternPlan, text: bytes) -> None:
    """Every match of RE2 is a word of the lowered trees, in its place, and keeps what was derived."""
    exact = tree_of(plan)
    assert not fold(exact, lambda node, below: isinstance(node, Chars) or any(below))
    spelled = re2.compile(low.spell(exact), syntax.re2_options(True))
    literals = low.required_literals(exact)
    for start, end in all_matches(plan, text):
        assert spelled.fullmatch(text, start, end) is not None, (start, end)
        assert plan.min_width <= end - start
        assert plan.max_width is None or end - start <= plan.max_width
        word = text[start:end]
        assert low.can_hold_newline(exact) or b"\n" not in word
        assert literals is None or any(literal in word for literal in literals)


@settings(FUZZ, max_examples=examples(80))
@given(st.data(), st.booleans())
def test_lowered_trees_keep_every_match(data: st.DataObject, latin1: bool) -> None:
    pattern = data.draw(own.usable_patterns(latin1=latin1))
    (plan,) = compile_patterns([Regex(pattern, bytes=latin1)], max_halo=data.draw(st.sampled_from([4, 4096])))
    check_bytes(plan, data.draw(own.texts(tree_of(plan))))


@FUZZ
@given(st.data())
def test_loose_utf8_is_covered(data: st.DataObject) -> None:
    """RE2 takes overlong forms where ranges merge into U+0080–U+10FFFF, however they came about."""
    parts = [r"[\x80-\x{7FF}]", r"[\x{800}-\x{FFFF}]", r"[\x{10000}-\x{10FFFF}]", ".", "[^a]", r"\pL"]
    pattern = "|".join(data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4)))
    (plan,) = compile_patterns([Regex(f"(?:{pattern})+")])
    heads = [b"\xe0\x80", b"\xf0\x80\x80", b"\xf4\xbf\xbf", b"\xed\xa0", b"\xc3", b"\xf4\x8f\xbf", b""]
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(heads), st.integers(0x80, 0xBF))))
    text = b"".join(head + bytes([last]) for head, last in chosen)
    check_bytes(plan, text)


# -- candidates


def blocks(text: bytes, extents: list[int], halo: int) -> list[tuple[int, int, bytes]]:
    """(payload's start, block's start, block): payloads of those sizes, one byte before, a halo behind."""
    found = []
    start = 0
    for size in [*extents, len(text)]:
        stop = min(len(text), start + size)
        before = max(0, start - 1)
        found.append((start, before, text[before : min(len(text), stop + halo)]))
        start = stop
    return found


def check_candidates(engine: Engine, text: bytes, extents: list[int]) -> None:
    halo = max(plan.candidate_max for plan in engine.plans) + 1
    ends: dict[int, set[int]] = {plan.index: set() for plan in engine.plans}
    mine: dict[tuple[int, int], set[int]] = {}
    scratch = engine.scratch()
    bounds = blocks(text, extents, halo)
    for payload, before, block in bounds:
        found = engine.scan(memoryview(block), scratch)
        assert len(found) == len(set(found))
        for index, end in found:
            ends[index].add(before + end)
            mine.setdefault((index, payload), set()).add(before + end)
    for plan in engine.plans:
        if plan.candidate is None:
            continue
        for start, end in all_matches(plan, text):
            payload = max((first for first, _, _ in bounds if first <= start), default=0)
            owed = mine.get((plan.index, payload), set())
            if plan.kind in (Kind.LITERAL, Kind.BOUNDED):
                assert end in owed, (plan, start, end)
            elif plan.kind is Kind.PREFIX:
                span = range(start + plan.candidate_min, min(end, start + plan.candidate_max) + 1)
                assert any(e in owed for e in span), (plan, start, end)
            else:
                span = range(start + plan.candidate_min, end + 1)
                assert any(e in ends[plan.index] for e in span), (plan, start, end)


@settings(FUZZ, max_examples=examples(80))
@given(st.data(), st.booleans())
def test_candidates_miss_nothing(data: st.DataObject, latin1: bool) -> None:
    several = data.draw(st.lists(own.usable_patterns(latin1=latin1), min_size=1, max_size=3))
    max_halo = data.draw(st.sampled_from([8, 4096]))
    engine = Engine(compile_patterns([Regex(text, bytes=latin1) for text in several], max_halo=max_halo))
    text = b"".join(data.draw(own.texts(tree_of(plan), pieces=2)) for plan in engine.plans)
    extents = data.draw(st.lists(st.integers(1, 12), max_size=8))
    check_candidates(engine, text, extents)


REAL = [
    r"(?i)[\w.-]{0,9}?(?:key|passw(?:or)?d)[ \t\w.-]{0,5}(?:=|:{1,3}=)['\s=]{0,5}([a-z0-9]{4,})(?:[\s;]|$)",
    r"\b(p8e-(?i)[a-z0-9]{5})(?:[\x60'\"\s;]|\\[nr]|$)",
    r"eyJ[A-Za-z0-9_-]{3,}\.eyJ[A-Za-z0-9_-]{3,}",
    r"unsafe \{[^}]*transmute",
    r"(?m)^\s*import +\w+$",
    r".*secret.*",
    r"\s*(?:foo)+\s*bar",
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
    r"(?s)BEGIN.{2,}?END",
    r"x.{3}y",
]


@settings(FUZZ, max_examples=examples(30))
@given(st.data())
def test_candidates_of_real_patterns_miss_nothing(data: st.DataObject) -> None:
    max_halo = data.draw(st.sampled_from([16, 200]))
    engine = Engine(compile_patterns([Regex(text) for text in REAL], max_halo=max_halo))
    chosen = data.draw(st.lists(st.sampled_from(engine.plans), min_size=1, max_size=3))
    text = b"".join(data.draw(own.texts(tree_of(plan), pieces=2)) for plan in chosen)
    check_candidates(engine, text, data.draw(st.lists(st.integers(1, 40), max_size=6)))


TRAPS = [
    (r"a\Sb", b"a\x0bb"),
    (r"x.{3}y", "xéééy".encode()),
    (r"(?i)pass", "paſs PA\u017fS".encode()),
    (r"(?i)kelvin", "\u212aelvin".encode()),
    (r"(?U)a+b+", b"aaabbb"),
    (r"(?:a|^)b", b"b ab b"),
    (r"a(?:^b){0,3}c", b"ac"),
    (r"(?m)a\n^b$", b"a\nb\na\nbc"),
    (r"a\b*b", b"ab"),
    (r"[^\n]\z", b"xyz"),
    (r"a$|b", b"ab a"),
    (r"\C{2}é", "éé".encode()),
    (r"[[:word:]]\B", b"abc"),
    (r"[^a]x", b"\xed\xa0\x80x \xf4\xb0\x80\x80x"),
]


@pytest.mark.parametrize(("pattern", "text"), TRAPS)
def test_traps(pattern: str, text: bytes) -> None:
    plans = compile_patterns([Regex(pattern)])
    assert all_matches(plans[0], text), "the trap must have a match to miss"
    for extents in ([], [1, 1, 1, 1], [2, 2], [3]):
        engine = Engine(plans)
        assert engine.plans[0].candidate is not None
        check_candidates(engine, text, extents)
        check_bytes(plans[0], text)


@FUZZ
@given(st.data())
def test_literals_are_matches(data: st.DataObject) -> None:
    some = st.one_of(st.text("aé\n.", min_size=1, max_size=4), st.binary(min_size=1, max_size=4))
    content = data.draw(some)
    engine = Engine(compile_patterns([Literal(content)]))
    (plan,) = engine.plans
    literal = plan.literal
    assert literal is not None
    assert (plan.kind, plan.min_width, plan.max_width) == (Kind.LITERAL, len(literal), len(literal))
    text = b"".join(data.draw(st.lists(st.sampled_from([literal, b"a", b"\xc3", b"\n"])))) + literal
    assert engine.scan(memoryview(text), engine.scratch()) == [(0, end) for _, end in all_matches(plan, text)]


def test_literals_of_either_case() -> None:
    literals = [Literal("Kiss.é", ignore_case=True), Literal(b"K\xe9", ignore_case=True)]
    engine = Engine(compile_patterns(literals))
    assert [plan.kind for plan in engine.plans] == [Kind.BOUNDED, Kind.BOUNDED]
    text = "\u212aIſS.É kiss-é ".encode() + b"k\xe9 K\xc9"
    assert [len(all_matches(plan, text)) for plan in engine.plans] == [1, 1]
    check_candidates(engine, text, [3, 3, 3])


# -- plans


KINDS = [
    (Regex("abc"), Kind.LITERAL, "abc"),
    (Regex(r"\Qa.b\E[c]"), Kind.LITERAL, r"a\x2eb" + "c"),
    (Regex("a|b"), Kind.BOUNDED, "[a-b]"),
    (Regex("[a-z]{0,50}key"), Kind.BOUNDED, "key"),
    (Regex("key[a-z]{2,4}"), Kind.BOUNDED, "key[a-z]{2,4}"),
    (Regex("key[a-z]{2,4}[^}]*x"), Kind.PREFIX, "key[a-z]{2}"),
    (Regex("[a-z]+key=[a-z]+;"), Kind.LINE, r"[a-z]key\x3d"),
    (Regex(r"\s+key=[a-z]+;"), Kind.FILE, r"[\x09-\x0a\x0c-\x0d\x20]key\x3d"),
    (Regex(r"\w+"), Kind.LINE, None),
    (Regex(r"(?s)a.*"), Kind.FILE, None),
    (Regex("key[a-z][^}]*x"), Kind.PREFIX, "key"),
    (Regex(r"key.{0,9}\d.*"), Kind.PREFIX, "key"),
    (Regex(r"key.{0,9}id.*", bytes=True), Kind.PREFIX, r"key[\x00-\x09\x0b-\xff]{0,9}id"),
    (Regex("abc[^x]*", bytes=True), Kind.PREFIX, "abc"),
    (Regex("(?:foo|bar|[a-z]*quux).*"), Kind.LINE, "foo|bar|quux"),
]


@pytest.mark.parametrize(("pattern", "kind", "candidate"), KINDS)
def test_kinds(pattern: Regex, kind: Kind, candidate: str | None) -> None:
    (plan,) = compile_patterns([pattern])
    assert (plan.kind, plan.candidate) == (kind, None if candidate is None else candidate.encode())


def test_wide_patterns_count_as_unbounded() -> None:
    text = "key[^x]{0,90}end"
    assert compile_patterns([Regex(text)], max_halo=367)[0].kind is Kind.BOUNDED
    (plan,) = compile_patterns([Regex(text)], max_halo=366)
    assert (plan.kind, plan.max_width, plan.candidate_max) == (Kind.PREFIX, 366, 365)
    assert plan.candidate == rb"key[\x00-wy-\xbf\xc2-\xf4]{0,360}en"
    for limit in (2, 5, 9, 30, 366):
        for plan in compile_patterns([Regex(text), Regex("a{9}"), Literal("b" * 400)], max_halo=limit):
            assert plan.candidate_max < limit


def test_required_literals() -> None:
    def required(text: str) -> frozenset[bytes] | None:
        return low.required_literals(low.lower(syntax.parse(text), latin1=False))

    assert required(r"\w+(?:foo|bar)baz\d+") == {b"foobaz", b"barbaz"}
    assert required("(?:ab){2}") == {b"abab"}
    assert required("a+bcd?") == {b"bc"}
    assert required(r"foo|\w") is None
    assert required("(?i)ks") is not None
    assert required("[a-z]*") is None


def test_names_and_sources() -> None:
    bee = Regex("b", name="bee", ignore_case=True)
    plans = compile_patterns([Regex("a+"), bee, Literal(b"\xff"), Literal("é", name="e")])
    assert [plan.name for plan in plans] == ["a+", "bee", "ÿ", "e"]
    assert [plan.source for plan in plans] == ["a+", "b", "ÿ", "é"]
    assert [plan.re2 for plan in plans] == [b"a+", b"(?i)b", b"\xff", "é".encode()]
    assert [plan.latin1 for plan in plans] == [False, False, True, False]
    rows = explain(plans)
    assert [row["kind"] for row in rows] == ["line", "bounded", "literal", "literal"]
    assert rows[1]["halo"] == 2


# -- engines


def test_without_libhs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libhs, "find", lambda: None)
    texts = ["abc", "a[bc]d", "abc[^x]*", "abc[^x\n]*", "[a-z]+key=", r"\s+key="]
    engine = Engine(compile_patterns([Regex(text) for text in texts]))
    kinds = [Kind.SLOT, Kind.SLOT, Kind.FILE, Kind.LINE, Kind.LINE, Kind.FILE]
    assert [plan.kind for plan in engine.plans] == kinds
    assert all(plan.candidate is None and "vectorgrep is installed" in plan.reason for plan in engine.plans)
    assert [plan.candidate_max for plan in engine.plans] == [3, 3, 0, 0, 0, 0]
    assert engine.scan(memoryview(b"abc"), engine.scratch()) == []


def test_what_libhs_refuses_goes_without_it() -> None:
    never = r"foo\b\Bx"
    plans = compile_patterns([Regex("abc+d"), Regex(never), Regex("xyz")])
    engine = Engine(plans)
    assert [plan.kind for plan in engine.plans] == [plans[0].kind, Kind.SLOT, Kind.LITERAL]
    assert "Hyperscan refuses" in engine.plans[1].reason
    assert engine.scan(memoryview(b"abccd xyz"), engine.scratch())
    only = Engine(compile_patterns([Regex(never)]))
    assert (only.plans[0].kind, only.size) == (Kind.SLOT, 0)


def test_what_is_too_large_together_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine_module._database

    def small(library: libhs.LibHs, plans: Sequence[PatternPlan]) -> libhs.Database:
        if len(plans) > 2:
            raise libhs.HsError("Pattern set too large", -4)
        return real(library, plans)

    monkeypatch.setattr(engine_module, "_database", small)
    plans = compile_patterns([Regex(f"ab{i}[cd]") for i in range(5)])
    engine = Engine(plans)
    assert engine.plans == plans
    text = b"ab4c ab0d ab2c"
    assert engine.scan(memoryview(text), engine.scratch()) == [(0, 9), (2, 14), (4, 4)]


def test_random_bytes_against_every_trap() -> None:
    """All traps in one engine, over random bytes made of their own letters."""
    engine = Engine(compile_patterns([Regex(pattern) for pattern, _ in TRAPS]))
    letters = b"ab\n xyskpS\xc3\xa9\xc5\xbf\xe2\x84\xaa\x0b\x80\xf4\xff"
    chance = random.Random(7)
    for _ in range(150):
        text = bytes(chance.choices(letters, k=40))
        check_candidates(engine, text, chance.choices(range(1, 9), k=8))


def test_the_reasons_are_sentences() -> None:
    for plan in compile_patterns([Regex(text) for text in REAL]):
        assert re.fullmatch(r"[a-z0-9][^\n]+", plan.reason)

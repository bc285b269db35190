"""Necessary parts and their automata: what the CUDA kernel searches for, against brute force and RE2."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import strategies as own
from tests.examples import examples
from tests.extents import Cut, expected
from uring_actors.ops.match import automaton
from uring_actors.ops.match.automaton import Automata, build, search
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.lower import lower
from uring_actors.ops.match.parts import MOST_WIDTH, Part, device_plans
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.planset import compile_source
from uring_actors.ops.match.spelled import Word
from uring_actors.ops.match.syntax import NO_FLAGS, parse
from uring_actors.ops.match.tree import Node, mask_of

LETTERS = b"abAB0"
SETS = [1 << byte for byte in LETTERS] + [
    mask_of([(0x61, 0x62)]),
    mask_of([(0x41, 0x41), (0x61, 0x61)]),
    mask_of([(0x42, 0x42), (0x62, 0x62)]),
    mask_of([(0x30, 0x39)]),
    mask_of([(0, 255)]),
]

words = st.one_of(
    st.lists(st.sampled_from(SETS), min_size=1, max_size=6).map(tuple),
    st.builds(lambda mask, width: (mask,) * width, st.sampled_from(SETS), st.integers(9, 32)),
)
texts = st.lists(st.sampled_from(LETTERS + b"\x00\xffz"), max_size=80).map(bytes)


def brute_force(parts: list[Part], text: bytes) -> set[tuple[int, int]]:
    return {
        (part.pattern, end)
        for part in parts
        for word in part.words
        for end in range(len(word), len(text) + 1)
        if all(mask >> byte & 1 for mask, byte in zip(word, text[end - len(word) : end], strict=True))
    }


def found(automata: Automata, text: bytes) -> set[tuple[int, int]]:
    return set(map(tuple, search(automata, text).tolist()))


@given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=5), texts)
def test_automata_report_every_end_and_no_other(lists: list[list[Word]], text: bytes) -> None:
    parts = [Part(index, tuple(some)) for index, some in enumerate(lists)]
    got, wanted = found(build(parts), text), brute_force(parts, text)
    # A word of letters in one case may be searched in both cases beside another in both.
    folded = any(mask.bit_count() == 2 and mask not in SETS[5:6] for part in parts for w in part.words for mask in w)
    assert got >= wanted
    if not folded:
        assert got == wanted


@given(st.lists(words, min_size=1, max_size=6), texts, st.data())
def test_a_state_depends_on_the_last_bytes_alone(some: list[Word], text: bytes, data: st.DataObject) -> None:
    automata = build([Part(0, tuple(some))])
    assert automata.depth == max(map(len, some))
    cut = data.draw(st.integers(0, len(text)))
    warm = max(0, cut - (automata.depth - 1))
    later = {(pattern, end + warm) for pattern, end in found(automata, text[warm:]) if end + warm > cut}
    assert later == {hit for hit in found(automata, text) if hit[1] > cut}


def test_all_256_bytes_have_classes() -> None:
    parts = [Part(byte, ((1 << byte,),)) for byte in range(256)]
    everything = bytes(range(256))
    assert found(build(parts), everything) == {(byte, byte + 1) for byte in everything}


@settings(max_examples=examples(40))
@given(st.data())
def test_every_match_holds_a_part(data: st.DataObject) -> None:
    patterns = data.draw(st.lists(own.usable_patterns(), min_size=1, max_size=3))
    given_plans = compile_patterns([Regex(pattern) for pattern in patterns])
    plans, parts = device_plans(given_plans)
    automata = build(parts)
    text = data.draw(own.texts(tree_of(data.draw(st.sampled_from(given_plans)))))
    hits = found(automata, text)
    with_part = {part.pattern for part in parts}
    for plan in plans:
        if plan.index not in with_part:
            assert plan.candidate is None
            continue
        for match in compile_source(plan).finditer(text):
            low, high = match.span()
            ends = [end for pattern, end in hits if pattern == plan.index]
            if plan.kind is Kind.PREFIX:
                high = min(high, low + plan.candidate_max)
            if plan.kind is Kind.LITERAL:
                assert high in ends
            assert any(low < end <= high for end in ends), (plan, match.span())


def tree_of(plan: PatternPlan) -> Node:
    return lower(parse(plan.re2.decode(), NO_FLAGS, latin1=False), latin1=False)


class DeviceCut(Cut):
    """Candidates from the automata, of each slot by itself."""

    automata: Automata

    def hits(self, start: int, end: int) -> list[tuple[int, int]]:
        return [(pattern, stop) for pattern, stop in search(self.automata, self.data[start:end]).tolist()]


PATTERNS = [
    Literal("needle"),
    Literal("x" * 40),
    Regex(r"AKIA[0-9A-Z]{16}"),
    Regex(r"a{1,3}b?key\b"),
    Regex(r"(?:aa|ab){2,6}"),
    Regex(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"),
    Regex(r"unsafe \{[^}]*transmute"),
    Regex(r"(?i)secret\s*=\s*\w+"),
    Regex(r"(?i)paſs|kelvin"),
    Regex(r"^begin.*end$", multi_line=True),
    Regex(r"x{34,40}"),
    Regex(r"[a-z][0-9]"),
    Regex(r"\b[a-f0-9]{40}\b|sgp_[a-f0-9]{16}"),
]


def make_text(rng: random.Random, size: int) -> bytes:
    pieces = [
        b"needle", b"needl", b"x" * 40, b"x" * 33, b"AKIA" + b"A7" * 8, b"AKIAAKIA", b"aakey ", b"aaabkeys",
        b"aaab" * 3, b"123-45-6789", b"123-45-678", b"unsafe { a\n transmute", b"unsafe {} transmute",
        b"Secret = abc", b"SECRET=\n", "paſs".encode(), b"PASS", "\u212aelvin".encode(), b"\nbegin it end\n",
        b"begin\nend", b"\n", b" ", b"k9", b"\xff",
        b"0123456789abcdef" * 2 + b"deadbeef", b" " + b"0123456789abcdef" * 2, b"sgp_",
    ]  # fmt: skip
    text = bytearray()
    while len(text) < size:
        text += rng.choice(pieces)
    return bytes(text[:size])


@pytest.mark.parametrize("payload", [1, 7, 64, 199, 4096])
def test_settled_rows_equal_re2s_over_the_whole_file(payload: int) -> None:
    given_plans = compile_patterns(PATTERNS)
    plans, parts = device_plans(given_plans)
    kinds = {plan.kind for plan in plans}
    assert {Kind.LITERAL, Kind.PART, Kind.PREFIX} <= kinds
    automata = build(parts)
    for seed in range(4):
        rng = random.Random(seed)
        text = make_text(rng, rng.choice([0, 1, 199, 700]) if payload < 64 else 3000)
        cut = DeviceCut(plans, text, payload, rng)
        cut.automata = automata
        rows, faults = cut.settle() if text else ([], [])
        assert not faults
        assert [row[:3] for row in rows] == [
            row[:3] for row in sorted(expected(given_plans, text), key=lambda r: r[:3])
        ]


def test_rule_files_have_parts() -> None:
    """Every rule of the real rule file can be searched for on the GPU, within the table budget."""
    tomllib = pytest.importorskip("tomllib")
    path = Path(__file__).parent / "data" / "gitleaks.toml"
    if not path.exists():
        pytest.skip("the rule file is not there")
    rules = [rule["regex"] for rule in tomllib.loads(path.read_text())["rules"] if "regex" in rule]
    plans, parts = device_plans(compile_patterns([Regex(rule) for rule in rules]))
    assert len(parts) == len(plans)
    assert build(parts).size <= automaton.TABLE_BYTES


def test_what_needs_too_many_tables_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "TABLE_BYTES", 1 << 10)
    parts = device_plans(compile_patterns([Literal(f"word{i}") for i in range(100)]))[1]
    with pytest.raises(automaton.TooLarge, match="MiB"):
        build(parts)


def test_search_finds_more_than_its_first_guess() -> None:
    automata = build([Part(3, ((1 << 0x61,),))])
    hits = search(automata, b"a" * 1000)
    assert np.array_equal(hits, np.array([(3, end) for end in range(1, 1001)]))
    assert len(search(automata, b"")) == 0


@given(st.lists(st.text("abcdef", min_size=1, max_size=40), min_size=1, max_size=30, unique=True), st.integers(0, 99))
def test_literals_are_exact(literals: list[str], seed: int) -> None:
    plans, parts = device_plans(compile_patterns([Literal(text) for text in literals]))
    rng = random.Random(seed)
    text = "".join(rng.choice([*literals, "abc", "f"]) for _ in range(20)).encode()
    hits = found(build(parts), text)
    for plan, literal in zip(plans, literals, strict=True):
        if plan.kind is Kind.LITERAL:
            ends = {i + len(literal) for i in range(len(text)) if text.startswith(literal.encode(), i)}
            assert {end for pattern, end in hits if pattern == plan.index} == ends
        else:
            assume(len(literal) > MOST_WIDTH)

"""Patterns as programs: whatever one decides is what google-re2 says, of matches and groups; and it decides most."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import re2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import rule_words
from tests import strategies as own
from tests.examples import examples
from uring_actors.ops.match import lower as low
from uring_actors.ops.match import machine, syntax
from uring_actors.ops.match.newlines import as_bytes
from uring_actors.ops.match.program import Program, program_of
from uring_actors.ops.rules.judge import shannon

FUZZ = settings(
    deadline=None,
    max_examples=examples(200),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
RULES = tomllib.loads((Path(__file__).parent / "data" / "gitleaks.toml").read_text())["rules"]


def made(text: str, latin1: bool) -> tuple[Program | None, Any]:
    source = text.encode("latin-1" if latin1 else "utf-8")
    return program_of(source, latin1=latin1), re2.compile(source, syntax.re2_options(latin1))


def attempt(program: Program, data: bytes, start: int, base: int, stop: int) -> tuple[int, list[tuple[int, int]]]:
    """What is said of ``data[base:stop]``, and where the groups are."""
    seen = as_bytes(data[base:stop])
    places = np.full(2 * program.groups + 2, -1, np.int64)
    stack = np.empty(1 << 12, np.int64)
    room = stack.ctypes.data, places.ctypes.data
    end = machine._attempt(*program.addresses, seen.ctypes.data - base, base, stop, len(data), start, *room)
    return end, pairs(places.tolist())


def pairs(places: list[int]) -> list[tuple[int, int]]:
    return list(zip(places[2::2], places[3::2], strict=True))


def check(text: str, latin1: bool, data: bytes, cuts: list[tuple[int, int]]) -> None:
    program, regex = made(text, latin1)
    if program is None:
        return
    for base, stop in [(0, len(data)), *cuts]:
        for start in range(base + (base > 0), stop + 1):
            end, groups = attempt(program, data, start, base, stop)
            expected = regex.match(data, start)
            if end == machine.NONE:
                assert expected is None, (start, base, stop)
            elif end != machine.ASK:
                assert expected is not None, (start, base, stop)
                assert expected.end() == end
                assert [expected.span(k + 1) for k in range(program.groups)] == groups
                if base == 0:  # nothing is known of what is behind what ``Groups`` sees
                    assert machine.Groups(program).find(as_bytes(data[:stop]), start)[0] in (end, machine.ASK)


@FUZZ
@given(st.data(), st.booleans())
def test_what_is_decided_is_what_re2_says(data: st.DataObject, latin1: bool) -> None:
    """Of whatever is in sight."""
    text = data.draw(own.usable_patterns(latin1=latin1, max_leaves=12))
    tree = low.lower(syntax.parse(text, latin1=latin1), latin1=latin1)
    seen = data.draw(own.texts(tree))[:40]
    cuts = st.tuples(st.integers(0, len(seen)), st.integers(0, len(seen))).map(sorted).map(tuple)
    check(text, latin1, seen, data.draw(st.lists(cuts, max_size=4)))


@settings(FUZZ, max_examples=examples(100))
@given(st.text("ab|()?*+{}1,2 ", min_size=1, max_size=16).filter(own.usable), st.text("ab 1", max_size=12))
@example("(a|ab)(c|bcd)(d*)", "abcd")
@example("(?:(a)|(b)|ab)*?b", "abab")
@example("(a{0,2}?)(a{1,3})(a*)b", "aaaaaab")
@example("((a)|b){2,3}?", "abab")
@example("(?:ab?){1,3}?b", "ababb")
def test_ways_are_preferred_as_by_re2(text: str, data: str) -> None:
    check(text, False, data.encode(), [])


@pytest.mark.parametrize(
    ("text", "data", "end"),
    [
        ("[a-z]+é", b"abc\xc3\xa9", machine.ASK),  # é is more than ASCII
        ("[^b]+b", b"a\xffb", machine.ASK),
        ("[a-z]+b", b"a\xffb", machine.NONE),  # no set of it has more
        ("(?:a|ab?)+c", b"ab" * 4000, machine.ASK),  # too many choices
        ("a+x", b"a" * 1500, machine.NONE),
        ("a+x", b"a" * 9000, machine.ASK),  # too many steps
    ],
)
def test_what_is_not_sure_is_not_said(text: str, data: bytes, end: int) -> None:
    program, _ = made(text, False)
    assert program is not None
    assert attempt(program, data, 0, 0, len(data))[0] == end


@FUZZ
@given(st.lists(st.text("ab1é=;", max_size=12).map(str.encode), min_size=1, max_size=8), st.data())
def test_entropies_are_those_of_the_secrets(lines: list[bytes], data: st.DataObject) -> None:
    """Of the first group that is not empty, or of the second."""
    text = b"\n".join(lines) + b"\n"
    program, regex = made(r"([ab1]*)=?(\w+|;+)", False)
    assert program is not None
    found = list(regex.finditer(text))
    base = data.draw(st.integers(0, len(text)))
    starts, ends = np.array([m.span() for m in found], np.int64).reshape(-1, 2).T.copy()
    for number in (0, 2):
        groups = machine.Groups(program)
        bits, places = groups.entropies(as_bytes(text[base:]), base, len(text), starts, ends, number)
        for m, bit, place in zip(found, bits, places.tolist(), strict=True):
            group = number or next(k for k in (1, 2) if m[k])
            if np.isfinite(bit):
                assert bit == pytest.approx(shannon(m[group]), abs=1e-9)
                assert tuple(place) == m.span(group)
            else:
                assert place == [-1, -1]
                assert m.start() <= base or not m[0].isascii() or not text[m.end() : m.end() + 1].isascii()


@pytest.mark.parametrize("text", ["(?U)a+b", "(?:a*)*b", "(?:a|b*)+c", r"\Ca", "(?:(?:abc){1,9}d){1,111}e" * 3])
def test_what_has_no_program(text: str) -> None:
    assert made(text, False)[0] is None


def test_most_of_what_rules_find_is_decided() -> None:
    """Matches of gitleaks' rules and their groups, in ASCII."""
    rng = random.Random(7)
    known = [(rule["regex"], rule.get("keywords", ())) for rule in RULES if "regex" in rule]
    made_of = [made(regex, False) for regex, _ in known]
    assert sum(program is not None for program, _ in made_of) > 0.95 * len(known)
    asked = total = 0
    for (regex, _), (program, compiled) in zip(known, made_of, strict=True):
        if program is None:
            continue
        tree = syntax.parse(regex)
        for _ in range(examples(4)):
            data = f"\n{rule_words.word(tree, rng)}\n".encode()
            found = compiled.search(data)
            if found is None or not data.isascii():
                continue
            end, groups = attempt(program, data, found.start(), 0, len(data))
            total += 1
            asked += end == machine.ASK
            if end != machine.ASK:
                assert end == found.end()
                assert groups == [found.span(k + 1) for k in range(program.groups)]
    assert total > 100
    assert asked < 0.05 * total

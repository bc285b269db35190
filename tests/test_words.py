"""Tens of thousands of literals: the table of words, the databases kept on disk, and a whole scan with them."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring_actors as ua
from tests import oracle
from uring_actors import hot
from uring_actors.megakernel.words import SHORTEST, WordTable
from uring_actors.ops.match import engine as engine_module
from uring_actors.ops.match import libhs, stored
from uring_actors.ops.match.engine import Engine, Finder
from uring_actors.ops.match.frontend import _Analysis, _parsed, compile_patterns
from uring_actors.ops.match.plan import Kind


def places(words: list[bytes], text: bytes) -> list[tuple[int, int]]:
    """By bytes.find: every word's number and end, wherever it stands."""
    found = []
    for number, word in enumerate(words):
        at = text.find(word)
        while at >= 0:
            found.append((number, at + len(word)))
            at = text.find(word, at + 1)
    return sorted(found)


def ends(table: WordTable, text: bytes) -> list[tuple[int, int]]:
    return sorted((int(hit[0]), int(hit[2])) for hit in Finder(0, [], table).find(memoryview(text)))


@st.composite
def words_and_text(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    letters = draw(st.sampled_from([b"ab", b"abcdefg\n", bytes(range(256))]))
    least = draw(st.integers(SHORTEST, 14))
    part = st.lists(st.sampled_from(list(letters)), max_size=9).map(bytes)
    word = st.builds(lambda a, b: (a * least)[:least] + b, part.filter(bool), part)
    words = draw(st.lists(word, min_size=1, max_size=12))
    text = b"".join(draw(st.lists(st.one_of(st.sampled_from(words), part), max_size=12)))
    return words, text


@given(words_and_text())
def test_every_place_of_every_word_once(given: tuple[list[bytes], bytes]) -> None:
    words, text = given
    table = WordTable(words, range(len(words)))
    assert ends(table, text) == places(words, text)


@pytest.mark.parametrize("least", range(SHORTEST, 13))
def test_a_word_at_every_place(least: int) -> None:
    """Of texts that end anywhere in a block of vectors, and with other words before it and behind."""
    rng = random.Random(least)
    words = [rng.randbytes(least), rng.randbytes(least + 3), b"word" * 9, b"x" * least]
    table = WordTable(words, range(len(words)))
    for size in (least, 71, 72, 73, 140, 200):
        for at in range(size - least + 1):
            for word in words[:2]:
                text = (b"." * at + word + words[3] * size)[:size]
                assert ends(table, text) == places(words, text), (size, at)


def test_ten_thousand_words_and_as_many_that_are_nearly_there() -> None:
    rng = random.Random(1)
    letters = b"abcdefghijklmnopqrstuvwxyz"
    words = sorted({bytes(rng.choices(letters, k=rng.randint(6, 16))) for _ in range(10_000)})
    nearly = [word[:-1] + b"#" for word in words[::7]] + [b"#" + word[1:] for word in words[::5]]
    planted = rng.sample(words, 300)
    text = b" ".join(rng.sample(nearly + planted, len(nearly) + len(planted)))
    found = ends(WordTable(words, range(len(words))), text)
    assert {words[number] for number, _ in found} >= set(planted)
    assert found == places(words, text)


def test_words_that_share_all_but_their_last_bytes() -> None:
    words = [b"https://example.com/user/%05d" % i for i in range(6000)]
    text = b"x".join(words[::3]) + b"https://example.com/user/"
    found = ends(WordTable(words, range(len(words))), text)
    assert [number for number, _ in found] == list(range(0, 6000, 3))


@given(st.one_of(st.binary(min_size=1, max_size=40), st.text(min_size=1, max_size=20)))
def test_a_literal_is_planned_as_the_analysis_plans_it(text: str | bytes) -> None:
    try:
        literal = ua.Literal(text)
        (plan,) = compile_patterns([literal])
    except ua.PatternError:
        return
    source = literal.source()
    choice = (analysis := _Analysis(_parsed(source), source.latin1, 4096)).choose()
    assert (plan.kind, plan.candidate, plan.reason) == (choice.kind, choice.candidate, choice.reason)
    assert (plan.candidate_min, plan.candidate_max) == choice.width
    assert (plan.literal, plan.min_width, plan.max_width) == (analysis.literal, analysis.least, analysis.most)


@pytest.mark.parametrize("many", [1, 1 << 30])
def test_a_scan_with_many_literals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Short and long ones, text and bytes, with a regex; by the table and by libhs."""
    monkeypatch.setattr(engine_module, "MANY", many)
    rng = random.Random(2)
    words = sorted({bytes(rng.choices(b"abc\xff\n", k=rng.randint(1, 14))) for _ in range(300)})
    patterns = [*(ua.Literal(word, name=f"w{i}") for i, word in enumerate(words)), ua.Regex("a+b?c", name="regex")]
    for i, size in enumerate((0, 5, 4096, 65536 - 8192 + 1, 70_000)):
        text = b"".join(rng.choice([rng.choice(words[::40]), b"zz \n" * 30]) for _ in range(size // 40 + 1))
        (tmp_path / f"f{i}").write_bytes(text[:size])
    scan = ua.scan(tmp_path, patterns=patterns, engine="threads", slot_bytes=65536, slots=4)
    actual, wanted = oracle.found(scan.to_table()), oracle.expected(tmp_path.iterdir(), patterns)
    assert actual == wanted, oracle.explain_difference(actual, wanted)


# ── kept on disk ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that keeps whatever is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stored, "WORTHWHILE_SECONDS", 0.0)
    return tmp_path / "uring_actors" / "databases"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many expressions were compiled, each time."""
    calls: list[int] = []
    real = libhs.LibHs.compile

    def counted(self: libhs.LibHs, expressions: list[bytes], *others: list[int]) -> libhs.Database:
        calls.append(len(expressions))
        return real(self, expressions, *others)

    monkeypatch.setattr(libhs.LibHs, "compile", counted)
    return calls


def search(*patterns: ua.Regex | ua.Literal) -> list[tuple[int, int]]:
    engine = Engine(compile_patterns(patterns))
    return engine.scan(memoryview(b"abc abd foo"), engine.scratch())


PATTERNS = (ua.Regex("ab[cd]"), ua.Literal("foo"))
FOUND = [(0, 3), (0, 7), (1, 11)]


def test_a_second_start_compiles_nothing(store: Path, compiled: list[int]) -> None:
    assert search(*PATTERNS) == search(*PATTERNS) == FOUND
    assert compiled == [2]
    assert search(*reversed(PATTERNS)) == [(0, 11), (1, 3), (1, 7)]
    assert compiled == [2, 2]
    assert len(list(store.iterdir())) == 2
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "foreign", "directory"])
def test_what_is_damaged_is_compiled_and_written_anew(store: Path, compiled: list[int], how: str) -> None:
    search(*PATTERNS)
    (path,) = store.iterdir()
    good = path.read_bytes()
    if how == "directory":
        path.unlink()
        path.mkdir()
    else:
        bad = {"torn": good[:-9], "flipped": good[:80] + b"\x7f" + good[81:], "empty": b"", "foreign": b"x" * 999}
        path.write_bytes(bad[how])
    assert search(*PATTERNS) == FOUND
    assert compiled == [2, 2]
    if how != "directory":
        assert path.read_bytes() == good
        assert search(*PATTERNS) == FOUND
        assert compiled == [2, 2]
    assert not [other for other in store.iterdir() if other.suffix == ".new"]


def test_another_version_or_processor_is_another_file(
    store: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = libhs.find()
    assert library is not None
    search(*PATTERNS)
    with monkeypatch.context() as patch:
        patch.setattr(library, "version", "5.9.9")
        assert search(*PATTERNS) == FOUND
    with monkeypatch.context() as patch:
        patch.setattr(library, "platform", lambda: b"another")
        assert search(*PATTERNS) == FOUND
    assert compiled == [2, 2, 2]
    assert len(list(store.iterdir())) == 3


def test_the_files_together_are_bounded(store: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    search(ua.Literal("first"))
    (first,) = store.iterdir()
    monkeypatch.setattr(stored, "LIMIT", 3 * first.stat().st_size)
    for i, word in enumerate(["second", "third."]):
        search(ua.Literal(word))
        os.utime(max(store.iterdir(), key=lambda path: path.stat().st_mtime_ns), (i + 1, i + 1))
    search(ua.Literal("first"))  # used now: it stays, and the second goes
    kept = set(store.iterdir())
    search(ua.Literal("fourth"))
    search(ua.Literal("fifth"))
    assert first in set(store.iterdir())
    assert len(kept & set(store.iterdir())) < len(kept)
    assert sum(path.stat().st_size for path in store.iterdir()) <= stored.LIMIT
    assert compiled == [1] * 5


def test_without_a_place_to_keep_them(compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "private_directory", lambda name: "")
    assert search(*PATTERNS) == search(*PATTERNS) == FOUND
    assert compiled == [2, 2]


def test_what_compiles_quickly_is_not_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WORTHWHILE_SECONDS", 1e9)
    assert search(*PATTERNS) == FOUND
    assert list(Path(hot.private_directory("databases")).iterdir()) == []


def test_literals_need_no_re2_each() -> None:
    engine = Engine(compile_patterns([ua.Literal(f"word{i}") for i in range(engine_module.MANY)]))
    assert engine._words is not None
    assert engine._databases == []
    assert {plan.kind for plan in engine.plans} == {Kind.LITERAL}

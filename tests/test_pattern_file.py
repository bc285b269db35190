"""Pattern files, and how the front-end takes long lists: fast, and with all that is wrong in them."""

from __future__ import annotations

import io
import pickle
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uring_actors as ua
from uring_actors.errors import InputError, PatternError, PatternErrors
from uring_actors.ops.match import frontend
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.pattern import Literal, Regex


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    return path


def test_lines_are_patterns(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfone\n\n# two\r\n\r\n  three \nf\xc3\xa9\nfour")
    found = ua.read_patterns(path, ignore_case=True)
    assert found == [Regex(text, ignore_case=True) for text in ("one", "# two", "  three ", "fé", "four")]
    assert [pattern.origin for pattern in found] == [f"{path} line {number}" for number in (1, 3, 5, 6, 7)]
    flags = ua.read_patterns(path, multi_line=True, dot_all=True, bytes=True)
    assert flags[3] == Regex(b"f\xc3\xa9", multi_line=True, dot_all=True, bytes=True)


def test_fixed_lines_may_be_any_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, b"a.b\n\xff\x00\nfoo|bar\n")
    found = ua.read_patterns(path, fixed=True)
    assert found == [Literal("a.b"), Literal(b"\xff\x00"), Literal("foo|bar")]
    (tmp_path / "data").write_bytes(b"a.b axb \xff\x00 foo|bar bar")
    table = ua.scan(tmp_path / "data", patterns=found, engine="threads").to_table()
    assert table["match"].to_pylist() == [b"a.b", b"\xff\x00", b"foo|bar"]


def test_standard_input_and_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x\ny\n")))
    assert [pattern.origin for pattern in ua.read_patterns("-")] == ["standard input line 1", "standard input line 2"]
    assert ua.read_patterns(write(tmp_path, b"\n\r\n")) == []
    with pytest.raises(InputError, match="can't read the pattern file") as caught:
        ua.read_patterns(tmp_path / "none")
    assert (caught.value.path, caught.value.errno) == (bytes(tmp_path / "none"), 2)


def test_all_that_is_wrong_is_said_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"fine\nfoo(\nx*\nf\xff\n" + b"[\n" * 30)
    with pytest.raises(PatternErrors) as caught:
        compile_patterns(ua.read_patterns(path))
    errors = caught.value.errors
    assert [error.origin for error in errors[:3]] == [f"{path} line {number}" for number in (2, 3, 4)]
    assert (errors[0].pattern, errors[2].pattern, errors[2].position) == ("foo(", b"f\xff", 1)
    text = str(caught.value)
    assert text.startswith(f"33 invalid patterns\ninvalid pattern in {path} line 2: ")
    assert text.endswith("and 13 more")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == text
    with pytest.raises(PatternError, match=r"words\.txt line 2: ") as one:
        compile_patterns(ua.read_patterns(write(tmp_path, b"fine\nfoo(\n")))
    assert not isinstance(one.value, PatternErrors)


letters = st.text(st.sampled_from("abkKsS.é\n\\{ßſİ0 -]^\U0001f600"), min_size=1, max_size=6)


@given(letters, st.booleans())
def test_a_literal_has_the_plan_that_parsing_gives(text: str, ignore_case: bool) -> None:
    for given_text in (text, text.encode()):
        literal = Literal(given_text, ignore_case=ignore_case)
        source = literal.source()
        quick = frontend._fixed(3, literal, source, given_text, 4096)
        assert (quick is None) == (len(text if isinstance(given_text, str) else given_text) < 2)
        if quick is not None:
            assert quick == frontend._analysed(3, literal, source, given_text, 4096)


def test_a_long_literal_is_parsed() -> None:
    literal = Literal("ab" * 3000)
    assert frontend._fixed(0, literal, literal.source(), literal.text, 4096) is None
    assert compile_patterns([literal])[0].max_width == 6000


@pytest.mark.parametrize("ignore_case", [False, True])
def test_twenty_thousand_literals(ignore_case: bool) -> None:
    """Half a second on an idle core; the processor's time counts, and the machine may be busy."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(5, 14))) for _ in range(20_000)]
    began = time.process_time()
    match = Match.of([Literal(word, ignore_case=ignore_case) for word in words])
    assert time.process_time() - began < 6
    data = pickle.dumps(match)
    assert len(data) < 200 * len(words)
    assert pickle.loads(data).plans == match.plans

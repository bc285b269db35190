"""The runner of regex test data: our own cases pass, what is wrong fails, what is not the format is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.regex_testdata.__main__ import main
from tests.regex_testdata.cases import Case, FormatError, load, unescape
from tests.regex_testdata.differences import tokens
from tests.regex_testdata.running import FAIL, PASS, UNSUPPORTED, run

OURS = Path(__file__).parent / "regex_testdata"
CASES = list(load(OURS))


def write(folder: Path, text: str) -> Path:
    (folder / "some.toml").write_text(text)
    return folder


def one(regex: str, haystack: bytes, *matches: tuple[int, int, int], **more: object) -> Case:
    return Case(name="g/n", regexes=(regex,), haystack=haystack, matches=matches, bounds=(0, len(haystack)), **more)  # type: ignore[arg-type]


def test_our_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """All pass, but for those of what Rust answers otherwise: each of these is refused or told apart."""
    assert main([str(OURS)]) == 0
    *lines, sums = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CASES)
    unlike = [line for line in lines if line.split()[1].startswith("unsupported/")]
    assert all(line.startswith("pass ") for line in lines if line not in unlike)
    for line in unlike:
        kind = "refused: |refused$" if "/refused-" in line else ""
        assert re.search(rf"^unsupported +unsupported/[a-z0-9-]+: .*(?:{kind})", line), line
    assert sums == f"{len(lines) - len(unlike)} pass, 0 fail, {len(unlike)} unsupported"


def test_what_is_wrong_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(
        tmp_path,
        """
        test = [
          { name = "span", regex = "b+", haystack = "abbc", matches = [[1, 2]] },
          { name = "too-many", regex = "b", haystack = "abbc", matches = [[1, 2]] },
          { name = "which", regex = ["a", "x"], haystack = "a", matches = [{ id = 1, span = [0, 1] }],
            match-kind = "all", search-kind = "overlapping" },
          { name = "compiles", regex = "a", haystack = "a", matches = [], compiles = false },
          { name = "right", regex = "b", haystack = "abbc", matches = [[1, 2], [2, 3]] },
        ]
        """.replace("\n          ", ""),
    )
    assert main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "fail         some/span: found [(0, 1, 3)], not [(0, 1, 2)]" in out
    assert "patterns [0] match, not [1]" in out
    assert "it compiles, and should not" in out
    assert out.endswith("1 pass, 4 fail, 0 unsupported\n")


@settings(max_examples=examples(20))
@given(st.data())
def test_a_changed_span_fails(data: st.DataObject) -> None:
    """Every case of ours is looked at: with another match than the right one it does not pass."""
    sound = [case for case in CASES if not case.name.startswith(("unsupported", "refused")) and case.matches]
    case = data.draw(st.sampled_from([case for case in sound if case.search_kind == "leftmost"]))
    at = data.draw(st.integers(0, len(case.matches) - 1))
    number, start, end = case.matches[at]
    wrong = data.draw(st.sampled_from([(number, start, end + 1), (number, start - 1, end), (number + 1, start, end)]))
    (outcome,) = run([replace(case, matches=(*case.matches[:at], wrong, *case.matches[at + 1 :]))])
    assert outcome.status == FAIL


@given(st.binary(max_size=20))
def test_any_bytes_can_be_escaped(content: bytes) -> None:
    assert unescape("".join(f"\\x{byte:02X}" for byte in content).encode()) == content


def test_escapes() -> None:
    assert unescape(rb"a\n\r\t\0\\\x00\xfF\q\x1g") == b"a\n\r\t\x00\\\x00\xff\\q\\x1g"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing else"),
        ("[[tests]]", "nothing else"),
        ("[[test]]\nregex = 'a'", "the 1th test: no 'name'"),
        ("test = [{name = 'n', regex = 'a', haystack = '', matches = [], flags = 'i'}]", "n: unknown key 'flags'"),
        ("test = [{name = 'n', regex = 'a', haystack = '', matches = [], utf8 = 1}]", "utf8 is 1, which is no bool"),
        ("test = [{name = 'n', regex = 'a', haystack = '', matches = [], match-kind = 'x'}]", "none of all"),
        ("test = [{name = 'n', regex = 'a', haystack = '', matches = [[1]]}]", "n: "),
        ("test = [{name = 'n', regex = 'a', haystack = '', matches = [{id = 0, span = [0, 1], x = 1}]}]", "'x'"),
        ("test = ", "Invalid value"),
    ],
)
def test_what_is_not_the_format(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path, text))]) == 2
    message = capsys.readouterr().err
    assert "some.toml" in message
    assert said in message


def test_names_are_there_once(tmp_path: Path) -> None:
    table = json.dumps("same")
    text = f"[[test]]\nname = {table}\nregex = 'a'\nhaystack = ''\nmatches = []\n"
    with pytest.raises(FormatError, match="some/same is there twice"):
        list(load(write(tmp_path, text * 2)))


def test_an_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no TOML file" in capsys.readouterr().err


def test_tokens() -> None:
    found = list(tokens(r"a\w[^]\d[:alpha:]&&x-y]\{{2,}\Qa{\E(?i)."))
    assert [text for _, text in found] == [
        "a", r"\w", "[^]", r"\d", "[:alpha:]", "&&", "x", "-", "y", "]", r"\{", "{2,}", r"\Qa{\E", "(?i)", ".",
    ]  # fmt: skip
    assert [kind for kind, _ in found if kind.startswith("in-")] == [
        "in-escape", "in-posix", "in-operator", "in-plain", "in-plain", "in-plain", "in-close",
    ]  # fmt: skip


def test_a_difference_counts_only_where_the_text_shows_it() -> None:
    cases = [
        one(r"\w+", b"abc", (0, 0, 3)),
        one(r"\w+", "aé".encode(), (0, 0, 3)),
        one(r"\s", b"\x0b", (0, 0, 1)),
        one(r"[^a]", b"\xff"),
        one(r"a", b"\xffa", (0, 1, 2)),
        one(r"\b{start}a", b"a", (0, 0, 1)),
        one(r"\Aa", b"aa", (0, 0, 1), anchored=True, match_limit=1),
    ]
    assert [outcome.status for outcome in run(cases)] == [
        PASS, UNSUPPORTED, UNSUPPORTED, UNSUPPORTED, PASS, UNSUPPORTED, PASS,
    ]  # fmt: skip

"""The format: TOML files with ``[[test]]`` tables, as Rust's ``regex-test`` crate documents them.

    [[test]]
    name = "digits"
    regex = '[0-9]+'                 # or a list: several patterns, in one search
    haystack = "a 12"
    matches = [[2, 4]]               # spans; [[2, 4], []] with groups; {id = 0, span = [2, 4]} or spans = […]
    # optional: bounds, match-limit, anchored, case-insensitive, compiles, unescape, unicode, utf8, line-terminator,
    # match-kind ("all", "leftmost-first", "leftmost-longest"), search-kind ("earliest", "leftmost", "overlapping")

A key that the format does not have is an error, as it is there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Match = tuple[int, int, int]
"""Pattern number, start, end. What groups matched is left out: a scan reports whole matches."""

MATCH_KINDS = ("all", "leftmost-first", "leftmost-longest")
SEARCH_KINDS = ("earliest", "leftmost", "overlapping")

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([0nrt\\]))")
_SHORT = {b"0": b"\0", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}


class FormatError(Exception):
    """A file that is not in the format; the message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test. ``name`` is the file's path without suffix, a slash, and the test's own name."""

    name: str
    regexes: tuple[str, ...]
    haystack: bytes
    matches: tuple[Match, ...]
    bounds: tuple[int, int]
    match_limit: int | None = None
    anchored: bool = False
    case_insensitive: bool = False
    compiles: bool = True
    unicode: bool = True
    utf8: bool = True
    line_terminator: bytes = b"\n"
    match_kind: str = "leftmost-first"
    search_kind: str = "leftmost"


def unescape(text: bytes) -> bytes:
    r"""``\xHH``, ``\n``, ``\r``, ``\t``, ``\0`` and ``\\``; a backslash before anything else stays one."""
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]) if m[1] else _SHORT[m[2]], text)


def load(directory: Path) -> Iterator[Case]:
    """The cases of all TOML files below ``directory``, file by file. Raises FormatError."""
    files = sorted(directory.rglob("*.toml"))
    if not files:
        raise FormatError(f"{directory}: no TOML file here")
    for file in files:
        yield from load_file(file, str(file.relative_to(directory).with_suffix("")))


def load_file(file: Path, group: str) -> list[Case]:
    """The cases of one file. Raises FormatError."""
    try:
        tables = tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise FormatError(f"{file}: {error}") from error
    tests = tables.pop("test", None)
    if tables or not isinstance(tests, list):
        raise FormatError(f"{file}: the format has [[test]] tables and nothing else")
    cases = []
    for number, table in enumerate(tests, 1):
        name = table.get("name", f"the {number}th test")
        try:
            cases.append(_case(group, dict(table)))
        except (KeyError, TypeError, ValueError) as error:
            missing = "no " if isinstance(error, KeyError) else ""
            raise FormatError(f"{file}: {name}: {missing}{error}") from error
    doubled = [case.name for i, case in enumerate(cases) if case.name in {other.name for other in cases[:i]}]
    if doubled:
        raise FormatError(f"{file}: {doubled[0]} is there twice")
    return cases


def _case(group: str, table: dict[str, Any]) -> Case:
    unescaped = _take(table, "unescape", bool, False)
    name, regex = table.pop("name"), table.pop("regex")
    haystack = table.pop("haystack").encode()
    haystack = unescape(haystack) if unescaped else haystack
    matches = tuple(_match(found) for found in table.pop("matches"))
    bounds = table.pop("bounds", [0, len(haystack)])
    start, end = (bounds["start"], bounds["end"]) if isinstance(bounds, dict) else bounds
    case = Case(
        name=f"{group}/{name}",
        regexes=tuple([regex] if isinstance(regex, str) else regex),
        haystack=haystack,
        matches=matches,
        bounds=(int(start), int(end)),
        match_limit=_take(table, "match-limit", int, None),
        anchored=_take(table, "anchored", bool, False),
        case_insensitive=_take(table, "case-insensitive", bool, False),
        compiles=_take(table, "compiles", bool, True),
        unicode=_take(table, "unicode", bool, True),
        utf8=_take(table, "utf8", bool, True),
        line_terminator=unescape(_take(table, "line-terminator", str, "\n").encode()),
        match_kind=_word(table, "match-kind", MATCH_KINDS, "leftmost-first"),
        search_kind=_word(table, "search-kind", SEARCH_KINDS, "leftmost"),
    )
    if table:
        raise ValueError(f"unknown key {next(iter(table))!r}")
    return case


def _take(table: dict[str, Any], key: str, kind: type, otherwise: Any) -> Any:
    value = table.pop(key, otherwise)
    if value is not otherwise and type(value) is not kind:
        raise TypeError(f"{key} is {value!r}, which is no {kind.__name__}")
    return value


def _word(table: dict[str, Any], key: str, words: tuple[str, ...], otherwise: str) -> str:
    value = str(_take(table, key, str, otherwise))
    if value not in words:
        raise ValueError(f"{key} is {value!r}, which is none of {', '.join(words)}")
    return value


def _match(found: Any) -> Match:
    if isinstance(found, dict):
        number, span = found.pop("id"), found.pop("span", None)
        span = found.pop("spans")[0] if span is None else span
        if found:
            raise ValueError(f"unknown key {next(iter(found))!r} in a match")
    else:
        number, span = 0, found[0] if isinstance(found[0], list) else found
    start, end = span
    return int(number), int(start), int(end)

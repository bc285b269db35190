r"""Where what a pattern means to Rust's regex crate is not what it means to RE2, which is what it means here.

docs/matching.md has the list for people. A case is called unsupported only where the difference can show: ``\w`` over
text that is ASCII means the same to both, and is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.regex_testdata.cases import Case

_TOKEN = re.compile(
    r"""
    (?P<border> \\[<>] )
  | (?P<quote>  \\Q.*?(?:\\E|$) )
  | (?P<class>  \\[pP](?:\{[^}]*\}|.) )
  | (?P<escape> \\(?:x\{[^}]*\}|x..|[0-7]{1,3}|.) )
  | (?P<flags>  \(\?[a-zA-Z]*(?:-[a-zA-Z]*)?[:)] )
  | (?P<count>  \{(?:0|[1-9][0-9]*)(?:,(?:0|[1-9][0-9]*)?)?\} )
  | (?P<open>   \[\^?\]? )
  | (?P<plain>  . )
    """,
    re.VERBOSE | re.DOTALL,
)
_ITEM = re.compile(
    r"(?P<posix>\[:\^?[a-z]*:\])|(?P<class>\\[pP](?:\{[^}]*\}|.))|(?P<escape>\\(?:x\{[^}]*\}|x..|[0-7]{1,3}|.))"
    r"|(?P<operator>&&|--|~~)|(?P<nested>\[)|(?P<close>\])|(?P<plain>.)",
    re.DOTALL,
)


def tokens(regex: str) -> Iterator[tuple[str, str]]:
    """What a pattern is made of, as (kind, text); kinds of what lies in a bracketed class begin with ``in-``."""
    at, inside = 0, False
    while at < len(regex):
        found = (_ITEM if inside else _TOKEN).match(regex, at)
        if found is None or found.lastgroup is None:  # a backslash at the very end
            return
        kind = found.lastgroup
        yield ("in-" + kind if inside else kind), found[0]
        inside = kind != "close" if inside else kind == "open"
        at = found.end()


def of_search(case: Case) -> str | None:
    """Why this kind of search is none that a scan does; None where it is one."""
    if not case.regexes:
        return "a search for no pattern is refused"
    if case.search_kind == "earliest":
        return "a scan has no search for the earliest end"
    if case.match_kind == "leftmost-longest":
        return "matches are leftmost-first, not leftmost-longest"
    if (case.match_kind == "all") != (case.search_kind == "overlapping"):
        return "a scan does not report all matches"
    if case.bounds != (0, len(case.haystack)):
        return "a scan searches whole files, not a part"
    if case.anchored and case.match_limit != 1:
        return "a scan has no matches that must follow each other (one, at the begin, is \\A)"
    if case.line_terminator != b"\n":
        return "lines end with \\n"
    return None


def of_case(case: Case) -> str | None:
    """Why Rust's answer need not be RE2's; None where both must agree."""
    return next(filter(None, (_of_regex(regex, case) for regex in case.regexes)), None)


def _of_regex(regex: str, case: Case) -> str | None:
    found = list(tokens(regex))
    kinds = {kind for kind, _ in found}
    escapes = {text[1] for kind, text in found if kind in ("escape", "in-escape")}
    if "border" in kinds:
        return r"\< and \> are characters to RE2, not borders"
    if kinds & {"in-operator", "in-nested"}:
        return "RE2 has no set operations and no classes within classes: [, &&, -- and ~~ are characters there"
    if "quote" in kinds or escapes & set("C01234567"):
        return r"\Q…\E, \C and octal escapes are RE2's alone"
    if ("plain", "{") in found:
        return "RE2 takes a { that begins no repetition as text"
    if not case.unicode and not regex.isascii():
        return "a pattern over bytes is Latin-1 here, UTF-8 there"
    return _of_text(found, escapes, case)


def _of_text(found: list[tuple[str, str]], escapes: set[str], case: Case) -> str | None:
    """Differences that only some texts show."""
    if escapes & set("sS") and b"\x0b" in case.haystack:
        return r"\s has no \v in RE2"
    if case.haystack.isascii() or not case.unicode:
        return None
    if escapes & set("wWdDsSbB"):
        return r"\w, \d, \s and \b know only ASCII in RE2, all of Unicode in Rust"
    try:
        case.haystack.decode()
    except UnicodeDecodeError:
        if ("plain", ".") in found or {"class", "open"} & {kind for kind, _ in found}:
            return "what a dot or a class matches in text that is not UTF-8 is RE2's own"
    return None

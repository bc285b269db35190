"""What decides whether a match is a finding: a rule's conditions, compiled.

A rule's regular expression has found the match before; here come its secret, entropy and allowlists, in the order of
their cost. Groups are matched where the match stands, with the byte before and after it in sight, so that ``\\b``,
``^`` and ``$`` mean what they meant when it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import re2
from numpy.typing import NDArray

from uring_actors.ops.match.window import Window
from uring_actors.ops.rules.rules import Allowlist, Rule

INLINE_ALLOW = b"gitleaks:allow"
"""A line with this in it is not reported."""

LINE_REACH = 64 << 10
"""Bytes before a match, and after it, that are looked at for its line."""

_FIRST_REACH = 256
_FEW = 1 << 16

Test = Callable[[bytes], bool]


class Verdict(NamedTuple):
    """A match that is a finding: what is secret in it."""

    secret: bytes
    entropy: float


class Changed(Exception):
    """The file no longer has the match where it was found."""


class CompiledRule:
    """One rule, with the allowlists that count for all."""

    def __init__(self, rule: Rule, everywhere: Sequence[Allowlist]) -> None:
        self.rule = rule
        allowlists = [_allow(one) for one in (*everywhere, *rule.allowlists)]
        self._path = None if rule.path is None else any_of([rule.path])
        self._path_allows = [one.of_path for one in allowlists if one.of_path is not None]
        self._secret_allows = [one for one in allowlists if one.of_match and one.target != "line"]
        self._line_allows = [one for one in allowlists if one.of_match and one.target == "line"]
        self._groups: Any = None
        if rule.regex is not None and (compiled := re2.compile(rule.regex.encode(), _options())).groups:
            self._groups = compiled

    def wants(self, path: bytes) -> bool:
        """Whether the rule looks into the file at all."""
        if self._path is not None and not self._path(path):
            return False
        return not any(test(path) for test in self._path_allows)

    def judge(self, path: bytes, window: Window, start: int, end: int, match: bytes) -> Verdict | None:
        """None where the match, at ``[start, end)``, is not to be reported.

        Raises ReadFailed where the bytes around it are needed and can't be had, Changed where they are others.
        """
        secret = self._secret(window, start, end, match)
        entropy = shannon(secret)
        if self.rule.entropy and entropy <= self.rule.entropy:
            return None
        trimmed = match.strip(b"\n")
        for allow in self._secret_allows:
            if allow.allows(path, secret, trimmed if allow.target == "match" else secret):
                return None
        line = line_of(window, start, end, match)
        if INLINE_ALLOW in line or any(allow.allows(path, secret, line) for allow in self._line_allows):
            return None
        return Verdict(secret, entropy)

    def _secret(self, window: Window, start: int, end: int, match: bytes) -> bytes:
        whole = match.strip(b"\n")
        if self._groups is None:
            return whole
        view, base = window.view(start, end)
        found = self._groups.fullmatch(view, start - base, end - base)
        if found is None:
            raise Changed
        if self.rule.secret_group:
            return _group(view, found.span(self.rule.secret_group))
        for number in range(1, self._groups.groups + 1):
            low, high = found.span(number)
            if high > low:
                return bytes(view[low:high])
        return whole


def _group(view: memoryview, span: tuple[int, int]) -> bytes:
    low, high = span
    return bytes(view[low:high]) if low >= 0 else b""


class _Allow:
    """An allowlist. ``of_path`` decides by the path alone; ``of_match`` says whether matches have to be looked at."""

    def __init__(self, allowlist: Allowlist) -> None:
        self.target = allowlist.target
        self._all_of = allowlist.all_of
        self._commits = allowlist.commits
        self._paths = any_of(allowlist.paths) if allowlist.paths else None
        self._regexes = any_of(allowlist.regexes) if allowlist.regexes else None
        words = [re2.escape(lowered(word.encode()).decode()) for word in allowlist.stopwords]
        self._stopwords = any_of(words) if words else None
        contents = self._regexes is not None or self._stopwords is not None
        self.of_match = contents
        self.of_path: Test | None = None
        if self._paths is not None and not (self._all_of and (contents or self._commits)):
            self.of_path = self._paths

    def allows(self, path: bytes, secret: bytes, target: bytes) -> bool:
        """Whether a match with this secret is allowed; ``target`` is what the regexes are searched in."""
        by_regex = None if self._regexes is None else bool(target) and self._regexes(target)
        if by_regex and not self._all_of:
            return True
        by_word = None if self._stopwords is None else self._stopwords(lowered(secret))
        if not self._all_of:
            return bool(by_word)
        if self._commits or by_regex is False or by_word is False:
            return False
        return self._paths is None or self._paths(path)


@lru_cache(maxsize=64)
def _allow(allowlist: Allowlist) -> _Allow:
    """Compiled once: the allowlists that count for all come with every rule."""
    return _Allow(allowlist)


def any_of(regexes: Iterable[str]) -> Test:
    """Whether one of ``regexes`` is found somewhere in a text."""
    joined = "|".join(f"(?:{regex})" for regex in regexes)
    search = re2.compile(joined.encode(), _options(never_capture=True)).search

    def test(text: bytes) -> bool:
        return search(text) is not None

    return test


def _options(*, never_capture: bool = False) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = never_capture
    options.max_mem = 64 << 20  # lists of a thousand words
    return options


def lowered(text: bytes) -> bytes:
    """In lower case, as UTF-8; bytes that are none stay."""
    if text.isascii():
        return text.lower()
    return text.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")


def shannon(secret: bytes) -> float:
    """Bits a character, as gitleaks counts them: characters are code points, of as many as there are bytes.

    Every byte that is not UTF-8 counts as the one character U+FFFD.
    """
    codes: NDArray[Any] = np.frombuffer(secret, np.uint8)
    if not secret.isascii():
        text = secret.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(text, np.uint32)
        codes = np.where((codes >= 0xDC80) & (codes <= 0xDCFF), 0xFFFD, codes)
        if len(codes) < _FEW:  # else an array of all code points is nothing
            codes = np.unique(codes, return_inverse=True)[1]
    counts = np.bincount(codes)
    shares = counts[counts > 0] / max(1, len(secret))
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def line_of(window: Window, start: int, end: int, match: bytes) -> bytes:
    """The lines that the match (without its outer newlines) lies in; LINE_REACH bytes on each side at most."""
    start, end = end - len(match.lstrip(b"\n")), start + len(match.rstrip(b"\n"))
    if end < start:  # nothing but newlines
        return b""
    reach = _FIRST_REACH
    while True:
        low, high = max(0, start - reach), min(window.size, end + reach)
        view, base = window.view(low, high)
        text = bytes(view[low - base : high - base])
        first, last = text.rfind(b"\n", 0, start - low), text.find(b"\n", end - low)
        if reach >= LINE_REACH or ((first >= 0 or low == 0) and (last >= 0 or high == window.size)):
            return text[first + 1 : last if last >= 0 else len(text)]
        reach = min(LINE_REACH, 8 * reach)

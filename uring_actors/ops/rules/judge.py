"""What decides whether a match is a finding: a rule's conditions, compiled.

A rule's regular expression has found the match before; here come its secret, entropy and allowlists, in the order of
their cost. Groups are matched where the match stands, with the byte before and after it in sight, so that ``\\b``,
``^`` and ``$`` mean what they meant when it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import re2
from numpy.typing import NDArray

from uring_actors.ops.match.machine import Groups
from uring_actors.ops.match.newlines import Ints, as_bytes
from uring_actors.ops.match.planset import Spans, find_groups
from uring_actors.ops.match.program import program_of
from uring_actors.ops.match.window import Window
from uring_actors.ops.rules.characters import character_counts
from uring_actors.ops.rules.rules import Allowlist, Rule

INLINE_ALLOW = b"gitleaks:allow"
"""A line with this in it is not reported."""

LINE_REACH = 64 << 10
"""Bytes before a match, and after it, that are looked at for its line."""

_FIRST_REACH = 256
_SHORT = 1 << 9
_REMEMBERED = 1 << 11
"""Short matches of a rule: the same ones come again and again."""
_ALMOST = 1 - 1e-9
"""Leaves the borders to arithmetic."""
_ROUNDING = 1e-6
"""More than two ways to add up an entropy differ by."""
_FEW = 1 << 16
_FEW_BYTES = 1 << 10

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
        self._path_allows = path_tests(rule.allowlists)
        self._secret_allows = [one for one in allowlists if one.of_match and one.target != "line"]
        self._line_allows = [one for one in allowlists if one.of_match and one.target == "line"]
        self._weigh_again = lru_cache(maxsize=_REMEMBERED)(self._weigh)
        self._pass_again = lru_cache(maxsize=_REMEMBERED)(self._pass)
        self._groups: Spans | None = None
        if rule.regex is not None and (compiled := re2.compile(rule.regex.encode(), _options())).groups:
            self._groups = find_groups(compiled)

    @cached_property
    def _quick_groups(self) -> Groups | None:
        """As ``_groups``, where a program says it."""
        assert self.rule.regex is not None, "a rule about paths has no groups"
        program = program_of(self.rule.regex.encode(), latin1=False)
        return None if program is None else Groups(program)

    def wants(self, path: bytes) -> bool:
        """Whether the rule looks into the file at all, as far as it says so itself."""
        if self._path is not None and not self._path(path):
            return False
        return not any(test(path) for test in self._path_allows)

    def weigh_many(self, window: Window, starts: Ints, ends: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Of many matches, as far as lent bytes show it: those whose secrets certainly have too little entropy; and
        where the secrets are that certainly have enough (file offsets; -1 where that isn't certain)."""
        weak, secrets = np.zeros(len(starts), np.bool_), np.full((len(starts), 2), -1)
        text = window.lent_for(int(starts.min()), int(ends.max()))
        if not self.rule.entropy or self._groups is None or self._quick_groups is None or text is None:
            return weak, secrets
        bits, secrets = self._quick_groups.entropies(
            as_bytes(text[0]), text[1], window.size, starts, ends, self.rule.secret_group
        )
        secrets[bits <= self.rule.entropy + _ROUNDING] = -1
        return bits < self.rule.entropy - _ROUNDING, secrets

    def judge(
        self, path: bytes, window: Window, start: int, end: int, match: bytes, low: int = -1, high: int = -1
    ) -> Verdict | None:
        """None where the match, at ``[start, end)``, is not to be reported. ``low``, ``high``: of ``weigh_many``.

        Raises ReadFailed where the bytes around it are needed and can't be had, Changed where they are others.
        """
        if low >= 0:
            verdict = (self._pass_again if len(match) <= _SHORT else self._pass)(
                match.strip(b"\n"), match[low - start : high - start]
            )
        else:
            verdict = self._weigh_match(window, start, end, match)
        if verdict is None:
            return None
        for allow in self._secret_allows:
            if allow.all_of and allow.allows(
                path, verdict.secret, match.strip(b"\n") if allow.target == "match" else verdict.secret
            ):
                return None
        line = line_of(window, start, end, match)
        if INLINE_ALLOW in line or any(allow.allows(path, verdict.secret, line) for allow in self._line_allows):
            return None
        return verdict

    def _weigh_match(self, window: Window, start: int, end: int, match: bytes) -> Verdict | None:
        """What the match alone decides."""
        if self._groups is None:
            return (self._weigh_again if len(match) <= _SHORT else self._weigh)(match, 0, len(match))
        view, base = window.view(start, end)
        low, high = max(0, start - 1), min(window.size, end + 1)
        if end - start <= _SHORT:
            return self._weigh_again(bytes(view[low - base : high - base]), start - low, end - low)
        return self._weigh(view[: high - base], start - base, end - base)

    def _weigh(self, text: bytes | memoryview, start: int, end: int) -> Verdict | None:
        """Of the match ``text[start:end]``, between a byte of context on each side."""
        whole = bytes(text[start:end]).strip(b"\n")
        secret = whole if self._groups is None else self._secret(self._groups, text, start, end, whole)
        least = self.rule.entropy
        if least and len(secret) <= _SHORT and len(set(secret)) < 2**least * _ALMOST and secret.isascii():
            return None  # even if each came as often as the others
        entropy = shannon(secret)
        return None if least and entropy <= least else self._pass(whole, secret, entropy)

    def _pass(self, whole: bytes, secret: bytes, entropy: float | None = None) -> Verdict | None:
        """Of a secret with enough ``entropy``: what the allowlists that need no more than the match say."""
        for allow in self._secret_allows:
            if not allow.all_of and allow.allows(b"", secret, whole if allow.target == "match" else secret):
                return None
        return Verdict(secret, shannon(secret) if entropy is None else entropy)

    def _secret(self, groups: Spans, text: bytes | memoryview, start: int, end: int, whole: bytes) -> bytes:
        places = self._places(groups, text, start, end)
        if number := self.rule.secret_group:
            low, high = places[2 * number], places[2 * number + 1]
            return bytes(text[low:high]) if low >= 0 else b""
        for k in range(2, len(places), 2):
            if places[k + 1] > places[k]:
                return bytes(text[places[k] : places[k + 1]])
        return whole

    def _places(self, groups: Spans, text: bytes | memoryview, start: int, end: int) -> Sequence[int]:
        """Where group k is: the 2k-th number and the next."""
        if self._quick_groups is not None:
            past, places = self._quick_groups.find(as_bytes(text), start)
            if past == end:
                return places
        spans = groups(text, start, end)
        if spans[0][0] < 0:
            raise Changed
        return [place for span in spans for place in span]


class _Allow:
    """An allowlist. ``of_path`` decides by the path alone; ``of_match`` says whether matches have to be looked at."""

    def __init__(self, allowlist: Allowlist) -> None:
        self.target = allowlist.target
        self.all_of = allowlist.all_of
        self._commits = allowlist.commits
        self._paths = any_of(allowlist.paths) if allowlist.paths else None
        self._regexes = any_of(allowlist.regexes) if allowlist.regexes else None
        words = [re2.escape(lowered(word.encode()).decode()) for word in allowlist.stopwords]
        self._stopwords = any_of(words) if words else None
        contents = self._regexes is not None or self._stopwords is not None
        self.of_match = contents
        self.of_path: Test | None = None
        if self._paths is not None and not (self.all_of and (contents or self._commits)):
            self.of_path = self._paths

    def allows(self, path: bytes, secret: bytes, target: bytes) -> bool:
        """Whether a match with this secret is allowed; ``target`` is what the regexes are searched in."""
        by_regex = None if self._regexes is None else bool(target) and self._regexes(target)
        if by_regex and not self.all_of:
            return True
        by_word = None if self._stopwords is None else self._stopwords(lowered(secret))
        if not self.all_of:
            return bool(by_word)
        if self._commits or by_regex is False or by_word is False:
            return False
        return self._paths is None or self._paths(path)


@lru_cache(maxsize=64)
def _allow(allowlist: Allowlist) -> _Allow:
    """Compiled once: the allowlists that count for all come with every rule."""
    return _Allow(allowlist)


def path_tests(allowlists: Iterable[Allowlist]) -> list[Test]:
    """What decides by the path alone."""
    return [test for one in allowlists if (test := _allow(one).of_path) is not None]


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
    size = len(secret)
    if size < _FEW_BYTES and secret.isascii():  # most are: a dozen characters, which arrays are no help with
        shares = [count / size for count in map(secret.count, set(secret))]
        return -sum([share * math.log2(share) for share in shares]) + 0.0
    if size < _FEW:
        text = secret.decode("utf-8", "surrogateescape").encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(text, np.uint32)
        counts = np.unique(np.where((codes >= 0xDC80) & (codes <= 0xDCFF), 0xFFFD, codes), return_counts=True)[1]
    else:
        counts = character_counts(as_bytes(secret))
    parts = counts[counts > 0] / size
    return float(-(parts * np.log2(parts)).sum()) + 0.0


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

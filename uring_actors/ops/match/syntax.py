"""RE2's syntax (the default options, that is Perl mode), parsed into a tree over code points.

The parser takes a pattern if and only if RE2 does, apart from what RE2 refuses for the size of its compiled
program, and from ``\\b{start}`` and its like: a border elsewhere, text to RE2, and never meant so. Where it refuses,
it says where. It exists because RE2 tells neither positions nor anything about a pattern's structure.

What Unicode says (members of ``\\p{…}``, case folds beyond ASCII) is asked of RE2 itself, by running it over
the text of all code points, so that the two cannot disagree. That text takes some 100 ms to make: patterns
that name nothing beyond ASCII never need it.

Positions are indices into the text given to ``parse``.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import re2

from uring_actors.errors import PatternError
from uring_actors.ops.match.tree import (
    ALL_BYTES,
    EMPTY,
    Assert,
    Assertion,
    ByteSet,
    Capture,
    Chars,
    Concat,
    Node,
    Ranges,
    Repeat,
    alt,
    complement,
    concat,
    fold,
    repeat,
    union,
)

LAST_CODE_POINT = 0x10FFFF
LAST_LATIN1 = 0xFF
MOST_REPEATS = 1000
"""RE2's limit for one counted repetition, and for the product of nested ones."""

KELVIN, LONG_S = 0x212A, 0x17F
"""The only code points beyond ASCII that fold into it: with k and K, with s and S."""

_DIGIT = ((0x30, 0x39),)
_SPACE = ((0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20))
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_PERL = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
_POSIX: dict[str, Ranges] = {
    "alnum": ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": ((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": ((0x00, 0x7F),),
    "blank": ((0x09, 0x09), (0x20, 0x20)),
    "cntrl": ((0x00, 0x1F), (0x7F, 0x7F)),
    "digit": _DIGIT,
    "graph": ((0x21, 0x7E),),
    "lower": ((0x61, 0x7A),),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": ((0x09, 0x0D), (0x20, 0x20)),
    "upper": ((0x41, 0x5A),),
    "word": _WORD,
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
_C_ESCAPES = {"a": 0x07, "f": 0x0C, "n": 0x0A, "r": 0x0D, "t": 0x09, "v": 0x0B}
_HEX = frozenset("0123456789abcdefABCDEF")
_OCTAL = frozenset("01234567")
_BRACED_BORDER = re.compile(r"\\b\{(?:start|end)(?:-half)?\}")
_REPETITION = re.compile(r"\{(0|[1-9][0-9]{0,8})(?:(,)(0|[1-9][0-9]{0,8})?)?\}")


@dataclass(frozen=True, slots=True)
class Flags:
    """What ``(?imsU)`` sets. U is read, but changes no set of words: it only swaps greedy and lazy."""

    ignore_case: bool = False
    multi_line: bool = False
    dot_all: bool = False


NO_FLAGS = Flags()


@functools.cache
def re2_options(latin1: bool) -> re2.Options:
    """RE2's default options, silent, for UTF-8 or Latin-1."""
    options = re2.Options()
    options.log_errors = False
    if latin1:
        options.encoding = re2.Options.Encoding.LATIN1
    return options


@functools.lru_cache(maxsize=1)
def _all_code_points() -> bytes:
    """Every code point in UTF-8, in order, surrogates too (RE2 lets them pass)."""
    return "".join(map(chr, range(LAST_CODE_POINT + 1))).encode("utf-8", "surrogatepass")


def _code_point_at(offset: int) -> int:
    """The code point that starts at ``offset`` of ``_all_code_points()``."""
    for width, first, start in ((4, 0x10000, 0x80 + 2 * 0x780 + 3 * 0xF800), (3, 0x800, 0x80 + 2 * 0x780)):
        if offset >= start:
            return first + (offset - start) // width
    return offset if offset < 0x80 else 0x80 + (offset - 0x80) // 2


@functools.lru_cache(maxsize=512)
def members(expression: str, latin1: bool) -> Ranges | None:
    """The code points that a one-character RE2 expression matches; None where RE2 refuses it."""
    source = f"(?:{expression})+".encode("latin-1" if latin1 else "utf-8")
    try:
        compiled = re2.compile(source, re2_options(latin1))
    except re2.error:
        return None
    if latin1:
        return union((m.start(), m.end() - 1) for m in compiled.finditer(bytes(range(256))))
    text = _all_code_points()
    return union((_code_point_at(m.start()), _code_point_at(m.end()) - 1) for m in compiled.finditer(text))


def _spell(ranges: Ranges) -> str:
    return "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)


def fold_case(ranges: Ranges, latin1: bool) -> Ranges:
    """``ranges`` and everything that folds with a member. Latin-1 folds ASCII letters only, as RE2 does."""
    result = list(ranges)
    for low, high in ranges:
        for first, last, distance in ((0x41, 0x5A, 32), (0x61, 0x7A, -32)):
            if low <= last and high >= first:
                result.append((max(low, first) + distance, min(high, last) + distance))
    if latin1 or not ranges:
        return union(result)
    if ranges[-1][1] >= 0x80:
        return members(f"(?i)[{_spell(ranges)}]", False) or ranges
    letters = union(result)
    for letter, beyond in ((0x6B, KELVIN), (0x73, LONG_S)):
        if any(low <= letter <= high for low, high in letters):
            result.append((beyond, beyond))
    return union(result)


@dataclass(slots=True)
class _Group:
    """An open group: its finished branches, the branch being read, and what to restore behind it."""

    position: int
    flags: Flags
    branches: list[Node] = field(default_factory=list)
    branch: list[Node] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    """For each node of ``branch``, how often its innermost part is repeated by counts, at most."""
    number: int = 0
    """Of a capture group, from 1; 0: it captures nothing."""
    deepest: int = 1
    """The largest of ``copies`` over the finished branches."""

    def end_branch(self) -> None:
        self.branches.append(concat(self.branch))
        self.deepest = max([self.deepest, *self.copies])
        self.branch, self.copies = [], []


class _Leaf(NamedTuple):
    """A character, class or assertion of the text (or all that ``\\Q`` quotes)."""

    start: int
    stop: int
    outside: bool
    """Whether it is in no group."""
    flags: Flags


class _Parser:
    def __init__(self, text: str, flags: Flags, latin1: bool, *, ways: bool = False) -> None:
        self.text = text
        self.ways = ways
        self.captures = 0
        self.at = 0
        self.flags = flags
        self.latin1 = latin1
        self.highest = LAST_LATIN1 if latin1 else LAST_CODE_POINT
        self.groups = [_Group(-1, flags)]
        self.after_repetition = False
        self.leaves: list[_Leaf] = []
        """The characters, classes and assertions: all that is no operator."""
        self.chars: list[Ranges] = []
        """What the characters and classes are."""

    # -- errors and looking ahead

    def error(self, reason: str, position: int) -> PatternError:
        return PatternError(reason, pattern=self.text, position=position)

    def sees(self, what: str) -> bool:
        return self.text.startswith(what, self.at)

    def peek(self, ahead: int = 0) -> str:
        """The character ``ahead`` of the next; empty at the end."""
        return self.text[self.at + ahead : self.at + ahead + 1]

    # -- the tree

    def push(self, node: Node, copies: int = 1) -> None:
        self.groups[-1].branch.append(node)
        self.groups[-1].copies.append(copies)

    def push_chars(self, ranges: Ranges) -> None:
        self.chars.append(ranges)
        self.push(Chars(ranges))

    def push_literal(self, code: int) -> None:
        ranges = ((code, code),)
        self.push_chars(fold_case(ranges, self.latin1) if self.flags.ignore_case else ranges)

    # -- the grammar

    def parse(self) -> Node:
        while self.at < len(self.text):
            is_repetition = False
            start, character = self.at, self.text[self.at]
            if character == "(":
                self.open_group()
            elif character == ")":
                self.close_group()
            elif character == "|":
                self.groups[-1].end_branch()
                self.at += 1
            elif character in "*+?" or (character == "{" and _REPETITION.match(self.text, self.at)):
                self.repetition()
                is_repetition = True
            elif character == "[":
                self.push_chars(self.char_class())
            elif character == "\\":
                self.backslash()
            else:
                self.plain(character)
            if not is_repetition and character not in "()|":
                self.leaves.append(_Leaf(start, self.at, len(self.groups) == 1, self.flags))
            self.after_repetition = is_repetition
        if len(self.groups) > 1:
            raise self.error("missing closing )", self.groups[-1].position)
        return self.finish(self.groups.pop())[0]

    @staticmethod
    def finish(group: _Group) -> tuple[Node, int]:
        group.end_branch()
        return alt(group.branches), group.deepest

    def plain(self, character: str) -> None:
        self.at += 1
        if character == ".":
            no_newline = complement(((0x0A, 0x0A),), self.highest)
            self.push_chars(((0, self.highest),) if self.flags.dot_all else no_newline)
        elif character == "^":
            self.push(Assertion(Assert.BEGIN_LINE if self.flags.multi_line else Assert.BEGIN_TEXT))
        elif character == "$":
            self.push(Assertion(Assert.END_LINE if self.flags.multi_line else Assert.END_TEXT))
        else:
            self.push_literal(ord(character))

    def repetition(self) -> None:
        start = self.at
        counted = _REPETITION.match(self.text, start)
        self.at = counted.end() if counted else start + 1
        lazy = self.peek() == "?"
        self.at += lazy
        if self.after_repetition:
            raise self.error("a repetition of a repetition", start)
        if counted:
            least, most = self.counts(counted)
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.text[start]]
        group = self.groups[-1]
        if not group.branch:
            raise self.error("nothing to repeat", start)
        inner, copies = group.branch.pop(), group.copies.pop()
        if counted:
            copies *= max(1, least if most is None else most)
            if copies > MOST_REPEATS:
                raise self.error(f"repeats more than {MOST_REPEATS} times", start)
        self.push(repeat(inner, least, most, lazy=lazy and self.ways), copies)

    def counts(self, counted: re.Match[str]) -> tuple[int, int | None]:
        least = int(counted[1])
        most = int(counted[3]) if counted[3] else None if counted[2] else least
        if least > MOST_REPEATS or (most is not None and most > MOST_REPEATS):
            raise self.error(f"repeats more than {MOST_REPEATS} times", counted.start())
        if most is not None and most < least:
            raise self.error("the repetition's bounds are the wrong way round", counted.start())
        return least, most

    # -- groups

    def open_group(self) -> None:
        start = self.at
        if not self.sees("(?"):
            self.at += 1
            self.open_capture(start)
        elif self.sees("(?P<") or (self.sees("(?<") and self.peek(3) not in ("", "=", "!")):
            self.named_group(start)
        else:
            self.perl_flags(start)

    def named_group(self, start: int) -> None:
        name_at = self.text.index("<", start) + 1
        end = self.text.find(">", name_at)
        if end < 0:
            raise self.error("the group's name has no closing >", start)
        if not _is_name(self.text[name_at:end]):
            raise self.error("not a group name", name_at)
        self.at = end + 1
        self.open_capture(start)

    def open_capture(self, start: int) -> None:
        self.captures += 1
        self.groups.append(_Group(start, self.flags, number=self.captures))

    def perl_flags(self, start: int) -> None:
        """``(?flags)`` and ``(?flags:``; flags behind a ``-`` are switched off."""
        self.at += 2
        names = {"i": "ignore_case", "m": "multi_line", "s": "dot_all", "U": None}
        values = {name: getattr(self.flags, name) for name in names.values() if name}
        on, seen = True, True
        while (character := self.peek()) not in (":", ")"):
            if not character:
                raise self.error("missing closing )", start)
            if character == "-" and on:
                on, seen = False, False
            elif character in names:
                seen = True
                if (name := names[character]) is not None:
                    values[name] = on
            else:
                raise self.error(f"unknown group flag {character!r}", self.at)
            self.at += 1
        if not seen:
            raise self.error("no flag behind the -", self.at)
        self.at += 1
        if character == ":":
            self.groups.append(_Group(start, self.flags))
        self.flags = Flags(**values)

    def close_group(self) -> None:
        if len(self.groups) == 1:
            raise self.error("unexpected )", self.at)
        self.at += 1
        group = self.groups.pop()
        self.flags = group.flags
        inner, copies = self.finish(group)
        self.push(Capture(inner, group.number) if self.ways and group.number else inner, copies)

    # -- escapes

    def backslash(self) -> None:
        """An escape outside a class."""
        following = self.peek(1)
        if following == "Q":
            self.quoted()
        elif following in ("p", "P"):
            self.push_chars(self.unicode_class())
        elif following.lower() in _PERL:
            self.push_chars(self.perl_class())
        elif braced := _BRACED_BORDER.match(self.text, self.at):
            raise self.error(f"RE2 has no border {braced[0]} (for a brace as text write \\{{)", self.at)
        elif following in _ASSERTION_ESCAPES:
            self.at += 2
            self.push(_ASSERTION_ESCAPES[following])
        else:
            self.push_literal(self.escaped_code())

    def quoted(self) -> None:
        start = self.at + 2
        end = self.text.find("\\E", start)
        stop = len(self.text) if end < 0 else end
        for character in self.text[start:stop]:
            self.push_literal(ord(character))
        self.at = stop if end < 0 else stop + 2

    def escaped_code(self) -> int:
        """The code point of ``\\n``, ``\\x41``, ``\\101``, ``\\.`` and their like."""
        start = self.at
        following = self.peek(1)
        self.at += 2
        if not following:
            raise self.error("trailing backslash", start)
        if following in _C_ESCAPES:
            return _C_ESCAPES[following]
        if following == "x":
            return self.hexadecimal(start)
        if following in _OCTAL:
            return self.octal(start)
        if following < "\x80" and not following.isalnum():
            return ord(following)
        raise self.error(f"unknown escape \\{following}", start)

    def octal(self, start: int) -> int:
        if self.text[start + 1] != "0" and self.peek() not in _OCTAL:
            raise self.error("a backreference, which no RE2 pattern can have", start)
        end = self.at
        while end < start + 4 and self.text[end : end + 1] in _OCTAL:
            end += 1
        self.at = end
        code = int(self.text[start + 1 : end], 8)
        if code > self.highest:
            raise self.error("beyond the last character", start)
        return code

    def hexadecimal(self, start: int) -> int:
        if self.peek() == "{":
            end = self.text.find("}", self.at)
            digits = self.text[self.at + 1 : end] if end >= 0 else ""
            self.at = end + 1
        else:
            digits = self.text[self.at : self.at + 2]
            digits = digits if len(digits) == 2 else ""
            self.at += 2
        if not digits or not _HEX.issuperset(digits):
            raise self.error("bad hexadecimal escape", start)
        code = int(digits, 16)
        if code > self.highest:
            raise self.error("beyond the last character", start)
        return code

    # -- classes

    def folded(self, ranges: Ranges) -> Ranges:
        return fold_case(ranges, self.latin1) if self.flags.ignore_case else ranges

    def perl_class(self) -> Ranges:
        """``\\d`` and its like. A negated one is the complement of the folded class."""
        letter = self.peek(1)
        self.at += 2
        ranges = self.folded(_PERL[letter.lower()])
        return ranges if letter.islower() else complement(ranges, self.highest)

    def unicode_class(self) -> Ranges:
        start = self.at
        positive = self.peek(1) == "p"
        end = start + 3
        name = self.text[start + 2 : end]
        if name == "{":
            close = self.text.find("}", end)
            if close < 0:
                raise self.error("missing closing }", start)
            name, end = self.text[end:close], close + 1
        if name.startswith("^"):
            name, positive = name[1:], not positive
        flags = "(?i)" if self.flags.ignore_case else ""
        # Only such names are put to RE2, so that none can change what the question means.
        named = re.fullmatch("[A-Za-z_]+", name)
        found = members(rf"{flags}\p{{{name}}}", self.latin1) if named else None
        if found is None:
            raise self.error("unknown Unicode class", start)
        self.at = end
        return found if positive else complement(found, self.highest)

    def posix_class(self) -> Ranges | None:
        """``[:alpha:]``; None where what follows is not one (a plain ``[`` then)."""
        close = self.text.find(":]", self.at + 2)
        if close < 0:
            return None
        name = self.text[self.at + 2 : close]
        ranges = _POSIX.get(name.removeprefix("^"))
        if ranges is None:
            raise self.error("unknown POSIX class", self.at)
        self.at = close + 2
        ranges = self.folded(ranges)
        return complement(ranges, self.highest) if name.startswith("^") else ranges

    def char_class(self) -> Ranges:
        start = self.at
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges: list[tuple[int, int]] = []
        explicit: list[tuple[int, int]] = []
        first = self.at
        while self.peek() != "]" or self.at == first:
            if not self.peek():
                raise self.error("missing closing ]", start)
            named = self.named_item()
            if named is None:
                explicit.append(self.class_range(start))
            else:
                ranges.extend(named)
        self.at += 1
        whole = union([*ranges, *self.folded(union(explicit))])
        return complement(whole, self.highest) if negated else whole

    def named_item(self) -> Ranges | None:
        """A class inside a class; None (and nothing read) where a character or range is next."""
        if self.sees("[:"):
            return self.posix_class()
        if self.peek() == "\\":
            following = self.peek(1)
            if following in ("p", "P"):
                return self.unicode_class()
            if following and following.lower() in _PERL:
                return self.perl_class()
        return None

    def class_range(self, class_start: int) -> tuple[int, int]:
        start = self.at
        low = self.class_character(class_start)
        if self.peek() != "-" or self.peek(1) in ("", "]"):
            return low, low
        self.at += 1
        high = self.class_character(class_start)
        if high < low:
            raise self.error("the range's ends are the wrong way round", start)
        return low, high

    def class_character(self, class_start: int) -> int:
        if self.peek() == "\\":
            return self.escaped_code()
        if not self.peek():
            raise self.error("missing closing ]", class_start)
        self.at += 1
        return ord(self.text[self.at - 1])


_ASSERTION_ESCAPES: dict[str, Node] = {
    "A": Assertion(Assert.BEGIN_TEXT),
    "z": Assertion(Assert.END_TEXT),
    "b": Assertion(Assert.WORD),
    "B": Assertion(Assert.NOT_WORD),
    "C": ByteSet(ALL_BYTES),
}


def _is_name(name: str) -> bool:
    """RE2's rule for a group's name; beyond ASCII RE2 itself is asked."""
    if name.isascii():
        return re.fullmatch("[A-Za-z0-9_]+", name) is not None
    return members(f"(?P<{name}>x)", False) is not None


def parse(text: str, flags: Flags = NO_FLAGS, *, latin1: bool = False) -> Node:
    """The tree of an RE2 pattern; ``latin1``: every character is one byte, and there are 256 of them.

    Raises PatternError, with the position in ``text``. ``EMPTY`` is the empty pattern's tree.
    """
    return _Parser(text, flags, latin1).parse() if text else EMPTY


class NoWays(Exception):
    """A pattern with the flag U: what is lazy in it is not known."""


def parse_ways(text: str, *, latin1: bool = False) -> tuple[Node, int]:
    """The tree of a pattern that RE2 takes, with what is lazy and what is captured; and how many groups there are.

    Raises NoWays.
    """
    if _SWAPPED.search(text):
        raise NoWays
    parser = _Parser(text, NO_FLAGS, latin1, ways=True)
    return parser.parse(), parser.captures


def cut_short(text: str, *, latin1: bool = False) -> str | None:
    """The pattern ``text`` made to break off where the text ends: every leaf ``x`` of it becomes ``(?:x|\\z)``.

    It does as ``text`` does, with the same preferences, but a match that the text's end interrupts goes on without
    its bytes and ends there. So, of a text that is the beginning of another and is cut between two characters, a
    match that ends before the cut is the one that ``text`` has in the longer one; and what ``text`` may match across
    the cut ends at it, wherever that is preferred to what ends before.

    None where RE2 would not read the leaves alike on text that isn't UTF-8: it joins classes, and reads the class of
    all that is not ASCII loosely.
    """
    parser = _Parser(text, NO_FLAGS, latin1)
    parser.parse()
    parts: list[str] = []
    done = 0
    for start, stop, *_ in parser.leaves:
        leaf = text[start:stop]
        if leaf.startswith("\\Q"):
            leaves = [f"\\x{{{ord(character):x}}}" for character in leaf[2:].removesuffix("\\E")]
        else:
            leaves = [leaf]
        parts += [text[done:start], *(rf"(?:{leaf}|\z)" for leaf in leaves)]
        done = stop
    beyond = [ranges for chars in parser.chars if (ranges := _beyond_ascii(chars)) != _ALL_BEYOND_ASCII]
    if not latin1 and union(pair for ranges in beyond for pair in ranges) == _ALL_BEYOND_ASCII:
        return None
    return "".join([*parts, text[done:]])


_ALL_BEYOND_ASCII: Ranges = ((0x80, LAST_CODE_POINT),)


def _beyond_ascii(ranges: Ranges) -> Ranges:
    return tuple((max(low, 0x80), high) for low, high in ranges if high >= 0x80)


_LEADING_FLAGS = re.compile(r"(?:\(\?[ims]+\))*")
_LAZY_COUNT = re.compile(r"\{0,([0-9]+)\}\?")


def lazy_front(text: str, *, latin1: bool = False) -> tuple[str, str] | None:
    """``x{0,n}`` and ``y``, for a pattern ``x{0,n}?y`` where ``x`` is one character or class; None for others.

    Let k be the least place, from some place on, where ``y`` matches. Then the leftmost match of the pattern is that
    of ``y`` at k with as much of ``x{0,n}`` as stands before k. It begins no earlier by way of a place behind k: what
    leads there from a start before k leads through k, by fewer ``x``. And of the ways from its start the one with the
    fewest ``x`` is preferred, which is the one to k. (A ``\\C`` could match within a character, where no row of ``x``
    ends: such patterns are among the others.)
    """
    parser = _Parser(text, NO_FLAGS, latin1)
    tree = parser.parse()
    if not (
        isinstance(tree, Concat) and isinstance(tree.parts[0], Repeat) and isinstance(tree.parts[0].inner, Chars)
    ):
        return None
    start, stop, *_ = parser.leaves[0]
    count = _LAZY_COUNT.match(text, stop)
    if count is None or not _LEADING_FLAGS.fullmatch(text, 0, start) or text.startswith("\\Q", start):
        return None
    if not latin1 and fold(tree, lambda node, below: isinstance(node, ByteSet) or any(below)):
        return None
    flags, leaf = text[:start], text[start:stop]
    return f"{flags}(?:{leaf}){{0,{count[1]}}}", flags + text[count.end() :]


class Gap(NamedTuple):
    """A pattern ``before x{least,}? behind``, where ``x`` is one character or class. All are patterns."""

    before: str
    x: str
    least: int
    behind: str


_LAZY_REPETITION = re.compile(r"(?:(\*)|(\+)|\{([0-9]+),\})\?")
_SWAPPED = re.compile(r"\(\?[a-z-]*U")


def lazy_gap(text: str, *, latin1: bool = False) -> Gap | None:
    """The first such gap of ``text`` that is in no group; None where there is none."""
    parser = _Parser(text, NO_FLAGS, latin1)
    if not isinstance(parser.parse(), Concat) or _SWAPPED.search(text):
        return None
    for leaf in parser.leaves:
        count = _LAZY_REPETITION.match(text, leaf.stop)
        if leaf.outside and count is not None and not text.startswith("\\Q", leaf.start):
            flags = _spelled(leaf.flags)
            least = int(count[3] or (1 if count[2] else 0))
            return Gap(text[: leaf.start], flags + text[leaf.start : leaf.stop], least, flags + text[count.end() :])
    return None


def _spelled(flags: Flags) -> str:
    pairs = (("i", flags.ignore_case), ("m", flags.multi_line), ("s", flags.dot_all))
    letters = "".join(letter for letter, on in pairs if on)
    return f"(?{letters})" if letters else ""

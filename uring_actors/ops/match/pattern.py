"""What a user asks to be searched for: regular expressions in RE2's syntax, and literal text."""

from __future__ import annotations

from dataclasses import dataclass, field

from uring_actors.errors import PatternError
from uring_actors.ops.match.syntax import Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A pattern made plain: RE2's syntax as text, and how that is to be read."""

    text: str
    """Code points; with ``latin1`` one character per byte."""
    flags: Flags
    latin1: bool

    @property
    def re2(self) -> bytes:
        """What google-re2 compiles, flags included."""
        pairs = (("i", self.flags.ignore_case), ("m", self.flags.multi_line), ("s", self.flags.dot_all))
        letters = "".join(letter for letter, on in pairs if on)
        prefix = f"(?{letters})" if letters else ""
        return (prefix + self.text).encode("latin-1" if self.latin1 else "utf-8")


@dataclass(frozen=True, slots=True)
class Regex:
    """A regular expression in RE2's syntax; text is read as UTF-8, or as Latin-1 with ``bytes=True``.

    A pattern given as bytes is UTF-8 (Latin-1 with ``bytes=True``). ``name`` defaults to the pattern's text.
    ``ignore_case``, ``multi_line`` and ``dot_all`` are ``(?i)``, ``(?m)`` and ``(?s)`` at the front.
    """

    pattern: str | bytes
    name: str | None = None
    ignore_case: bool = False
    multi_line: bool = False
    dot_all: bool = False
    bytes: bool = False
    origin: str | None = field(default=None, compare=False)
    """Where it came from, for messages: ``"words.txt line 3"``."""

    @property
    def text(self) -> str:
        """The pattern as RE2 reads it. Raises PatternError where it can't be read so."""
        return _read(self.pattern, latin1=self.bytes)

    @property
    def label(self) -> str:
        return self.text if self.name is None else self.name

    def source(self) -> Source:
        flags = Flags(ignore_case=self.ignore_case, multi_line=self.multi_line, dot_all=self.dot_all)
        return Source(text=self.text, flags=flags, latin1=self.bytes)


@dataclass(frozen=True, slots=True)
class Literal:
    """Fixed text (in UTF-8) or fixed bytes. ``ignore_case`` folds as RE2 does: only ASCII in bytes."""

    text: str | bytes
    name: str | None = None
    ignore_case: bool = False
    origin: str | None = field(default=None, compare=False)
    """As of ``Regex``."""

    @property
    def content(self) -> bytes:
        """The bytes searched for. Raises PatternError for text that UTF-8 can't hold."""
        return _encode(self.text, "utf-8") if isinstance(self.text, str) else self.text

    @property
    def label(self) -> str:
        if self.name is not None:
            return self.name
        return self.text if isinstance(self.text, str) else self.text.decode("latin-1")

    def source(self) -> Source:
        self.content  # noqa: B018 (raises for what can't be encoded)
        latin1 = not isinstance(self.text, str)
        text = self.text if isinstance(self.text, str) else self.text.decode("latin-1")
        quoted = text.translate(_QUOTED)
        return Source(text=quoted, flags=Flags(ignore_case=self.ignore_case), latin1=latin1)


Pattern = Regex | Literal

_QUOTED = {code: f"\\x{code:02x}" for code in range(0x80) if not chr(code).isalnum()}
"""``str.translate``'s table that makes RE2 take any ASCII character as itself."""


def _encode(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise PatternError(f"not a character of {encoding}", pattern=text, position=error.start) from None


def _read(pattern: str | bytes, *, latin1: bool) -> str:
    encoding = "latin-1" if latin1 else "utf-8"
    if isinstance(pattern, str):
        _encode(pattern, encoding)
        return pattern
    try:
        return pattern.decode(encoding)
    except UnicodeDecodeError as error:
        raise PatternError("not valid UTF-8", pattern=pattern, position=error.start) from None

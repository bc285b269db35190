"""Which files of the given trees are scanned, and how far: globs, hidden files, .gitignore, sizes, match counts.

``Selection`` is what the user asked for; ``Scope`` is what it means in one directory of a walk. Patterns are those of
gitignore(5), in ``include`` and ``exclude`` too: without a slash before its end a pattern means a name at any depth,
with one it is anchored at the given directory; one that ends in a slash means directories; ``!`` takes back what an
earlier pattern said; the last that matches decides. A directory that is left out is not entered, so nothing below it
can be taken back.

Patterns are translated into regular expressions by pathspec. Those mean a path or anything below it; a walk asks for
each entry on its way down, so here they are asked for the entry itself (``_whole``).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from uring_actors.config import REPORTS, format_size, parse_size
from uring_actors.errors import OptionError, errno_name
from uring_actors.results.errors import Skipped

AnyGlob = str | bytes

HIDDEN = "hidden"
EXCLUDED = "an exclude pattern matches"
NOT_INCLUDED = "no include pattern matches"
IGNORED = "ignored by .gitignore or .git/info/exclude"
GIT = "git's own directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is scanned of what the paths lead to, and what of its matches is wanted.

    A file that is given as a path is scanned whatever its name; ``max_filesize`` holds for it as well.

    Raises:
        OptionError: a value makes no sense; a pattern is invalid.
    """

    include: tuple[bytes, ...] = ()
    """Only files that one of these matches, or that lie below a directory that one matches."""
    exclude: tuple[bytes, ...] = ()
    """Not these files and directories."""
    hidden: bool = True
    """Whether files and directories whose name begins with a dot are scanned."""
    gitignore: bool = False
    """Leave out what git ignores (.gitignore at every level, .git/info/exclude), and .git."""
    max_filesize: int | None = None
    """Bytes; larger files are left out."""
    max_count: int | None = None
    """The first so many matches of each file; what comes after the last of them is not read."""
    report: str = "matches"
    """``"matches"``, ``"count"`` (their number for each file) or ``"files"`` (those that have any)."""

    def __post_init__(self) -> None:
        if self.report not in REPORTS:
            raise OptionError(f"report is {self.report!r}", fix=f"It must be one of {', '.join(REPORTS)}.")
        if self.max_count is not None and (not isinstance(self.max_count, int) or self.max_count < 1):
            raise OptionError(f"max_count is {self.max_count!r}", fix="Give a whole number from 1.")
        if self.max_filesize is not None and self.max_filesize < 0:
            raise OptionError(f"max_filesize is {self.max_filesize}", fix="Give a number of bytes from 0.")
        for name in ("include", "exclude"):
            for glob in getattr(self, name):
                if _translated(glob) is None:
                    raise OptionError(f"{name} has {os.fsdecode(glob)!r}, which is no pattern", fix=_GLOB_FIX)
        if self.include and all(glob.startswith(b"!") for glob in self.include):
            raise OptionError(
                "include has only patterns that take something back: nothing would be scanned",
                fix="Give these patterns to exclude, without their !.",
            )

    @classmethod
    def of(
        cls,
        *,
        include: AnyGlob | Iterable[AnyGlob] = (),
        exclude: AnyGlob | Iterable[AnyGlob] = (),
        max_filesize: int | str | None = None,
        **others: object,
    ) -> Selection:
        """From what a caller writes: one pattern or several, str or bytes; a size as ``parse_size`` takes it."""
        size = parse_size(max_filesize) if isinstance(max_filesize, str) else max_filesize
        return cls(include=_globs(include), exclude=_globs(exclude), max_filesize=size, **others)  # type: ignore[arg-type]

    @property
    def by_name(self) -> bool:
        """Whether anything in a tree may be left out for its name."""
        return bool(self.include or self.exclude or self.gitignore or not self.hidden)

    @property
    def too_large(self) -> str:
        """Why a large file is left out."""
        return f"larger than {format_size(self.max_filesize or 0)}"


_GLOB_FIX = "Write it as in .gitignore: '*.log', 'build/', '/src/**/*.py'."


def _globs(given: AnyGlob | Iterable[AnyGlob]) -> tuple[bytes, ...]:
    if isinstance(given, (str, bytes)):
        given = [given]
    return tuple(os.fsencode(glob) for glob in given)


# ── patterns ─────────────────────────────────────────────────────────────────────────────────────────────────
_DIRECTORY_MARK = b"(?P<ps_d>/)"
"""How pathspec writes the slash behind a directory that a pattern means."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Patterns in a row that say the same (``leave``: they match; else they take back) of directories, if ``only``,
    or of anything."""

    leave: bool
    only: bool
    regex: re.Pattern[bytes]


class Rules:
    """The patterns of one file or option."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        runs: list[tuple[bool, bool, list[bytes]]] = []
        for pattern in patterns:
            translated = _translated(pattern)
            if translated is None:
                continue
            leave, only, regex = translated
            if not runs or runs[-1][:2] != (leave, only):
                runs.append((leave, only, []))
            runs[-1][2].append(regex)
        self._runs = [_Run(leave, only, re.compile(b"|".join(all_of))) for leave, only, all_of in reversed(runs)]

    def decide(self, path: bytes, is_directory: bool) -> bool | None:
        """Whether the last pattern that matches the entry leaves it out (True) or takes it back (False); None where
        none matches. ``path`` is relative to where the patterns stand."""
        for run in self._runs:
            if run.only and not is_directory:
                continue
            if run.regex.match(path):
                return run.leave
        return None


def _translated(pattern: bytes) -> tuple[bool, bool, bytes] | None:
    """Whether the pattern leaves out, whether it means directories only, and an expression that matches from the
    path's start; None for what is no pattern (a comment, nothing, an invalid range)."""
    # Imported here: most scans have no patterns.
    from pathspec.patterns.gitignore import GitIgnorePatternError
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    pattern = _trimmed(pattern)
    try:
        made = GitIgnoreSpecPattern(pattern)
    except GitIgnorePatternError:
        return None
    if made.regex is None or made.include is None:
        return None
    only = pattern.endswith(b"/")
    return bool(made.include), only, _whole(made.regex.pattern, only)


def _whole(regex: bytes, only: bool) -> bytes:
    """pathspec's expression for a path or anything below it, made one for the entry itself. What ends in a slash
    that is no mark means everything below a directory, at any depth."""
    if regex in (b".", _DIRECTORY_MARK):  # everything; every directory
        return b"(?s:.)"
    if regex == b"/":  # everything below the top
        return b"(?s:.*/)"
    if only:
        return b"(?s:" + regex.replace(_DIRECTORY_MARK, b"") + rb")\Z"
    if regex.endswith(b"/"):
        return b"(?s:" + regex + b")"
    return b"(?s:" + regex.replace(b"(?:" + _DIRECTORY_MARK + b"|$)", b"") + rb")\Z"


def _trimmed(pattern: bytes) -> bytes:
    """Without trailing blanks, as git trims it, and so that pathspec trims no more: it takes bytes as Latin-1, in
    which some parts of UTF-8 characters count as white space."""
    bare = pattern.rstrip(b" ")
    if len(bare) < len(pattern) and (len(bare) - len(bare.rstrip(b"\\"))) % 2:
        bare += b" "  # it was escaped
    if bare and bare[-1:].decode("latin-1").isspace() and bare[-1:] not in (b"\n", b" "):
        last = bare[-1:]
        bare = bare[:-1]
        if (len(bare) - len(bare.rstrip(b"\\"))) % 2:
            bare = bare[:-1]
        bare += b"[" + last + b"]"
    return bare


# ── what holds in a directory ────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Scope:
    """What selects the entries of one directory of a walk. ``real``: the directory's, with its slash."""

    selection: Selection
    include: Rules
    exclude: Rules
    real: bytes
    top: int
    """How much of ``real`` is the given directory."""
    included: bool
    """Whether an include pattern matched the directory or one above it (or there are none)."""
    ignores: tuple[tuple[Rules, int], ...] = field(default=())
    """git's rules that hold here, those that decide first before others, with the length of their directory."""

    @classmethod
    def of(cls, selection: Selection, real: bytes) -> Scope:
        """For a given directory, whose entries are still to be read."""
        slashed = real.rstrip(b"/") + b"/"
        scope = cls(
            selection,
            Rules(selection.include),
            Rules(selection.exclude),
            slashed,
            len(slashed),
            not selection.include,
        )
        return replace(scope, ignores=_from_above(real)) if selection.gitignore else scope

    def enter(self, name: bytes) -> Scope:
        """For the directory ``name`` in this one, which ``leaves_out`` does not leave out."""
        real = self.real + name
        decided = self.include.decide(real[self.top :], True)
        return replace(self, real=real + b"/", included=self.included if decided is None else decided)

    def opened(self, names: Sequence[bytes], problems: list[Skipped]) -> Scope:
        """With the rules that the directory itself brings, as ``names``, its entries, show."""
        if not self.selection.gitignore:
            return self
        ignores = self.ignores
        if b".git" in names:  # a repository of its own: what is above says nothing here
            ignores = _excludes(self.real)
        if b".gitignore" in names:
            rules = _read_rules(self.real + b".gitignore", problems)
            ignores = ((rules, len(self.real)), *ignores)
        return self if ignores is self.ignores else replace(self, ignores=ignores)

    def leaves_out(self, name: bytes, is_directory: bool) -> str | None:
        """Why the entry is left out, or None. Directories are only left out whole."""
        if name.startswith(b".") and not self.selection.hidden:
            return HIDDEN
        if name == b".git" and self.selection.gitignore:
            return GIT
        real = self.real + name
        if self.exclude.decide(real[self.top :], is_directory):
            return EXCLUDED
        if not is_directory:
            decided = self.include.decide(real[self.top :], False)
            if not (self.included if decided is None else decided):
                return NOT_INCLUDED
        for rules, length in self.ignores:
            ignored = rules.decide(real[length:], is_directory)
            if ignored is not None:
                return IGNORED if ignored else None
        return None


def _from_above(real: bytes) -> tuple[tuple[Rules, int], ...]:
    """git's rules that hold in the directory ``real`` from those above it, as far as its repository goes; nothing
    where it is in none, or the repository's own top (``Scope.opened`` sees that)."""
    above = [real]
    while not os.path.lexists(os.path.join(above[-1], b".git")):
        parent = os.path.dirname(above[-1])
        if parent == above[-1]:
            return ()
        above.append(parent)
    rules: list[tuple[Rules, int]] = []
    for directory in above[1:]:
        slashed = directory.rstrip(b"/") + b"/"
        rules.append((_read_rules(slashed + b".gitignore", []), len(slashed)))
    top = above[-1].rstrip(b"/") + b"/"
    return (*rules, *_excludes(top)) if len(above) > 1 else ()


def _excludes(top: bytes) -> tuple[tuple[Rules, int], ...]:
    """The rules of .git/info/exclude of the repository (or work tree of one) at ``top``."""
    git = top + b".git"
    try:
        if not os.path.isdir(git):  # "gitdir: …", a work tree or a submodule; what work trees share lies elsewhere
            with open(git, "rb") as file:
                git = os.path.join(top, file.read(1 << 16).removeprefix(b"gitdir:").strip())
        with open(os.path.join(git, b"commondir"), "rb") as file:
            git = os.path.join(git, file.read(1 << 16).strip())
    except OSError:
        pass
    return ((_read_rules(os.path.join(git, b"info", b"exclude"), []), len(top)),)


def _read_rules(path: bytes, problems: list[Skipped]) -> Rules:
    """The patterns in a file; none where there is no such file. A link is not followed, as git doesn't."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Rules(())
            text = file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            problems.append(Skipped(path, f"its patterns are not applied: {errno_name(error.errno or 0)}"))
        return Rules(())
    lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return Rules(line.removesuffix(b"\r") for line in lines)

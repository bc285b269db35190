"""What a rule file says, made plain: ``Rules``, and the way there from a file (``Rules.load``).

Everything here is a value that pickles; what is compiled of it lives in ``judge.py``. The patterns' plans are part of
it, so that a regular expression that can't be run is found when the file is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.ops.match.plan import PatternPlan
from uring_actors.plan import AnyPath

LONGEST_KEYWORD = 1024
"""Bytes. Keywords are looked for in data slots alone, so they must be shorter than any halo's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowlist:
    """What is not reported. ``commits`` says whether it names commits, which files have not: never true of them."""

    paths: tuple[str, ...] = ()
    regexes: tuple[str, ...] = ()
    stopwords: tuple[str, ...] = ()
    commits: bool = False
    all_of: bool = False
    """Whether every kind of condition that it has must hold (``condition = "AND"``), or any."""
    target: str = "secret"
    """What ``regexes`` are searched in: ``"secret"``, ``"match"`` or ``"line"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. Without ``regex`` it is about paths alone."""

    id: str
    description: str = ""
    regex: str | None = None
    path: str | None = None
    keywords: tuple[str, ...] = ()
    entropy: float = 0.0
    """The secret's must be greater, where this is not 0."""
    secret_group: int = 0
    """The group that is the secret; 0: the first that is not empty, or the whole match."""
    tags: tuple[str, ...] = ()
    allowlists: tuple[Allowlist, ...] = ()
    origin: str | None = field(default=None, compare=False)
    """Where it came from, for messages: ``"gitleaks.toml line 3"``."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule file. ``plans`` are those of the rules that have a regular expression, in their order (``searched``),
    then those of the distinct keywords, in the order of ``keywords``."""

    rules: tuple[Rule, ...]
    allowlists: tuple[Allowlist, ...]
    keywords: tuple[bytes, ...]
    plans: tuple[PatternPlan, ...] = field(repr=False)

    @classmethod
    def load(cls, path: AnyPath, *, default: AnyPath | None = None) -> Rules:
        """Read a rule file in gitleaks' format.

        default: the file that ``[extend] useDefault = true`` stands for; none is built in.

        Raises RuleFileError with everything that is wrong in it, OSError where it can't be read.
        """
        from uring_actors.ops.rules.file import load

        return load(os.fsencode(path), None if default is None else os.fsencode(default))

    @classmethod
    def of(cls, rules: Sequence[Rule], allowlists: Sequence[Allowlist] = ()) -> Rules:
        """Rules made in Python. Raises PatternError (PatternErrors) for what can't be run."""
        found = tuple(rules)
        regexes = [Regex(rule.regex, name=rule.id, origin=_origin(rule)) for rule in found if rule.regex is not None]
        keywords = tuple(dict.fromkeys(fold_keyword(word) for rule in found for word in rule.keywords))
        literals = [Literal(word, ignore_case=True) for word in keywords]
        plans = compile_patterns([*regexes, *literals]) if regexes or literals else ()
        count = len(regexes)
        once = [replace(plan, once=True) for plan in plans[count:]]
        return cls(found, tuple(allowlists), keywords, (*plans[:count], *once))

    @property
    def searched(self) -> tuple[Rule, ...]:
        """The rules that have a regular expression: plan k belongs to the k-th."""
        return tuple(rule for rule in self.rules if rule.regex is not None)


def fold_keyword(word: str) -> bytes:
    """A keyword as it is looked for: UTF-8, ASCII letters in lower case."""
    return word.encode().lower()


def _origin(rule: Rule) -> str:
    return f"rule {rule.id!r}" if rule.origin is None else f"{rule.origin}, rule {rule.id!r}"

"""Rule files: gitleaks' TOML into ``Rules``.

Keys are read as gitleaks reads them, whatever their case. What is unknown is refused: it could be a condition, and
leaving out a condition would report, or hide, what the file's author didn't mean.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from typing import Any

import re2

from uring_actors.errors import PatternError, PatternErrors, RuleFileError
from uring_actors.ops.match.frontend import words
from uring_actors.ops.match.syntax import re2_options
from uring_actors.ops.rules.lines import Path, line_numbers
from uring_actors.ops.rules.rules import LONGEST_KEYWORD, Allowlist, Rule, Rules, fold_keyword

_TOP = {"title", "description", "minversion", "extend", "allowlist", "allowlists", "rules"}
_EXTEND = {"path", "usedefault", "disabledrules", "url"}
_RULE = {
    "id",
    "description",
    "regex",
    "path",
    "keywords",
    "entropy",
    "secretgroup",
    "tags",
    "allowlist",
    "allowlists",
    "required",
    "skipreport",
}
_ALLOWLIST = {"description", "condition", "commits", "paths", "regextarget", "regexes", "stopwords"}
_CONDITIONS = {"": False, "OR": False, "||": False, "AND": True, "&&": True}
_TARGETS = {"": "secret", "secret": "secret", "match": "match", "line": "line"}


def load(path: bytes, default: bytes | None) -> Rules:
    """See ``Rules.load``."""
    rules, allowlists = _read(path, default, ())
    problems = [
        f"{rule.origin}: rule {rule.id!r} has neither a regex nor a path"
        for rule in rules
        if rule.regex is None and rule.path is None
    ]
    if not rules:
        problems = [f"{os.fsdecode(path)}: there is no rule in it"]
    if problems:
        raise RuleFileError(path, problems)
    try:
        return Rules.of(rules, allowlists)
    except PatternErrors as errors:
        raise RuleFileError(path, [str(error) for error in errors.errors]) from None
    except PatternError as error:
        raise RuleFileError(path, [str(error)]) from None


_Read = tuple[list[Rule], list[Allowlist]]


def _read(path: bytes, default: bytes | None, above: tuple[bytes, ...]) -> _Read:
    """A file's rules and global allowlists, with those of the files that it extends."""
    name = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise RuleFileError(path, [f"can't read {name}: {error.strerror}"]) from None
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleFileError(path, [f"{name} line {line}: not valid UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise RuleFileError(path, [f"{name}: not valid TOML: {error}"]) from None
    reader = _Reader(name, document, line_numbers(text))
    own = reader.document()
    if reader.problems:
        raise RuleFileError(path, [what for _, what in sorted(reader.problems)])
    if reader.extends is None:
        return own
    line, base, use_default = reader.extends
    here = (*above, os.path.realpath(path))
    target = os.path.join(os.path.dirname(path), os.fsencode(base))
    if use_default:
        if default is None:
            what = (
                "useDefault: gitleaks' own rules are not built in; give their file as the default (--default-rules)"
            )
            raise RuleFileError(path, [f"{name} line {line}: {what}"])
        target = default
    if os.path.realpath(target) in here:
        raise RuleFileError(path, [f"{name} line {line}: it extends itself, by way of {os.fsdecode(target)}"])
    return _merged(own, _read(target, default, here), reader.disabled)


def _merged(own: _Read, base: _Read, disabled: set[str]) -> _Read:
    """``own`` over ``base``, as gitleaks merges them: what a rule says itself counts, lists are joined."""
    mine = {rule.id: rule for rule in own[0]}
    theirs = {rule.id: rule for rule in base[0] if rule.id not in disabled}
    rules = [_over(rule, theirs[rule.id]) if rule.id in theirs else rule for rule in own[0]]
    return [*rules, *(rule for name, rule in theirs.items() if name not in mine)], [*own[1], *base[1]]


def _over(rule: Rule, base: Rule) -> Rule:
    return replace(
        rule,
        description=rule.description or base.description,
        regex=base.regex if rule.regex is None else rule.regex,
        path=base.path if rule.path is None else rule.path,
        entropy=rule.entropy or base.entropy,
        secret_group=rule.secret_group or base.secret_group,
        tags=base.tags + rule.tags,
        keywords=base.keywords + rule.keywords,
        allowlists=base.allowlists + rule.allowlists,
    )


class _Table:
    """One table of the document, its keys in lower case."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.path = path
        self._values = {name.lower(): (name, value) for name, value in values.items()}

    def get(self, name: str) -> Any:
        return self._values.get(name, (name, None))[1]

    def place(self, name: str) -> Path:
        """Where the key stands, spelled as in the document."""
        return (*self.path, self._values.get(name, (name, None))[0])

    def names(self) -> list[str]:
        return list(self._values)


class _Reader:
    """Reads one document, and collects what is wrong with it."""

    def __init__(self, name: str, document: dict[str, Any], lines: dict[Path, int]) -> None:
        self.problems: list[tuple[int, str]] = []
        """Each with its line, to be sorted by."""
        self.extends: tuple[int, str, bool] | None = None
        """The line, the path, and whether it is the default file."""
        self.disabled: set[str] = set()
        self._name = name
        self._lines = lines
        self._top = _Table(document, ())

    def document(self) -> _Read:
        top = self._top
        self._known(top, _TOP, "in a rule file")
        if (extend := self._table(top, "extend")) is not None:
            self._extend(extend)
        rules = [self._rule(table) for table in self._tables(top, "rules")]
        found = {rule.id: rule for rule in reversed(rules)}
        for rule in rules:
            if rule.id and found[rule.id] is not rule:
                self._wrong(
                    ("rules", next(i for i, one in enumerate(rules) if one is rule)),
                    f"a second rule with the id {rule.id!r}",
                )
        everywhere: list[Allowlist] = []
        targeted: dict[str, list[Allowlist]] = {}
        for table in self._allow_tables(top):
            allowlist = self._allowlist(table, {"targetrules"})
            targets = self._strings(table, "targetrules")
            if not targets:
                everywhere.append(allowlist)
            for i, target in enumerate(targets):
                if target not in found and self.extends is None:
                    self._wrong((*table.place("targetrules"), i), f"there is no rule {target!r}")
                targeted.setdefault(target, []).append(allowlist)
        rules = [replace(rule, allowlists=(*rule.allowlists, *targeted.pop(rule.id, ()))) for rule in rules]
        # A target in the extended file: an entry that adds nothing but the allowlist.
        rules += [Rule(id=name, allowlists=tuple(lists)) for name, lists in targeted.items()]
        return rules, everywhere

    def _extend(self, table: _Table) -> None:
        self._known(table, _EXTEND, "in [extend]")
        path, use_default = self._string(table, "path"), self._value(table, "usedefault", bool, False)
        self.disabled = set(self._strings(table, "disabledrules"))
        if table.get("url"):
            self._wrong(table.place("url"), "rules are not fetched: save that file, and name it with path")
        if path and use_default:
            self._wrong(table.path, "path and useDefault can't both be set")
        if path or use_default:
            self.extends = (self._line(table.path), path, use_default)

    def _rule(self, table: _Table) -> Rule:
        self._known(table, _RULE, "in a rule")
        name = self._string(table, "id")
        if not name:
            self._wrong(table.path, "a rule without an id")
        if table.get("required"):
            self._wrong(table.place("required"), f"rule {name!r}: rules that require others are not supported")
        if self._value(table, "skipreport", bool, False):
            self._wrong(table.place("skipreport"), f"rule {name!r}: skipReport is not supported; remove the rule")
        regex = None if table.get("regex") is None else self._string(table, "regex")
        keywords = self._strings(table, "keywords")
        for i, word in enumerate(keywords):
            if not 0 < len(fold_keyword(word)) <= LONGEST_KEYWORD:
                what = "an empty keyword" if not word else f"a keyword of more than {LONGEST_KEYWORD} bytes"
                self._wrong((*table.place("keywords"), i), f"rule {name!r}: {what}")
        group = self._value(table, "secretgroup", int, 0)
        if group < 0 or (regex is not None and group > _groups(regex)):
            self._wrong(table.place("secretgroup"), f"rule {name!r}: its regex has no group {group}")
        return Rule(
            id=name,
            description=self._string(table, "description"),
            regex=regex or None,
            path=self._regex(table, "path") or None,
            keywords=keywords,
            entropy=float(self._value(table, "entropy", (int, float), 0.0)),
            secret_group=group,
            tags=self._strings(table, "tags"),
            allowlists=tuple(self._allowlist(one, set()) for one in self._allow_tables(table)),
            origin=f"{self._name} line {self._line(table.path)}",
        )

    def _allow_tables(self, table: _Table) -> list[_Table]:
        """Of ``[[allowlists]]``, or of ``[allowlist]``, which is how it was spelled before."""
        single, several = self._table(table, "allowlist"), self._tables(table, "allowlists")
        if single is not None and several:
            self._wrong(single.path, "[allowlist] can't stand beside [[allowlists]]")
        return several if single is None else [single]

    def _allowlist(self, table: _Table, more: set[str]) -> Allowlist:
        self._known(table, _ALLOWLIST | more, "in an allowlist")
        condition, target = self._string(table, "condition").upper(), self._string(table, "regextarget")
        if condition not in _CONDITIONS:
            self._wrong(table.place("condition"), f"condition is {condition!r}; it must be AND or OR")
        if target not in _TARGETS:
            self._wrong(table.place("regextarget"), f"regexTarget is {target!r}; it must be secret, match or line")
        allowlist = Allowlist(
            paths=self._regexes(table, "paths"),
            regexes=self._regexes(table, "regexes"),
            stopwords=self._strings(table, "stopwords"),
            commits=bool(self._strings(table, "commits")),
            all_of=_CONDITIONS.get(condition, False),
            target=_TARGETS.get(target, "secret"),
        )
        if not (allowlist.paths or allowlist.regexes or allowlist.stopwords or allowlist.commits):
            self._wrong(table.path, "an allowlist without commits, paths, regexes or stopwords")
        if "" in allowlist.stopwords:
            self._wrong(table.place("stopwords"), "an empty stopword is in every secret")
        return allowlist

    # -- values by type

    def _known(self, table: _Table, names: set[str], where: str) -> None:
        for name in table.names():
            if name not in names:
                place = table.place(name)
                self._wrong(place, f"unknown key {place[-1]!r} {where}")

    def _value(self, table: _Table, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = table.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = {str: "a string", bool: "true or false", int: "a whole number", list: "an array"}
            words = "a number" if isinstance(kind, tuple) else wanted.get(kind, "a table")
            self._wrong(table.place(name), f"{table.place(name)[-1]} must be {words}")
            return default
        return value

    def _string(self, table: _Table, name: str) -> str:
        return str(self._value(table, name, str, ""))

    def _strings(self, table: _Table, name: str) -> tuple[str, ...]:
        values = self._value(table, name, list, [])
        if not all(isinstance(value, str) for value in values):
            self._wrong(table.place(name), f"{table.place(name)[-1]} must be an array of strings")
            return ()
        return tuple(values)

    def _table(self, table: _Table, name: str) -> _Table | None:
        values = self._value(table, name, dict, None)
        return None if values is None else _Table(values, table.place(name))

    def _tables(self, table: _Table, name: str) -> list[_Table]:
        values = self._value(table, name, list, [])
        if not all(isinstance(value, dict) for value in values):
            self._wrong(table.place(name), f"{table.place(name)[-1]} must be an array of tables")
            return []
        return [_Table(value, (*table.place(name), i)) for i, value in enumerate(values)]

    def _regex(self, table: _Table, name: str) -> str:
        value = self._string(table, name)
        self._compiles(value, table.place(name))
        return value

    def _regexes(self, table: _Table, name: str) -> tuple[str, ...]:
        values = self._strings(table, name)
        for i, value in enumerate(values):
            self._compiles(value, (*table.place(name), i))
        return values

    def _compiles(self, regex: str, place: Path) -> None:
        try:
            re2.compile(regex, re2_options(False))
        except re2.error as error:
            self._wrong(place, f"RE2 refuses {regex!r}: {words(error)}")

    def _wrong(self, place: Path, what: str) -> None:
        line = self._line(place)
        self.problems.append((line, f"{self._name}{f' line {line}' if line else ''}: {what}"))

    def _line(self, place: Path) -> int:
        """Of the nearest thing around it that has one: inline tables have none of their own."""
        while place not in self._lines and place:
            place = place[:-1]
        return self._lines.get(place, 0)


def _groups(regex: str) -> int:
    try:
        return int(re2.compile(regex, re2_options(False)).groups)
    except re2.error:  # said where the pattern is compiled
        return 1 << 30

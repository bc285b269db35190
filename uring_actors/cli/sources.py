"""Where a scan's patterns come from, besides -e and -F: pattern files and rule files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from uring_actors.ops.match.pattern import Pattern
    from uring_actors.ops.rules.rules import Rules

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=bytes, allow_dash=True)


def source_options(command: Command) -> Command:
    """The options; they arrive as ``files``, ``fixed_strings``, ``rules`` and ``default_rules``."""
    for option in reversed(
        (
            click.option(
                "-f", "--file", "files", multiple=True, type=_FILE, metavar="FILE", help="Patterns, one a line."
            ),
            click.option("--fixed-strings", is_flag=True, help="Patterns of -e and -f are fixed texts."),
            click.option("--rules", type=_FILE, metavar="FILE", help="Search by rules in gitleaks' format."),
            click.option(
                "--default-rules", type=_FILE, metavar="FILE", help="What useDefault in --rules stands for."
            ),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Sources:
    """The options' values, with those of -e and -F."""

    regexps: Sequence[str]
    fixed: Sequence[str]
    files: Sequence[bytes]
    fixed_strings: bool
    rules: bytes | None
    default_rules: bytes | None

    def check(self, operation: str) -> None:
        """Raises UsageError for what doesn't go together."""
        patterns = bool(self.regexps or self.fixed or self.files)
        if "-f" in self.fixed:
            raise click.UsageError("-F takes a text. For a file of fixed texts: --fixed-strings -f FILE.")
        if self.rules is not None and (patterns or operation != "match"):
            raise click.UsageError("--rules stands alone: no patterns, no other operation.")
        if self.default_rules is not None and self.rules is None:
            raise click.UsageError("--default-rules is for --rules.")
        if operation == "match" and not patterns and self.rules is None:
            raise click.UsageError("No pattern was given: name at least one with -e, -F or -f, or --rules.")
        if operation != "match" and patterns:
            raise click.UsageError(f"The operation {operation} takes no patterns.")

    def patterns(self, **flags: bool) -> list[Pattern]:
        """Those of -e, of -F, and of the files."""
        from uring_actors.cli import patterns as spelled
        from uring_actors.ops.match.pattern_file import read_patterns

        regexps, fixed = ((), (*self.regexps, *self.fixed)) if self.fixed_strings else (self.regexps, self.fixed)
        found = spelled.patterns(regexps, fixed, **flags)
        for file in self.files:
            more = read_patterns(
                file,
                fixed=self.fixed_strings,
                ignore_case=flags["ignore_case"],
                multi_line=flags["multi_line"],
                dot_all=flags["dot_all"],
                bytes=flags["latin1"],
            )
            if not more:
                raise click.UsageError(f"There is no pattern in {click.format_filename(file)}.")
            found += more
        return found

    def load_rules(self) -> Rules | None:
        """The rule file's, where one is named."""
        if self.rules is None:
            return None
        from uring_actors.ops.rules.rules import Rules

        return Rules.load(self.rules, default=self.default_rules)

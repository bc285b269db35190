"""The options that say which files are scanned and what of their matches is printed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from uring_actors.config import parse_size
from uring_actors.errors import OptionError


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error


_Command = Callable[..., Any]
_Decorator = Callable[[_Command], _Command]

_FILES: Mapping[str, _Decorator] = {
    "include": click.option(
        "--include", multiple=True, metavar="GLOB", help="Only files that match; as in .gitignore."
    ),
    "exclude": click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files and directories."),
    "hidden": click.option(
        "--hidden/--no-hidden", default=True, show_default=True, help="Files and directories with a leading dot."
    ),
    "gitignore": click.option("--gitignore", is_flag=True, help="Leave out what git ignores, and .git."),
    "max_filesize": click.option(
        "--max-filesize", metavar="SIZE", callback=_size, help="Leave out larger files: 10M, 1G."
    ),
}
_MATCHES: Mapping[str, _Decorator] = {
    "count": click.option(
        "-c", "--count", is_flag=True, help="Print path:count, matches of each file, as grep -c does."
    ),
    "files_with_matches": click.option(
        "-l", "--files-with-matches", is_flag=True, help="Print only the paths of files that match."
    ),
    "max_count": click.option(
        "-m", "--max-count", type=click.IntRange(1), metavar="N", help="The first N matches of each file."
    ),
}


def choosing(command: _Command) -> _Command:
    """Add the options that choose files to a command, which gets them as ``selection``: keywords of
    ``uring_actors.scan``."""
    return _gathering(_FILES, lambda given, others: given)(command)


def selecting(command: _Command) -> _Command:
    """As ``choosing``, with the options that say what is wanted of the matches."""
    return _gathering({**_MATCHES, **_FILES}, _with_report)(command)


def _with_report(given: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    count, files = given.pop("count"), given.pop("files_with_matches")
    if count and files:
        raise click.UsageError("--count and --files-with-matches exclude each other.")
    report = "count" if count else "files" if files else "matches"
    if others["operation"] != "match" and (report != "matches" or given["max_count"] is not None):
        raise click.UsageError(f"The operation {others['operation']} finds no matches to count.")
    return {**given, "report": report}


_Gather = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def _gathering(options: Mapping[str, _Decorator], gather: _Gather) -> _Decorator:
    """Adds ``options``, whose values a command gets as its ``selection``, made by ``gather``."""

    def add(command: _Command) -> _Command:
        @functools.wraps(command)
        def gathered(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in options}
            return command(*args, selection=gather(given, kwargs), **kwargs)

        made: _Command = gathered
        for option in reversed(list(options.values())):
            made = option(made)
        return made

    return add

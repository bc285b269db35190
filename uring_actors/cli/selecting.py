"""The options that say which files are scanned and what of their matches is printed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from uring_actors.config import parse_size
from uring_actors.errors import OptionError

_NAMES = ("include", "exclude", "hidden", "gitignore", "max_filesize", "max_count", "count", "files_with_matches")


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error


_OPTIONS = (
    click.option("-c", "--count", is_flag=True, help="Print path:count, matches of each file, as grep -c does."),
    click.option("-l", "--files-with-matches", is_flag=True, help="Print only the paths of files that match."),
    click.option("-m", "--max-count", type=click.IntRange(1), metavar="N", help="The first N matches of each file."),
    click.option("--include", multiple=True, metavar="GLOB", help="Only files that match; as in .gitignore."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files and directories."),
    click.option(
        "--hidden/--no-hidden", default=True, show_default=True, help="Files and directories with a leading dot."
    ),
    click.option("--gitignore", is_flag=True, help="Leave out what git ignores, and .git."),
    click.option("--max-filesize", metavar="SIZE", callback=_size, help="Leave out larger files: 10M, 1G."),
)


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as ``selection``: keywords of ``uring_actors.scan``."""

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _NAMES}
        count, files = given.pop("count"), given.pop("files_with_matches")
        if count and files:
            raise click.UsageError("--count and --files-with-matches exclude each other.")
        report = "count" if count else "files" if files else "matches"
        if kwargs["operation"] != "match" and (report != "matches" or given["max_count"] is not None):
            raise click.UsageError(f"The operation {kwargs['operation']} finds no matches to count.")
        return command(*args, selection={**given, "report": report}, **kwargs)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered

"""The options that every command which scans has in common: how the pipeline runs, and where its rows go."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from uring_actors.config import CHOICES, FORMATS, ScanOptions, format_size, parse_size
from uring_actors.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = ScanOptions()


def size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A callback for options that are sizes."""
    try:
        return parse_size(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error


def _choice(name: str) -> click.Choice[str]:
    return click.Choice(CHOICES[name])


def _apply(function: F, options: list[Callable[[Any], Any]]) -> F:
    """Decorate with ``options``, so that help lists them in this order."""
    return reduce(lambda done, option: option(done), reversed(options), function)


def pipeline(function: F) -> F:
    """The fields of ``ScanOptions``, as options."""
    return _apply(
        function,
        [
            click.option("--engine", type=_choice("engine"), default=_DEFAULTS.engine, show_default=True),
            click.option("--backend", type=_choice("backend"), default=_DEFAULTS.backend, show_default=True),
            click.option("--io-engine", type=_choice("io_engine"), default=_DEFAULTS.io_engine, show_default=True),
            click.option("--io", type=_choice("io"), default=_DEFAULTS.io, show_default=True),
            click.option("--sqpoll", type=_choice("sqpoll"), default=_DEFAULTS.sqpoll, show_default=True),
            click.option(
                "--lanes",
                type=int,
                metavar="N",
                default=_DEFAULTS.lanes,
                show_default=True,
                help="Per block device.",
            ),
            click.option(
                "--slot-size",
                "slot_bytes",
                metavar="SIZE",
                callback=size,
                default=format_size(_DEFAULTS.slot_bytes),
                show_default=True,
                help="How much is read in one go: a power of two from 64K to 64M.",
            ),
            click.option(
                "--slots", type=int, metavar="N", default=_DEFAULTS.slots, show_default=True, help="Per lane."
            ),
            click.option(
                "--kernel-threads", type=int, metavar="N", help="Of the CPU kernel.  [default: one per core]"
            ),
        ],
    )


def rows(function: F) -> F:
    """``--format`` and ``--output``, for commands whose rows are no matches."""
    return _apply(
        function,
        [
            click.option(
                "--format",
                "form",
                type=click.Choice(FORMATS),
                default="text",
                show_default=True,
                help="Of the rows; text is for people.",
            ),
            click.option(
                "-o",
                "--output",
                type=click.Path(path_type=bytes),
                metavar="FILE",
                help="Write the rows here; the file appears when all is done.",
            ),
        ],
    )

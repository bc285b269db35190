"""The commands and their options, and what every way of ending gives as exit status.

    0    matches were found (or, for operations that look for nothing, all went well)
    1    no match
    2    an error, whether or not there were matches; a usage error
    130  interrupted (SIGINT); 143 terminated (SIGTERM)

What a command needs beyond this is imported when it runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import click

from uring_actors.cli import many, options
from uring_actors.cli.checksum import checksum
from uring_actors.cli.histogram import histogram
from uring_actors.cli.host_setup import host_setup
from uring_actors.cli.selecting import selecting
from uring_actors.cli.sources import Sources, source_options
from uring_actors.config import FORMATS, OPERATIONS, ScanOptions
from uring_actors.errors import OptionError, UringActorsError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

_FLAGS = {
    "slot_bytes": "--slot-size",
    "io_engine": "--io-engine",
    "kernel_threads": "--kernel-threads",
    "lease_bytes": "--lease-size",
}
"""Options whose names differ on the command line, for messages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. An exception of ours reaches the user as one message."""
    try:
        status = commands.main(
            args=None if arguments is None else list(arguments),
            prog_name="uring-actors",
            standalone_mode=False,
        )
    except click.Abort:
        click.echo("uring-actors: interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_ERROR
    except UringActorsError as error:
        click.echo(f"uring-actors: {_in_flags(error)}", err=True)
        return EXIT_ERROR
    except OSError as error:
        click.echo(f"uring-actors: {error}", err=True)
        return EXIT_ERROR
    except Exception:
        # Left to Python it would end with status 1, which says that nothing was found.
        traceback.print_exc()
        click.echo("uring-actors: this is a fault in uring-actors; please report it", err=True)
        return EXIT_ERROR
    return int(status or 0)


def _operation(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value not in OPERATIONS and ":" not in value:
        raise click.BadParameter(f"{value!r} is none of {', '.join(OPERATIONS)}, nor MODULE:NAME.")
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uring-actors")
def commands() -> None:
    """Scan files where they land: io_uring, a resident kernel, Ray actors."""


@commands.command()
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=bytes))
@click.option("-e", "--regexp", multiple=True, metavar="PATTERN", help="Search for this; RE2 syntax.")
@click.option("-F", "--fixed", multiple=True, metavar="TEXT", help="Search for exactly this text.")
@source_options
@click.option("-i", "--ignore-case", is_flag=True, help="Upper and lower case are the same.")
@click.option("--multi-line", is_flag=True, help="^ and $ match at every line's begin and end.")
@click.option("--dot-all", is_flag=True, help="A dot matches a newline too.")
@click.option("--bytes", "latin1", is_flag=True, help="A character is a byte (Latin-1), not UTF-8.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Of the matches."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=bytes),
    metavar="FILE",
    help="Write the matches here; the file appears when the scan has finished.",
)
@options.pipeline
@click.option(
    "--operation",
    callback=_operation,
    metavar="NAME",
    default="match",
    show_default=True,
    help=f"{', '.join(OPERATIONS)}, or MODULE:NAME for one of your own. touch reads every byte, nop only transfers "
    "them: for measuring.",
)
@many.options
@selecting
@click.option("--explain", is_flag=True, help="Print how each pattern would be run; scan nothing.")
@click.option("--explain-all", is_flag=True, help="The same, however many patterns there are.")
@click.option("--no-progress", is_flag=True, help="No progress on stderr.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
def scan(
    paths: tuple[bytes, ...],
    regexp: tuple[str, ...],
    fixed: tuple[str, ...],
    files: tuple[bytes, ...],
    fixed_strings: bool,
    rules: bytes | None,
    default_rules: bytes | None,
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
    latin1: bool,
    form: str,
    output: bytes | None,
    operation: str,
    explain: bool,
    explain_all: bool,
    no_progress: bool,
    quiet: bool,
    selection: dict[str, Any],
    **pipeline: Any,
) -> int:
    """Search the files in PATH... for patterns.

    One line a match, path:line:column:match. Lines and columns count from 1, columns in bytes. The exit
    status is 0 with matches, 1 without, 2 after an error.

    Links within a tree are not followed; FIFOs, sockets and device nodes are skipped.
    """
    placed = many.take(pipeline)
    checked = ScanOptions.of(**pipeline)
    sources = Sources(regexp, fixed, files, fixed_strings, rules, default_rules)
    sources.check(operation)
    if not (paths or placed.local or explain or explain_all):
        raise click.UsageError("No path was given: name at least one file or directory.")

    wanted = sources.patterns(ignore_case=ignore_case, multi_line=multi_line, dot_all=dot_all, latin1=latin1)
    loaded = sources.load_rules()
    if explain or explain_all:
        from uring_actors.cli import patterns as spelled

        click.echo(spelled.explain(loaded or wanted, checked.backend, everything=explain_all))
        return 0

    from uring_actors.cli import running

    request = running.Request(
        paths=[*paths, *placed.local_paths()],
        patterns=wanted,
        rules=loaded,
        operation=_loaded(operation),
        options={name: getattr(checked, name) for name in pipeline} | placed.arguments,
        selection=selection,
        form=form,
        output=output,
        progress=not (no_progress or quiet),
        quiet=quiet,
    )
    return many.submit(request) if placed.detach else running.run(request)


commands.add_command(many.attach)


def _loaded(operation: str) -> Any:
    """What ``--operation`` names: a built-in one's name, or the user's own."""
    if operation in OPERATIONS:
        return operation
    from uring_actors.ops.user import load

    return load(operation)


commands.add_command(checksum)
commands.add_command(histogram)
commands.add_command(host_setup)


@commands.command()
@click.option("--lanes", type=click.IntRange(1), metavar="N", default=1, help="Lanes in all, for the advice.")
def doctor(lanes: int) -> None:
    """Say what this machine allows, and what a scan would choose on it."""
    from uring_actors.doctor import examine

    findings = examine(lanes)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.name:<{width}}  {finding.value}")
        if finding.fix:
            click.echo(f"{'':<{width}}  → {finding.fix}")


def _in_flags(error: UringActorsError) -> str:
    text = str(error)
    if isinstance(error, OptionError):
        for name, flag in _FLAGS.items():
            text = text.replace(name, flag)
    return text

"""The options and the command for jobs on a cluster, and for scans that can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from uring_actors.cli.options import size
from uring_actors.config import FORMATS, ScanOptions, format_size

if TYPE_CHECKING:
    from uring_actors.cli.running import Request

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _labels(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    return {name: text for name, _, text in (one.partition("=") for one in value)}


_OPTIONS = (
    click.option("--address", metavar="ADDR", help="Scan on the nodes of this Ray cluster; auto: this machine's."),
    click.option(
        "--nodes",
        multiple=True,
        metavar="LABEL=VALUE",
        callback=_labels,
        help="Only on nodes with this label, or with a resource of this name.",
    ),
    click.option(
        "--host-local",
        multiple=True,
        metavar="PATH",
        type=click.Path(path_type=bytes),
        help="A path that each node has for itself: every node scans its own.",
    ),
    click.option(
        "--checkpoint", metavar="DIR", help="Keep progress and rows there, so that the scan can be resumed."
    ),
    click.option(
        "--output-dir",
        metavar="DIR",
        help="The same, on a file system that all nodes share: the job goes on without this command.",
    ),
    click.option("--resume", is_flag=True, help="Go on with what the checkpoint or output directory holds."),
    click.option("--detach", is_flag=True, help="With --output-dir: print the job's name and leave it alone."),
    click.option(
        "--lease-size",
        "lease_bytes",
        metavar="SIZE",
        callback=lambda context, option, value: value and size(context, option, value),
        help="How much is handed out, and counted as done, in one go.  "
        f"[default: {format_size(ScanOptions().lease_bytes)}]",
    ),
)


def options(command: _Command) -> _Command:
    """Adds the options to the scan command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a scan is to run. ``arguments``: those of ``uring_actors.scan`` that were given."""

    local: tuple[bytes, ...]
    arguments: dict[str, Any]
    detach: bool

    def local_paths(self) -> list[Any]:
        if not self.local:
            return []
        from uring_actors.many.paths import HostLocal

        return [HostLocal(path) for path in self.local]


def take(given: dict[str, Any]) -> Placed:
    """Takes these options out of all that were given."""
    names = ("address", "nodes", "checkpoint", "output_dir", "resume", "lease_bytes")
    arguments = {name: value for name in names if (value := given.pop(name))}
    placed = Placed(given.pop("host_local"), arguments, given.pop("detach"))
    if placed.detach and "output_dir" not in arguments:
        raise click.UsageError("Only a job with an --output-dir can be left alone.")
    return placed


def submit(request: Request) -> int:
    """Starts a job that goes on by itself, and prints its name."""
    import uring_actors

    package: Any = uring_actors
    job = package.scan(
        list(request.paths),
        patterns=list(request.patterns) or None,
        operation=request.operation,
        **request.selection,
        **request.options,
    )
    click.echo(job.name)
    return 0


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--address", metavar="ADDR", default="auto", show_default=True, help="The Ray cluster it runs on.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Of the matches."
)
@click.option("-o", "--output", type=click.Path(path_type=bytes), metavar="FILE", help="Write the matches here.")
@click.option("--stop", is_flag=True, help="End the job; it can be resumed.")
@click.option("--no-progress", is_flag=True, help="No progress on stderr.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
def attach(
    job: str, address: str, form: str, output: bytes | None, stop: bool, no_progress: bool, quiet: bool
) -> int:
    """Follow JOB, that was started with --output-dir: its name, or that directory.

    Its matches so far, and those to come, are written as scan would have; the exit status is scan's too. When this
    command ends, the job goes on.
    """
    if stop:
        import uring_actors

        package: Any = uring_actors
        package.attach(job, address=address).stop()
        return 0
    from uring_actors.cli import running

    return running.run(
        running.Request(
            paths=(),
            patterns=(),
            operation="match",
            options={"address": address},
            form=form,
            output=output,
            progress=not (no_progress or quiet),
            quiet=quiet,
            job=job,
        )
    )

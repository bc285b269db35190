"""``uring-actors host-setup``: checks, and with ``--apply`` sets, what a scan needs of its host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from uring_actors.host_setup import Change

EXIT_READY = 0
EXIT_CHANGES = 1


@click.command("host-setup")
@click.option("--apply", "applied", is_flag=True, help="Make the changes; without it they are only shown.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/",
    show_default=True,
    help="Of the system that is set up: an image's, or a test's.",
)
@click.option("--user", default="*", show_default=True, help="Whose limit of locked memory is lifted.")
@click.option("--group", default="disk", show_default=True, help="Who may open NVMe generic devices (/dev/ng*).")
@click.option("--kubernetes", is_flag=True, help="Also install the seccomp profile for pods.")
def host_setup(applied: bool, root: Path, user: str, group: str, kubernetes: bool) -> int:
    """Check what a scan needs of this host: locked memory, io_uring, large pages, NVMe generic devices.

    Prints what would change, and nothing else happens; --apply makes the changes (as root), and may be repeated.
    The exit status is 0 where all is set up, 1 where changes are to be made, 2 after an error.
    """
    from uring_actors import host_setup as setup

    wanted = setup.steps(user=user, group=group, kubernetes=kubernetes)
    found = list(setup.changes(wanted, root))
    for step in wanted:
        mine = [change for change in found if change.step is step]
        click.echo(f"{step.name}: {'as it should be' if not mine else step.why}")
        for change in mine:
            if applied:
                setup.apply(change, root)
            _show(change, "made" if applied else "would be")
    if applied:
        for command, problem in setup.announce(found, root):
            click.echo(f"ran: {command}" + (f" ({problem})" if problem else ""))
        return EXIT_READY
    if found:
        click.echo(f"{len(found)} changes to make: run it again with --apply, as root")
    return EXIT_CHANGES if found else EXIT_READY


def _show(change: Change, verb: str) -> None:
    if change.live:
        click.echo(f"  {change.path}: {verb} {change.value} (was {change.now})")
        return
    click.echo(f"  {change.path}: {verb} {'written' if change.now is None else 'rewritten'}")
    lines = change.value.splitlines()
    for line in lines if len(lines) <= 10 else []:
        click.echo(f"    {line}")

"""``uring-actors checksum``: CRC32C of files, and verifying them against a manifest, as sha256sum does."""

from __future__ import annotations

from typing import Any

import click

from uring_actors.cli import options
from uring_actors.config import ScanOptions


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH...", type=click.Path(path_type=bytes))
@click.option("--base64", is_flag=True, help="Print base64, as cloud stores have it, not hexadecimal digits.")
@click.option(
    "-c",
    "--check",
    "manifests",
    multiple=True,
    type=click.Path(path_type=bytes, allow_dash=True),
    metavar="MANIFEST",
    help="Verify the files that MANIFEST lists, in either form; - is stdin.",
)
@click.option("--ignore-missing", is_flag=True, help="With -c: say nothing of files that don't exist.")
@click.option("--strict", is_flag=True, help="With -c: exit with 1 for improperly formatted lines too.")
@click.option("--status", is_flag=True, help="With -c: print nothing; the exit status tells.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors; with -c no OK for verified files.")
@options.rows
@options.pipeline
@click.option("--no-progress", is_flag=True, help="No progress on stderr.")
def checksum(
    paths: tuple[bytes, ...],
    base64: bool,
    manifests: tuple[bytes, ...],
    ignore_missing: bool,
    strict: bool,
    status: bool,
    quiet: bool,
    form: str,
    output: bytes | None,
    no_progress: bool,
    **pipeline: Any,
) -> int:
    """Print the CRC32C of every file in PATH..., or verify them with -c.

    One line a file, CHECKSUM  PATH, as sha256sum's; directories are walked. A file that can't be read whole has no
    line. The exit status is 0, or 2 after an error; with -c 0 where every file listed was verified, else 1.
    """
    checked = ScanOptions.of(**pipeline)
    if bool(paths) == bool(manifests):
        raise click.UsageError("Name files or directories, or a manifest with -c." if not paths else _BOTH)
    if form != "text" and (base64 or manifests):
        raise click.UsageError(f"{'-c' if manifests else '--base64'} is for the format text, not {form}.")
    if base64 and manifests:
        raise click.UsageError("-c reads both forms: leave --base64 out.")
    if not manifests and (ignore_missing or strict or status):
        raise click.UsageError("--ignore-missing, --strict and --status go with -c.")

    from uring_actors.cli import running, verify

    request = running.Request(
        paths=paths,
        patterns=(),
        operation="checksum",
        options={name: getattr(checked, name) for name in pipeline},
        form=form,
        output=output,
        progress=not (no_progress or quiet or status),
        quiet=quiet or bool(manifests),  # what is to be said of a manifest, verify says
        text=lambda stream, terminal: verify.ChecksumLines(stream, terminal, base64=base64),
    )
    if not manifests:
        return running.run(request)
    how = verify.How(ignore_missing=ignore_missing, strict=strict, status=status, quiet=quiet)
    return verify.run(request, manifests, how)


_BOTH = "With -c the manifest names the files: give no PATH."

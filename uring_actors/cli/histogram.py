"""``uring-actors histogram``: byte counts and entropy of files or blocks, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from uring_actors.cli import options
from uring_actors.cli.selecting import choosing
from uring_actors.config import ScanOptions, parse_size
from uring_actors.errors import OptionError

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 3
"""How many of the most frequent bytes a line names."""


def _block(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    try:
        block = parse_size(value)
    except OptionError as error:
        raise click.BadParameter(str(error)) from error
    if not block:
        raise click.BadParameter("a block has at least one byte")
    return block


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=bytes))
@click.option("--block", metavar="SIZE", callback=_block, help="A row for each block of this size: 4K, 1M.")
@click.option("--counts", is_flag=True, help="All 256 counts below each line of text.")
@options.rows
@options.pipeline
@click.option("--no-progress", is_flag=True, help="No progress on stderr.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
@choosing
def histogram(
    paths: tuple[bytes, ...],
    block: int,
    counts: bool,
    form: str,
    output: bytes | None,
    no_progress: bool,
    quiet: bool,
    selection: dict[str, Any],
    **pipeline: Any,
) -> int:
    """Count the bytes of every file in PATH..., and print their entropy.

    The text has a line a file (or block): entropy in bits a byte, bytes, the most frequent bytes with their share,
    path. The other formats have all counts. A file that can't be read whole has no line. The exit status is 0, or 2
    after an error.
    """
    checked = ScanOptions.of(**pipeline)

    from uring_actors.cli import running
    from uring_actors.ops.histogram import Histogram

    return running.run(
        running.Request(
            paths=paths,
            patterns=(),
            operation=Histogram(block),
            options={name: getattr(checked, name) for name in pipeline},
            selection=selection,
            form=form,
            output=output,
            progress=not (no_progress or quiet),
            quiet=quiet,
            text=lambda stream, terminal: HistogramTable(stream, terminal, block=block > 0, counts=counts),
        )
    )


class HistogramTable:
    """A writer of histogram rows as a table for people."""

    def __init__(self, stream: BinaryIO, terminal: bool, *, block: bool, counts: bool) -> None:
        self._stream, self._terminal, self._block, self._counts = stream, terminal, block, counts
        self._begun = False

    def write(self, batch: pa.RecordBatch) -> None:
        import numpy as np

        from uring_actors.results.arrays import values_of

        if not self._begun:
            self._begun = True
            self._line("entropy", "bytes", "offset", "most frequent", b"path")
        counts = values_of(batch.column("counts").flatten()).astype(np.int64).reshape(-1, 256)
        # Stable: of bytes that are as frequent, the lower first.
        frequent = np.argsort(-counts, axis=1, kind="stable")[:, :_SHOWN]
        names = [name for name in ("path", "offset", "bytes", "entropy") if name in batch.schema.names]
        for row, found, bytes_ in zip(
            batch.select(names).to_pylist(), counts.tolist(), frequent.tolist(), strict=True
        ):
            self._line(
                f"{row['entropy']:.4f}",
                str(row["bytes"]),
                str(row.get("offset")),
                _most_frequent(bytes_, found, row["bytes"]),
                row["path"],
            )
            if self._counts:
                self._table(found)
        self._stream.flush()

    def _line(self, entropy: str, size: str, offset: str, frequent: str, path: bytes) -> None:
        from uring_actors.results.writers import printable

        place = f" {offset:>15}" if self._block else ""
        shown = printable(path) if self._terminal else path.replace(b"\n", b"\\n")
        self._stream.write(f"{entropy:>7} {size:>15}{place}  {frequent:<40}  ".encode() + shown + b"\n")

    def _table(self, counts: list[int]) -> None:
        width = len(str(max(counts)))
        for first in range(0, 256, 16):
            cells = " ".join(f"{count:>{width}}" for count in counts[first : first + 16])
            self._stream.write(f"    {first:02x}: {cells}\n".encode())

    def close(self) -> None:
        self._stream.flush()


def _most_frequent(order: list[int], counts: Sequence[int], size: int) -> str:
    """``20 ' ' 14.2%`` for each byte of ``order`` that occurs."""
    return "  ".join(f"{b:02x} {_character(b)} {counts[b] / size:5.1%}" for b in order if counts[b])


def _character(value: int) -> str:
    return f"'{chr(value)}'" if 0x20 <= value < 0x7F else "   "

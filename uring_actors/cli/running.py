"""One scan from the command line: matches to stdout or a file, everything else to stderr."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn, Protocol

import pyarrow as pa

import uring_actors
from uring_actors.results.report import Progress, summary
from uring_actors.results.stats import ScanStats
from uring_actors.results.writers import Writer, atomic_file, check_format, flushed_stream, open_writer, printable

EXIT_MATCHES = 0
EXIT_NO_MATCHES = 1
EXIT_ERRORS = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

SKIPPED_SHOWN = 20
"""How many skipped paths are named one by one; a tree of device nodes must not bury the errors."""


class RunningScan(Protocol):
    """What ``uring_actors.scan`` returns, as far as it is used here."""

    schema: pa.Schema
    stats: ScanStats
    errors: pa.Table
    skipped: pa.Table

    def __enter__(self) -> RunningScan: ...
    def __exit__(self, *error: object) -> None: ...
    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A scan and where its rows go (``output`` None: stdout). ``options``: fields of ``ScanOptions``, and where it is
    to run; ``selection``: what else ``uring_actors.scan`` takes (``cli/selecting.py``). Where ``job`` names one that
    is running, ``options`` are ``uring_actors.attach``'s."""

    paths: Sequence[bytes]
    patterns: Sequence[Any]
    operation: Any
    """The name of a built-in operation, or one that was made."""
    options: dict[str, Any]
    form: str
    output: bytes | None
    progress: bool
    quiet: bool
    job: str | None = None
    selection: dict[str, Any] = field(default_factory=dict)
    rules: Any = None
    """A loaded rule file, instead of patterns."""
    text: Callable[[BinaryIO, bool], Writer] | None = None
    """Makes the writer of the format ``text``, of the stream and whether that is a terminal; None: the usual one."""

    @property
    def searching(self) -> bool:
        """Whether its rows are matches."""
        return bool(self.operation == "match")


class _OutputClosed(Exception):
    """Whoever read the output has gone, as ``| head`` does. Not an error, but the end."""


def run(request: Request) -> int:
    """Scans; returns the exit status.

    Raises:
        UringActorsError: the scan could not be started or failed as a whole, or the output can't be written.
    """
    try:
        with _terminable():
            scanned = _scan(request)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except _OutputClosed:
        _discard_stdout()
        return EXIT_MATCHES
    return scanned


def _scan(request: Request) -> int:
    with output(request) as (stream, terminal):
        check_format(request.form, terminal=terminal, named=request.output is not None)
        with _start(request) as scan:
            notes = scan.stats.notes
            _say_notes(request, notes)
            if request.text is not None and request.form == "text":
                writer = request.text(stream, terminal)
            else:
                writer = open_writer(request.form, stream, schema=scan.schema, terminal=terminal)
            with _progress(request, scan) as progress:
                for batch in scan:
                    with progress.hidden() if progress and terminal else nullcontext(), _closing_noticed():
                        writer.write(batch)
            stats, errors, skipped = scan.stats, scan.errors, scan.skipped
        with _closing_noticed():
            writer.close()
    _say_notes(request, [note for note in stats.notes if note not in notes])
    _report(request, stats, errors, skipped)
    if stats.errors or errors.num_rows:
        return EXIT_ERRORS
    return EXIT_MATCHES if stats.matches or not request.searching else EXIT_NO_MATCHES


def _start(request: Request) -> RunningScan:
    package: Any = uring_actors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # they are the notes that are said here
        if request.job is not None:
            attached: RunningScan = package.attach(request.job, **request.options)
            return attached
        running: RunningScan = package.scan(
            list(request.paths),
            patterns=list(request.patterns) or None,
            rules=request.rules,
            operation=request.operation,
            **request.options,
            **request.selection,
        )
    return running


@contextmanager
def output(request: Request) -> Iterator[tuple[BinaryIO, bool]]:
    """Where rows go, and whether that is a terminal."""
    if request.output is not None:
        with atomic_file(request.output) as stream:
            yield stream, stream.isatty()
    elif isinstance(sys.stdout.buffer, io.RawIOBase):  # python -u: it may write less than it was given
        with flushed_stream(open(sys.stdout.fileno(), "wb", closefd=False)) as stream:
            yield stream, stream.isatty()
    else:
        yield sys.stdout.buffer, sys.stdout.buffer.isatty()


def _progress(request: Request, scan: RunningScan) -> AbstractContextManager[Progress | None]:
    if not request.progress:
        return nullcontext()
    return Progress(lambda: scan.stats, sys.stderr, terminal=sys.stderr.isatty(), searching=request.searching)


def _report(request: Request, stats: ScanStats, errors: pa.Table, skipped: pa.Table) -> None:
    for error in errors.to_pylist():
        say(_error_in_words(error))
    if request.quiet:
        return
    _report_skipped(skipped)
    say(summary(stats, searching=request.searching))


def _say_notes(request: Request, notes: Iterable[str]) -> None:
    if not request.quiet:
        for note in notes:
            say(f"note: {note}")


def _error_in_words(error: dict[str, Any]) -> str:
    where = _shown(error["path"])
    if error["offset"] is not None:
        where += f" at byte {error['offset']}"
    why = "" if error["error"] is None else f": {error['error']}"
    if error["errno"] is not None:
        why += f" ({os.strerror(error['errno'])})"
    places = [f"{name} {error[name]}" for name in ("device", "node") if error[name]]
    return f"{where}: {error['message']}{why}" + (f" [{', '.join(places)}]" if places else "")


def _report_skipped(skipped: pa.Table) -> None:
    for row in skipped.slice(0, SKIPPED_SHOWN).to_pylist():
        say(f"skipped {_shown(row['path'])}: {row['reason']}")
    rest = Counter(skipped.slice(SKIPPED_SHOWN).column("reason").to_pylist())
    for reason, count in rest.most_common(SKIPPED_SHOWN):
        say(f"skipped {count} more: {reason}")


def _shown(path: bytes) -> str:
    return printable(path).decode()


def say(text: str) -> None:
    """A line on stderr."""
    try:
        sys.stderr.write(f"uring-actors: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # closed: there is nobody to tell
        pass


@contextmanager
def _closing_noticed() -> Iterator[None]:
    """Only around writing: a broken pipe within the pipeline is an error of its own."""
    try:
        yield
    except BrokenPipeError as error:
        raise _OutputClosed from error


def _discard_stdout() -> None:
    """What is still buffered goes nowhere, so that Python's last flush doesn't complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # stdout is no file, as in tests
        pass


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the scan as an exception does: the pipeline is closed, a partial output removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)

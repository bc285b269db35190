"""A process of its own that runs scans on demand: ours, as a peer's command is theirs.

One process for all rounds of a measurement, so that a round costs no imports and rounds can alternate with a peer's;
it sleeps meanwhile. A small scan comes first and loads the compiled loops.

    python -m benchmarks.scanner      one JSON request a line on stdin, one JSON answer a line on stdout
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.model import Missing, Reading

_ROOT = Path(__file__).parent.parent


class Scanner:
    """A context manager over the process. ``pid`` is for those who look at its memory."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scanner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        self.pid = self._process.pid

    def begin(self, paths: list[Path], **options: Any) -> None:
        """Start a scan; ``end`` waits for it. options: ``uring_actors.scan``'s; ``literals``, a list of
        text, in place of patterns; ``jsonl``, a path where the rows are written."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"paths": [str(path) for path in paths], **options}) + "\n")
        self._process.stdin.flush()

    def end(self) -> Reading:
        """The reading of the scan that was begun. Raises Missing where it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Missing(f"the scanning process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Missing(answer["error"])
        return Reading(**answer)

    def scan(self, *paths: Path, **options: Any) -> Reading:
        self.begin(list(paths), **options)
        return self.end()

    def __enter__(self) -> Scanner:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"warm\n" * 1000)
            file.flush()
            self.scan(Path(file.name), operation="nop", engine="threads")
            self.scan(Path(file.name), patterns=["warm", "w[ar]+m", "wa.*"], engine="threads")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def measure(paths: list[str], options: dict[str, Any]) -> Reading:
    """One scan in this process. Its first byte can be read when ``scan`` has returned; its end is when all rows
    are here, which ``stats.seconds`` says (it counts from the beginning of ``scan``)."""
    from uring_actors.ops.match.pattern import Literal
    from uring_actors.results.writers import open_writer
    from uring_actors.scanning import scan

    if "literals" in options:
        options["patterns"] = [Literal(text) for text in options.pop("literals")]
    output = options.pop("jsonl", None)
    with open(output, "wb") if output else contextlib.nullcontext() as stream:
        began = time.monotonic()
        running = scan(paths, **options)
        startup, cpu = time.monotonic() - began, _cpu()
        writer = open_writer("jsonl", stream, schema=running.schema) if stream else None
        rows = 0
        for batch in running:
            rows += batch.num_rows
            if writer is not None:
                writer.write(batch)
    stats = running.stats
    if stats.errors:
        raise RuntimeError(f"{stats.errors} errors: {running.errors.slice(0, 3).to_pylist()}")
    return Reading(stats.bytes, stats.seconds - startup, _cpu() - cpu, startup, rows)


def _serve() -> None:
    # Only answers may go to stdout; what a library prints goes to stderr.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        paths = request.pop("paths")
        try:
            reading = measure(paths, request)
            answer: dict[str, Any] = {name: getattr(reading, name) for name in Reading.__dataclass_fields__}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()

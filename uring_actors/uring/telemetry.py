"""What a reader counted: of a stream (``AsyncUringStream.telemetry``), a lane (``LaneStats.telemetry``), an ingest.

Reads here are what a caller asked for; what a short read or a retry costs on top is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from uring_actors.errors import OptionError, PipelineError

REGISTERED: Final = "registered"
IOVEC: Final = "iovec"
PASSTHROUGH: Final = "passthrough"
PATHS: Final = (REGISTERED, IOVEC, "plain", PASSTHROUGH)


@dataclass(frozen=True, slots=True)
class IngestTelemetry:
    """Counters so far. The sum of two is that of two readers."""

    submitted_reads: int = 0
    submitted_bytes: int = 0
    completed_reads: int = 0
    """Reads that succeeded."""
    completed_bytes: int = 0
    """Bytes that they delivered."""
    past_end_bytes: int = 0
    """Bytes that they asked for behind the end of a file."""
    registered_reads: int = 0
    """Submissions by path: into a registered buffer …"""
    iovec_reads: int = 0
    """… through an iovec …"""
    plain_reads: int = 0
    """… READ or pread with an address, for comparison and where io_uring is forbidden …"""
    passthrough_reads: int = 0
    """… as an NVMe command."""
    continuations: int = 0
    """Short reads that were read on."""
    retries: int = 0
    failed: int = 0
    cpu_bounce_bytes: int = 0
    """Bytes that a CPU copied on the way: must stay 0."""

    def __add__(self, other: IngestTelemetry) -> IngestTelemetry:
        return IngestTelemetry(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(IngestTelemetry)))

    def problems(self, path: str | None = None) -> list[str]:
        """Of a finished run: what shows that it was not whole, not zero-copy, or not all on ``path`` (of PATHS;
        None: whichever, but one)."""
        if path is not None and path not in PATHS:
            raise OptionError(f"a path is one of {', '.join(PATHS)}, not {path!r}")
        found = []
        by_path = {name: getattr(self, f"{name}_reads") for name in PATHS}
        used = {name: count for name, count in by_path.items() if count}
        missing = self.submitted_reads - self.completed_reads - self.failed
        if missing:
            found.append(f"{missing} reads are still in flight")
        if self.failed:
            found.append(f"{self.failed} reads failed")
        lost = self.submitted_bytes - self.completed_bytes - self.past_end_bytes
        if lost:
            found.append(f"{lost} bytes of {self.submitted_bytes} never came")
        if self.cpu_bounce_bytes:
            found.append(f"{self.cpu_bounce_bytes} bytes were copied by the CPU")
        if sum(used.values()) != self.submitted_reads:
            found.append("the reads by path don't add up")
        if len(used) > 1 or (path is not None and used.keys() - {path}):
            wanted = "one path" if path is None else f"the {path} path"
            found.append(f"not all on {wanted}: " + ", ".join(f"{n} {count}" for n, count in used.items()))
        return found

    def validate_completed_zero_copy(self, path: str | None = None) -> None:
        """Raise PipelineError where a finished run was not whole, not without copies, or not all on ``path``:
        registered, iovec, plain or passthrough."""
        problems = self.problems(path)
        if problems:
            raise PipelineError(f"not a whole zero-copy run: {'; '.join(problems)}")

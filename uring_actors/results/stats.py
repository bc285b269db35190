"""What a scan has done so far: a value that can be read, sent and printed while the scan goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScanStats:
    """A snapshot. ``bytes`` counts bytes of files scanned, halos and repeated reads not included."""

    files: int = 0
    """Files that are done with, empty ones and those that could not be read included."""
    bytes: int = 0
    matches: int = 0
    errors: int = 0
    skipped: int = 0
    seconds: float = 0.0
    """Since the scan was started."""
    first_result_seconds: float | None = None
    """From the start to the first row; None while there is none."""
    engine: str = "ray"
    """``"ray"`` or ``"threads"``."""
    backend: str = "cpu"
    """Where the megakernel runs."""
    io_engine: str = "uring"
    """``"uring"``, ``"pread"`` or ``"liburing"``: what was chosen, not what was asked for."""
    io: str = "direct"
    """``"direct"`` or ``"buffered"``."""
    sqpoll: bool = False
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Warnings for the user, such as why ``pread`` was taken."""

    @property
    def gb_per_s(self) -> float:
        """10⁹ bytes a second, over the whole time; 0 before any time has passed."""
        return self.bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0

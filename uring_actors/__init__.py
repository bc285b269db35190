"""Scan files where they land: io_uring into GPU-mapped shared memory, a resident kernel, Ray actors."""

from uring_actors.errors import UringActorsError
from uring_actors.ops.match.pattern import Literal, Regex
from uring_actors.scan import Scan, scan

__all__ = ["Literal", "Regex", "Scan", "UringActorsError", "scan"]

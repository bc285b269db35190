"""Which paths every node sees alike, and which each has for itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from uring_actors.errors import OptionError
from uring_actors.plan import AnyPath


@dataclass(frozen=True, slots=True)
class HostLocal:
    """A path that each node has for itself, such as ``/var/log``: every node walks and scans its own. Rows say which
    node they are of. Other paths are *shared*: all nodes see the same files there, and split them."""

    path: AnyPath


def split(paths: AnyPath | HostLocal | Iterable[AnyPath | HostLocal]) -> tuple[list[bytes], list[bytes]]:
    """The shared paths and the host-local ones, absolute: other processes have other working directories.

    Raises:
        OptionError: there is none, or a host-local path lies in a shared one or the other way round.
    """
    given = [paths] if isinstance(paths, (str, bytes, os.PathLike, HostLocal)) else list(paths)
    shared = [_absolute(path) for path in given if not isinstance(path, HostLocal)]
    local = [_absolute(path.path) for path in given if isinstance(path, HostLocal)]
    if not given:
        raise OptionError("no path was given to scan", fix="Name at least one file or directory.")
    for one in local:
        for other in shared:
            if one == other or _below(one, other) or _below(other, one):
                raise OptionError(
                    "this path is host-local, and overlaps with one that is shared",
                    path=one,
                    fix="Let each file be reached by one of the two.",
                )
    return shared, local


def _absolute(path: AnyPath) -> bytes:
    return os.path.abspath(os.fsencode(path))


def _below(path: bytes, tree: bytes) -> bool:
    return path.startswith(tree.rstrip(b"/") + b"/")

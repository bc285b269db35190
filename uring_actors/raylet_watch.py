"""A process that ends Ray's agents when their raylet has ended.

A killed driver takes the Ray that it started with it (PR_SET_PDEATHSIG), but for the raylet's agents: they try for a
minute to tell the dead GCS about it. A worker can't see to it: it ends with the raylet, at the same moment.

    python uring_actors/raylet_watch.py RAYLET WORKER AGENT…      pidfds
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_LAST_SECONDS = 5.0
"""How long a worker that ends may end before its raylet has."""


def end_agents_with_raylet() -> subprocess.Popen[bytes] | None:
    """In a worker: begin to watch; for as long as the worker lives. None without pidfds or /proc."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as files:
        watched: list[int] = []
        for pid in (os.getppid(), os.getpid(), *_agents(os.getppid())):
            watched.append(os.pidfd_open(pid))
            files.callback(os.close, watched[-1])
        command = [sys.executable, "-I", "-S", __file__, *map(str, watched)]
        return subprocess.Popen(command, pass_fds=watched, stdin=subprocess.DEVNULL, start_new_session=True)
    return None


def _agents(raylet: int) -> list[int]:
    """The raylet's agents. Others of its threads and children may end meanwhile."""
    found = []
    for path in Path(f"/proc/{raylet}/task").glob("*/children"):
        for child in _text(path).split():
            if b"agent" in _text(Path(f"/proc/{int(child)}/cmdline")).lower():
                found.append(int(child))
    return found


def _text(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return path.read_bytes()
    return b""


def _watch(raylet: int, worker: int, *agents: int) -> None:
    select.select([raylet, worker], [], [])
    if select.select([raylet], [], [], _LAST_SECONDS)[0]:
        for agent in agents:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(agent, signal.SIGKILL)


if __name__ == "__main__":
    _watch(*map(int, sys.argv[1:]))

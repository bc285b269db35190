"""Processes and shared memory, as /proc has them: what a death must not leave behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ACTORS = ("HostActor", "PublisherActor", "ReaderActor")
Arena = tuple[int, int]
"""A memfd's device and inode."""


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time (in ticks); None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def family(root: int) -> dict[int, int]:
    """Living processes that descend from ``root``: pid → start time, which tells a pid from its next user."""
    found = {pid: stat for pid in _pids() if (stat := _stat(pid)) and stat[0] != "Z"}
    inside = {root}
    while more := {pid for pid, (_, parent, _) in found.items() if parent in inside} - inside:
        inside |= more
    return {pid: found[pid][2] for pid in inside - {root} if pid in found}


def living(processes: dict[int, int]) -> dict[int, str]:
    """Which of them there still are."""
    now = {pid: _stat(pid) for pid in processes}
    return {
        pid: title(pid) for pid, stat in now.items() if stat and stat[0] not in "ZX" and stat[2] == processes[pid]
    }


def actors(root: int | None = None) -> dict[str, dict[int, int]]:
    """Our actors' processes below ``root`` (this process), by class."""
    found: dict[str, dict[int, int]] = {name: {} for name in ACTORS}
    for pid, began in family(os.getpid() if root is None else root).items():
        for name in ACTORS:
            if title(pid).startswith(f"ray::{name}"):
                found[name][pid] = began
    return found


def arenas(pids: Iterable[int]) -> set[Arena]:
    """The arenas that these processes have open."""
    found = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                if os.readlink(fd).startswith("/memfd:uring_actors"):
                    status = os.stat(fd)
                    found.add((status.st_dev, status.st_ino))
            except OSError:
                continue
    return found


def holders(wanted: set[Arena]) -> list[int]:
    """Who has one of these arenas open."""
    return [pid for pid in _pids() if arenas([pid]) & wanted]


def resident(pid: int, kind: str = "RssAnon") -> int:
    """Bytes of a process that are its own: neither of files nor shared."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{kind}:")[1].split()[0]) << 10


def shared_memory() -> int:
    """Bytes of shared memory (arenas, Ray's object store) that this process and those below it have mapped in,
    once for each of them."""
    total = 0
    for pid in [os.getpid(), *family(os.getpid())]:
        with contextlib.suppress(OSError, IndexError):  # it has ended
            total += resident(pid, "RssShmem")
    return total


def when_still(value: Callable[[], int], seconds: float = 30.0) -> int:
    """The value once it has not changed for a second; fails after ``seconds``."""
    began = changed = time.monotonic()
    last = value()
    while time.monotonic() - changed < 1:
        assert time.monotonic() - began < seconds, f"still changing after {seconds} s"
        time.sleep(0.1)
        if (now := value()) != last:
            last, changed = now, time.monotonic()
    return last


def wait_until_gone(processes: dict[int, int], seconds: float = 10.0) -> None:
    """Fails after ``seconds``, and says which are left."""
    deadline = time.monotonic() + seconds
    while left := living(processes):
        assert time.monotonic() < deadline, f"after {seconds} s there still are {list(left.values())}"
        time.sleep(0.05)


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> float:
    """Seconds until it was; fails after ``seconds``."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began

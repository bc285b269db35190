"""What a host needs before scans run at full speed on it, as files to be written: ``uring-actors host-setup``.

Each step is a set of configuration files (for the next boot or login) and of kernel settings (for now). Checking
compares both with what is there; applying writes what differs and nothing else, so that it can be repeated. All paths
lie below ``root``: a test, or an image that is being built, has its own.

Standard library only, as ``doctor.py``, which looks at what the running process may do; this is about the host.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uring_actors.errors import OptionError

_NAME = "90-uring-actors"
_HEADER = "# Written by uring-actors host-setup.\n"
_HUGE = "/sys/kernel/mm/transparent_hugepage"
_LARGE_PAGES = ((f"{_HUGE}/enabled", "madvise"), (f"{_HUGE}/shmem_enabled", "advise"))
_IO_URING = "/proc/sys/kernel/io_uring_disabled"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """One need of a scan. ``files``: path and content. ``live``: a kernel setting's path and value; one that the
    kernel does not have is left out. ``then``: commands that make a running system read the files."""

    name: str
    why: str
    files: tuple[tuple[str, str], ...] = ()
    live: tuple[tuple[str, str], ...] = ()
    then: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is not yet as it should be: a file's content or a kernel setting's value."""

    step: Step
    path: str
    value: str
    live: bool
    now: str | None
    """What is there; None where nothing is."""


def steps(*, user: str = "*", group: str = "disk", kubernetes: bool = False) -> list[Step]:
    """What there is to set up. user: whose limit of locked memory is lifted (``*``: everybody's). group: who may open
    NVMe generic devices. kubernetes: the seccomp profile for pods as well.

    Raises OptionError for a user or group that can't be one.
    """
    for what, name in (("user", user), ("group", group)):
        if not _WORD.match(name) and (what, name) != ("user", "*"):
            raise OptionError(f"{name!r} is not the name of a {what}")
    found = [
        Step(
            "locked memory",
            "io_uring registers the data slots as locked memory",
            files=(
                (
                    f"/etc/security/limits.d/{_NAME}.conf",
                    f"{_HEADER}{user} soft memlock unlimited\n{user} hard memlock unlimited\n",
                ),
                (
                    f"/etc/systemd/system.conf.d/{_NAME}.conf",
                    f"{_HEADER}[Manager]\nDefaultLimitMEMLOCK=infinity\n",
                ),
            ),
            then=(("systemctl", "daemon-reexec"),),
        ),
        Step(
            "io_uring",
            "every user must be allowed to use it",
            # The minus: a kernel without the setting is no error.
            files=((f"/etc/sysctl.d/{_NAME}.conf", f"{_HEADER}-kernel.io_uring_disabled = 0\n"),),
            live=((_IO_URING, "0"),),
        ),
        Step(
            "large pages",
            "arenas and buffers ask for pages of 2 MiB, and get them only where that is allowed",
            files=(
                (
                    f"/etc/tmpfiles.d/{_NAME}.conf",
                    _HEADER + "".join(f"w {path} - - - - {value}\n" for path, value in _LARGE_PAGES),
                ),
            ),
            live=_LARGE_PAGES,
        ),
        Step(
            "NVMe generic devices",
            f"the group {group} may send passthrough commands to /dev/ng*",
            files=(
                (
                    f"/etc/udev/rules.d/{_NAME}.rules",
                    f'{_HEADER}SUBSYSTEM=="nvme-generic", KERNEL=="ng[0-9]*n[0-9]*", GROUP="{group}", MODE="0660"\n',
                ),
            ),
            then=(
                ("udevadm", "control", "--reload"),
                ("udevadm", "trigger", "--subsystem-match=nvme-generic"),
            ),
        ),
    ]
    if kubernetes:
        profile = (Path(__file__).parent / "seccomp.json").read_text()
        found.append(
            Step(
                "seccomp profile",
                "pods may use io_uring with it; the runtime's default forbids it",
                files=(("/var/lib/kubelet/seccomp/uring-actors.json", profile),),
            )
        )
    return found


def changes(wanted: Sequence[Step], root: Path) -> Iterator[Change]:
    """What has to change below ``root``, in order. Raises OSError where something there can't be read."""
    for step in wanted:
        for path, content in step.files:
            now = _read(_below(root, path))
            if now != content:
                yield Change(step, path, content, False, now)
        for path, value in step.live:
            now = _read(_below(root, path))
            if now is not None and not _satisfied(now, value):
                yield Change(step, path, value, True, now.strip())


def apply(change: Change, root: Path) -> None:
    """Make one change. Raises OSError."""
    path = _below(root, change.path)
    if change.live:
        path.write_text(change.value + "\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(change.value)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def announce(made: Sequence[Change], root: Path) -> Iterator[tuple[str, str]]:
    """Have the running system read the files that were written: each command, and what went wrong ("" for nothing).
    Below another root than / nobody runs, and nothing is done."""
    if root != Path("/"):
        return
    for command in dict.fromkeys(command for change in made if not change.live for command in change.step.then):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            problem = done.stderr.strip() or f"status {done.returncode}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        yield " ".join(command), problem


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _satisfied(now: str, value: str) -> bool:
    """Whether a kernel setting is as wanted: the chosen word of several (always is more than was asked), or equal."""
    chosen = re.search(r"\[(\w+)\]", now)
    return now.strip() == value if chosen is None else chosen[1] in (value, "always")

"""What this machine allows and what a scan would choose on it, each with the fix where something is missing.

Standard library only, and nothing of the pipeline: it must run where the rest can't.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
from dataclasses import dataclass
from importlib import metadata

from uring_actors.config import ScanOptions, format_size, resolve_sqpoll
from uring_actors.errors import errno_name
from uring_actors.ops.match import libhs

_IO_URING_SETUP = 425
"""The system call's number, on every architecture (asm-generic/unistd.h)."""
_PARAMS_BYTES = 120
"""sizeof(struct io_uring_params), linux/io_uring.h."""

_PACKAGES = ("google-re2", "ray", "pyarrow", "numba", "numpy")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``fix`` says what to do about it, if anything."""

    name: str
    value: str
    fix: str = ""


def examine(lanes: int = 1) -> list[Finding]:
    """Everything there is to say about this machine, for a scan with ``lanes`` lanes in all."""
    return [
        Finding("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        Finding("kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        _cores(),
        _io_uring(),
        _io_uring_disabled(),
        _locked_memory(lanes),
        _sqpoll(lanes),
        _libhs(),
        *map(_package, _PACKAGES),
        _gpu(),
    ]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def probe_io_uring() -> int:
    """Sets up a small ring and closes it: 0, or the errno that the kernel gave."""
    params = (ctypes.c_char * _PARAMS_BYTES)()
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(ctypes.c_long(_IO_URING_SETUP), ctypes.c_uint(4), params)
    if descriptor < 0:
        return ctypes.get_errno()
    os.close(descriptor)
    return 0


def _cores() -> Finding:
    usable, online = usable_cores(), os.cpu_count() or 0
    value = f"{usable} usable of {online}"
    quota = _cgroup_cores()
    return Finding("cores", value if quota is None else f"{value}, limited to the time of {quota:g}")


def _cgroup_cores() -> float | None:
    """The container's CPU limit, in cores (cgroup v2, cpu.max); None without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _io_uring() -> Finding:
    number = probe_io_uring()
    if number == 0:
        return Finding("io_uring", "permitted")
    fixes = {
        errno.EPERM: "Set sysctl kernel.io_uring_disabled to 0; in a container allow io_uring_setup, "
        "io_uring_enter and io_uring_register in the seccomp profile.",
        errno.ENOSYS: "The kernel is older than 5.1, or built without it, or a seccomp profile hides it: "
        "allow io_uring_setup, io_uring_enter and io_uring_register.",
        errno.ENOMEM: "Raise RLIMIT_MEMLOCK (ulimit -l).",
    }
    value = f"refused ({errno_name(number)}: {os.strerror(number)}); scans use pread"
    return Finding("io_uring", value, fixes.get(number, ""))


def _io_uring_disabled() -> Finding:
    name = "kernel.io_uring_disabled"
    try:
        with open("/proc/sys/kernel/io_uring_disabled") as file:
            value = file.read().strip()
    except OSError:
        return Finding(name, "not there (kernels before 6.6 have no such switch)")
    meaning = {
        "0": "for everyone",
        "1": "for the group kernel.io_uring_group and for CAP_SYS_ADMIN only",
        "2": "for nobody",
    }
    return Finding(name, f"{value}: io_uring is {meaning.get(value, 'as the kernel says')}")


def _locked_memory(lanes: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    options = ScanOptions()
    needed = lanes * options.slots * options.slot_bytes
    value = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= needed or _may_lock_memory():
        return Finding("RLIMIT_MEMLOCK", value)
    return Finding(
        "RLIMIT_MEMLOCK",
        value,
        f"A scan registers {format_size(needed)}: raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in a "
        "service, memlock in /etc/security/limits.conf), or make --slots or --slot-size smaller.",
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else format_size(value)


def _may_lock_memory() -> bool:
    """Whether this process has CAP_IPC_LOCK (bit 14), which io_uring charges no limit to."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return bool(int(fields["CapEff"], 16) >> 14 & 1)
    except (OSError, KeyError, ValueError):
        return False


def _sqpoll(lanes: int) -> Finding:
    cores = usable_cores()
    chosen = "on" if resolve_sqpoll(cores, lanes) else "off"
    noun = "lane wants" if lanes == 1 else "lanes want"
    return Finding("--sqpoll auto", f"{chosen}: {cores} cores; {lanes} {noun} {2 * lanes + 4} for it")


def _gpu() -> Finding:
    """Whether the CUDA backend may work; it is not tried, which takes seconds."""
    if not os.path.exists("/dev/nvidiactl"):
        return Finding("gpu", "no NVIDIA driver; scans run on the CPU")
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            return Finding("gpu", f"NVIDIA driver, {name} {metadata.version(name)}; for --operation touch and nop")
        except metadata.PackageNotFoundError:
            continue
    fix = "Install 'uring-actors[cuda13]' or, with a driver for CUDA 12, 'uring-actors[cuda12]'."
    return Finding("gpu", "NVIDIA driver, but no CuPy; scans run on the CPU", fix)


def _libhs() -> Finding:
    library = libhs.find()
    if library is None:
        fix = "Install libhyperscan5 (Debian), libvectorscan5, or the Python package vectorgrep (x86-64)."
        return Finding("libhs", "not installed: every pattern is searched by RE2, correctly but slowly", fix)
    return Finding("libhs", f"{library.version} ({library.path})")


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed")

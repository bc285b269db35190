"""The peers: fio, ripgrep and Hyperscan, each as one measured command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.model import Missing, Reading

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended well: what it printed, wall seconds, CPU seconds with its children's."""

    output: str
    seconds: float
    cpu: float


def run(command: list[str], *, good: tuple[int, ...] = (0,), out: BinaryIO | None = None) -> Ran:
    """Run a command; what it prints goes to ``out`` where that is given. Raises Missing where the tool is not
    installed or ends with a status not in ``good``."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed")
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out or printed, stderr=err, cwd=_ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        err.seek(0)
        if process.returncode not in good:
            said = err.read().decode(errors="replace").strip()[-500:]
            raise Missing(f"{command[0]} ended with status {process.returncode}: {said}")
        return Ran(printed.read().decode(errors="replace"), seconds, usage.ru_utime + usage.ru_stime)


def shown(command: list[str], **names: Path) -> str:
    """The command as one would type it, with this machine's paths replaced by names."""
    line = shlex.join(command)
    for name, path in names.items():
        line = line.replace(str(path), name.upper())
    return line.replace(sys.executable, "python")


def fio_command(path: Path, size: int, block: int, depth: int, *, direct: bool) -> list[str]:
    """Sequential reads of one file with io_uring, registered buffers and files."""
    return [
        "fio",
        "--name=read",
        f"--filename={path}",
        "--rw=read",
        f"--bs={block}",
        f"--size={size}",
        "--ioengine=io_uring",
        f"--iodepth={depth}",
        "--fixedbufs",
        "--registerfiles",
        "--invalidate=0",
        f"--direct={int(direct)}",
        "--output-format=json",
    ]


def fio(command: list[str]) -> Reading:
    """fio's own seconds, from its first read to its last; its set-up is the start-up."""
    ran = run(command)
    job = json.loads(ran.output[ran.output.index("{") :])["jobs"][0]
    if job["error"]:
        raise Missing(f"fio failed with error {job['error']}")
    seconds = max(0.5, job["read"]["runtime"]) / 1e3  # fio counts whole milliseconds
    # Of fio's CPU time only the reading job's counts: the rest is start-up and waiting for it.
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    return Reading(job["read"]["io_bytes"], seconds, cpu, max(0.0, ran.seconds - seconds))


def rg_command(path: Path, patterns: list[str], *, mmap: bool) -> list[str]:
    """Every match of all patterns, counted: that finds all of them, and prints and locates none. What rg leaves
    out (lines, columns, which pattern, output) is to its advantage."""
    flags = ["--mmap" if mmap else "--no-mmap", "--text", "--count-matches", "--no-config", "--no-ignore"]
    return ["rg", *flags, *(word for pattern in patterns for word in ("-e", pattern)), str(path)]


def rg_json_command(path: Path, pattern: str, *, mmap: bool) -> list[str]:
    """Every match as JSON: path, line, its number and offset, and where in it the matches are."""
    flags = ["--mmap" if mmap else "--no-mmap", "--text", "--json", "--no-config", "--no-ignore"]
    return ["rg", *flags, "-e", pattern, str(path)]


def rg(command: list[str], size: int) -> Reading:
    ran = run(command, good=(0, 1))
    rows = sum(int(line.rpartition(":")[2]) for line in ran.output.splitlines())  # of a tree: path:count
    return Reading(size, ran.seconds, ran.cpu, rows=rows)


def hyperscan_command(path: Path, patterns: Path) -> list[str]:
    """The original patterns over the same bytes, in memory: those of a list, or of a rule file."""
    return [sys.executable, "-m", "benchmarks.hyperscan_peer", str(path), str(patterns)]


def hyperscan(command: list[str]) -> Reading:
    answer = json.loads(run(command).output)
    return Reading(**answer)

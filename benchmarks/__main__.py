"""``python -m benchmarks``: ratios to the peers, each with its bar. See README.md beside this file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from benchmarks import checksum, data, direct, lines, literals, memory, nodes, nop, patterns, rules, small, start
from benchmarks.model import GIB, Missing, Report, Setting
from benchmarks.table import table
from uring_actors.config import parse_size

MEASUREMENTS: dict[str, Callable[[Setting], None]] = {
    "nop": nop.measure,
    "patterns": patterns.measure,
    "checksum": checksum.measure,
    "lines": lines.measure,
    "literals": literals.measure,
    "rules": rules.measure,
    "small": small.measure,
    "direct": direct.measure,
    "memory": memory.measure,
    "start": start.measure,
    "nodes": nodes.measure,
}
_LEAST = GIB
"""Bytes; less says little, for start-up and the processor's caches show."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where everything measured passed, 1 where something is short."""
    options = _parse(arguments)
    report = Report()
    directory = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=options.directory))
    text = directory / "text"
    try:
        print(f"making {options.size >> 20} MiB of text, and reading it into the page cache …", file=sys.stderr)
        data.make_text(text, options.size)
        os.sync()  # O_DIRECT would wait for what is not written yet
        data.warm(text)
        setting = Setting(directory, text, options.rounds, report)
        for name in options.names:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                MEASUREMENTS[name](setting)
            except Missing as reason:
                report.left_out.append(f"{name}: {reason}")
        share = data.cached_share(text)
    finally:
        if options.keep:
            print(f"kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory)
    machine = _machine(options.size, share)
    print(table(report, machine))
    if options.json:
        record = {"machine": machine, **asdict(report)}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(verdict.passed for verdict in report.verdicts) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7, help="readings of each side, in turns (%(default)s)")
    parser.add_argument("--size", type=parse_size, default=_LEAST, help="of the text: 64M, 1G (1G)")
    parser.add_argument("--directory", type=Path, help="where data is made (a temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave the data there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a record of everything")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MEASUREMENTS)}")
    if options.rounds < 1:
        parser.error("at least one round")
    options.names = options.names or list(MEASUREMENTS)
    return options


def _machine(size: int, cached: float) -> dict[str, str]:
    """What the figures depend on; nothing that names the machine."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    names = ("numba", "numpy", "hyperscan", "google-re2", "pyarrow", "ray")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{len(os.sched_getaffinity(0))} cores, {cpu.partition(':')[2].strip() or platform.machine()}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in names),
        "peers": ", ".join(_version(tool) for tool in ("fio", "rg")),
        "data": f"{size / GIB:.3g} GiB of text, {cached:.1%} of it in the page cache at the end",
        "load": f"{os.getloadavg()[0]:.1f} runnable at the end, averaged over a minute, these measurements included",
    }


def _version(tool: str) -> str:
    try:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"no {tool}"
    return said.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())

"""NVMe passthrough on emulated drives, under the kernel's own driver: once for each kernel, one test for each case.

The cases are in ``nvme_qemu/guest.py`` and run in a QEMU guest; here one boot for each kernel is made, of all at the
same time, and what the guests report is told. Slow because the guest's processor is emulated.
``tests/nvme_qemu/prepare`` fetches what is needed; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nvme_qemu import drives, rig
from tests.nvme_qemu.guest import CASES

pytestmark = [
    pytest.mark.slow(reason="boots a kernel on an emulated processor: about a minute for each"),
    pytest.mark.timeout(1000),
]
BOOT_SECONDS = 900  # a busy machine takes minutes for what an idle one does in one
# The guest's Python compiles nothing: the host does, for any x86-64, into a cache that the guest sees.
PLAIN = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


Report = tuple[rig.Run, dict[str, str | None]]
"""How a boot ended, and what each case said."""


@functools.cache
def reports() -> dict[str, Report]:
    """By kernel. A guest keeps one processor busy, so all of them boot at once."""
    with tempfile.TemporaryDirectory(prefix="nvme-qemu-") as name, ThreadPoolExecutor() as pool:
        warm = [sys.executable, "-c", "from tests.nvme_qemu.guest import warm; warm()"]
        cache = Path(name) / "cache"
        environment = {**os.environ, **PLAIN, "XDG_CACHE_HOME": str(cache)}
        subprocess.run(warm, cwd=rig.REPOSITORY, env=environment, check=False)  # where it fails, the guest compiles
        booted = {
            series: pool.submit(boot, series, Path(name) / series, cache)
            for series in rig.SERIES
            if rig.why_not(series) is None
        }
        return {series: report.result() for series, report in booted.items()}


def boot(series: str, directory: Path, cache: Path) -> Report:
    out = directory / "out"
    out.mkdir(parents=True)
    if cache.exists():
        shutil.copytree(cache, out / "cache")
    run = rig.boot(
        series,
        [sys.executable, "-m", "tests.nvme_qemu.guest", "/run/out/results.json"],
        out,
        environment={**PLAIN, "XDG_CACHE_HOME": "/run/out/cache"},
        drives=drives.arguments(directory),
        seconds=BOOT_SECONDS,
    )
    results = out / "results.json"
    return run, json.loads(results.read_text()) if results.exists() else {}


@pytest.fixture(params=rig.SERIES)
def series(request: pytest.FixtureRequest) -> str:
    reason = rig.why_not(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


def test_the_guest_ran_to_its_end(series: str) -> None:
    run, found = reports()[series]
    print(run.console)
    assert run.status == (0 if set(found.values()) == {None} else 1), run.console[-3000:]
    assert found.keys() == CASES.keys(), run.console[-3000:]


@pytest.mark.parametrize("name", CASES)
def test_case(series: str, name: str) -> None:
    run, found = reports()[series]
    if name not in found:
        pytest.fail(f"the guest never came to it: {run.console[-3000:]}")
    if found[name] is not None:
        pytest.fail(str(found[name]))

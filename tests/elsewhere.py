"""A scan in a process of its own, where rights were dropped, a limit set or system calls forbidden.

outcome = scan(paths, patterns=[...], nobody=True, engine="threads")
"""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOBODY = 65534
_ROOT = Path(__file__).parent.parent


@dataclass
class Outcome:
    """What came of it. ``raised``: what ``ua.scan`` or the iteration raised."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    stats: Any = None
    raised: BaseException | None = None


def scan(
    paths: Sequence[Path | bytes | str],
    *,
    nobody: bool = False,
    forbid_uring: bool = False,
    memlock: int | None = None,
    at_once: int = 1,
    **options: Any,
) -> Outcome:
    """``ua.scan(paths, **options)`` there, to its end; the last of ``at_once`` that run at the same time."""
    request = {
        "paths": [os.fsencode(path) for path in paths],
        "nobody": nobody,
        "forbid_uring": forbid_uring,
        "memlock": memlock,
        "at_once": at_once,
        "options": options,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.elsewhere"],
        input=pickle.dumps(request),
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
        cwd=_ROOT,
    )
    outcome = pickle.loads(done.stdout)
    assert isinstance(outcome, Outcome)
    return outcome


def _main() -> None:
    from tests import elsewhere, seccomp

    request = pickle.load(sys.stdin.buffer)
    if request["nobody"]:
        _warm_up(request["options"].get("io_engine", "auto"))
    if request["forbid_uring"]:
        seccomp.deny()
    if request["memlock"] is not None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (request["memlock"], request["memlock"]))
    if request["nobody"] and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.stdout.buffer.write(pickle.dumps(_outcome(elsewhere.Outcome(), request)))


def _outcome(outcome: Outcome, request: dict[str, Any]) -> Outcome:
    import uring_actors as ua

    others = [ua.scan(request["paths"], **request["options"]) for _ in range(request["at_once"] - 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with ua.scan(request["paths"], **request["options"]) as running:
                outcome.rows = running.to_table().to_pylist()
            outcome.errors, outcome.skipped = running.errors.to_pylist(), running.skipped.to_pylist()
            outcome.stats = running.stats
        except ua.UringActorsError as error:
            outcome.raised = error
    for other in others:
        other.close()
    outcome.warnings = [(type(one.message).__name__, str(one.message)) for one in caught]
    return outcome


def _warm_up(io_engine: str) -> None:
    """Load the compiled loops while this process may read root's cache: nobody would compile for a minute."""
    from numba.core.dispatcher import Dispatcher

    import uring_actors as ua

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path(folder, "file").write_bytes(b"warm\n")
        for engine in {"pread", io_engine}:
            ua.scan(folder, patterns=["warm"], engine="threads", io_engine=engine).to_table()
    _run_idle_loops()
    for name in [name for name in sys.modules if name.startswith("uring_actors")]:
        for loop in [value for value in vars(sys.modules[name]).values() if isinstance(value, Dispatcher)]:
            for key in loop._cache._cache_file._load_index():
                loop.compile(key[0])


def _run_idle_loops() -> None:
    """Those that a short scan may end without having needed."""
    from uring_actors.uring import work

    memory = work.PrivateMemory(64)
    work.get_ready(memory.address)
    work.never_mind(memory.address)
    work.sleep_unless(memory.address, work.get_ready(memory.address), 1000)
    work.ring_bell(memory.address)


if __name__ == "__main__":
    _main()

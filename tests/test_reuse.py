"""Whether a process may do another job: not with an arena mapped, nor while somebody takes rows from it."""

from __future__ import annotations

import subprocess
import sys
import threading

from uring_actors.reuse import Takers

ARENAS = """
import gc
gc.disable()
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors import reuse
from uring_actors.reuse import nothing_is_left

assert nothing_is_left()
arena = Arena.create(ArenaLayout(1, 4, 65536, 4096))
assert not nothing_is_left()
view = arena.view[:8]
arena.close()
assert not nothing_is_left(), "a view keeps it mapped"
cycle = [view]
cycle.append(cycle)
del view, cycle, arena
assert nothing_is_left(), "cycles are collected"
reuse._KEPT_BYTES = 1 << 20
assert not nothing_is_left(), "no Python is that small"
"""


def test_arenas_and_memory_are_seen() -> None:
    subprocess.run([sys.executable, "-c", ARENAS], check=True, timeout=60)


def test_takers_are_waited_for() -> None:
    takers = Takers()
    assert takers.gone(0)
    leave = threading.Event()
    inside = threading.Event()

    def take() -> None:
        with takers:
            inside.set()
            leave.wait(10)

    taking = threading.Thread(target=take)
    taking.start()
    inside.wait(10)
    assert not takers.gone(0.05)
    threading.Timer(0.05, leave.set).start()
    assert takers.gone(10)
    taking.join()

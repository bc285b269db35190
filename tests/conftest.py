"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests import hot_helpers
from tests.examples import THOROUGH, examples
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena

# The first call of a hot function compiles it, and the machine may be busy: no test is about time.
settings.register_profile("uring_actors", deadline=None, max_examples=examples(100), derandomize=not THOROUGH)
settings.load_profile("uring_actors")

# Ray gives its workers niceness 15: beside other tests on a small machine they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

_START_RAY = (
    "tests/test_exact.py::test_ray",
    "tests/test_many_",
    "tests/test_packed.py::test_ray",
    "tests/test_ray_",
    "tests/test_user_operations.py::test_ray",
)
_LONG = (
    "tests/test_bad_input.py",
    "tests/test_docs.py",
    "tests/test_benchmarks.py",
    "tests/test_exact.py",
    "tests/test_arrays.py",
    "tests/test_channel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes first, then other long files: no process shall come to one when the others are done
    (pytest-xdist)."""
    items.sort(key=lambda item: (not item.nodeid.startswith(_START_RAY), not item.nodeid.startswith(_LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each process takes whole files, for their fixtures are costly; and one takes all that starts Ray, for it must
    not start twice at once on a small machine."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if nodeid.startswith(_START_RAY) else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture
def make_arena() -> Iterator[Callable[..., Arena]]:
    """Arenas that are closed at the end of the test."""
    arenas: list[Arena] = []

    def make(lanes: int = 1, slots: int = 4, slot_bytes: int = 65536, result_bytes: int = 4096) -> Arena:
        arenas.append(Arena.create(ArenaLayout(lanes, slots, slot_bytes, result_bytes)))
        return arenas[-1]

    yield make
    for arena in arenas:
        arena.close()


@pytest.fixture
def need_uring() -> Callable[[], None]:
    """Skips the test, with the reason, where io_uring can't be had."""
    from uring_actors.uring.ring import probe

    def check() -> None:
        error = probe().error
        if error is not None:
            pytest.skip(f"io_uring is not available: {error}")

    return check


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of this test session's own, started by the first scan that needs it."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def shared_arena() -> Iterator[Arena]:
    arena = Arena.create(hot_helpers.LAYOUT)
    yield arena
    arena.close()


@pytest.fixture(scope="session")
def peer(shared_arena: Arena) -> Iterator[hot_helpers.Peer]:
    """A second process that runs loops of ``hot_helpers`` on the arena."""
    other = hot_helpers.Peer(shared_arena)
    yield other
    other.close()


@pytest.fixture
def scratch(shared_arena: Arena) -> Arena:
    """The arena, its data slots zeroed."""
    shared_arena.view[hot_helpers.LAYOUT.data :] = bytes(len(shared_arena.view) - hot_helpers.LAYOUT.data)
    return shared_arena

"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests import hot_helpers
from tests.examples import examples
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena

# The first call of a hot function compiles it, and the machine may be busy: no test is about time.
settings.register_profile("uring_actors", deadline=None, max_examples=examples(100))
settings.load_profile("uring_actors")

_START_RAY = ("test_benchmarks.py", "test_docs.py", "test_ray_engine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes may share the work (pytest-xdist): whole files, for their fixtures are costly; and all that
    starts Ray in one of them, first, for it takes longest and Ray must not start twice at once on a small machine."""

    def starts_ray(item: pytest.Item) -> bool:
        return item.path.name in _START_RAY or "ray_session" in getattr(item, "fixturenames", ())

    items.sort(key=starts_ray, reverse=True)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray(item) else item.path.name))


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

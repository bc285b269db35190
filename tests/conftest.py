from __future__ import annotations

import hot_helpers
import pytest

from uring_actors.arena.memory import Arena


@pytest.fixture(scope="session")
def shared_arena():
    arena = Arena.create(hot_helpers.LAYOUT)
    yield arena
    arena.close()


@pytest.fixture(scope="session")
def peer(shared_arena):
    """A second process that runs loops of ``hot_helpers`` on the arena."""
    other = hot_helpers.Peer(shared_arena)
    yield other
    other.close()


@pytest.fixture
def scratch(shared_arena):
    """The arena, its data slots zeroed."""
    shared_arena.view[hot_helpers.LAYOUT.data :] = bytes(len(shared_arena.view) - hot_helpers.LAYOUT.data)
    return shared_arena

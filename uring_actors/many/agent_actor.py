"""An agent as a Ray actor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from uring_actors.groups import Item
from uring_actors.many.setup import Setup


class AgentActor:
    """One node's agent. ``run`` lasts until the job is finished; its reference is the sentinel. What a pipeline needs
    is loaded here, not where the agent is started from."""

    def __init__(self, setup: Setup, name: str, orchestrator: Any) -> None:
        self._about = setup, name, orchestrator

    def run(self) -> None:
        """Raises why this node can't work, or can't any longer."""
        from uring_actors.many.node_work import NodeWork

        self._work = NodeWork(*self._about)
        self._work.run()

    def batches(self, pipeline: str) -> Iterator[Item]:
        """What a pipeline in this process yields."""
        yield from self._work.batches(pipeline)

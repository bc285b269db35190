"""An agent as a Ray actor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from uring_actors.groups import Item
from uring_actors.many.setup import Setup

if TYPE_CHECKING:
    from uring_actors.many.node_work import NodeWork


class AgentActor:
    """One node's agent, for one job after another. ``run`` lasts until the job is finished or ``stop`` is called; its
    reference is the sentinel. What a pipeline needs is loaded here, not where the agent is started from."""

    def __init__(self) -> None:
        self._work: NodeWork | None = None

    def run(self, setup: Setup, name: str, orchestrator: Any) -> bool:
        """Whether this process may do another job. Raises why this node can't work, or can't any longer."""
        from uring_actors.many.node_work import NodeWork, nothing_is_left

        self._work = NodeWork(setup, name, orchestrator)
        self._work.run()
        over = self._work.is_over()
        self._work = None
        return over and nothing_is_left()

    def stop(self) -> None:
        """Have ``run`` end. Where it has not come to its work, its caller had better kill this process."""
        if (work := self._work) is not None:
            work.stop()

    def batches(self, pipeline: str) -> Iterator[Item]:
        """What a pipeline in this process yields."""
        assert self._work is not None, "a pipeline was told of"
        yield from self._work.batches(pipeline)

"""An agent as a Ray actor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from uring_actors.groups import Item
from uring_actors.many.setup import Setup
from uring_actors.reuse import nothing_is_left

if TYPE_CHECKING:
    from uring_actors.actors import KeptRoles
    from uring_actors.many.node_work import NodeWork


class AgentActor:
    """One node's agent, for one job after another. ``run`` lasts until the job is finished or ``stop`` is called; its
    reference is the sentinel. What a pipeline needs is loaded here, not where the agent is started from."""

    def __init__(self) -> None:
        self._work: NodeWork | None = None
        self._roles: KeptRoles | None = None
        self._over: str | None = None
        """The job that was stopped last."""

    def run(self, setup: Setup, name: str, orchestrator: Any) -> bool:
        """Whether this process may do another job. Raises why this node can't work, or can't any longer."""
        from uring_actors.actors import KeptRoles
        from uring_actors.many.node_work import NodeWork

        self._roles = self._roles or KeptRoles()
        self._work = NodeWork(setup, name, orchestrator, self._roles)
        if self._over != setup.plan.run:
            self._work.run()
        over = self._work.is_over()
        self._work = None
        return over and nothing_is_left()

    def stop(self, run: str) -> None:
        """Have ``run`` of that job end, now or when it begins."""
        self._over = run
        if (work := self._work) is not None:
            work.stop()

    def bundles(self, pipeline: str) -> Iterator[list[Item]]:
        """What a pipeline in this process yields."""
        assert self._work is not None, "a pipeline was told of"
        yield from self._work.bundles(pipeline)

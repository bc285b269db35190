"""The crew of a job: its orchestrator, its agents, and the way by which their pipelines' items come here.

``LocalCrew`` has one node, in this process; ``cluster.RayCrew`` has those of a Ray cluster. ``job.JobScan`` knows a
``Crew`` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from uring_actors.many.agent import Agent, facts_of
from uring_actors.many.orchestrator import OUT, JobPlan, JobStatus, Orchestrator
from uring_actors.many.progress import Receipt
from uring_actors.many.receiver import Came
from uring_actors.node import Node, NodeSpec, start_node
from uring_actors.results.errors import Failure, Skipped


class Crew(Protocol):
    """Life: made (everything is started) → closed (idempotent)."""

    def rounds(self) -> Iterator[list[Came]]:
        """What pipelines yield, until the job is finished: together what is to be acknowledged together. Raises what
        the job failed of."""

    def commit(self, done: Sequence[tuple[int, str, Receipt]]) -> list[bool]:
        """Acknowledge leases, of those pipelines; which of them count."""

    def status(self) -> JobStatus: ...

    def results(self) -> tuple[list[Failure], list[Skipped]]: ...

    def close(self) -> None: ...


class LocalCrew:
    """One node, whose roles are in this process or, with the ``ray`` engine, actors on this machine."""

    def __init__(self, plan: JobPlan, spec: NodeSpec, name: str) -> None:
        self._name = name
        self._spec = spec
        self._orchestrator = Orchestrator(plan)
        try:
            self._first: Node | None = start_node(spec)
        except BaseException:
            self._orchestrator.close()
            raise
        self._agent = Agent(name, self._orchestrator, self._make_node, plan.local, plan.selection)
        self._orchestrator.working(name, facts_of(self._first.spec))
        self._orchestrator.start()

    def _make_node(self) -> Node:
        node, self._first = self._first, None
        return node or start_node(self._spec)

    def rounds(self) -> Iterator[list[Came]]:
        try:
            for pipeline, item in self._agent.items():
                yield [(pipeline, self._name, item)]
        except Exception as error:
            self._orchestrator.report(self._name, OUT, str(error))
            raise
        if self._orchestrator.failure is not None:
            raise self._orchestrator.failure

    def commit(self, done: Sequence[tuple[int, str, Receipt]]) -> list[bool]:
        return [self._orchestrator.commit(*one) for one in done]

    def status(self) -> JobStatus:
        return self._orchestrator.status()

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        return self._orchestrator.results()

    def close(self) -> None:
        self._orchestrator.close()
        self._agent.close()
        if self._first is not None:
            self._first.close()
            self._first = None

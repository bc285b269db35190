"""What an agent's actor does on its node: an ``Agent``, its pipelines, and with a detached job the receiver."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from uring_actors.actors import KeptRoles, RayNode
from uring_actors.errors import OptionError
from uring_actors.groups import Item
from uring_actors.many.agent import Agent
from uring_actors.many.orchestrator import Facts, Work
from uring_actors.many.progress import JOURNAL, Receipt
from uring_actors.many.receiver import Receiver
from uring_actors.many.setup import Setup, Source
from uring_actors.metrics import MeasuredNode
from uring_actors.node import LocalNode, Node, NodeSpec, start_node
from uring_actors.plan import FileEntry, devices
from uring_actors.ray_calls import answer
from uring_actors.results.errors import Failure, Skipped
from uring_actors.reuse import Takers


class RemoteDesk:
    """The orchestrator, as an agent elsewhere sees it. Raises what the orchestrator raises; Ray's own errors where it
    can't be reached."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def ask(self, pipeline: str, node: str) -> Work:
        work: Work = answer(self._handle.ask.remote(pipeline, node))
        return work

    def begin_listing(self, node: str) -> None:
        answer(self._handle.begin_listing.remote(node))

    def offer(self, node: str, items: Sequence[FileEntry | Failure | Skipped], *, last: bool) -> bool:
        return bool(answer(self._handle.offer.remote(node, items, last)))

    def working(self, node: str, facts: Facts) -> None:
        answer(self._handle.working.remote(node, facts))

    def lose(self, pipeline: str, message: str) -> int:
        return int(answer(self._handle.lose.remote(pipeline, message)))

    def commit(self, done: Sequence[tuple[int, str, Receipt]]) -> list[bool]:
        counts: list[bool] = answer(self._handle.commit.remote(done))[0]
        return counts


class NodeWork:
    """What the agent's actor does for one job."""

    def __init__(self, setup: Setup, name: str, orchestrator: Any, roles: KeptRoles) -> None:
        """roles: those that earlier jobs left, and where this job's stay."""
        self._setup = setup
        self._operation = setup.operation()
        self._name = name
        self._orchestrator = orchestrator
        self._roles = None if setup.alone else roles
        self._nodes: dict[str, LocalNode] = {}
        self._agent: Agent | None = None
        self._stopped = False
        self._on_gpu = False
        self._takers = Takers()

    def run(self) -> None:
        """Raises why this node can't work, or can't any longer."""
        plan = self._setup.plan
        desk = RemoteDesk(self._orchestrator)
        agent = self._agent = Agent(self._name, desk, self._make_node, plan.local, plan.selection)
        try:
            if self._stopped:
                return
            if self._setup.detached:
                self._receive(agent, desk)
            else:
                agent.tend(self._open_source)
        finally:
            agent.close()

    def stop(self) -> None:
        """From another thread: have ``run`` end."""
        self._stopped = True
        if self._agent is not None:
            self._agent.stop()

    def is_over(self) -> bool:
        """After ``run``: whether nobody takes rows here any more, and another job may follow. Not where memory of a
        GPU would be held meanwhile: its context goes with the process."""
        return not (self._setup.alone or self._on_gpu) and self._takers.gone()

    def _receive(self, agent: Agent, desk: RemoteDesk) -> None:
        plan = self._setup.plan
        if not (plan.directory / JOURNAL).exists():
            raise OptionError(
                "this node does not see the output directory",
                path=os.fsencode(plan.directory),
                fix="Name one on a file system that all nodes share.",
            )
        receiver = Receiver(self._operation.schema, plan.directory, with_node=bool(plan.local))
        try:
            for pipeline, item in agent.items():
                receiver.take([(pipeline, self._name, item)], desk.commit)
        finally:
            receiver.close()

    def _make_node(self) -> Node:
        plan = self._setup.plan
        paths = [*plan.shared, *(path for path in plan.local if os.path.exists(path))]
        spec = NodeSpec.decide(self._operation, self._setup.options, devices(paths or [b"/"]))
        self._on_gpu = spec.backend == "cuda"
        return start_node(spec, kept=self._roles, local=MeasuredNode)

    def _open_source(self, pipeline: str, node: Node) -> None:
        if isinstance(node, RayNode):
            source = Source(pipeline, self._name, node.host, ())
        else:
            assert isinstance(node, LocalNode), "it was started with the threads engine"
            self._nodes[pipeline] = node
            source = Source(pipeline, self._name, ray.get_runtime_context().current_actor, (pipeline,))
        answer(self._orchestrator.open_source.remote(source))

    def bundles(self, pipeline: str) -> Iterator[list[Item]]:
        """What a pipeline in this process yields."""
        with self._takers:
            yield from self._nodes[pipeline].bundles(lambda: None)

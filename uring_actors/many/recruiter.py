"""Who works on a job: an agent on each node that Ray lists and the caller chose, started, watched, started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uring_actors.errors import DeadlineExceeded, NodeFailed, OptionError, PipelineError
from uring_actors.many.agent_actor import AgentActor
from uring_actors.many.orchestrator import OUT, STARTING, Orchestrator
from uring_actors.many.setup import Setup
from uring_actors.ray_calls import kill, unwrap

_RESTARTS: Final = 3
"""So many agents in a row may die on a living node without having finished a lease."""
_RECRUIT_SECONDS: Final = 0.5
_NO_NODE_SECONDS: Final = 60.0
"""How long a job waits for a node, where none works."""
_REST_SECONDS: Final = 3.0
"""How long agents have to leave a job that is over."""
_LINGER_SECONDS: Final = 600.0
"""How long a detached job that has ended can still be asked."""


@dataclass(slots=True)
class _Hired:
    """An agent and its node."""

    name: str
    node_id: str
    actor: Any
    sentinel: Any
    warm: bool
    """Whether its process did an earlier job."""
    died: int
    """Agents of that node before it, in a row, that finished no lease."""
    leases: int
    """That the node had finished before."""


class Recruiter:
    """A thread that starts an agent on each node that was chosen, and sees what becomes of them."""

    def __init__(self, setup: Setup, orchestrator: Orchestrator, handle: Any, idle: dict[str, Any]) -> None:
        """idle: agents of an earlier job by their node's id, to be used before others are started."""
        self._setup = setup
        self._orchestrator = orchestrator
        self._handle = handle
        self._hired: dict[str, _Hired] = {}
        self._idle = idle
        self._out: set[str] = set()
        self._names: dict[str, str] = {}
        self._since = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recruiter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Hire no more, and watch no longer."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(10)

    def dismiss(self) -> None:
        """Stopped, and the job over: kill the agents."""
        for actor in [*(hired.actor for hired in self._hired.values()), *self._idle.values()]:
            kill(actor)

    def rest(self) -> dict[str, Any]:
        """Stopped, and the job over: the agents that may do another, by their node's id. The others are killed."""
        for hired in self._hired.values():
            hired.actor.stop.remote(self._setup.plan.run)
        sentinels = [hired.sentinel for hired in self._hired.values()]
        if sentinels:
            ray.wait(sentinels, num_returns=len(sentinels), timeout=_REST_SECONDS)
        for hired in self._hired.values():
            try:
                over = ray.get(hired.sentinel, timeout=0)
            except ray.exceptions.RayError:
                over = False
            if over:
                self._idle[hired.node_id] = hired.actor
            else:
                kill(hired.actor)
        return self._idle

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and not self._orchestrator.finished:
                self._look()
                self._stopping.wait(_RECRUIT_SECONDS)
        except Exception as error:
            self._orchestrator.fail(PipelineError(f"watching the nodes failed: {error!r}"))
        if self._setup.detached and not self._stopping.is_set():
            self._end_detached()

    def _look(self) -> None:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for hired in list(self._hired.values()):
            self._watch(hired, alive)
        for node_id, node in alive.items():
            if node_id not in self._hired and node_id not in self._out and chosen(node, self._setup.nodes):
                self._hire(node_id, self._name(node_id, node), 0)
        if self._hired:
            self._since = time.monotonic()
        elif not self._ever_worked():
            self._orchestrator.fail(NodeFailed("every node", "none could be used" + self._why()))
        elif time.monotonic() - self._since > _NO_NODE_SECONDS:
            self._orchestrator.fail(DeadlineExceeded("a node that can work" + self._why(), _NO_NODE_SECONDS))

    def _ever_worked(self) -> bool:
        """Where no node ever has, more patience will not help."""
        return any(report.leases or report.pipelines for report in self._orchestrator.status().nodes)

    def _why(self) -> str:
        reports = [one for one in self._orchestrator.status().nodes if one.state == OUT]
        return "".join(f"; {one.node}: {one.message}" for one in reports)

    def _name(self, node_id: str, node: Mapping[str, Any]) -> str:
        """Ray's name of the node; with a part of its id where another living node has the same."""
        if node_id not in self._names:
            name = str(node.get("NodeName") or node["NodeManagerAddress"])
            taken = {self._names[hired] for hired in self._hired}
            self._names[node_id] = f"{name}/{node_id[:8]}" if name in taken else name
        return self._names[node_id]

    def _hire(self, node_id: str, name: str, died: int, message: str | None = None) -> None:
        """``died``: see ``_Hired``; ``message``: why the last did."""
        leases = self._orchestrator.report(name, STARTING, message)
        idle = self._idle.pop(node_id, None)
        actor = idle or _new_agent(node_id)
        sentinel = actor.run.remote(self._setup, name, self._handle)
        self._hired[node_id] = _Hired(name, node_id, actor, sentinel, idle is not None, died, leases)

    def _watch(self, hired: _Hired, alive: Mapping[str, Any]) -> None:
        gone = hired.node_id not in alive
        ended, _ = ray.wait([hired.sentinel], timeout=0)
        if self._orchestrator.finished or not (ended or gone):
            return
        del self._hired[hired.node_id]
        died = 1 if self._orchestrator.leases_of(hired.name) > hired.leases else hired.died + 1
        message, again = "the node died", False
        if ended:
            try:
                ray.get(hired.sentinel)
                message = "its agent ended before the job did"
            except ray.exceptions.RayActorError:
                if hired.warm and died > hired.died and not gone:  # it may have died long before this job
                    self._hire(hired.node_id, hired.name, 0)
                    return
                again = not gone and died <= _RESTARTS
                message = "its agent's process died" if not gone else message
            except ray.exceptions.RayError as error:
                message = str(unwrap(error, "agent"))
        kill(hired.actor)
        if again:
            self._hire(hired.node_id, hired.name, died, message)
        else:
            self._orchestrator.report(hired.name, OUT, message)
            self._out.add(hired.node_id)

    def _end_detached(self) -> None:
        """Nobody may come to end a detached job: its agents go now, the orchestrator later."""
        for hired in self._hired.values():
            kill(hired.actor)
        if not self._stopping.wait(_LINGER_SECONDS):
            ray.kill(self._handle)


def _new_agent(node_id: str) -> Any:
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options = ray.remote(AgentActor).options(num_cpus=0, max_restarts=0, max_concurrency=8, scheduling_strategy=here)
    return options.remote()


def chosen(node: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a node, as ``ray.nodes`` has it, has these labels, or resources where the value is empty."""
    labels, resources = node.get("Labels", {}), node["Resources"]
    return all(
        labels.get(name) == value if value else name in resources or name in labels for name, value in wanted.items()
    )


def check_nodes(wanted: Mapping[str, str]) -> None:
    """Raises OptionError where no node has these labels or resources."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(chosen(node, wanted) for node in nodes):
        labels = sorted({f"{name}={value}" for node in nodes for name, value in node.get("Labels", {}).items()})
        words = ", ".join(f"{name}={value}" if value else name for name, value in wanted.items())
        raise OptionError(f"no node of the cluster has {words}", fix=f"Their labels are {', '.join(labels)}.")

"""A job's crew on a Ray cluster: one orchestrator actor, and on each node one agent actor with its pipeline.

    driver ──starts──▶ OrchestratorActor ──starts, watches──▶ AgentActor on each node ──▶ pipeline
      ▲                                                           (with engine ray: its roles as actors of their own)
      └──────────── rows, straight from each pipeline ────────────────┘

Every node that Ray lists and the caller chose gets an agent, those that join later too. An agent that dies is started
again a few times while its node lives. What an actor started dies with it, Ray sees to that: so when the orchestrator
dies, so do the agents, and Ray makes it anew, which goes on from its journal. No actor has a name, so concurrent jobs
can't meet, but for a detached job's orchestrator, by which it is found again.

Where the job is *detached*, the agents receive their pipelines' rows themselves and write them into the job's
directory, which all nodes must see; the orchestrator then needs no driver.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uring_actors.actors import RayNode, open_stream, unwrap
from uring_actors.config import ScanOptions
from uring_actors.errors import DeadlineExceeded, NodeFailed, OptionError, PipelineError, UringActorsError
from uring_actors.groups import GroupEnd, GroupRows, Item
from uring_actors.many.agent import REBUILDS, Agent
from uring_actors.many.orchestrator import OUT, STARTING, JobPlan, JobStatus, Orchestrator, Work
from uring_actors.many.progress import JOURNAL, Receipt
from uring_actors.many.receiver import Receiver
from uring_actors.node import Node, NodeSpec, start_node
from uring_actors.ops.base import Operation
from uring_actors.plan import FileEntry, devices
from uring_actors.results.errors import Failure, Skipped

NAMESPACE: Final = "uring-actors"
"""Of detached orchestrators, by the job's name."""
_CALL_SECONDS: Final = 120.0
"""For the orchestrator's answer, its restart included."""
_LOOK_SECONDS: Final = 0.25
_RECRUIT_SECONDS: Final = 0.5
_NO_NODE_SECONDS: Final = 60.0
"""How long a job waits for a node, where none works."""
_LINGER_SECONDS: Final = 600.0
"""How long a detached job that has ended can still be asked."""
_ORCHESTRATOR_THREADS: Final = 64
"""Half a second each for an agent that waits for work, less for all other calls."""


@dataclass(frozen=True)
class Setup:
    """All that a job's actors are made from."""

    plan: JobPlan
    operation: Operation
    options: ScanOptions
    nodes: dict[str, str]
    """Labels or resources (the value empty) of the nodes to be used; none: all nodes."""
    detached: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pipeline's items can be had: ``actor.batches(*args)``, once."""

    pipeline: str
    node: str
    actor: Any
    args: tuple[str, ...]


# ── the orchestrator ─────────────────────────────────────────────────────────────────────────────────────────
class OrchestratorActor:
    """The orchestrator, and whoever watches the nodes for it. Starts in two phases; made anew by Ray after its death,
    it begins by itself."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._sources: dict[str, Source] = {}
        self._orchestrator: Orchestrator | None = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.begin()

    def begin(self) -> None:
        """Raises what ``Orchestrator`` raises."""
        if self._orchestrator is not None:
            return  # asked again, after a restart
        orchestrator = Orchestrator(self._setup.plan)
        self._recruiter = Recruiter(self._setup, orchestrator, ray.get_runtime_context().current_actor)
        orchestrator.start()
        self._recruiter.start()
        self._orchestrator = orchestrator

    @property
    def _job(self) -> Orchestrator:
        if self._orchestrator is None:
            raise PipelineError("the job has not begun")
        return self._orchestrator

    def ask(self, pipeline: str, node: str) -> Work:
        return self._job.ask(pipeline, node)

    def begin_listing(self, node: str) -> None:
        self._job.begin_listing(node)

    def offer(self, node: str, items: Sequence[FileEntry | Failure | Skipped], last: bool) -> bool:
        return self._job.offer(node, items, last=last)

    def working(self, node: str, spec: NodeSpec) -> None:
        self._job.working(node, spec)

    def lose(self, pipeline: str, message: str) -> int:
        self._sources.pop(pipeline, None)
        return self._job.lose(pipeline, message)

    def open_source(self, source: Source) -> None:
        """A pipeline can be received from."""
        self._sources[source.pipeline] = source

    def sources(self) -> tuple[list[Source], bool, UringActorsError | None]:
        """Which pipelines there are, whether the job is finished, and of what it failed."""
        return list(self._sources.values()), self._job.finished, self._job.failure

    def commit(self, lease: int, pipeline: str, receipt: Receipt) -> tuple[bool, bool]:
        """Whether it counts, and whether the job is finished with it."""
        return self._job.commit(lease, pipeline, receipt), self._job.finished

    def status(self) -> JobStatus:
        return self._job.status()

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        return self._job.results()

    def directory(self) -> str:
        return str(self._setup.plan.directory)

    def stop(self) -> None:
        """End the agents and let go of the journal. Idempotent."""
        if self._orchestrator is not None:
            self._recruiter.stop()
            self._orchestrator.close()


@dataclass(slots=True)
class _Hired:
    """An agent and its node."""

    name: str
    node_id: str
    actor: Any
    sentinel: Any
    died: int


class Recruiter:
    """A thread that starts an agent on each node that was chosen, and sees what becomes of them."""

    def __init__(self, setup: Setup, orchestrator: Orchestrator, handle: Any) -> None:
        self._setup = setup
        self._orchestrator = orchestrator
        self._handle = handle
        self._hired: dict[str, _Hired] = {}
        self._out: set[str] = set()
        self._names: dict[str, str] = {}
        self._since = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recruiter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(10)
        for hired in self._hired.values():
            kill(hired.actor)

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

    def _hire(self, node_id: str, name: str, died: int) -> None:
        self._orchestrator.report(name, STARTING)
        actor = (
            ray.remote(AgentActor)
            .options(
                num_cpus=0,
                max_restarts=0,
                max_concurrency=8,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(self._setup, name, self._handle)
        )
        self._hired[node_id] = _Hired(name, node_id, actor, actor.run.remote(), died)

    def _watch(self, hired: _Hired, alive: Mapping[str, Any]) -> None:
        gone = hired.node_id not in alive
        ended, _ = ray.wait([hired.sentinel], timeout=0)
        if not ended and not gone:
            return
        del self._hired[hired.node_id]
        message, again = "the node died", False
        if ended:
            try:
                ray.get(hired.sentinel)
                message = "its agent ended before the job did"
            except ray.exceptions.RayActorError:
                again = not gone and hired.died < REBUILDS
                message = "its agent's process died" if not gone else message
            except ray.exceptions.RayError as error:
                message = str(unwrap(error, "agent"))
        kill(hired.actor)
        if self._orchestrator.finished:
            return
        self._orchestrator.report(hired.name, OUT, message)
        if again:
            self._hire(hired.node_id, hired.name, hired.died + 1)
        else:
            self._out.add(hired.node_id)

    def _end_detached(self) -> None:
        """Nobody may come to end a detached job: its agents go now, the orchestrator later."""
        for hired in self._hired.values():
            kill(hired.actor)
        if not self._stopping.wait(_LINGER_SECONDS):
            ray.kill(self._handle)


def chosen(node: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a node, as ``ray.nodes`` has it, has these labels, or resources where the value is empty."""
    labels, resources = node.get("Labels", {}), node["Resources"]
    return all(
        labels.get(name) == value if value else name in resources or name in labels for name, value in wanted.items()
    )


# ── the agents ───────────────────────────────────────────────────────────────────────────────────────────────
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

    def working(self, node: str, spec: NodeSpec) -> None:
        answer(self._handle.working.remote(node, spec))

    def lose(self, pipeline: str, message: str) -> int:
        return int(answer(self._handle.lose.remote(pipeline, message)))

    def commit(self, lease: int, pipeline: str, receipt: Receipt) -> bool:
        return bool(answer(self._handle.commit.remote(lease, pipeline, receipt))[0])


class AgentActor:
    """One node's agent. ``run`` lasts until the job is finished; its reference is the sentinel."""

    def __init__(self, setup: Setup, name: str, orchestrator: Any) -> None:
        self._setup = setup
        self._name = name
        self._orchestrator = orchestrator
        self._nodes: dict[str, Node] = {}

    def run(self) -> None:
        """Raises why this node can't work, or can't any longer."""
        plan = self._setup.plan
        desk = RemoteDesk(self._orchestrator)
        agent = Agent(self._name, desk, self._make_node, plan.local)
        try:
            if self._setup.detached:
                self._receive(agent, desk)
            else:
                agent.tend(self._open_source)
        finally:
            agent.close()

    def _receive(self, agent: Agent, desk: RemoteDesk) -> None:
        plan = self._setup.plan
        if not (plan.directory / JOURNAL).exists():
            raise OptionError(
                "this node does not see the output directory",
                path=os.fsencode(plan.directory),
                fix="Name one on a file system that all nodes share.",
            )
        receiver = Receiver(self._setup.operation.schema, desk.commit, plan.directory, with_node=bool(plan.local))
        try:
            for pipeline, item in agent.items():
                if item is None:
                    receiver.lose(pipeline)
                else:
                    receiver.take(pipeline, self._name, item)
        finally:
            receiver.close()

    def _make_node(self) -> Node:
        plan = self._setup.plan
        paths = [*plan.shared, *(path for path in plan.local if os.path.exists(path))]
        spec = NodeSpec.decide(self._setup.operation, self._setup.options, devices(paths or [b"/"]))
        return start_node(spec)

    def _open_source(self, pipeline: str, node: Node) -> None:
        if isinstance(node, RayNode):
            source = Source(pipeline, self._name, node.host, ())
        else:
            self._nodes[pipeline] = node
            source = Source(pipeline, self._name, ray.get_runtime_context().current_actor, (pipeline,))
        answer(self._orchestrator.open_source.remote(source))

    def batches(self, pipeline: str) -> Iterator[Item]:
        """What a pipeline in this process yields."""
        yield from self._nodes[pipeline].batches(lambda: None)


# ── the driver's side ────────────────────────────────────────────────────────────────────────────────────────
class RayCrew:
    """The crew as the driver knows it: rows come here straight from each pipeline."""

    def __init__(self, setup: Setup, address: str) -> None:
        """Raises OptionError, InputError, or PipelineError where the cluster can't be reached."""
        connect(address)
        check_nodes(setup.nodes)
        self._actor = start_orchestrator(setup, name=None)
        self._finished = False
        self._closed = False

    def items(self) -> Iterator[tuple[str, str, GroupRows | GroupEnd | None]]:
        streams: dict[Any, Source] = {}
        seen: set[str] = set()
        looked = 0.0
        while True:
            if self._finished or not streams or time.monotonic() - looked >= _LOOK_SECONDS:
                sources, finished, failure = answer(self._actor.sources.remote())
                looked = time.monotonic()
                if failure is not None:
                    raise failure
                if finished:
                    return
                for source in sources:
                    if source.pipeline not in seen:
                        seen.add(source.pipeline)
                        streams[open_stream(source.actor, *source.args)] = source
            if not streams:
                time.sleep(_LOOK_SECONDS / 5)
                continue
            for stream in self._ready(streams):
                source = streams.pop(stream)
                try:
                    item = ray.get(next(stream))
                except StopIteration:
                    continue
                except ray.exceptions.RayError as error:
                    answer(self._actor.lose.remote(source.pipeline, str(unwrap(error, "pipeline"))))
                    yield source.pipeline, source.node, None
                    continue
                streams[stream] = source  # at the end: every stream has its turn
                yield source.pipeline, source.node, item

    def _ready(self, streams: Mapping[Any, Source]) -> list[Any]:
        ready, _ = ray.wait(list(streams), timeout=_LOOK_SECONDS, fetch_local=False)
        return list(ready)

    def commit(self, lease: int, pipeline: str, receipt: Receipt) -> bool:
        counts, self._finished = answer(self._actor.commit.remote(lease, pipeline, receipt))
        return bool(counts)

    def status(self) -> JobStatus:
        status: JobStatus = answer(self._actor.status.remote())
        return status

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        results: tuple[list[Failure], list[Skipped]] = answer(self._actor.results.remote())
        return results

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if ray.is_initialized():
            with contextlib.suppress(ray.exceptions.RayError, UringActorsError):
                ray.get(self._actor.stop.remote(), timeout=_LOOK_SECONDS * 40)
            kill(self._actor)


def connect(address: str) -> None:
    """Be connected to that cluster. A connection that is there already is used, and never ended.

    Raises:
        OptionError: this process is connected to another one.
        PipelineError: it can't be reached.
    """
    if ray.is_initialized():
        current = str(ray.get_runtime_context().gcs_address)
        if address not in ("auto", current):
            raise OptionError(f"address is {address}, but this process is connected to the Ray at {current}")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"cannot connect to the Ray cluster at {address}: {error}", fix="Is it running? (ray status)"
        ) from error


def check_nodes(wanted: Mapping[str, str]) -> None:
    """Raises OptionError where no node has these labels or resources."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not any(chosen(node, wanted) for node in nodes):
        labels = sorted({f"{name}={value}" for node in nodes for name, value in node.get("Labels", {}).items()})
        words = ", ".join(f"{name}={value}" if value else name for name, value in wanted.items())
        raise OptionError(f"no node of the cluster has {words}", fix=f"Their labels are {', '.join(labels)}.")


def start_orchestrator(setup: Setup, name: str | None) -> Any:
    """A job's orchestrator, begun. ``name``: of a detached one. It is kept on this node, where its journal is; a
    detached one's journal is seen by every node. Raises what ``Orchestrator`` raises, OptionError for a name that is
    taken."""
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "lifetime": "detached"} if name else {}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=name is not None)
    try:
        actor = (
            ray.remote(OrchestratorActor)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=_ORCHESTRATOR_THREADS,
                scheduling_strategy=here,
                **options,
            )
            .remote(setup)
        )
    except ValueError as error:
        raise OptionError(f"there is a job {name!r} already", fix="Attach to it, or choose another name.") from error
    try:
        answer(actor.begin.remote())
    except BaseException:
        kill(actor)
        raise
    return actor


def answer(reference: Any) -> Any:
    """The orchestrator's answer. Raises an error of ours as itself."""
    try:
        return ray.get(reference, timeout=_CALL_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineExceeded("the orchestrator's answer", _CALL_SECONDS) from None
    except ray.exceptions.RayTaskError as error:
        _raise(unwrap(error, "orchestrator"), error)
    except ray.exceptions.RayActorError as error:
        raise NodeFailed("orchestrator", "its process died") from error


def _raise(error: UringActorsError, cause: BaseException) -> NoReturn:
    raise error from cause


def kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it may be dead already, or Ray itself gone
        ray.kill(actor)

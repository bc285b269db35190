"""The orchestrator as a Ray actor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uring_actors.errors import OptionError, PipelineError, UringActorsError
from uring_actors.many.orchestrator import Facts, JobStatus, Orchestrator, Work
from uring_actors.many.progress import Receipt
from uring_actors.many.recruiter import Recruiter
from uring_actors.many.setup import Setup, Source
from uring_actors.plan import FileEntry
from uring_actors.ray_calls import answer, kill
from uring_actors.results.errors import Failure, Skipped

NAMESPACE: Final = "uring-actors"
"""Of detached orchestrators, by the job's name."""
_THREADS: Final = 64
"""Half a second each for an agent that waits for work, less for all other calls."""


class NotBegun(PipelineError):
    """The orchestrator's process knows of no job: it is new, and the one before it has died."""


class OrchestratorActor:
    """The orchestrator, and whoever watches the nodes for it, of one job after another. Starts in two phases; made
    anew by Ray after its death it waits for the driver to begin the job again, or begins a detached one by itself."""

    def __init__(self, detached: Setup | None) -> None:
        """detached: the only job, where no driver may be there."""
        self._changing = threading.Lock()
        self._setup: Setup | None = None
        self._sources: dict[str, Source] = {}
        self._orchestrator: Orchestrator | None = None
        self._recruiter: Recruiter | None = None
        self._idle: dict[str, Any] = {}
        """Agents that are at no job, by their node's id."""
        if detached is not None and ray.get_runtime_context().was_current_actor_reconstructed:
            self.begin(detached)

    def begin(self, setup: Setup) -> None:
        """Raises what ``Orchestrator`` raises. Asked again, it does nothing."""
        with self._changing:
            if self._setup is not None and self._setup.plan.run == setup.plan.run:
                return
            self._rest()
            orchestrator = Orchestrator(setup.plan)
            self._recruiter = Recruiter(setup, orchestrator, ray.get_runtime_context().current_actor, self._idle)
            orchestrator.start()
            self._recruiter.start()
            self._setup, self._orchestrator, self._sources = setup, orchestrator, {}

    @property
    def _job(self) -> Orchestrator:
        if self._orchestrator is None:
            raise NotBegun("the job has not begun")
        return self._orchestrator

    def ask(self, pipeline: str, node: str) -> Work:
        return self._job.ask(pipeline, node)

    def begin_listing(self, node: str) -> None:
        self._job.begin_listing(node)

    def offer(self, node: str, items: Sequence[FileEntry | Failure | Skipped], last: bool) -> bool:
        return self._job.offer(node, items, last=last)

    def working(self, node: str, facts: Facts) -> None:
        self._job.working(node, facts)

    def lose(self, pipeline: str, message: str) -> int:
        self._sources.pop(pipeline, None)
        return self._job.lose(pipeline, message)

    def open_source(self, source: Source) -> None:
        """A pipeline can be received from."""
        self._sources[source.pipeline] = source

    def sources(self) -> tuple[list[Source], bool, UringActorsError | None]:
        """Which pipelines there are, whether the job is finished, and of what it failed."""
        return list(self._sources.values()), self._job.finished, self._job.failure

    def commit(self, done: Sequence[tuple[int, str, Receipt]]) -> tuple[list[bool], bool, bool]:
        """Of leases, pipelines and what they came to: which count, whether the job is finished with them, and whether
        there are leases that nobody holds."""
        counts = [self._job.commit(*one) for one in done]
        return counts, self._job.finished, self._job.more

    def status(self) -> JobStatus:
        return self._job.status()

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        return self._job.results()

    def directory(self) -> str:
        assert self._setup is not None
        return str(self._setup.plan.directory)

    def stop(self, *, dismiss: bool) -> None:
        """End the job and let go of its journal. dismiss: kill the agents as well. Idempotent."""
        with self._changing:
            if self._orchestrator is None or self._recruiter is None:
                return
            self._recruiter.stop()
            self._orchestrator.close()
            if dismiss:
                self._recruiter.dismiss()

    def rest(self, run: str) -> None:
        """That job has been stopped: forget it, and keep the agents that are done with it."""
        with self._changing:
            if self._setup is not None and self._setup.plan.run == run:
                self._rest()

    def _rest(self) -> None:
        if self._recruiter is not None:
            self._idle = self._recruiter.rest()
        self._setup = self._orchestrator = self._recruiter = None
        self._sources = {}


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
                max_concurrency=_THREADS,
                scheduling_strategy=here,
                **options,
            )
            .remote(setup if setup.detached else None)
        )
    except ValueError as error:
        raise OptionError(f"there is a job {name!r} already", fix="Attach to it, or choose another name.") from error
    try:
        answer(actor.begin.remote(setup))
    except BaseException:
        kill(actor)
        raise
    return actor

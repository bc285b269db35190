"""A job's crew on a Ray cluster: one orchestrator actor, and on each node one agent actor with its pipeline.

    driver ──starts──▶ OrchestratorActor ──starts, watches──▶ AgentActor on each node ──▶ pipeline
      ▲                                                           (with engine ray: its roles as actors of their own)
      └──────────── rows, straight from each pipeline ────────────────┘

Every node that Ray lists and the caller chose gets an agent, those that join later too. An agent that dies is started
again a few times while its node lives. What an actor started dies with it, Ray sees to that: so when the orchestrator
dies, so do the agents, and Ray makes it anew, which goes on from its journal. No actor has a name, so concurrent jobs
can't meet, but for a detached job's orchestrator, by which it is found again. A job that begins when another of this
driver has ended takes over its actors (``warm.py``).

Where the job is *detached*, the agents receive their pipelines' rows themselves and write them into the job's
directory, which all nodes must see; the orchestrator then needs no driver.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import ray

from uring_actors.errors import InputError, NodeFailed, OptionError, PipelineError, UringActorsError
from uring_actors.groups import GroupEnd, GroupRows
from uring_actors.many import warm
from uring_actors.many.orchestrator import JobStatus
from uring_actors.many.orchestrator_actor import NotBegun, start_orchestrator
from uring_actors.many.progress import Receipt
from uring_actors.many.receiver import Came
from uring_actors.many.recruiter import check_nodes
from uring_actors.many.setup import Setup, Source
from uring_actors.ray_calls import answer, kill, open_stream, unwrap
from uring_actors.results.errors import Failure, Skipped

_LOOK_SECONDS: Final = 0.25
_STOP_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 0.05
"""How long the end of a lease may wait for others, to be acknowledged with them."""
_ROUND_ITEMS: Final = 64


class _Round:
    """What came since the last round, to be acknowledged together: each call of Ray's takes a millisecond of either
    side. A round with an end of a lease waits a little for others', but not for a second one of the same pipeline,
    which would then run dry."""

    def __init__(self) -> None:
        self.items: list[Came] = []
        self._ended: Counter[str] = Counter()
        self._until = 0.0

    def add(self, source: Source, bundle: list[GroupRows | GroupEnd]) -> None:
        if not self.items:
            self._until = time.monotonic() + _LINGER_SECONDS
        self.items += ((source.pipeline, source.node, item) for item in bundle)
        self._ended[source.pipeline] += sum(isinstance(item, GroupEnd) for item in bundle)

    def due(self, *, patient: bool) -> bool:
        """patient: whether nobody waits for these leases to be acknowledged."""
        if not self.items:
            return False
        few = max(self._ended.values()) == 1 and len(self.items) < _ROUND_ITEMS
        return not (patient and few and time.monotonic() < self._until)


class RayCrew:
    """The crew as the driver knows it: rows come here straight from each pipeline."""

    def __init__(self, setup: Setup, address: str) -> None:
        """Raises OptionError, InputError, or PipelineError where the cluster can't be reached."""
        connect(address)
        check_nodes(setup.nodes)
        self._setup = setup
        self._actor = (None if setup.alone else _begun_warm(setup)) or start_orchestrator(setup, name=None)
        self._finished = False
        self._more = False
        """Whether there were leases that nobody held, when last asked."""
        self._closed = False

    def rounds(self) -> Iterator[list[Came]]:
        streams: dict[Any, Source] = {}
        seen: set[str] = set()
        looked = 0.0
        came = _Round()
        while True:
            if came.due(patient=self._more):
                yield came.items
                came = _Round()
            if self._finished or not streams or time.monotonic() - looked >= _LOOK_SECONDS:
                sources, finished, failure = self._ask("sources")
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
            for stream in self._ready(streams, _LINGER_SECONDS if came.items else _LOOK_SECONDS):
                source = streams.pop(stream)
                try:
                    bundle = ray.get(next(stream))
                except StopIteration:
                    continue
                except ray.exceptions.RayError as error:
                    yield came.items  # while what it has finished counts
                    came = _Round()
                    self._ask("lose", source.pipeline, str(unwrap(error, "pipeline")))
                    yield [(source.pipeline, source.node, None)]
                    continue
                streams[stream] = source  # at the end: every stream has its turn
                came.add(source, bundle)

    def _ready(self, streams: Mapping[Any, Source], seconds: float) -> list[Any]:
        ready, _ = ray.wait(list(streams), timeout=seconds, fetch_local=False)
        return list(ready)

    def commit(self, done: Sequence[tuple[int, str, Receipt]]) -> list[bool]:
        counts: list[bool]
        counts, self._finished, self._more = self._ask("commit", done)
        return counts

    def status(self) -> JobStatus:
        status: JobStatus = self._ask("status")
        return status

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        results: tuple[list[Failure], list[Skipped]] = self._ask("results")
        return results

    def _ask(self, method: str, *args: Any) -> Any:
        """The orchestrator's answer. Where it was made anew, the job is begun again first: it goes on from its
        journal."""
        while True:
            try:
                return answer(getattr(self._actor, method).remote(*args))
            except NotBegun:
                answer(self._actor.begin.remote(self._setup))

    def close(self) -> None:
        """End the job. Its actors are kept for the next one, where they may be."""
        if self._closed:
            return
        self._closed = True
        if not ray.is_initialized():
            return
        try:
            ray.get(self._actor.stop.remote(dismiss=self._setup.alone), timeout=_STOP_SECONDS)
            if not self._setup.alone:
                self._actor.rest.remote(self._setup.plan.run)
                warm.keep(self._actor)
                return
        except (ray.exceptions.RayError, UringActorsError):
            pass
        kill(self._actor)


def _begun_warm(setup: Setup) -> Any:
    """The actors of an earlier job, at this one; None where there are none, or they have died."""
    actor = warm.take()
    if actor is None:
        return None
    try:
        answer(actor.begin.remote(setup))
    except NodeFailed:
        kill(actor)
        return None
    except (OptionError, InputError):  # the job's fault
        warm.keep(actor)
        raise
    except BaseException:
        kill(actor)
        raise
    return actor


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

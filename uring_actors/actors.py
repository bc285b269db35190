"""The roles as Ray actors: one reader per device, one publisher, one kernel host, in one placement group.

Ray starts, places, watches and stops; it carries file lists, statistics and result batches. Data and slot indices
move through the arena alone, which the kernel host's process creates and the others attach to.

Actors start in two phases: a constructor that does nothing, then ``initialise``. ``run`` is a call that lasts as long
as the actor works: its reference is the sentinel by which a death is noticed. Nothing is freed by the actors' own
clean-up alone: ``ray.kill`` runs none, and the arena goes with its last process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from uring_actors.arena.memory import Arena, ArenaHandle
from uring_actors.errors import DeadlineExceeded, NodeFailed, UringActorsError, node_failure
from uring_actors.groups import Item
from uring_actors.kernel_host import HostStats, KernelHost
from uring_actors.metrics import HostMeter, Meter, PublisherMeter, ReaderMeter, tenant_of
from uring_actors.node import NodeSpec, NodeStats
from uring_actors.plan import FileEntry
from uring_actors.publisher import Publisher
from uring_actors.ray_calls import kill, open_stream, unwrap
from uring_actors.raylet_watch import end_agents_with_raylet
from uring_actors.reader import Reader, ReaderStats
from uring_actors.results.errors import Failure
from uring_actors.reuse import Takers, nothing_is_left

_START_SECONDS = 60.0
_CALL_SECONDS = 30.0
_STOP_SECONDS = 10.0
_WATCH_SECONDS = 0.25
_SUBMITS_IN_FLIGHT = 2
_OBJECT_STORE_BYTES = 128 << 20
"""Enough for the batches in flight, where this process starts Ray itself."""


class _RoleActor:
    """What the three have in common: a part that works in threads, watched by ``run``."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._part: Reader | Publisher | KernelHost | None = None
        self._arena: Arena | None = None
        self._meter: Meter | None = None
        self._stopping = threading.Event()
        self._takers = Takers()

    def _begin(self, arena: Arena, part: Reader | Publisher | KernelHost, meter: Meter) -> None:
        self._arena, self._part, self._meter = arena, part, meter
        self._stopping = threading.Event()
        part.start()

    def run(self) -> None:
        """Lasts until ``stop``. Raises what ended the part's threads, if anything did."""
        stopping, part, meter = self._stopping, self._part, self._meter
        while not stopping.wait(_WATCH_SECONDS):
            if meter is not None:
                meter.sample()
            if part is not None and part.failure is not None:
                raise node_failure(self._role, part.failure)

    def stop(self) -> None:
        """Close the part and the arena. Idempotent."""
        self._stopping.set()
        part, self._part = self._part, None
        if part is not None:
            part.close()
        if self._arena is not None:
            self._arena.close()

    def is_clean(self) -> bool:
        """Stopped, and ``run`` over: whether this process may be initialised again."""
        gone = self._takers.gone()
        self._part = self._arena = self._meter = None
        return gone and nothing_is_left()


class HostActor(_RoleActor):
    """Creates the arena and runs the kernel host."""

    def __init__(self) -> None:
        super().__init__("kernel host")
        self._on_gpu = False
        self._watch: subprocess.Popen[bytes] | None = None

    def initialise(self, spec: NodeSpec, ray_is_ours: bool) -> ArenaHandle:
        if ray_is_ours and self._watch is None:  # of a Ray that is another's nothing is ours to end
            self._watch = end_agents_with_raylet()
        arena = Arena.create(spec.layout)
        self._host = spec.make_host(arena)
        self._on_gpu = spec.backend == "cuda"
        self._begin(arena, self._host, HostMeter(self._host, tenant_of(spec)))
        return arena.handle()

    def add_files(self, files: Sequence[FileEntry], group: int | None) -> None:
        self._host.add_files(files, group)

    def finish(self, total: int) -> None:
        self._host.finish(total)

    def bundles(self) -> Iterator[list[Item]]:
        with self._takers:
            yield from self._host.bundles(self._check)

    def is_clean(self) -> bool:
        """Not where memory of a GPU would be held meanwhile: its context goes with the process."""
        if hasattr(self, "_host"):
            del self._host
        return not self._on_gpu and super().is_clean()

    def _check(self) -> None:
        if self._host.failure is not None:
            raise node_failure(self._role, self._host.failure)

    def stats(self) -> HostStats:
        return self._host.stats()

    def failures(self) -> list[Failure]:
        return self._host.failures()


class PublisherActor(_RoleActor):
    def __init__(self) -> None:
        super().__init__("publisher")

    def initialise(self, spec: NodeSpec, handle: ArenaHandle) -> None:
        arena = Arena.attach(handle)
        publisher = spec.make_publisher(arena)
        self._begin(arena, publisher, PublisherMeter(publisher, spec, tenant_of(spec)))


class ReaderActor(_RoleActor):
    def __init__(self, device: str) -> None:
        super().__init__(f"reader of {device}")

    def initialise(self, spec: NodeSpec, handle: ArenaHandle, number: int) -> None:
        arena = Arena.attach(handle)
        self._reader = spec.make_reader(arena, number)
        self._begin(arena, self._reader, ReaderMeter(self._reader, tenant_of(spec)))

    def submit(self, files: Sequence[FileEntry], announced: None) -> None:
        """``announced`` is the host's answer to ``add_files``: Ray makes this call wait for it."""
        self._reader.submit(files)

    def drain(self) -> None:
        self._reader.drain()

    def is_clean(self) -> bool:
        if hasattr(self, "_reader"):
            del self._reader
        return super().is_clean()

    def stats(self) -> ReaderStats:
        return self._reader.stats()


_ours: str | None = None
"""The Ray session that this process started, if any."""


def _session() -> str:
    return str(ray.get_runtime_context().gcs_address)


def ensure_ray() -> None:
    """Use the Ray that this process is connected to, or that RAY_ADDRESS names, or start one."""
    global _ours
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if not os.environ.get("RAY_ADDRESS"):
        # By itself Ray would take one that it finds running on this machine, and then no such options.
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    ray.init(**options)
    if "object_store_memory" in options:
        _ours = _session()


def _this_node() -> str:
    """The resource that only this machine's raylet has: what pins the pipeline to where the paths are."""
    mine = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == mine:
            own = (r for r in node["Resources"] if r.startswith("node:") and r != "node:__internal_head__")
            return str(next(own))
    raise NodeFailed("node", "Ray does not list the node that this process runs on")


Roles = list[tuple[str, Any]]
"""Actors by role, which two readers may have in common."""


class KeptRoles:
    """The actors of a pipeline that was closed in order, for the next one with the same devices. At most one set."""

    def __init__(self) -> None:
        self._kept: tuple[PlacementGroup, Roles] | None = None

    def take(self) -> tuple[PlacementGroup, Roles] | None:
        kept, self._kept = self._kept, None
        return kept

    def keep(self, group: PlacementGroup, actors: Roles) -> None:
        if self._kept is not None:
            _end(*self._kept)
        self._kept = group, actors


def _end(group: PlacementGroup | None, actors: Roles) -> None:
    for _, actor in actors:
        kill(actor)
    if group is not None:
        with contextlib.suppress(Exception):
            remove_placement_group(group)


class RayNode:
    """One node's pipeline as Ray actors."""

    def __init__(self, spec: NodeSpec, kept: KeptRoles | None = None) -> None:
        """kept: where it takes actors that another has left, and leaves its own."""
        self.spec = spec
        self._kept = kept
        self._group: PlacementGroup | None = None
        self._actors: Roles = []
        self._sentinels: dict[Any, str] = {}
        self._submitted: list[Any] = []
        self._failure: UringActorsError | None = None
        self._closing = threading.Event()
        self._monitor = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        ensure_ray()
        deadline = time.monotonic() + _START_SECONDS
        if not self._start_kept(deadline):
            self._start_new(deadline)
        self._sentinels = {actor.run.remote(): role for role, actor in self._actors}
        self._monitor.start()

    def _start_kept(self, deadline: float) -> bool:
        """With actors of an earlier pipeline: False where there are none that fit, or they have died since."""
        kept = self._kept.take() if self._kept is not None else None
        if kept is None:
            return False
        self._group, self._actors = kept
        try:
            if [role for role, _ in self._actors] == self._roles():
                self._initialise(deadline)
                return True
        except NodeFailed:
            pass
        _end(*kept)
        self._group, self._actors = None, []
        return False

    def _roles(self) -> list[str]:
        return ["kernel host", "publisher", *(f"reader of {name}" for _, name in self.spec.devices)]

    def _start_new(self, deadline: float) -> None:
        # Actors take no CPU: four roles would not fit a machine of two cores. A bundle must ask for something: a
        # little of the node's own resource. The label says where, for several raylets may share one address.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self._group = placement_group([{_this_node(): 0.001}], strategy="STRICT_PACK", bundle_label_selector=[here])
        self._get(self._group.ready(), "placement group", deadline)
        self._actor("kernel host", HostActor)
        self._actor("publisher", PublisherActor)
        for _, name in self.spec.devices:
            self._actor(f"reader of {name}", ReaderActor, name)
        self._initialise(deadline)

    def _initialise(self, deadline: float) -> None:
        self._host, self._publisher, *self._readers = (actor for _, actor in self._actors)
        handle = self._get(self._host.initialise.remote(self.spec, _session() == _ours), "kernel host", deadline)
        begun = [self._publisher.initialise.remote(self.spec, handle)]
        begun += [reader.initialise.remote(self.spec, handle, i) for i, reader in enumerate(self._readers)]
        for (role, _), ref in zip(self._actors[1:], begun, strict=True):
            self._get(ref, role, deadline)

    def _actor(self, role: str, cls: type[_RoleActor], *args: Any) -> None:
        actor = (
            ray.remote(cls)
            .options(
                num_cpus=0,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, 0),
            )
            .remote(*args)
        )
        self._actors.append((role, actor))

    def _get(self, refs: Any, role: str, deadline: float) -> Any:
        try:
            return ray.get(refs, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            raise DeadlineExceeded(f"the {role} to start", _START_SECONDS) from None
        except ray.exceptions.RayError as error:
            raise unwrap(error, role) from error

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, files: Sequence[FileEntry], group: int | None = None) -> None:
        announced = self._host.add_files.remote(files, group)
        pending = [
            self._readers[reader].submit.remote(part, announced)
            for reader, part in self.spec.by_reader(files).items()
        ]
        self._submitted.extend(pending or [announced])
        self._wait_submitted(_SUBMITS_IN_FLIGHT * len(self._readers))

    def finish(self, total: int) -> None:
        self._wait_submitted(0)
        self._call([reader.drain.remote() for reader in self._readers] + [self._host.finish.remote(total)])

    @property
    def host(self) -> Any:
        """The kernel host's handle: who takes its ``bundles`` need not be here."""
        return self._host

    def batches(self, check: Callable[[], None]) -> Iterator[Item]:
        stream = open_stream(self._host)
        while True:
            ready, _ = ray.wait([stream], timeout=_WATCH_SECONDS, fetch_local=False)
            self.check()
            check()
            if not ready:
                continue
            try:
                bundle = ray.get(next(stream))
            except StopIteration:
                return
            except ray.exceptions.RayError as error:
                # The monitor may know better what died first.
                time.sleep(_WATCH_SECONDS)
                self.check()
                raise unwrap(error, "kernel host") from error
            yield from bundle

    def stats(self) -> NodeStats:
        host, *readers = self._call([self._host.stats.remote(), *(reader.stats.remote() for reader in self._readers)])
        return NodeStats(host, tuple(readers))

    def failures(self) -> list[Failure]:
        found: list[Failure] = self._call(self._host.failures.remote())
        return found

    def _wait_submitted(self, most: int) -> None:
        """Wait until at most ``most`` submissions are under way: this is how a busy reader slows the listing."""
        while len(self._submitted) > most and not self._closing.is_set():
            done, self._submitted = ray.wait(self._submitted, num_returns=1, timeout=_WATCH_SECONDS)
            self.check()
            if done:
                self._call(done)

    def _call(self, refs: Any) -> Any:
        self.check()
        try:
            return ray.get(refs, timeout=_CALL_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise DeadlineExceeded("an actor's answer", _CALL_SECONDS) from None
        except ray.exceptions.RayError as error:
            self.check()
            raise unwrap(error, "an actor") from error

    # ── failure and end ──────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """The monitor: the first sentinel that ends before the close says what died; then everything goes."""
        while not self._closing.is_set():
            ended, _ = ray.wait(list(self._sentinels), timeout=_WATCH_SECONDS)
            if not ended or self._closing.is_set():
                continue
            role = self._sentinels[ended[0]]
            try:
                ray.get(ended[0])
                self._failure = NodeFailed(role, "it ended before the scan did")
            except ray.exceptions.RayError as error:
                self._failure = unwrap(error, role)
            self._kill()
            return

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _kill(self) -> None:
        for _, actor in self._actors:
            kill(actor)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._closing.set()
        if not ray.is_initialized():
            return
        stopped = self._failure is None and self._stop_actors()
        if self._monitor.is_alive() and self._monitor is not threading.current_thread():
            self._monitor.join(10)
        if stopped and self._kept is not None and self._group is not None and self._are_clean():
            self._kept.keep(self._group, self._actors)
        else:
            _end(self._group, self._actors)

    def _stop_actors(self) -> bool:
        """In the order in which it is safe: what a reader has in flight must not outlive the arena's users. Whether
        all did."""
        readers = [actor for role, actor in self._actors if role.startswith("reader")]
        others = [actor for role, actor in self._actors if not role.startswith("reader")]
        stopped = True
        for group in (readers, others):
            try:
                ray.get([actor.stop.remote() for actor in group], timeout=_STOP_SECONDS)
            except (ray.exceptions.RayError, TimeoutError):
                stopped = False
        return stopped

    def _are_clean(self) -> bool:
        """Stopped: whether all of the actors may be initialised again."""
        try:
            ray.get(list(self._sentinels), timeout=_STOP_SECONDS)
            return all(ray.get([actor.is_clean.remote() for _, actor in self._actors], timeout=_STOP_SECONDS))
        except (ray.exceptions.RayError, TimeoutError):
            return False

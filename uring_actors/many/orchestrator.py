"""The orchestrator of one job: what is listed becomes leases, what is acknowledged goes into the journal.

It is a plain class, used as it is where the job runs in one process, and through an actor on a cluster
(``cluster.py``). Rows never come here: a node's pipeline hands them to whoever receives them, which acknowledges
whole leases.

Who calls what: agents ``ask`` for work, ``offer`` what their node's own disks hold, and say that they ``lose`` a
pipeline; receivers ``commit``; whoever starts and watches the nodes ``report``s on them; anybody may ask for
``status``. All calls take the one lock. If the orchestrator dies, the next is made from the same journal: what was
acknowledged is done, everything else is listed and leased anew, under other numbers, so nothing that is still under
way can count twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from uring_actors.errors import PipelineError, UringActorsError
from uring_actors.many.leases import LOSSES_MAX, Lease, LeaseBook, Limits
from uring_actors.many.progress import NAMED, Progress, Receipt
from uring_actors.pieces import LOST, Piece
from uring_actors.plan import FileEntry, walk
from uring_actors.results.errors import Failure, Skipped
from uring_actors.selection import Selection

ASK_SECONDS: Final = 0.5
"""The longest that ``ask`` waits for work."""
_LOOK_SECONDS: Final = 0.1

STARTING, WORKING, OUT = "starting", "working", "left out"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job is, apart from the operation."""

    shared: tuple[bytes, ...]
    """Paths that every node sees alike: listed here, split over the nodes."""
    local: tuple[bytes, ...]
    """Paths that each node has for itself: listed and read there."""
    selection: Selection
    """Which files of trees are wanted."""
    directory: Path
    fingerprint: str
    run: str
    resume: bool
    durable: bool
    schema: bytes
    """Of the rows, serialized."""
    limits: Limits = field(default_factory=Limits)
    splits: str | None = None
    """How the rows of a file's pieces become the file's (``Operation.splits``); None: no file is split."""
    extent: int = 0
    """Payload bytes of an extent, which pieces are made of."""


@dataclass(frozen=True, slots=True)
class Work:
    """An answer to ``ask``."""

    leases: tuple[Lease, ...]
    finished: bool = False
    """No more will come: the job is done, or has failed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """How a node's pipeline is built."""

    backend: str = ""
    io_engine: str = ""
    sqpoll: bool = False
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Why it reads with pread, and such."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """How a node has fared."""

    node: str
    state: str
    """starting, working or left out."""
    pipelines: int = 0
    """How many of its pipelines have died."""
    leases: int = 0
    files: int = 0
    bytes: int = 0
    again: int = 0
    """Bytes of the leases that its pipelines held when they died."""
    message: str | None = None
    """Why a pipeline died last, or the node was left out."""
    facts: Facts = Facts()


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How far a job is."""

    finished: bool
    failure: UringActorsError | None
    files: int
    bytes: int
    matches: int
    errors: int
    skipped: int
    notes: tuple[str, ...]
    nodes: tuple[NodeReport, ...]


class Orchestrator:
    """Life: created → started → closed. ``failure`` is what the whole job failed of."""

    def __init__(self, plan: JobPlan) -> None:
        """Raises what ``Progress`` raises, and InputError where a shared path can't be scanned."""
        self._plan = plan
        self._listing = walk(plan.shared, plan.selection) if plan.shared else iter(())
        self._progress = Progress(
            plan.directory,
            plan.fingerprint,
            plan.schema,
            plan.run,
            durable=plan.durable,
            resume=plan.resume,
            splits=plan.splits,
            extent=plan.extent,
        )
        self._book = LeaseBook(plan.limits, self._progress.first_lease)
        self._changed = threading.Condition()
        self._nodes: dict[str, NodeReport] = {}
        self._of_pipeline: dict[str, tuple[str, int]] = {}
        self._lost: set[str] = set()
        self._again: set[tuple[bytes, Piece]] = set()
        """Pieces that are scanned again because they did not fit."""
        self._failures: list[Failure] = []
        self._skipped: list[Skipped] = []
        self._local: dict[str, tuple[list[Failure], list[Skipped]]] = {}
        self._listed: set[str | None] = set()
        self._finished = False
        self._closed = False
        self.failure: UringActorsError | None = None
        self._lister = threading.Thread(target=self._list_shared, name="lister", daemon=True)

    def start(self) -> None:
        self._lister.start()

    # ── listing ──────────────────────────────────────────────────────────────────────────────────────────────
    def _list_shared(self) -> None:
        try:
            for item in self._listing:
                with self._changed:
                    while self._book.full(None) and not self._closed:
                        self._changed.wait(_LOOK_SECONDS)
                    if self._closed:
                        return
                    self._take(None, item, self._failures, self._skipped)
            with self._changed:
                self._end_listing(None)
        except BaseException as error:
            self.fail(error if isinstance(error, UringActorsError) else UringActorsError(f"listing failed: {error}"))

    def _take(
        self, node: str | None, item: FileEntry | Failure | Skipped, failures: list[Failure], skipped: list[Skipped]
    ) -> None:
        if isinstance(item, Failure):
            failures.append(item)
        elif isinstance(item, Skipped):
            skipped.append(item)
        else:
            for entry in self._progress.left(node, item, self._plan.limits):
                self._add(node, entry)

    def _add(self, node: str | None, entry: FileEntry) -> None:
        if entry.piece is not None and entry.piece.resume:
            if (entry.path, entry.piece) in self._again:
                return
            self._again.add((entry.path, entry.piece))
        self._book.add(node, entry)
        self._changed.notify_all()

    def _end_listing(self, node: str | None) -> None:
        if node is None:
            for entry in self._progress.unlisted(self._plan.limits):
                self._add(None, entry)
        self._book.end_listing(node)
        self._listed.add(node)
        self._look_whether_finished()

    def begin_listing(self, node: str) -> None:
        """The node's agent is about to list its own disks, from the beginning."""
        with self._changed:
            self._book.forget(node)
            self._listed.discard(node)
            self._local[node] = ([], [])

    def offer(self, node: str, items: Sequence[FileEntry | Failure | Skipped], *, last: bool) -> bool:
        """What the agent came upon. False: there is enough listed; offer it again in a while."""
        with self._changed:
            if self._book.full(node):
                return False
            failures, skipped = self._local[node]
            for item in items:
                self._take(node, replace(item, node=node) if isinstance(item, Failure) else item, failures, skipped)
            if last:
                self._end_listing(node)
            return True

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────
    def ask(self, pipeline: str, node: str) -> Work:
        """Work for a pipeline that wants more; waits a little where there is none.

        Raises PipelineError where the pipeline is lost: what it goes on with would come to nobody."""
        deadline = time.monotonic() + ASK_SECONDS
        with self._changed:
            while not (self._finished or self._closed):
                if pipeline in self._lost:  # perhaps while this waited
                    raise PipelineError("this pipeline is lost")
                self._of_pipeline.setdefault(pipeline, (node, 0))
                now = time.monotonic()
                granted = self._book.grant(pipeline, node, now)
                if granted or now >= deadline:
                    self._changed.notify_all()  # listing may have room
                    return Work(tuple(granted))
                self._changed.wait(_LOOK_SECONDS)
            return Work((), finished=True)

    def commit(self, number: int, pipeline: str, receipt: Receipt) -> bool:
        """A pipeline's work on a lease is whole, and safe with whoever received it. Whether it counts: False where
        another's does, or where the lease is one of an orchestrator that died. Asked again it says the same."""
        with self._changed:
            known = self._progress.acknowledged(number)
            if known is not None:
                return known == pipeline
            lease = self._book.acknowledge(number, time.monotonic())
            if lease is None:
                return False
            self._commit(lease, pipeline, receipt)
            self._count(pipeline, receipt)
            self._look_whether_finished()
            self._changed.notify_all()
            return True

    def _commit(self, lease: Lease, pipeline: str, receipt: Receipt) -> None:
        try:
            self._progress.commit(lease, pipeline, receipt)
        except UringActorsError as error:
            self._fail(error)
            raise
        if lease.files[0].piece is not None and (misfit := self._progress.misfit(lease.files[0])) is not None:
            self._add(None, misfit)

    def _count(self, pipeline: str, receipt: Receipt) -> None:
        node, leases = self._of_pipeline.get(pipeline, (None, 0))
        if node is None:
            return
        self._of_pipeline[pipeline] = node, leases + 1
        report = self._nodes.get(node, NodeReport(node, WORKING))
        self._nodes[node] = replace(
            report,
            leases=report.leases + 1,
            files=report.files + receipt.files,
            bytes=report.bytes + receipt.bytes,
        )

    def lose(self, pipeline: str, message: str) -> int:
        """A pipeline has died; what it held is given to others. How many of its leases were acknowledged."""
        with self._changed:
            self._lost.add(pipeline)
            node, leases = self._of_pipeline.pop(pipeline, (None, 0))
            if node is not None:
                report = self._nodes.get(node, NodeReport(node, WORKING))
                self._nodes[node] = replace(
                    report,
                    pipelines=report.pipelines + 1,
                    again=report.again + self._book.held_bytes(pipeline),
                    message=message,
                )
            for lease in self._book.lose(pipeline):
                self._give_up(lease, node, message)
            self._look_whether_finished()
            self._changed.notify_all()
            return leases

    def _give_up(self, lease: Lease, node: str | None, message: str) -> None:
        text = f"given up: {LOSSES_MAX} pipelines died while they had this file; the last: {message}"
        failures = [Failure(entry.path, text, node=node, error="NodeFailed") for entry in lease.files]
        piece = lease.files[0].piece
        if piece is None:
            self._failures += failures
        else:  # those behind it go on as behind what can't be read
            failure = replace(failures[0], offset=piece.start)
            with contextlib.suppress(UringActorsError):  # then the whole job has failed
                self._commit(lease, "", Receipt(int(piece.start == 0), 0, 0, None, (failure,), LOST))

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────
    def working(self, node: str, facts: Facts) -> None:
        """A node has a pipeline, built so."""
        with self._changed:
            known = self._nodes.get(node, NodeReport(node, WORKING))
            self._nodes[node] = replace(known, state=WORKING, facts=facts)

    def leases_of(self, node: str) -> int:
        """How many the node has finished."""
        with self._changed:
            return self._nodes[node].leases if node in self._nodes else 0

    def report(self, node: str, state: str, message: str | None = None) -> int:
        """A node starts (again), or is left out: either way it has lost the pipelines that it had. Returns how many
        leases it has finished."""
        with self._changed:
            known = self._nodes.get(node, NodeReport(node, state))
            self._nodes[node] = replace(known, state=state, message=message or known.message)
            for pipeline in [name for name, (where, _) in self._of_pipeline.items() if where == node]:
                self.lose(pipeline, message or state)
            if state == OUT:
                self._leave_local(node, message or state)
            self._look_whether_finished()
            self._changed.notify_all()
            return self._nodes[node].leases

    def _leave_local(self, node: str, message: str) -> None:
        """What a node that has gone had on its own disks can't be scanned: said once for each path."""
        if not self._plan.local or (node in self._listed and self._book.idle([node], shared=False)):
            return
        self._book.forget(node)
        self._listed.discard(node)
        failures, _ = self._local.setdefault(node, ([], []))
        failures += [
            Failure(path, f"not all of it was scanned: {message}", node=node, error="NodeFailed")
            for path in self._plan.local
        ]

    def _look_whether_finished(self) -> None:
        if self._finished or None not in self._listed:
            return
        nodes = [node for node, report in self._nodes.items() if report.state != OUT] if self._plan.local else []
        if self._plan.local and not self._nodes:
            return
        if self._book.idle(nodes):
            self._finished = True
            try:
                self._progress.end()
            except UringActorsError as error:
                self.failure = self.failure or error
            self._changed.notify_all()

    def fail(self, error: UringActorsError) -> None:
        """The job as a whole has failed."""
        with self._changed:
            self._fail(error)

    def _fail(self, error: UringActorsError) -> None:
        self.failure = self.failure or error
        self._finished = True
        self._changed.notify_all()

    # ── what is known ────────────────────────────────────────────────────────────────────────────────────────
    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def more(self) -> bool:
        """Whether nodes wait for nobody: there are leases for those that are done with theirs."""
        with self._changed:
            return self._book.more

    def status(self) -> JobStatus:
        with self._changed:
            totals = self._progress.totals
            return JobStatus(
                finished=self._finished,
                failure=self.failure,
                files=totals.files,
                bytes=totals.bytes,
                matches=totals.matches,
                errors=len(self._all_failures()),
                skipped=len(self._all_skipped()),
                notes=self._notes(),
                nodes=tuple(self._nodes.values()),
            )

    def results(self) -> tuple[list[Failure], list[Skipped]]:
        """What could not be scanned, and what was left out, so far."""
        with self._changed:
            return self._all_failures(), self._all_skipped()

    def _all_failures(self) -> list[Failure]:
        local = [failure for failures, _ in self._local.values() for failure in failures]
        return [*self._failures, *local, *self._progress.failures()]

    def _all_skipped(self) -> list[Skipped]:
        return [*self._skipped, *(one for _, skipped in self._local.values() for one in skipped)]

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if changed := self._progress.changed:
            names = ", ".join(repr(path.decode(errors="backslashreplace")) for path in changed[:NAMED])
            more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
            notes.append(f"changed since the earlier run, and scanned again: {names}{more}")
        if self._finished and not self.failure and (vanished := self._progress.vanished):
            notes.append(f"{vanished} files of the earlier run are not there any more; their rows are kept")
        told = {note for one in self._nodes.values() for note in one.facts.notes}
        notes += sorted(told)
        notes += [f"node {one.node} is left out: {one.message}" for one in self._nodes.values() if one.state == OUT]
        return tuple(notes)

    def close(self) -> None:
        """Stop listing and let go of the journal. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._lister.ident is not None:
            self._lister.join(10)
        with self._changed:
            self._progress.close()

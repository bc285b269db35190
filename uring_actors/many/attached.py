"""A detached job, seen from outside: it goes on without whoever looks at it.

Its rows are read from the parts in its output directory as they are acknowledged; its orchestrator, found by the
job's name, says how far it is. Where the orchestrator is gone, the journal still says what was done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray

from uring_actors.errors import NodeFailed, OptionError, PipelineError, UringActorsError
from uring_actors.journal import Follower
from uring_actors.many.cluster import connect
from uring_actors.many.job import job_stats, nodes_table
from uring_actors.many.orchestrator import JobStatus
from uring_actors.many.orchestrator_actor import NAMESPACE, start_orchestrator
from uring_actors.many.progress import JOURNAL, Ledger
from uring_actors.many.recruiter import check_nodes
from uring_actors.many.setup import Setup
from uring_actors.ray_calls import answer, kill
from uring_actors.results.errors import Failure, Skipped, errors_table, skipped_table
from uring_actors.results.stats import ScanStats

_LOOK_SECONDS = 0.25


def submit(setup: Setup, address: str) -> AttachedJob:
    """Start a detached job; its name is its run's."""
    connect(address)
    check_nodes(setup.nodes)
    actor = start_orchestrator(setup, name=setup.plan.run)
    return AttachedJob(setup.plan.run, setup.plan.directory, actor)


def attach(job: str, *, address: str = "auto") -> AttachedJob:
    """Look at a detached job, by its name or its output directory.

    Raises:
        OptionError: there is no such job.
        PipelineError: the cluster can't be reached (with a directory that is of no consequence: it may be gone).
    """
    directory = Path(job).absolute()
    if (directory / JOURNAL).exists():
        name = _last_run(directory)
        actor = None
        with contextlib.suppress(PipelineError):
            connect(address)
            actor = _find(name)
        return AttachedJob(name, directory, actor)
    connect(address)
    actor = _find(job)
    if actor is None:
        raise OptionError(f"there is no job {job!r}", fix="Name a running job, or the output directory of any.")
    return AttachedJob(job, Path(answer(actor.directory.remote())), actor)


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _last_run(directory: Path) -> str:
    runs = [record["id"] for record in Follower(directory / JOURNAL).new() if record["t"] == "run"]
    if not runs:
        raise OptionError("the job in this directory has never begun", path=bytes(directory))
    return str(runs[-1])


class AttachedJob:
    """A job that somebody else runs. It looks as a ``Scan`` does; ``close`` leaves the job alone, ``stop`` ends it.

    name, directory: the job's.
    """

    def __init__(self, name: str, directory: Path, actor: Any) -> None:
        self.name = name
        self.directory = directory
        self._actor = actor
        self._began = time.monotonic()
        self._first_row: float | None = None
        self._ended: float | None = None
        self._iterated = False
        self._follower = Follower(directory / JOURNAL)
        self._ledger = Ledger(directory, name)
        self._new: list[int] = []
        """This run's leases of which the rows have not been given yet."""
        self._refresh()
        if self._ledger.schema is None:
            raise OptionError("the job has not begun", path=bytes(directory))
        self.schema: pa.Schema = self._ledger.schema

    def _refresh(self) -> None:
        """Read on in the journal."""
        for record in self._follower.new():
            ready = self._ledger.take(record)
            first = self._ledger.first_of_run
            self._new += [lease for lease in ready if lease >= first > 0]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The rows so far, and those to come. Raises what the job failed of."""
        if self._iterated:
            raise OptionError("a job can be iterated over once", fix="Attach to it again.")
        self._iterated = True
        while True:
            status = self._status()  # before the journal is read: what is acknowledged by now will be in it
            self._refresh()
            while self._new:
                yield from self._counted(self._ledger.rows(self._new.pop(0)))
            if self._ledger.ended:
                break
            if status.failure is not None:
                raise status.failure
            time.sleep(_LOOK_SECONDS)
        for lease in self._ledger.earlier_leases():
            yield from self._counted(self._ledger.rows(lease))
        self.close()

    def _counted(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if self._first_row is None:
                self._first_row = time.monotonic()
            yield batch

    def to_table(self) -> pa.Table:
        """All rows, when the job is done."""
        return pa.Table.from_batches(list(self), self.schema)

    def _status(self) -> JobStatus:
        if self._actor is not None:
            try:
                status: JobStatus = answer(self._actor.status.remote())
            except NodeFailed:  # it has ended, and nobody asked in a while
                self._actor = None
            else:
                return status
        self._refresh()
        ledger, totals = self._ledger, self._ledger.totals
        gone = PipelineError(f"the job {self.name} is not running, and is not done", fix="Resume it.")
        return JobStatus(
            finished=True,
            failure=None if ledger.ended else gone,
            files=totals.files,
            bytes=totals.bytes,
            matches=totals.matches,
            errors=len(ledger.failures()),
            skipped=0,
            notes=(),
            nodes=(),
        )

    def _results(self) -> tuple[list[Failure], list[Skipped]]:
        if self._actor is not None:
            with contextlib.suppress(UringActorsError):
                results: tuple[list[Failure], list[Skipped]] = answer(self._actor.results.remote())
                return results
        self._refresh()
        return self._ledger.failures(), []

    @property
    def errors(self) -> pa.Table:
        """What could not be scanned, so far (``ERROR_SCHEMA``)."""
        return errors_table(self._results()[0])

    @property
    def skipped(self) -> pa.Table:
        """What was left out by the rules, so far (``SKIPPED_SCHEMA``)."""
        return skipped_table(self._results()[1])

    @property
    def nodes(self) -> pa.Table:
        """How each node has fared, so far (``NODE_SCHEMA``)."""
        return nodes_table(self._status().nodes)

    @property
    def stats(self) -> ScanStats:
        """A snapshot. Times count from when this was attached."""
        status = self._status()
        known = f"the job is {self.name}, and goes on without this process: attach to it by its name or directory"
        return job_stats(
            status if status.finished else replace(status, notes=(known, *status.notes)),
            matches=status.matches,
            seconds=(self._ended or time.monotonic()) - self._began,
            first=None if self._first_row is None else self._first_row - self._began,
            engine="ray",
            io="",
        )

    def stop(self) -> None:
        """End the job. It can be resumed."""
        if self._actor is not None:
            with contextlib.suppress(UringActorsError, ray.exceptions.RayError):
                answer(self._actor.stop.remote(dismiss=True))
            kill(self._actor)
            self._actor = None

    def close(self) -> None:
        """Look no more; the job goes on. Idempotent."""
        self._ended = self._ended or time.monotonic()

    def __enter__(self) -> AttachedJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

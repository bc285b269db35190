"""From the arguments of ``scan`` to a running job."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from uring_actors.config import ScanOptions
from uring_actors.errors import OptionError
from uring_actors.many.crew import Crew, LocalCrew
from uring_actors.many.job import JobScan
from uring_actors.many.leases import Limits
from uring_actors.many.orchestrator import JobPlan
from uring_actors.many.paths import HostLocal, split
from uring_actors.many.progress import fingerprint
from uring_actors.many.receiver import with_node_column
from uring_actors.node import NodeSpec
from uring_actors.ops.base import Operation
from uring_actors.plan import AnyPath, devices


def start_job(
    paths: AnyPath | HostLocal | Iterable[AnyPath | HostLocal],
    operation: Operation,
    options: ScanOptions,
    *,
    address: str | None,
    nodes: Mapping[str, str] | None,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> JobScan:
    """Start a job; see ``uring_actors.scan`` for the arguments and what is raised."""
    shared, local = split(paths)
    if address is None and (local or nodes):
        raise OptionError("host-local paths and a choice of nodes are for a cluster", fix="Give its address.")
    if resume and checkpoint is None:
        raise OptionError("there is nothing to resume without a checkpoint", fix="Name its directory.")
    scratch = tempfile.TemporaryDirectory(prefix="uring_actors-") if checkpoint is None else None
    directory = Path(scratch.name if scratch else checkpoint or "").absolute()
    plan = JobPlan(
        shared=tuple(shared),
        local=tuple(local),
        directory=directory,
        fingerprint=fingerprint(operation, [*shared, b"", *local]),
        run=uuid.uuid4().hex,
        resume=resume,
        durable=checkpoint is not None,
        schema=(with_node_column(operation.schema) if local else operation.schema).serialize().to_pybytes(),
        limits=Limits(bytes=options.lease_bytes, held_bytes=4 * options.lease_bytes),
    )
    try:
        crew = _crew(plan, operation, options, address, nodes)
        try:
            for report in crew.status().nodes:
                for note in report.notes:
                    warnings.warn(note, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:  # the caller made errors of warnings
            crew.close()
            raise
    except BaseException:
        if scratch is not None:
            scratch.cleanup()
        raise
    return JobScan(
        crew,
        operation.schema,
        with_node=bool(local),
        engine=options.engine,
        io=options.io,
        run=plan.run,
        directory=None if checkpoint is None else directory,
        scratch=scratch,
    )


def _crew(
    plan: JobPlan, operation: Operation, options: ScanOptions, address: str | None, nodes: Mapping[str, str] | None
) -> Crew:
    if address is None:
        spec = NodeSpec.decide(operation, options, devices(plan.shared))
        return LocalCrew(plan, spec, socket.gethostname())
    from uring_actors.many.cluster import RayCrew, Setup  # Ray takes a second to import: only where it is used

    return RayCrew(Setup(plan, operation, options, dict(nodes or {}), detached=False), address)

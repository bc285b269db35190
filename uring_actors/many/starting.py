"""From the arguments of ``scan`` to a running job."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uring_actors.config import ScanOptions
from uring_actors.errors import OptionError
from uring_actors.many.crew import Crew, LocalCrew
from uring_actors.many.job import JobScan
from uring_actors.many.leases import SPLIT_ABOVE, Limits
from uring_actors.many.orchestrator import JobPlan
from uring_actors.many.paths import HostLocal, split
from uring_actors.many.progress import fingerprint
from uring_actors.many.receiver import with_node_column
from uring_actors.node import NodeSpec
from uring_actors.ops.base import Operation
from uring_actors.plan import AnyPath, devices
from uring_actors.publisher import ScanJob
from uring_actors.selection import Selection

if TYPE_CHECKING:
    from uring_actors.many.attached import AttachedJob


def start_job(
    paths: AnyPath | HostLocal | Iterable[AnyPath | HostLocal],
    operation: Operation,
    options: ScanOptions,
    selection: Selection,
    *,
    address: str | None,
    nodes: Mapping[str, str] | None,
    checkpoint: str | os.PathLike[str] | None,
    output_dir: str | os.PathLike[str] | None,
    resume: bool,
) -> JobScan | AttachedJob:
    """Start a job; see ``uring_actors.scan`` for the arguments and what is raised."""
    shared, local = split(paths)
    if address is None and (local or nodes):
        raise OptionError("host-local paths and a choice of nodes are for a cluster", fix="Give its address.")
    if output_dir is not None and (address is None or checkpoint is not None):
        raise OptionError(
            "an output directory is for a job on a cluster, and is its checkpoint too", fix="Give one of the two."
        )
    kept = checkpoint if output_dir is None else output_dir
    if resume and kept is None:
        raise OptionError("there is nothing to resume without a checkpoint", fix="Name its directory.")
    scratch = tempfile.TemporaryDirectory(prefix="uring_actors-") if kept is None else None
    plan = JobPlan(
        shared=tuple(shared),
        local=tuple(local),
        directory=Path(scratch.name if scratch else kept or "").absolute(),
        selection=selection,
        fingerprint=fingerprint(operation, selection, [*shared, b"", *local]),
        run=f"scan-{uuid.uuid4().hex[:12]}",
        resume=resume,
        durable=kept is not None,
        schema=(with_node_column(operation.schema) if local else operation.schema).serialize().to_pybytes(),
        limits=Limits(
            bytes=options.lease_bytes,
            held_bytes=4 * options.lease_bytes,
            split_bytes=SPLIT_ABOVE * options.lease_bytes,
        ),
        splits=operation.splits,
        extent=_extent(operation, options) if operation.splits else 0,
    )
    if output_dir is not None and address is not None:
        from uring_actors.many.attached import submit
        from uring_actors.many.setup import Setup

        return submit(Setup.of(plan, operation, options, dict(nodes or {}), detached=True), address)
    try:
        crew = _crew(plan, operation, options, address, nodes)
        try:
            for report in crew.status().nodes:
                for note in report.facts.notes:
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
        journal_of=plan.directory,
        directory=None if checkpoint is None else plan.directory,
        scratch=scratch,
    )


def _extent(operation: Operation, options: ScanOptions) -> int:
    """Payload bytes of an extent, on whichever node: what splits has the same context everywhere."""
    job = ScanJob.fit(options.slot_bytes, operation.opcode, halo=operation.halo, lead=operation.lead)
    return job.geometry.payload


def _crew(
    plan: JobPlan, operation: Operation, options: ScanOptions, address: str | None, nodes: Mapping[str, str] | None
) -> Crew:
    if address is None:
        spec = NodeSpec.decide(operation, options, devices(plan.shared))
        return LocalCrew(plan, spec, socket.gethostname())
    from uring_actors.many.cluster import RayCrew  # Ray takes a second to import: only where it is used
    from uring_actors.many.setup import Setup

    return RayCrew(Setup.of(plan, operation, options, dict(nodes or {}), detached=False), address)

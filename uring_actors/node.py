"""One node's pipeline: readers, publisher and kernel host around one arena.

``NodeSpec`` says what to build; it is picklable and decided once, where the node is. ``LocalNode`` runs all of it in
this process (the ``threads`` engine); ``actors.RayNode`` runs the same roles as Ray actors. Both are a ``Node``,
which is all that a scan knows. The pipeline is the unit of failure: when a part dies, the whole is torn down.

Life of a node: created → started → finishing (``finish``) → closed (idempotent; also after a failure).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena
from uring_actors.config import ScanOptions, resolve_sqpoll
from uring_actors.errors import IoUringSyscall, MemlockTooSmall, OptionError, UringActorsError, node_failure
from uring_actors.groups import Item
from uring_actors.kernel_host import HostStats, KernelHost
from uring_actors.megakernel import cuda
from uring_actors.ops.base import NotOnDevice, Operation
from uring_actors.plan import FileBatch, FileEntry
from uring_actors.publisher import Publisher, ScanJob
from uring_actors.reader import Reader, ReaderStats, choose_io_engine, pread_note
from uring_actors.results.errors import Failure

if TYPE_CHECKING:
    from uring_actors.actors import KeptRoles

_FEW_CORES = 4


def choose_backend(setting: str, operation: Operation) -> tuple[str, Operation, str | None]:
    """Where the kernel runs, ``"cpu"`` or ``"cuda"``; the operation as it runs there; and a note where ``auto`` does
    not use a GPU that is there.

    Raises OptionError where ``cuda`` is insisted on, and no GPU works or it can't run the operation.
    """
    if setting == "cpu" or (setting == "auto" and not cuda.looks_possible()):
        return "cpu", operation, None
    insist = setting == "cuda"
    reason = cuda.unavailable()
    if reason is None:
        try:
            return "cuda", operation.on_device(insist=insist), None
        except NotOnDevice as error:
            reason = str(error)
    if insist:
        raise OptionError(f"backend is cuda, but {reason}", fix="Use backend auto or cpu.")
    return "cpu", operation, f"the kernel runs on the CPU: {reason}"


def _pages(size: int) -> int:
    """``size`` rounded up to whole pages, at least one."""
    return max(1, -(-size // abi.PAGE)) * abi.PAGE


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """Everything that a node's roles are built from."""

    layout: ArenaLayout
    job: ScanJob
    operation: Operation
    devices: tuple[tuple[int, str], ...]
    """(st_dev, name), one reader each."""
    options: ScanOptions
    backend: str
    io_engine: str
    sqpoll: bool
    kernel_threads: int
    spins: int
    """Rounds of busy waiting before a loop sleeps: few where cores are few, since a spinning loop takes one."""
    notes: tuple[str, ...]

    @classmethod
    def decide(cls, operation: Operation, options: ScanOptions, devices: Mapping[int, str]) -> NodeSpec:
        """Choose what the options leave open, for this machine.

        Raises IoUringUnavailable or MemlockTooSmall where io_uring is insisted on and can't be had.
        """
        cores = len(os.sched_getaffinity(0))
        backend, operation, why_not = choose_backend(options.backend, operation)
        job = ScanJob.fit(
            options.slot_bytes,
            operation.opcode,
            halo=operation.halo,
            lead=operation.lead,
            operation=operation.parameter,
        )
        lanes = options.lanes * len(devices)
        layout = ArenaLayout(
            lanes, options.slots, options.slot_bytes, _pages(operation.result_bytes(options.slot_bytes))
        )
        io_engine, note = choose_io_engine(options.io_engine, options.slots * options.slot_bytes * lanes)
        return cls(
            layout=layout,
            job=job,
            operation=operation,
            devices=tuple(devices.items()),
            options=options,
            backend=backend,
            io_engine=io_engine,
            sqpoll=io_engine != "pread" and resolve_sqpoll(cores, lanes, options.sqpoll),
            kernel_threads=options.kernel_threads or cores,
            spins=100 if cores <= _FEW_CORES else 2000,
            notes=tuple(text for text in (note, why_not, *operation.notes) if text),
        )

    def with_pread(self, error: UringActorsError) -> NodeSpec:
        """The same without io_uring, which ``error`` says can't be had."""
        return replace(self, io_engine="pread", sqpoll=False, notes=(*self.notes, pread_note(error)))

    def lanes_of(self, reader: int) -> range:
        """The lanes of the ``reader``-th device."""
        return range(reader * self.options.lanes, (reader + 1) * self.options.lanes)

    def make_reader(self, arena: Arena, reader: int) -> Reader:
        return Reader(
            arena,
            self.devices[reader][1],
            self.lanes_of(reader),
            self.job.geometry,
            io_engine=self.io_engine,
            io=self.options.io,
            sqpoll=self.sqpoll,
            spin=self.spins,
            pack=self.packs,
        )

    @property
    def packs(self) -> bool:
        """Whether small files are packed into data slots: where the kernel is on the CPU, unless the page cache is to
        be left alone. Operations that know nothing of it (``ops/base.py``) get a slot for each file."""
        return self.backend == "cpu" and self.options.io != "direct" and self.operation.packs

    def make_publisher(self, arena: Arena) -> Publisher:
        return Publisher(arena, self.job, spins=self.spins)

    def make_host(self, arena: Arena) -> KernelHost:
        return KernelHost(
            arena, self.job, self.operation, backend=self.backend, threads=self.kernel_threads, spins=self.spins
        )

    def by_reader(self, files: Sequence[FileEntry]) -> dict[int, FileBatch]:
        """Files with bytes to read, by the reader of their device. Any reader can read a file on a device that was
        not foreseen (a mount below the given paths that appeared later), so the first takes those."""
        numbers = {device: i for i, (device, _) in enumerate(self.devices)}
        batch = FileBatch.of(files)
        found, where = np.unique(batch.devices, return_inverse=True)
        readers = np.array([numbers.get(device, 0) for device in found.tolist()])[where]
        readers[batch.sizes == 0] = -1
        return {
            reader: batch.take(np.flatnonzero(readers == reader))
            for reader in np.unique(readers).tolist()
            if reader >= 0
        }


@dataclass(frozen=True, slots=True)
class NodeStats:
    """What a node says of itself, while it runs and at the end."""

    host: HostStats
    readers: tuple[ReaderStats, ...]

    @property
    def io(self) -> str:
        """How files were opened so far: direct, buffered, direct+buffered, or nothing yet."""
        direct = sum(reader.files_direct for reader in self.readers)
        opened = sum(reader.files_opened for reader in self.readers)
        return "+".join(["direct"] * (direct > 0) + ["buffered"] * (opened > direct))


class Node(Protocol):
    """A running node pipeline."""

    spec: NodeSpec

    def start(self) -> None: ...

    def submit(self, files: Sequence[FileEntry], group: int | None = None) -> None:
        """Scan these files. Blocks while the node has enough to do. ``group``: they are all that it has, and come
        back as such (``groups.py``); a node gets all its files in groups, or none."""

    def finish(self, total: int) -> None:
        """``total`` files were submitted in all; no more will be."""

    def batches(self, check: Callable[[], None]) -> Iterator[Item]:
        """Rows until all files are done. Raises NodeFailed where a part of the pipeline died, and whatever
        ``check`` raises, which is called now and then."""

    def check(self) -> None:
        """Raise what a part of the pipeline died of, if any has."""

    def stats(self) -> NodeStats: ...

    def failures(self) -> list[Failure]:
        """What could not be scanned so far."""

    def close(self) -> None: ...


class LocalNode:
    """All roles in this process."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec = spec
        self._closed = False
        self._arena = Arena.create(spec.layout)
        try:
            self._host = spec.make_host(self._arena)
            self._publisher = spec.make_publisher(self._arena)
            self._readers = [spec.make_reader(self._arena, i) for i in range(len(spec.devices))]
        except BaseException:
            self._arena.close()
            raise

    def start(self) -> None:
        self._host.start()
        self._publisher.start()
        for reader in self._readers:
            reader.start()

    def submit(self, files: Sequence[FileEntry], group: int | None = None) -> None:
        self._host.add_files(files, group)
        for reader, part in self.spec.by_reader(files).items():
            self._readers[reader].submit(part)

    def finish(self, total: int) -> None:
        for reader in self._readers:
            reader.drain()
        self._host.finish(total)

    def batches(self, check: Callable[[], None]) -> Iterator[Item]:
        for bundle in self.bundles(check):
            yield from bundle

    def bundles(self, check: Callable[[], None]) -> Iterator[list[Item]]:
        """As ``batches``: together what came at once."""

        def both() -> None:
            self.check()
            check()

        return self._host.bundles(both)

    def check(self) -> None:
        for role, part in self._parts():
            if part.failure is not None:
                raise node_failure(role, part.failure) from part.failure

    def _parts(self) -> Iterator[tuple[str, Reader | Publisher | KernelHost]]:
        for reader, (_, device) in zip(self._readers, self.spec.devices, strict=True):
            yield f"reader of {device}", reader
        yield "publisher", self._publisher
        yield "kernel host", self._host

    def stats(self) -> NodeStats:
        return NodeStats(self._host.stats(), tuple(reader.stats() for reader in self._readers))

    def failures(self) -> list[Failure]:
        return self._host.failures()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Readers first: no read may land in memory that is going away. A part that does not end keeps no other from
        # ending, but it keeps the arena mapped.
        failure: UringActorsError | None = None
        for _, part in self._parts():
            try:
                part.close()
            except UringActorsError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self._arena.close()


def start_node(
    spec: NodeSpec, *, kept: KeptRoles | None = None, local: Callable[[NodeSpec], Node] = LocalNode
) -> Node:
    """The node, started. Under ``io_engine="auto"`` with pread where only setting the lanes up shows that io_uring
    can't be had: RLIMIT_MEMLOCK counts for all of a user's processes together. kept: see ``RayNode``. local: what
    a node in this process is made by."""
    try:
        return _started(spec, kept, local)
    except (IoUringSyscall, MemlockTooSmall) as error:
        if spec.options.io_engine != "auto" or spec.io_engine != "uring":
            raise
        return _started(spec.with_pread(error), kept, local)


def _started(spec: NodeSpec, kept: KeptRoles | None, local: Callable[[NodeSpec], Node]) -> Node:
    if spec.options.engine == "threads":
        node = local(spec)
    else:
        from uring_actors.actors import RayNode  # Ray takes a second to import: only where it is used

        node = RayNode(spec, kept)
    try:
        node.start()
    except BaseException:
        node.close()
        raise
    return node

"""One node's agent: it builds the node's pipeline, keeps it fed with leases, and builds it anew when it dies.

    agent = Agent(name, desk, make_node, local_paths)
    for pipeline, item in agent.items(): …          item None: that pipeline is lost, and all that it left unfinished

Where somebody else takes the items from the pipeline, ``tend`` does the rest. A pipeline has a name of its own, so
what comes late of a dead one can be told from its successor's. A feeding thread asks the desk (the orchestrator)
for leases; another lists the node's own disks, where the job has such paths, once in the agent's life. The agent
ends when the desk says that the job is finished, or raises what kept the node from working.

File numbers count from 0 within a pipeline. A shared file's ``st_dev`` is another on each node; the agent replaces
it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

from uring_actors.errors import InputError, OptionError, PipelineError, UringActorsError
from uring_actors.feeder import Feeder
from uring_actors.groups import GroupEnd, GroupRows
from uring_actors.many.orchestrator import Facts, Work
from uring_actors.node import Node, NodeSpec
from uring_actors.plan import FileEntry, walk
from uring_actors.results.errors import Failure, Skipped
from uring_actors.selection import Selection

REBUILDS: Final = 3
"""So many pipelines in a row may die without having finished a lease."""
_OFFERED: Final = 256
_OFFER_SECONDS: Final = 0.05
_CHECK_SECONDS: Final = 0.1


class Desk(Protocol):
    """The orchestrator, as an agent knows it."""

    def ask(self, pipeline: str, node: str) -> Work: ...
    def begin_listing(self, node: str) -> None: ...
    def offer(self, node: str, items: Sequence[FileEntry | Failure | Skipped], *, last: bool) -> bool: ...
    def working(self, node: str, facts: Facts) -> None: ...
    def lose(self, pipeline: str, message: str) -> int: ...


class Agent:
    """Life: created → running (``items`` or ``tend``) → closed (idempotent)."""

    def __init__(
        self,
        name: str,
        desk: Desk,
        make_node: Callable[[], Node],
        local: Sequence[bytes] = (),
        selection: Selection | None = None,
    ) -> None:
        """make_node: a started node; what it raises is why this node can't work."""
        self.name = name
        self._desk = desk
        self._make_node = make_node
        self._local, self._selection = list(local), selection
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._feeder: _LeaseFeeder | None = None
        self._lister = threading.Thread(target=self._list, name="lister", daemon=True)
        self._died_in_a_row = 0

    def items(self) -> Iterator[tuple[str, GroupRows | GroupEnd | None]]:
        """What the node's pipelines yield. Raises what the last of them died of, when too many have."""
        while (feeder := self._next_pipeline()) is not None:
            try:
                for item in feeder.node.batches(self._check):
                    assert isinstance(item, (GroupRows, GroupEnd)), "all files come in groups"
                    yield feeder.pipeline, item
                return
            except PipelineError as error:
                self._lost(feeder, error)
            yield feeder.pipeline, None

    def tend(self, started: Callable[[str, Node], None]) -> None:
        """The same, where somebody else takes the items: ``started`` is told of every pipeline."""
        while (feeder := self._next_pipeline()) is not None:
            try:
                started(feeder.pipeline, feeder.node)
                while not (feeder.ended.wait(_CHECK_SECONDS) or self._closing.is_set()):
                    feeder.node.check()
                    self._check()
                self._check()
                return
            except PipelineError as error:
                self._lost(feeder, error)

    def _next_pipeline(self) -> _LeaseFeeder | None:
        if self._local and self._lister.ident is None:
            self._desk.begin_listing(self.name)
            self._lister.start()
        while not self._closing.is_set():
            pipeline = uuid.uuid4().hex[:12]
            try:
                node = self._make_node()
            except (OptionError, InputError):
                raise
            except PipelineError as error:
                self._died_in_a_row += 1
                self._desk.lose(pipeline, str(error))
                if self._died_in_a_row > REBUILDS:
                    raise
                continue
            self._desk.working(self.name, facts_of(node.spec))
            self._feeder = _LeaseFeeder(pipeline, self.name, node, self._desk)
            self._feeder.start()
            return self._feeder
        return None

    def _lost(self, feeder: _LeaseFeeder, error: PipelineError) -> None:
        feeder.stop()
        with contextlib.suppress(UringActorsError):  # it is broken: that it ends badly is no news
            feeder.node.close()
        finished = self._desk.lose(feeder.pipeline, str(error))
        self._died_in_a_row = 1 if finished else self._died_in_a_row + 1
        if self._died_in_a_row > REBUILDS:
            raise error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._feeder is not None:
            self._feeder.check()

    # ── the node's own disks ─────────────────────────────────────────────────────────────────────────────────
    def _list(self) -> None:
        try:
            items: list[FileEntry | Failure | Skipped] = []
            offered = time.monotonic()
            for item in self._walk():
                items.append(item)
                if len(items) >= _OFFERED or time.monotonic() - offered >= _OFFER_SECONDS:
                    self._offer(items, last=False)
                    items, offered = [], time.monotonic()
            self._offer(items, last=True)
        except BaseException as error:
            self._failure = error

    def _walk(self) -> Iterator[FileEntry | Failure | Skipped]:
        present = []
        for path in self._local:
            try:
                os.stat(path)
                present.append(path)
            except OSError as error:
                yield Failure(path, "cannot scan this path", errno=error.errno)
        if present:
            yield from walk(present, self._selection)

    def _offer(self, items: Sequence[FileEntry | Failure | Skipped], *, last: bool) -> None:
        while not self._closing.is_set() and not self._desk.offer(self.name, items, last=last):
            self._closing.wait(_OFFER_SECONDS)

    def stop(self) -> None:
        """From another thread: have ``tend`` end."""
        self._closing.set()

    def close(self) -> None:
        self._closing.set()
        if self._feeder is not None:
            self._feeder.stop()
            self._feeder.node.close()
            self._feeder.join()
        if self._lister.ident is not None:
            self._lister.join(10)


def facts_of(spec: NodeSpec) -> Facts:
    names = tuple(name for _, name in spec.devices)
    return Facts(spec.backend, spec.io_engine, spec.sqpoll, names, spec.notes)


class _LeaseFeeder(Feeder):
    """Keeps one pipeline fed with leases."""

    def __init__(self, pipeline: str, name: str, node: Node, desk: Desk) -> None:
        super().__init__(node)
        self.pipeline = pipeline
        self._name = name
        self._desk = desk
        self._files = 0
        self._devices: dict[int, int] = {}

    def _feed(self) -> None:
        while not self._stopping.is_set():
            work = self._desk.ask(self.pipeline, self._name)
            for lease in work.leases:
                local = lease.node is not None
                self.node.submit([self._here(entry, local) for entry in lease.files], lease.id)
            if work.finished:
                self.node.finish(self._files)
                break

    def _here(self, entry: FileEntry, local: bool) -> FileEntry:
        number = self._files
        self._files += 1
        return replace(entry, id=number, device=entry.device if local else self._device(entry))

    def _device(self, entry: FileEntry) -> int:
        """The device as this node numbers it, by the first file on it; the reader checks each file's inode."""
        if entry.device not in self._devices:
            try:
                self._devices[entry.device] = os.stat(entry.path).st_dev
            except OSError:  # opening it will fail, and say so
                return entry.device
        return self._devices[entry.device]

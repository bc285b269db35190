"""Leases: who works on which files, until when, and what comes next. Bookkeeping only: no thread, no clock, no Ray.

A *lease* is some files, bounded in bytes and in number; a larger file, or a piece of one, is a lease of its own. It
is *granted* to a pipeline, which becomes one of its holders, and ends when one holder's work is *acknowledged*: the
first to be. From then on it is unknown, and whatever else comes of it is dropped; that is how each row counts once.

    pending ──grant──▶ held ──acknowledge──▶ gone
       ▲                │ lose: its last holder died
       └────────────────┘

A pipeline holds little more than it needs to stay busy, so slow ones get less; it is filled up when half of that is
done. When nothing is pending, an idle pipeline gets a copy of the lease that is overdue longest; so does any pipeline
where a lease's deadline has passed. A lease whose holders died several times is granted *alone*, to a pipeline that
holds nothing else: the file that kills pipelines takes no other down with it. After ``LOSSES_MAX`` it is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from uring_actors.config import MIB
from uring_actors.plan import FileEntry

SPLIT_ABOVE: Final = 4
"""A shared file larger than so many leases is split, where the operation has a way of it."""
LOSSES_ALONE: Final = 2
LOSSES_MAX: Final = 4
_AT_LEAST: Final = 2
"""Leases that a pipeline should hold: where it has fewer, it gets what is listed, however little that is."""
_PATIENCE: Final = 4.0
"""An idle pipeline takes over what others have held for so many times as long as leases take on average."""
_PATIENCE_SECONDS: Final = 2.0
"""And at least that long."""
_SLOWEST: Final = 4 * MIB
"""Bytes a second that any pipeline is trusted to manage: what a deadline adds for a large lease."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of leases, and how many of them a pipeline holds."""

    bytes: int = 64 * MIB
    files: int = 1024
    split_bytes: int = SPLIT_ABOVE * 64 * MIB
    """A shared file with more is split into pieces of ``bytes`` each."""
    held_bytes: int = 256 * MIB
    held: int = 8
    pending: int = 64
    """Leases listed and not granted, by node, from which on listing waits."""
    seconds: float = 60.0
    """Until a lease that is not acknowledged is granted to another as well."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Some files. ``node``: whose disk they lie on; None: any node can read them."""

    id: int
    node: str | None
    files: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.length for entry in self.files)


@dataclass(slots=True)
class _Held:
    lease: Lease
    bytes: int
    losses: int = 0
    since: float = 0.0
    """When it was last granted."""
    holders: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Listing:
    """One node's files, or the shared ones (node None)."""

    open: list[FileEntry] = field(default_factory=list)
    open_bytes: int = 0
    pending: deque[_Held] = field(default_factory=deque)
    ended: bool = False


class LeaseBook:
    """All leases of a job. ``first``: the first lease's id, which must differ from all earlier ones' of the job."""

    def __init__(self, limits: Limits, first: int = 0) -> None:
        self._limits = limits
        self._next = first
        self._shared = _Listing()
        self._local: dict[str, _Listing] = {}
        self._held: dict[int, _Held] = {}
        self._of_pipeline: dict[str, set[int]] = {}
        self._seconds = 0.0
        self._acknowledged = 0

    # ── listing ──────────────────────────────────────────────────────────────────────────────────────────────
    def _listing(self, node: str | None) -> _Listing:
        return self._shared if node is None else self._local.setdefault(node, _Listing())

    def add(self, node: str | None, entry: FileEntry) -> None:
        """A file that was listed, or a piece of one, which is a lease of its own."""
        listing = self._listing(node)
        if listing.open and (entry.piece is not None or listing.open_bytes + entry.length > self._limits.bytes):
            self.close_open(node)
        listing.open.append(entry)
        listing.open_bytes += entry.length
        if entry.piece is not None:
            self.close_open(node, next_up=bool(entry.piece.resume))
        elif listing.open_bytes >= self._limits.bytes or len(listing.open) >= self._limits.files:
            self.close_open(node)

    def close_open(self, node: str | None, *, next_up: bool = False) -> None:
        """What was listed since the last lease becomes one, so that work can begin; ``next_up``: with this one, for
        which others wait."""
        listing = self._listing(node)
        if listing.open:
            lease = Lease(self._next, node, tuple(listing.open))
            self._next += 1
            held = _Held(lease, listing.open_bytes)
            if next_up:
                listing.pending.appendleft(held)
            else:
                listing.pending.append(held)
            listing.open, listing.open_bytes = [], 0

    def end_listing(self, node: str | None) -> None:
        self.close_open(node)
        self._listing(node).ended = True

    def full(self, node: str | None) -> bool:
        """Whether listing should wait."""
        return len(self._listing(node).pending) >= self._limits.pending

    @property
    def more(self) -> bool:
        """Whether leases are listed that nobody holds."""
        return any(listing.pending for listing in (self._shared, *self._local.values()))

    def forget(self, node: str) -> None:
        """Drop what is listed for a node and not acknowledged: it is listed again, or is lost."""
        self._local[node] = _Listing()
        for number in [number for number, held in self._held.items() if held.lease.node == node]:
            self._remove(number)

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────
    def grant(self, pipeline: str, node: str, now: float) -> list[Lease]:
        """What fills the pipeline up, where at least half of what it may hold is done: several at once, for each
        answer is a call of Ray's, which takes a millisecond of either side."""
        granted: list[Lease] = []
        if self._has_enough(pipeline):
            return granted
        while (held := self._choose(pipeline, node, now)) is not None:
            held.since = now
            held.holders.add(pipeline)
            self._held[held.lease.id] = held
            self._of_pipeline.setdefault(pipeline, set()).add(held.lease.id)
            granted.append(held.lease)
        return granted

    def _has_enough(self, pipeline: str) -> bool:
        mine = self._of_pipeline.get(pipeline, ())
        many = 2 * len(mine) > self._limits.held or 2 * self.held_bytes(pipeline) > self._limits.held_bytes
        return many and len(mine) > _AT_LEAST

    def _choose(self, pipeline: str, node: str, now: float) -> _Held | None:
        mine = [self._held[number] for number in self._of_pipeline.get(pipeline, ())]
        if any(held.losses >= LOSSES_ALONE for held in mine):
            return None
        if mine and (len(mine) >= self._limits.held or sum(held.bytes for held in mine) >= self._limits.held_bytes):
            return None
        expired = self._overdue(pipeline, now, hard=True)
        if expired is not None:
            return expired
        for place in (node, None):
            if len(mine) < _AT_LEAST and not self._listing(place).pending:
                self.close_open(place)
            pending = self._listing(place).pending
            if pending and not (mine and pending[0].losses >= LOSSES_ALONE):
                return pending.popleft()
        return None if mine else self._overdue(pipeline, now, hard=False)

    def _overdue(self, pipeline: str, now: float, *, hard: bool) -> _Held | None:
        """The shared lease of others that is out longest, if too long. ``hard``: past its deadline."""
        mean = self._seconds / self._acknowledged if self._acknowledged else self._limits.seconds
        found: _Held | None = None
        for held in self._held.values():
            patience = self._limits.seconds + held.bytes / _SLOWEST
            if not hard:
                patience = min(patience, max(_PATIENCE_SECONDS, _PATIENCE * mean))
            if held.lease.node is None and pipeline not in held.holders and now - held.since >= patience:
                found = held if found is None or held.since < found.since else found
        return found

    def acknowledge(self, number: int, now: float) -> Lease | None:
        """The lease is done: from now on it is unknown. None where it is so already."""
        held = self._remove(number)
        if held is None:
            return None
        self._acknowledged += 1
        self._seconds += now - held.since
        return held.lease

    def lose(self, pipeline: str) -> list[Lease]:
        """The pipeline has died: its leases are pending again, but for those returned, which are given up."""
        given_up = []
        for number in sorted(self._of_pipeline.pop(pipeline, ()), reverse=True):
            held = self._held[number]
            held.holders.discard(pipeline)
            held.losses += 1
            if held.holders:
                continue
            del self._held[number]
            if held.losses >= LOSSES_MAX:
                given_up.append(held.lease)
                continue
            pending = self._listing(held.lease.node).pending
            if held.losses >= LOSSES_ALONE:
                pending.append(held)  # last, so that it holds nothing up
            else:
                pending.appendleft(held)
        return given_up

    def _remove(self, number: int) -> _Held | None:
        held = self._held.pop(number, None)
        if held is not None:
            for pipeline in held.holders:
                self._of_pipeline[pipeline].discard(number)
        return held

    def held_bytes(self, pipeline: str) -> int:
        """What would have to be done again if the pipeline died now."""
        return sum(self._held[number].bytes for number in self._of_pipeline.get(pipeline, ()))

    def idle(self, nodes: Sequence[str], *, shared: bool = True) -> bool:
        """Whether all is listed and acknowledged of those nodes' own files, and of the shared ones unless told not
        to look at them."""
        whose = {*nodes, *([None] if shared else [])}
        if any(held.lease.node in whose for held in self._held.values()):
            return False
        return all(one.ended and not one.pending and not one.open for one in map(self._listing, whose))

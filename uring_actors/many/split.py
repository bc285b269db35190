"""What of a file in pieces is done: bookkeeping from the journal's records, the same for whoever reads them.

Pieces are done in any order. From the file's start on, each whose predecessors are all *placed* is placed as well, if
it fits the border that they make (``pieces.py``): from then on its rows can be put right. One that doesn't fit has to
be scanned again, with what it should have begun with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from uring_actors.pieces import Border, Piece, PieceEnd


@dataclass(frozen=True, slots=True)
class DonePiece:
    """A piece that was acknowledged, and the lease that it was."""

    lease: int
    piece: Piece
    end: PieceEnd
    bytes: int
    matches: int
    failed: bool


class SplitFile:
    """One file, as it was listed. extent: bytes of the extents that pieces consist of."""

    def __init__(self, path: bytes, size: int, mtime_ns: int, inode: int, extent: int) -> None:
        self.path, self.size, self.mtime_ns, self.inode, self.extent = path, size, mtime_ns, inode, extent
        self.done: dict[int, DonePiece] = {}
        """By the piece's start."""
        self.placed: dict[int, Border] = {}
        """By lease: the border at which the piece begins. In the file's order."""
        self.frontier = Border()
        self.dropped = 0
        """Of the placed pieces' matches, how many go."""

    def same(self, size: int, mtime_ns: int, inode: int, extent: int) -> bool:
        """Whether a file as described is the same, cut into the same extents."""
        return (size, mtime_ns, inode, extent) == (self.size, self.mtime_ns, self.inode, self.extent)

    def add(self, done: DonePiece) -> list[int]:
        """A piece is done, perhaps for the second time. The leases of the pieces that are placed now."""
        self.done[done.piece.start] = done
        return self._advance()

    def forget_failed(self) -> list[DonePiece]:
        """Have the pieces that were not read, or not whole, scanned again; these are returned."""
        failed = [done for done in self.done.values() if done.failed]
        if failed:
            self.done = {start: done for start, done in self.done.items() if not done.failed}
            self.placed, self.frontier, self.dropped = {}, Border(), 0
            self._advance()
        return failed

    def _advance(self) -> list[int]:
        placed = []
        while (done := self.done.get(self.frontier.at)) is not None and self.frontier.fits(done.piece, done.end):
            self.placed[done.lease] = self.frontier
            self.dropped += self.frontier.dropped(done.piece, done.end)
            self.frontier = self.frontier.after(done.piece, done.end)
            placed.append(done.lease)
        return placed

    @property
    def complete(self) -> bool:
        """Whether all of the file is placed."""
        return self.frontier.at == self.size

    @property
    def latest(self) -> int:
        """The lease that was granted last."""
        return max(done.lease for done in self.done.values())

    @property
    def failed(self) -> bool:
        return any(done.failed for done in self.done.values())

    def misfit(self) -> Piece | None:
        """What has to be scanned again, now."""
        done = self.done.get(self.frontier.at)
        if done is None:
            return None
        return Piece(done.piece.start, done.piece.stop, tuple(sorted(self.frontier.resume.items())))

    def missing(self, most: int) -> Iterator[Piece]:
        """What has to be scanned: pieces of at most ``most`` bytes, or one extent."""
        again = self.misfit()
        if again is not None:
            yield again
        step = max(1, most // self.extent) * self.extent
        borders = [*sorted(self.done), self.size]
        at = 0
        while at < self.size:
            if at in self.done:
                at = self.done[at].piece.stop
                continue
            stop = min(at + step, borders[bisect_right(borders, at)])
            yield Piece(at, stop)
            at = stop

    def border_of(self, lease: int) -> tuple[DonePiece, Border]:
        """The piece that was the lease, and where it begins; it is placed."""
        border = self.placed[lease]
        return self.done[border.at], border

    def in_order(self) -> list[DonePiece]:
        return [self.done[border.at] for border in self.placed.values()]

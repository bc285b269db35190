"""Large files in pieces: contiguous runs of extents, each scanned by itself, on any node and in any order.

A file's settler (``ops/match/settle.py``) knows three things at each border between extents, and needs nothing else
to go on: how many newlines lie before it, where the last one is, and the *resume* of each pattern, which is where a
match ends that runs on behind the border. A piece's settler begins at its border as if there were none of these, and
leaves what it found between its borders (``PieceEnd``). ``Border.after`` puts the pieces' ends together, from the
file's start on, and so gives each piece the border that it should have begun with. Its rows are put right from that:

- Lines count from the piece's start: what lies before is added. Columns of rows with a newline of the piece before
  them are right; without one the column is ``start + 1``, which no other row can have (its newline is not before the
  piece's start, hence its column at most ``start``), and the last newline before the border decides.
- Let r be a pattern's resume at the border, and m₁ < m₂ < … its matches in the piece, as found. Each is the least
  start, from where the one before it ended (m₁: from the border), at which a match begins; so is the true chain, from
  r. Those with a start below r can't be in the true chain. Let e be where the last of them ends (the border, where
  there are none). With e <= r no match begins in [e, r): the next one as found, being the least start from e on, is
  the least from r on too, and from there both chains are the same. The rows with a start below r go, and that is
  all.
- With e > r a true match may begin in [r, e), where nothing was looked for. Then the piece does not *fit*: it is
  scanned again, by a settler that begins with the true resume, as a whole file's would have it at this border.

A start below r is nearer to the border than its pattern is wide, for a match that ends at r began before the border;
so ``PieceEnd.head`` has all matches that decide. Where bytes could not be read, the settler's rules are these same:
lines are unknown from there on, columns until the next newline, and chains begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

NO_NEWLINE: Final = -1
UNKNOWN: Final = -2
"""Of a number of newlines, and of the last one's place: what lies in between could not be read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of a file. Both are borders of extents, or the file's end.

    resume: by pattern, where a match ends that begins before the piece, as far as it is known beforehand.
    """

    start: int
    stop: int
    resume: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PieceEnd:
    """What a scanned piece leaves to those behind it. Offsets are the file's.

    newlines: how many it has, or UNKNOWN. newline: where its last one is, NO_NEWLINE or UNKNOWN. resume: by pattern,
    where a match ends behind the piece. head: (pattern, start, end) of matches that may overlap one from before it,
    in the order of their starts.
    """

    newlines: int = 0
    newline: int = NO_NEWLINE
    resume: tuple[tuple[int, int], ...] = ()
    head: tuple[tuple[int, int, int], ...] = ()


LOST: Final = PieceEnd(UNKNOWN, UNKNOWN)
"""Of a piece that was not read."""


@dataclass(frozen=True, slots=True)
class Border:
    """What is known at offset ``at`` of a file: newlines before it, the last one's place, by pattern the resume."""

    at: int = 0
    newlines: int = 0
    newline: int = NO_NEWLINE
    resume: Mapping[int, int] = field(default_factory=dict)

    def fits(self, piece: Piece, end: PieceEnd) -> bool:
        """Whether rows of a piece that begins here, scanned as ``piece`` says, can be put right."""
        if piece.resume:
            return dict(piece.resume) == self.resume
        last = {pattern: stop for pattern, start, stop in end.head if start < self.resume.get(pattern, 0)}
        return all(stop <= self.resume[pattern] for pattern, stop in last.items())

    def dropped(self, piece: Piece, end: PieceEnd) -> int:
        """How many rows of a piece that fits go."""
        if piece.resume:
            return 0
        return sum(start < self.resume.get(pattern, 0) for pattern, start, _ in end.head)

    def after(self, piece: Piece, end: PieceEnd) -> Border:
        """The border at the end of a piece that begins here and fits."""
        newlines = UNKNOWN if UNKNOWN in (self.newlines, end.newlines) else self.newlines + end.newlines
        newline = self.newline if end.newline == NO_NEWLINE else end.newline
        beyond = {pattern: stop for pattern, stop in self.resume.items() if stop > piece.stop}
        return Border(piece.stop, newlines, newline, {**dict(end.resume), **beyond})

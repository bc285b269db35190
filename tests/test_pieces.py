"""Pieces of a file, scanned apart and in any order, give what one pass over the whole file gives."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import crc32c
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.extents import Cut, Memory, Row, expected, plan
from tests.large_files import PATTERNS
from tests.test_settle import BOUNDED, LITERALS, SLOT, UTF8, payloads, texts
from uring_actors.many.receiver import with_node_column
from uring_actors.many.split import DonePiece, SplitFile
from uring_actors.ops.checksum import Checksum
from uring_actors.ops.joining import join, put_right
from uring_actors.ops.match.confirm import Unread
from uring_actors.ops.match.device import DeviceMatch
from uring_actors.ops.match.operation import Match
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.match.rows import Rows
from uring_actors.ops.match.settle import FileSettler
from uring_actors.pieces import UNKNOWN, Border, Piece, PieceEnd
from uring_actors.plan import FileEntry, path_of
from uring_actors.results.arrays import array
from uring_actors.results.schema import COUNT_SCHEMA, match_batch

KINDS = {"literal": LITERALS, "bounded": BOUNDED, "slot": SLOT, "utf8": UTF8}


class InPieces:
    """One file: its pieces settled by settlers of their own, put together as a ledger does it."""

    def __init__(
        self, plans: Sequence[PatternPlan], data: bytes, payload: int, most: int, seed: int, unread: Sequence[int]
    ) -> None:
        self.rng = random.Random(seed)
        self.cut = Cut(plans, data, payload, self.rng)
        self.names = pa.array([plan.name for plan in plans])
        self.unread = unread
        self.split = SplitFile(b"/file", len(data), 0, 1, payload)
        self.waiting = list(self.split.missing(most))
        self.rows: dict[int, Rows] = {}
        self.again = 0

    def run(self) -> list[Row]:
        lease = 0
        while self.waiting:
            piece = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            lease += 1
            self.rows[lease], end = self.settle(piece)
            self.split.add(DonePiece(lease, piece, end, piece.stop - piece.start, 0, False))
            misfit = self.split.misfit()
            if misfit is not None and misfit not in self.waiting:
                self.waiting.append(misfit)
                self.again += 1
        assert self.split.complete
        return sorted(row for lease in self.split.placed for row in self.put_right(lease))

    def settle(self, piece: Piece) -> tuple[Rows, PieceEnd]:
        payload, data = self.cut.payload, self.cut.data
        first = piece.start // payload
        settler = FileSettler(self.cut.plans, len(data), lambda: Memory(data), piece=piece, first=first)
        numbers = list(range(first, -(-piece.stop // payload)))
        self.rng.shuffle(numbers)
        parts = []
        for k in numbers:
            start, stop = k * payload, min(len(data), (k + 1) * payload)
            what = Unread(start, stop, 5) if k in self.unread else self.cut.extent(start)
            parts += [part.rows for part in settler.add(k, what) if len(part.rows)]
        assert settler.finished
        return Rows.join(parts) if parts else Rows.of([(0, 0, 0, 0, 0, b"")]), settler.end

    def put_right(self, lease: int) -> Iterator[Row]:
        rows = self.rows[lease]
        if not rows.end[0]:
            return
        done, border = self.split.border_of(lease)
        batch = match_batch([(b"/file\0%d" % done.piece.start, rows, 0, len(rows))], self.names)
        right = put_right(batch, b"/file", border, drop=not done.piece.resume)
        right.validate(full=True)
        assert set(right["path"].to_pylist()) <= {b"/file"}
        columns = [right[name] for name in ("pattern", "start", "end", "line", "column", "match")]
        patterns = columns[0].indices.to_pylist()
        yield from zip(patterns, *(column.to_pylist() for column in columns[1:]), strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_as_one_pass_over_the_whole_file(kind: str) -> None:
    @settings(max_examples=examples(150), deadline=None)
    @given(data=texts, payload=payloads, most=st.integers(1, 80), seed=st.integers(0, 9))
    def check(data: bytes, payload: int, most: int, seed: int) -> None:
        made = InPieces(KINDS[kind], data, payload, most, seed, ())
        assert made.run() == expected(KINDS[kind], data)
        event(f"scanned again: {made.again > 0}")
        event(f"rows dropped: {made.split.dropped > 0}")

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_with_extents_that_can_not_be_read(kind: str) -> None:
    """Line and column are unknown where a whole file's would be."""

    @settings(max_examples=examples(100), deadline=None)
    @given(
        data=texts,
        payload=payloads,
        most=st.integers(1, 80),
        seed=st.integers(0, 9),
        unread=st.sets(st.integers(0, 12), max_size=3),
    )
    def check(data: bytes, payload: int, most: int, seed: int, unread: set[int]) -> None:
        whole, _ = Cut(KINDS[kind], data, payload, random.Random(seed)).settle(unread=sorted(unread))
        assert InPieces(KINDS[kind], data, payload, most, seed, sorted(unread)).run() == whole

    check()


@pytest.mark.parametrize(
    ("data", "again", "dropped"),
    [
        (b"a" * 41, True, False),  # ``aa``, borders at odd places: each chain is off by one
        (b"....aaa....", True, False),
        (b"....aa.....", False, False),
        (b"...aaaab...", False, True),
    ],
)
def test_every_way_is_gone(data: bytes, again: bool, dropped: bool) -> None:
    """Examples that must be scanned again, and that only lose rows, as the tests above count them."""
    plans = [plan(0, Kind.BOUNDED, rb"a{2,5}", (2, 5))] if dropped else LITERALS[:1]
    made = InPieces(plans, data, 5, 5, 1, ())
    assert made.run() == expected(plans, data)
    assert (made.again > 0, made.split.dropped > 0) == (again, dropped)


@given(size=st.integers(1, 200), extent=st.integers(1, 50), most=st.integers(1, 90), data=st.data())
def test_what_is_missing_is_all_the_rest(size: int, extent: int, most: int, data: st.DataObject) -> None:
    split = SplitFile(b"/file", size, 0, 1, extent)
    pieces = list(split.missing(most))
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == size
    assert all(piece.start % extent == 0 for piece in pieces)
    done = data.draw(st.sets(st.sampled_from(pieces)))
    for number, piece in enumerate(done):
        split.add(DonePiece(number, piece, PieceEnd(), 0, 0, False))
    left = list(split.missing(data.draw(st.integers(1, 90))))
    covered = np.zeros(size, np.int64)
    for piece in [*done, *left]:
        covered[piece.start : piece.stop] += 1
    assert (covered == 1).all()
    assert split.frontier.at == min((piece.start for piece in left), default=size)


def test_a_name_for_each_piece() -> None:
    whole = FileEntry(0, b"/a", 100, 1, 1)
    pieces = [
        FileEntry(0, b"/a", 100, 1, 1, 0, Piece(*given)) for given in [(0, 50), (50, 100), (50, 100, ((1, 52),))]
    ]
    assert len({entry.name for entry in [whole, *pieces]}) == 4
    assert {path_of(entry.name) for entry in [whole, *pieces]} == {b"/a"}
    assert [entry.length for entry in pieces] == [50, 50, 50]


def test_the_gpu_has_the_same_extents() -> None:
    """Pieces are cut by the driver, which may have no GPU, for whichever node."""
    match = Match.of(PATTERNS)
    device = DeviceMatch.from_match(match, insist=True)
    assert (device.halo, device.lead) == (match.halo, match.lead)
    assert match.halo == match.plan_set.halo == device.plan_set.halo


def with_node(batch: pa.RecordBatch, node: str) -> pa.RecordBatch:
    names = pa.array([node] * len(batch)).dictionary_encode()
    return pa.RecordBatch.from_arrays([*batch.columns, names], schema=with_node_column(batch.schema))


def test_rows_that_say_their_node() -> None:
    """In a job with host-local paths; a joined row says where the file's first piece was read."""
    texts = [b"abcdef", b"", b"xyz"]
    made = [
        Checksum().batch([b"/f\0%d" % k], [0], [len(text)], [crc32c.crc32c(text)]) for k, text in enumerate(texts)
    ]
    pieces = [[with_node(batch, node)] for batch, node in zip(made, "abc", strict=True)]
    (row,) = join("checksum", pieces, b"/f", 0).to_pylist()
    assert row == {"path": b"/f", "bytes": 9, "crc32c": crc32c.crc32c(b"abcdefxyz"), "node": "a"}
    assert join("checksum", [*pieces, []], b"/f", 0) is None
    counts = [pa.RecordBatch.from_arrays([pa.array([b"/f\0"]), pa.array([n])], schema=COUNT_SCHEMA) for n in (3, 4)]
    (row,) = join("count", [[with_node(batch, "b")] for batch in counts], b"/f", 2).to_pylist()
    assert row == {"path": b"/f", "count": 5, "node": "b"}
    rows = Rows.of([(0, 105, 107, 1, 106, b"ab"), (0, 120, 122, 2, 4, b"ab")])
    batch = with_node(match_batch([(b"/f\0100", rows, 0, 2)], pa.array(["ab"])), "c")
    right = put_right(batch, b"/f", Border(100, 7, 90), drop=True).to_pylist()
    assert [(row["line"], row["column"], row["node"]) for row in right] == [(8, 15, "c"), (9, 4, "c")]


def test_what_lies_in_a_nulls_place_is_of_no_account() -> None:
    """Arrow leaves it undefined; here it looks like a column that has to be put right."""
    rows = Rows.of([(0, 105, 107, 1, 106, b"ab"), (0, 120, 122, 2, 4, b"ab")])
    batch = match_batch([(b"/f\0100", rows, 0, 2)], pa.array(["ab"]))
    null = np.array([True, False])
    for name in ("line", "column"):
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, batch.schema.field(at), array(np.array([106, 4]), pa.int64(), null=null))
    for newline in (90, UNKNOWN):
        right = put_right(batch, b"/f", Border(100, 7, newline), drop=True).to_pylist()
        assert [(row["line"], row["column"]) for row in right] == [(None, None), (11, 4)]


def test_what_fits() -> None:
    border = Border(100, 3, 90, {0: 105})
    piece = Piece(100, 200)
    assert border.fits(piece, PieceEnd(head=((1, 101, 108),)))
    assert border.fits(piece, PieceEnd(head=((0, 101, 103), (0, 103, 105))))
    assert border.dropped(piece, PieceEnd(head=((0, 101, 103), (0, 103, 105)))) == 2
    assert not border.fits(piece, PieceEnd(head=((0, 101, 103), (0, 103, 106))))
    assert border.fits(Piece(100, 200, ((0, 105),)), PieceEnd(head=((0, 105, 106),)))
    assert not border.fits(Piece(100, 200, ((0, 104),)), PieceEnd())
    assert border.after(piece, PieceEnd(2, 150)) == Border(200, 5, 150, {})
    assert border.after(piece, PieceEnd()) == Border(200, 3, 90, {})
    assert border.after(Piece(100, 103), PieceEnd()).resume == {0: 105}

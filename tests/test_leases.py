"""Leases: every file is acknowledged once, whoever asks, dies, is slow or comes late."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uring_actors.many.leases import LOSSES_MAX, Lease, LeaseBook, Limits
from uring_actors.pieces import Piece
from uring_actors.plan import FileEntry

LIMITS = Limits(bytes=100, files=4, held_bytes=250, held=3, pending=5, seconds=10)
NODES = ("a", "b", "c")


def entry(number: int, size: int) -> FileEntry:
    return FileEntry(number, b"/%d" % number, size, 1, number)


def listed(sizes: list[int], node: str | None = None, limits: Limits = LIMITS) -> LeaseBook:
    book = LeaseBook(limits)
    for number, size in enumerate(sizes):
        book.add(node, entry(number, size))
    book.end_listing(node)
    if node is not None:
        book.end_listing(None)
    return book


def numbers(leases: list[Lease]) -> list[int]:
    return [one.id for lease in leases for one in lease.files]


@pytest.mark.parametrize(
    ("size", "held_bytes", "held", "grants"),
    [
        (10, 40, 8, [4, 0, 2, 0, 2]),  # by bytes: up to four, two at a time
        (10, 1000, 6, [6, 0, 0, 3, 0, 0, 3]),  # by number
        (30, 40, 8, [2, 1, 1]),  # there are always two, so that one is at work while the other is acknowledged
        (50, 40, 8, [1, 1, 1]),  # each alone is more than a pipeline should hold
    ],
)
def test_filled_up_when_half_is_done(size: int, held_bytes: int, held: int, grants: list[int]) -> None:
    """What each ask brings, with one lease acknowledged between two of them."""
    book = listed([size] * 40, limits=Limits(bytes=size, files=1, held_bytes=held_bytes, held=held))
    mine: list[Lease] = []
    for expected in grants:
        granted = book.grant("p", "n", 0.0)
        assert len(granted) == expected
        mine += granted
        assert book.acknowledge(mine.pop(0).id, 0.0) is not None


@settings(max_examples=300)
@given(sizes=st.lists(st.integers(0, 300), max_size=40), data=st.data())
def test_each_file_once(sizes: list[int], data: st.DataObject) -> None:
    """Pipelines of three nodes ask, finish, and die at random, and the clock jumps: in the end each file was
    acknowledged once, or given up after its holders had died often enough."""
    book = LeaseBook(LIMITS, first=7)
    owners: list[str | None] = [data.draw(st.sampled_from([None, None, *NODES])) for _ in sizes]
    for number, (size, node) in enumerate(zip(sizes, owners, strict=True)):
        book.add(node, entry(number, size))
    for node in (None, *NODES):
        book.end_listing(node)
    generation = dict.fromkeys(NODES, 0)
    holds: dict[str, list[Lease]] = {}
    counted: Counter[int] = Counter()
    given_up: Counter[int] = Counter()
    losses: Counter[int] = Counter()
    now = 0.0
    for _ in range(data.draw(st.integers(0, 60))):
        node = data.draw(st.sampled_from(NODES))
        pipeline = f"{node}{generation[node]}"
        mine = holds.setdefault(pipeline, [])
        action = data.draw(st.sampled_from(["ask", "ask", "finish", "finish", "die", "wait"]))
        if action == "ask":
            granted = book.grant(pipeline, node, now)
            assert all(lease.node in (None, node) for lease in granted)
            mine += granted
            assert len({lease.id for lease in mine}) == len(mine), "granted twice to one pipeline"
        elif action == "finish" and mine:
            lease = mine.pop(data.draw(st.integers(0, len(mine) - 1)))
            if book.acknowledge(lease.id, now) is not None:
                counted.update(numbers([lease]))
        elif action == "die":
            losses.update(numbers(mine))
            given_up.update(numbers(book.lose(pipeline)))
            holds[pipeline] = []
            generation[node] += 1
        else:
            now += data.draw(st.sampled_from([0.1, 3.0, 30.0]))
    while not book.idle(NODES):
        now += 1
        for node in NODES:
            pipeline = f"{node}{generation[node]}"
            for lease in [*holds.get(pipeline, []), *book.grant(pipeline, node, now)]:
                if book.acknowledge(lease.id, now) is not None:
                    counted.update(numbers([lease]))
            holds[pipeline] = []
        assert now < 10_000
    assert not counted & given_up
    assert counted + given_up == Counter(range(len(sizes)))
    assert all(losses[number] >= LOSSES_MAX for number in given_up)


@pytest.mark.parametrize("sizes", [[], [0], [100], [99, 1], [99, 2], [101], [500], [0] * 9, [10, 200, 10], [60] * 7])
def test_sizes(sizes: list[int]) -> None:
    book = listed(sizes)
    seen: list[int] = []
    while leases := book.grant("p", "a", 0):
        held = sum(lease.bytes for lease in leases[:-1])
        assert held < LIMITS.held_bytes
        assert len(leases) <= LIMITS.held
        for lease in leases:
            assert lease.bytes <= LIMITS.bytes or len(lease.files) == 1
            assert 0 < len(lease.files) <= LIMITS.files
            book.acknowledge(lease.id, 1)
        seen += numbers(leases)
    assert seen == list(range(len(sizes)))
    assert book.idle([])


def test_a_piece_is_a_lease_of_its_own() -> None:
    """In the file's order; one that others wait for comes first."""
    book = LeaseBook(LIMITS)
    book.add(None, entry(0, 10))
    for start in (0, 100, 200):
        book.add(None, replace(entry(1, 250), piece=Piece(start, min(250, start + 100))))
    book.add(None, entry(2, 10))
    book.add(None, replace(entry(1, 250), piece=Piece(100, 200, ((0, 101),))))
    book.add(None, entry(3, 10))
    book.end_listing(None)
    seen = []
    while leases := book.grant("p", "a", 0):
        seen += [([one.id for one in lease.files], lease.files[0].start, lease.bytes) for lease in leases]
        for lease in leases:
            book.acknowledge(lease.id, 1)
    assert seen == [
        ([1], 100, 100),
        ([0], 0, 10),
        ([1], 0, 100),
        ([1], 100, 100),
        ([1], 200, 50),
        ([2], 0, 10),
        ([3], 0, 10),
    ]


def test_a_slow_pipeline_gets_less() -> None:
    book = listed([50] * 400)
    took = Counter()
    held: dict[str, list[Lease]] = {"fast": [], "slow": []}
    now = 0
    while not book.idle([]):
        now += 1
        for name, every in (("fast", 1), ("slow", 8)):
            held[name] += book.grant(name, name, now / 100)
            if now % every == 0 and held[name]:
                lease = held[name].pop(0)
                took[name] += book.acknowledge(lease.id, now / 100) is not None
    assert took["fast"] > 5 * took["slow"] > 0


def test_an_idle_pipeline_takes_over_what_is_overdue() -> None:
    book = listed([100] * 3)
    (first, *rest) = book.grant("slow", "a", 0.0)
    for lease in rest:
        book.acknowledge(lease.id, 1.0)
    assert book.grant("idle", "b", 1.5) == []
    assert book.grant("idle", "b", 5.0) == [first]
    assert book.grant("idle", "b", 500.0) == [], "it has it already"
    assert book.acknowledge(first.id, 6.0) == first
    assert book.acknowledge(first.id, 7.0) is None
    assert book.idle([])


def test_a_deadline_that_passed() -> None:
    """A lease that is not acknowledged in time is granted again, though there is other work."""
    book = listed([100] * 20)
    lost = book.grant("silent", "a", 0.0)
    again: set[int] = set()
    for turn in range(3):
        leases = book.grant("busy", "b", 60.0 + turn)
        again |= {lease.id for lease in leases}
        for lease in leases:
            book.acknowledge(lease.id, 60.0 + turn)
    assert {lease.id for lease in lost} <= again


def test_what_kills_pipelines_goes_alone() -> None:
    book = listed([10] * 4, limits=Limits(bytes=10, files=1, held_bytes=100, held=8))
    poison, died, finished = 2, 0, set()
    while not book.idle([]):
        name = f"p{died}"
        leases = book.grant(name, "a", 0)
        if any(poison in numbers([lease]) for lease in leases):
            died += 1
            assert died < LOSSES_MAX or len(leases) == 1
            given_up = book.lose(name)
            assert numbers(given_up) == ([poison] if died == LOSSES_MAX else [])
        else:
            for lease in leases:
                book.acknowledge(lease.id, 0)
                finished.update(numbers([lease]))
    assert died == LOSSES_MAX
    assert finished == {0, 1, 3}


def test_forgetting_a_node() -> None:
    book = listed([10] * 9, node="a")
    (lease, *_) = book.grant("p", "a", 0)
    book.forget("a")
    assert book.acknowledge(lease.id, 0) is None
    assert not book.idle(["a"])
    book.end_listing("a")
    assert book.idle(["a"])
    assert book.lose("p") == []

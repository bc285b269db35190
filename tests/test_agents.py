"""An orchestrator and several agents in this process, whose pipelines die at random: what the journal and the parts
say in the end is every row, once. What Ray adds is tested in ``test_many_nodes.py``."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import oracle
from uring_actors.config import ScanOptions
from uring_actors.errors import NodeFailed, PipelineError
from uring_actors.groups import GroupEnd, GroupRows, Item
from uring_actors.journal import Follower
from uring_actors.many.agent import REBUILDS, Agent
from uring_actors.many.leases import LOSSES_MAX, Limits
from uring_actors.many.orchestrator import OUT, JobPlan, Orchestrator
from uring_actors.many.progress import JOURNAL, Ledger
from uring_actors.many.receiver import Commit, Receiver
from uring_actors.node import LocalNode, NodeSpec
from uring_actors.ops.match.operation import Match
from uring_actors.plan import FileEntry, devices
from uring_actors.results.schema import MATCH_SCHEMA
from uring_actors.selection import Selection

PATTERNS = [ua.Regex("ne+dle")]
OPTIONS = ScanOptions(engine="threads", io_engine="pread", slot_bytes=65536, slots=4, kernel_threads=1)


class Mortal(LocalNode):
    """A node that dies after so many items, or when it is handed the file ``poison``."""

    def __init__(self, spec: NodeSpec, items: int | None, poison: bytes = b"none") -> None:
        super().__init__(spec)
        self._left = items
        self._poison = poison
        self._poisoned = threading.Event()
        self.start()

    def submit(self, files: Sequence[FileEntry], group: int | None = None) -> None:
        if any(entry.path.endswith(self._poison) for entry in files):
            self._poisoned.set()
        super().submit(files, group)

    def batches(self, check: Callable[[], None]) -> Iterator[Item]:
        for item in super().batches(check):
            if self._left == 0 or self._poisoned.is_set():
                raise NodeFailed("kernel host", "it was killed")
            self._left = None if self._left is None else self._left - 1
            yield item


def plan_of(folder: Path, directory: Path, **changes: object) -> JobPlan:
    plan = {
        "shared": (os.fsencode(folder),),
        "local": (),
        "selection": Selection(),
        "directory": directory,
        "fingerprint": "x",
        "run": "r",
        "resume": False,
        "durable": False,
        "schema": MATCH_SCHEMA.serialize().to_pybytes(),
        "limits": Limits(bytes=20_000, held_bytes=80_000, files=8),
    }
    return JobPlan(**{**plan, **changes})  # type: ignore[arg-type]


def commit_to(orchestrator: Orchestrator) -> Commit:
    return lambda done: [orchestrator.commit(*one) for one in done]


def work(orchestrator: Orchestrator, plan: JobPlan, name: str, make_node: Callable[[], LocalNode]) -> None:
    """What a node's actor does with a detached job."""
    agent = Agent(name, orchestrator, make_node, plan.local, plan.selection)
    receiver = Receiver(MATCH_SCHEMA, plan.directory, with_node=False, durable=False)
    try:
        for pipeline, item in agent.items():
            receiver.take([(pipeline, name, item)], commit_to(orchestrator))
    except PipelineError as error:
        orchestrator.report(name, OUT, str(error))
    finally:
        agent.close()
        receiver.close()


def run(plan: JobPlan, makers: dict[str, Callable[[], LocalNode]]) -> Orchestrator:
    orchestrator = Orchestrator(plan)
    threads = [
        threading.Thread(target=work, args=(orchestrator, plan, name, make), daemon=True)
        for name, make in makers.items()
    ]
    orchestrator.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    orchestrator.close()
    return orchestrator


def kept(directory: Path) -> pa.Table:
    ledger = Ledger(directory)
    for record in Follower(directory / JOURNAL).new():
        ledger.take(record)
    return pa.Table.from_batches([batch for lease in ledger.parts for batch in ledger.rows(lease)], MATCH_SCHEMA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    rng = random.Random(7)
    for number in range(80):
        words = (rng.choice([b"needle ", b"neeedle\n", *[b"nothing\n"] * 20]) for _ in range(rng.randrange(1500)))
        (path / f"{number:02}").write_bytes(b"".join(words))
    return path


@pytest.fixture(scope="module")
def spec(folder: Path) -> NodeSpec:
    return NodeSpec.decide(Match.of(PATTERNS), OPTIONS, devices(folder))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow(reason="more of the same")) for seed in range(2, 6))]
)
def test_pipelines_die_at_random(folder: Path, spec: NodeSpec, tmp_path: Path, seed: int) -> None:
    """One of three nodes never dies; the others' pipelines last for a few items each, some for none."""
    rng = random.Random(seed)
    makers: dict[str, Callable[[], LocalNode]] = {
        "steady": lambda: Mortal(spec, None),
        "weak": lambda: Mortal(spec, rng.choice([0, 1, 3, 8, 20, 60])),
        "weaker": lambda: Mortal(spec, rng.choice([0, 0, 2, 5])),
    }
    orchestrator = run(plan_of(folder, tmp_path), makers)
    status = orchestrator.status()
    given_up = {failure.path for failure in orchestrator.results()[0]}
    assert (status.finished, status.failure, status.files) == (True, None, 80 - len(given_up))
    scanned = [path for path in folder.iterdir() if os.fsencode(path) not in given_up]
    found, wanted = oracle.found(kept(tmp_path)), oracle.expected(scanned, PATTERNS)
    assert found == wanted, oracle.explain_difference(found, wanted)
    assert status.matches == len(wanted)
    assert sum(report.pipelines for report in status.nodes) > 0


def test_a_node_whose_pipelines_all_die_is_left_out(folder: Path, spec: NodeSpec, tmp_path: Path) -> None:
    plan = plan_of(folder, tmp_path)
    orchestrator = Orchestrator(plan)
    orchestrator.start()
    work(orchestrator, plan, "dead", lambda: Mortal(spec, 0))
    work(orchestrator, plan, "steady", lambda: Mortal(spec, None))
    orchestrator.close()
    status = orchestrator.status()
    by_name = {report.node: report for report in status.nodes}
    assert by_name["dead"].state == OUT
    assert by_name["dead"].pipelines == REBUILDS + 1
    assert by_name["dead"].files == 0
    assert by_name["steady"].files == 80
    assert any("dead is left out" in note for note in status.notes)


def test_a_file_that_kills_pipelines_is_given_up(folder: Path, spec: NodeSpec, tmp_path: Path) -> None:
    """All other files are scanned, and an error row names it."""
    poison = b"/41"
    makers: dict[str, Callable[[], LocalNode]] = {
        name: lambda: Mortal(spec, None, poison) for name in ("one", "two", "three")
    }
    orchestrator = run(plan_of(folder, tmp_path, limits=Limits(bytes=1, held_bytes=20_000, files=1)), makers)
    failures, _ = orchestrator.results()
    assert [failure.path for failure in failures] == [os.fsencode(folder) + poison]
    assert f"{LOSSES_MAX} pipelines died" in failures[0].message
    found = oracle.found(kept(tmp_path))
    assert found == oracle.expected([path for path in folder.iterdir() if path.name != "41"], PATTERNS)


def test_an_agent_that_is_stopped_ends_with_work_left(folder: Path, spec: NodeSpec, tmp_path: Path) -> None:
    """Nobody takes what its pipeline yields: by itself it would never end."""
    orchestrator = Orchestrator(plan_of(folder, tmp_path))
    orchestrator.start()
    agent = Agent("one", orchestrator, lambda: Mortal(spec, None))
    started = threading.Event()
    tending = threading.Thread(target=lambda: agent.tend(lambda pipeline, node: started.set()))
    tending.start()
    try:
        assert started.wait(30)
        agent.stop()
        tending.join(10)
        assert not tending.is_alive()
        assert not orchestrator.finished
    finally:
        agent.close()
        orchestrator.close()


def test_what_comes_late_does_not_count(folder: Path, spec: NodeSpec, tmp_path: Path) -> None:
    """Two pipelines finish the same lease: the first counts, and asked again it still does."""
    orchestrator = Orchestrator(plan_of(folder, tmp_path))
    orchestrator.start()
    try:
        (lease, *_) = orchestrator.ask("first", "a").leases
        receiver = Receiver(MATCH_SCHEMA, tmp_path, with_node=False, durable=False)
        end = GroupEnd(lease.id, len(lease.files), 1, ())
        rows = [GroupRows(lease.id, pa.RecordBatch.from_pylist([], MATCH_SCHEMA))]
        second, first = ([(*of, item) for item in [*rows, end]] for of in (("second", "b"), ("first", "a")))
        for came, counting in [(second + first, 1), (first, 0), (second, 1)]:
            taken = receiver.take(came, commit_to(orchestrator))
            assert [one for one, _ in taken] == [end] * counting
        orchestrator.lose("first", "gone")
        with pytest.raises(PipelineError, match="lost"):
            orchestrator.ask("first", "a")
        receiver.close()
    finally:
        orchestrator.close()


def test_a_pipeline_that_is_lost_while_it_asks_gets_nothing(folder: Path, spec: NodeSpec, tmp_path: Path) -> None:
    """Its feeder waits for work as its death is told: what it got now would be held by nobody."""
    orchestrator = Orchestrator(plan_of(folder, tmp_path))
    orchestrator.start()
    try:
        names = iter(map(str, range(1000)))
        while orchestrator.ask(next(names), "a").leases:
            pass
        outcome: list[object] = []

        def ask() -> None:
            try:
                outcome.append(orchestrator.ask("dying", "b"))
            except PipelineError as error:
                outcome.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while "dying" not in orchestrator._of_pipeline:
            pass
        orchestrator.lose("dying", "it died")
        orchestrator.lose("0", "so that there is work")
        asking.join()
        assert isinstance(outcome[0], PipelineError)
    finally:
        orchestrator.close()

"""One job over several raylets on this machine: what it gives, and what it gives when something is killed.

The ``threads`` engine keeps a node's roles in its agent's process, which starts sooner; with ``ray`` they are actors.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import oracle, processes
from tests.large_files import EXTENT, make_large
from tests.large_files import PATTERNS as LARGE_PATTERNS
from tests.small_scan import SMALL
from uring_actors.cli import main
from uring_actors.config import ScanOptions
from uring_actors.errors import InputError, NodeFailed, OptionError, UringActorsError
from uring_actors.groups import GroupEnd, GroupRows
from uring_actors.many import warm
from uring_actors.many.setup import Setup, Source
from uring_actors.ops.match.operation import Match
from uring_actors.results.schema import MATCH_SCHEMA

ROOT = Path(__file__).parent.parent
PATTERNS = [ua.Regex("ne+dle")]
OPTIONS = {**SMALL, "kernel_threads": 1, "lease_bytes": 200_000, "patterns": PATTERNS}
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one worker; the worker's label is role=scan."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={**NODE, "node_name": "head", "include_dashboard": False})
    made.add_node(**NODE, node_name="w1", labels={"role": "scan"})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 15 MB in 60 files, so that a job takes a while."""
    path = tmp_path_factory.mktemp("files")
    rng = random.Random(60)
    for number in range(60):
        parts = [
            b"x" * rng.randrange(20_000) + rng.choice([b"needle\n", b"neeedle "]) for _ in range(rng.randrange(50))
        ]
        (path / f"{number:02}").write_bytes(b"".join(parts))
    (path / "empty").touch()
    return path


@pytest.fixture(scope="module")
def wanted(folder: Path) -> set[oracle.Row]:
    return oracle.expected(folder.iterdir(), PATTERNS)


def start(cluster: Any, paths: Any, **options: Any) -> Any:
    return ua.scan(paths, address=cluster.address, **{**OPTIONS, **options})


def check(table: Any, wanted: set[oracle.Row]) -> None:
    found = oracle.found(table.select(MATCH_SCHEMA.names))
    assert found == wanted, oracle.explain_difference(found, wanted)


# ── what it gives ────────────────────────────────────────────────────────────────────────────────────────────
def test_shared_paths_are_split(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    import ray

    with start(cluster, folder) as job:
        table = job.to_table()
    check(table, wanted)
    assert table.schema == MATCH_SCHEMA
    stats = job.stats
    assert (stats.files, stats.matches, stats.errors) == (61, len(wanted), 0)
    assert stats.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert set(job.nodes["node"].to_pylist()) <= {"head", "w1"}
    assert sum(job.nodes["files"].to_pylist()) == 61
    assert ray.is_initialized(), "the driver's Ray is not ours to end"


def test_host_local_paths_are_every_nodes(
    cluster: Any, folder: Path, wanted: set[oracle.Row], tmp_path: Path
) -> None:
    """Both nodes walk the same tree here, as two hosts would walk their own; the shared file comes once."""
    (tmp_path / "shared").write_bytes(b"a needle")
    gone = ua.HostLocal(tmp_path / "gone")
    with start(cluster, [tmp_path / "shared", ua.HostLocal(folder), gone]) as job:
        table = job.to_table()
    by_node = {node: table.filter([one == node for one in table["node"].to_pylist()]) for node in ("head", "w1")}
    shared = 0
    for node, rows in by_node.items():
        found = oracle.found(rows.select(MATCH_SCHEMA.names))
        shared += (extra := len(found - wanted))
        assert found >= wanted, node
        assert extra <= 1
    assert shared == 1
    assert job.stats.files == 2 * 61 + 1
    assert sorted(zip(job.errors["node"].to_pylist(), job.errors["path"].to_pylist(), strict=True)) == [
        (node, bytes(tmp_path / "gone")) for node in ("head", "w1")
    ]


@pytest.mark.slow  # four processes a node have to start
def test_nodes_are_chosen_by_label(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    with start(cluster, folder, nodes={"role": "scan"}, engine="ray") as job:
        check(job.to_table(), wanted)
    assert job.nodes["node"].to_pylist() == ["w1"]


def test_what_is_refused(cluster: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no node of the cluster has role=none"):
        start(cluster, folder, nodes={"role": "none"})
    with pytest.raises(InputError, match="cannot scan this path"):
        start(cluster, tmp_path / "none")
    with pytest.raises(OptionError, match="connected to the Ray at"):
        ua.scan(folder, address="192.0.2.1:1", **OPTIONS)
    with pytest.raises(OptionError, match="overlaps"):
        start(cluster, [folder, ua.HostLocal(folder / "00")])
    with pytest.raises(OptionError, match="no job 'nothing'"):
        ua.attach("nothing")


@pytest.mark.slow  # a job's processes have to start
def test_a_job_that_no_node_can_work_on(cluster: Any, folder: Path) -> None:
    """The pipeline can't be built anywhere: that is the job's failure, with the reason."""
    with start(cluster, folder, backend="cuda") as job, pytest.raises(NodeFailed, match="backend is cuda"):
        list(job)


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────────
def below(*names: str) -> list[int]:
    """Processes of the cluster with such a title."""
    return [pid for pid in processes.family(os.getpid()) if processes.title(pid).startswith(names)]


def kill_one(rng: random.Random, *names: str) -> Callable[[], None]:
    def kill() -> None:
        found = below(*names)
        if found:
            os.kill(rng.choice(found), signal.SIGKILL)

    return kill


def lose_node(cluster: Any) -> Callable[[], None]:
    node = cluster.add_node(**NODE, node_name=f"extra-{time.monotonic_ns()}")
    return lambda: cluster.remove_node(node, allow_graceful=False)


def disturbed(job: Any, when: int, disturb: Callable[[], None]) -> Any:
    """All rows, with something happening after the ``when``-th batch."""
    batches = []
    for batch in job:
        batches.append(batch)
        if len(batches) == when:
            disturb()
    if len(batches) < when:
        disturb()
    return _table(batches, job.schema)


def _table(batches: list[Any], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches(batches, schema)


def disturb_and_check(cluster: Any, folder: Path, wanted: set[oracle.Row], victim: str, seed: int) -> None:
    rng = random.Random(seed)
    victims = {
        "agent": lambda: kill_one(rng, "ray::AgentActor"),
        "orchestrator": lambda: kill_one(rng, "ray::OrchestratorActor"),
        "role": lambda: kill_one(rng, "ray::HostActor", "ray::PublisherActor", "ray::ReaderActor"),
        "lane": lambda: kill_one(rng, "ray::ReaderActor"),
        "node": lambda: lose_node(cluster),
    }
    disturb = victims[victim]()
    engine = "ray" if victim in ("role", "lane") else "threads"
    with start(cluster, folder, engine=engine) as job:
        check(disturbed(job, rng.randrange(1, 30), disturb), wanted)
    assert job.stats.files == 61
    assert job.errors.num_rows == 0


@pytest.mark.slow  # a job's processes have to start
def test_a_killed_agent(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    disturb_and_check(cluster, folder, wanted, "agent", 3)


def test_a_killed_orchestrator(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    disturb_and_check(cluster, folder, wanted, "orchestrator", 5)


@pytest.mark.slow  # four processes a node have to start, twice
def test_a_killed_lane(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    disturb_and_check(cluster, folder, wanted, "lane", 1)


@pytest.mark.slow  # a raylet has to start for it
def test_a_lost_node(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    disturb_and_check(cluster, folder, wanted, "node", 2)


@pytest.mark.slow  # each takes half a minute
@pytest.mark.parametrize("seed", range(20))
def test_anything_killed_at_any_moment(cluster: Any, folder: Path, wanted: set[oracle.Row], seed: int) -> None:
    victim = ("agent", "orchestrator", "role", "node")[seed % 4]
    disturb_and_check(cluster, folder, wanted, victim, seed)


@pytest.mark.slow  # two jobs' processes have to start
def test_two_jobs_at_once(cluster: Any, folder: Path, wanted: set[oracle.Row], tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"a needle\n" * 1000)
    with start(cluster, folder) as one, start(cluster, tmp_path) as other:
        assert other.to_table().num_rows == 1000
        check(one.to_table(), wanted)


@pytest.mark.slow  # a raylet has to start for it
def test_a_node_that_joins_later_is_used(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    with start(cluster, ua.HostLocal(folder)) as job:
        batches = iter(job)
        first = [next(batches)]
        node = cluster.add_node(**NODE, node_name="late")
        try:
            processes.wait_until(lambda: "late" in job.nodes["node"].to_pylist(), 60)
            rows = [*first, *batches]
        finally:
            cluster.remove_node(node)
    assert sum(batch.num_rows for batch in rows) == 3 * len(wanted)


@pytest.mark.slow  # a raylet has to start for it
def test_what_a_lost_node_had_on_its_own_disks_is_an_error(
    cluster: Any, folder: Path, wanted: set[oracle.Row]
) -> None:
    lose = lose_node(cluster)
    with start(cluster, ua.HostLocal(folder)) as job:
        table = disturbed(job, 1, lose)
    assert table.num_rows >= 2 * len(wanted)
    lost = job.errors["node"].to_pylist()  # one of an earlier test may still seem alive as well
    assert len(lost) == len(set(lost)) >= 1
    assert all(node.startswith("extra-") for node in lost)
    assert all("not all of it was scanned" in message for message in job.errors["message"].to_pylist())
    assert any("is left out" in note for note in job.stats.notes)


# ── what a job leaves for the next ───────────────────────────────────────────────────────────────────────────
AGENT, ORCHESTRATOR = "ray::AgentActor", "ray::OrchestratorActor"


@pytest.fixture
def nothing_warm(cluster: Any) -> None:
    ua.release_warm()
    processes.wait_until(lambda: not below(AGENT, ORCHESTRATOR), 30)


def other_job(cluster: Any, folder: Path, **options: Any) -> None:
    """One with another pattern, operation and geometry; what it finds has an oracle of its own."""
    patterns = [ua.Literal("x" * 50 + "n")]
    changed = {"patterns": patterns, "slot_bytes": 131072, "slots": 6, "lease_bytes": 500_000, **options}
    with start(cluster, folder, **changed) as job:
        check(job.to_table(), oracle.expected(folder.iterdir(), patterns))
    assert (job.stats.files, job.errors.num_rows, sum(job.nodes["pipelines"].to_pylist())) == (61, 0, 0)


@pytest.mark.usefixtures("nothing_warm")
def test_the_next_job_takes_over_the_actors_and_nothing_else(
    cluster: Any, folder: Path, wanted: set[oracle.Row]
) -> None:
    with start(cluster, folder) as job:
        check(job.to_table(), wanted)
    agents, orchestrator = below(AGENT), below(ORCHESTRATOR)
    assert (len(agents), len(orchestrator)) == (2, 1)
    processes.wait_until(lambda: not processes.arenas(agents))
    with pytest.raises(InputError):
        start(cluster, folder / "none")
    began = time.monotonic()
    other_job(cluster, folder)
    assert (below(AGENT), below(ORCHESTRATOR)) == (agents, orchestrator)
    with start(cluster, folder, operation="checksum", patterns=None) as job:
        table = job.to_table()
    assert sorted(table["path"].to_pylist()) == sorted(map(bytes, folder.iterdir()))
    assert time.monotonic() - began < 60
    assert below(AGENT) == agents


@pytest.mark.slow  # four processes a node have to start
@pytest.mark.usefixtures("nothing_warm")
def test_with_the_ray_engine_the_roles_are_taken_over_as_well(
    cluster: Any, folder: Path, wanted: set[oracle.Row]
) -> None:
    """And not when one of them has died, or rows were left in them."""
    names = ("ray::HostActor", "ray::PublisherActor", "ray::ReaderActor")
    with start(cluster, folder, engine="ray") as job:
        check(job.to_table(), wanted)
    processes.wait_until(lambda: len(below(*names)) == 6)
    roles = below(*names)
    processes.wait_until(lambda: not processes.arenas(roles))
    other_job(cluster, folder, engine="ray")
    assert below(*names) == roles
    os.kill(roles[0], signal.SIGKILL)
    other_job(cluster, folder, engine="ray")
    with start(cluster, folder, engine="ray") as job:
        next(iter(job))
    other_job(cluster, folder, engine="ray")
    ua.release_warm()
    processes.wait_until(lambda: not below(AGENT, ORCHESTRATOR, *names), 30)


@pytest.mark.slow  # two jobs' processes have to start
@pytest.mark.usefixtures("nothing_warm")
def test_a_job_beside_another_has_actors_of_its_own(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    """Both begin after one that left its own; of the two, too, only one set stays."""
    with start(cluster, folder) as job:
        check(job.to_table(), wanted)
    first = set(below(AGENT))
    with start(cluster, folder) as job:
        batches = iter(job)
        rows = [next(batches)]
        other_job(cluster, folder)
        assert set(below(AGENT)) > first
        check(_table([*rows, *batches], job.schema), wanted)
    processes.wait_until(lambda: (len(below(AGENT)), len(below(ORCHESTRATOR))) == (2, 1), 30)
    other_job(cluster, folder)


@pytest.mark.slow  # a job's processes have to start, twice
@pytest.mark.usefixtures("nothing_warm")
def test_actors_that_die_between_jobs_are_not_used(cluster: Any, folder: Path, wanted: set[oracle.Row]) -> None:
    for victims in ((AGENT,), (AGENT, ORCHESTRATOR)):
        with start(cluster, folder) as job:
            check(job.to_table(), wanted)
        for victim in victims:
            kill_one(random.Random(len(victims)), victim)()
        other_job(cluster, folder)


@pytest.mark.slow  # a job's processes have to start
@pytest.mark.usefixtures("nothing_warm")
def test_a_job_that_is_given_up_leaves_nothing_to_the_next(
    cluster: Any, folder: Path, wanted: set[oracle.Row]
) -> None:
    """Its agents hold leases, and rows that nobody takes."""
    for taken in (0, 1):
        with start(cluster, folder) as job:
            for _ in range(taken):
                next(iter(job))
        other_job(cluster, folder)


def test_they_are_given_back(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while by themselves; a job that runs meanwhile keeps its own."""
    monkeypatch.setattr(warm, "WARM_SECONDS", 1.0)
    other_job(cluster, folder)
    with start(cluster, folder) as job:  # takes them over: their time does not end this job
        batches = iter(job)
        next(batches)
        time.sleep(1.5)
        assert len(below(AGENT)) == 2
        for _ in batches:
            pass
    processes.wait_until(lambda: not below(AGENT, ORCHESTRATOR), 30)


LEAVES = """
import os, sys, time
import uring_actors as ua
for _ in range(2):
    with ua.scan(sys.argv[1], address=sys.argv[2], patterns=["needle"], engine="threads", io_engine="pread") as job:
        assert job.to_table().num_rows == 500
print("idle", flush=True)
if sys.argv[3] == "killed":
    time.sleep(100)
"""


@pytest.mark.slow  # a job's processes have to start, twice
@pytest.mark.usefixtures("nothing_warm")
@pytest.mark.parametrize("how", ["ends", "killed"])
def test_a_driver_that_ends_takes_them_along(cluster: Any, tmp_path: Path, how: str) -> None:
    (tmp_path / "file").write_bytes(b"a needle\n" * 500)
    command = [sys.executable, "-c", LEAVES, str(tmp_path), cluster.address, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "idle\n"
        if how == "killed":
            assert len(below(AGENT)) == 2
            driver.kill()
    processes.wait_until(lambda: not below(AGENT, ORCHESTRATOR), 60)
    assert not processes.arenas(processes.family(os.getpid()))


def test_users_operations_share_no_process() -> None:
    """What they are compiled from would stay there."""
    from tests.user_operations import zeros

    plan: Any = None
    assert Setup.of(plan, zeros, ScanOptions(), {}, detached=False).alone
    assert not Setup.of(plan, Match.of(PATTERNS), ScanOptions(), {}, detached=False).alone
    assert Setup.of(plan, Match.of(PATTERNS), ScanOptions(), {}, detached=True).alone


# ── jobs that outlive their driver ───────────────────────────────────────────────────────────────────────────
DRIVER = """
import sys
import uring_actors as ua
job = ua.scan(sys.argv[1], address=sys.argv[2], output_dir=sys.argv[3], patterns=[ua.Regex("ne+dle")],
              engine="threads", io_engine="pread", slot_bytes=65536, slots=4, kernel_threads=1, lease_bytes=200_000)
print(job.name, flush=True)
for batch in job:
    print("row", flush=True)
"""


def test_a_killed_driver(cluster: Any, folder: Path, wanted: set[oracle.Row], tmp_path: Path) -> None:
    """The job goes on; attach gives all of its rows, while it runs and when it is done."""
    command = [sys.executable, "-c", DRIVER, str(folder), cluster.address, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        name = driver.stdout.readline().strip()
        driver.kill()
    job = ua.attach(name, address=cluster.address)
    assert job.name == name
    check(job.to_table(), wanted)
    assert (job.stats.files, job.errors.num_rows) == (61, 0)
    job.stop()
    again = ua.attach(str(tmp_path / "out"), address=cluster.address)
    check(again.to_table(), wanted)
    assert again.stats.matches == len(wanted)
    resumed = start(cluster, folder, output_dir=tmp_path / "out", resume=True)
    check(resumed.to_table(), wanted)
    resumed.stop()


@pytest.mark.slow  # several jobs, one after another
@pytest.mark.parametrize("seed", range(5))
def test_a_detached_job_whose_orchestrator_is_killed(
    cluster: Any, folder: Path, wanted: set[oracle.Row], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    job = start(cluster, folder, output_dir=tmp_path / "out")
    timer = threading.Timer(rng.uniform(0, 8), kill_one(rng, "ray::OrchestratorActor", "ray::AgentActor"))
    timer.start()
    try:
        check(job.to_table(), wanted)
    finally:
        timer.cancel()
        job.stop()


@pytest.mark.slow  # a job's processes have to start
def test_a_checkpoint_is_resumed_on_a_cluster(
    cluster: Any, folder: Path, wanted: set[oracle.Row], tmp_path: Path
) -> None:
    """Begun on this machine alone, given up, gone on with by the cluster."""
    with ua.scan(folder, checkpoint=tmp_path / "c", **OPTIONS) as job:
        next(iter(job))
    with start(cluster, folder, checkpoint=tmp_path / "c", resume=True) as job:
        check(job.to_table(), wanted)
    assert 0 < sum(job.nodes["files"].to_pylist()) < 61
    with pytest.raises(UringActorsError, match="holds the progress"):
        start(cluster, folder, checkpoint=tmp_path / "c")


# ── the command line, and the page ───────────────────────────────────────────────────────────────────────────
@pytest.mark.slow  # four jobs, one after another
def test_docs_many_nodes_md(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The script of docs/many-nodes.md, and its commands."""
    start(cluster, ua.HostLocal(__file__)).close()  # connects
    page = (ROOT / "docs" / "many-nodes.md").read_text()
    shared, local, out = tmp_path / "shared", tmp_path / "log", tmp_path / "out"
    for folder in (shared, local):
        folder.mkdir()
        (folder / "file").write_bytes(b"a needle\n")

    def here(text: str) -> str:
        return text.replace("/shared/data", str(shared)).replace("/var/log", str(local)).replace("DIR", str(out))

    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(here(script), "many-nodes.md", "exec"), told := {})
    assert told["job"].stats.matches == 3
    capfd.readouterr()
    commands = re.findall(r"^    uring-actors (.*)$", page, re.MULTILINE)
    assert len(commands) == 4
    name = ""
    quick = ["--engine", "threads", "--io-engine", "pread", "--quiet"]
    wanted = {
        0: sorted([f"{node}:{local}/file:1:3:needle" for node in ("head", "w1")]),
        1: [f"{shared}/file:1:3:needle"],
        3: [f"{shared}/file:1:3:needle"],
    }
    for number, command in enumerate(commands):
        words = here(command).replace("disk=nvme", "role=scan").split()
        if number == 3:
            words, quick = [word.replace("JOB", name) for word in words], ["--quiet"]
        assert main([*words, *quick]) == 0
        lines = sorted(capfd.readouterr().out.splitlines())
        if number == 2:
            (name,) = lines
        elif number == 0:
            assert [line for line in lines if str(local) in line] == wanted[0]
            assert len(lines) == 3
        else:
            assert lines == wanted[number]
    assert main(["attach", name, "--stop"]) == 0
    assert main(["attach", name, "--quiet"]) == 2, "it is known by its directory only now"
    assert main(["attach", str(out), "--quiet"]) == 0


# ── a large file, in pieces ──────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of some 17 MB, among small ones; 300 pieces with ``lease_bytes`` of an extent."""
    folder = tmp_path_factory.mktemp("large")
    make_large(folder / "large", 3, extents=300)
    (folder / "small").write_bytes(b"needle")
    return folder


def large_disturbed(cluster: Any, large: Path, disturb: Callable[[], None], seed: int, **options: Any) -> Any:
    options = {"patterns": LARGE_PATTERNS, "lease_bytes": EXTENT, **options}
    with start(cluster, large, **options) as job:
        table = disturbed(job, random.Random(seed).randrange(1, 200), disturb)
    found, wanted = oracle.found(table), oracle.expected(large.iterdir(), LARGE_PATTERNS)
    assert found == wanted, oracle.explain_difference(found, wanted)
    assert (job.stats.files, job.stats.matches, job.errors.num_rows) == (2, len(wanted), 0)
    return job


def test_leases_are_acknowledged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round with an end of a lease waits for others'; not where a pipeline would run dry, and never long."""
    from uring_actors.many import cluster as many_cluster  # Ray takes a second to import

    now = 100.0
    monkeypatch.setattr(many_cluster.time, "monotonic", lambda: now)
    a, b = (Source(name, "node", None, ()) for name in "ab")
    rows = GroupRows(1, pa.RecordBatch.from_pylist([], pa.schema([])))
    end = GroupEnd(1, 1, 1, ())
    came = many_cluster._Round()
    assert not any(came.due(patient=patient) for patient in (True, False)), "there is nothing"
    came.add(a, [rows])
    assert came.due(patient=True), "rows alone wait for nothing"
    came = many_cluster._Round()
    came.add(a, [rows, end])
    assert not came.due(patient=True)
    assert came.due(patient=False), "a node waits for it"
    came.add(b, [end])
    assert not came.due(patient=True)
    now += many_cluster._LINGER_SECONDS
    assert came.due(patient=True), "it has waited long enough"
    now = 100.0
    came.add(a, [end])
    assert came.due(patient=True), "that pipeline has ended two"
    assert came.items == [("a", "node", rows), ("a", "node", end), ("b", "node", end), ("a", "node", end)]


# Behind those that read what a driver prints: Ray tells every driver of a node that has died lately.
def test_a_large_file_is_split_over_nodes_and_one_is_killed(cluster: Any, large: Path) -> None:
    """Lines, columns and matches over every border, whoever scanned the pieces; the node dies at a random moment."""
    job = large_disturbed(cluster, large, lose_node(cluster), 1)
    assert sum(read > 0 for read in job.nodes["bytes"].to_pylist()) > 1


@pytest.mark.slow  # each takes half a minute
@pytest.mark.parametrize("seed", range(8))
def test_a_large_file_and_anything_killed(cluster: Any, large: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    victims = [
        lambda: lose_node(cluster),
        lambda: kill_one(rng, "ray::AgentActor"),
        lambda: kill_one(rng, "ray::OrchestratorActor"),
        lambda: kill_one(rng, "ray::HostActor", "ray::ReaderActor"),
    ]
    options: dict[str, Any] = {"engine": "ray"} if seed % 4 == 3 else {}
    if seed < 4:
        options["checkpoint"] = tmp_path / "c"
    large_disturbed(cluster, large, victims[seed % 4](), seed, **options)


@pytest.mark.slow  # a job's processes have to start
def test_a_large_file_in_an_output_directory(cluster: Any, large: Path, tmp_path: Path) -> None:
    """The agents write the pieces' rows as they are; whoever attaches gets the file's."""
    options = {"patterns": LARGE_PATTERNS, "lease_bytes": EXTENT, "output_dir": tmp_path / "out"}
    wanted = oracle.expected(large.iterdir(), LARGE_PATTERNS)
    job = start(cluster, large, **options)
    timer = threading.Timer(3, kill_one(random.Random(1), "ray::OrchestratorActor", "ray::AgentActor"))
    timer.start()
    try:
        check(job.to_table(), wanted)
        assert job.stats.files == 2
    finally:
        timer.cancel()
        job.stop()
    again = ua.attach(str(tmp_path / "out"), address=cluster.address)
    check(again.to_table(), wanted)
    assert again.stats.matches == len(wanted)
    counts = start(cluster, large, **{**options, "output_dir": tmp_path / "counts", "report": "count"})
    try:
        counted = dict(zip(*counts.to_table().to_pydict().values(), strict=True))
    finally:
        counts.stop()
    assert counted == {bytes(large / "large"): len(wanted) - 1, bytes(large / "small"): 1}

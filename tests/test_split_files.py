"""Large files in pieces, through real pipelines, journals and checkpoints, give what whole files give."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import uring_actors as ua
from tests import oracle, processes
from tests.large_files import EXTENT, PATTERNS, make_large
from tests.small_scan import SMALL
from tests.test_checkpoint import cuts
from uring_actors.journal import MAGIC, Follower, encode
from uring_actors.many.leases import LOSSES_MAX, Limits
from uring_actors.many.orchestrator import JobPlan, Orchestrator
from uring_actors.many.progress import JOURNAL, Ledger, Receipt
from uring_actors.pieces import PieceEnd
from uring_actors.results.schema import MATCH_SCHEMA
from uring_actors.selection import Selection

OPTIONS = {**SMALL, "kernel_threads": 1, "lease_bytes": EXTENT}


def scan(files: Path, **options: Any) -> Any:
    what = {} if "operation" in options else {"patterns": PATTERNS}
    return ua.scan(files, **{**OPTIONS, **what, **options})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two large files and some small ones."""
    folder = tmp_path_factory.mktemp("large")
    make_large(folder / "large", 1)
    make_large(folder / "other", 2, extents=9)
    for number in range(5):
        (folder / f"small{number}").write_bytes(b"hay\na needle, aa, 123\n" * number)
    return folder


@pytest.fixture(scope="module")
def wanted(files: Path) -> set[oracle.Row]:
    return oracle.expected(files.iterdir(), PATTERNS)


@pytest.fixture(scope="module")
def done(files: Path, wanted: set[oracle.Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a scan that ended."""
    checkpoint = tmp_path_factory.mktemp("done") / "checkpoint"
    check(scan(files, checkpoint=checkpoint), wanted)
    return checkpoint


def check(job: Any, wanted: set[oracle.Row], files: int = 7) -> None:
    table = job.to_table()
    found = oracle.found(table)
    assert found == wanted, oracle.explain_difference(found, wanted)
    assert table.schema == MATCH_SCHEMA
    assert (job.stats.files, job.stats.matches, job.errors.num_rows) == (files, len(wanted), 0)


def records(checkpoint: Path) -> list[dict[str, Any]]:
    return [record for record in Follower(checkpoint / JOURNAL).new() if record["t"] == "done"]


def test_rows(files: Path, wanted: set[oracle.Row], done: Path) -> None:
    """The journal shows that there were pieces, and pieces that had to be scanned again; small files aren't cut."""
    pieces = [record for record in records(done) if record["piece"]]
    assert {record["files"][0][0] for record in pieces} == {bytes(files / "large"), bytes(files / "other")}
    assert len({(record["files"][0][0], record["piece"]["start"]) for record in pieces}) == 24 + 9
    assert any(record["piece"]["given"] for record in pieces)
    assert any(not record["piece"] for record in records(done))
    again = scan(files, checkpoint=done, resume=True)
    check(again, wanted)
    assert sum(again.nodes["bytes"].to_pylist()) == 0
    assert again.stats.bytes == sum(file.stat().st_size for file in files.iterdir())
    oracle.check_bytes(scan(files, checkpoint=done, resume=True).to_table())


@pytest.mark.parametrize("lease_bytes", [3 * EXTENT + 5, 5 * EXTENT])
def test_pieces_of_several_extents(files: Path, wanted: set[oracle.Row], tmp_path: Path, lease_bytes: int) -> None:
    """Of the second size only one file is large enough."""
    check(scan(files, checkpoint=tmp_path / "c", lease_bytes=lease_bytes, lanes=2, io_engine="auto"), wanted)
    pieces = [record["piece"] for record in records(tmp_path / "c") if record["piece"]]
    assert {piece["stop"] - piece["start"] for piece in pieces} >= {lease_bytes // EXTENT * EXTENT}


@pytest.mark.parametrize(
    "options",
    [
        {"report": "count"},
        {"operation": "nop"},
        {"operation": "touch"},
        {"operation": "checksum"},
        {"operation": "histogram"},
    ],
    ids=str,
)
def test_one_row_a_file(files: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """What is made of all pieces: as a scan without them gives it, also where a journal is gone on with."""
    whole = sorted(map(str, scan(files, **options).to_table().to_pylist()))
    job = scan(files, checkpoint=tmp_path / "c", lease_bytes=60_000, **options)
    assert sorted(map(str, job.to_table().to_pylist())) == whole
    assert sum(bool(record["piece"]) for record in records(tmp_path / "c")) > 20
    size = (tmp_path / "c" / JOURNAL).stat().st_size
    rng = random.Random(7)
    for _ in range(3):
        os.truncate(tmp_path / "c" / JOURNAL, rng.randrange(size // 3, size))
        job = scan(files, checkpoint=tmp_path / "c", lease_bytes=60_000, resume=True, **options)
        assert sorted(map(str, job.to_table().to_pylist())) == whole
        assert job.errors.num_rows == 0


@pytest.mark.parametrize(
    "options",
    [
        {"patterns": [ua.Regex("ne+dle")]},
        {"patterns": PATTERNS, "report": "files"},
        {"patterns": PATTERNS, "max_count": 3},
        {"operation": "histogram", "block": 4096},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_not_split(files: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    if "block" in options:
        options = {"operation": ua.Histogram(options["block"])}
    whole = sorted(map(str, scan(files, **options).to_table().to_pylist()))
    job = scan(files, checkpoint=tmp_path / "c", **options)
    assert sorted(map(str, job.to_table().to_pylist())) == whole
    assert not any(record["piece"] for record in records(tmp_path / "c"))


def test_resumed_after_a_cut_anywhere(files: Path, wanted: set[oracle.Row], done: Path, tmp_path: Path) -> None:
    """Only what the journal does not have is scanned, pieces apart, and it says what must be scanned again."""
    sizes = []
    for cut in list(cuts(done / JOURNAL))[::25]:
        torn = tmp_path / str(cut)
        shutil.copytree(done, torn)
        os.truncate(torn / JOURNAL, cut)
        before = sum(record["bytes"] for record in records(torn))
        job = scan(files, checkpoint=torn, resume=True)
        check(job, wanted)
        sizes.append(sum(job.nodes["bytes"].to_pylist()))
        total = sum(file.stat().st_size for file in files.iterdir())
        assert total <= sizes[-1] + before
        shutil.rmtree(torn)
    assert len(set(sizes)) > 5
    assert sizes == sorted(sizes, reverse=True)


def test_gone_on_with_in_another_size(files: Path, wanted: set[oracle.Row], done: Path, tmp_path: Path) -> None:
    """Pieces of another lease size fill the gaps; with other extents, an unfinished file begins anew."""
    for number, options in enumerate([{"lease_bytes": 3 * EXTENT}, {"slot_bytes": 131072}]):
        torn = tmp_path / str(number)
        shutil.copytree(done, torn)
        os.truncate(torn / JOURNAL, list(cuts(done / JOURNAL))[60])
        kept = len(records(torn))
        check(scan(files, checkpoint=torn, resume=True, **options), wanted)
        new = [record["piece"] for record in records(torn)[kept:] if record["piece"]]
        assert new
        assert all(piece["start"] % piece["extent"] == 0 for piece in new)


def test_a_changed_file_is_scanned_again_as_a_whole(files: Path, done: Path, tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "files", tmp_path / "checkpoint"
    shutil.copytree(files, folder)
    scan(folder, checkpoint=checkpoint).to_table()
    large = folder / "large"
    text = large.read_bytes()
    large.write_bytes(text[:EXTENT] + b"a needle " + text[EXTENT:])
    job = scan(folder, checkpoint=checkpoint, resume=True)
    check(job, oracle.expected(folder.iterdir(), PATTERNS))
    assert sum(job.nodes["bytes"].to_pylist()) >= large.stat().st_size
    assert "scanned again" in job.stats.notes[0]
    large.write_bytes(text[:1000])  # no longer large
    check(scan(folder, checkpoint=checkpoint, resume=True), oracle.expected(folder.iterdir(), PATTERNS))
    large.write_bytes(text)
    check(scan(folder, checkpoint=checkpoint, resume=True), oracle.expected(folder.iterdir(), PATTERNS))


def listed(files: Path, **options: Any) -> Any:
    """A scan that has listed and not read anything yet."""
    running = scan(files, **options)
    processes.wait_until(lambda: running._crew._orchestrator._listed == {None})
    return running


def test_a_file_that_is_gone_is_one_error(files: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    large = shutil.copy(files / "large", tmp_path / "files" / "large")
    running = listed(tmp_path / "files", checkpoint=tmp_path / "c")
    os.rename(large, tmp_path / "away")
    assert running.to_table().num_rows == 0
    assert running.errors["path"].to_pylist() == [os.fsencode(large)]
    assert running.errors["errno"].to_pylist() == [errno.ENOENT]
    os.rename(tmp_path / "away", large)
    resumed = scan(tmp_path / "files", checkpoint=tmp_path / "c", resume=True)
    check(resumed, oracle.expected([Path(large)], PATTERNS), files=1)


def test_a_file_that_is_gone_when_its_scan_goes_on(files: Path, tmp_path: Path) -> None:
    """The pieces that were done keep their rows, also those behind one that never was; an error says the rest."""
    (tmp_path / "files").mkdir()
    large = Path(shutil.copy(files / "large", tmp_path / "files" / "large"))
    (tmp_path / "files" / "small").write_bytes(b"a needle")
    wanted = oracle.expected([large], PATTERNS)
    assert large.read_bytes().index(b"a" * 1000) > 5 * EXTENT, "a chain through all of it would begin anew"
    checkpoint = tmp_path / "c"
    scan(tmp_path / "files", checkpoint=checkpoint).to_table()
    kept = []
    for record in Follower(checkpoint / JOURNAL).new():
        piece = record.get("piece")
        if record["t"] != "end" and not (piece and 2 * EXTENT <= piece["start"] < 4 * EXTENT):
            kept.append(record)
    (checkpoint / JOURNAL).write_bytes(MAGIC + b"".join(map(encode, kept)))
    large.unlink()
    for _ in range(2):
        job = scan(tmp_path / "files", checkpoint=checkpoint, resume=True)
        found = {row for row in oracle.found(job.to_table()) if row[0] == bytes(large)}
        assert {row for row in found if row[2] < 2 * EXTENT} == {row for row in wanted if row[2] < 2 * EXTENT}
        behind = {(*row[:4], None, row[5]) for row in wanted if row[2] > 5 * EXTENT}
        assert {(*row[:4], None, row[5]) for row in found if row[2] > 5 * EXTENT} == behind
        assert {row[4] for row in found if row[2] > 5 * EXTENT} == {None}
        assert not [row for row in found if 2 * EXTENT <= row[2] < 4 * EXTENT]
        assert job.errors["path"].to_pylist() == [bytes(large)]
        assert job.errors["errno"].to_pylist() == [errno.ENOENT]
        assert job.stats.files == 2


def test_a_file_that_shrank_is_one_error(files: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    large = Path(shutil.copy(files / "large", tmp_path / "files" / "large"))
    running = listed(tmp_path / "files", checkpoint=tmp_path / "c")
    os.truncate(large, 5 * EXTENT + 7000)
    assert oracle.found(running.to_table()) == oracle.expected([large], PATTERNS)
    assert running.errors["offset"].to_pylist() == [5 * EXTENT + 7000]
    resumed = scan(tmp_path / "files", checkpoint=tmp_path / "c", resume=True)
    check(resumed, oracle.expected([large], PATTERNS), files=1)


# ── the orchestrator's part ──────────────────────────────────────────────────────────────────────────────────
def plan_of(path: Path, directory: Path) -> JobPlan:
    return JobPlan(
        shared=(bytes(path),),
        local=(),
        selection=Selection(),
        directory=directory,
        fingerprint="f",
        run="r",
        resume=True,
        durable=False,
        schema=MATCH_SCHEMA.serialize().to_pybytes(),
        limits=Limits(bytes=100, held_bytes=1000, split_bytes=100, held=20),
        splits="matches",
        extent=100,
    )


def ask(orchestrator: Orchestrator, pipeline: str) -> dict[int, int]:
    """By the piece's start, the lease."""
    return {lease.files[0].start: lease.id for lease in orchestrator.ask(pipeline, "n").leases}


def commit(orchestrator: Orchestrator, lease: int, pipeline: str, end: PieceEnd) -> bool:
    return orchestrator.commit(lease, pipeline, Receipt(0, 100, 0, None, (), end))


def test_a_piece_that_does_not_fit_is_leased_again(tmp_path: Path) -> None:
    """First, and once, also by an orchestrator that was made anew."""
    (tmp_path / "file").write_bytes(b"a" * 400)
    crossing, straddling = PieceEnd(0, -1, ((0, 105),)), PieceEnd(0, -1, (), ((0, 104, 106),))
    first = Orchestrator(plan_of(tmp_path / "file", tmp_path / "c"))
    first.start()
    held: dict[int, int] = {}
    processes.wait_until(lambda: held.update(ask(first, "p")) or len(held) == 4)
    assert commit(first, held[100], "p", straddling)
    assert ask(first, "p") == {}
    assert commit(first, held[0], "p", crossing)
    (again,) = first.ask("p", "n").leases
    assert (again.files[0].piece.start, again.files[0].piece.resume) == (100, ((0, 105),))
    assert commit(first, held[300], "p", PieceEnd())
    assert ask(first, "p") == {}, "it is under way"
    first.close()
    second = Orchestrator(plan_of(tmp_path / "file", tmp_path / "c"))
    second.start()
    found: dict[int, int] = {}
    processes.wait_until(lambda: found.update(ask(second, "q")) or len(found) == 2)
    assert set(found) == {100, 200}
    assert not commit(second, again.id, "p", PieceEnd()), "of an orchestrator that is gone"
    for start in (100, 200):
        assert commit(second, found[start], "q", PieceEnd())
    assert second.finished
    second.close()
    ledger = Ledger(tmp_path / "c")
    ready = [lease for record in Follower(tmp_path / "c" / JOURNAL).new() for lease in ledger.take(record)]
    assert ready == [held[0], found[100], found[200], held[300]]
    assert ledger.totals.files == 1
    assert ledger.totals.bytes == 400


def test_a_piece_that_is_given_up(tmp_path: Path) -> None:
    """Those behind it count all the same, and one error says where something is missing."""
    (tmp_path / "file").write_bytes(b"a" * 300)
    orchestrator = Orchestrator(plan_of(tmp_path / "file", tmp_path / "c"))
    orchestrator.start()
    held: dict[int, int] = {}
    processes.wait_until(lambda: held.update(ask(orchestrator, "p0")) or len(held) == 3)
    for start in (0, 200):
        commit(orchestrator, held[start], "p0", PieceEnd(1, start))
    for number in range(LOSSES_MAX):
        orchestrator.lose(f"p{number}", "killed")
        ask(orchestrator, f"p{number + 1}")
    assert orchestrator.finished
    (failure,), _ = orchestrator.results()
    assert (failure.offset, failure.error) == (100, "NodeFailed")
    orchestrator.close()
    ledger = Ledger(tmp_path / "c")
    ready = [lease for record in Follower(tmp_path / "c" / JOURNAL).new() for lease in ledger.take(record)]
    assert ready == [held[0], held[100], held[200]]
    resumed = Orchestrator(JobPlan(**{**_fields(plan_of(tmp_path / "file", tmp_path / "c")), "run": "later"}))
    resumed.start()
    processes.wait_until(lambda: ask(resumed, "q"))
    assert resumed.results() == ([], [])
    resumed.close()


def _fields(plan: JobPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in JobPlan.__slots__}


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────
PROGRAM = """
import sys
import uring_actors as ua
from tests.large_files import PATTERNS
from tests.test_split_files import OPTIONS
job = ua.scan(sys.argv[1], patterns=PATTERNS, checkpoint=sys.argv[2], resume=True, **OPTIONS)
print("started", flush=True)
job.to_table()
"""


def killed_and_resumed(files: Path, wanted: set[oracle.Row], checkpoint: Path, seed: int) -> None:
    """Killed at random moments a few times; then read to the end."""
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 4)):
        command = [sys.executable, "-c", PROGRAM, files, checkpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as scanning:
            assert scanning.stdout is not None
            scanning.stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            scanning.send_signal(signal.SIGKILL)
    check(scan(files, checkpoint=checkpoint, resume=True), wanted)


def test_killed_and_resumed(files: Path, wanted: set[oracle.Row], tmp_path: Path) -> None:
    killed_and_resumed(files, wanted, tmp_path / "c", 3)


@pytest.mark.slow  # each seed starts several processes
@pytest.mark.parametrize("seed", range(20))
def test_killed_and_resumed_at_random(files: Path, wanted: set[oracle.Row], tmp_path: Path, seed: int) -> None:
    killed_and_resumed(files, wanted, tmp_path / "c", seed)

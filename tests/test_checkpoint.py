"""Checkpoints: a scan that was killed at any point and resumed gives what an undisturbed one gives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import uring_actors as ua
from tests import oracle, processes
from tests.small_scan import SMALL
from uring_actors.errors import OptionError
from uring_actors.journal import MAGIC, Follower, encode
from uring_actors.many.progress import JOURNAL, PARTS
from uring_actors.many.receiver import LeaseRows

OPTIONS = {**SMALL, "lease_bytes": 10_000}
PATTERNS = [ua.Regex("ne+dle")]


def make_files(folder: Path, count: int = 40) -> None:
    folder.mkdir(exist_ok=True)
    rng = random.Random(count)
    for number in range(count):
        text = b"".join(
            rng.choice([b"needle %d\n" % number, b"neeedle ", *[b"hay\n"] * 40]) for _ in range(rng.randrange(900))
        )
        (folder / f"{number:03}").write_bytes(text)


def scan(folder: Path, **options: Any) -> ua.Scan:
    return ua.scan(folder, patterns=PATTERNS, **{**OPTIONS, **options})


def expected(folder: Path) -> set[oracle.Row]:
    return oracle.expected(folder.iterdir(), PATTERNS)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the checkpoint of a scan of it that ended."""
    base = tmp_path_factory.mktemp("done")
    make_files(base / "files")
    table = scan(base / "files", checkpoint=base / "checkpoint").to_table()
    assert oracle.found(table) == expected(base / "files")
    return base / "files", base / "checkpoint"


def cuts(journal: Path) -> Iterable[int]:
    """Every record's border, and within every record somewhere."""
    rng = random.Random(1)
    at = len(MAGIC)
    yield from (0, 1, at - 1, at)
    for record in Follower(journal).new():
        size = len(encode(record))
        yield from (at + 4, at + 8, at + rng.randrange(1, size), at + size - 1, at + size)
        at += size


def test_resumed_after_a_cut_anywhere(done: tuple[Path, Path], tmp_path: Path) -> None:
    files, checkpoint = done
    wanted = expected(files)
    size = (checkpoint / JOURNAL).stat().st_size
    scanned = []
    for cut in cuts(checkpoint / JOURNAL):
        torn = tmp_path / str(cut)
        shutil.copytree(checkpoint, torn, dirs_exist_ok=True)
        os.truncate(torn / JOURNAL, cut)
        resumed = scan(files, checkpoint=torn, resume=True)
        assert oracle.found(resumed.to_table()) == wanted, f"cut at {cut} of {size}"
        assert resumed.stats.notes == ()
        assert (resumed.stats.files, resumed.errors.num_rows) == (40, 0)
        scanned.append(sum(resumed.nodes["files"].to_pylist()))
        shutil.rmtree(torn)
    assert (scanned[0], scanned[-1]) == (40, 0)
    assert sorted(scanned, reverse=True) == scanned
    assert len(set(scanned)) > 5, "the leases are too large for this test"


def test_changed_files_are_scanned_again(done: tuple[Path, Path], tmp_path: Path) -> None:
    files, checkpoint = tmp_path / "files", tmp_path / "checkpoint"
    shutil.copytree(done[0], files)
    scan(files, checkpoint=checkpoint).to_table()
    before = expected(files)
    grown, rewritten, replaced, gone = (files / name for name in ("003", "017", "021", "030"))
    grown.write_bytes(grown.read_bytes() + b"needle")
    rewritten.write_bytes(rewritten.read_bytes()[::-1] + b"")
    os.utime(rewritten, ns=(1, 1))
    other = tmp_path / "other"
    other.write_bytes(replaced.read_bytes().replace(b"needle", b"nothin"))
    os.utime(other, ns=(replaced.stat().st_atime_ns, replaced.stat().st_mtime_ns))
    os.replace(other, replaced)
    gone.unlink()
    (files / "new").write_bytes(b"a needle")
    resumed = scan(files, checkpoint=checkpoint, resume=True)
    kept = {row for row in before if row[0] == bytes(gone)}
    assert kept
    assert oracle.found(resumed.to_table()) == expected(files) | kept
    changed, vanished = resumed.stats.notes
    assert "scanned again" in changed
    assert all(str(path) in changed for path in (grown, rewritten, replaced))
    assert "1 files of the earlier run" in vanished
    assert sum(resumed.nodes["files"].to_pylist()) == 4
    again = scan(files, checkpoint=checkpoint, resume=True)
    assert oracle.found(again.to_table()) == expected(files) | kept
    assert sum(again.nodes["files"].to_pylist()) == 0


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    make_files(tmp_path / "files", 5)
    broken = tmp_path / "files" / "002"
    text = broken.read_bytes()
    checkpoint = tmp_path / "checkpoint"
    running = scan(tmp_path / "files", checkpoint=checkpoint, lease_bytes=1)
    processes.wait_until(lambda: running._crew._orchestrator._listed == {None})  # reading begins with the iteration
    broken.unlink()
    broken.mkdir()
    table = running.to_table()
    assert running.errors["path"].to_pylist() == [bytes(broken)]
    assert bytes(broken) not in set(table["path"].to_pylist())
    broken.rmdir()
    broken.write_bytes(text)
    resumed = scan(tmp_path / "files", checkpoint=checkpoint, resume=True)
    assert oracle.found(resumed.to_table()) == expected(tmp_path / "files")
    assert resumed.errors.num_rows == 0


def test_another_operation(tmp_path: Path) -> None:
    """A checkpoint of any operation, and an empty lease."""
    make_files(tmp_path / "files", 5)
    for resume in (False, True):
        made = ua.scan(tmp_path / "files", operation="touch", checkpoint=tmp_path / "c", resume=resume, **OPTIONS)
        rows = {path: (size, total) for path, size, total in zip(*made.to_table().to_pydict().values(), strict=True)}
        contents = {bytes(path): path.read_bytes() for path in (tmp_path / "files").iterdir()}
        assert rows == {path: (len(data), sum(data)) for path, data in contents.items()}


def test_selections(done: tuple[Path, Path], tmp_path: Path) -> None:
    """What else a scan takes; a selection is part of what must be the same."""
    files, _ = done
    for resume in (False, True):
        job = scan(files, include="*3", report="count", checkpoint=tmp_path / "c", resume=resume)
        counts = dict(zip(*job.to_table().to_pydict().values(), strict=True))
        rows = [row for row in expected(files) if row[0].endswith(b"3")]
        assert sum(counts.values()) == job.stats.matches == len(rows)
        assert set(counts) >= {row[0] for row in rows}
        assert job.stats.files == 4
    with pytest.raises(OptionError, match="another scan"):
        scan(files, include="*4", report="count", checkpoint=tmp_path / "c", resume=True)


def test_refusals(done: tuple[Path, Path], tmp_path: Path) -> None:
    files, checkpoint = done
    with pytest.raises(OptionError, match="holds the progress"):
        scan(files, checkpoint=checkpoint)
    with pytest.raises(OptionError, match="another scan"):
        ua.scan(files, patterns=["other"], checkpoint=checkpoint, resume=True, **OPTIONS)
    with pytest.raises(OptionError, match="another scan"):
        scan(files / "001", checkpoint=checkpoint, resume=True)
    with pytest.raises(OptionError, match="without a checkpoint"):
        scan(files, resume=True)
    with pytest.raises(OptionError, match="for a cluster"):
        ua.scan(ua.HostLocal(files), patterns=PATTERNS, **OPTIONS)
    with scan(files, checkpoint=tmp_path / "c"), pytest.raises(OptionError, match="another scan is writing"):
        scan(files, checkpoint=tmp_path / "c", resume=True)


def test_a_scan_that_is_given_up_can_be_resumed(done: tuple[Path, Path], tmp_path: Path) -> None:
    with scan(done[0], checkpoint=tmp_path / "c") as running:
        next(iter(running))
    found = oracle.found(scan(done[0], checkpoint=tmp_path / "c", resume=True).to_table())
    assert found == expected(done[0])
    for stray in (tmp_path / "c" / PARTS).iterdir():
        assert stray.suffix == ".arrow"


def test_many_rows_wait_in_a_file(done: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled: list[int] = []
    spill = LeaseRows.spill
    monkeypatch.setattr("uring_actors.many.receiver.MEMORY_BYTES", 1000)
    monkeypatch.setattr(LeaseRows, "spill", lambda rows: (spilled.append(rows.rows), spill(rows)))
    (tmp_path / "big").write_bytes(b"a needle\n" * 60_000)
    table = scan(tmp_path / "big", checkpoint=tmp_path / "c").to_table()
    assert table.num_rows == 60_000
    assert len(spilled) > 1


PROGRAM = """
import sys
import uring_actors as ua
scan = ua.scan(sys.argv[1], patterns=[ua.Regex("ne+dle")], checkpoint=sys.argv[2], resume=True,
               engine="threads", io_engine="pread", slot_bytes=65536, slots=4, lease_bytes=4_000)
print("started", flush=True)
scan.to_table()
"""


def killed_and_resumed(files: Path, checkpoint: Path, seed: int) -> None:
    """Killed at random moments until one process comes through; then read once more."""
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 4)):
        with subprocess.Popen([sys.executable, "-c", PROGRAM, files, checkpoint], stdout=subprocess.PIPE) as scanning:
            assert scanning.stdout is not None
            scanning.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            scanning.send_signal(signal.SIGKILL)
    found = oracle.found(scan(files, checkpoint=checkpoint, resume=True).to_table())
    assert found == expected(files), oracle.explain_difference(found, expected(files))


def test_killed_and_resumed(tmp_path: Path) -> None:
    make_files(tmp_path / "files", 60)
    killed_and_resumed(tmp_path / "files", tmp_path / "c", 1)


@pytest.mark.slow  # each seed starts several processes
@pytest.mark.parametrize("seed", range(20))
def test_killed_and_resumed_at_random(tmp_path: Path, seed: int) -> None:
    make_files(tmp_path / "files", 60)
    killed_and_resumed(tmp_path / "files", tmp_path / "c", seed)

"""Compiled loops: cached where only their user can write, per state of the sources; and free of the GIL."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import uring_actors
from tests import hot_helpers as h
from uring_actors import hot
from uring_actors.arena import bell, channel

PACKAGE = Path(uring_actors.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose sources the digest is taken of."""
    copy = tmp_path / "copy" / "uring_actors"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(hot, "_PACKAGE", copy)
    return copy


def cache_directory() -> str:
    return hot.cache_directory.__wrapped__()


# ── which sources ────────────────────────────────────────────────────────────────────────────────────────────


def test_any_change_to_any_source_is_another_directory(package):
    sources = [package / "hot.py"]
    for folder in ("arena", "uring", "megakernel", "ops", "results"):
        sources += (package / folder).rglob("*.py")
    assert len(sources) > 8
    first = hot._digest()
    seen = {first}
    for path in sources:
        kept = path.read_bytes()
        path.write_bytes(kept + b"#")
        seen.add(hot._digest())
        path.write_bytes(kept)
    assert len(seen) == len(sources) + 1
    (package / "arena" / "new.py").touch()
    seen.add(hot._digest())
    (package / "arena" / "new.py").rename(package / "ops" / "new.py")
    seen.add(hot._digest())
    assert len(seen) == len(sources) + 3
    (package / "ops" / "new.py").unlink()
    (package / "arena" / "notes.txt").write_text("not a source")
    assert hot._digest() == first


def test_what_moves_from_one_file_to_another_is_seen(package):
    one, other = package / "arena" / "a.py", package / "arena" / "b.py"
    one.write_bytes(b"xy")
    other.write_bytes(b"z")
    before = hot._digest()
    one.write_bytes(b"x")
    other.write_bytes(b"yz")
    assert hot._digest() != before


def test_another_numba_is_another_directory(monkeypatch):
    before = hot._digest()
    monkeypatch.setattr(hot.numba, "__version__", "99.0")
    assert hot._digest() != before


# ── which directory ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and an empty temporary directory."""
    (tmp_path / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def fallback(home: Path) -> str:
    return f"{home}/tmp/cache-{os.getuid()}/uring_actors/{hot._digest()}"


def test_it_is_private_to_the_user_whatever_the_umask(home):
    umask = os.umask(0)
    try:
        path = cache_directory()
    finally:
        os.umask(umask)
    assert path == f"{home}/home/.cache/uring_actors/{hot._digest()}"
    for part in (Path(path), Path(path).parent, Path(path).parent.parent):
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
    assert cache_directory() == path


def test_the_users_setting_is_followed_even_through_a_link(home, monkeypatch):
    (home / "elsewhere").mkdir(mode=0o755)
    (home / "link").symlink_to(home / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "link"))
    assert cache_directory() == f"{home}/elsewhere/uring_actors/{hot._digest()}"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
@pytest.mark.parametrize("part", [".cache", ".cache/uring_actors", "leaf"])
def test_what_others_can_write_to_is_not_taken(home, mode, part):
    part = f".cache/uring_actors/{hot._digest()}" if part == "leaf" else part
    (home / "home" / part).mkdir(parents=True)
    (home / "home" / part).chmod(mode)
    assert cache_directory() == fallback(home)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a directory away")
@pytest.mark.parametrize("part", [".cache", ".cache/uring_actors"])
def test_what_is_another_users_is_not_taken(home, part):
    (home / "home" / part).mkdir(parents=True)
    os.chown(home / "home" / part, 65534, 65534)
    assert cache_directory() == fallback(home)


@pytest.mark.parametrize("home_is", ["a file", "relative", "/proc/nowhere"])
def test_it_falls_back_where_there_is_no_home(home, monkeypatch, home_is):
    if home_is == "a file":
        (home / "home").touch()
    else:
        monkeypatch.setenv("HOME", home_is)
    assert cache_directory() == fallback(home)
    assert not Path("relative").exists()


def test_a_link_laid_in_the_temporary_directory_is_not_followed(home, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    (home / "victim").mkdir(mode=0o700)
    (home / "tmp" / f"cache-{os.getuid()}").symlink_to(home / "victim")
    assert cache_directory() == ""
    assert not any((home / "victim").iterdir())


def test_without_a_directory_nothing_is_cached_and_it_still_runs(monkeypatch):
    monkeypatch.setattr(hot, "cache_directory", lambda: "")

    def double(x):
        return 2 * x

    double.__module__ = "uring_actors.arena.test"
    compiled = hot.hot(double)
    assert compiled(21) == 42
    assert type(compiled._cache).__name__ == "NullCache"


@pytest.mark.parametrize("module", ["test_hot", "uring_actors", "uring_actors.cli", "other.arena"])
def test_only_modules_in_the_digest_may_hold_hot_functions(module):
    def function():
        return 1

    function.__module__ = module
    with pytest.raises(TypeError, match="a hot function must live in one of"):
        hot.hot(function)


# ── in other processes ───────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import ctypes, sys
from uring_actors.arena import abi, channel
memory = (ctypes.c_char * 8192)()
at = ctypes.addressof(memory) + 64 & ~63
print("ready", flush=True)
sys.stdin.readline()
for i in range(16):
    assert channel.push(at, 15, i, 2, 3, 4, 5, 6, 7)
assert not channel.push(at, 15, 0, 0, 0, 0, 0, 0, 0)
for i in range(16):
    assert channel.pending(at) == 16 - i
    print(channel.peek(at, 15) - at, end=" ")
    channel.pop(at)
hits = sum(sum(f.stats.cache_hits.values()) for f in (channel.push, channel.pending, channel.peek, channel.pop))
print(hits)
"""


class Program:
    """A fresh interpreter that imports the package at ``root`` and then waits for ``go``."""

    def __init__(self, root: Path, cache: Path):
        environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=root,  # which -c puts first on the path
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_ready(self):
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> tuple[list[int], int]:
        """The offsets of the records, and how many functions came from the cache."""
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        *offsets, hits = map(int, out.split())
        return offsets, hits


def run(programs: list[Program]) -> list[tuple[list[int], int]]:
    for program in programs:
        program.wait_until_ready()
    for program in programs:
        program.go()
    return [program.result() for program in programs]


def test_processes_that_compile_at_once_and_then_a_changed_constant(package, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    root = package.parent
    offsets = [128 + 32 * i for i in range(16)]

    at_once = run([Program(root, cache) for _ in range(2)])
    assert [result[0] for result in at_once] == [offsets] * 2
    assert run([Program(root, cache)]) == [(offsets, 4)], "the cache that they left is whole"

    # What Numba's own cache misses: a constant of another module.
    layout = package / "arena" / "abi.py"
    layout.write_text(layout.read_text().replace("CHANNEL_RECORDS: Final = 128", "CHANNEL_RECORDS: Final = 256"))
    moved = [offset + 128 for offset in offsets]
    assert run([Program(root, cache)]) == [(moved, 0)]
    assert len(list((cache / "uring_actors").iterdir())) == 2


# ── the GIL ──────────────────────────────────────────────────────────────────────────────────────────────────


def count_until(event: threading.Event) -> int:
    count = 0
    while not event.is_set():
        count += 1
        time.sleep(0)
    return count


@pytest.mark.parametrize("how", ["sleeping", "spinning"])
def test_the_gil_is_released(scratch, how):
    done, began = threading.Event(), threading.Event()
    at, queue = scratch.at(h.BELL_A), scratch.at(h.CHANNEL)
    bell.wait_pending(at, queue, 1, 0)  # compiled

    def wait():
        began.set()
        if how == "sleeping":
            bell.wait_pending(at, queue, 0, 300_000_000)
        else:
            bell.wait_pending(at, queue, 1 << 50, 0)  # years, if nobody else could push
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait()
    if how == "spinning":
        time.sleep(0.1)
        assert not done.is_set()
        channel.push(queue, 7, 0, 0, 0, 0, 0, 0, 0)
    else:
        assert count_until(done) > 1000
    thread.join(10)
    assert done.is_set()

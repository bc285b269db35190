"""From paths to files: what is listed, what is skipped and said, what fails without stopping the rest."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uring_actors.errors import InputError, OptionError
from uring_actors.plan import FileBatch, FileEntry, device_name, devices, listing, walk
from uring_actors.results.errors import ERROR_SCHEMA, Failure, Skipped, errors_table, skipped_table
from uring_actors.uring import listing as directory

Found = list[FileEntry | Skipped | Failure]


def files(found: Found) -> list[bytes]:
    return [one.path for one in found if isinstance(one, FileEntry)]


def skipped(found: Found) -> dict[bytes, str]:
    return {one.path: one.reason for one in found if isinstance(one, Skipped)}


def failures(found: Found) -> dict[bytes, Failure]:
    return {one.path: one for one in found if isinstance(one, Failure)}


@pytest.fixture
def tree(tmp_path: Path) -> bytes:
    top = tmp_path / "tree"
    (top / "b" / "c").mkdir(parents=True)
    (top / "a").mkdir()
    for name in ("z", "m", "a/1", "b/2", "b/c/3"):
        (top / name).write_bytes(name.encode())
    return os.fsencode(top)


def test_files_by_name_then_directories_by_name(tree: bytes) -> None:
    found = list(walk([tree]))
    assert files(found) == [tree + name for name in (b"/m", b"/z", b"/a/1", b"/b/2", b"/b/c/3")]
    assert [one.id for one in found if isinstance(one, FileEntry)] == [0, 1, 2, 3, 4]


def test_an_entry_carries_what_stat_says(tree: bytes) -> None:
    (entry,) = walk(tree + b"/b/2")
    status = os.stat(tree + b"/b/2")
    assert entry == FileEntry(0, tree + b"/b/2", 3, status.st_dev, status.st_ino, status.st_mtime_ns)


def test_paths_begin_as_the_caller_spelled_them(tree: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert files(list(walk(["a", "./b/"]))) == [b"a/1", b"./b/2", b"./b/c/3"]


def test_any_kind_of_path(tree: bytes) -> None:
    for path in (tree, os.fsdecode(tree), Path(os.fsdecode(tree))):
        assert len(files(list(walk(path)))) == 5
        assert len(files(list(walk([path])))) == 5


def test_empty_files_are_entries(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (entry,) = walk([tmp_path])
    assert isinstance(entry, FileEntry)
    assert entry.size == 0


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"-e", b" ", b"caf\xe9"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    assert files(list(walk([tmp_path]))) == [os.fsencode(tmp_path) + b"/" + name for name in sorted(names)]


@pytest.mark.parametrize("bad", ["missing", "file/below", "nul\0within", "", "loop", "dangling", "x" * 300])
def test_a_path_that_cannot_be_reached_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(InputError) as caught:
        walk(["file", bad])  # the call itself, not the first item
    assert caught.value.path == bad.encode()
    assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG)


def test_several_bad_paths_are_counted() -> None:
    with pytest.raises(InputError, match=r"2 of the 3 paths given.*/no/such/a"):
        walk(["/no/such/a", "/no/such/b", "/"])


def test_no_paths() -> None:
    with pytest.raises(OptionError, match="no path"):
        walk([])


# Overlaps


def test_a_file_is_listed_once_however_the_trees_overlap(tree: bytes) -> None:
    everything = set(files(list(walk([tree]))))
    for paths in (
        [tree, tree],
        [tree, tree + b"/b"],
        [tree + b"/b", tree],
        [tree + b"/b/c", tree, tree + b"/b"],
        [tree + b"/z", tree, tree + b"/b/2"],
        [tree + b"/b/c/3", tree + b"/b/c/3", tree + b"/b/../a", tree],
    ):
        found = [os.path.normpath(path) for path in files(list(walk(paths)))]
        assert len(found) == len(set(found))
        assert set(found) == everything


def test_overlap_through_a_link_that_was_given(tree: bytes, tmp_path: Path) -> None:
    link = os.fsencode(tmp_path / "link")
    os.symlink(tree, link)
    assert files(list(walk([link + b"/b", tree]))) == [
        link + b"/b/2",
        link + b"/b/c/3",
        tree + b"/m",
        tree + b"/z",
        tree + b"/a/1",
    ]


def test_hard_links_are_separate_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    os.link(tmp_path / "one", tmp_path / "two")
    first, second = walk([tmp_path])
    assert isinstance(first, FileEntry)
    assert isinstance(second, FileEntry)
    assert first.inode == second.inode


# Links


def test_a_given_link_is_followed(tree: bytes, tmp_path: Path) -> None:
    os.symlink(tree + b"/z", tmp_path / "to-file")
    os.symlink(tree, tmp_path / "to-tree")
    assert files(list(walk([tmp_path / "to-file"]))) == [os.fsencode(tmp_path / "to-file")]
    assert len(files(list(walk([tmp_path / "to-tree"])))) == 5


def test_links_within_a_tree(tree: bytes) -> None:
    os.symlink(b"nowhere", tree + b"/dangling")
    os.symlink(b"z/below", tree + b"/through-a-file")
    os.symlink(b"self", tree + b"/self")
    os.symlink(b"..", tree + b"/b/up")
    os.symlink(b"/", tree + b"/root")
    os.symlink(b"z", tree + b"/fine")
    os.symlink(b"../a", tree + b"/b/aside")
    found = list(walk([tree]))
    assert len(files(found)) == 5
    assert skipped(found) == {
        tree + b"/dangling": "symbolic link to something that does not exist",
        tree + b"/through-a-file": "symbolic link to something that does not exist",
        tree + b"/self": "symbolic link that loops",
        tree + b"/b/up": "symbolic link to a directory that contains it",
        tree + b"/root": "symbolic link to a directory that contains it",
        tree: "2 symbolic links below it are not followed",
    }


# Special files


def test_special_files_are_skipped_and_said_and_never_opened(tmp_path: Path) -> None:
    top = tmp_path / "special"
    top.mkdir()
    os.mkfifo(top / "fifo")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(top)  # a socket's address is short
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
        server.close()
    (top / "file").touch()
    found = list(walk([top]))
    assert files(found) == [os.fsencode(top / "file")]
    assert skipped(found) == {
        os.fsencode(top / "fifo"): "FIFO, not a regular file",
        os.fsencode(top / "socket"): "socket, not a regular file",
    }
    assert skipped(list(walk([top / "fifo"]))) == {os.fsencode(top / "fifo"): "FIFO, not a regular file"}
    assert skipped(list(walk(["/dev/null"]))) == {b"/dev/null": "character device, not a regular file"}


# Failures


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], when: int = 1) -> None:
    """``act`` once, when the names of the ``when``-th directory have been read."""
    real, calls = directory.index_entries, []

    def reading(*args: Any) -> int:
        calls.append(None)
        if len(calls) == when:
            act()
        return real(*args)

    monkeypatch.setattr(directory, "index_entries", reading)


def test_a_file_that_vanishes_while_listing_goes_on(tree: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish() -> None:
        os.unlink(tree + b"/z")
        os.unlink(tree + b"/b/c/3")
        os.rmdir(tree + b"/b/c")

    meanwhile(monkeypatch, vanish)
    found = list(walk([tree]))
    assert files(found) == [tree + b"/m", tree + b"/a/1", tree + b"/b/2"]
    failed = failures(found)
    assert set(failed) == {tree + b"/z"}
    assert failed[tree + b"/z"].error == "ENOENT"
    assert "vanished" in failed[tree + b"/z"].message


def test_a_directory_that_vanishes_before_it_is_listed(tree: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: shutil.rmtree(tree + b"/b"), when=2)
    found = list(walk([tree]))
    assert files(found) == [tree + name for name in (b"/m", b"/z", b"/a/1")]
    (failure,) = failures(found).values()
    assert (failure.path, failure.errno) == (tree + b"/b", errno.ENOENT)


def test_an_error_in_the_middle_of_a_listing_keeps_what_was_read(
    tree: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = directory.read_entries

    def breaking(*args: Any) -> tuple[int, int]:
        return real(*args)[0], -errno.EIO

    monkeypatch.setattr(directory, "read_entries", breaking)
    found = list(walk([tree]))
    assert len(files(found)) == 5
    assert {one.error for one in failures(found).values()} == {"EIO"}
    assert len(failures(found)) == 4


def test_a_large_directory_and_long_names(tmp_path: Path) -> None:
    """More entries than one buffer, one batch and one look take; names of every length."""
    names = {f"{i:x}{'n' * (i % 250)}" for i in range(3000)} | {os.fsdecode(b"\xff%d" % i) for i in range(5)}
    for name in names:
        (tmp_path / name).touch()
    found = list(listing(tmp_path))
    assert all(isinstance(batch, FileBatch) and 0 < len(batch) <= 1024 for batch in found)
    assert files([one for batch in found for one in batch]) == sorted(os.fsencode(tmp_path / n) for n in names)
    assert [number for batch in found for number in batch.ids.tolist()] == list(range(len(names)))


def test_a_batch_is_a_sequence(tree: bytes) -> None:
    entries = [one for one in walk(tree) if isinstance(one, FileEntry)]
    batch = FileBatch.of(entries)
    assert list(batch) == entries
    assert batch[-1] == entries[-1]
    assert list(batch[1:4:2]) == entries[1:4:2]
    assert list(batch.take(np.array([0, 4]))) == [entries[0], entries[4]]
    assert list(FileBatch.of(entries[::-1])) == entries
    assert list(FileBatch.of([])) == []
    huge = FileEntry(7, b"x", 1 << 40, 5, (1 << 64) - 3)
    assert list(FileBatch.of([huge])) == [huge]
    with pytest.raises(IndexError):
        batch[5]


def as_nobody(work: Callable[[], Found]) -> Found:
    """``work``'s result in a forked child without root's rights."""

    def child(sending: multiprocessing.connection.Connection) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        sending.send(work())

    list(walk(Path(__file__).parent))  # the compiled loops are root's to load
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sending,))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join()


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[Path]:
    """``tmp_path`` in a state in which another user can get there."""
    changed = []
    for parent in (tmp_path, *tmp_path.parents):
        status = parent.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o001:
            changed.append((parent, status.st_mode))
            parent.chmod(status.st_mode | 0o055)
    yield tmp_path
    for parent, mode in reversed(changed):
        parent.chmod(mode)


def test_a_directory_without_permission_fails_and_the_rest_goes_on(reachable: Path) -> None:
    top = reachable / "top"
    for name in ("closed", "no-search", "open"):
        (top / name).mkdir(parents=True)
        (top / name / "file").touch()
    (top / "closed").chmod(0)
    (top / "no-search").chmod(0o444)
    top.chmod(0o755)
    (top / "open").chmod(0o755)
    try:
        found = as_nobody(lambda: list(walk([top])))
    finally:
        (top / "closed").chmod(0o700)
        (top / "no-search").chmod(0o700)
    path = os.fsencode(top)
    assert files(found) == [path + b"/open/file"]
    failed = failures(found)
    assert set(failed) == {path + b"/closed", path + b"/no-search/file"}
    assert {one.error for one in failed.values()} == {"EACCES"}
    assert failed[path + b"/closed"].device


def test_what_an_unlistable_directory_hides_is_still_found_when_given(reachable: Path) -> None:
    top = reachable / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub").chmod(0o755)
    (top / "sub" / "file").touch()
    top.chmod(0o711)
    found = as_nobody(lambda: list(walk([top, top / "sub"])))
    if os.geteuid() == 0:
        assert set(failures(found)) == {os.fsencode(top)}
    assert files(found) == [os.fsencode(top / "sub" / "file")]


def test_a_tree_deeper_than_a_path_can_be(tmp_path: Path) -> None:
    """3,000 levels are more than a path of 4,095 bytes can name: listed as far as one can, then said."""
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(3000):
            os.mkdir("d", dir_fd=here)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        found = list(walk([tmp_path]))
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # by descriptors, so at any depth
    deepest = files(found)[-1]
    assert deepest.count(b"/d") > 1900
    failed = list(failures(found).values())
    assert {one.error for one in failed} == {"ENAMETOOLONG"}
    assert all("further down" in one.message for one in failed)


# Devices and tables


def test_device_names() -> None:
    assert device_name(os.stat("/proc").st_dev) == "proc"
    assert device_name(os.makedev(0, 0xFFFFE)) == f"0:{0xFFFFE}"
    assert device_name(os.makedev(0, 0xFFFFE), b"/proc/self/stat") == "proc"
    for number in os.listdir("/sys/dev/block"):
        major, minor = map(int, number.split(":"))
        assert os.path.exists(f"/sys/class/block/{device_name(os.makedev(major, minor))}")


def test_the_devices_of_paths(tree: bytes) -> None:
    here = os.stat(tree).st_dev
    assert devices([tree, tree + b"/m"]) == {here: device_name(here, tree)}
    everywhere = devices("/")
    assert next(iter(everywhere)) == os.stat("/").st_dev
    assert "proc" not in everywhere.values()
    shared = os.stat("/dev/shm").st_dev
    assert everywhere[shared] == device_name(shared, b"/dev/shm")
    assert list(devices(["/proc/self/stat"]).values()) == ["proc"]
    with pytest.raises(InputError):
        devices(["/no/such/path"])


def test_the_error_table() -> None:
    table = errors_table([Failure(b"\xff", "cannot open", errno.EIO, offset=4096, device="sda", node="n1")])
    assert table.schema == ERROR_SCHEMA
    assert table.to_pylist() == [
        {
            "path": b"\xff",
            "offset": 4096,
            "device": "sda",
            "node": "n1",
            "errno": errno.EIO,
            "error": "EIO",
            "message": "cannot open",
        }
    ]
    assert errors_table([]).schema == ERROR_SCHEMA


def test_a_failure_from_an_exception() -> None:
    error = InputError("cannot read", path=b"p", errno=errno.EIO, fix="Try again.")
    assert Failure.from_error(error, path=b"q") == Failure(b"p", "cannot read. Try again.", errno=errno.EIO)
    assert Failure.from_error(InputError("odd"), path=b"q") == Failure(b"q", "odd", error="InputError")


def test_the_skipped_table() -> None:
    assert skipped_table([Skipped(b"p", "FIFO")]).to_pylist() == [{"path": b"p", "reason": "FIFO"}]
    assert skipped_table([]).num_rows == 0

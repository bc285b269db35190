"""The arena: shared memory that another process attaches, or refuses clearly; and that goes away by itself."""

from __future__ import annotations

import errno
import gc
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import time
from dataclasses import replace

import numpy as np
import pytest

from uring_actors.arena.abi import ArenaLayout
from uring_actors.arena.memory import Arena, ArenaHandle
from uring_actors.errors import ArenaError

LAYOUT = ArenaLayout(lanes=1, slots_per_lane=2, slot_bytes=8192, result_bytes=4096)
NOBODY = 65534
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def arena():
    arena = Arena.create(LAYOUT)
    yield arena
    arena.close()


def attach_error(handle: ArenaHandle) -> str:
    with pytest.raises(ArenaError) as caught:
        Arena.attach(handle)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.path == f"/proc/{handle.pid}/fd/{handle.fd}".encode()
    return str(error)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def copy_of(arena: Arena, *, size: int | None = None, patch: tuple[int, bytes] | None = None) -> ArenaHandle:
    """A memfd with the arena's bytes, cut to ``size`` and changed at an offset; a handle to it."""
    fd = os.memfd_create("copy", os.MFD_CLOEXEC)
    os.write(fd, arena.view)
    if size is not None:
        os.ftruncate(fd, size)
    if patch is not None:
        os.pwrite(fd, patch[1], patch[0])
    return replace(arena.handle(), fd=fd)


def start(target, *args):
    """A spawned process that runs ``target(*args, pipe)``, and our end: reading raises EOFError when it died."""
    here, there = spawn.Pipe()
    child = spawn.Process(target=target, args=(*args, there), daemon=True)
    child.start()
    there.close()
    return child, here


# ── creating and attaching ───────────────────────────────────────────────────────────────────────────────────


def test_the_header_is_as_documented(arena):
    head = bytes(arena.view[:64])
    assert head[:8] == b"URACTARN"
    assert struct.unpack_from("<II", head, 8) == (3, 1)
    assert head[16:32] == arena.nonce
    assert struct.unpack_from("<QQQII", head, 32) == (LAYOUT.total, 8192, 4096, 2, 4)
    assert not any(arena.view[64:])


def test_two_arenas_have_different_nonces(arena):
    other = Arena.create(LAYOUT)
    assert other.nonce != arena.nonce
    other.close()


def child_mirrors(handle, pipe):
    arena = Arena.attach(handle)
    words = arena.words(LAYOUT.data, 4)
    pipe.send((list(words), arena.fd, os.getpid()))
    words[:] = [5, 6, 7, 0xFFFFFFFF]
    pipe.send("written")
    assert pipe.recv() == "read"
    del words
    arena.close()
    pipe.send(os.path.exists(f"/proc/self/fd/{arena.fd}"))


def test_shared_bytes_are_seen_both_ways_by_a_spawned_process(arena):
    words = arena.words(LAYOUT.data, 4)
    words[:] = [1, 2, 0xDEADBEEF, 4]
    child, here = start(child_mirrors, arena.handle())
    seen, fd, pid = here.recv()
    assert seen == [1, 2, 0xDEADBEEF, 4]
    assert here.recv() == "written"
    assert list(words) == [5, 6, 7, 0xFFFFFFFF]
    assert os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/memfd:uring_actors")
    here.send("read")
    assert here.recv() is False
    child.join(10)
    assert child.exitcode == 0


def test_attaching_within_one_process(arena):
    twin = Arena.attach(arena.handle())
    assert twin.address != arena.address
    assert twin.fd != arena.fd
    arena.view[LAYOUT.data] = 77
    assert twin.view[LAYOUT.data] == 77
    twin.close()
    assert arena.view[LAYOUT.data] == 77


def test_handles_are_picklable_and_small(arena):
    data = pickle.dumps(arena.handle())
    assert pickle.loads(data) == arena.handle()
    assert len(data) < 500


def test_its_size_is_sealed(arena):
    for size in (LAYOUT.total - 4096, LAYOUT.total + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)


def test_addresses(arena):
    assert arena.at(0) == arena.address
    assert arena.at(LAYOUT.total - 1) == arena.address + LAYOUT.total - 1
    assert arena.address % mmap.PAGESIZE == 0
    for offset in (-1, LAYOUT.total):
        with pytest.raises(ArenaError, match="not in the arena"):
            arena.at(offset)


def test_more_memory_than_can_be_mapped():
    before = descriptors()
    with pytest.raises(ArenaError, match="Use fewer or smaller slots") as caught:
        Arena.create(ArenaLayout(1, 1, 1 << 47, 4096))
    assert caught.value.errno == errno.ENOMEM
    assert descriptors() == before


def test_no_descriptors_left():
    lowest_free = os.dup(0)
    os.close(lowest_free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(ArenaError, match="EMFILE"):
            Arena.create(LAYOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ((0, b"X"), "wrong magic"),
        ((8, struct.pack("<I", 1)), "layout version 1, this program has 3"),
        ((12, struct.pack("<I", 9)), r"its layout is \(9, "),
        ((16, bytes(16)), "wrong nonce"),
        ((31, b"\0\0"), "wrong nonce|its layout"),
        ((32, struct.pack("<Q", 4096)), "its layout is"),
        ((40, struct.pack("<Q", 4096)), "its layout is"),
        ((48, struct.pack("<Q", 8192)), "its layout is"),
        ((56, struct.pack("<I", 1)), "its layout is"),
        ((60, struct.pack("<I", 8)), "its layout is"),
    ],
)
def test_a_changed_header_is_refused(arena, patch, said):
    handle = copy_of(arena, patch=patch)
    before = descriptors()
    with pytest.raises(ArenaError, match=f"not the arena that was announced: .*({said})"):
        Arena.attach(handle)
    assert descriptors() == before
    os.close(handle.fd)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "truncated, 0 bytes"),
        (63, "truncated, 63 bytes"),
        (64, "it has 64 bytes, its header says"),
        (LAYOUT.total - 1, "its header says"),
        (LAYOUT.total + 4096, "its header says"),
    ],
)
def test_a_file_of_another_size_is_refused(arena, size, said):
    handle = copy_of(arena, size=size)
    assert said in attach_error(handle)
    os.close(handle.fd)


def test_an_exact_copy_with_its_nonce_is_taken(arena):
    handle = copy_of(arena)  # what the two tests above change: without a change it must pass
    Arena.attach(handle).close()
    os.close(handle.fd)


@pytest.mark.parametrize(
    "changed",
    [
        {"lanes": 2},
        {"slots_per_lane": 3},
        {"slots_per_lane": 1},
        {"slot_bytes": 4096},
        {"result_bytes": 8192},
        {"slot_bytes": 4096, "result_bytes": 8192},  # the same size in all
    ],
)
def test_another_layout_is_refused(arena, changed):
    handle = replace(arena.handle(), layout=replace(LAYOUT, **changed))
    assert "its layout is" in attach_error(handle)


def test_another_pipelines_nonce_is_refused(arena):
    assert "it belongs to another pipeline" in attach_error(replace(arena.handle(), nonce=bytes(16)))


def test_a_closed_descriptor():
    arena = Arena.create(LAYOUT)
    handle = arena.handle()
    arena.close()
    said = attach_error(handle)
    assert "ENOENT" in said
    assert "may have died" in said


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "empty"])
def test_a_descriptor_that_is_something_else_by_now(arena, tmp_path, kind):
    other = -1
    if kind == "pipe":
        fd, other = os.pipe()
    elif kind == "directory":
        fd = os.open(tmp_path, os.O_RDONLY)
    elif kind == "device":
        fd = os.open("/dev/zero", os.O_RDWR)
    else:
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    said = attach_error(replace(arena.handle(), fd=fd))
    wanted = {"pipe": "no memory file", "directory": "EISDIR", "device": "no memory file", "empty": "truncated"}
    assert wanted[kind] in said
    for descriptor in (fd, other):
        if descriptor >= 0:
            os.close(descriptor)


def child_leaves(pipe):
    arena = Arena.create(LAYOUT)
    pipe.send(arena.handle())
    os._exit(0)


def test_a_dead_process():
    child, here = start(child_leaves)
    handle = here.recv()
    child.join(10)
    said = attach_error(handle)
    assert "ENOENT" in said
    assert f"process {handle.pid}" in said


def child_as_nobody(handle, pipe):
    os.setresuid(NOBODY, NOBODY, NOBODY)
    pipe.send(attach_error(handle))


def test_as_another_user(arena):
    if os.getuid() != 0:
        said = attach_error(replace(arena.handle(), pid=1, fd=0))
    else:
        child, here = start(child_as_nobody, arena.handle())
        said = here.recv()
        child.join(10)
    assert "EACCES" in said or "EPERM" in said
    assert "same user" in said


def child_without_room(handle, pipe):
    resource.setrlimit(resource.RLIMIT_AS, (512 << 20, resource.RLIM_INFINITY))
    before = descriptors()
    said = attach_error(handle)
    pipe.send((said, descriptors() - before))


def test_no_address_space_to_map_it():
    arena = Arena.create(ArenaLayout(1, 1, 1 << 33, 4096))  # sparse: nothing of it is ever touched
    child, here = start(child_without_room, arena.handle())
    said, leaked = here.recv()
    child.join(10)
    arena.close()
    assert "ENOMEM" in said
    assert "ulimit -v" in said
    assert leaked == 0


# ── closing ──────────────────────────────────────────────────────────────────────────────────────────────────


def mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:uring_actors" in line for line in maps)


def test_close_is_idempotent_and_leaves_nothing():
    before, maps = descriptors(), mapped()
    arena = Arena.create(LAYOUT)
    assert mapped() == maps + 1
    for _ in range(3):
        arena.close()
    assert descriptors() == before
    assert mapped() == maps
    reused = os.open("/dev/null", os.O_RDONLY)
    arena.close()  # must not close a descriptor that has its number by now
    os.fstat(reused)
    os.close(reused)


def test_a_closed_arena_gives_no_addresses():
    arena = Arena.create(LAYOUT)
    arena.close()
    with pytest.raises(ArenaError, match="closed"):
        arena.at(0)
    with pytest.raises(ArenaError, match="closed"):
        arena.words(0, 1)
    assert len(arena.view) == 0


@pytest.mark.parametrize("export", ["array", "memoryview", "slice"])
def test_what_was_exported_keeps_the_mapping_safe(export):
    before, maps = descriptors(), mapped()
    arena = Arena.create(LAYOUT)
    held = {
        "array": lambda: arena.words(LAYOUT.data, 16),
        "memoryview": lambda: memoryview(arena.view)[LAYOUT.data : LAYOUT.data + 64].cast("I"),
        "slice": lambda: np.frombuffer(arena.view[LAYOUT.data :], np.uint32)[:16],
    }[export]()
    held[0] = 42
    arena.close()
    arena.close()
    assert mapped() == maps + 1
    held[15] = held[0]  # a crash, if it were unmapped
    assert held[15] == 42
    del held
    gc.collect()
    assert mapped() == maps
    assert descriptors() == before


# ── its memory ───────────────────────────────────────────────────────────────────────────────────────────────

BIG = ArenaLayout(lanes=1, slots_per_lane=16, slot_bytes=32 << 20, result_bytes=4096)


def shared_memory() -> int:
    """Bytes of shared memory in use on this machine."""
    with open("/proc/meminfo") as info:
        return next(int(line.split()[1]) << 10 for line in info if line.startswith("Shmem:"))


def holders(inode: int) -> set[int]:
    """Processes that have this memfd open (a mapping made by Python keeps a descriptor, too)."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                if "memfd:uring_actors" in os.readlink(path) and os.stat(path).st_ino == inode:
                    found.add(int(pid))
        except OSError:
            continue
    return found


def child_creates(pipe):
    arena = Arena.create(BIG)
    np.frombuffer(arena.view, np.uint8)[BIG.data :] = 1
    pipe.send((arena.handle(), os.fstat(arena.fd).st_ino))
    signal.pause()


def child_attaches(handle, pipe):
    arena = Arena.attach(handle)
    pipe.send(arena.view[BIG.data])
    assert pipe.recv() == "look again"
    pipe.send(arena.view[BIG.total - 1])
    signal.pause()


def wait_for(what, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_the_memory_goes_with_the_last_process_killed():
    used = 7 * BIG.total // 8  # what else happens on this machine meanwhile must be less than an eighth
    empty = shared_memory()
    creator, here = start(child_creates)
    handle, inode = here.recv()
    assert shared_memory() - empty > used
    second, here2 = start(child_attaches, handle)
    assert here2.recv() == 1
    assert holders(inode) == {creator.pid, second.pid}

    creator.kill()
    creator.join(10)
    wait_for(lambda: holders(inode) == {second.pid})
    here2.send("look again")
    assert here2.recv() == 1
    full = shared_memory()
    assert full - empty > used
    assert "may have died" in attach_error(handle)

    second.kill()
    second.join(10)
    wait_for(lambda: full - shared_memory() > used)
    assert holders(inode) == set()

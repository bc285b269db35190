"""Files that can't be read whole: an ext4 on a loop device with a stretch that fails, and a disk whose errors are
switched on while it is read.

The stretch: EXT4_IOC_MOVE_EXT moves it to the end of the image, which is then cut off under the loop device. So the
rest of the file, and all other files, stay readable. Source: Documentation/filesystems/ext4, fs/ext4/move_extent.c.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

BLOCK = 4096
_MOVE_EXT = 0xC028660F  # _IOWR('f', 15, struct move_extent)
_MOVE = struct.Struct("=IIQQQQ")
_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_IMAGE_BYTES = 64 << 20


def run(*command: object) -> str:
    """A command's output; the test is skipped where it is missing or not permitted here."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(folder: Path, name: str = "disk", size: int = _IMAGE_BYTES) -> Iterator[tuple[Path, Path]]:
    """A new ext4 on a loop device: its image and where it is mounted."""
    image, point = folder / f"{name}.image", folder / name
    with open(image, "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-b", BLOCK, "-O", "^has_journal", "-m", 0, image)
    device = run("losetup", "--find", "--show", image)
    try:
        point.mkdir()
        run("mount", "-t", "ext4", device, point)
        try:
            yield image, point
        finally:
            subprocess.run(["umount", point], check=True, timeout=30)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=30)


def extents(path: Path) -> list[tuple[int, int, int]]:
    """A file's extents: offset, place on the device, length; bytes."""
    request = bytearray(_FIEMAP_HEAD.pack(0, (1 << 64) - 1, 1, 0, 64, 0) + bytes(64 * _FIEMAP_EXTENT.size))
    with open(path, "rb") as file:
        fcntl.ioctl(file, _FIEMAP, request)
    count = _FIEMAP_HEAD.unpack_from(request)[3]
    found = (_FIEMAP_EXTENT.unpack_from(request, 32 + i * _FIEMAP_EXTENT.size)[:3] for i in range(count))
    return [(int(at), int(place), int(length)) for at, place, length in found]


def move(path: Path, start: int, donor: Path, donor_start: int, length: int) -> None:
    """Exchange the places of ``path``'s bytes from ``start`` and ``donor``'s from ``donor_start``."""
    drop_cache(path)  # a cached page that is busy stops it
    with open(path, "r+b") as file, open(donor, "r+b") as other:
        done = 0
        while done < length:
            first, second = (start + done) // BLOCK, (donor_start + done) // BLOCK
            request = bytearray(_MOVE.pack(0, other.fileno(), first, second, (length - done) // BLOCK, 0))
            fcntl.ioctl(file, _MOVE_EXT, request)
            done += int(_MOVE.unpack(request)[5]) * BLOCK


@contextlib.contextmanager
def disk_with_a_hole(folder: Path, files: Mapping[str, bytes], broken: str, hole: range) -> Iterator[Path]:
    """``files`` on a disk; the bytes ``hole`` (whole blocks) of ``broken`` can't be read."""
    assert hole.start % BLOCK == hole.stop % BLOCK == 0
    with mounted(folder) as (image, point):
        for name, content in files.items():
            (point / name).write_bytes(content)
        os.sync()
        donor = point / "donor"  # takes nearly all that is left; its place that lies last is exchanged
        with open(donor, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (os.statvfs(point).f_bavail - 64) * BLOCK)
            os.fsync(file.fileno())
        at, place, length = max(extents(donor), key=lambda extent: extent[1])
        if length < len(hole):
            pytest.skip("this ext4 left no room at its end")
        move(point / broken, hole.start, donor, at + length - len(hole), len(hole))
        donor.unlink()
        run("mount", "-o", "remount,ro", point)
        cut = place + length - len(hole)
        os.truncate(image, cut)
        drop_cache(image, *(point / name for name in files))
        yield point


def drop_cache(*paths: Path) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


class SwitchedDisk:
    """``path`` is a file of ``content`` through FUSE; while ``failing`` is set, every read of it is EIO."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.path = folder / "switched"
        self._image, self._trigger, log = folder / "image", folder / "trigger", folder / "log"
        self._image.write_bytes(content)
        self.path.touch()
        server = ["nbdkit", "-s", "--filter=error", "file", self._image]
        server += ["error-pread=EIO", "error-pread-rate=100%", f"error-pread-file={self._trigger}"]
        for tool in ("nbdfuse", "nbdkit", "fusermount3"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed")
        with open(log, "wb") as output:
            self._server = subprocess.Popen(
                ["nbdfuse", self.path, "--command", *server], stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 10
        while self.path.stat().st_size != len(content):
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.skip(f"nbdfuse does not work here: {log.read_text()}")
            time.sleep(0.02)

    def fail(self, failing: bool) -> None:
        if failing:
            self._trigger.touch()
        else:
            self._trigger.unlink(missing_ok=True)

    def close(self) -> None:
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-u", self.path], check=False, timeout=10)
        if self._server.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(5)
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(5)

"""(c) A scan that looks at nothing, past the page cache (O_DIRECT), against fio; on the disk and on a loop device.

A disk that others share is slower by half from one minute to the next. So the same is done on an ext4 file system
on a loop device (with direct I/O) over a file in memory, where that can be set up: its ratio is the steadier one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import peers
from benchmarks.model import MIB, Missing, Setting, compare
from benchmarks.scanner import Scanner
from uring_actors.config import ScanOptions

BAR = 0.95
_IN_MEMORY = Path("/dev/shm")


def measure(setting: Setting) -> None:
    _measure_on(setting, setting.text, "direct, disk")
    try:
        with loop_device(setting) as text:
            _measure_on(setting, text, "direct, loop device")
    except (Missing, OSError) as reason:
        setting.report.left_out.append(f"direct on a loop device: {reason}")


def _measure_on(setting: Setting, text: Path, name: str) -> None:
    options = ScanOptions(engine="threads")
    size = text.stat().st_size // options.slot_bytes * options.slot_bytes
    command = peers.fio_command(text, size, options.slot_bytes, options.slots, direct=True)
    setting.report.commands[f"fio, {name}"] = peers.shown(command, text=text)
    ours, theirs = [], []
    with Scanner() as scanner:
        scanner.scan(text, operation="nop", engine="threads", io="direct")
        for _ in range(setting.rounds):
            theirs.append(peers.fio(command))
            ours.append(scanner.scan(text, operation="nop", engine="threads", io="direct"))
    setting.report.verdicts.append(compare(name, ours, theirs, BAR, peer="fio"))


@contextmanager
def loop_device(setting: Setting) -> Iterator[Path]:
    """The text on a file system on a loop device over a file in memory. Raises Missing where that can't be had."""
    if os.geteuid() != 0:
        raise Missing("needs root")
    needed = setting.size + setting.size // 8 + 64 * MIB
    if not _IN_MEMORY.is_dir() or shutil.disk_usage(_IN_MEMORY).free < needed:
        raise Missing(f"{_IN_MEMORY} has no room for {needed >> 20} MiB")
    image = _IN_MEMORY / f"benchmark-{os.getpid()}.img"
    mount = setting.directory / "loop"
    device = None
    mounted = False
    try:
        with image.open("wb") as file:
            file.truncate(needed)
        peers.run(["mkfs.ext4", "-q", "-F", str(image)])
        device = peers.run(["losetup", "--find", "--show", "--direct-io=on", str(image)]).output.strip()
        mount.mkdir()
        peers.run(["mount", device, str(mount)])
        mounted = True
        text = mount / "text"
        shutil.copyfile(setting.text, text)
        subprocess.run(["sync", "-f", str(text)], check=True)
        yield text
    finally:
        if mounted:
            subprocess.run(["umount", str(mount)], check=False)
        if device:
            subprocess.run(["losetup", "--detach", device], check=False)
        if mount.is_dir():
            mount.rmdir()
        image.unlink(missing_ok=True)

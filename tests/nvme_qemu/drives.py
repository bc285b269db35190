"""The guest's drives, and what is on them: shared by the side that makes them and the side that reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MEGABYTE = 1 << 20
TRANSFER_LIMIT = 512 * 1024  # the emulated drives' MDTS


@dataclass(frozen=True)
class Drive:
    """An emulated controller with one namespace; ``name`` is its serial number, by which the guest finds it (the
    kernel numbers controllers as it meets them). ``namespace``: further QEMU options of the namespace."""

    name: str
    size: int
    block_size: int = 512
    nsid: int = 1
    namespace: str = ""

    def content(self, offset: int, length: int) -> bytes:
        """What the image has there; every 8 bytes are different, also from another drive's."""
        first, last = offset // 8, -(-(offset + length) // 8)
        words = np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        words ^= np.uint64(int.from_bytes(self.name.encode().ljust(8), "little"))
        return words.tobytes()[offset - first * 8 :][:length]


DATA = Drive("data", 32 * MEGABYTE)
FOUR = Drive("four", 16 * MEGABYTE, block_size=4096, nsid=7)
BAD = Drive("bad", 4 * MEGABYTE)
GONE = Drive("gone", 4 * MEGABYTE)
TAGGED = Drive("tagged", 4 * MEGABYTE, namespace=",ms=8,mset=0")
DRIVES = (DATA, FOUR, BAD, GONE, TAGGED)

BAD_LBA = 2000
"""The block of the drive ``bad`` that can't be read."""


def arguments(directory: Path) -> list[str]:
    """QEMU's arguments for the drives, whose images are made in ``directory``."""
    out: list[str] = []
    for number, drive in enumerate(DRIVES):
        image = directory / f"{drive.name}.img"
        image.write_bytes(drive.content(0, drive.size))
        node: dict[str, object] = {"driver": "file", "filename": str(image), "locking": "off"}
        if drive is BAD:
            rule = {"event": "read_aio", "sector": BAD_LBA, "errno": 5, "immediately": False}
            node = {"driver": "blkdebug", "image": node, "inject-error": [rule]}
        block = {"driver": "raw", "node-name": f"n-{drive.name}", "file": node}
        out += ["-blockdev", json.dumps(block)]
        out += ["-device", f"nvme,id=c{number},serial={drive.name},mdts=7"]
        namespace = f"nvme-ns,bus=c{number},drive=n-{drive.name},nsid={drive.nsid}"
        namespace += f",logical_block_size={drive.block_size},physical_block_size={drive.block_size}"
        out += ["-device", namespace + drive.namespace]
    return out

"""The native path: NVMe → GPU memory with no host memory in between, and whether it can be had here.

An NVMe Read by passthrough (``nvme.py``) whose address lies in the GPU's memory, seen through its PCI window (BAR1)
and mapped into this process by a driver whose pages the kernel can pin for the drive: NVIDIA's nvidia-fs. What is
needed, in the order in which ``GpuDirectCapability.probe`` looks:

    Linux 6.0, passthrough not switched off, an NVMe generic node, NVIDIA's driver, a GPU with a BAR1 window,
    nvidia-fs, no IOMMU that translates

Available means that all of this is there, Disabled that it is installed and switched off, Unavailable that something
is missing. **A probe reads what the system says of itself and moves no byte, and the peer-mapped side has not run on
real hardware** (docs/native-path.md): what is proven is the submission, with host memory in the peer mapping's place.

Asking for the native path where it can't be had raises NativePathUnavailable; nothing falls back in silence.
Source: NVIDIA's GPUDirect Storage installation and troubleshooting guide; Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from uring_actors.errors import NativePathUnavailable, NvmeCommandRefused, NvmePassthroughDisabled
from uring_actors.uring.nvme import NvmeNamespace, NvmePassthrough, namespace_of, require_passthrough

MINIMUM_KERNEL: Final = (6, 0)
_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"  # PCI base class: display controllers, GPUs without an output among them
_MEMORY: Final = 0x200  # IORESOURCE_MEM (linux/ioport.h)


class State(Enum):
    """Whether the native path can be had."""

    AVAILABLE = "Available"
    DISABLED = "Disabled"
    UNAVAILABLE = "Unavailable"


@dataclass(frozen=True, slots=True)
class GpuDirectCapability:
    """What a probe found: the state, why, and what to do about it (empty where nothing is to be done).

    bar1_bytes: the largest BAR1 window among the GPUs; a mapping can't be larger.
    """

    state: State
    reason: str
    fix: str = ""
    bar1_bytes: int = 0

    @classmethod
    def probe(cls, root: Path = Path("/"), release: str | None = None) -> GpuDirectCapability:
        """Look. ``root``: where proc, sys, dev and lib are; ``release``: the kernel's, where it isn't the running
        one's (both for tests)."""
        host = _Host(root, release or platform.release())
        for question in _QUESTIONS:
            answer = question(host)
            if answer is not None:
                return answer
        bar1 = max(host.bar1_windows())
        version = _first_line(root / "proc/driver/nvidia-fs/version")
        return cls(
            State.AVAILABLE, f"Linux {host.release}, nvidia-fs {version}, BAR1 {bar1 >> 20} MiB", bar1_bytes=bar1
        )

    def require(self) -> None:
        """Raise NativePathUnavailable unless Available."""
        if self.state is not State.AVAILABLE:
            raise NativePathUnavailable(self.state.value, self.reason, fix=self.fix)


def require_native_path(root: Path = Path("/")) -> GpuDirectCapability:
    """The capability, if the native path can be had. Raises NativePathUnavailable, which says what to install."""
    capability = GpuDirectCapability.probe(root)
    capability.require()
    return capability


# ── the questions, in order; None is "go on" ─────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class _Host:
    root: Path
    release: str

    def bar1_windows(self) -> list[int]:
        """Bytes of each GPU's BAR1: the second line of its ``resource`` file, "start end flags"."""
        windows = []
        for device in sorted((self.root / "sys/bus/pci/devices").glob("*")):
            if _first_line(device / "vendor") == _NVIDIA and _first_line(device / "class").startswith(_DISPLAY):
                windows.append(_window(device / "resource"))
        return windows


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _window(resource: Path) -> int:
    try:
        start, end, flags = (int(word, 16) for word in resource.read_text().splitlines()[1].split())
    except (OSError, IndexError, ValueError):
        return 0
    return end - start + 1 if end and flags & _MEMORY else 0


def _unavailable(reason: str, fix: str) -> GpuDirectCapability:
    return GpuDirectCapability(State.UNAVAILABLE, reason, fix)


def _disabled(reason: str, fix: str) -> GpuDirectCapability:
    return GpuDirectCapability(State.DISABLED, reason, fix)


def _kernel(host: _Host) -> GpuDirectCapability | None:
    numbers = re.match(r"(\d+)\.(\d+)", host.release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= MINIMUM_KERNEL:
        return None
    return _unavailable(f"Linux {host.release} is older than 6.0", "Install Linux 6.0 or newer (6.12 was tested).")


def _switch(host: _Host) -> GpuDirectCapability | None:
    try:
        require_passthrough()
    except NvmePassthroughDisabled as error:
        return _disabled(error.message, error.fix or "")
    if _first_line(host.root / "proc/sys/kernel/io_uring_disabled") == "2":
        return _disabled("kernel.io_uring_disabled is 2", "Set it to 0 with sysctl.")
    return None


def _drive(host: _Host) -> GpuDirectCapability | None:
    if any((host.root / "sys/class/nvme-generic").glob("ng*")):
        return None
    return _unavailable(
        "there is no NVMe generic node (/dev/ngXnY)",
        "The files must lie on an NVMe drive of this kernel's own; a virtual machine needs it passed through.",
    )


def _driver(host: _Host) -> GpuDirectCapability | None:
    if (host.root / "proc/driver/nvidia/version").exists():
        return None
    if _module(host, "nvidia"):
        return _disabled("NVIDIA's driver is installed and not loaded", "Load it: modprobe nvidia.")
    return _unavailable("NVIDIA's driver is not installed", "Install it, with the open kernel modules (nvidia-open).")


def _bar1(host: _Host) -> GpuDirectCapability | None:
    windows = host.bar1_windows()
    if not windows:
        return _unavailable(
            "there is no NVIDIA GPU on the PCI bus", "A GPU is needed, passed through whole to a guest."
        )
    if max(windows) == 0:
        return _disabled(
            "the GPU has no BAR1 window", "Switch on “Above 4G decoding” and “Resizable BAR” in the firmware."
        )
    return None


def _nvidia_fs(host: _Host) -> GpuDirectCapability | None:
    if (host.root / "proc/driver/nvidia-fs").is_dir():
        return None
    if _module(host, "nvidia-fs"):
        return _disabled("nvidia-fs is installed and not loaded", "Load it: modprobe nvidia-fs.")
    return _unavailable(
        "nvidia-fs is not installed (no /proc/driver/nvidia-fs)",
        "Install GPUDirect Storage (the package nvidia-gds, from NVIDIA's CUDA repository), then modprobe nvidia-fs.",
    )


def _iommu(host: _Host) -> GpuDirectCapability | None:
    kinds = {_first_line(path) for path in (host.root / "sys/kernel/iommu_groups").glob("*/type")}
    if not any(kind.startswith("DMA") for kind in kinds):  # identity: passthrough
        return None
    return _disabled(
        "an IOMMU translates the devices' addresses, which peer-to-peer transfers don't survive",
        "Boot with iommu=pt, or iommu=off, or switch it off in the firmware.",
    )


def _module(host: _Host, name: str) -> bool:
    """Whether the kernel has a module of that name on disk."""
    modules = host.root / "lib/modules" / host.release
    spellings = {name, name.replace("-", "_")}
    return any(path.name.split(".ko")[0] in spellings for path in modules.rglob("nvidia*.ko*"))


_QUESTIONS: Final[tuple[Callable[[_Host], GpuDirectCapability | None], ...]] = (
    _kernel,
    _switch,
    _drive,
    _driver,
    _bar1,
    _nvidia_fs,
    _iommu,
)


# ── the submission side ──────────────────────────────────────────────────────────────────────────────────────
class MappedMemory(Protocol):
    """Memory that a drive may write to: its address in this process, and its length in bytes."""

    @property
    def address(self) -> int: ...

    def __len__(self) -> int: ...


class NativeReader:
    """Reads of one NVMe namespace straight into ``memory``, a peer mapping of the GPU's.

    open → closed; belongs to one thread. Nothing is registered: a peer mapping's pages are the driver's, and are
    pinned for each command. ``memory`` is kept until ``close``.

    capability: what ``GpuDirectCapability.probe`` found, asked for where not given. It must be Available; a test
    gives one that says so, with host memory. Raises NativePathUnavailable, OSError where ``node`` can't be opened,
    and what NvmePassthrough and namespace_of raise.
    """

    def __init__(
        self,
        node: str | os.PathLike[str],
        memory: MappedMemory,
        *,
        capability: GpuDirectCapability | None = None,
        depth: int = 64,
        identify: Callable[[int], NvmeNamespace] = namespace_of,
    ) -> None:
        (capability or GpuDirectCapability.probe()).require()
        self.memory = memory
        self._fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._fd)
            self._passthrough = undo.enter_context(NvmePassthrough(depth, identify=identify))
            self.namespace = self._passthrough.namespace(self._fd)
            undo.pop_all()

    def __enter__(self) -> NativeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, length: int, at: int = 0) -> int:
        """Read ``length`` bytes at byte ``offset`` of the namespace, whole blocks, to byte ``at`` of the memory;
        ``length``. Raises NvmeCommandRefused for a range outside the memory, and what NvmePassthrough.read raises."""
        if not 0 <= at <= at + length <= len(self.memory):
            raise NvmeCommandRefused(
                f"{length} bytes at {at} are not in the mapped {len(self.memory)} bytes",
                fix="Map more, or read less.",
            )
        return self._passthrough.read(self._fd, offset, length, self.memory.address + at)

    def close(self, seconds: float = 60.0) -> None:
        """Wait for what is in flight, then close; idempotent. See NvmePassthrough.close."""
        self._passthrough.close(seconds)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

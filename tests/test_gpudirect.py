"""The native path's probe on made-up systems, and the submission side with host memory on /dev/null."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_nvme import NOWHERE, needs_ring
from uring_actors.errors import NativePathUnavailable, NvmeCommandRefused
from uring_actors.uring import nvme
from uring_actors.uring.gpudirect import GpuDirectCapability, NativeReader, State, require_native_path

GPU = "sys/bus/pci/devices/0000:3b:00.0"
BAR1 = "0x000000d000000000 0x000000d7ffffffff 0x000000000014220c"  # 32 GiB
FILES = {
    "proc/sys/kernel/io_uring_disabled": "0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
    "proc/driver/nvidia-fs/version": "version: 2.27.3",
    "sys/class/nvme-generic/ng0n1/dev": "244:0",
    f"{GPU}/vendor": "0x10de",
    f"{GPU}/class": "0x030200",
    f"{GPU}/resource": f"0x00000000c8000000 0x00000000c8ffffff 0x0000000000040200\n{BAR1}\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x144d",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x010802",
    "sys/kernel/iommu_groups/3/type": "identity",
}


def system(root: Path, changes: dict[str, str | None]) -> Path:
    """A root directory with everything, but for ``changes``: other contents, or None for no such file."""
    for name, text in (FILES | changes).items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize("release", ["6.0.0", "6.12.117+deb12-amd64", "10.1"])
def test_available(tmp_path: Path, release: str) -> None:
    found = GpuDirectCapability.probe(system(tmp_path, {}), release)
    assert found.state is State.AVAILABLE
    assert found.fix == ""
    assert found.bar1_bytes == 32 << 30
    assert "2.27.3" in found.reason
    found.require()


MODULE = "lib/modules/6.12.0/updates/dkms/"
CASES: list[tuple[dict[str, str | None], State, str, str]] = [
    ({"proc/sys/kernel/io_uring_disabled": "2"}, State.DISABLED, "io_uring_disabled", "sysctl"),
    ({"sys/class/nvme-generic/ng0n1/dev": None}, State.UNAVAILABLE, "/dev/ngXnY", "NVMe drive"),
    ({"proc/driver/nvidia/version": None}, State.UNAVAILABLE, "driver is not installed", "nvidia-open"),
    (
        {"proc/driver/nvidia/version": None, f"{MODULE}nvidia.ko.xz": ""},
        State.DISABLED,
        "not loaded",
        "modprobe nvidia.",
    ),
    ({f"{GPU}/vendor": "0x1002"}, State.UNAVAILABLE, "no NVIDIA GPU", "GPU"),
    ({f"{GPU}/class": "0x040300"}, State.UNAVAILABLE, "no NVIDIA GPU", "GPU"),
    ({f"{GPU}/resource": "0x0 0x0 0x0\n0x0 0x0 0x0"}, State.DISABLED, "BAR1", "Above 4G"),
    ({f"{GPU}/resource": ""}, State.DISABLED, "BAR1", "Above 4G"),
    ({"proc/driver/nvidia-fs/version": None}, State.UNAVAILABLE, "nvidia-fs is not installed", "nvidia-gds"),
    (
        {"proc/driver/nvidia-fs/version": None, f"{MODULE}nvidia-fs.ko": ""},
        State.DISABLED,
        "not loaded",
        "modprobe nvidia-fs",
    ),
    ({"sys/kernel/iommu_groups/3/type": "DMA-FQ"}, State.DISABLED, "IOMMU", "iommu=pt"),
]


@pytest.mark.parametrize(("changes", "state", "reason", "fix"), CASES)
def test_each_thing_that_is_missing(
    tmp_path: Path, changes: dict[str, str | None], state: State, reason: str, fix: str
) -> None:
    found = GpuDirectCapability.probe(system(tmp_path, changes), "6.12.0")
    assert found.state is state
    assert reason in found.reason
    assert fix in found.fix
    with pytest.raises(NativePathUnavailable) as caught:
        found.require()
    assert caught.value.state == state.value
    assert caught.value.reason in str(caught.value)
    assert fix in str(caught.value)


@pytest.mark.parametrize("release", ["5.15.0-91-generic", "5.19", "nonsense"])
def test_an_old_kernel(tmp_path: Path, release: str) -> None:
    found = GpuDirectCapability.probe(system(tmp_path, {}), release)
    assert found.state is State.UNAVAILABLE
    assert "6.0" in found.reason


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvme.SWITCH, "off")
    found = GpuDirectCapability.probe(system(tmp_path, {}), "6.12.0")
    assert found.state is State.DISABLED
    assert nvme.SWITCH in found.reason


def test_an_empty_system(tmp_path: Path) -> None:
    found = GpuDirectCapability.probe(tmp_path)
    assert found.state is State.UNAVAILABLE
    with pytest.raises(NativePathUnavailable):
        require_native_path(tmp_path)


def test_this_machine_gets_an_answer() -> None:
    found = GpuDirectCapability.probe()
    assert found.reason
    assert bool(found.fix) == (found.state is not State.AVAILABLE)


def test_asking_where_it_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.12.0")
    assert require_native_path(system(tmp_path, {})).state is State.AVAILABLE


# ── the submission side ──────────────────────────────────────────────────────────────────────────────────────
class HostMemory:
    """In a peer mapping's place."""

    def __init__(self, size: int) -> None:
        self._bytes = (ctypes.c_uint64 * (size // 8))()
        self.address = ctypes.addressof(self._bytes)

    def __len__(self) -> int:
        return ctypes.sizeof(self._bytes)


PRETENDED = GpuDirectCapability(State.AVAILABLE, "host memory in the peer mapping's place")


def test_no_native_reader_without_the_native_path() -> None:
    missing = GpuDirectCapability(State.UNAVAILABLE, "nothing is here", "Install it.")
    with pytest.raises(NativePathUnavailable) as caught:
        NativeReader("/dev/null", HostMemory(4096), capability=missing, identify=lambda _: NOWHERE)
    assert "Install it." in str(caught.value)


@needs_ring
def test_reads_go_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(1 << 20)
    asked: list[tuple[int, ...]] = []
    real: Callable[..., int] = nvme.NvmePassthrough.read

    def read(self: nvme.NvmePassthrough, fd: int, *arguments: int) -> int:
        asked.append(arguments)
        return real(self, fd, *arguments)

    monkeypatch.setattr(nvme.NvmePassthrough, "read", read)
    with NativeReader("/dev/null", memory, capability=PRETENDED, identify=lambda _: NOWHERE) as reader:
        assert reader.namespace is NOWHERE
        assert reader.read(512, 1 << 19, at=4096) == 1 << 19
        assert reader.read(0, 1 << 20) == 1 << 20
        for offset, length, at in ((0, 1 << 20, 512), (0, 512, -512), (0, 512, 1 << 20), (0, -512, 1024)):
            with pytest.raises(NvmeCommandRefused):
                reader.read(offset, length, at)
    assert asked == [(512, 1 << 19, memory.address + 4096), (0, 1 << 20, memory.address)]
    reader.close()


@needs_ring
def test_a_reader_that_can_t_be_made_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="generic node"):
        NativeReader("/dev/null", HostMemory(4096), capability=PRETENDED)
    assert sorted(os.listdir("/proc/self/fd")) == before

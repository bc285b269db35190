"""A Debian kernel in QEMU (software emulation), with emulated NVMe drives and this host's files.

    python -m tests.nvme_qemu.rig        fetch QEMU and the kernels, build what boots (needs Debian's apt, root)

The guest's root is the host's, by 9p, under an overlay in the guest's memory: the host's interpreter and packages run
there unchanged, and nothing that the guest writes reaches the host but what it puts under ``/run/out``. No kernel is
installed: the package is unpacked, its vmlinux (which boots directly, seconds faster than the compressed image) and
the few modules that the guest needs are kept, the rest is thrown away.

Standard library only, so that any Python can prepare.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

SERIES = ("6.1", "6.12")
QEMU = "qemu-system-x86_64"
REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORY = Path(os.environ.get("NVME_QEMU_DIR") or REPOSITORY / "build" / "nvme-qemu")
# virtio_pci and 9p bring the host's files, nvme the drives; overlay makes the root writable.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "nvme")
# Not the cloud kernels, which have no 9p, nor the real-time ones.
_PACKAGE = {"6.1": r"linux-image-6\.1\.0-\d+-amd64", "6.12": r"linux-image-6\.12\.[\d.]+\+(?:deb|bpo)12\S*-amd64"}
_OTHER_FLAVOURS = ("-cloud-amd64", "-rt-amd64")

INIT = """#!/bin/sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
while read module; do $B insmod /modules/$module; done < /modules/order
$B mount -t tmpfs tmpfs /memory; $B mkdir /memory/upper /memory/work
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
$B mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root
for d in dev proc sys; do $B mount --bind /$d /root/$d; done
$B mount -t tmpfs tmpfs /root/run; $B mkdir /root/run/out
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /root/run/out
$B chroot /root /bin/sh /run/out/command
echo "GUEST-STATUS=$?"
$B poweroff -f
"""


class CannotPrepare(Exception):
    """Why the guest can't be had here."""


# ── preparing ────────────────────────────────────────────────────────────────────────────────────────────────
def prepare() -> dict[str, str]:
    """Fetch and build what is missing; for each series, the kernel's release or why there is none."""
    found: dict[str, str] = {}
    try:
        _install_qemu()
    except CannotPrepare as error:
        return dict.fromkeys(SERIES, str(error))
    for series in SERIES:
        if not (DIRECTORY / series / "initrd.gz").exists():
            try:
                _build(series, DIRECTORY / series)
            except (CannotPrepare, OSError, subprocess.CalledProcessError) as error:
                found[series] = f"not to be had: {error}"
                continue
        found[series] = (DIRECTORY / series / "release").read_text()
    return found


def _apt(*arguments: str, cwd: Path | None = None) -> str:
    if shutil.which(arguments[0]) is None:
        raise CannotPrepare(f"there is no {arguments[0]}: this needs Debian's packages")
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotPrepare(f"{' '.join(arguments)}: {done.stderr.strip()[-300:]}")
    return done.stdout


@functools.cache
def _update() -> None:
    _apt("apt-get", "update", "-qq")


def _install_qemu() -> None:
    if shutil.which(QEMU) is None:
        _update()
        _apt("apt-get", "install", "-y", "-qq", "--no-install-recommends", "qemu-system-x86")


def _newest(series: str) -> str:
    names = _apt("apt-cache", "search", "--names-only", f"^linux-image-{re.escape(series)}\\.").split("\n")
    names = [line.split(" ")[0] for line in names]
    fitting = [n for n in names if re.fullmatch(_PACKAGE[series], n) and not n.endswith(_OTHER_FLAVOURS)]
    if not fitting:
        raise CannotPrepare(f"no package of Linux {series} in this system's lists")
    return max(fitting, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _build(series: str, target: Path) -> None:
    """``target``/vmlinux, initrd.gz and release, from Debian's newest package of the series."""
    _update()
    package = _newest(series)
    release = package.removeprefix("linux-image-")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as name:
        work = Path(name)
        _apt("apt-get", "download", "-qq", package, "busybox-static", cwd=work)
        for deb in work.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, work / "files"], check=True)
        image = (work / f"files/boot/vmlinuz-{release}").read_bytes()
        (target / "vmlinux").write_bytes(unpack_kernel(image) or image)
        files = {"bin/busybox": (work / "files/bin/busybox").read_bytes(), "init": INIT.encode()}
        modules = load_order(work / "files", release, MODULES)
        files.update({f"modules/{name}": data for name, data in modules.items()})
        files["modules/order"] = "".join(f"{name}\n" for name in modules).encode()
        (target / "release").write_text(release)
        (target / "initrd.gz").write_bytes(gzip.compress(archive(files), 1))  # last: it says that all is there


def unpack_kernel(image: bytes) -> bytes | None:
    """The ELF file in a bzImage (Documentation/arch/x86/boot.rst), or None for a compression not known here."""
    start = (image[0x1F1] + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little")]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
        return subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    return None


def load_order(root: Path, release: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted modules and what they need, in the order in which to load them: file name → content."""
    paths = {path.name.split(".")[0].replace("-", "_"): path for path in root.rglob(f"{release}/kernel/**/*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        path = paths.get(name.replace("-", "_"))  # absent: built into the kernel
        if path is None or f"{path.name.split('.')[0]}.ko" in loaded:
            return
        data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for needed in re.findall(rb"\0depends=([^\0]*)\0", data) + re.findall(rb"\0softdep=pre: ([^\0]*)\0", data):
            for each in re.split(rb"[, ]+", needed):
                load(each.decode())
        loaded[f"{path.name.split('.')[0]}.ko"] = data

    for name in wanted:
        load(name)
    return loaded


def archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive (newc) of ``files`` and the directories that the guest's init mounts on."""
    out = bytearray()
    directories = ("bin", "modules", "proc", "sys", "dev", "host", "memory", "root")
    entries = [(name, 0o040755, b"") for name in directories]
    entries.append(("bin/sh", 0o120777, b"busybox"))
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for inode, (name, mode, data) in enumerate(entries, 1):
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


# ── booting ──────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Run:
    """One boot: the guest's command's exit status (None: it never came so far), and what the console showed."""

    status: int | None
    console: str


def why_not(series: str) -> str | None:
    """Why the guest can't be booted here, or None."""
    if shutil.which(QEMU) is None:
        return f"no {QEMU}: run tests/nvme_qemu/prepare"
    if not (DIRECTORY / series / "initrd.gz").exists():
        return f"no Linux {series} for the guest: run tests/nvme_qemu/prepare"
    return None


def boot(
    series: str, command: list[str], out: Path, *, environment: dict[str, str], drives: list[str], seconds: float
) -> Run:
    """Run ``command`` in the guest, in this directory, with ``out`` as its /run/out. ``drives``: QEMU's arguments.

    QEMU's own exit status says nothing of the guest, so the guest's is read from its console.
    """
    variables = {"PATH": os.environ["PATH"], "HOME": "/root", **environment}
    script = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    script += f"cd {shlex.quote(str(REPOSITORY))} || exit\n{shlex.join(command)}\n"
    (out / "command").write_text(script)
    kernel = DIRECTORY / series
    arguments = [QEMU, "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-m", "2G", "-smp", "2"]
    arguments += ["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]
    arguments += ["-kernel", str(kernel / "vmlinux"), "-initrd", str(kernel / "initrd.gz")]
    arguments += ["-append", "console=ttyS0 quiet panic=-1 oops=panic"]
    share = "security_model=none"
    arguments += ["-virtfs", f"local,path=/,mount_tag=host,{share},readonly=on,multidevs=remap"]
    arguments += ["-virtfs", f"local,path={out},mount_tag=out,{share}"]
    try:
        done = subprocess.run(
            [*arguments, *drives],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        console = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        console = (late.stdout or b"").decode(errors="replace") + f"\n(no end after {seconds:.0f} s)"
    status = re.findall(r"GUEST-STATUS=(\d+)", console)
    return Run(int(status[-1]) if status else None, console)


if __name__ == "__main__":
    for kernel_series, outcome in prepare().items():
        print(f"Linux {kernel_series} for the guest: {outcome}", file=sys.stderr)

"""(a) A scan that looks at nothing, from the page cache, against fio."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.model import Setting, compare
from benchmarks.scanner import Scanner
from uring_actors.config import ScanOptions

BAR = 0.9


def measure(setting: Setting) -> None:
    """Same file, block size and depth; fio's buffers and file registered as ours are."""
    options = ScanOptions(engine="threads")
    command = peers.fio_command(setting.text, setting.size, options.slot_bytes, options.slots, direct=False)
    setting.report.commands["fio, cached"] = peers.shown(command, text=setting.text)
    ours, theirs = [], []
    with Scanner() as scanner:
        peers.fio(command)
        scanner.scan(setting.text, operation="nop", engine="threads", io="buffered")
        for _ in range(setting.rounds):
            theirs.append(peers.fio(command))
            ours.append(scanner.scan(setting.text, operation="nop", engine="threads", io="buffered"))
    setting.report.verdicts.append(compare("nop", ours, theirs, BAR, peer="fio"))

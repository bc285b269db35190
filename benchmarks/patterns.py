"""(b) Lists of patterns on one big text file, against ripgrep, and against Hyperscan over the bytes in memory."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.data import LISTS, PATTERNS, patterns_of
from benchmarks.model import Reading, Setting, compare
from benchmarks.scanner import Scanner

RG_BARS = {"hard": 5.0, "literal-led": 0.7}
HYPERSCAN_BARS = {"hard": 0.75, "literal-led": 0.6}


def measure(setting: Setting) -> None:
    for name in LISTS:
        _measure_list(setting, name)


def _measure_list(setting: Setting, name: str) -> None:
    patterns = patterns_of(name)
    rg = _best_rg(setting, patterns)
    hyperscan = peers.hyperscan_command(setting.text, PATTERNS / f"patterns-{name}.txt")
    commands = setting.report.commands
    commands[f"rg, {name}"] = peers.shown(rg, text=setting.text)
    commands[f"Hyperscan, {name}"] = peers.shown(hyperscan, text=setting.text, list=PATTERNS)
    ours: list[Reading] = []
    rgs: list[Reading] = []
    hyperscans: list[Reading] = []
    with Scanner() as scanner:
        scanner.scan(setting.text, patterns=patterns, engine="threads")
        for _ in range(setting.rounds):
            rgs.append(peers.rg(rg, setting.size))
            ours.append(scanner.scan(setting.text, patterns=patterns, engine="threads"))
            hyperscans.append(peers.hyperscan(hyperscan))
    found = f"rows: ours {ours[-1].rows}, with line and column; rg {rgs[-1].rows}, counted"
    verdicts = setting.report.verdicts
    verdicts.append(compare(f"{name} / rg", ours, rgs, RG_BARS[name], peer="ripgrep", notes=(found,)))
    verdicts.append(
        compare(f"{name} / Hyperscan", ours, hyperscans, HYPERSCAN_BARS[name], peer="Hyperscan in memory")
    )


def _best_rg(setting: Setting, patterns: list[str]) -> list[str]:
    """The faster way of reading for rg on this machine; each tried twice."""
    commands = [peers.rg_command(setting.text, patterns, mmap=mmap) for mmap in (True, False)]
    return min(commands, key=lambda c: min(peers.rg(c, setting.size).seconds for _ in range(2)))

"""(f) gitleaks' rules on one big text file, against Hyperscan with the same expressions over the bytes in memory."""

from __future__ import annotations

from pathlib import Path

from benchmarks import peers
from benchmarks.model import Reading, Setting, compare
from benchmarks.scanner import Scanner

RULES = Path(__file__).parent.parent / "tests" / "data" / "gitleaks.toml"
HYPERSCAN_BAR = 0.5


def measure(setting: Setting) -> None:
    hyperscan = peers.hyperscan_command(setting.text, RULES)
    setting.report.commands["Hyperscan, rules"] = peers.shown(hyperscan, text=setting.text, rules=RULES)
    ours: list[Reading] = []
    theirs: list[Reading] = []
    with Scanner() as scanner:
        scanner.scan(setting.text, rules=str(RULES), engine="threads")
        for _ in range(setting.rounds):
            ours.append(scanner.scan(setting.text, rules=str(RULES), engine="threads"))
            theirs.append(peers.hyperscan(hyperscan))
    found = f"{ours[-1].rows} findings, judged; Hyperscan's matches are not confirmed"
    setting.report.verdicts.append(
        compare("rules / Hyperscan", ours, theirs, HYPERSCAN_BAR, peer="Hyperscan in memory", notes=(found,))
    )

"""What gitleaks itself finds, recorded: ``python -m tests.gitleaks_answers GITLEAKS`` writes the record anew.

The record has what gitleaks was given and its findings, so the tests need no gitleaks. Its recursive decoding is off.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.rule_words import Maker

DATA = Path(__file__).parent / "data"
RULES = DATA / "gitleaks.toml"
RECORD = DATA / "gitleaks-answers.json.gz"
FILES = 120
_NAMES = (
    "a.py",
    "b.yaml",
    "c.tf",
    "x.php",
    "nuget.config",
    "d.js",
    "e.txt",
    "go.mod",
    "img.png",
    "k.p12",
    "z.bb",
    "n.json",
    "vendor/modules.txt",
    "@octokit/auth-token/README.md",
)

Answer = tuple[str, str, int, str, float]
"""Path, rule, line, secret, entropy."""


def recorded() -> tuple[dict[str, str], list[Answer]]:
    """The files' texts by path, and the findings."""
    record = json.loads(gzip.decompress(RECORD.read_bytes()))
    return record["files"], [
        (path, rule, line, secret, entropy) for path, rule, line, secret, entropy in record["found"]
    ]


def write_files(files: dict[str, str], directory: Path) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def main(gitleaks: str) -> None:
    rng = random.Random(8)
    rules = tomllib.loads(RULES.read_text())["rules"]
    maker = Maker([(rule["regex"], rule.get("keywords", [])) for rule in rules if "regex" in rule])
    # With a newline at its end: gitleaks takes a last line without one for all that stands before it.
    files = {f"{i}/{rng.choice(_NAMES)}": maker.text(rng, rng.randint(1, 50)) + "\n" for i in range(FILES)}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "files"
        write_files(files, directory)
        report = Path(name) / "report.json"
        options = [
            "--max-decode-depth",
            "0",
            "--exit-code",
            "0",
            "--report-format",
            "json",
            "--report-path",
            str(report),
        ]
        subprocess.run([gitleaks, "dir", ".", "--config", str(RULES), *options], cwd=directory, check=True)
        keys = ("File", "RuleID", "StartLine", "Secret", "Entropy")
        found = sorted([finding[key] for key in keys] for finding in json.loads(report.read_text()))
    RECORD.write_bytes(gzip.compress(json.dumps({"files": files, "found": found}).encode(), mtime=0))
    print(len(files), "files,", len(found), "findings")


if __name__ == "__main__":
    main(sys.argv[1])

"""Pattern files and rule files on the command line, through whole scans."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from uring_actors.cli import main
from uring_actors.ops.rules.findings import RULES_SCHEMA

Outcome = tuple[int, str, str]

RULES = """
[[rules]]
id = "token"
regex = '''tok_(\\w{4})'''
keywords = ["tok_"]
[[rules]]
id = "keys"
path = '''\\.p12$'''
"""


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a.txt").write_text("one tok_abcd\nt.o\n")
    Path("d/k.p12").write_text("x")
    Path("rules.toml").write_text(RULES)
    Path("words").write_text("t.o\nTOK\n")

    def run(*arguments: str) -> Outcome:
        status = main(["scan", "--quiet", *arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_pattern_files(cli: Callable[..., Outcome]) -> None:
    assert cli("--engine", "threads", "-f", "words", "d") == (0, "d/a.txt:2:1:t.o\n", "")
    status, out, _ = cli("--engine", "threads", "-f", "words", "--fixed-strings", "-i", "-e", "one", "d")
    assert status == 0
    assert sorted(out.splitlines()) == ["d/a.txt:1:1:one", "d/a.txt:1:5:tok", "d/a.txt:2:1:t.o"]


def test_rules_in_every_format(cli: Callable[..., Outcome]) -> None:
    scan = ("--engine", "threads", "--rules", "rules.toml", "d")
    status, out, err = cli(*scan)
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == ["d/a.txt:1:5:token:abcd", "d/k.p12:?:?:keys:"]
    rows = [json.loads(line) for line in cli(*scan, "--format", "jsonl")[1].splitlines()]
    assert {row["fingerprint"] for row in rows} == {"d/a.txt:token:1", "d/k.p12:keys:0"}
    assert cli(*scan, "--format", "csv", "-o", "out.csv")[0] == 0
    with open("out.csv", newline="") as file:
        assert {row["rule"]: row["secret"] for row in csv.DictReader(file)} == {"token": "abcd", "keys": ""}
    assert cli(*scan, "--format", "parquet", "-o", "out.parquet")[0] == 0
    table = pq.read_table("out.parquet")
    assert table.schema.equals(RULES_SCHEMA)
    assert sorted(table["rule"].to_pylist()) == ["keys", "token"]
    status, _, err = cli(*scan, "--format", "parquet")
    assert status == 2
    assert "Give a file with -o" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "rules.toml", "-e", "x", "d"], "--rules stands alone"),
        (["--rules", "rules.toml", "--operation", "nop", "d"], "--rules stands alone"),
        (["--default-rules", "rules.toml", "-e", "x", "d"], "--default-rules is for --rules"),
        (["-F", "-f", "words"], "--fixed-strings -f FILE"),
        (["-f", "d/k.p12", "-f", "empty", "d"], "There is no pattern in empty"),
        (["-f", "none", "d"], "can't read the pattern file; path 'none'; ENOENT"),
        (["--rules", "none", "d"], "can't read none"),
        (["--rules", "d/a.txt", "d"], "d/a.txt: not valid TOML"),
        (["d"], "No pattern was given"),
    ],
)
def test_what_does_not_go(cli: Callable[..., Outcome], arguments: list[str], said: str) -> None:
    Path("empty").write_text("\n")
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_explaining_many_patterns(cli: Callable[..., Outcome]) -> None:
    Path("many").write_text("".join(f"word{k}\n" for k in range(100)) + "(?s)a.*b\n")
    status, out, _ = cli("--explain", "-f", "many")
    assert status == 0
    assert "101 patterns; --explain-all has each" in out
    assert "literal    100" in out
    assert "RE2 alone  (?s)a.*b: " in out
    assert len(out.splitlines()) < 10
    assert "word99" in cli("--explain-all", "-f", "many")[1]
    assert "tok_" in cli("--explain", "--rules", "rules.toml")[1]

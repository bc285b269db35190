"""The benchmarks work: each measurement once, over some MiB. What they measure is not looked at."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import data, lines, literals, memory, small
from benchmarks.__main__ import main
from benchmarks.model import Missing, Reading, Report, Setting, Verdict, compare
from benchmarks.peers import run
from benchmarks.table import table


def measure(tmp_path: Path, *names: str) -> dict[str, object]:
    """The record of one round of the named measurements over 2 MiB."""
    record = tmp_path / "record.json"
    main([*names, "--rounds", "1", "--size", "2M", "--directory", str(tmp_path), "--json", str(record)])
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"], "the data must be gone"
    return dict(json.loads(record.read_text()))


def figures(record: dict[str, object]) -> list[str]:
    verdicts = record["verdicts"]
    assert isinstance(verdicts, list)
    assert all(len(verdict["values"]) == 1 for verdict in verdicts)
    return [verdict["name"] for verdict in verdicts]


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def test_nop(tmp_path: Path) -> None:
    need("fio")
    record = measure(tmp_path, "nop")
    assert figures(record) == ["nop"]
    assert "--invalidate=0" in str(record["commands"])


def test_patterns(tmp_path: Path) -> None:
    need("rg")
    pytest.importorskip("hyperscan", reason="Hyperscan is not available here")
    record = measure(tmp_path, "patterns")
    assert figures(record) == ["hard / rg", "hard / Hyperscan", "literal-led / rg", "literal-led / Hyperscan"]
    assert str(tmp_path) not in str(record["commands"]), "no path of this machine in a record"


def test_checksum(tmp_path: Path) -> None:
    record = measure(tmp_path, "checksum")
    assert figures(record) == ["CRC32C / TOUCH"]
    assert len(record["verdicts"][0]["notes"]) == 3
    assert str(tmp_path) not in str(record["commands"]), "no path of this machine in a record"


def test_lines(tmp_path: Path) -> None:
    need("rg")
    record = measure(tmp_path, "lines")
    assert figures(record) == [f"{name} / rg" for name in lines.BARS]
    assert str(tmp_path) not in str(record["commands"]), "no path of this machine in a record"
    said = str(record["verdicts"])
    assert all(f"{pattern}: " in said for pattern in lines.INFORMATION)
    for ours, rg, all_lines in re.findall(r"rows: ours (\d+), rg (\d+), lines (\d+)", said):
        assert ours == rg
        assert int(all_lines) > 0


def test_a_fifo_is_drained_and_removed(tmp_path: Path) -> None:
    with lines.Drain(tmp_path / "rows") as drain, (tmp_path / "rows").open("wb") as out:
        out.write(b"x" * 3_000_000 + b"\nlast\n")
    assert (drain.lines, drain.last) == (2, b"last")
    with pytest.raises(ZeroDivisionError), lines.Drain(tmp_path / "rows"):
        raise ZeroDivisionError  # and nobody writes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # tables of words are made three times
def test_literals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(literals, "MOST", 100)
    record = measure(tmp_path, "literals")
    assert figures(record) == ["10,000 literals"]
    assert "100 literals made ready in" in str(record["verdicts"])


def test_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("rg")
    monkeypatch.setattr(small, "FILES", 500)
    record = measure(tmp_path, "small")
    assert figures(record) == ["small files, hard / rg", "small files, literal-led / rg"]
    assert str(tmp_path) not in str(record["commands"]), "no path of this machine in a record"


def test_direct(tmp_path: Path) -> None:
    need("fio")
    record = measure(tmp_path, "direct")
    if "EINVAL" in str(record["left_out"]) or "Invalid argument" in str(record["left_out"]):
        pytest.skip("this file system has no O_DIRECT")
    assert figures(record)[0] == "direct, disk"


@pytest.mark.parametrize(
    "engines", [("threads",), pytest.param(("threads", "ray"), marks=pytest.mark.slow(reason="Ray starts twice"))]
)
def test_memory_and_start(tmp_path: Path, engines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BARS", {engine: memory.BARS[engine] for engine in engines})
    record = measure(tmp_path, "memory", "start")
    expected = [f"memory{what}, {engine}" for engine in engines for what in ("", " growth")]
    assert figures(record) == [*expected, "start"], record["left_out"]


def test_the_text_is_source_like_and_has_the_size_asked_for(tmp_path: Path) -> None:
    text = tmp_path / "text"
    data.make_text(text, 3 << 20)
    assert text.stat().st_size == 3 << 20
    assert b"\nimport " in text.read_bytes()
    data.warm(text)
    assert data.cached_share(text) == 1
    assert len({link.stat().st_ino for link in data.make_links(text, 3)}) == 1


def test_a_ratio_is_taken_by_round_and_its_median_counts() -> None:
    ours = [Reading(1000, 1.0, 2.0), Reading(1000, 2.0, 2.0), Reading(1000, 1.0, 2.0)]
    theirs = [Reading(1000, 1.0, 1.0), Reading(1000, 1.0, 1.0), Reading(1000, 0.5, 1.0)]
    verdict = compare("x", ours, theirs, 0.5, peer="y")
    assert verdict.values == (1.0, 0.5, 0.5)
    assert verdict.passed
    assert verdict.cpu_ratio == 0.5


def test_the_table_says_what_is_short(tmp_path: Path) -> None:
    report = Report([Verdict("m", "MiB", (40.0,), 32.0, at_least=False)], {"fio": "fio TEXT"}, ["x: no root"])
    shown = table(report, {"date": "today"})
    assert "short" in shown
    assert "≤ 32" in shown
    assert "fio TEXT" in shown
    assert "no root" in shown
    assert Setting(tmp_path, tmp_path, 1, report).rounds == 1


def test_a_tool_that_is_missing_or_fails_is_said() -> None:
    with pytest.raises(Missing, match="not installed"):
        run(["no-such-tool"])
    with pytest.raises(Missing, match="status 3"):
        run(["sh", "-c", "exit 3"])

"""The report as a Markdown table, which reads as plain text too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.model import Report, Verdict

_HEAD = ("what", "figure", "median (lowest … highest)", "bar", "", "CPU ratio", "ours", "peer")


def table(report: Report, machine: Mapping[str, str]) -> str:
    lines = [f"- {name}: {value}" for name, value in machine.items()]
    lines += ["", *_rows([_HEAD, *(_row(verdict) for verdict in report.verdicts)]), ""]
    lines += [f"- {verdict.name}: {note}" for verdict in report.verdicts for note in verdict.notes]
    lines += [f"- left out: {reason}" for reason in report.left_out]
    lines += ["", "The peers' command lines:", "", "```"]
    lines += [f"{peer}: {command}" for peer, command in report.commands.items()]
    return "\n".join([*lines, "```"])


def _row(verdict: Verdict) -> tuple[str, ...]:
    low, high = min(verdict.values), max(verdict.values)
    return (
        verdict.name,
        verdict.figure,
        f"{_number(verdict.value)} ({_number(low)} … {_number(high)})",
        f"{'≥' if verdict.at_least else '≤'} {_number(verdict.bar)}",
        "PASS" if verdict.passed else "short",
        "" if verdict.cpu_ratio is None else _number(verdict.cpu_ratio),
        verdict.ours,
        verdict.theirs,
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 20 else f"{value:.0f}"


def _rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    ruled = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in ruled]

"""Patterns as the command line spells them, and their plans in words (``--explain``)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from uring_actors.megakernel import cuda
from uring_actors.ops.match.frontend import compile_patterns
from uring_actors.ops.match.parts import device_plans
from uring_actors.ops.match.pattern import Literal, Pattern, Regex
from uring_actors.ops.match.plan import Kind, PatternPlan
from uring_actors.ops.rules.rules import Rules
from uring_actors.results.writers import printable

EXPLAINED = 32
"""Patterns that are explained one by one."""


def patterns(
    regexps: Iterable[str],
    fixed: Iterable[str],
    *,
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
    latin1: bool,
) -> list[Pattern]:
    """The expressions, then the fixed texts.

    An argument that is not UTF-8 reaches Python with its odd bytes as surrogates. It is given on as the bytes
    it was: fixed bytes can be searched for, and an expression is refused by name, unless ``latin1`` is set,
    which reads every argument as bytes.
    """
    found: list[Pattern] = [
        Regex(
            os.fsencode(one) if latin1 else _argument(one),
            ignore_case=ignore_case,
            multi_line=multi_line,
            dot_all=dot_all,
            bytes=latin1,
        )
        for one in regexps
    ]
    found.extend(Literal(os.fsencode(one) if latin1 else _argument(one), ignore_case=ignore_case) for one in fixed)
    return found


def explain(wanted: list[Pattern] | Rules, backend: str, *, everything: bool = False) -> str:
    """How each pattern will be run by the kernel of ``backend`` ("cpu" or "cuda"; "auto": what this machine has). Of
    many patterns only how many are run how, and the ones that are slow.

    Raises:
        PatternError: one is invalid, or can match nothing.
    """
    if isinstance(wanted, Rules):  # they run on the CPU
        plans = wanted.plans
    else:
        plans = compile_patterns(wanted)
        if backend == "cuda" or (backend == "auto" and cuda.looks_possible() and cuda.unavailable() is None):
            plans, _ = device_plans(plans)
    if everything or len(plans) <= EXPLAINED:
        return "\n\n".join(map(_plan_in_words, plans))
    return _summary(plans)


def _summary(plans: Sequence[PatternPlan]) -> str:
    kinds = Counter(plan.kind for plan in plans if not plan.once)
    lines = [f"{sum(kinds.values())} patterns; --explain-all has each"]
    lines += [f"  {kind.value:<10} {kinds[kind]}" for kind in Kind if kinds[kind]]
    if keywords := sum(plan.once for plan in plans):
        lines.append(f"  keywords   {keywords}")
    searched = [plan for plan in plans if plan.candidate is not None]
    lines.append(f"  widest     {max((plan.candidate_max for plan in searched), default=0)} bytes in a slot")
    alone = [plan for plan in plans if plan.candidate is None and plan.kind is not Kind.PART]
    lines += [f"  RE2 alone  {printable(plan.name.encode()).decode()}: {plan.reason}" for plan in alone[:EXPLAINED]]
    if len(alone) > EXPLAINED:
        lines.append(f"  and {len(alone) - EXPLAINED} more that RE2 searches for alone")
    return "\n".join(lines)


def _argument(text: str) -> str | bytes:
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _plan_in_words(plan: PatternPlan) -> str:
    lines = [
        printable(plan.name.encode()).decode(),
        f"  kind       {plan.kind.value}: {plan.reason}",
        f"  width      {_width(plan.min_width, plan.max_width)}",
    ]
    if plan.literal is not None:
        lines.append(f"  literal    {_bytes(plan.literal)}")
    if plan.candidate is not None:
        lines.append(f"  candidate  {_bytes(plan.candidate)}")
        lines.append(f"             {_width(plan.candidate_min, plan.candidate_max)}")
    return "\n".join(lines)


def _width(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} bytes or more"
    return f"{least} bytes" if least == most else f"{least} to {most} bytes"


def _bytes(value: bytes) -> str:
    """Printable ASCII as it is, anything else as ``\\xHH``."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in value)

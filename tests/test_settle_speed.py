"""How long confirming and settling take; printed (``pytest -s``), not judged: the machine is not known."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tests.extents import literal, plan
from uring_actors.ops.match.confirm import Confirmer
from uring_actors.ops.match.newlines import Newlines, as_bytes, count_newlines, empty_index
from uring_actors.ops.match.plan import Kind
from uring_actors.ops.match.planset import PlanSet
from uring_actors.ops.match.settle import FileSettler

SLOT = 1 << 20


def best(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of ``times`` calls."""
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return min(spent)


def test_costs() -> None:
    """Lines of 64 bytes, a hit in each: 16 Ki hits a slot."""
    line = b"the quick brown fox jumps over the lazy dog, and 0123456789 foo\n"
    slot = memoryview(bytearray(b"\n" + line * (SLOT // len(line)) + line))
    hits = SLOT // len(line)
    ends = (np.arange(hits, dtype=np.int64) + 1) * len(line) - 1
    which = np.zeros(hits, np.int32)
    none = which[:0], ends[:0]
    index = empty_index(SLOT)
    known = count_newlines(as_bytes(slot), 1, SLOT, index)
    lines = []
    for name, kind in (("literal", Kind.LITERAL), ("bounded", Kind.BOUNDED)):
        plans = PlanSet([literal(0, b"foo") if kind is Kind.LITERAL else plan(0, kind, rb"\bfoo\b", (3, 3))])
        confirmer = Confirmer(plans)

        def confirm(
            patterns: np.ndarray, ends: np.ndarray, known: Newlines | None = None, c: Confirmer = confirmer
        ) -> object:
            return c.confirm(
                slot,
                at=1,
                payload=SLOT,
                after=4,
                offset=SLOT,
                patterns=patterns,
                ends=ends,
                newlines=known,
            )

        result = confirm(which, ends)
        assert len(result.marked) == hits
        full = best(lambda f=confirm: f(which, ends), 20)
        lines.append(f"{name}: {full * 1e6:.0f} µs for {hits} hits, {full / hits * 1e9:.0f} ns a hit")
        lines.append(f"  no hits: {best(lambda f=confirm: f(*none), 50) * 1e6:.1f} µs with newlines to count")
        lines.append(f"  no hits, newlines known: {best(lambda f=confirm: f(*none, known), 500) * 1e6:.2f} µs")

        def settle(result: object, n: int = 200, plans: PlanSet = plans) -> None:
            settler = FileSettler(plans, 2 * SLOT * n, lambda: None)
            settler._frontier = SLOT
            for k in range(n):
                settler._frontier = SLOT
                settler.add(k, result)

        lines.append(f"  settled: {best(lambda f=settle, r=result: f(r), 5) / 200 * 1e6:.0f} µs with the hits")
        empty = confirm(*none)
        lines.append(f"  settled: {best(lambda f=settle, r=empty: f(r), 20) / 200 * 1e6:.2f} µs an empty extent")
        whole = best(lambda p=plans, e=empty: FileSettler(p, SLOT, lambda: None).close(), 500)
        lines.append(f"  a file's settler: {whole * 1e6:.2f} µs")
    text = as_bytes(slot)
    lines.append(f"newlines: {SLOT / best(lambda: count_newlines(text, 1, SLOT, index), 50) / 1e9:.1f} GB/s")
    print("", *lines, sep="\n")

"""(f) Ten thousand literals against ten, on the same text; and how long a first and a second start with them take.

The words are random, as long as identifiers are, and none is in the text by intention: what is measured is looking
for them. A start is a process of its own that makes the engine; the first has an empty cache, the second what that
left.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.model import Reading, Setting, compare
from benchmarks.scanner import Scanner

BAR = 0.5
FEW, MANY, MOST = 10, 10_000, 50_000
_LETTERS = b"abcdefghijklmnopqrstuvwxyz_"
_ROOT = Path(__file__).parent.parent
_START = """
import sys, time
import uring_actors as ua
from uring_actors.ops.match.operation import Match
words = open(sys.argv[1], "rb").read().splitlines()
Match.of([ua.Literal("warm")]).plan_set
began = time.perf_counter()
Match.of([ua.Literal(word) for word in words]).plan_set
print(time.perf_counter() - began)
"""


def words(count: int, seed: int = 1) -> list[str]:
    """Different words of 6 to 16 letters."""
    rng = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[bytes(rng.choices(_LETTERS, k=rng.randint(6, 16))).decode()] = None
    return list(made)


def measure(setting: Setting) -> None:
    many, few = words(MANY), words(FEW)
    ours: list[Reading] = []
    base: list[Reading] = []
    with Scanner() as scanner:
        for _ in range(setting.rounds + 1):
            base.append(scanner.scan(setting.text, literals=few, engine="threads"))
            ours.append(scanner.scan(setting.text, literals=many, engine="threads"))
    notes = [f"rows: {ours[-1].rows}, and {base[-1].rows} with {FEW}"]
    with tempfile.TemporaryDirectory() as cache:
        for count in (MANY, MOST):
            first, second = (_start(words(count), Path(cache)) for _ in range(2))
            notes.append(f"{count:,} literals made ready in {first:.2f} s, the second time in {second:.2f} s")
    setting.report.verdicts.append(
        compare(f"{MANY:,} literals", ours[1:], base[1:], BAR, peer=f"{FEW} literals", notes=tuple(notes))
    )


def _start(literals: list[str], cache: Path) -> float:
    """Seconds in a process of its own, the median of three (the first of them alone where nothing is cached)."""
    taken = []
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(literals))
        file.flush()
        for _ in range(1 if not (cache / "uring_actors" / "databases").exists() else 3):
            ran = subprocess.run(
                [sys.executable, "-c", _START, file.name],
                env={**os.environ, "XDG_CACHE_HOME": str(cache)},
                cwd=_ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            taken.append(float(ran.stdout))
    return statistics.median(taken)

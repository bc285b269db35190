"""Generated patterns over generated files, through the whole pipeline: as google-re2 over each file.

Many patterns an example, for what a scan costs is its start. Files are made of words of the patterns themselves:
small ones of awkward sizes, and one longer than a data slot with words across the border of its extents.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests import oracle, strategies
from tests.examples import examples
from tests.test_match_frontend import tree_of
from uring_actors.ops.match.operation import Match
from uring_actors.publisher import ScanJob

SIZES = [0, 1, 199, 4095, 4096, 4097]
SLOT = 65536
MOST_ROWS = 3000
"""Of one pattern in the long file: patterns that match nearly everywhere are left to the small files."""


def assemble(rng: random.Random, pieces: Sequence[bytes], size: int, fill: int, borders: Sequence[int]) -> bytes:
    """``size`` bytes: ``fill``, and pieces at both ends, across the borders and anywhere."""
    data = bytearray([fill]) * size
    places = [0, size, *borders, *borders, *(rng.randrange(size + 1) for _ in range(min(40, size // 20)))]
    for place in places:
        piece = rng.choice(pieces)
        at = max(0, min(size - len(piece), place - rng.randrange(len(piece) + 1)))
        if len(piece) <= size:
            data[at : at + len(piece)] = piece
    return bytes(data)


def rare(pattern: ua.Regex, data: bytes) -> bool:
    return len(list(islice(oracle.compile_oracle(pattern).finditer(data), MOST_ROWS))) < MOST_ROWS


def check(folder: Path, contents: dict[str, bytes], patterns: Sequence[ua.Regex], **options: str) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = [folder / name for name in contents]
    scan = ua.scan(files, patterns=patterns, engine="threads", slot_bytes=SLOT, slots=2, **options)
    table = scan.to_table()
    wanted = oracle.expected(files, patterns)
    actual = oracle.found(table)
    assert actual == wanted, oracle.explain_difference(actual, wanted)
    oracle.check_bytes(table)
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()


@pytest.mark.parametrize("latin1", [False, True], ids=["utf8", "bytes"])
@settings(
    max_examples=examples(12),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_generated_patterns_over_generated_files(latin1: bool, data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(strategies.usable_patterns(latin1=latin1, max_leaves=6), min_size=3, max_size=8, unique=True)
    )
    patterns = [ua.Regex(text, bytes=latin1, name=f"{i}: {text}") for i, text in enumerate(texts)]
    operation = Match.of(patterns)
    pieces = [data.draw(strategies.texts(tree_of(plan), pieces=2)) or b"a" for plan in operation.plans]
    pieces += [b"".join(pieces)[:4000], pieces[0] * 5]
    fill = data.draw(st.sampled_from(b"z\n \xff"))
    options = {"io_engine": "pread", "io": data.draw(st.sampled_from(["direct", "buffered"]))}
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))

    small = {f"f{size}": assemble(rng, pieces, size, fill, []) for size in SIZES}
    payload = ScanJob.fit(SLOT, operation.opcode, halo=operation.halo, lead=True).geometry.payload
    long = assemble(rng, pieces, SLOT + 9000, fill, [payload, SLOT])
    with tempfile.TemporaryDirectory() as name:
        check(Path(name), small, patterns, **options)
        few = [pattern for pattern in patterns if rare(pattern, long)]
        if few:  # with other patterns the border may be elsewhere
            payload = ScanJob.fit(SLOT, operation.opcode, halo=Match.of(few).halo, lead=True).geometry.payload
            long = assemble(rng, pieces, SLOT + 9000, fill, [payload, SLOT])
            check(Path(name), {"long": long}, few, **options)

"""Arrow arrays made from buffers, against ``pyarrow.array``; and that pandas stays out of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.journal import Follower
from uring_actors.many.progress import JOURNAL
from uring_actors.results.arrays import array, nulls_of, scalar, values_of

NUMBERS = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
}
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    **NUMBERS,
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=20),
    pa.large_binary(): st.binary(max_size=20),
    pa.string(): st.text(max_size=20),
    pa.large_string(): st.text(max_size=20),
}


@given(st.data())
def test_it_is_what_pyarrow_makes(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(KINDS)))
    values = data.draw(st.lists(st.one_of(st.none(), KINDS[kind]), max_size=40))
    made = array(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))
    assert made.null_count == values.count(None)
    assert [scalar(value, kind) for value in values] == [pa.scalar(value, kind) for value in values]


@given(st.data())
def test_of_numpy_arrays(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(NUMBERS)))
    values = np.array(data.draw(st.lists(NUMBERS[kind], max_size=40)), kind.to_pandas_dtype())
    null = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), np.bool_)
    made = array(values, kind, null=null)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind, mask=null))
    low = data.draw(st.integers(0, len(values)))
    assert values_of(array(values, kind).slice(low)).tolist() == values[low:].tolist()
    assert nulls_of(made.slice(low)).tolist() == null[low:].tolist()


def test_more_bytes_than_offsets_reach() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 31

    with pytest.raises(OverflowError, match="2147483648 bytes"):
        array([Long()], pa.binary())


IN_PIECES = ["--checkpoint", "CHECKPOINT", "--lease-size", "64K", "--slot-size", "64K"]
"""The tree's large file then is scanned in pieces, whose rows are joined."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "-e", "needle"],
        ["scan", "-e", "needle", "--format", "jsonl"],
        ["scan", "-e", "needle", "--count"],
        ["scan", "-e", "needle", "-l"],
        ["scan", "-e", "needle", *IN_PIECES],
        ["scan", "-e", "needle", "--count", *IN_PIECES],
        ["scan", "--rules", "RULES"],
        ["checksum"],
        ["histogram"],
    ],
    ids=" ".join,
)
def test_no_command_imports_pandas(tmp_path: Path, arguments: list[str]) -> None:
    """Where it is installed, that takes longer than a short scan."""
    (tmp_path / "pandas.py").write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "rules").write_text("[[rules]]\nid = 'n'\nregex = 'needle'\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "text").write_text("a needle\nin hay\n")
    (tmp_path / "tree" / "large").write_text("a needle in much hay\n" * 20_000)
    os.mkfifo(tmp_path / "tree" / "fifo")  # a row of what was skipped
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from uring_actors.cli import main; main(sys.argv[1:])"
    paths = {"RULES": tmp_path / "rules", "CHECKPOINT": tmp_path / "checkpoint"}
    command = [str(paths.get(argument, argument)) for argument in arguments]
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path, *command, "--engine", "threads", tmp_path / "tree"],
        capture_output=True,
        text=True,
        timeout=280,  # loops may have to be compiled first
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    journal = tmp_path / "checkpoint" / JOURNAL
    if journal.exists():
        assert len([done for done in Follower(journal).new() if done.get("piece")]) > 1

"""The journal: whatever byte it is cut at, the records before count and it can be gone on with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.errors import OptionError, UringActorsError
from uring_actors.journal import MAGIC, Follower, Journal, encode

VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=300)
RECORDS = st.lists(
    st.dictionaries(st.text(max_size=8), VALUES | st.lists(VALUES, max_size=4), max_size=5), max_size=8
)


def borders(records: list[dict[str, object]]) -> list[int]:
    """Where each record ends."""
    ends = [len(MAGIC)]
    for record in records:
        ends.append(ends[-1] + len(encode(record)))
    return ends


@given(records=RECORDS, data=st.data())
def test_a_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], data) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    whole = MAGIC + b"".join(map(encode, records))
    ends = borders(records)
    cut = data.draw(st.sampled_from(ends) | st.integers(0, len(whole)))
    path.write_bytes(
        whole[:cut] + data.draw(st.binary(max_size=9).map(lambda junk: junk if cut < len(MAGIC) else b""))
    )
    if not MAGIC.startswith(path.read_bytes()[: len(MAGIC)]):
        with pytest.raises(OptionError):
            Journal(path, durable=False)
        return
    kept = [record for record, end in zip(records, ends[1:], strict=True) if end <= cut]
    journal = Journal(path, durable=False)
    assert journal.records == kept
    journal.append({"more": 1})
    journal.close()
    assert Follower(path).new() == [*kept, {"more": 1}]


@given(records=RECORDS.filter(bool), data=st.data())
def test_a_damaged_byte(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], data) -> None:
    """Whatever is damaged, nothing but whole records from the beginning comes back."""
    path = tmp_path_factory.mktemp("damaged") / "journal"
    whole = bytearray(MAGIC + b"".join(map(encode, records)))
    at = data.draw(st.integers(len(MAGIC), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    whole_before = sum(end <= at for end in borders(records)[1:])
    assert Follower(path).new() == records[:whole_before]


def test_following(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    follower = Follower(path)
    assert follower.new() == []
    journal = Journal(path, durable=True)
    assert follower.new() == []
    for number in range(3):
        journal.append({"n": number})
        assert follower.new() == [{"n": number}]
    with path.open("ab") as file:
        file.write(encode({"n": 3})[:-1])
    assert follower.new() == []
    journal.close()


def test_one_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", durable=False)
    with pytest.raises(OptionError, match="another scan"):
        Journal(tmp_path / "journal", durable=False)
    journal.close()
    journal.close()
    Journal(tmp_path / "journal", durable=False).close()


def test_what_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("To whom it may concern\n" * 3)
    with pytest.raises(OptionError, match="no journal"):
        Journal(tmp_path / "text", durable=False)
    assert (tmp_path / "text").read_text().startswith("To whom")
    with pytest.raises(UringActorsError, match="journal"):
        Journal(tmp_path, durable=False)
    with pytest.raises(UringActorsError, match="journal"):
        Journal(tmp_path / "none" / "journal", durable=False)


WRITER = """
import sys
from pathlib import Path
from uring_actors.journal import Journal
journal = Journal(Path(sys.argv[1]), durable=False)
number = 0
while True:
    journal.append({"n": number, "fill": b"x" * (number % 500)})
    if number == 100:
        print(flush=True)
    number += 1
"""


def test_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    journal = Journal(path, durable=False)
    assert [record["n"] for record in journal.records] == list(range(len(journal.records)))
    assert len(journal.records) > 100
    journal.close()

"""Options: what is refused, and that the refusal says what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.config import GIB, KIB, MIB, ScanOptions, format_size, parse_size, resolve_sqpoll
from uring_actors.errors import OptionError


def test_the_defaults_are_valid() -> None:
    options = ScanOptions()
    assert (options.engine, options.io_engine, options.io, options.sqpoll) == ("ray", "auto", "auto", "auto")


@pytest.mark.parametrize("size", [64 * KIB, MIB, 64 * MIB])
def test_slot_sizes_that_are_taken(size: int) -> None:
    assert ScanOptions(slot_bytes=size).slot_bytes == size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slot_bytes": 32 * KIB}, "from 64K to 64M"),
        ({"slot_bytes": 128 * MIB}, "from 64K to 64M"),
        ({"slot_bytes": 100_000}, "nearest are 64K and 128K"),
        ({"slot_bytes": "1M"}, "whole number"),
        ({"lanes": 0}, "lanes is 0. It must be from 1"),
        ({"lanes": True}, "whole number"),
        ({"slots": 1}, "slots is 1. It must be from 2"),
        ({"kernel_threads": 0}, "kernel_threads is 0"),
        ({"engine": "dask"}, "one of ray, threads"),
        ({"io_engine": "aio"}, "one of auto, uring, pread"),
        ({"io": "mmap"}, "one of auto, direct, buffered"),
        ({"sqpoll": True}, "one of auto, on, off"),
        ({"io_engine": "pread", "sqpoll": "on"}, "no submission queue"),
    ],
)
def test_what_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        ScanOptions.of(**options)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"no option 'lane'.*lanes"):
        ScanOptions.of(lane=1)


@pytest.mark.parametrize(
    ("cores", "lanes", "on"), [(2, 1, False), (5, 1, False), (6, 1, True), (7, 2, False), (8, 2, True)]
)
def test_sqpoll_by_itself(cores: int, lanes: int, on: bool) -> None:
    assert resolve_sqpoll(cores, lanes) is on
    assert resolve_sqpoll(cores, lanes, "on") is True
    assert resolve_sqpoll(cores, lanes, "off") is False


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("64K", 64 * KIB), ("64kib", 64 * KIB), ("1M", MIB), (" 2 MB ", 2 * MIB), ("1g", GIB)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1T", "1 M x", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_sizes_survive_being_written(size: int) -> None:
    assert parse_size(format_size(size)) == size

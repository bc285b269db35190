"""CRC32C: both CPU forms and the combination, against known vectors and an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from crc32c import crc32c as independent
from hypothesis import given
from hypothesis import strategies as st

from uring_actors.megakernel import crc32c

FORMS = [
    pytest.param(
        crc32c.hardware,
        marks=pytest.mark.skipif(not crc32c.HARDWARE, reason="this processor has no crc32 instruction"),
        id="hardware",
    ),
    pytest.param(crc32c.software, id="software"),
]
VECTORS = {  # RFC 3720, appendix B.4, and the check value of the polynomial
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    bytes.fromhex(
        "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
    ): 0xD9963A56,
    b"123456789": 0xE3069283,
    b"": 0,
}
LONG, SHORT = 3 * crc32c._LONG, 3 * crc32c._SHORT


def of(form, data: bytes, shift: int = 0) -> int:
    """What ``form`` gives for ``data``, ``shift`` bytes behind a word's border."""
    memory = np.zeros(len(data) + 24, np.uint8)
    start = -memory.ctypes.data % 8 + shift
    memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return form(memory.ctypes.data + start, len(data))


@pytest.mark.parametrize("form", FORMS)
def test_known_vectors(form) -> None:
    assert {data: of(form, data) for data in VECTORS} == VECTORS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "size", [*range(18), SHORT - 1, SHORT, SHORT + 9, LONG - 1, LONG, LONG + SHORT + 13, 1 << 20]
)
def test_every_step_of_the_loops(form, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    for shift in (0, 1, 7):
        assert of(form, data, shift) == independent(data)


@given(st.binary(max_size=3000), st.integers(0, 7))
def test_the_chosen_form(data: bytes, shift: int) -> None:
    assert of(crc32c.crc32c, data, shift) == independent(data)


@given(st.binary(max_size=500), st.binary(max_size=500), st.binary(max_size=500))
def test_sums_of_neighbours_combine_in_any_grouping(a: bytes, b: bytes, c: bytes) -> None:
    left = crc32c.combine(crc32c.combine(independent(a), independent(b), len(b)), independent(c), len(c))
    right = crc32c.combine(independent(a), crc32c.combine(independent(b), independent(c), len(c)), len(b + c))
    assert left == right == independent(a + b + c)


@given(st.binary(max_size=50), st.integers(0, 1 << 50))
def test_long_runs_are_counted_in_steps_of_two(data: bytes, length: int) -> None:
    """x^(8n) for n far beyond what can be summed: by halves."""
    crc, half = independent(data), length // 2
    whole = crc32c.combine(crc, 0, 2 * half)
    assert whole == crc32c.combine(crc32c.combine(crc, 0, half), 0, half)


def test_the_form_follows_what_numba_compiles_for() -> None:
    assert crc32c.has_instruction("+64bit,+crc32,+sse4.2,-sse4a")
    assert not crc32c.has_instruction("+64bit,-crc32,+sse4.2")
    assert not crc32c.has_instruction("+crc,+neon")  # arm's crc32 is another instruction
    assert not crc32c.has_instruction("")  # NUMBA_CPU_NAME=generic
    assert crc32c.crc32c is (crc32c.hardware if crc32c.HARDWARE else crc32c.software)

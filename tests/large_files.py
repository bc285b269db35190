"""A file that is full of what makes pieces hard: matches over every border, chains that a border puts out of step."""

from __future__ import annotations

import random
from pathlib import Path

import uring_actors as ua

PATTERNS = [
    ua.Literal("aa"),
    ua.Regex("ne{1,8}dle"),
    ua.Regex(r"\bx{1,200}\b"),
    ua.Regex("[0-9]{2,5}"),
    ua.Regex("(?m)^last"),
]
EXTENT = 65536 - 4096 - 4096
"""Payload bytes of an extent of a 64 KiB slot, with these patterns."""


def make_large(path: Path, seed: int = 0, extents: int = 24) -> None:
    """Some ``extents`` extents, with something across each border."""
    rng = random.Random(seed)
    parts = [b"hay\n", b"straw ", b"needle\n", b"neeeedle ", b"12345678 ", b"aaa", b"last\n", b"\n"]
    over = [b"neeeeeedle", b"a" * 7, b"a" * 8, b"x" * 90, b"7" * 40, b"\n", b"hay", b"1234567", b"\nlast"]
    text = bytearray()
    while len(text) < extents * EXTENT - EXTENT // 3:
        text += rng.choice(parts) if rng.random() < 0.02 else b"........................................"
    for border in range(EXTENT, len(text), EXTENT):
        word = rng.choice(over)
        at = border - rng.randrange(len(word) + 1)
        text[at : at + len(word)] = word
    mile = rng.randrange(2, extents - 5) * EXTENT + 101  # no newline in it either
    text[mile : mile + 2 * EXTENT] = b"a" * (2 * EXTENT)
    path.write_bytes(text)

"""A scan finds exactly what google-re2 finds in whole files: over awkward trees, engines, slots and I/O modes."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import uring_actors as ua
from tests import oracle

PATTERNS = [
    ua.Literal("needle"),
    ua.Literal(b"\xff\x00\xfe", name="binary"),
    ua.Literal("Straße", ignore_case=True, name="folded"),
    ua.Regex(r"AKIA[0-9A-Z]{16}"),
    ua.Regex(r"aa"),
    ua.Regex(r"aaa?", name="a2-3"),
    ua.Regex(r"\bword\b"),
    ua.Regex(r"(?m)^start[a-z]{0,9}$"),
    ua.Regex(r"\Abegin"),
    ua.Regex(r"end\z"),
    ua.Regex(r"x.{3}y"),
    ua.Regex(r"(?i)pass"),
    ua.Regex(r"[^\n]{40}~"),
    ua.Regex(r"q(?:b+c)?", name="short-or-long"),
    ua.Regex(r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}", name="jwt"),
    ua.Regex(r"unsafe \{[^}]*transmute"),
    ua.Regex(r"[a-z]+@example\.com"),
    ua.Regex(r"(?s)BEGIN.*?FINISH"),
    ua.Regex(r"\s+tail"),
    ua.Regex(r"[\x80-\xff]{8}", bytes=True, name="high"),
]
SEEDS = [
    b"needle", b"\xff\x00\xfe", "straſſe".encode(), "STRASSE Straße".encode(), b"AKIAABCDEFGHIJKLMNOP", b"aaaaaaa",
    b" word ", b"\nstartabc\n", b"begin", b"end", "xéééy".encode(), b"x\xff\xff\xffy", "paſs".encode(), b"qbbbbbbbbc",
    b"eyJaaaaaaaaaaaaaa.eyJbbbbbbbbbbbbbb", b"unsafe { x; y\n z = transmute(q) }", b"someone@example.com", b"BEGIN",
    b"FINISH", b"  \n \t tail", b"-" * 41 + b"~", bytes(range(0x80, 0x91)),
]  # fmt: skip
LEAST_PAYLOAD = 65536 - 8192
"""A full extent's payload with slots of 64 KiB; a slot of 1 MiB has multiples of a block as well, so that its
borders are among the places below."""


def filler(rng: random.Random, size: int, kind: str) -> bytearray:
    """Few matches of its own: rows are compared one by one, and what costs is their number."""
    if kind == "text":
        alphabet = b"abcdefgh ijkl mnop rstu vwxyz \n\n.,;{}=@"
        return bytearray(rng.choices(alphabet, k=size))
    if kind == "binary":
        return bytearray(rng.randbytes(size))
    if kind == "runs":  # long enough to cross a border, few enough to be compared row by row
        parts = (b"b" * 20000 + b"a" * rng.randrange(20, 300) for _ in range(size // 20000 + 1))
        return bytearray(b"".join(parts))[:size]
    if kind == "long-line":
        return bytearray(rng.choices(b"bcdefghijklmnop rstuvwx ", k=size))
    return bytearray(b"\n" * size)


def plant(rng: random.Random, data: bytearray, borders: list[int]) -> None:
    """Seeds at the file's ends, at random places, and across every border."""
    places = [0, len(data)] + borders + [rng.randrange(len(data) + 1) for _ in range(len(data) // 2000)]
    for place in places:
        seed = rng.choice(SEEDS)
        at = max(0, min(len(data) - len(seed), place - rng.randrange(len(seed) + 1)))
        if len(seed) <= len(data):
            data[at : at + len(seed)] = seed


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tree")
    rng = random.Random(7)
    sizes = [0, 1, 2, 199, 4095, 4096, 4097]
    for payload in (LEAST_PAYLOAD, 65536, (1 << 20) - 8192, 1 << 20):
        sizes += [payload - 1, payload, payload + 1]
    sizes += [3 * LEAST_PAYLOAD + 5, 2 * (1 << 20) + 77]
    kinds = ["text", "binary", "runs", "long-line", "newlines"]
    for i, size in enumerate(sizes):
        for kind in kinds if size < 70000 else [kinds[i % 5], kinds[(i + 2) % 5]]:
            folder = root / f"d{i % 3}" / kind
            folder.mkdir(parents=True, exist_ok=True)
            data = filler(rng, size, kind)
            if kind == "runs":  # one over every border, of even and odd lengths
                for border in range(LEAST_PAYLOAD, size, LEAST_PAYLOAD):
                    data[border - 700 : border + rng.randrange(700)] = b"a" * 700
                data = data[:size]
            borders = [b for step in (LEAST_PAYLOAD, 61440, (1 << 20) - 8192) for b in range(step, size, step)]
            if size:
                plant(rng, data, borders)
            (folder / f"f{size}").write_bytes(data)
    (root / "nothing but a").write_bytes(b"a" * (LEAST_PAYLOAD + 333))
    (root / os.fsdecode(b"caf\xe9 \n\xff")).write_bytes(b"needle in a file whose name is not UTF-8\n")
    return root


@pytest.fixture(scope="module")
def wanted(tree: Path) -> pa.Table:
    return oracle.expected_table([path for path in tree.rglob("*") if path.is_file()], PATTERNS)


def check(tree: Path, wanted: pa.Table, **options: object) -> None:
    with warnings.catch_warnings():
        if options["io_engine"] == "auto":
            warnings.simplefilter("ignore", RuntimeWarning)
        scan = ua.scan(tree, patterns=PATTERNS, **options)
    actual = oracle.in_order(scan.to_table())
    if not actual.equals(wanted):
        pytest.fail(oracle.explain_difference(oracle.found(actual), oracle.found(wanted)))
    assert scan.errors.num_rows == 0, scan.errors.to_pylist()
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert scan.stats.files == len(files)
    assert scan.stats.bytes == sum(path.stat().st_size for path in files)
    assert scan.stats.matches == wanted.num_rows


@pytest.mark.parametrize("slot_bytes", [65536, 1 << 20])
@pytest.mark.parametrize("io", ["direct", "buffered"])
@pytest.mark.parametrize(
    ("io_engine", "sqpoll"), [("uring", "off"), ("uring", "on"), ("pread", "off"), ("liburing", "off")]
)
def test_threads(
    tree: Path, wanted: pa.Table, slot_bytes: int, io: str, io_engine: str, sqpoll: str, need_uring: object
) -> None:
    if io_engine in ("uring", "liburing"):
        need_uring()  # type: ignore[operator]
    if io_engine == "liburing":
        pytest.importorskip("liburing")
    check(tree, wanted, engine="threads", io_engine=io_engine, io=io, sqpoll=sqpoll, slot_bytes=slot_bytes, slots=4)


@pytest.mark.parametrize("lanes", [2, 3])
def test_threads_with_several_lanes(tree: Path, wanted: pa.Table, lanes: int) -> None:
    check(tree, wanted, engine="threads", io_engine="auto", lanes=lanes, slot_bytes=65536, slots=2, kernel_threads=3)


@pytest.mark.parametrize(
    ("slot_bytes", "io", "io_engine"),
    [
        (65536, "buffered", "auto"),
        pytest.param(1 << 20, "direct", "pread", marks=pytest.mark.slow(reason="more of the same")),
    ],
)
def test_ray(tree: Path, wanted: pa.Table, slot_bytes: int, io: str, io_engine: str, ray_session: None) -> None:
    check(tree, wanted, engine="ray", io_engine=io_engine, io=io, slot_bytes=slot_bytes, slots=8)

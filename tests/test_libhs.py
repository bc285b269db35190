"""libhs as we call it: against the Python binding of Hyperscan, against RE2, and where it fails or is missing."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import re2

import uring_actors as ua
from tests import oracle, processes
from uring_actors import doctor
from uring_actors.errors import PipelineError
from uring_actors.megakernel import match
from uring_actors.ops.match import engine as engine_module
from uring_actors.ops.match import libhs, operation
from uring_actors.ops.match.engine import Engine, Finder
from uring_actors.ops.match.frontend import compile_patterns

EXPRESSIONS = [b"abc", rb"a[bc]{1,3}d", rb"\bcab\b", rb"(?i)BaD", rb"c\x00+d", rb"[^a]\n", rb"^ab", rb"dd$"]


def libraries() -> list[libhs.LibHs]:
    found = []
    for path in libhs.candidates():
        try:
            found.append(libhs.LibHs(path))
        except OSError:
            continue
    return found


LIBRARIES = libraries()


def texts(count: int, seed: int = 3) -> list[bytes]:
    rng = random.Random(seed)
    return [bytes(rng.choices(b"abcdABD \n\x00", k=rng.randrange(200))) for _ in range(count)]


def ends(library: libhs.LibHs, expressions: list[bytes], text: bytes) -> list[tuple[int, int]]:
    database = library.compile(expressions, range(len(expressions)))
    hits = Finder(library.scan, [database]).find(memoryview(text))
    return sorted({(int(pattern), int(end)) for pattern, _, end, _ in hits})


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.version.split()[0])
def test_the_same_ends_as_the_python_binding(library: libhs.LibHs) -> None:
    hyperscan: Any = pytest.importorskip("hyperscan")
    binding = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    numbers = list(range(len(EXPRESSIONS)))
    binding.compile(
        expressions=EXPRESSIONS, ids=numbers, elements=len(numbers), flags=[hyperscan.HS_FLAG_DOTALL] * len(numbers)
    )
    for text in texts(60):
        wanted: set[tuple[int, int]] = set()
        binding.scan(text, match_event_handler=lambda i, _a, end, _f, _c, w=wanted: w.add((i, end)))
        assert ends(library, EXPRESSIONS, text) == sorted(wanted)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.version.split()[0])
def test_every_end_of_a_match_of_re2_is_reported(library: libhs.LibHs) -> None:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    compiled = [re2.compile(expression, options) for expression in EXPRESSIONS]
    for text in texts(40, seed=4):
        found = set(ends(library, EXPRESSIONS, text))
        for index, regex in enumerate(compiled):
            missing = {(index, m.end()) for m in regex.finditer(text)} - found
            assert not missing, (text, missing)


def test_what_does_not_compile_says_why() -> None:
    with pytest.raises(libhs.HsError, match=r"parenthes"):
        LIBRARIES[0].compile([b"ok", b"(a"], [0, 1])


def test_a_database_goes_through_bytes_and_a_damaged_one_is_refused() -> None:
    library = LIBRARIES[0]
    data = library.compile(EXPRESSIONS, range(len(EXPRESSIONS))).serialize()
    again = library.deserialize(data)
    assert again.serialize() == data
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for broken in (data[:middle], flipped, b"", b"x" * 100):
        with pytest.raises(libhs.HsError):
            library.deserialize(broken)


def test_databases_and_scratches_are_freed() -> None:
    library = LIBRARIES[0]
    words = [b"%06d%s" % (i, b"word" * (i % 4)) for i in range(2000)]
    data = library.compile(words, range(len(words))).serialize()
    assert len(data) > 200_000
    library.deserialize(data).scratch()
    before = processes.resident(processes.os.getpid())
    for _ in range(400):
        library.deserialize(data).scratch()
    assert processes.resident(processes.os.getpid()) - before < 40 << 20


def test_a_file_that_is_no_libhs(tmp_path: Path) -> None:
    (tmp_path / "libhs.so.5").write_bytes(b"nonsense")
    with pytest.raises(OSError, match=r"libhs\.so\.5"):
        libhs.LibHs(str(tmp_path / "libhs.so.5"))
    with pytest.raises(OSError, match="not libhs"):
        libhs.LibHs("libc.so.6")


def test_a_scratch_in_use_is_an_error_that_says_so() -> None:
    """libhs's own codes come out as errors; here the one of a scratch that belongs to no database."""
    engine = Engine(compile_patterns([ua.Regex("ab[cd]")]))
    finder = engine.scratch()
    finder.parameters[match.MATCH_WORDS + 1] = finder.parameters[match.MATCH_WORDS]
    with pytest.raises(PipelineError, match=r"a parameter is invalid \(libhs -1\)"):
        finder.find(memoryview(b"abc"))


def test_hits_without_room_are_found_again() -> None:
    engine = Engine(compile_patterns([ua.Literal("a"), ua.Regex("a[ab]")]))
    text = b"ab" * 3000
    for room in (0, 1, 8999, 9000, 9001):
        assert len(engine.scratch().find(memoryview(text), room=room)) == 3000 + 3000


def tree(root: Path, dense: int) -> Path:
    rng = random.Random(dense)
    for i, size in enumerate((0, 1, 4095, 65536 - 8192, 65536 - 8191, 130_000)):
        words = [b"a", b"ab", b"\n"] if dense else [b"xa", b"\n", b"abc ", *[b"zz" * 99] * 9]
        data = b"".join(rng.choices(words, k=size))[:size]
        (root / f"f{i}").write_bytes(data)
    return root


def test_more_hits_than_a_result_block_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of 64 KiB has room for 1020; nothing is lost, and only such slots come back to Python."""
    returned: list[int] = []
    real = operation.MatchWorker.run
    monkeypatch.setattr(operation.MatchWorker, "run", lambda self, slot: (returned.append(1), real(self, slot))[1])
    patterns = [ua.Literal("a"), ua.Regex("ab?[^a]", name="two")]
    for dense in (0, 1):
        (tmp_path / str(dense)).mkdir()
        root = tree(tmp_path / str(dense), dense)
        scan = ua.scan(root, patterns=patterns, engine="threads", slot_bytes=65536, slots=4)
        table = scan.to_table()
        assert oracle.found(table) == oracle.expected(root.iterdir(), patterns)
        assert (len(returned) > 0) == bool(dense)


def test_without_libhs_re2_does_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libhs, "find", lambda: None)
    root = tree(tmp_path, 0)
    patterns = [ua.Literal("abc"), ua.Regex(r"z+\n", name="tail"), ua.Regex("x[ab]")]
    scan = ua.scan(root, patterns=patterns, engine="threads", slot_bytes=65536, slots=4)
    assert oracle.found(scan.to_table()) == oracle.expected(root.iterdir(), patterns)
    assert all(engine_module.NO_LIBHS in plan.reason for plan in Engine(compile_patterns(patterns)).plans)
    finding = next(f for f in doctor.examine() if f.name == "libhs")
    assert "RE2" in finding.value
    assert "vectorgrep" in finding.fix


def test_doctor_names_the_library() -> None:
    finding = next(f for f in doctor.examine() if f.name == "libhs")
    assert re.match(r"5\.\d+\.\d+ .*\(.*libhs\.so\.5", finding.value)

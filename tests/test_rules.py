"""Rule files: what they find, against gitleaks' own answers and against google-re2 over whole files."""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests import gitleaks_answers, rules_oracle
from tests.extents import Memory
from tests.rule_words import Maker
from uring_actors.errors import OptionError, RuleFileError
from uring_actors.ops.base import NotOnDevice
from uring_actors.ops.match import engine as engines
from uring_actors.ops.match.automaton import search
from uring_actors.ops.match.confirm import Confirmer
from uring_actors.ops.match.engine import Engine
from uring_actors.ops.match.newlines import as_bytes
from uring_actors.ops.match.planset import PlanSet
from uring_actors.ops.match.reports import nothing_decided
from uring_actors.ops.match.settle import FileSettler
from uring_actors.ops.match.window import Window
from uring_actors.ops.rules import judge
from uring_actors.ops.rules.characters import character_counts
from uring_actors.ops.rules.device import DeviceRuleScan
from uring_actors.ops.rules.findings import RULES_SCHEMA, Finding, FindingBatches
from uring_actors.ops.rules.keywords import Keywords
from uring_actors.ops.rules.operation import Findings, RuleScan
from uring_actors.ops.rules.rules import Allowlist, Rule, Rules

EVERYTHING = r"""
[[allowlists]]
description = "everywhere"
paths = ['skipped']
regexes = ['^zz+$']
stopwords = ["Dead"]

[[allowlists]]
targetRules = ["far"]
stopwords = ["xxx"]

[[rules]]
id = "token"
description = "a token"
regex = '''tok_([a-z0-9]{4,8})\b'''
entropy = 1.5
keywords = ["TOK_", "other"]
tags = ["a", "b"]
[[rules.allowlists]]
regexTarget = "line"
regexes = ['^# ', 'example$']
[[rules.allowlists]]
condition = "AND"
paths = ['\.py$']
stopwords = ["beef"]

[[rules]]
id = "either"
regex = '''(?:k=(\w*)|v=(\w+));?'''
[[rules.allowlists]]
regexTarget = "match"
regexes = [';$']

[[rules]]
id = "group"
regex = '''id:(\d*):(\w+)?'''
secretGroup = 2
keywords = ["ID:"]

[[rules]]
id = "Generic-any"
regex = '''\b[a-z]+_[a-z0-9]{3,8}'''
keywords = ["key"]

[[rules]]
id = "far"
regex = '''(\b|y)x+\B.'''
keywords = ["needle"]

[[rules]]
id = "open"
regex = '''\s<<[a-zé\s]+>>'''
entropy = 0.5

[[rules]]
id = "file"
path = '''\.p12$'''
[[rules]]
id = "keyed-file"
path = '''\.p12$'''
keywords = ["needle"]

[[rules]]
id = "python"
path = '''\.py$'''
regex = '''secret\s*=\s*(\S+)'''
[[rules.allowlists]]
condition = "AND"
commits = ["abc"]
paths = ['a']
[[rules.allowlists]]
regexes = ['public']
"""

PIECES = [
    b"tok_",
    b"abcd12",
    b"dead",
    b"DEAD",
    b"beef",
    b"other",
    b"key",
    b"needle",
    b"Needle",
    b"k=",
    b"v=a1",
    b";",
    b"id:12:ab",
    b"ID::q",
    b"xx",
    b"y",
    b" <<",
    b"ab\n",
    "é".encode(),
    b">>",
    b"\n",
    b"\n",
    b" ",
    b"# ",
    b"example\n",
    b"secret = ",
    b"public",
    b"zzz",
    b"\xff",
    b"gitleaks:allow",
]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=50).map(b"".join)
paths = st.sampled_from([b"a.py", b"b.txt", b"k.p12", b"skipped/a.py"])

Row = rules_oracle.Found


def rows_of(table: pa.Table) -> list[tuple[bytes, Row]]:
    names = ("path", "rule", "start", "end", "line", "column", "match", "secret", "entropy", "fingerprint")
    columns = [table[name].to_pylist() for name in names]
    return [(path, tuple(row)) for path, *row in zip(*columns, strict=True)]


def same(ours: Sequence[Row], wanted: Sequence[Row]) -> None:
    assert [row[:7] + row[8:] for row in ours] == [row[:7] + row[8:] for row in wanted]
    assert [row[7] for row in ours] == pytest.approx([row[7] for row in wanted], abs=1e-6)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    path.write_text(EVERYTHING)
    return Rules.load(path)


class Drive:
    """Rules over one file's extents, of any size and in any order, as ``MatchSettler`` drives its sink."""

    source = EVERYTHING

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.engine = Engine(rules.plans)
        self.plans = PlanSet(self.engine.plans)
        self.scratch = self.engine.scratch()
        self.confirmer = Confirmer(self.plans)

    def report(self) -> Findings:
        return Findings(self.rules)

    def search(self, text: memoryview, lead: int) -> list[tuple[int, int]]:
        """Candidates, their ends relative to the payload behind ``lead`` bytes."""
        return [(index, end - lead) for index, end in self.engine.scan(text, self.scratch)]

    def __call__(self, path: bytes, data: bytes, payload: int, seed: int) -> list[Row]:
        report = self.report()
        settler = FileSettler(self.plans, len(data), lambda: Memory(data))
        order = list(enumerate(range(0, len(data), payload)))
        random.Random(seed).shuffle(order)
        for number, start in order:
            stop = min(len(data), start + payload)
            lead = 1 if start else 0
            text = memoryview(data)[start - lead : stop + self.plans.halo]
            hits = self.search(text, lead)
            patterns = np.array([index for index, _ in hits], np.int32)
            ends = np.array([end for _, end in hits], np.int64)
            wanted = np.isin(patterns, list(report.sift(0, path, set(patterns.tolist()))), invert=True)
            patterns, ends = patterns[wanted], ends[wanted]
            extent = self.confirmer.confirm(
                text,
                at=lead,
                payload=stop - start,
                after=len(text) - lead - (stop - start),
                offset=start,
                patterns=patterns,
                ends=ends,
            )
            with settler.window.lent(text, start - lead):
                for part in settler.add(number, extent):
                    assert report.add(0, path, part.rows, nothing_decided, settler.window)
        report.end(0, path, opened=True)
        batches = report.take(everything=True)
        settler.close()
        assert report.take_failures() == []
        table = pa.Table.from_batches(batches, RULES_SCHEMA)
        assert report.matches == table.num_rows
        return [row for _, row in rows_of(table)]


class DeviceDrive(Drive):
    """The same with the automata that the GPU runs."""

    source = EVERYTHING.replace('keywords = ["needle"]\n\n[[rules]]\nid = "python"', '\n[[rules]]\nid = "python"')

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        operation = RuleScan(rules).on_device(insist=True)
        assert isinstance(operation, DeviceRuleScan)
        self.match = operation.match
        self.plans = self.match.plan_set
        self.confirmer = Confirmer(self.plans)

    def report(self) -> Findings:
        return Findings(self.rules, Keywords(self.rules.plans[len(self.rules.searched) :]))

    def search(self, text: memoryview, lead: int) -> list[tuple[int, int]]:
        return [(index, end) for index, end in search(self.match.tables, text[lead:]).tolist()]


def agrees(drive: Drive, path: bytes, data: bytes, payload: int, seed: int) -> None:
    same(drive(path, data, payload, seed), rules_oracle.findings(drive.source, path, data))


def test_any_extents_give_what_the_whole_file_has(everything: Rules) -> None:
    drive = Drive(everything)

    @settings(max_examples=100)
    @given(paths, texts, st.integers(1, 80), st.integers(0, 9))
    def check(path: bytes, data: bytes, payload: int, seed: int) -> None:
        agrees(drive, path, data, payload, seed)

    check()


def test_without_an_engine(everything: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.libhs, "find", lambda: None)
    drive = Drive(everything)
    assert drive.engine.scan(memoryview(b"tok_abcd12"), drive.scratch) == []

    @settings(max_examples=25)
    @given(paths, texts, st.integers(1, 80), st.integers(0, 9))
    def check(path: bytes, data: bytes, payload: int, seed: int) -> None:
        agrees(drive, path, data, payload, seed)

    check()


def test_on_the_gpu_s_automata(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(DeviceDrive.source)
    drive = DeviceDrive(Rules.load(path))

    @settings(max_examples=100)
    @given(paths, texts, st.integers(1, 80), st.integers(0, 9))
    def check(path: bytes, data: bytes, payload: int, seed: int) -> None:
        agrees(drive, path, data, payload, seed)

    check()
    far = b"yxx. " + b"-" * 500
    assert drive(b"f", far, 64, 0) == []
    assert [row[0] for row in drive(b"f", far + b"NEEDLE", 64, 0)] == ["far"]


def test_a_keyword_is_found_wherever_it_lies() -> None:
    """Across the stretches in which a file is looked through, too."""
    rules = Rules.of([Rule(id="one", regex="x", keywords=("Kelvin",))])
    keywords = Keywords(rules.plans[1:])
    assert keywords.in_match(0, b"a kelvin")
    assert not keywords.in_match(0, b"kelvi")
    for size in (0, 6, 199, (1 << 20) - 1, 1 << 20, (1 << 20) + 5, (2 << 20) + 3):
        for place in {0, size // 2, size - 6, (1 << 20) - 3, (1 << 20) - 6, 1 << 20}:
            data = bytearray(b"-" * size)
            data[place : place + 6] = b"KELVIN"[: max(0, size - place)] if place >= 0 else b""
            window = Window(lambda data=data: Memory(bytes(data)), len(data))
            assert keywords.in_file(0, window) == (b"KELVIN" in data), (size, place)
            window.close()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_gitleaks_itself_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    files, answers = gitleaks_answers.recorded()
    gitleaks_answers.write_files(files, tmp_path)
    monkeypatch.chdir(tmp_path)
    roots = sorted({name.split("/")[0] for name in files})
    scan = ua.scan(roots, rules=gitleaks_answers.RULES, engine="threads", backend=backend)
    ours = []
    for path, row in rows_of(scan.to_table()):
        line = int(row[8].rsplit(b":", 1)[1])
        ours.append((path.decode(), row[0], line, row[6].decode(), row[7]))
    assert scan.errors.num_rows == 0
    ours.sort()
    assert [row[:4] for row in ours] == [row[:4] for row in answers]
    assert [row[4] for row in ours] == pytest.approx([row[4] for row in answers], abs=1e-6)
    assert len({row[1] for row in answers}) > 150, "the record is of most rules"


def test_a_scan_in_small_slots(everything: Rules, tmp_path: Path) -> None:
    """Files of several extents through the whole pipeline; keywords and matches lie across borders."""
    rng = random.Random(5)
    maker = Maker([(rule.regex or "x", rule.keywords) for rule in everything.searched])
    wanted = []
    for name in ("a.py", "b.txt", "k.p12", "empty.p12"):
        pieces: list[bytes] = []
        while name != "empty.p12" and sum(map(len, pieces)) < 200_000:
            filler = b"lorem ipsum dolor sit amet\n" * rng.randrange(120)
            pieces += [filler, maker.text(rng, 12).encode(), b"".join(rng.choices(PIECES, k=6))]
        data = b"".join(pieces)
        (tmp_path / name).write_bytes(data)
        path = os.fsencode(tmp_path / name)
        wanted += [(path, row) for row in rules_oracle.findings(EVERYTHING, path, data)]
    for options in ({"kernel_threads": 2}, {"io_engine": "pread"}):
        scan = ua.scan(tmp_path, rules=everything, engine="threads", slot_bytes=65536, **options)
        ours = rows_of(scan.to_table())
        assert scan.errors.num_rows == 0
        assert scan.stats.matches == len(ours) > 300
        for path in {path for path, _ in wanted}:
            same([row for p, row in ours if p == path], [row for p, row in wanted if p == path])
        assert len(ours) == len(wanted)


@pytest.mark.parametrize("payload", [700, 4096, 65536])
def test_many_matches_of_a_rule(everything: Rules, payload: int) -> None:
    """So many that they are weighed at once: secrets of little entropy, of just enough (1.5), and of more."""
    rng = random.Random(payload)
    secrets = [b"aaaa", b"abcc", b"aabb", b"abcd12", b"abab1212", b"a\xffb", "abé".encode(), b"zzzzzz", b"dead12"]
    shapes = [b"tok_%s other\n", b"k=%s;\n", b"v=%s\n", b"id:1:%s\n", b"# tok_%s\n", b" <<%s>>"]
    data = b"ID: key needle\n" + b"".join(rng.choice(shapes) % rng.choice(secrets) for _ in range(2000))
    agrees(Drive(everything), b"a.txt", data, payload, payload)


def test_a_keyword_far_behind_its_match_counts(everything: Rules) -> None:
    drive = Drive(everything)
    data = b"yxx. " + b"-" * 500
    assert drive(b"f", data, 64, 0) == []
    assert [row[0] for row in drive(b"f", data + b"NEEDLE", 64, 0)] == ["far"]


def test_a_line_longer_than_is_looked_at(everything: Rules) -> None:
    """What stands in its line more than LINE_REACH bytes away is not seen, and nothing is read without bound."""
    drive = Drive(everything)
    near, far = b"-" * (judge.LINE_REACH - 100), b"-" * (judge.LINE_REACH + 100)
    assert drive(b"f", b"gitleaks:allow" + near + b" tok_abcd12 ", 4096, 1) == []
    assert [row[0] for row in drive(b"f", b"gitleaks:allow" + far + b" tok_abcd12 ", 4096, 1)] == ["token"]


def test_a_file_that_changes_is_a_failure(everything: Rules) -> None:
    drive = Drive(everything)
    data = b"tok_abcd12 "
    settler = FileSettler(drive.plans, len(data), lambda: Memory(b"#" * len(data)))
    extent = drive.confirmer.confirm(
        data, at=0, payload=len(data), after=0, offset=0, patterns=np.array([0], np.int32), ends=np.array([10])
    )
    report = Findings(everything)
    [part] = settler.add(0, extent)
    report.add(0, b"f", part.rows, nothing_decided, settler.window)  # not lent: it is read again
    [failure] = report.take_failures()
    assert (failure.path, failure.offset) == (b"f", 0)
    assert "'token'" in failure.message
    assert report.take_failures() == []
    settler.close()


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_entropy(secret: bytes) -> None:
    assert judge.shannon(secret) == pytest.approx(rules_oracle.entropy_of(secret) if secret else 0.0)


def test_entropy_of_a_long_secret() -> None:
    secret = "aé\U0001f600".encode() * 40_000
    assert judge.shannon(secret) == pytest.approx(rules_oracle.entropy_of(secret))


_NEARLY = [b"a", b"\n", "é".encode(), "\u20ac".encode(), "\U0001f600".encode(), b"\xe2\x82", b"\xf0\x9f\x98", b"\xc3"]
_NEVER = [b"\xed\xa0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xff"]


@given(st.lists(st.sampled_from([*_NEARLY, *_NEVER]) | st.binary(max_size=3), max_size=20))
def test_characters_are_counted_as_python_decodes_them(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    wanted = Counter("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text.decode("utf-8", "surrogateescape"))
    counts = character_counts(as_bytes(text))
    assert {chr(code): counts[code] for code in np.flatnonzero(counts).tolist()} == wanted


def test_batches_are_bounded() -> None:
    rules = [Rule(id="r", regex="x", description="d", tags=("a", "b"))]
    batches = FindingBatches(rules, max_rows=3, max_bytes=100)
    found = [Finding(k, 0, k + 1, 0, 0, b"m" * size, b"s", 1.0) for k, size in enumerate((1, 1, 1, 1, 200, 1))]
    out = [*batches.add(b"p", found), *batches.flush()]
    assert [batch.num_rows for batch in out] == [3, 1, 1, 1]
    assert out[0].schema == RULES_SCHEMA
    row = out[0].to_pylist()[0]
    assert (row["description"], row["tags"], row["line"], row["fingerprint"]) == ("d", "a,b", None, None)


def test_rules_pickle(everything: Rules) -> None:
    operation = RuleScan(everything)
    assert operation.halo > 1
    with pytest.raises(NotOnDevice, match="rule 'keyed-file' asks for keywords alone"):
        operation.on_device(insist=True)
    on_device = RuleScan(Rules.load(gitleaks_answers.RULES)).on_device(insist=False)
    assert len(pickle.dumps(on_device)) < 2 << 20
    assert pickle.loads(pickle.dumps(on_device)).automata.size == on_device.automata.size
    again = pickle.loads(pickle.dumps(operation))
    assert again.rules == everything
    assert len(pickle.dumps(RuleScan(Rules.load(gitleaks_answers.RULES)))) < 1 << 20


def test_rules_made_in_python(tmp_path: Path) -> None:
    rule = Rule(id="mine", regex="se(cret|wer)", allowlists=(Allowlist(stopwords=("wer",)),))
    (tmp_path / "f").write_text("a secret sewer")
    table = ua.scan(tmp_path, rules=Rules.of([rule]), engine="threads").to_table()
    assert table["secret"].to_pylist() == [b"cret"]


def test_rules_stand_alone(everything: Rules, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="stand alone"):
        ua.scan(tmp_path, rules=everything, patterns=["x"])
    with pytest.raises(OptionError, match="not counted"):
        ua.scan(tmp_path, rules=everything, report="count")
    with pytest.raises(OptionError, match="stand alone"):
        ua.scan(tmp_path, rules=everything, operation="nop")


# Rule files


def load(tmp_path: Path, text: str, **options: Path) -> Rules:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return Rules.load(path, **options)


def problems(tmp_path: Path, text: str, **options: Path) -> list[str]:
    with pytest.raises(RuleFileError) as caught:
        load(tmp_path, text, **options)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


RULE = "[[rules]]\nid = 'a'\nregex = 'x'\n"


def test_the_real_file() -> None:
    rules = Rules.load(gitleaks_answers.RULES)
    assert (len(rules.rules), len(rules.searched)) == (222, 221)
    assert not [plan.name for plan in rules.plans if plan.candidate is None], "all run on the engine"


def test_everything_wrong_is_found_at_once(tmp_path: Path) -> None:
    text = """title = 1
colour = "red"

[[rules]]
id = "a"
regex = 'x'
entropy = "high"
keywords = ["ok", '''
''', ""]
secretGroup = 1
[[rules.allowlists]]
condition = "XOR"
paths = [
    'fine',
    '(',
]
[[rules.allowlists]]
regexTarget = "file"

[[rules]]
id = "a"
"path" = '['
required = [{ id = "b" }]

[[rules]]
description = "no id"
regexp = 'x'

[extend]
path = "x"
useDefault = true
url = "https"
"""
    assert problems(tmp_path, text) == [
        "r.toml line 2: unknown key 'colour' in a rule file",
        "r.toml line 7: entropy must be a number",
        "r.toml line 8: rule 'a': an empty keyword",
        "r.toml line 9: rule 'a': an empty keyword",
        "r.toml line 10: rule 'a': its regex has no group 1",
        "r.toml line 12: condition is 'XOR'; it must be AND or OR",
        "r.toml line 15: RE2 refuses '(': missing ): (",
        "r.toml line 17: an allowlist without commits, paths, regexes or stopwords",
        "r.toml line 18: regexTarget is 'file'; it must be secret, match or line",
        "r.toml line 20: a second rule with the id 'a'",
        "r.toml line 22: RE2 refuses '[': missing ]: [",
        "r.toml line 23: rule 'a': rules that require others are not supported",
        "r.toml line 25: a rule without an id",
        "r.toml line 27: unknown key 'regexp' in a rule",
        "r.toml line 29: path and useDefault can't both be set",
        "r.toml line 32: rules are not fetched: save that file, and name it with path",
    ]


def test_expressions_that_cannot_run(tmp_path: Path) -> None:
    text = "[[rules]]\nid = 'a'\nregex = 'x*'\n[[rules]]\nid = 'b'\nregex = 'é(x'\n"
    first, second = problems(tmp_path, text)
    assert first.startswith("invalid pattern in r.toml line 1, rule 'a': it can match nothing")
    assert second.splitlines()[0].startswith("invalid pattern in r.toml line 4, rule 'b': ")
    assert second.splitlines()[1:] == ["  é(x", "   ^"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no rule"),
        ("x = ", "not valid TOML: Invalid value (at "),
        ("rules = 1", "line 1: rules must be an array"),
        ("rules = [1]", "line 1: rules must be an array of tables"),
        ("[[rules]]\nid = 'a'\n", "line 1: rule 'a' has neither a regex nor a path"),
        (RULE + "skipReport = true", "line 4: rule 'a': skipReport is not supported"),
        (RULE + "[rules.allowlist]\npaths = ['x']\n[[rules.allowlists]]\npaths = ['x']\n", "can't stand beside"),
        (RULE + "[allowlist]\npaths = ['x']\nstopwords = [1]", "line 6: stopwords must be an array of strings"),
        (RULE + "[[allowlists]]\ntargetRules = ['b']\npaths = ['x']", "line 5: there is no rule 'b'"),
        (RULE + f"keywords = ['{'k' * 1025}']", "line 4: rule 'a': a keyword of more than 1024 bytes"),
        (RULE + "[extend]\nuseDefault = true", "line 4: useDefault: gitleaks' own rules are not built in"),
        (RULE + "[extend]\npath = 'r.toml'", "line 4: it extends itself"),
        (RULE + "[extend]\npath = 'none.toml'", "can't read none.toml: No such file"),
    ],
)
def test_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    [said] = problems(tmp_path, text)
    assert problem in said


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"# ok\n# \xff\n")
    with pytest.raises(RuleFileError, match=r"line 2: not valid UTF-8"):
        Rules.load(path)
    with pytest.raises(RuleFileError, match=r"can't read .*: No such file"):
        Rules.load(tmp_path / "none")


def test_keys_in_any_case_and_either_spelling(tmp_path: Path) -> None:
    rules = load(
        tmp_path, "[[Rules]]\nID = 'a'\nRegex = '(x)'\nSECRETGROUP = 1\n[Rules.allowList]\nstopWords = ['q']\n"
    )
    assert rules.rules[0].secret_group == 1
    assert rules.rules[0].allowlists == (Allowlist(stopwords=("q",)),)


BASE = """
[allowlist]
paths = ['base']
[[rules]]
id = "a"
description = "base a"
regex = '(a)(b)'
secretGroup = 2
entropy = 2
keywords = ["base"]
tags = ["base"]
[[rules]]
id = "b"
regex = 'b'
[[rules]]
id = "c"
regex = 'c'
"""

OVER = """
[extend]
{extend}
disabledRules = ["b"]
[[allowlists]]
targetRules = ["c"]
stopwords = ["w"]
[[allowlists]]
paths = ['mine']
[[rules]]
id = "a"
entropy = 3
keywords = ["mine"]
[[rules]]
id = "d"
regex = 'd'
"""


@pytest.mark.parametrize("extend", ["path = 'sub/base.toml'", "useDefault = true"])
def test_extending(tmp_path: Path, extend: str) -> None:
    base = tmp_path / "sub" / "base.toml"
    base.parent.mkdir()
    base.write_text(BASE)
    rules = load(tmp_path, OVER.format(extend=extend), default=base)
    a, d, c = rules.rules
    assert [rule.id for rule in rules.rules] == ["a", "d", "c"]
    assert (a.description, a.regex, a.secret_group, a.entropy) == ("base a", "(a)(b)", 2, 3.0)
    assert (a.keywords, a.tags) == (("base", "mine"), ("base",))
    assert d.regex == "d"
    assert c.allowlists == (Allowlist(stopwords=("w",)),)
    assert rules.allowlists == (Allowlist(paths=("mine",)), Allowlist(paths=("base",)))

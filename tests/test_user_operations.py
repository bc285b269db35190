"""Operations of users' own: exact like the built-in ones, refused clearly, and never able to end a scan."""

from __future__ import annotations

import hashlib
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uring_actors as ua
from tests import user_operations as ops
from tests.reductions import Drive, extents_of
from uring_actors.arena import abi
from uring_actors.cli import main
from uring_actors.errors import OperationError, OptionError
from uring_actors.megakernel import cuda
from uring_actors.ops.user import UserOperation, load

HERE = str(Path(ops.__file__))


def expected(operation: UserOperation, data: bytes) -> dict[str, Any]:
    """The row of a file, in one pass over the whole of it."""
    text = np.frombuffer(data, np.uint8)
    if operation is ops.zeros:
        return {"zeros": data.count(0)}
    if operation is ops.crlf:
        return {"pairs": data.count(b"\r\n"), "behind_last": data.rfind(b"\r\n") + 1}
    if operation is ops.largest:
        return {"largest": max(data, default=-1)}
    drops = sum(a > b for a, b in zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
    if operation is ops.falls:
        return {"falls": drops, "share": drops / max(1, len(data))}
    assert operation.name == "falls_again"
    return {"falls_again": drops}


OPERATIONS = [ops.zeros, ops.falls, ops.crlf, ops.rising, ops.largest]


@pytest.fixture(scope="module")
def drives() -> Iterator[Callable[[UserOperation], Drive]]:
    made = {operation: Drive(operation) for operation in OPERATIONS}
    yield made.__getitem__
    for drive in made.values():
        drive.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120)
@given(
    st.sampled_from(OPERATIONS),
    st.lists(st.text("\r\n\0ab", max_size=400).map(str.encode), min_size=1, max_size=3),
    st.integers(1, 200),
    st.data(),
)
def test_any_extents_in_any_order(
    drives: Any, operation: UserOperation, files: list[bytes], payload: int, data: Any
) -> None:
    order = data.draw(st.permutations(extents_of(files, payload)))
    rows, failures = drives(operation).scan(files, payload, order)
    assert failures == []
    assert rows == [
        {"path": b"f%d" % i, "bytes": len(content), **expected(operation, content)} for i, content in enumerate(files)
    ]


# ── through the whole pipeline ───────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    for size in (0, 1, 199, 4095, 4096, 4097, 65535, 65536, 65537, 250_000):
        content = bytes(random.Random(size).choices(b"\r\n\0abc\xff", k=size))
        (top / f"f{size}").write_bytes(content)
    return top


def check(scan: ua.Scan, operation: UserOperation, tree: Path) -> None:
    rows = scan.to_table().to_pylist()
    assert scan.errors.num_rows == 0
    assert len(rows) == len(list(tree.iterdir()))
    for row in rows:
        content = Path(row.pop("path").decode()).read_bytes()
        assert row == {"bytes": len(content), **expected(operation, content)}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_scans(tree: Path, operation: UserOperation) -> None:
    check(ua.scan(tree, operation=operation, engine="threads", slot_bytes=65536, slots=3), operation, tree)
    assert operation.is_compiled == (operation is not ops.rising)


def test_ray_needs_no_module_of_the_users(tree: Path, ray_session: None) -> None:
    """The definition travels by value: the actors can't import what it is from."""
    namespace: dict[str, Any] = {"__name__": "module_of_a_driver"}
    source = "import uring_actors as ua\ndef joined(a, b): return a + b\n"
    source += "@ua.operation(name='zeros', combine=joined)\ndef zeros(payload): return (payload == 0).sum()\n"
    exec(source, namespace)
    scan = ua.scan(tree, operation=namespace["zeros"], slot_bytes=65536, slots=3)
    check(scan, ops.zeros, tree)


def test_pickled_with_its_opcode_and_code() -> None:
    again = pickle.loads(pickle.dumps(ops.falls))
    assert (again.name, again.opcode, again.words, again.schema) == ("falls", ops.falls.opcode, 4, ops.falls.schema)
    assert again(np.array([3, 2, 1], np.uint8)) == (3, 3, 1, 2)
    assert b"module_of_nobody" not in pickle.dumps(ops.falls)


def test_what_numba_can_not_compile_runs_as_python_with_a_note(tree: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scan = ua.scan(tree / "f65537", operation=ops.digest, engine="threads", slot_bytes=65536)
    assert "runs as Python" in str(caught[0].message)
    content = (tree / "f65537").read_bytes()
    halves = [int.from_bytes(hashlib.md5(part).digest()[:4], "big") for part in (content[:65536], content[65536:])]
    assert scan.to_table().to_pylist()[0]["digest"] == reduce(xor, halves)


def test_command_line(tree: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    words = ["scan", "--operation", "tests.user_operations:crlf", "--engine", "threads", "--quiet"]
    assert main([*words, str(tree / "f4097")]) == 0
    content = (tree / "f4097").read_bytes()
    pairs, behind = content.count(b"\r\n"), content.rfind(b"\r\n") + 1
    assert capfd.readouterr().out == f"{tree}/f4097:4097:{pairs}:{behind}\n"


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        ("no_such_module:x", "ModuleNotFoundError"),
        ("tests.user_operations:nothing", "no attribute 'nothing'"),
        ("tests.user_operations:joined", "is function, not an operation"),
        ("tests.broken_module_of_users:x", "ZeroDivisionError"),
    ],
)
def test_what_names_no_operation_is_said(spelled: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    if "broken" in spelled:
        (tmp_path / "broken_module_of_users.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        spelled = spelled.removeprefix("tests.")
    with pytest.raises(OptionError, match=said):
        load(spelled)


# ── failing ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("operation", "said", "line"),
    [
        (ops.fails_on_7, "ValueError: a seven", "raise ValueError"),
        (ops.fails_in_python, "KeyError", "raise KeyError"),
    ],
    ids=["compiled", "python"],
)
def test_an_exception_is_an_error_row_and_the_scan_goes_on(
    tmp_path: Path, operation: UserOperation, said: str, line: str
) -> None:
    (tmp_path / "good").write_bytes(bytes(200_000))
    (tmp_path / "bad").write_bytes(bytes(65536) + b"\7" * 130_000)
    scan = ua.scan(tmp_path, operation=operation, engine="threads", slot_bytes=65536, slots=2)
    assert [row["path"] for row in scan.to_table().to_pylist()] == [str(tmp_path / "good").encode()]
    (error,) = scan.errors.to_pylist()  # one for the file, however many of its extents fail
    assert error["path"] == str(tmp_path / "bad").encode()
    assert error["offset"] in (65536, 131072)
    assert error["error"] == "OperationError"
    assert repr(operation.name) in error["message"]
    assert said in error["message"]
    number = Path(HERE).read_text().splitlines().index(next(x for x in lines_of(HERE) if line in x)) + 1
    assert f"({HERE}, line {number})" in error["message"]


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


@pytest.mark.parametrize("returned", [1.5, None, (1, 2), 1 << 63, "1", np.arange(3)], ids=str)
def test_what_is_no_state_is_an_error_row(tmp_path: Path, returned: Any) -> None:
    (tmp_path / "f").write_bytes(b"x")
    operation = ua.operation(lambda payload: returned, name="odd", compiled=False)
    scan = ua.scan(tmp_path, operation=operation, engine="threads")
    assert scan.to_table().num_rows == 0
    assert "operation 'odd'" in scan.errors.to_pylist()[0]["message"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"combine": lambda left, right: left / 0}, "combine failed: ZeroDivisionError"),
        ({"combine": lambda left, right: "x"}, "combine failed: TypeError"),
        ({"finish": lambda state, size: state / 0}, "finish failed: ZeroDivisionError"),
        ({"finish": lambda state, size: "text"}, "finish failed: ArrowInvalid"),
        ({"finish": lambda state, size: (1, 2)}, "2 values for the columns x"),
        ({"finish": lambda state, size: {"y": 1}}, "it returned y for the columns x"),
        ({"finish": lambda state, size: -1}, "finish failed"),
    ],
)
def test_a_failing_combine_or_finish_is_an_error_row(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    (tmp_path / "f").write_bytes(bytes(200_000))
    if "finish" in given:
        given = {**given, "schema": [pa.field("x", pa.uint8())]}
    operation = ua.operation(lambda payload: 1, name="odd", compiled=False, **given)
    scan = ua.scan(tmp_path, operation=operation, engine="threads", slot_bytes=65536)
    assert scan.to_table().num_rows == 0
    (error,) = scan.errors.to_pylist()
    assert said in error["message"]


def test_a_typing_error_shows_the_users_line() -> None:
    @ua.operation(compiled=True)
    def wrong(payload):  # type: ignore[no-untyped-def]
        total = 0
        for byte in payload:
            total += byte.nonsense
        return total

    with pytest.raises(OperationError) as caught:
        ua.scan(__file__, operation=wrong, engine="threads")
    number = lines_of(__file__).index("            total += byte.nonsense") + 1
    assert "total += byte.nonsense" in str(caught.value)
    assert f"line {number}" in str(caught.value)


@pytest.mark.parametrize("returned", ["1.5", "(1, 2)", "None"])
def test_a_compiled_function_must_return_a_state(returned: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def f(payload): return {returned}", namespace)
    with pytest.raises(OperationError, match="returns"):
        ua.scan(__file__, operation=ua.operation(namespace["f"], compiled=True), engine="threads")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "no name"}, "identifier"),
        ({"state": ()}, "0 words"),
        ({"state": [f"w{i}" for i in range(511)]}, "511 words"),
        ({"state": ("a", "a")}, "another name"),
        ({"state": ("path",)}, "none is path"),
        ({"combine": "product"}, "combine is 'product'"),
        ({"finish": lambda state, size: 1}, "no schema"),
        ({"schema": [pa.field("a", pa.int8()), pa.field("b", pa.int8())]}, "2 columns for 1 words"),
        ({"halo": 5}, "no parameter 'after'"),
        ({"halo": -1}, "halo"),
        ({"compiled": "maybe"}, "'maybe'"),
        ({"opcode": 7}, "opcode is 0x7"),
        ({"opcode": abi.OP_SCAN_NOP}, "opcode"),
        ({"empty": (1, 2)}, "empty"),
        ({"empty": 0.5}, "empty"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ua.operation(lambda payload: 1, **{"name": "odd", **given})


def test_parameters_are_known_by_name() -> None:
    with pytest.raises(OptionError, match=r"takes \(payload, length\)"):
        ua.operation(lambda payload, length: 1, name="odd")
    with pytest.raises(OptionError, match="has a parameter 'after'"):
        ua.operation(lambda payload, after: 1, name="odd")


def test_opcodes_are_the_users_and_each_operations_own() -> None:
    codes = [operation.opcode for operation in OPERATIONS]
    assert len(set(codes)) == len(codes)
    assert all(abi.OP_USER_FIRST <= code <= abi.OP_USER_LAST for code in codes)
    made = ua.operation(lambda payload: 1, name="chosen", opcode=0x12345)
    assert made.opcode == 0x12345
    assert ua.operation(lambda payload: 2, name="chosen").opcode == 0x12345  # a notebook's cell, run again
    with pytest.raises(OptionError, match="0x12345 is that of 'chosen'"):
        ua.operation(lambda payload: 1, name="other", opcode=0x12345)


# ── CUDA ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_cuda_forms_compile(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra dev)")
    cuda.check([*ops.zeros.device_functions, *ops.crlf.device_functions], architecture)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("\n__device__ void odd() {\n  oops;\n}", r"odd\.cu\(3\): error: identifier \"oops\" is undefined"),
        ("__device__ void odd(int x) {}", r"the call of odd\(1\): error"),
        ("__device__ void other() {}", 'has no member "odd"'),
    ],
)
def test_a_cuda_error_has_the_users_line(source: str, said: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra dev)")
    operation = ua.operation(lambda payload: 1, name="odd", cuda=source)
    with pytest.raises(OperationError, match=said):
        operation.check_cuda()


def test_without_a_cuda_form_there_is_nothing_to_check() -> None:
    assert not ops.falls.on_gpu
    with pytest.raises(OptionError, match="no CUDA form"):
        ops.falls.check_cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("operation", [ops.zeros, ops.crlf], ids=lambda operation: operation.name)
@pytest.mark.parametrize("slot_bytes", [65536, 1 << 20])
def test_scans_on_the_gpu(tree: Path, operation: UserOperation, slot_bytes: int) -> None:
    scan = ua.scan(tree, operation=operation, engine="threads", backend="cuda", slot_bytes=slot_bytes, slots=4)
    assert scan.stats.backend == "cuda"
    check(scan, operation, tree)

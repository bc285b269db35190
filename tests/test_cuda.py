"""The CUDA kernel's source against the ABI, and scans through the GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import uring_actors as ua
from uring_actors.errors import OptionError
from uring_actors.megakernel import cuda, protocol
from uring_actors.megakernel.nvrtc import compile_log


def test_every_constant_of_the_source_is_generated() -> None:
    source = (Path(cuda.__file__).parent / "kernel.cu").read_text()
    used = set(re.findall(r"\bUA_([A-Z0-9_]+)\b", source))
    assert used
    assert used <= set(protocol.constants())


def test_the_header_has_the_abis_values() -> None:
    defined = dict(re.findall(r"^#define UA_([A-Z0-9_]+) (\d+)u(?:ll)?$", protocol.cuda_header(), re.MULTILINE))
    assert {name: int(value) for name, value in defined.items()} == protocol.constants()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_source_compiles_without_warnings(architecture: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra dev)")
    assert compile_log(cuda.source(), architecture, cuda.compile_options()) == ""


def test_insisting_on_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    reason = cuda.unavailable()
    if reason is None:
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError, match="backend is cuda, but"):
        ua.scan(tmp_path, operation="touch", engine="threads", backend="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("slot_bytes", [65536, 1 << 20])
def test_scans_on_the_gpu_equal_those_on_the_cpu(tmp_path: Path, slot_bytes: int) -> None:
    for size in (0, 1, 199, 4095, 4096, 4097, slot_bytes - 1, slot_bytes, slot_bytes + 1, 5 * slot_bytes + 77):
        (tmp_path / f"f{size}").write_bytes(bytes(i * i % 251 for i in range(size)))
    tables = []
    for backend in ("cpu", "cuda"):
        scan = ua.scan(tmp_path, operation="touch", engine="threads", backend=backend, slot_bytes=slot_bytes, slots=4)
        tables.append(sorted(map(tuple, (row.values() for row in scan.to_table().to_pylist()))))
        assert scan.stats.backend == backend
        assert scan.errors.num_rows == 0
    assert tables[0] == tables[1]
    assert [row[2] for row in tables[0]] == [sum(Path(row[0].decode()).read_bytes()) for row in tables[0]]

"""Every command and example in the README and docs/ runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "many-nodes.md": "test_many_nodes.py",
    "streams.md": "test_pump.py",
    "native-path.md": "nvme_qemu/guest.py",
}
"""Pages whose scripts need more than an empty directory, and what runs them."""
BLOCK = re.compile(r"<!-- run: tests/test_docs\.py -->\n```(console|python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run_console(block: str, directory: Path) -> None:
    """Each ``$ command`` prints the lines that follow it."""
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, wanted = step.partition("\n")
        done = subprocess.run(
            ["bash", "-c", command], cwd=directory, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert sorted(done.stdout.splitlines()) == sorted(wanted.splitlines()), f"{command}\n{done.stderr}"


def run_python(block: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    for language, block in BLOCK.findall(page.read_text()):
        (run_console if language == "console" else run_python)(block, tmp_path)


@pytest.mark.gpu
def test_the_operation_of_the_docs_runs_on_the_gpu(tmp_path: Path) -> None:
    (block,) = (text for _, text in BLOCK.findall((ROOT / "docs" / "operations.md").read_text()) if "CUDA = " in text)
    assert block.count('backend="cpu"') == 1
    run_python(block.replace('backend="cpu"', 'backend="cuda"'), tmp_path)


def test_the_operation_of_the_docs_compiles_for_gpus(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra dev)")
    (block,) = (text for _, text in BLOCK.findall((ROOT / "docs" / "operations.md").read_text()) if "CUDA = " in text)
    run_python(block + 'kinds.check_cuda("sm_90")\n', tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_example_is_marked_to_run() -> None:
    for page in PAGES:
        if page.name in ELSEWHERE:
            assert page.name in (ROOT / "tests" / ELSEWHERE[page.name]).read_text()
            continue
        text = page.read_text()
        assert len(re.findall(r"^```(?:console|python)$", text, re.MULTILINE)) == len(BLOCK.findall(text)), page


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(targets)

"""Which files are scanned: globs, hidden files, sizes, and .gitignore against git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import uring_actors as ua
from uring_actors.errors import OptionError
from uring_actors.plan import AnyPath, FileEntry, walk
from uring_actors.results.errors import Failure, Skipped
from uring_actors.selection import Selection

TREE = """
    a.py b.log .env build/out.o build/keep.py src/a.py src/b.log src/build/x.py src/.cache/c.py
    src/deep/er/a.py docs/a.md docs/build
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    for name in TREE.split():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return top


def listed(paths: AnyPath | list[AnyPath], **options: object) -> tuple[set[str], dict[str, str]]:
    """The files relative to the first path; reasons by path."""
    top = paths[0] if isinstance(paths, list) else paths
    found = list(walk(paths, Selection.of(**options)))  # type: ignore[arg-type]
    assert not [one for one in found if isinstance(one, Failure)]
    names = [os.fsdecode(os.path.relpath(one.path, os.fsencode(top))) for one in found if isinstance(one, FileEntry)]
    assert len(set(names)) == len(names)
    return set(names), {one.reason: os.fsdecode(one.path) for one in found if isinstance(one, Skipped)}


ALL = set(TREE.split())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ALL),
        ({"include": "*.py"}, {name for name in ALL if name.endswith(".py")}),
        ({"include": ["*.py", "*.log"]}, {name for name in ALL if name.endswith((".py", ".log"))}),
        ({"include": ["*.py", "!b*", "!a.py"]}, {"build/keep.py", "src/build/x.py", "src/.cache/c.py"}),
        ({"include": "src/"}, {name for name in ALL if name.startswith("src/")}),
        ({"include": ["src/", "!*.py"]}, {"src/b.log"}),
        ({"include": "/src/*.py"}, {"src/a.py"}),
        ({"include": "src/**/a.py"}, {"src/a.py", "src/deep/er/a.py"}),
        ({"exclude": "build"}, {name for name in ALL if "build" not in name.split("/")}),
        ({"exclude": "build/"}, {name for name in ALL if "build/" not in name}),
        ({"exclude": "/build/"}, {name for name in ALL if not name.startswith("build/")}),
        ({"exclude": ["*.py", "!a.py"]}, {n for n in ALL if not n.endswith(".py") or f"/{n}".endswith("/a.py")}),
        ({"exclude": ["src/", "!src/a.py"]}, {name for name in ALL if not name.startswith("src/")}),
        ({"include": "*.py", "exclude": ["src/*", "!src/deep"]}, {"a.py", "build/keep.py", "src/deep/er/a.py"}),
        ({"hidden": False}, ALL - {".env", "src/.cache/c.py"}),
        ({"hidden": False, "include": ".env"}, set()),
        ({"exclude": "*"}, set()),
        ({"max_filesize": 5}, {"a.py", "b.log", ".env"}),
        ({"max_filesize": "5", "exclude": "*.log"}, {"a.py", ".env"}),
        ({"max_filesize": 0}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # a set's order is chance
)  # fmt: skip
def test_what_is_listed(tree: Path, options: dict[str, object], wanted: set[str]) -> None:
    assert listed(tree, **options)[0] == wanted


def test_what_is_left_out_is_counted_by_reason(tree: Path) -> None:
    _, skipped = listed(tree, exclude=["build", "/b.log"], include="*.py", hidden=False, max_filesize=7)
    assert skipped == {
        "2 directories and 2 files left out: an exclude pattern matches": str(tree),
        "2 files left out: no include pattern matches": str(tree),
        "1 directory and 1 file left out: hidden": str(tree),
        "2 files left out: larger than 7": str(tree),
    }


def test_an_excluded_directory_is_not_entered(tree: Path) -> None:
    (tree / "build" / "closed").mkdir()
    if os.geteuid():
        (tree / "build" / "closed").chmod(0)  # entering it would be a Failure
    (tree / "build" / "dangling").symlink_to("nowhere")  # and this a Skipped
    assert set(listed(tree, exclude="build/")[1]) == {"2 directories left out: an exclude pattern matches"}


def test_given_files_are_scanned_whatever_their_name_but_not_whatever_their_size(tree: Path) -> None:
    given = [tree / ".env", tree / "build" / "out.o", tree / "b.log"]
    (tree / ".gitignore").write_text("*.log\n")
    options = {"include": "*.py", "exclude": ["build", "*.log"], "hidden": False, "gitignore": True}
    assert listed([tree, *given], **options)[0] == {"a.py", "src/a.py", "src/deep/er/a.py"} | {
        str(path.relative_to(tree)) for path in given
    }
    assert listed(given, max_filesize=4) == ({"."}, {"1 file left out: larger than 4": str(given[2])})


def test_given_directories_are_entered_whatever_their_name(tree: Path) -> None:
    assert listed(tree / "src" / ".cache", hidden=False, exclude=".cache")[0] == {"c.py"}


@pytest.mark.parametrize(
    "options",
    [
        {"include": ""}, {"exclude": "# comment"}, {"exclude": "/"}, {"exclude": "!"}, {"include": "!*.py"},
        {"max_filesize": -1}, {"max_filesize": "5 apples"}, {"max_count": 0}, {"max_count": True and "3"},
        {"report": "lines"},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_selections(tree: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        ua.scan(tree, patterns=["x"], **options)


# ── .gitignore ───────────────────────────────────────────────────────────────────────────────────────────────
def git(top: Path, *arguments: str) -> bytes:
    settings = ["-c", "core.excludesFile=/dev/null", "-c", "core.quotePath=false"]
    environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    done = subprocess.run(["git", *settings, *arguments], cwd=top, env=environment, capture_output=True, check=True)
    return done.stdout


def not_ignored(top: Path) -> set[str]:
    """Of the files below ``top``, in a repository without commits: what git does not ignore."""
    names = git(top, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    return {os.fsdecode(name) for name in names if name}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    top = tmp_path_factory.mktemp("repository")
    git(top, "init", "--quiet")
    return top


NAMES = ["a", "b", "ab", "a.c", ".h", "x y", "voilà", "#a", "!b", "[a]", "a*"]
PARTS = st.sampled_from(
    [*NAMES[:6], "*", "**", "?", "[ab]", "[!a]", "a*", "*.c", "voilà", "\\#a", "\\[a\\]", "x\\ y", "\\a"]
)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    text = "/".join(draw(st.lists(PARTS, min_size=1, max_size=3)))
    text = draw(st.sampled_from(["", "", "/"])) + text + draw(st.sampled_from(["", "", "/"]))
    return draw(st.sampled_from(["", "", "!"])) + text + draw(st.sampled_from(["", "", "", " ", "\r", "\\ "]))


FILES = st.lists(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join), min_size=1, max_size=12, unique=True
)
LISTS = st.lists(patterns() | st.sampled_from(["", "# no", "\\!b", "*/", "**/", "a/**", "/*", "!*/"]), max_size=5)


@settings(max_examples=60, database=None)
@given(names=FILES, root=LISTS, excludes=LISTS, inner=LISTS, where=st.integers(0, 3), start=st.booleans())
def test_gitignore_is_git_s(
    repository: Path,
    names: list[str],
    root: list[str],
    excludes: list[str],
    inner: list[str],
    where: int,
    start: bool,
) -> None:
    """Random trees and patterns: what is listed is what git shows as untracked, from the top and from below."""
    for entry in repository.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name in names:
        path = repository / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folders = [repository, *sorted(p for p in repository.rglob("*") if p.is_dir() and ".git" not in p.parts)]
    (repository / ".gitignore").write_text("\n".join(root), newline="")
    (folders[where % len(folders)] / ".gitignore").write_text("\n".join(inner), newline="")
    (repository / ".git" / "info" / "exclude").write_text("\n".join(excludes) + "\n", newline="")
    below = folders[-1] if start else repository
    if subprocess.run(["git", "check-ignore", "-q", below], cwd=repository, check=False).returncode == 0:
        below = repository  # what a given directory holds is scanned even where git ignores the directory
    assert listed(below, gitignore=True)[0] == not_ignored(below)


def test_gitignore_in_its_places(repository: Path, tmp_path: Path) -> None:
    """Above the given directory, in a repository within another, outside any; as a link, unreadable, with a BOM."""
    top = tmp_path / "top"
    for name in (
        "sub/keep.txt",
        "sub/x.log",
        "sub/inner/x.log",
        "sub/inner/y.tmp",
        "out/x.log",
        "bom/x.log",
        "bom/z",
    ):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (top / ".gitignore").write_text("*.log\n")
    (top / "sub" / "inner" / ".gitignore").write_text("*.tmp\n")
    (top / "bom" / ".gitignore").write_bytes(b"\xef\xbb\xbfz\r\n")
    every = {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
    assert listed(top, gitignore=True)[0] == {n for n in every if not n.endswith((".log", ".tmp", "/z"))}
    # Outside of a repository nothing above counts.
    assert listed(top / "sub", gitignore=True)[0] == {"keep.txt", "x.log", "inner/x.log", "inner/.gitignore"}
    git(top, "init", "--quiet")
    assert listed(top / "sub", gitignore=True)[0] == {"keep.txt", "inner/.gitignore"} == not_ignored(top / "sub")
    git(top / "sub" / "inner", "init", "--quiet")
    assert listed(top / "sub", gitignore=True)[0] == {"keep.txt", "inner/.gitignore", "inner/x.log"}
    assert not_ignored(top / "sub" / "inner") == {".gitignore", "x.log"}
    (top / "out" / ".gitignore").symlink_to("../bom/.gitignore")
    (top / "out" / "z").touch()
    assert "out/z" in listed(top, gitignore=True)[0] & not_ignored(top)


def test_a_work_tree_shares_the_repository_s_excludes(tmp_path: Path, repository: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "--quiet")
    git(main, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--allow-empty", "-m", "x")
    git(main, "worktree", "add", "--quiet", "../other")
    (main / ".git" / "info" / "exclude").write_text("*.o\n")
    for name in ("a.o", "a.c"):
        (tmp_path / "other" / name).touch()
    assert listed(tmp_path / "other", gitignore=True)[0] == {"a.c"} == not_ignored(tmp_path / "other")


def test_a_gitignore_that_is_not_read_is_said(tree: Path) -> None:
    (tree / "rules").write_text("*.py")
    (tree / ".gitignore").symlink_to("rules")
    names, skipped = listed(tree, gitignore=True)
    assert "a.py" in names
    assert skipped["its patterns are not applied: ELOOP"] == str(tree / ".gitignore")

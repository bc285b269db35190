"""The error tree: what each class carries survives pickling, and its text says it."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uring_actors import errors
from uring_actors.errors import (
    ArenaError,
    ChunkFailed,
    DeadlineExceeded,
    InputError,
    IoUringSyscall,
    IoUringUnavailable,
    MemlockTooSmall,
    NativePathUnavailable,
    NodeFailed,
    NvmeCommandRefused,
    NvmePassthroughDisabled,
    NvmeStatus,
    OperationError,
    OptionError,
    PatternError,
    PatternErrors,
    PipelineError,
    QueueFull,
    RuleFileError,
    UringActorsError,
    errno_name,
)

FIELDS = {
    "path": b"/data/caf\xe9",
    "offset": 4096,
    "device": "nvme0n1",
    "node": "node-7",
    "errno": errno.EIO,
}
FULL = {**FIELDS, "fix": "Do this."}


# class: (an instance with every field set, its own fields, what the text must contain)
TREE = {
    UringActorsError: (UringActorsError("it broke", **FULL), {"message": "it broke"}, ["it broke"]),
    OptionError: (OptionError("no such mode", **FULL), {}, ["no such mode"]),
    PatternError: (
        PatternError("missing )", pattern="a(b", position=1, fix="Close it."),
        {"reason": "missing )", "pattern": "a(b", "position": 1, "fix": "Close it."},
        ["invalid pattern: missing ) at 1", "Close it."],
    ),
    PatternErrors: (
        PatternErrors([PatternError("missing )", pattern="a(b"), PatternError("no text", pattern="")]),
        {"reason": "missing )", "pattern": "a(b"},
        ["2 invalid patterns", "missing )", "no text"],
    ),
    RuleFileError: (
        RuleFileError(b"/rules.toml", ["rules.toml:3: no id", "rules.toml:9: no regex"]),
        {"path": b"/rules.toml", "problems": ("rules.toml:3: no id", "rules.toml:9: no regex")},
        ["rules.toml:3: no id", "rules.toml:9: no regex"],
    ),
    OperationError: (
        OperationError("zeros", "it returned a str", **FULL),
        {"operation": "zeros", "reason": "it returned a str"},
        ["operation 'zeros': it returned a str"],
    ),
    InputError: (InputError("can't be scanned", **FULL), {}, ["can't be scanned"]),
    ArenaError: (ArenaError("not ours", **FULL), {}, ["not ours"]),
    PipelineError: (PipelineError("stopped", **FULL), {}, ["stopped"]),
    QueueFull: (
        QueueFull("submission queue", **FULL),
        {"queue": "submission queue"},
        ["submission queue is full"],
    ),
    NvmeCommandRefused: (
        NvmeCommandRefused("63 bytes", **FULL),
        {"reason": "63 bytes", "queue": "NVMe passthrough"},
        ["NVMe command refused: 63 bytes"],
    ),
    NvmePassthroughDisabled: (
        NvmePassthroughDisabled("a setting", **FULL),
        {"switch": "a setting"},
        ["switched off by a setting"],
    ),
    NvmeStatus: (
        NvmeStatus(0x6281, "unrecovered read error", lba=8, **FULL),
        {"status": 0x6281, "code": 0x81, "code_type": 2, "dnr": True, "more": True, "lba": 8},
        ["NVMe status 0x6281: unrecovered read error, not to be retried; from LBA 8"],
    ),
    NativePathUnavailable: (
        NativePathUnavailable("Disabled", "nvidia-fs is not loaded", **FULL),
        {"state": "Disabled", "reason": "nvidia-fs is not loaded"},
        ["the native path is disabled: nvidia-fs is not loaded"],
    ),
    IoUringSyscall: (
        IoUringSyscall("io_uring_enter", **FULL),
        {"syscall": "io_uring_enter"},
        ["io_uring_enter failed", "EIO"],
    ),
    ChunkFailed: (
        ChunkFailed(3, 7, "read", **FULL),
        {"chunk": 3, "slot": 7, "syscall": "read of chunk 3 (ring slot 7)"},
        ["read of chunk 3 (ring slot 7) failed", "EIO"],
    ),
    IoUringUnavailable: (
        IoUringUnavailable("io_uring_setup", **{**FULL, "errno": errno.EPERM}),
        {"syscall": "io_uring_setup", "errno": errno.EPERM},
        ["io_uring_setup failed", "EPERM: Operation not permitted"],
    ),
    MemlockTooSmall: (
        MemlockTooSmall(needed=1 << 30, limit=8 << 20, **FIELDS),
        {"needed": 1 << 30, "limit": 8 << 20},
        ["1073741824", "8388608", "ulimit -l unlimited"],
    ),
    DeadlineExceeded: (
        DeadlineExceeded("the reader's first completion", 12.34, **FULL),
        {"waited_for": "the reader's first completion", "seconds": 12.34},
        ["waited 12.3 s for the reader's first completion"],
    ),
    NodeFailed: (
        NodeFailed("publisher", "killed by SIGKILL", **FULL),
        {"role": "publisher", "reason": "killed by SIGKILL"},
        ["publisher failed: killed by SIGKILL"],
    ),
}
PARENTS = {
    UringActorsError: (Exception,),
    OptionError: (UringActorsError, ValueError),
    PatternError: (UringActorsError, ValueError),
    PatternErrors: (PatternError,),
    RuleFileError: (UringActorsError, ValueError),
    OperationError: (UringActorsError,),
    InputError: (UringActorsError,),
    ArenaError: (UringActorsError,),
    PipelineError: (UringActorsError,),
    QueueFull: (PipelineError,),
    NvmeCommandRefused: (QueueFull,),
    NvmePassthroughDisabled: (PipelineError,),
    NvmeStatus: (PipelineError,),
    NativePathUnavailable: (PipelineError,),
    IoUringSyscall: (PipelineError,),
    ChunkFailed: (IoUringSyscall,),
    IoUringUnavailable: (IoUringSyscall,),
    MemlockTooSmall: (PipelineError,),
    DeadlineExceeded: (PipelineError,),
    NodeFailed: (PipelineError,),
}


def test_the_tree_is_whole_and_drawn():
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, UringActorsError)}
    assert classes == set(TREE) == set(PARENTS)
    for cls, bases in PARENTS.items():
        assert cls.__bases__ == bases
        assert f" {cls.__name__} " in errors.__doc__ + " " or f"{cls.__name__}\n" in errors.__doc__


@pytest.mark.parametrize("cls", TREE)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_field_survives_pickling(cls, protocol):
    error, own, _ = TREE[cls]
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is cls
        assert repr(vars(twin)) == repr(vars(error))  # errors within errors have no other equality
        assert twin.args == error.args
        assert str(twin) == str(error)
        assert {name: getattr(twin, name) for name in own} == own


@pytest.mark.parametrize("cls", TREE)
def test_the_text_says_what_where_and_what_to_do(cls):
    error, _, said = TREE[cls]
    text = str(error)
    for part in said:
        assert part in text
    if cls not in (PatternError, PatternErrors, RuleFileError):
        assert r"'/data/caf\udce9' at byte 4096" in text
        assert "device nvme0n1; node node-7; " in text
        assert errno_name(error.errno) in text
    assert error.fix is None or text.endswith(error.fix)


@pytest.mark.parametrize("cls", TREE)
def test_nothing_unset_is_said(cls):
    own = {
        PatternError: lambda: PatternError("r", pattern="p"),
        PatternErrors: lambda: PatternErrors([PatternError("r", pattern="p")]),
        RuleFileError: lambda: RuleFileError(b"/r", ["it is empty"]),
        OperationError: lambda: OperationError("o", "r"),
        QueueFull: lambda: QueueFull("q", fix=""),
        NvmeCommandRefused: lambda: NvmeCommandRefused("r", fix=""),
        NvmePassthroughDisabled: lambda: NvmePassthroughDisabled("s", fix=""),
        NvmeStatus: lambda: NvmeStatus(0x80, "n"),
        NativePathUnavailable: lambda: NativePathUnavailable("Disabled", "r", fix=""),
        IoUringSyscall: lambda: IoUringSyscall("s", errno.EIO),
        ChunkFailed: lambda: ChunkFailed(0, 0, "s", errno.EIO),
        IoUringUnavailable: lambda: IoUringUnavailable("s", errno.EIO),
        MemlockTooSmall: lambda: MemlockTooSmall(needed=2, limit=1),
        DeadlineExceeded: lambda: DeadlineExceeded("w", 1),
        NodeFailed: lambda: NodeFailed("r", "x"),
    }
    error = own.get(cls, lambda: cls("plain"))()
    assert "None" not in str(error)
    assert not str(error).endswith(";")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_notes_are_kept():
    error = ArenaError("x")
    error.add_note("while starting")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while starting"]


def test_an_offset_is_said_without_a_path_too():
    assert str(UringActorsError("short read", offset=7)) == "short read; at byte 7"


def test_errno_names():
    assert errno_name(errno.ENODATA) == "ENODATA"
    assert errno_name(99999) == "99999"
    assert "Unknown error 99999" in str(UringActorsError("x", errno=99999))


@pytest.mark.parametrize(
    ("pattern", "position", "line", "column"),
    [
        ("", 0, "", 0),
        ("a(b", 1, "a(b", 1),
        ("a(b", 3, "a(b", 3),
        ("a\nb\tc(", 5, "a�b�c(", 5),
        ("\x00\x1b[31m(", 6, "��[31m(", 6),
        ("日本(", 2, "日本(", 4),
        ("e\u0301(", 2, "e\u0301(", 1),
        ("\ud800(", 1, "�(", 1),
        (b"\xe9\xff(", 2, "éÿ(", 2),
        (b"\x80(", 1, "�(", 1),
    ],
)
def test_the_caret_stands_under_the_position(pattern, position, line, column):
    error = PatternError("bad", pattern=pattern, position=position)
    first, second, third = str(error).split("\n")
    assert first == f"invalid pattern: bad at {position}"
    assert second == f"  {line}"
    assert third == " " * (2 + column) + "^"


@given(st.one_of(st.text(), st.binary()), st.integers(0, 50), st.none() | st.just("Fix it."))
def test_a_pattern_error_is_three_lines_whatever_the_pattern(pattern, position, fix):
    error = PatternError("bad", pattern=pattern, position=min(position, len(pattern)), fix=fix)
    lines = str(error).splitlines()
    assert len(lines) == (3 if fix is None else 4)
    assert lines[2].strip() == "^"
    str(error).encode()  # no lone surrogate
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)

"""What can go wrong, as exceptions that carry their fields.

    UringActorsError
    ├── OptionError (also ValueError)     an argument or a combination of arguments makes no sense
    ├── PatternError (also ValueError)    a pattern is invalid; points into it
    │   └── PatternErrors                 several are; has them all
    ├── RuleFileError (also ValueError)   a rule file is wrong; has every problem, with its line
    ├── OperationError                    a user operation can't be compiled, or failed on a file
    ├── InputError                        a path given by the caller can't be scanned at all
    ├── ArenaError                        shared memory can't be created, or what was attached is not ours
    └── PipelineError                     the running pipeline
        ├── QueueFull                     backpressure: try again after completions were reaped
        │   └── NvmeCommandRefused        64 bytes that the library won't hand to a drive
        ├── IoUringSyscall                a system call of io_uring failed
        │   ├── ChunkFailed               a pump's read failed; names chunk and ring slot
        │   └── IoUringUnavailable        io_uring is not permitted or not supported here
        ├── NvmePassthroughDisabled       NVMe passthrough was switched off
        ├── NvmeStatus                    the drive itself answered with an error
        ├── NativePathUnavailable         NVMe → GPU memory can't be had here; says what to install
        ├── MemlockTooSmall               RLIMIT_MEMLOCK doesn't allow the registered buffers
        ├── DeadlineExceeded              a wait ran out; names what was waited for
        └── NodeFailed                    a part of a node's pipeline died

Every field is kept through pickling, so that an error raised in a Ray actor reaches the caller whole.
A message says what failed, where, and what to do about it (``fix``).
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence
from typing import Any
from unicodedata import combining, east_asian_width


def _restore(cls: type[UringActorsError], args: tuple[Any, ...], fields: dict[str, Any]) -> UringActorsError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


def errno_name(number: int) -> str:
    """``"EIO"`` for 5; the number itself where the system has no name for it."""
    return _errno.errorcode.get(number, str(number))


class UringActorsError(Exception):
    """The root. ``path`` is bytes as the file system has it, ``offset`` bytes from the file's start."""

    def __init__(
        self,
        message: str,
        *,
        path: bytes | None = None,
        offset: int | None = None,
        device: str | None = None,
        node: str | None = None,
        errno: int | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.offset = offset
        self.device = device
        self.node = node
        self.errno = errno
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, dict(self.__dict__))

    def __str__(self) -> str:
        parts = [self.message]
        if self.path is not None:
            where = os.fsdecode(self.path)
            parts.append(f"path {where!r}" if self.offset is None else f"path {where!r} at byte {self.offset}")
        elif self.offset is not None:
            parts.append(f"at byte {self.offset}")
        if self.device is not None:
            parts.append(f"device {self.device}")
        if self.node is not None:
            parts.append(f"node {self.node}")
        if self.errno is not None:
            parts.append(f"{errno_name(self.errno)}: {os.strerror(self.errno)}")
        text = "; ".join(parts)
        return f"{text}. {self.fix}" if self.fix else text


def _columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


class OptionError(UringActorsError, ValueError):
    """An argument or a combination of arguments makes no sense."""


class PatternError(UringActorsError, ValueError):
    """``pattern`` (its source text) is invalid at ``position`` (an index into that text).

    ``origin`` says where it came from, where that is known: ``"words.txt line 3"``.
    """

    def __init__(
        self,
        reason: str,
        *,
        pattern: str | bytes,
        position: int = 0,
        origin: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(f"invalid pattern{f' in {origin}' if origin else ''}: {reason}", fix=fix)
        self.reason = reason
        self.pattern = pattern
        self.position = position
        self.origin = origin

    def __str__(self) -> str:
        """The message, the pattern on its own line, and a caret under the position."""
        shown = self.pattern if isinstance(self.pattern, str) else self.pattern.decode("latin-1")
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
        text = f"{self.message} at {self.position}\n  {line}\n  {' ' * _columns(line[: self.position])}^"
        return f"{text}\n{self.fix}" if self.fix else text


class PatternErrors(PatternError):
    """Several patterns are invalid: ``errors`` has them all, in order. The other fields are the first one's."""

    SHOWN = 20
    """How many of them the text spells out."""

    def __init__(self, errors: Sequence[PatternError]) -> None:
        first = errors[0]
        super().__init__(
            first.reason, pattern=first.pattern, position=first.position, origin=first.origin, fix=first.fix
        )
        self.errors = tuple(errors)

    def __str__(self) -> str:
        shown = [str(error) for error in self.errors[: self.SHOWN]]
        rest = len(self.errors) - len(shown)
        return "\n".join([f"{len(self.errors)} invalid patterns", *shown, *([f"and {rest} more"] if rest else [])])


class RuleFileError(UringActorsError, ValueError):
    """A rule file (``path``) can't be used. ``problems``: everything that is wrong, each with its file and line."""

    SHOWN = 20
    """How many problems the text spells out."""

    def __init__(self, path: bytes, problems: Sequence[str]) -> None:
        super().__init__("the rule file can't be used", path=path)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        rest = len(self.problems) - self.SHOWN
        return "\n".join([*self.problems[: self.SHOWN], *([f"and {rest} more problems"] if rest > 0 else [])])


class OperationError(UringActorsError):
    """A user operation can't be compiled, or one of its functions failed. ``operation`` is its name."""

    def __init__(self, operation: str, reason: str, **fields: Any) -> None:
        super().__init__(f"operation {operation!r}: {reason}", **fields)
        self.operation = operation
        self.reason = reason


class InputError(UringActorsError):
    """A path given by the caller can't be scanned at all."""


class ArenaError(UringActorsError):
    """Shared memory can't be created, or what was attached is not this pipeline's."""


class PipelineError(UringActorsError):
    """Something in the running pipeline failed."""


class QueueFull(PipelineError):
    """A bounded queue has no room (``queue`` names it): reap completions, then try again."""

    def __init__(self, queue: str, *, fix: str, **fields: Any) -> None:
        super().__init__(f"{queue} is full", fix=fix, **fields)
        self.queue = queue


class NvmeCommandRefused(QueueFull):
    """An NVMe command that is not handed to a drive, for what ``reason`` says. It is a QueueFull because the
    reference interface has it so; unlike one, it comes again however often the same bytes are submitted."""

    def __init__(self, reason: str, *, fix: str, **fields: Any) -> None:
        PipelineError.__init__(self, f"NVMe command refused: {reason}", fix=fix, **fields)
        self.queue = "NVMe passthrough"
        self.reason = reason


class NvmePassthroughDisabled(PipelineError):
    """NVMe passthrough was switched off, by what ``switch`` names."""

    def __init__(self, switch: str, *, fix: str, **fields: Any) -> None:
        super().__init__(f"NVMe passthrough is switched off by {switch}", fix=fix, **fields)
        self.switch = switch


class NvmeStatus(PipelineError):
    """The drive answered a command with ``status``: the 15 bits as the kernel hands them on (NVMe base
    specification, "Status Field Definition"), without the phase bit.

    code: the status code; code_type: its type (0 generic, 1 command specific, 2 media and data integrity, 3 path
    related, 7 vendor specific); dnr: "do not retry", the same command will fail again; more: the drive's error log
    tells more; lba: the command's first block, in the namespace's own blocks.
    """

    def __init__(self, status: int, name: str, *, lba: int | None = None, **fields: Any) -> None:
        again = ", not to be retried" if status & 0x4000 else ""
        where = "" if lba is None else f"; from LBA {lba}"
        super().__init__(f"NVMe status {status:#06x}: {name}{again}{where}", **fields)
        self.status = status
        self.name = name
        self.code = status & 0xFF
        self.code_type = status >> 8 & 7
        self.more = bool(status & 0x2000)
        self.dnr = bool(status & 0x4000)
        self.lba = lba


class NativePathUnavailable(PipelineError):
    """NVMe → GPU memory can't be had: ``state`` is Disabled or Unavailable, ``reason`` says what is missing."""

    def __init__(self, state: str, reason: str, *, fix: str, **fields: Any) -> None:
        super().__init__(f"the native path is {state.lower()}: {reason}", fix=fix, **fields)
        self.state = state
        self.reason = reason


class IoUringSyscall(PipelineError):
    """``syscall`` returned ``errno``."""

    def __init__(self, syscall: str, errno: int, *, fix: str | None = None, **fields: Any) -> None:
        super().__init__(f"{syscall} failed", errno=errno, fix=fix, **fields)
        self.syscall = syscall


class ChunkFailed(IoUringSyscall):
    """The read of a pump's ``chunk`` failed; its ring ``slot`` was not published and may be used again."""

    def __init__(
        self, chunk: int, slot: int, syscall: str, errno: int, *, fix: str | None = None, **fields: Any
    ) -> None:
        super().__init__(f"{syscall} of chunk {chunk} (ring slot {slot})", errno, fix=fix, **fields)
        self.chunk = chunk
        self.slot = slot


class IoUringUnavailable(IoUringSyscall):
    """io_uring is not permitted or not supported here; ``fix`` says how to get it."""


class MemlockTooSmall(PipelineError):
    """RLIMIT_MEMLOCK (``limit`` bytes) doesn't allow ``needed`` bytes of registered buffers."""

    def __init__(self, *, needed: int, limit: int, **fields: Any) -> None:
        super().__init__(
            f"RLIMIT_MEMLOCK is {limit} bytes, and io_uring needs {needed} to register its buffers",
            fix="Raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in the service, or memlock in "
            "/etc/security/limits.conf), make the arena smaller, or use the pread engine.",
            **fields,
        )
        self.needed = needed
        self.limit = limit


class DeadlineExceeded(PipelineError):
    """A wait ran out after ``seconds``; ``waited_for`` names its cause."""

    def __init__(self, waited_for: str, seconds: float, **fields: Any) -> None:
        super().__init__(f"waited {seconds:.1f} s for {waited_for}", **fields)
        self.waited_for = waited_for
        self.seconds = seconds


class NodeFailed(PipelineError):
    """A part of a node's pipeline (``role``: reader, publisher, kernel host) died or failed."""

    def __init__(self, role: str, reason: str, **fields: Any) -> None:
        super().__init__(f"{role} failed: {reason}", **fields)
        self.role = role
        self.reason = reason


def node_failure(role: str, cause: BaseException) -> UringActorsError:
    """What the caller sees when ``role`` ended with ``cause``: an error of ours as it is, others named."""
    if isinstance(cause, UringActorsError):
        return cause
    return NodeFailed(role, f"{type(cause).__name__}: {cause}")

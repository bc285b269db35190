"""Pattern files: one pattern a line, as ``-f FILE`` reads them.

A line ends with ``\\n`` or ``\\r\\n``. Empty lines are left out (they would match everywhere); there are no comments,
since ``#`` may begin a pattern. A byte order mark at the beginning is no part of the first pattern.
"""

from __future__ import annotations

import os
import sys

from uring_actors.errors import InputError
from uring_actors.ops.match.pattern import Literal, Pattern, Regex
from uring_actors.plan import AnyPath

_MARK = b"\xef\xbb\xbf"


def read_patterns(
    path: AnyPath,
    *,
    fixed: bool = False,
    ignore_case: bool = False,
    multi_line: bool = False,
    dot_all: bool = False,
    bytes: bool = False,  # noqa: A002 (as Regex has it)
) -> list[Regex | Literal]:
    """The patterns of a file (``"-"``: standard input), each with its file and line as ``origin``.

    fixed: lines are fixed text, not expressions; one that is not UTF-8 is fixed bytes. The rest: as of ``Regex``.

    Raises InputError where the file can't be read.
    """
    name = os.fsencode(path)
    try:
        if name == b"-":
            data, shown = sys.stdin.buffer.read(), "standard input"
        else:
            with open(name, "rb") as file:
                data, shown = file.read(), os.fsdecode(name)
    except OSError as error:
        raise InputError("can't read the pattern file", path=name, errno=error.errno) from None
    found: list[Pattern] = []
    for number, line in enumerate(data.removeprefix(_MARK).split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        origin = f"{shown} line {number}"
        text = line if bytes else _text(line)
        if fixed:
            found.append(Literal(text, ignore_case=ignore_case, origin=origin))
        else:
            found.append(
                Regex(
                    text,
                    ignore_case=ignore_case,
                    multi_line=multi_line,
                    dot_all=dot_all,
                    bytes=bytes,
                    origin=origin,
                )
            )
    return found


def _text(line: bytes) -> str | bytes:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line

"""Where in a TOML document things stand: ``tomllib`` gives values without their lines.

The document has been parsed by ``tomllib`` before, so it is known to be valid; this only walks over it, statement by
statement, and leaves reading keys to ``tomllib``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
"""Keys and, in arrays, indexes: ``("rules", 3, "allowlists", 0, "regexes", 2)``."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|\n"
    r"|[\[\]{}]"
    r"|[^\"'#\n\[\]{}]+",
    re.DOTALL,
)


def line_numbers(text: str) -> dict[Path, int]:
    """The line (from 1) of every table, every key, and every string that is an element of an array.

    What is inside inline tables has no entry.
    """
    lines: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for line, tokens in _statements(text):
        first = tokens[0][1]
        if first == "[":
            table = _header("".join(token for _, token in tokens), counts)
            lines[table] = line
            continue
        key = table + _key("".join(token for _, token in tokens))
        lines[key] = line
        depth = element = 0
        for at, token in tokens:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
            if depth == 1 and token[0] in "\"'":
                lines[(*key, element)] = at
                element += 1
    return lines


def _statements(text: str) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Each statement's line, and its tokens with theirs; comments and blanks between tokens are left out."""
    line = 1
    depth = 0
    tokens: list[tuple[int, str]] = []
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token == "\n" and depth == 0 and tokens:
            yield tokens[0][0], tokens
            tokens = []
        elif not token.isspace() and token[0] != "#":
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
            tokens.append((line, token))
        line += token.count("\n")
    if tokens:
        yield tokens[0][0], tokens


def _header(text: str, counts: dict[Path, int]) -> Path:
    """The path that ``[a.b]`` or ``[[a.b]]`` opens, with the indexes of the arrays of tables on the way."""
    names = _names(tomllib.loads(text))
    path: Path = ()
    for name in names:
        path += (name,)
        if path in counts:
            path += (counts[path] - 1,)
    if text.startswith("[["):
        array = path[:-1] if isinstance(path[-1], int) else path
        counts[array] = counts.get(array, 0) + 1
        path = (*array, counts[array] - 1)
    return path


def _key(statement: str) -> Path:
    """The path that is assigned to. Keys hold no ``=`` but within quotes."""
    quoted = re.match(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[^="'])*""", statement)
    assert quoted is not None, "the expression matches the empty string"
    return tuple(_names(tomllib.loads(quoted[0] + "= 0")))


def _names(nested: Any) -> list[str]:
    names = []
    while isinstance(nested, dict) and nested:
        [(name, nested)] = nested.items()
        names.append(name)
        if isinstance(nested, list):
            break
    return names

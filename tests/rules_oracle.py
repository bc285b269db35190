"""What a rule file must find, by google-re2 over whole files; shares no code with the pipeline."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from typing import Any

import re2

Found = tuple[str, int, int, int | None, int | None, bytes, bytes, float, bytes]
"""Rule, start, end, line, column, match, secret, entropy, fingerprint."""


def compiled(regex: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 256 << 20
    return re2.compile(regex.encode(), options)


def hit(regexes: list[str], text: bytes) -> bool:
    return any(compiled(regex).search(text) for regex in regexes)


def low(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape").lower()


def entropy_of(secret: bytes) -> float:
    characters = ["\ufffd" if "\ud800" <= c <= "\udfff" else c for c in secret.decode("utf-8", "surrogateescape")]
    shares = [count / len(secret) for count in Counter(characters).values()]
    return -sum(share * math.log2(share) for share in shares) + 0.0


def lists_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    return table.get("allowlists", []) + ([table["allowlist"]] if "allowlist" in table else [])


def both(allow: dict[str, Any]) -> bool:
    return allow.get("condition", "OR").upper() in ("AND", "&&")


def path_allowed(allow: dict[str, Any], path: bytes) -> bool:
    if not hit(allow.get("paths", []), path):
        return False
    return not both(allow) or not (allow.get("regexes") or allow.get("stopwords") or allow.get("commits"))


def match_allowed(allow: dict[str, Any], path: bytes, match: bytes, secret: bytes, line: bytes) -> bool:
    target = {"match": match, "line": line}.get(allow.get("regexTarget", ""), secret)
    by_regex = bool(target) and hit(allow.get("regexes", []), target)
    by_word = any(word.lower() in low(secret) for word in allow.get("stopwords", []))
    if not both(allow):
        return by_regex or by_word
    checks = []
    if allow.get("commits"):
        checks.append(False)
    if allow.get("paths"):
        checks.append(hit(allow["paths"], path))
    if allow.get("regexes"):
        checks.append(by_regex)
    if allow.get("stopwords"):
        checks.append(by_word)
    return all(checks)


def findings(document: str, path: bytes, data: bytes) -> list[Found]:
    """In order."""
    config = tomllib.loads(document)
    everywhere = [allow for allow in lists_of(config) if not allow.get("targetRules")]
    found: list[tuple[int, int, Found]] = []
    folded = data.lower()
    if not data or any(path_allowed(allow, path) for allow in everywhere):
        return []
    for number, rule in enumerate(config["rules"]):
        targeted = [allow for allow in lists_of(config) if rule["id"] in allow.get("targetRules", [])]
        allows = everywhere + lists_of(rule) + targeted
        if any(path_allowed(allow, path) for allow in allows):
            continue
        keywords = [word.encode().lower() for word in rule.get("keywords", [])]
        if keywords and not any(word in folded for word in keywords):
            continue
        if "path" in rule and not hit([rule["path"]], path):
            continue
        if "regex" not in rule:
            mark = b"%s:%s:0" % (path, rule["id"].encode())
            found.append((-1, number, (rule["id"], 0, 0, None, None, b"", b"", 0.0, mark)))
            continue
        for m in compiled(rule["regex"]).finditer(data):
            row = judged(rule, allows, path, data, m)
            if row is not None:
                found.append((m.start(), number, row))
    found.sort()
    rows = [row for *_, row in found]
    return [row for row in rows if not echoed(row, rows)]


def judged(rule: dict[str, Any], allows: list[dict[str, Any]], path: bytes, data: bytes, m: Any) -> Found | None:
    start, end = m.span()
    match = data[start:end]
    trimmed = match.strip(b"\n")
    groups = m.groups()
    secret = trimmed
    if rule.get("secretGroup"):
        secret = m.group(rule["secretGroup"]) or b""
    elif groups:
        secret = next((text for text in groups if text), trimmed)
    entropy = entropy_of(secret)
    if rule.get("entropy") and entropy <= rule["entropy"]:
        return None
    first = start + len(match) - len(match.lstrip(b"\n"))
    last = end - len(match) + len(match.rstrip(b"\n"))
    stop = data.find(b"\n", last)
    line = data[data.rfind(b"\n", 0, first) + 1 : len(data) if stop < 0 else stop] if trimmed else b""
    if b"gitleaks:allow" in line:
        return None
    if any(match_allowed(allow, path, trimmed, secret, line) for allow in allows):
        return None
    number = data.count(b"\n", 0, start) + 1
    column = start - (data.rfind(b"\n", 0, start) + 1) + 1
    shown = number + (match[:1] == b"\n")
    mark = b"%s:%s:%d" % (path, rule["id"].encode(), shown)
    return rule["id"], start, end, number, column, match, secret, entropy, mark


def echoed(row: Found, rows: list[Found]) -> bool:
    """A generic rule's finding that another rule has on the same line."""
    return "generic" in row[0].lower() and any(
        other[8].rsplit(b":", 1)[1] == row[8].rsplit(b":", 1)[1]
        and row[3] is not None
        and other[3] is not None
        and "generic" not in other[0].lower()
        and row[6] in other[6]
        for other in rows
    )

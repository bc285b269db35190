"""Findings as Arrow record batches: a match's columns, and what the rule adds.

A finding about a path alone has no place in the file: start and end are 0, line and column null, the match is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from uring_actors.ops.rules.rules import Rule
from uring_actors.results.arrays import array
from uring_actors.results.schema import MATCH_SCHEMA, MAX_MATCH_BYTES, MAX_ROWS

RULES_SCHEMA = pa.schema(
    [
        *MATCH_SCHEMA,
        pa.field("rule", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("secret", pa.binary(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("fingerprint", pa.binary()),
        pa.field("description", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("tags", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
"""``pattern`` and ``rule`` are the rule's id. ``fingerprint`` is ``path:rule:line`` (line 0 for a path), null where
the line is not known. ``tags`` are joined by commas."""


class Finding(NamedTuple):
    """One row of a file, in the order in which rows of a file stand. ``line`` and ``column``: 0 stands for null."""

    start: int
    rule: int
    end: int
    line: int
    column: int
    match: bytes
    secret: bytes
    entropy: float

    @property
    def fingerprint_line(self) -> int:
        """gitleaks' line: a match that begins with a newline counts to the line behind it."""
        return self.line + 1 if self.line and self.match.startswith(b"\n") else self.line


class FindingBatches:
    """Collects findings, and yields batches of at most ``max_rows`` rows and about ``max_bytes`` of matches."""

    def __init__(self, rules: Sequence[Rule], *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_MATCH_BYTES) -> None:
        self._rules = [rule.id for rule in rules]
        self._ids = array(self._rules, pa.string())
        self._descriptions = array([rule.description for rule in rules], pa.string())
        self._tags = array([",".join(rule.tags) for rule in rules], pa.string())
        self._path_rules = {k for k, rule in enumerate(rules) if rule.regex is None}
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._rows: list[tuple[bytes, Finding]] = []
        self._bytes = 0

    def add(self, path: bytes, findings: Iterable[Finding]) -> Iterator[pa.RecordBatch]:
        """Take a file's findings; yields the batches that they fill (run it to its end)."""
        for finding in findings:
            size = len(finding.match) + len(finding.secret)
            if self._rows and (self._bytes + size > self._max_bytes or len(self._rows) == self._max_rows):
                yield from self.flush()
            self._rows.append((path, finding))
            self._bytes += size

    def flush(self) -> Iterator[pa.RecordBatch]:
        """What has been collected, if anything."""
        if self._rows:
            rows, self._rows, self._bytes = self._rows, [], 0
            yield self._batch(rows)

    def _batch(self, rows: Sequence[tuple[bytes, Finding]]) -> pa.RecordBatch:
        found = [finding for _, finding in rows]
        which = array([f.rule for f in found], pa.int32())
        ids = pa.DictionaryArray.from_arrays(which, self._ids)
        columns = [
            array([path for path, _ in rows], pa.binary()),
            ids,
            array([f.start for f in found], pa.int64()),
            array([f.end for f in found], pa.int64()),
            array([f.line or None for f in found], pa.int64()),
            array([f.column or None for f in found], pa.int64()),
            array([f.match for f in found], pa.binary()),
            ids,
            array([f.secret for f in found], pa.binary()),
            array([f.entropy for f in found], pa.float32()),
            array([self._fingerprint(path, f) for path, f in rows], pa.binary()),
            pa.DictionaryArray.from_arrays(which, self._descriptions),
            pa.DictionaryArray.from_arrays(which, self._tags),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=RULES_SCHEMA)

    def _fingerprint(self, path: bytes, finding: Finding) -> bytes | None:
        if not finding.line and finding.rule not in self._path_rules:
            return None
        return b"%s:%s:%d" % (path, self._rules[finding.rule].encode(), finding.fingerprint_line)

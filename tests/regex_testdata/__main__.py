"""``python -m tests.regex_testdata DIR``: a line a case, pass, fail or unsupported with the reason, and the sums.

The exit status is 0 where nothing failed, 1 where something did, 2 for a directory that can't be read as test data.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.regex_testdata.cases import FormatError, load
from tests.regex_testdata.running import FAIL, PASS, UNSUPPORTED, run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.regex_testdata", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="TOML files in the format of Rust's regex crate")
    directory = parser.parse_args(arguments).directory
    counts: Counter[str] = Counter()
    try:
        for outcome in run(load(directory)):
            counts[outcome.status] += 1
            print(f"{outcome.status:<11}  {outcome.case.name}" + (outcome.reason and f": {outcome.reason}"))
    except (FormatError, OSError) as error:
        print(f"regex_testdata: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{counts[status]} {status}" for status in (PASS, FAIL, UNSUPPORTED)))
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())

"""A scan as a Ray job: ``ray job submit --working-dir cluster -- python job.py PATH… -e PATTERN -o FILE``.

Takes what ``uring-actors scan`` takes; Ray sets RAY_ADDRESS for its jobs, so the scan runs on the cluster that the
job was submitted to. A job has failed when its status is not 0, and a scan that found nothing has not: its status 1
becomes 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from uring_actors.cli import main as uring_actors

NOTHING_FOUND = 1


def main(arguments: Sequence[str]) -> int:
    status = uring_actors(["scan", *arguments])
    return 0 if status == NOTHING_FOUND else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A scan as a Ray job: ``ray job submit --working-dir cluster -- python job.py -e PATTERN -o FILE PATH…``.

Takes what ``uring-actors scan`` takes, and scans on all nodes of the cluster that the job was submitted to, unless
told otherwise (``--address``, ``--nodes``). Paths that each node has for itself want ``--host-local``.

A job has failed when its status is not 0, and a scan that found nothing has not: its status 1 becomes 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from uring_actors.cli import main as uring_actors

NOTHING_FOUND = 1


def main(arguments: Sequence[str]) -> int:
    status = uring_actors(["scan", "--address", "auto", *arguments])
    return 0 if status == NOTHING_FOUND else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

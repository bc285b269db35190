"""``python -m uring_actors`` is ``uring-actors``."""

import sys

from uring_actors.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""The data that is scanned: source-like text made from the Python sources of this installation, and the page cache.

The text is repetitions of the standard library's and the installed packages' sources, in another order each time,
with a line of its own before each file; so nothing repeats at a fixed distance, and matches of both pattern lists
occur as often as they do in source code, or more often (see ``_PLANTED``).
"""

from __future__ import annotations

import os
import random
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from uring_actors.uring.pagecache import cached_bytes

PATTERNS = Path(__file__).parent / "data"
LISTS = ("hard", "literal-led")
_EVERY = 64
"""One in so many files is followed by a line with something that the lists look for."""
_PLANTED = (
    "aws = 'AKIA{:016d}'",
    "token = 'ghp_{:036d}'",
    "sk_live_{:024d}",
    "number = '{:03d}-12-3456'",
    "# TODO(someone) {}",
    "npm_{:036d}",
)


def patterns_of(name: str) -> list[str]:
    """The patterns of a list, one a line."""
    return (PATTERNS / f"patterns-{name}.txt").read_text().splitlines()


def make_text(path: Path, size: int, seed: int = 1) -> None:
    """Write ``size`` bytes of source-like text to ``path``."""
    left = size
    with path.open("wb") as out:
        for part in _parts(random.Random(seed)):
            left -= out.write(part[:left])
            if not left:
                return


def _parts(rng: random.Random) -> Iterator[bytes]:
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    sources = sorted({path for root in roots for path in Path(root).rglob("*.py") if path.is_file()})
    number = 0
    while True:
        rng.shuffle(sources)
        for path in sources:
            number += 1
            yield b"# file %d\n" % number
            yield path.read_bytes()
            if number % _EVERY == 0:
                yield (rng.choice(_PLANTED).format(number) + "\n").encode()


def make_links(path: Path, count: int) -> list[Path]:
    """``count`` hard links to ``path``, next to it: as many files to scan, one file's worth of page cache."""
    links = [path.with_name(f"{path.name}.{i}") for i in range(count)]
    for link in links:
        if not link.exists():
            os.link(path, link)
    return links


def warm(path: Path) -> None:
    """Read the file into the page cache. Raises RuntimeError where it does not stay there."""
    for _ in range(2):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(1 << 20)
            while file.readinto(buffer):
                pass
            if cached_share(path) == 1:
                return
    raise RuntimeError(f"only {cached_share(path):.1%} of the file stays in the page cache: use a smaller --size")


def cached_share(path: Path) -> float:
    """What share of the file is in the page cache (cachestat, or fincore where the kernel has none)."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        return min(1.0, cached_bytes(fd, size) / size)
    except OSError:
        done = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        return min(1.0, int(done.stdout) / size)
    finally:
        os.close(fd)

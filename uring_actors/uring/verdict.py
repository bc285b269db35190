"""What to do about the result of a read: the one place that decides, for every engine, every lane and the stream.

A short read is no success: it is read on until the extent is whole or the file ends. Results that pass by themselves
are retried, with a bound; everything else fails.
"""

from __future__ import annotations

from typing import Final

from uring_actors.hot import hot

BLOCK: Final = 4096  # O_DIRECT reads begin and end on it

WHOLE: Final = 0  # all that was expected is here
MORE: Final = 1  # short: read on from ``resume_at``
RETRY: Final = 2  # again, from the same place
END: Final = 3  # the file ends before the size that it was listed with
FAIL: Final = 4  # −res is the errno

MAX_RETRIES: Final = 8
_EINTR, _EAGAIN, _ECANCELED = 4, 11, 125


@hot
def resume_at(done: int, direct: int) -> int:
    """Where to read on after ``done`` bytes: with O_DIRECT at the block border below, because offset and memory
    must stay aligned (the read began on a border)."""
    return done // BLOCK * BLOCK if direct != 0 else done


@hot
def judge(res: int, done: int, want: int, direct: int, retries: int) -> int:
    """What to do about a read's result. ``res``: bytes or −errno; ``done``: bytes that were here before it (where
    the request began, a block border with O_DIRECT); ``want``: bytes expected in the end; ``retries`` so far."""
    if res < 0:
        again = res == -_EAGAIN or res == -_EINTR or res == -_ECANCELED
        return RETRY if again and retries < MAX_RETRIES else FAIL
    if done + res >= want:
        return WHOLE
    # With O_DIRECT only a file's end is less than a block away from where a read began: going on from the
    # border below would begin at the same place for ever.
    if res == 0 or resume_at(done + res, direct) == done:
        return END
    return MORE

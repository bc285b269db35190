"""The actors of a job that has ended, kept for the driver's next one.

To start a Python process on every node and load what a pipeline needs takes seconds; to use one that is there, none.
So an orchestrator whose job has ended stays for ``WARM_SECONDS``, with those of its agents that have left the job in
order: their pipelines are closed, their arenas freed. What the next job is comes with it; only loaded code is used
again, and the code of a driver's processes is the driver's. There are never more than one such orchestrator and, with
it, one agent a node: of two jobs that ran side by side, the one that ends last leaves its own.

Ray ends them with the driver's connection.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import ray

from uring_actors.ray_calls import kill

WARM_SECONDS = 300.0
"""How long they are kept."""


@dataclass(frozen=True, slots=True)
class _Kept:
    actor: Any
    connection: tuple[str, str]
    timer: threading.Timer


_lock = threading.Lock()
_kept: _Kept | None = None


def _connection() -> tuple[str, str]:
    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_job_id())


def keep(actor: Any) -> None:
    """Have this orchestrator for the next job, in place of any other."""
    timer = threading.Timer(WARM_SECONDS, _expire, [actor])
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # the interpreter is ending
        kill(actor)
        return
    _exchange(_Kept(actor, _connection(), timer))


def take() -> Any:
    """The orchestrator that was kept, which is the caller's from now on; None where there is none."""
    global _kept
    with _lock:
        kept, _kept = _kept, None
    if kept is None:
        return None
    kept.timer.cancel()
    return kept.actor if kept.connection == _connection() else None


def release_warm() -> None:
    """End the processes that jobs on a cluster have left for the next one, now."""
    _exchange(None)


def _expire(actor: Any) -> None:
    with _lock:
        current = _kept is not None and _kept.actor is actor
    if current:
        release_warm()


def _exchange(new: _Kept | None) -> None:
    global _kept
    with _lock:
        old, _kept = _kept, new
    if old is not None:
        old.timer.cancel()
        if ray.is_initialized() and old.connection == _connection():
            kill(old.actor)

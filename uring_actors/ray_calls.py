"""Calls to Ray actors: what they raise made ours, and generators of what they yield. Light: numba stays unloaded."""

from __future__ import annotations

import contextlib
from typing import Any

import ray

from uring_actors.errors import DeadlineExceeded, NodeFailed, PipelineError, UringActorsError, node_failure

_ANSWER_SECONDS = 120.0
"""For an orchestrator's answer, its restart included."""
_STREAMED_BUNDLES = 4
"""Bundles that may lie in the object store before the driver has taken one."""


def open_stream(source: Any, *args: Any) -> Any:
    """What ``bundles`` of that actor yields, as a generator of references, a few ahead of whoever takes them."""
    return source.bundles.options(
        num_returns="streaming", _generator_backpressure_num_objects=_STREAMED_BUNDLES
    ).remote(*args)


def unwrap(error: ray.exceptions.RayError, role: str) -> UringActorsError:
    """An error of ours that came through Ray as itself; anything else as the failure of ``role``."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return node_failure(role, cause if isinstance(cause, BaseException) else error)
    if isinstance(error, ray.exceptions.RayActorError):
        return NodeFailed(role, "its process died", fix="See Ray's logs; out of memory is a common cause.")
    return PipelineError(f"Ray failed while waiting for {role}: {error}")


def answer(reference: Any) -> Any:
    """The orchestrator's answer. Raises an error of ours as itself."""
    try:
        return ray.get(reference, timeout=_ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise DeadlineExceeded("the orchestrator's answer", _ANSWER_SECONDS) from None
    except ray.exceptions.RayTaskError as error:
        raise unwrap(error, "orchestrator") from error
    except ray.exceptions.RayActorError as error:
        raise NodeFailed("orchestrator", "its process died") from error


def kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it may be dead already, or Ray itself gone
        ray.kill(actor)

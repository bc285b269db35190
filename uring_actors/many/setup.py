"""What a job's actors are made from, and what they tell each other. Light: the orchestrator loads no pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import cloudpickle

from uring_actors.arena.abi import OP_USER_FIRST, OP_USER_LAST
from uring_actors.config import ScanOptions
from uring_actors.many.orchestrator import JobPlan

if TYPE_CHECKING:
    from uring_actors.ops.base import Operation


@dataclass(frozen=True)
class Setup:
    """All that a job's actors are made from."""

    plan: JobPlan
    pickled: bytes
    """The operation: only who runs it must load what it needs."""
    options: ScanOptions
    nodes: dict[str, str]
    """Labels or resources (the value empty) of the nodes to be used; none: all nodes."""
    detached: bool
    alone: bool
    """Whether the job's processes do no other: nobody waits for them, or they load the user's own code."""

    @classmethod
    def of(
        cls, plan: JobPlan, operation: Operation, options: ScanOptions, nodes: dict[str, str], *, detached: bool
    ) -> Setup:
        ours = type(operation).__module__.startswith("uring_actors.")
        users = OP_USER_FIRST <= operation.opcode <= OP_USER_LAST
        alone = detached or users or not ours
        return cls(plan, cloudpickle.dumps(operation), options, nodes, detached, alone)

    def operation(self) -> Operation:
        made: Operation = cloudpickle.loads(self.pickled)
        return made


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pipeline's items can be had: ``actor.bundles(*args)``, once."""

    pipeline: str
    node: str
    actor: Any
    args: tuple[str, ...]

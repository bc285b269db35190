"""The protocol's constants for CUDA, generated from ``arena/abi.py``: one definition for both sides."""

from __future__ import annotations

from uring_actors.arena import abi


def constants() -> dict[str, int]:
    """Every integer of the ABI, by name."""
    return {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}


def cuda_header() -> str:
    """``#define UA_NAME value`` for each; values beyond 32 bits as unsigned long long."""
    lines = [f"#define UA_{name} {value}{'u' if value < 1 << 32 else 'ull'}" for name, value in constants().items()]
    return "\n".join(lines) + "\n"

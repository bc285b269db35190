"""NVRTC through NVIDIA's own bindings: whether CUDA source compiles for an architecture. No GPU is needed.

For authors of operations and for tests; the running kernel is compiled by CuPy (``cuda.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uring_actors.errors import PipelineError


class DoesNotCompile(Exception):
    """Its text is the compiler's report."""


def compile_log(source: str, architecture: str, options: Sequence[str]) -> str:
    """What NVRTC says of ``source`` for ``architecture`` (``"sm_90"``): nothing, or warnings.

    Raises DoesNotCompile, and PipelineError where NVRTC is not installed.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise PipelineError(
            "CUDA source can't be compiled: NVRTC is not installed",
            fix="pip install cuda-bindings nvidia-cuda-nvrtc",
        ) from error
    success: Any = nvrtc.nvrtcResult.NVRTC_SUCCESS
    status, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    if status != success:
        raise PipelineError(f"NVRTC failed: {status.name}")
    given = [option.encode() for option in (*options, f"--gpu-architecture={architecture}")]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size + 1)  # written to in place: never one of the one-byte objects that Python shares
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    text = log.rstrip(b"\0 \n").decode(errors="replace")
    if status != success:
        raise DoesNotCompile(text)
    return text

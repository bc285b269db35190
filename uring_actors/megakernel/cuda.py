"""The megakernel on an NVIDIA GPU: one persistent kernel (``kernel.cu``) that reads the arena in place.

Life: created → started (arena registered, source compiled, kernel launched) → closed (idempotent).

**While the kernel runs, nothing here may wait for it**: an allocation, a module load, a synchronising copy or
``cudaDeviceSynchronize`` behind a kernel that never ends would hang. Calls made while it runs:

    cudaStreamQuery          in ``failure`` and ``close``: asks, never waits

Everything else (cudaHostRegister, NVRTC, module load, cudaMalloc, cudaMemset, the launch) comes before, and
cudaStreamSynchronize, cudaFree and cudaHostUnregister after the stream was seen idle. The rest is the arena's
memory: SHUTDOWN in the control words ends the kernel, whoever sets it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.errors import OperationError, PipelineError
from uring_actors.megakernel import ring
from uring_actors.megakernel.nvrtc import DoesNotCompile, compile_log
from uring_actors.megakernel.protocol import cuda_header

_THREADS = 1024
_QUEUES = 5
_MAILBOX_WORDS = 32
_MAX_WORKERS = 192  # kernel.cu's
_REGISTER_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped
_END_SECONDS = 5.0

cupy: Any = None


@dataclass(frozen=True, slots=True)
class DeviceFunction:
    """A user operation's CUDA form. ``source`` defines ``name`` as docs/operations.md says; it leaves ``words`` words
    and runs for ``opcode``."""

    name: str
    opcode: int
    words: int
    source: str


_USER_MARK = "// USER OPERATIONS\n"
_USER_ARGUMENTS = {
    "payload": "const volatile u8*",
    "bytes": "u32",
    "before": "u32",
    "after": "u32",
    "offset": "u64",
    "state": "long long*",
}


def source(functions: Sequence[DeviceFunction] = ()) -> str:
    """The whole CUDA source: constants, then ``kernel.cu`` with the users' functions in their place."""
    kernel = (Path(__file__).parent / "kernel.cu").read_text()
    before, mark, after = kernel.partition(_USER_MARK)
    assert mark
    line = before.count("\n") + 2
    return f'{cuda_header()}#line 1 "kernel.cu"\n{before}{_user_part(functions)}#line {line} "kernel.cu"\n{after}'


def _user_part(functions: Sequence[DeviceFunction]) -> str:
    """Each function in a namespace of its own, under its own lines' numbers; then who is called for which opcode."""
    lines = []
    for i, function in enumerate(functions):
        lines += [f"namespace user_{i} {{", f'#line 1 "{function.name}.cu"', function.source, "}"]
    lines += ['#line 1 "user operations"', "__device__ u32 user_words(u32 opcode) {", "switch (opcode) {"]
    lines += [f"case {function.opcode}u: return {function.words}u;" for function in functions]
    parameters = ", ".join(f"{kind} {name}" for name, kind in _USER_ARGUMENTS.items())
    lines += ["default: return 0;", "}", "}", f"__device__ void user_operation(u32 opcode, {parameters}) {{"]
    lines += ["switch (opcode) {"]
    for i, function in enumerate(functions):
        call = f"user_{i}::{function.name}({', '.join(_USER_ARGUMENTS)})"
        lines += [f'#line 1 "the call of {function.name}"', f"case {function.opcode}u: {call}; return;"]
    return "\n".join([*lines, "default: return;", "}", "}", ""])


def compile_options() -> tuple[str, ...]:
    """NVRTC's options, for every architecture."""
    return ("--std=c++17",)


def check(functions: Sequence[DeviceFunction], architecture: str) -> None:
    """Compile the kernel with these functions for ``architecture``, by NVRTC; no GPU is needed.

    Raises OperationError with the compiler's report, in the users' own line numbers; PipelineError where NVRTC is
    missing.
    """
    try:
        compile_log(source(functions), architecture, compile_options())
    except DoesNotCompile as error:
        raise _does_not_compile(functions, str(error)) from error


def _does_not_compile(functions: Sequence[DeviceFunction], report: str) -> OperationError:
    names = ", ".join(function.name for function in functions)
    return OperationError(names, f"its CUDA form does not compile\n{report}")


def looks_possible() -> bool:
    """Whether it is worth a look: the driver's device is there. Importing CuPy takes a second."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


@cache
def unavailable() -> str | None:
    """Why no GPU can be used by this process; None where one can."""
    global cupy
    # Loaded lazily, modules would be loaded behind the running kernel, and hang.
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    try:
        import cupy as loaded
    except ImportError:
        return "CuPy is not installed (pip install 'uring-actors[cuda12]' or '[cuda13]')"
    try:
        if loaded.cuda.runtime.getDeviceCount() == 0:
            return "no CUDA device is visible (CUDA_VISIBLE_DEVICES?)"
        major = loaded.cuda.runtime.getDeviceProperties(0)["major"]
    except loaded.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not work here: {error}"
    if major < 7:
        return f"the GPU has compute capability {major}.x, and 7.0 is needed"
    cupy = loaded
    return None


class CudaKernel:
    """The megakernel on the current GPU, over one arena.

    blocks: the grid, scheduler included; at most, and by default, one block for each multiprocessor, since all
    must be resident. functions: users' operations, to be compiled in.
    """

    def __init__(self, arena: Arena, *, blocks: int | None = None, functions: Sequence[DeviceFunction] = ()) -> None:
        reason = unavailable()
        if reason is not None:
            raise PipelineError(f"the kernel can't run on a GPU: {reason}", fix="Use backend='cpu' or 'auto'.")
        self._arena = arena
        self._book = arena.address_book()
        self._functions = functions
        multiprocessors = cupy.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"]
        self._blocks = min(blocks or multiprocessors, multiprocessors, _MAX_WORKERS + 1)
        self._memory: list[Any] = []
        self._stream: Any = None
        self._registered = False
        self._failure: BaseException | None = None

    def start(self) -> None:
        layout = self._arena.layout
        cupy.cuda.runtime.hostRegister(self._arena.address, layout.total, _REGISTER_MAPPED)
        self._registered = True
        module = cupy.RawModule(code=source(self._functions), options=compile_options())
        try:
            function = module.get_function("megakernel")
        except cupy.cuda.compiler.CompileException as error:
            if self._functions:
                raise _does_not_compile(self._functions, str(error)) from error
            raise
        sizes = (_QUEUES * layout.ring_slots, 16 * layout.ring_slots, _MAILBOX_WORDS * self._blocks, self._blocks)
        memory = [cupy.zeros(size, cupy.uint32) for size in sizes]
        self._memory = [module, *memory]
        base = cupy.cuda.runtime.pointerGetAttributes(self._arena.address).devicePointer
        offsets = (layout.control, layout.state, layout.ring, layout.results, layout.data, layout.log)
        first = int(self._arena.words(layout.state + abi.STATE_CLAIM, 1)[0])
        arguments = (
            *(np.uint64(base + offset) for offset in offsets),
            np.uint64(layout.result_bytes),
            np.uint64(layout.slot_bytes),
            np.uint32(layout.ring_slots - 1),
            np.uint32(first),
            *memory,
        )
        cupy.cuda.runtime.deviceSynchronize()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with self._stream:
            function((self._blocks,), (_THREADS,), arguments)

    @property
    def failure(self) -> BaseException | None:
        """What ended the kernel on the device, if anything did; asks the stream, never waits."""
        if self._failure is None and self._stream is not None and not ring.shutting_down(self._book):
            try:
                if self._stream.done:
                    self._failure = PipelineError("the megakernel ended by itself")
            except cupy.cuda.runtime.CUDARuntimeError as error:
                self._failure = PipelineError(f"the megakernel failed on the GPU: {error}")
        return self._failure

    def close(self) -> None:
        """Set SHUTDOWN, wait for the kernel's end, free what it used. Where it does not end within 5 s its memory
        stays registered (the device may still write to it), and PipelineError is raised."""
        if not self._registered:
            return
        ring.shut_down(self._book)
        deadline = time.monotonic() + _END_SECONDS
        while self._stream is not None and not self._ended():
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"the megakernel did not end within {_END_SECONDS:.0f} s of SHUTDOWN",
                    fix="The GPU hangs: end this process; nvidia-smi shows whether the device recovered.",
                )
            time.sleep(0.0005)
        self._registered = False
        self._memory.clear()
        try:
            cupy.cuda.runtime.hostUnregister(self._arena.address)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            self._failure = self._failure or PipelineError(f"the megakernel failed on the GPU: {error}")

    def _ended(self) -> bool:
        try:
            return bool(self._stream.done)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            self._failure = self._failure or PipelineError(f"the megakernel failed on the GPU: {error}")
            return True

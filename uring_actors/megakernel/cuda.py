"""The megakernel on an NVIDIA GPU: one persistent kernel (``kernel.cu``) that reads the arena in place.

Life: created → started (arena registered, source compiled, kernel launched) → closed (idempotent).

**While the kernel runs, nothing here may wait for it**: an allocation, a module load, a synchronising copy or
``cudaDeviceSynchronize`` behind a kernel that never ends would hang. Calls made while it runs:

    cudaStreamQuery          in ``failure``, ``load`` and ``close``: asks, never waits
    cudaMemcpyAsync          in ``load``: from pinned memory, on a stream of its own

Everything else (cudaHostRegister, cudaHostAlloc, NVRTC, module load, cudaMalloc, cudaMemset, the launch) comes
before, and cudaFree and cudaHostUnregister after the stream was seen idle. The rest is the arena's memory: SHUTDOWN
in the control words ends the kernel, whoever sets it; ``atexit`` does where nobody else has, and a killed process
takes its kernel with it (the driver ends what a context has running).

A kernel that hangs is noticed by ``failure``: slots are published, and DONE_COUNT has not moved for ``HANG_SECONDS``.
"""

from __future__ import annotations

import atexit
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
from uring_actors.megakernel import crc32c, protocol, ring
from uring_actors.megakernel.nvrtc import DoesNotCompile, compile_log
from uring_actors.megakernel.protocol import cuda_header
from uring_actors.ops.match.automaton import TABLE_BYTES, Automata

_THREADS = 1024
_QUEUES = 5
_MAILBOX_WORDS = 32
_MAX_WORKERS = 192  # kernel.cu's
_REGISTER_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped
_END_SECONDS = 5.0
HANG_SECONDS = 5.0
"""Without a finished slot, while some are published, until the kernel counts as hanging."""
_SETS_BYTES = TABLE_BYTES + (1 << 20)
_STAGING_BYTES = 4 << 20

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


def crc_tables() -> np.ndarray[Any, np.dtype[np.uint32]]:
    """CRC32C's tables as ``protocol.CRC_*`` lays them out."""
    tables = np.zeros(protocol.CRC_WORDS, np.uint32)
    for place in range(16):
        behind = crc32c.factor(15 - place)
        tables[256 * place : 256 * (place + 1)] = [crc32c.multiply(behind, crc32c.of_byte(b)) for b in range(256)]
    stride = crc32c.factor_table(crc32c.factor(16 * (_THREADS - 1)))
    tables[protocol.CRC_STRIDE_WORD : protocol.CRC_POWERS_WORD] = stride.reshape(-1)
    tables[protocol.CRC_POWERS_WORD :] = [crc32c.factor(1 << k) for k in range(32)]
    return tables


class _Sets:
    """Where pattern sets lie in the device's memory: entries first, then tables; first fit."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, int]] = {}

    def place(self, automata: Automata) -> tuple[int, int, np.ndarray[Any, np.dtype[np.uint32]], bytes]:
        """Its number, where its tables begin, its entry and its tables. Raises PipelineError: there is no room."""
        number = next((n for n in range(protocol.SETS) if n not in self._taken), None)
        begin = protocol.SETS * protocol.SET_WORDS * 4
        for start, stop in sorted(self._taken.values()):
            if start - begin >= automata.size + 1024:
                break
            begin = stop
        if number is None or begin + automata.size + 1024 > _SETS_BYTES:
            raise PipelineError(
                f"no room on the GPU for a pattern set of {automata.size >> 20} MiB beside {len(self._taken)} others",
                fix="Scan with fewer patterns at a time.",
            )
        entry = np.zeros(protocol.SET_WORDS, np.uint32)
        blob = bytearray()
        tables: tuple[np.ndarray[Any, Any], ...] = (automata.classes, automata.next, automata.first, automata.accepts)
        for word, table in enumerate(tables, protocol.SET_CLASSES_WORD):
            entry[word] = begin + len(blob)
            blob += table.tobytes()
            blob += bytes(-len(blob) % 256)
        entry[protocol.SET_LOADED_WORD] = 1
        entry[protocol.SET_GROUPS_WORD] = automata.groups
        entry[protocol.SET_SHIFT_WORD] = automata.shift
        entry[protocol.SET_DEPTH_WORD] = automata.depth
        entry[protocol.SET_ROOTS_WORD : protocol.SET_ROOTS_WORD + automata.groups] = automata.roots
        self._taken[number] = (begin, begin + len(blob))
        return number, begin, entry, bytes(blob)

    def free(self, number: int) -> None:
        del self._taken[number]


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
        self._sets = _Sets()
        self._early: list[tuple[int, bytes]] = []  # copies to the sets' memory that wait for the start
        self._device_sets: Any = None
        self._staging: Any = None
        self._copies: Any = None
        self._stream: Any = None
        self._watched = (-1, 0.0)
        self._none_unfinished = 0
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
        function.max_dynamic_shared_size_bytes = protocol.SCRATCH_BYTES
        sizes = (
            _QUEUES * layout.ring_slots,
            16 * layout.ring_slots,
            _MAILBOX_WORDS * self._blocks,
            self._blocks,
            1,  # the debug log's cursor
            _SETS_BYTES // 4,
        )
        memory = [cupy.zeros(size, cupy.uint32) for size in sizes] + [cupy.asarray(crc_tables())]
        self._device_sets = memory[5]
        self._staging = cupy.cuda.alloc_pinned_memory(_STAGING_BYTES)
        self._copies = cupy.cuda.Stream(non_blocking=True)
        self._memory = [module, *memory]
        base = cupy.cuda.runtime.pointerGetAttributes(self._arena.address).devicePointer
        offsets = (
            layout.control,
            layout.state,
            layout.ring,
            layout.results,
            layout.newlines,
            layout.data,
            layout.log,
        )
        first = int(self._arena.words(layout.state + abi.STATE_CLAIM, 1)[0])
        arguments = (
            *(np.uint64(base + offset) for offset in offsets),
            np.uint64(layout.result_bytes),
            np.uint64(layout.newline_bytes),
            np.uint64(layout.slot_bytes),
            np.uint32(layout.ring_slots - 1),
            np.uint32(layout.slots),
            np.uint32(first),
            *memory,
        )
        for offset, data in self._early:
            self._copy(offset, data)
        self._early.clear()
        # What a start finds published, from ``first`` on, is to be done as well.
        self._none_unfinished = (first - self._unfinished()[1]) & abi.WRAP
        cupy.cuda.runtime.deviceSynchronize()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with self._stream:
            function((self._blocks,), (_THREADS,), arguments, shared_mem=protocol.SCRATCH_BYTES)
        atexit.register(self._shut_down)

    def load(self, automata: Automata) -> int:
        """Lay a pattern set's tables into the device's memory, before the start or while the kernel runs; its number,
        for slots' operation parameter. Raises PipelineError where there is no room."""
        number, begin, entry, tables = self._sets.place(automata)
        # The entry last: whoever sees it sees the tables.
        for offset, data in ((begin, tables), (number * protocol.SET_WORDS * 4, entry.tobytes())):
            self._put(offset, data)
        return number

    def unload(self, number: int) -> None:
        """Give a set's room back. No slot that names it may be published or running; one that does later is FAULT."""
        self._put(number * protocol.SET_WORDS * 4, bytes(protocol.SET_WORDS * 4))
        self._sets.free(number)

    def _put(self, offset: int, data: bytes) -> None:
        if self._device_sets is None:
            self._early.append((offset, data))
        else:
            self._copy(offset, data)

    def _copy(self, offset: int, data: bytes) -> None:
        """Copy to the sets' memory, through pinned memory, without waiting for anything but this copy."""
        for start in range(0, len(data), _STAGING_BYTES):
            piece = data[start : start + _STAGING_BYTES]
            np.frombuffer(self._staging, np.uint8, len(piece))[:] = np.frombuffer(piece, np.uint8)
            target = self._device_sets.data.ptr + offset + start
            cupy.cuda.runtime.memcpyAsync(target, self._staging.ptr, len(piece), 1, self._copies.ptr)
            while not self._copies.done:
                time.sleep(0.000_05)

    @property
    def failure(self) -> BaseException | None:
        """What ended the kernel on the device, if anything did, or that it hangs; asks the stream, never waits."""
        if self._failure is None and self._stream is not None and not ring.shutting_down(self._book):
            try:
                if self._stream.done:
                    self._failure = PipelineError("the megakernel ended by itself")
                elif self._hangs():
                    self._failure = PipelineError(
                        f"the megakernel hangs: slots are published, and none was finished for {HANG_SECONDS:.0f} s",
                        fix="Scan again; if it happens again, nvidia-smi and dmesg (Xid) say what the GPU reports.",
                    )
            except cupy.cuda.runtime.CUDARuntimeError as error:
                self._failure = PipelineError(f"the megakernel failed on the GPU: {error}")
        return self._failure

    def _shut_down(self) -> None:
        ring.shut_down(self._book)

    def _unfinished(self) -> tuple[int, int]:
        """Slots published and not finished, modulo 2³², plus a constant; and DONE_COUNT."""
        layout = self._arena.layout
        done = int(self._arena.words(layout.control, abi.CONTROL_WORDS)[abi.CONTROL_DONE_COUNT_WORD])
        return (int(self._arena.words(layout.state + abi.STATE_TAIL, 1)[0]) - done) & abi.WRAP, done

    def _hangs(self) -> bool:
        """Whether published slots have waited for ``HANG_SECONDS`` without one being finished."""
        unfinished, done = self._unfinished()
        now = time.monotonic()
        if done != self._watched[0] or unfinished == self._none_unfinished:
            self._watched = (done, now)
        return now - self._watched[1] >= HANG_SECONDS

    def close(self) -> None:
        """Set SHUTDOWN, wait for the kernel's end, free what it used. Where it does not end within 5 s its memory
        stays registered (the device may still write to it), and PipelineError is raised."""
        if not self._registered:
            return
        self._shut_down()
        atexit.unregister(self._shut_down)
        deadline = time.monotonic() + _END_SECONDS
        while self._stream is not None and not self._ended():
            if self._failure is not None:  # said already; a kernel that hangs never ends, and keeps its memory
                return
            if time.monotonic() > deadline:
                raise PipelineError(
                    f"the megakernel did not end within {_END_SECONDS:.0f} s of SHUTDOWN",
                    fix="The GPU hangs: end this process; nvidia-smi shows whether the device recovered.",
                )
            time.sleep(0.0005)
        self._registered = False
        self._memory.clear()
        self._device_sets = self._staging = self._copies = None
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

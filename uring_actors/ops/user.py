"""Operations of the user's own: ``@uring_actors.operation``.

    @ua.operation(cuda=SOURCE)
    def zeros(payload):                  # a NumPy array of the extent's bytes
        count = 0
        for byte in payload:
            count += byte == 0
        return count                     # the state: one whole number, or a tuple of them

    ua.scan("/data", operation=zeros)    # rows: path, bytes, zeros

The function runs in the kernel's threads, compiled by Numba where that can be; what it leaves of an extent, its
*state*, is combined with the neighbours' and becomes the file's row in the settling thread (``ops/reduction.py``).
docs/operations.md has the whole contract, the CUDA form's included.

Everything that a user's function raises becomes a row in ``errors`` that names the operation, the file, the offset
and the line; the scan goes on.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import ModuleType
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.errors import OperationError, OptionError
from uring_actors.megakernel import cuda as cuda_kernel
from uring_actors.megakernel import ring
from uring_actors.megakernel.cpu import NO_PARAMETERS, Refused, Worker
from uring_actors.megakernel.cuda import DeviceFunction
from uring_actors.ops.base import Settler
from uring_actors.ops.reduction import Reduction, ReductionSettler, State, Words
from uring_actors.plan import FileEntry
from uring_actors.results.errors import Failure

MAX_HALO: Final = 32 << 10
"""Half of the smallest data slot."""

_EXTRA: Final = ("before", "after", "offset")
"""What a function may ask for beside the payload, by the name of its parameter."""
_COMBINE: Final[dict[str, Callable[[int, int], int]]] = {"sum": operator.add, "min": min, "max": max}


@dataclass(frozen=True, slots=True)
class Definition:
    """What ``operation`` was given. Raises OptionError for what makes no sense."""

    function: Callable[..., Any]
    name: str
    state: tuple[str, ...]
    combine: str | Callable[[Any, Any], Any]
    finish: Callable[[Any, int], Any] | None
    schema: pa.Schema | None
    empty: State
    halo: int
    compiled: bool | str
    cuda: str | None
    opcode: int | None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise OptionError(f"an operation is made of a function, not of {self.function!r}")
        for problem, fix in self._problems():
            raise OptionError(f"operation {self.name!r}: {problem}", fix=fix)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The function's; the first is the payload."""
        return tuple(inspect.signature(self.function).parameters)

    @property
    def columns(self) -> tuple[str, ...]:
        """The operation's own, after path and bytes."""
        return self.state if self.schema is None else tuple(self.schema.names)

    def _problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong, and what to do about it."""
        extra, columns = self.parameters[1:], self.columns
        if not self.name.isidentifier() or not self.name.isascii():
            yield "its name is no identifier", "Give one as name=…."
        if not self.parameters or set(extra) - set(_EXTRA):
            taken = f"It takes the payload, then any of {', '.join(_EXTRA)}."
            yield f"its function takes ({', '.join(self.parameters)})", taken
        if not 1 <= len(self.state) <= abi.USER_WORDS:
            yield f"its state has {len(self.state)} words", f"It has from 1 to {abi.USER_WORDS}."
        if len(set(columns)) < len(columns) or {"path", "bytes"} & set(columns):
            yield f"its columns are {', '.join(columns)}", "Each has another name, and none is path or bytes."
        if not callable(self.combine) and self.combine not in _COMBINE:
            yield f"combine is {self.combine!r}", f"It is one of {', '.join(_COMBINE)}, or a function."
        if self.finish is not None and self.schema is None:
            yield "it has finish, but no schema", "Give the columns of what finish returns as schema=…."
        if self.finish is None and len(columns) != len(self.state):
            fix = "Give one column each, or finish=… to make them."
            yield f"its schema has {len(columns)} columns for {len(self.state)} words", fix
        if not isinstance(self.halo, int) or not 0 <= self.halo <= MAX_HALO:
            yield f"its halo is {self.halo!r}", f"It is from 0 to {MAX_HALO} bytes."
        elif ("after" in extra) != (self.halo > 0):
            had = "a" if "after" in extra else "no"
            fix = "The halo's bytes come as the parameter 'after': have both or neither."
            yield f"its halo is {self.halo} bytes, and its function has {had} parameter 'after'", fix
        if self.compiled not in (True, False, "auto"):
            yield f"compiled is {self.compiled!r}", "It is True, False or 'auto'."
        first, last = abi.OP_USER_FIRST, abi.OP_USER_LAST
        if self.opcode is not None and not first <= self.opcode <= last:
            yield f"its opcode is {self.opcode:#x}", f"Users' are from {first:#x} to {last:#x}."
        try:
            as_words(self.empty, len(self.state))
        except (TypeError, ValueError) as error:
            yield f"empty is {self.empty!r}: {error}", "It is a state, as the function returns it."


class UserOperation(Reduction):
    """What ``operation`` makes. Calling it calls the function. Picklable, with the code of the module it is from."""

    def __init__(self, definition: Definition) -> None:
        assert definition.opcode is not None
        self._given = definition
        self.function, self.name, self.opcode = definition.function, definition.name, definition.opcode
        self.words, self.halo = len(definition.state), definition.halo
        self.lead = "before" in definition.parameters
        self.on_gpu = definition.cuda is not None
        if definition.cuda is not None:
            self.device_functions = (DeviceFunction(self.name, self.opcode, self.words, definition.cuda),)
        self._fields: list[pa.Field] = (
            [pa.field(name, pa.int64(), nullable=False) for name in definition.state]
            if definition.schema is None
            else list(definition.schema)
        )
        self._faults: WeakKeyDictionary[Arena, dict[int, OperationError]] = WeakKeyDictionary()
        """By arena and data slot: what the function raised."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.function(*args, **named)

    def __repr__(self) -> str:
        return f"<uring_actors operation {self.name!r}, opcode {self.opcode:#x}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from ray import cloudpickle  # Ray is what carries operations to other processes

        # By value: the other process need not be able to import what the user's functions are from.
        with _by_value(sys.modules.get(self.function.__module__)):
            given = {field.name: getattr(self._given, field.name) for field in fields(Definition)}
            return _restore, (cloudpickle.dumps(given),)

    # ── the CPU form ─────────────────────────────────────────────────────────────────────────────────────────
    @cached_property
    def _form(self) -> tuple[Callable[..., Any], str | None]:
        """What runs, and why it is not compiled where that was left open."""
        if self._given.compiled is False:
            return self.function, None
        try:
            return _compile(self._given), None
        except OperationError:
            if self._given.compiled is True:
                raise
            why = f"operation {self.name!r} runs as Python: Numba can't compile it (compiled=True says why)"
            return self.function, why

    def prepare(self) -> None:
        """Compile. Raises OperationError, with the user's own lines, where ``compiled=True`` can't be had."""
        _ = self._form

    @property
    def notes(self) -> Sequence[str]:
        return [note for note in (self._form[1],) if note]

    @property
    def is_compiled(self) -> bool:
        """Whether the CPU form is machine code."""
        return self._form[0] is not self.function

    def make_worker(self, arena: Arena) -> Worker:
        return UserWorker(arena, self._given, self._form[0], self._faults_of(arena))

    def make_settler(self, arena: Arena, payload: int) -> Settler:
        return UserSettler(arena, self, payload, self._faults_of(arena))

    def _faults_of(self, arena: Arena) -> dict[int, OperationError]:
        return self._faults.setdefault(arena, {})

    # ── the CUDA form ────────────────────────────────────────────────────────────────────────────────────────
    def check_cuda(self, architecture: str = "sm_90") -> None:
        """Compile the CUDA form for an architecture, with NVRTC; no GPU is needed.

        Raises OperationError, with the user's own line numbers, where it doesn't compile; OptionError where there is
        none; PipelineError where NVRTC is not installed.
        """
        if not self.device_functions:
            raise OptionError(f"operation {self.name!r} has no CUDA form", fix="Give its source as cuda=….")
        cuda_kernel.check(self.device_functions, architecture)

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def empty(self) -> State:
        words = as_words(self._given.empty, self.words)
        return words[0] if self.words == 1 else tuple(words)

    def load(self, words: Words) -> State:
        found = words.tolist()
        return found[0] if len(found) == 1 else tuple(found)

    def combine(self, left: State, right: State) -> State:
        with self._blamed("combine"):
            combine = self._given.combine
            if not callable(combine):
                one = _COMBINE[combine]
                return one(left, right) if self.words == 1 else tuple(map(one, left, right))
            found = as_words(combine(left, right), self.words)
            return found[0] if self.words == 1 else tuple(found)

    def finish(self, state: State, size: int) -> Any:
        """The row's values, in the columns' order, each of a type that its column takes."""
        names = self._given.columns
        with self._blamed("finish"):
            values = state if self._given.finish is None else self._given.finish(state, size)
            if isinstance(values, dict):
                if set(values) != set(names):
                    raise ValueError(f"it returned {', '.join(map(str, values))} for the columns {', '.join(names)}")
                values = [values[name] for name in names]
            elif not isinstance(values, (tuple, list)):
                values = [values]
            if len(values) != len(names):
                raise ValueError(f"it returned {len(values)} values for the columns {', '.join(names)}")
            return [pa.scalar(value, field.type) for value, field in zip(values, self._fields, strict=True)]

    @property
    def fields(self) -> list[pa.Field]:
        return self._fields

    def columns(self, values: list[Any]) -> list[pa.Array]:
        columns = zip(*values, strict=True)
        return [
            pa.array([value.as_py() for value in column], field.type)
            for column, field in zip(columns, self._fields, strict=True)
        ]

    @contextmanager
    def _blamed(self, which: str) -> Iterator[None]:
        """An exception of the user's function ``which`` as an OperationError."""
        try:
            yield
        except Exception as error:
            raise OperationError(self.name, f"{which} failed: {described(error)}") from error


class UserWorker:
    """One kernel thread's part of a user's operation."""

    parameters = NO_PARAMETERS

    def __init__(
        self,
        arena: Arena,
        definition: Definition,
        function: Callable[..., Any],
        faults: dict[int, OperationError],
    ) -> None:
        layout = arena.layout
        self._view = arena.view
        self._data, self._slot_bytes = layout.data, layout.slot_bytes
        self._results, self._result_bytes = layout.results, layout.result_bytes
        self._name, self._count, self._halo = definition.name, len(definition.state), definition.halo
        self._function, self._extra = function, definition.parameters[1:]
        self._lead = "before" in self._extra
        self._faults = faults

    def run(self, slot: Sequence[int]) -> None:
        data_slot, size = slot[abi.SLOT_DATA_SLOT // 4], slot[abi.SLOT_PAYLOAD_BYTES // 4]
        offset = slot[abi.SLOT_FILE_OFFSET // 4] | slot[abi.SLOT_FILE_OFFSET // 4 + 1] << 32
        start = self._data + data_slot * self._slot_bytes + slot[abi.SLOT_PAYLOAD_OFFSET // 4]
        before, after = 1 if offset and self._lead else 0, min(self._halo, slot[abi.SLOT_HALO_BYTES // 4])
        # Made anew for each slot: a view that is kept would keep the arena.
        memory = self._view[start - before : start + size + after].toreadonly()
        text = np.frombuffer(memory, np.uint8)
        given = {"before": text[:before], "after": text[before + size :], "offset": offset}
        try:
            extra = [given[name] for name in self._extra]
            state = as_words(self._function(text[before : before + size], *extra), self._count)
            at = self._results + data_slot * self._result_bytes + abi.RESULT_VALUES
            struct.pack_into(f"<{self._count}q", self._view, at, *state)
        except Exception as error:
            self._faults[data_slot] = OperationError(self._name, described(error), offset=offset)
            raise Refused from error


class UserSettler(ReductionSettler):
    """The settler, with what the user's function raised."""

    def __init__(
        self, arena: Arena, operation: UserOperation, payload: int, faults: dict[int, OperationError]
    ) -> None:
        super().__init__(arena, operation, payload)
        self._faults = faults

    def fault(self, entry: FileEntry, row: Sequence[int]) -> Failure:
        error = self._faults.pop(row[ring.COLUMN_DATA_SLOT], None)
        return super().fault(entry, row) if error is None else Failure.from_error(error, path=entry.path)


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────
_registered: dict[int, UserOperation] = {}
_registering = threading.Lock()


def operation(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    state: str | Iterable[str] | None = None,
    combine: str | Callable[[Any, Any], Any] = "sum",
    finish: Callable[[Any, int], Any] | None = None,
    schema: pa.Schema | Iterable[pa.Field] | None = None,
    empty: int | tuple[int, ...] | None = None,
    halo: int = 0,
    compiled: bool | str = "auto",
    cuda: str | None = None,
    opcode: int | None = None,
) -> Any:
    """Make an operation of a function over bytes, and register it under an opcode. A decorator.

    function: takes ``payload``, the extent's bytes as a read-only uint8 array (not to be kept: the memory is used
        again), and, where it has parameters of these names, ``offset`` (of the payload in its file), ``before`` (the
        byte before the payload; none at the file's start) and ``after`` (up to ``halo`` bytes that follow it).
        Returns the extent's state: an int, or a tuple or array of as many as ``state`` names; 64 bits, signed.
    name: of the operation, and of the CUDA function; the function's name by default.
    state: the names of the state's words; by default one, named as the operation.
    combine: ``"sum"``, ``"min"`` or ``"max"`` of each word, or a function of the states of two neighbours, the left
        one first, which returns theirs. It must be associative: it is not said which neighbours meet first.
    finish: a function of a file's state and size; the row's values, as a dict, in order, or one alone. By default the
        state's words are the values.
    schema: the columns of these values, after path and bytes; int64 columns named as the state's words by default.
    empty: the state of a file without bytes; zeros by default.
    halo: how many bytes beyond the payload the function sees, where the file has them.
    compiled: True: by Numba, or OperationError; False: as it is, which may be NumPy; ``"auto"``: by Numba where it
        can compile it, else as it is, with a note.
    cuda: the CUDA form's source: it defines a function ``name`` (docs/operations.md says which).
    opcode: 0x10000 to 0x3FFFFFFF; the next free one by default.

    Raises OptionError for what makes no sense. Numba compiles at the first scan.
    """

    def make(function: Callable[..., Any]) -> UserOperation:
        called = str(name or getattr(function, "__name__", ""))
        words = (called,) if state is None else (state,) if isinstance(state, str) else tuple(state)
        given = Definition(
            function=function,
            name=called,
            state=words,
            combine=combine,
            finish=finish,
            schema=None if schema is None else pa.schema(schema),
            empty=(0,) * len(words) if empty is None else empty,
            halo=halo,
            compiled=compiled,
            cuda=cuda,
            opcode=opcode,
        )
        with _registering:
            made = UserOperation(replace(given, opcode=_opcode_for(given)))
            _registered[made.opcode] = made
        return made

    return make if function is None else make(function)


def load(spelled: str) -> Reduction:
    """The operation that ``MODULE:NAME`` names, as the command line has it; the current directory is looked in first.

    Raises OptionError where there is none.
    """
    module_name, _, name = spelled.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (OptionError, OperationError):
        raise
    except Exception as error:
        raise OptionError(f"can't load the operation {spelled}: {described(error)}") from error
    if not isinstance(found, Reduction):
        raise OptionError(
            f"{spelled} is {type(found).__name__}, not an operation", fix="Make it one with @uring_actors.operation."
        )
    return found


def as_words(state: Any, count: int) -> list[int]:
    """A state as a function returned it, as ``count`` whole numbers of 64 bits. Raises TypeError and ValueError."""
    if isinstance(state, np.ndarray):
        state = state.tolist()
    values = list(state) if isinstance(state, (tuple, list)) else [state]
    if len(values) != count:
        raise ValueError(f"a state has {count} words, and {len(values)} were returned")
    found = [operator.index(value) for value in values]
    for value in found:
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{value} does not fit a word of 64 bits, signed")
    return found


def described(error: BaseException) -> str:
    """``ValueError: text (file.py, line 7)``: the place is the deepest that is not ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_PACKAGE)]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


_PACKAGE: Final = __file__.removesuffix("ops/user.py")


def _restore(pickled: bytes) -> UserOperation:
    from ray import cloudpickle

    return UserOperation(Definition(**cloudpickle.loads(pickled)))


@contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Within the block, functions of ``module`` are pickled with their code."""
    from ray import cloudpickle

    if module is None or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _opcode_for(given: Definition) -> int:
    """The opcode asked for; else the one that the same operation had (a notebook's cell, run again), or the next."""
    same = [opcode for opcode, known in _registered.items() if _same(known, given)]
    if given.opcode is None:
        free = (code for code in range(abi.OP_USER_FIRST, abi.OP_USER_LAST + 1) if code not in _registered)
        return same[0] if same else next(free)
    known = _registered.get(given.opcode)
    if known is not None and given.opcode not in same:
        raise OptionError(
            f"operation {given.name!r}: opcode {given.opcode:#x} is that of {known.name!r}",
            fix="Leave opcode out, or take another.",
        )
    return given.opcode


def _same(known: UserOperation, given: Definition) -> bool:
    ours = (given.name, getattr(given.function, "__module__", None))
    return (known.name, getattr(known.function, "__module__", None)) == ours


# ── Numba ────────────────────────────────────────────────────────────────────────────────────────────────────
def _compile(given: Definition) -> Callable[..., Any]:
    """The function as machine code that runs without the GIL. Raises OperationError with Numba's report, which shows
    the user's own lines."""
    import numba
    from numba import types

    text = types.Array(types.uint8, 1, "C", readonly=True)
    signature = (text, *(types.int64 if extra == "offset" else text for extra in given.parameters[1:]))
    compiled = numba.njit(nogil=True)(getattr(given.function, "py_func", given.function))
    try:
        compiled.compile(signature)
    except Exception as error:  # not all that Numba raises is a NumbaError
        report = str(error).partition("\nThis error may have been caused")[0].strip()
        raise OperationError(
            given.name, f"Numba can't compile it\n{report}", fix="With compiled=False it runs as Python."
        ) from error
    returned, words = compiled.overloads[signature].signature.return_type, len(given.state)
    if not _is_state(returned, words):
        code = given.function.__code__
        raise OperationError(
            given.name,
            f"its function returns {returned} ({code.co_filename}, line {code.co_firstlineno})",
            fix=f"A state is {'a whole number' if words == 1 else f'a tuple of {words} whole numbers'}.",
        )
    return cast("Callable[..., Any]", compiled)


def _is_state(returned: Any, words: int) -> bool:
    from numba import types

    whole = (types.Integer, types.Boolean, types.IntegerLiteral)
    if isinstance(returned, (types.UniTuple, types.Tuple)):
        return len(returned) == words and all(isinstance(one, whole) for one in returned)
    if isinstance(returned, types.Array):
        return returned.ndim == 1 and isinstance(returned.dtype, whole)
    return words == 1 and isinstance(returned, whole)

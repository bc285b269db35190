"""A device in Python: what the CUDA kernel promises the host, word by word and from SPEC's text; shares no code with
the kernels. It has ``CudaKernel``'s interface, so that the host's side of the GPU runs where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
from crc32c import crc32c

from uring_actors.arena import abi
from uring_actors.arena.memory import Arena
from uring_actors.ops.match.automaton import Automata, search

ARGUMENTS = {0: 0, 1: 2, 2: 2, 3: 2, 4: 3, 6: 4, 0xFFFE: 4}
"""Of what may stand in a packed slot."""


class Refusal(Exception):
    pass


class MockDevice:
    """Runs slots one at a time, in the order of their positions."""

    def __init__(self, arena: Arena, *, blocks: int | None = None, functions: Sequence[object] = ()) -> None:
        layout = arena.layout
        assert not functions, "user operations need a compiler"
        self.arena = arena
        self.control = arena.words(layout.control, abi.CONTROL_WORDS)
        self.ring = arena.words(layout.ring, layout.ring_slots * 16).reshape(-1, 16)
        self.order = arena.words(layout.order, layout.ring_slots)
        self.tail = arena.words(layout.state + abi.STATE_TAIL, 1)
        self.claim = arena.words(layout.state + abi.STATE_CLAIM, 1)
        self.log = arena.words(layout.log, abi.LOG_BYTES // 4)
        self.data = np.frombuffer(arena.view, np.uint8, layout.slots * layout.slot_bytes, layout.data)
        self.sets: dict[int, Automata] = {}
        self.failure: BaseException | None = None
        self.hanging = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def load(self, automata: Automata) -> int:
        number = next(n for n in range(16) if n not in self.sets)
        self.sets[number] = automata
        return number

    def unload(self, number: int) -> None:
        del self.sets[number]

    def start(self) -> None:
        self._position = int(self.claim[0])
        self._thread.start()

    def close(self) -> None:
        self.control[abi.CONTROL_SHUTDOWN_WORD] = 1
        if self._thread.is_alive():
            self._thread.join(10)
        # Views of the arena must not outlive it.
        for name in ("control", "ring", "order", "tail", "claim", "log", "data"):
            setattr(self, name, np.zeros(1, np.uint32))

    def _run(self) -> None:
        try:
            while not self.control[abi.CONTROL_SHUTDOWN_WORD]:
                if self.hanging or self._position == int(self.tail[0]):
                    time.sleep(0.0002)
                    continue
                self._slot(self.ring[self.order[self._position % len(self.order)]])
                self._position = (self._position + 1) % (1 << 32)
                self.claim[0] = self._position
        except BaseException as error:
            self.failure = error

    def _slot(self, words: np.ndarray) -> None:
        assert words[0] == abi.PUBLISHED
        words[0] = abi.CLAIMED
        opcode, tenant = int(words[1]), int(words[2])
        status = abi.DONE
        try:
            if tenant >= 30 or self.control[abi.CONTROL_TENANT_MASK_WORD + tenant]:
                raise Refusal(abi.REASON_TENANT)
            self._operation(opcode, words[4:].tolist(), words.tolist())
            self.control[abi.CONTROL_METRICS_WORD + opcode % 32] += 1
        except Refusal as refusal:
            status = abi.FAULT
            words[3] = refusal.args[0]
        self.control[abi.CONTROL_DONE_COUNT_WORD] += 1
        words[0] = status

    def _operation(self, opcode: int, args: list[int], slot: list[int]) -> None:
        if opcode == abi.OP_BATCH_FENCE:
            self.control[abi.CONTROL_EPOCH_WORD] += 1
        elif opcode == abi.OP_SHUTDOWN:
            self.control[abi.CONTROL_SHUTDOWN_WORD] = 1
        elif opcode == abi.OP_PACKED_SLOT:
            self._packed(args)
        elif opcode == abi.OP_MEMCPY:
            self._copy(args)
        elif 0x40000001 <= opcode <= 0x40000004:
            self._scan(opcode, slot)
        elif opcode != abi.OP_SCAN_NOP:
            self._single(opcode, args)

    def _word(self, index: int, limit: int = abi.CONTROL_WORDS) -> int:
        if index >= limit:
            raise Refusal(abi.REASON_ARGUMENT)
        return index

    def _single(self, opcode: int, a: list[int]) -> None:
        control, wrap = self.control, 1 << 32
        first, limit = abi.CONTROL_OBSERVABLE_WORD, abi.CONTROL_WORDS - abi.CONTROL_OBSERVABLE_WORD
        if opcode == abi.OP_STORE_U32:
            control[self._word(a[1])] = a[0]
        elif opcode == abi.OP_ATOMIC_ADD:
            control[self._word(a[1])] = (int(control[self._word(a[1])]) + a[0]) % wrap
        elif opcode == abi.OP_LOAD_U32:
            control[first + self._word(a[1], limit)] = control[self._word(a[0])]
        elif opcode == abi.OP_COMPARE_SWAP:
            if control[self._word(a[2])] == a[0]:
                control[a[2]] = a[1]
        elif opcode == abi.OP_DFA_STEP:
            layout = self.arena.layout
            at = (a[0] * 256 + self._word(a[1], 256)) * 4
            if at + 4 > layout.slot_bytes or a[2] >= layout.slots:
                raise Refusal(abi.REASON_ARGUMENT)
            entry = self.data[a[2] * layout.slot_bytes + at :][:4].view(np.uint32)
            control[first + self._word(a[3], limit)] = entry[0]
        elif opcode == abi.OP_PRINTF:
            self._write_log(a[:4])
        elif opcode == abi.OP_LOAD_MISS:
            self._write_log([abi.OP_LOAD_MISS, *a[:3]])
        elif opcode != abi.OP_NOP:
            raise Refusal(abi.REASON_OPCODE)

    def _write_log(self, record: list[int]) -> None:
        at = 1 + int(self.log[0])
        self.log[0] += 4
        if at + 4 <= len(self.log):
            self.log[at : at + 4] = record

    def _packed(self, args: list[int]) -> None:
        at, operations = 1, []
        for _ in range(args[0]):
            count = ARGUMENTS.get(args[at]) if at < 11 else None
            if count is None or at + 1 + count > 11:
                raise Refusal(abi.REASON_ARGUMENT)
            operations.append((args[at], args[at + 1 : at + 1 + count]))
            at += 1 + count
        failed = False
        for opcode, inner in operations:
            try:
                self._single(opcode, [*inner, 0, 0, 0, 0])
            except Refusal:
                failed = True
        if failed:
            raise Refusal(abi.REASON_ARGUMENT)

    def _copy(self, a: list[int]) -> None:
        source, target, count = a[0] | a[1] << 32, a[2] | a[3] << 32, a[4]
        if source + count > len(self.data) or target + count > len(self.data):
            raise Refusal(abi.REASON_ARGUMENT)
        if count and source < target + count and target < source + count:
            raise Refusal(abi.REASON_ARGUMENT)
        self.data[target : target + count] = self.data[source : source + count]

    def _scan(self, opcode: int, slot: list[int]) -> None:
        layout = self.arena.layout
        where, size, begin, halo = slot[4:8]
        if where >= layout.slots or begin % 16 or begin + size + halo > layout.slot_bytes:
            raise Refusal(abi.REASON_ARGUMENT)
        at = where * layout.slot_bytes + begin
        text = self.data[at : at + size]
        block = self.arena.words(layout.result(where), layout.result_bytes // 4)
        values = block[abi.RESULT_VALUES // 4 :].view(np.uint64)
        if opcode == abi.OP_SCAN_MATCH:
            if slot[12] not in self.sets:
                raise Refusal(abi.REASON_ARGUMENT)
            self._match(self.sets[slot[12]], text, self.data[at : at + size + halo], block)
            index = self.arena.words(layout.newlines + where * layout.newline_bytes, layout.newline_bytes // 4)
            for chunk in range(1, -(-size // 4096)):
                index[begin // 4096 + chunk] = np.count_nonzero(text[: chunk * 4096] == 10)
            return
        block[:2] = 0
        for part in self._blocks(text, slot[8] | slot[9] << 32, slot[12]):
            if opcode == abi.OP_SCAN_TOUCH:
                state = [int(part.sum(dtype=np.uint64))]
            elif opcode == abi.OP_SCAN_CRC32C:
                state = [crc32c(bytes(part)), len(part)]
            else:
                state = np.bincount(part, minlength=256).tolist()
            if len(state) > len(values):
                raise Refusal(abi.REASON_RESULT)
            values[: len(state)] = state
            values = values[len(state) :]

    @staticmethod
    def _blocks(text: np.ndarray, offset: int, block: int) -> list[np.ndarray]:
        borders = range(block - offset % block, len(text), block) if block else []
        return np.split(text, list(borders))

    def _match(self, automata: Automata, payload: np.ndarray, text: np.ndarray, block: np.ndarray) -> None:
        found = search(automata, text)
        kept = found[: self.arena.layout.hit_capacity]
        newlines = np.flatnonzero(payload == 10)
        block[0], block[1], block[2] = len(found), len(found) > len(kept), len(newlines)
        block[3] = newlines[-1] if len(newlines) else abi.NO_NEWLINE
        hits = block[abi.RESULT_HITS // 4 :][: 4 * len(kept)].reshape(-1, 4)
        hits[:, 0], hits[:, 1], hits[:, 2], hits[:, 3] = kept[:, 0], abi.HIT_NO_START, kept[:, 1], 0

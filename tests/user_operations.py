"""Operations as users write them, for the tests. By their module they are also what ``--operation`` names."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

import uring_actors as ua

ZEROS = """
// How many bytes are zero: 16 at a time, each once.
__device__ void zeros(const volatile unsigned char* payload, unsigned int bytes, unsigned int before,
                      unsigned int after, unsigned long long offset, long long* state) {
  long long count = 0;
  for (unsigned int i = threadIdx.x; i < bytes / 16; i += blockDim.x) {
    uint4 words = ua_load16(payload, i);
    const unsigned int four[4] = {words.x, words.y, words.z, words.w};
    for (int k = 0; k < 4; k++)
      for (int shift = 0; shift < 32; shift += 8) count += (four[k] >> shift & 0xFF) == 0;
  }
  for (unsigned int i = bytes / 16 * 16 + threadIdx.x; i < bytes; i += blockDim.x) count += payload[i] == 0;
  ua_add(state, count);
}
"""


@ua.operation(cuda=ZEROS)
def zeros(payload):
    count = 0
    for byte in payload:
        count += byte == 0
    return count


def joined(left, right):
    """Words: bytes, first byte, last byte, places where a byte is larger than the next one."""
    if not left[0] or not right[0]:
        return right if right[0] else left
    return left[0] + right[0], left[1], right[2], left[3] + right[3] + (left[2] > right[1])


def share(state, size):
    return {"share": state[3] / max(1, size), "falls": state[3]}


@ua.operation(
    state=("size", "first", "last", "falls"),
    combine=joined,
    finish=share,
    schema=[pa.field("falls", pa.uint32()), pa.field("share", pa.float64())],
    compiled=True,
)
def falls(payload):
    count = 0
    for i in range(len(payload) - 1):
        count += payload[i] > payload[i + 1]
    return len(payload), payload[0], payload[-1], count


CRLF = """
__device__ void crlf(const volatile unsigned char* payload, unsigned int bytes, unsigned int before,
                     unsigned int after, unsigned long long offset, long long* state) {
  long long count = 0, last = -1;
  for (unsigned int i = threadIdx.x; i < bytes; i += blockDim.x)
    if (payload[i] == '\\r' && (i + 1 < bytes || after) && payload[i + 1] == '\\n') {
      count++;
      last = offset + i;
    }
  ua_add(state, count);
  atomicMax(state + 1, last + 1);
}
"""


def counted(left, right):
    return left[0] + right[0], max(left[1], right[1])


@ua.operation(state=("pairs", "behind_last"), combine=counted, halo=1, cuda=CRLF)
def crlf(payload, after, offset):
    """CR LF pairs, also across a border, and where the last CR's successor is."""
    text = np.concatenate((payload, after))
    pairs = np.nonzero((text[:-1] == 13) & (text[1:] == 10))[0]
    return len(pairs), offset + pairs[-1] + 1 if len(pairs) else 0


@ua.operation(name="falls_again", compiled=False)
def rising(payload, before):
    text = np.concatenate((before, payload)).astype(np.int16)
    return int(np.count_nonzero(np.diff(text) < 0))


@ua.operation(compiled="auto", combine=lambda left, right: left ^ right)
def digest(payload):
    """What Numba can't compile."""
    return int.from_bytes(hashlib.md5(payload.tobytes()).digest()[:4], "big")


@ua.operation(combine="max", empty=-1)
def largest(payload):
    return payload.max()


@ua.operation(compiled=True)
def fails_on_7(payload):
    if payload[0] == 7:
        raise ValueError("a seven")
    return 1


@ua.operation(compiled=False)
def fails_in_python(payload, offset):
    if payload[0] == 7:
        raise KeyError(f"a seven at {offset}")
    return 1

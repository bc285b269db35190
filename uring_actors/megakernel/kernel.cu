// The megakernel: one launch that serves a ring until SHUTDOWN. Constants (UA_*) are generated from arena/abi.py.
//
// Block 0 is the scheduler: one warp, the only one that polls host memory. It reads the lines of the next ring slots
// over PCIe, copies those that are published into device memory, marks them CLAIMED and puts them into one of five
// device queues by priority. Every other block is a worker: it takes a slot from the queues, runs the operation with
// all its threads, and stores DONE or FAULT into the host's slot.
//
// Hand-overs, each a release that the next owner acquires:
//   publisher → scheduler   x86 stores in order: arguments, then the position word (last word of the line's second
//                           half), then status. The warp reads the line in four 16-byte loads, which may see it in
//                           pieces; it takes the slot only where status says PUBLISHED *and* the position word is the
//                           one expected, so both halves are new. Then a system fence: the worker's loads of the
//                           payload come after it.
//   scheduler → worker      descriptor and queue entry → fence → release of the queue's tail (gpu) → acquire.
//   worker → host           results → release of the slot's status (sys) → the host's acquire load.
// Counters live in device memory, since atomics on host memory are not atomic against the CPU; the scheduler mirrors
// them to the host. No load of the arena may be cached: it is __ldcv or volatile, never __ldg.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define QUEUES 5
#define LINE 32            // words between counters, so that each has a cache line
#define LOOK_AHEAD 8       // slots read at once while there is work; one while there is none
#define IDLE_LOOKS 16      // idle polls between two looks at SHUTDOWN
#define STARVATION_BOUND 64  // how often a queue with work may be passed over before it is served first
#define NOTHING 0xFFFFFFFFu

// Words of the device's own memory.
#define D_STOP 0
#define D_DONE (1 * LINE)
#define D_CLAIMED (2 * LINE)
#define D_EPOCH (3 * LINE)
#define D_STARVED (4 * LINE)
#define D_LOG (5 * LINE)
#define D_TAIL(q) ((8 + (q)) * LINE)
#define D_HEAD(q) ((16 + (q)) * LINE)
#define D_PASSED(q) ((24 + (q)) * LINE)
#define D_METRIC(i) (32 * LINE + (i))
#define D_SERVED(q) (33 * LINE + (q))

struct Arena {  // host memory, as the device maps it
  u32* control;
  u32* state;
  u32* ring;
  u8* results;
  u8* data;
  u32* log;
  u64 result_bytes;
  u64 slot_bytes;
  u32 ring_mask;
  u32 first_position;
};

__device__ __forceinline__ u32 acquire_gpu(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void release_gpu(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void release_sys(u32* p, u32 v) {
  asm volatile("st.release.sys.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ u32 volatile_load(const u32* p) { return *(const volatile u32*)p; }
__device__ __forceinline__ void volatile_store(u32* p, u32 v) { *(volatile u32*)p = v; }

// ── scheduler ────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ void schedule(const Arena& arena, u32* device, u32* queues, u32* descriptors) {
  const u32 lane = threadIdx.x, line = lane >> 2, part = lane & 3;
  const u32 slots = arena.ring_mask + 1;
  u32 position = arena.first_position, look = 1, idle = 0, mirrored_done = 0;
  u32 tail[QUEUES] = {0, 0, 0, 0, 0};
  for (;;) {
    u32 slot = (position + line) & arena.ring_mask;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (line < look) words = __ldcv((const uint4*)(arena.ring + (u64)slot * 16) + part);
    u32 status_ok = __ballot_sync(~0u, part == 0 && words.x == UA_PUBLISHED);
    u32 place_ok = __ballot_sync(~0u, part == 3 && words.w == position + line);
    u32 count = 0;
    while (count < look && (status_ok >> (4 * count) & 1) && (place_ok >> (4 * count + 3) & 1)) count++;
    if (count) {
      if (line < count) {
        *((uint4*)(descriptors + (u64)slot * 16) + part) = words;
        if (part == 0) volatile_store(arena.ring + (u64)slot * 16, UA_CLAIMED);
      }
      __threadfence_system();
      __syncwarp();
      for (u32 k = 0; k < count; k++) {
        // Lane 4k has the priority; what is out of range waits with the idle ones.
        u32 q = min(__shfl_sync(~0u, words.w, 4 * k), (u32)QUEUES - 1);
        u32 which = (position + k) & arena.ring_mask;
        if (lane == 0) {
          queues[q * slots + (tail[q] & arena.ring_mask)] = which;
          release_gpu(device + D_TAIL(q), ++tail[q]);
        }
      }
      position += count;
      idle = 0;
      if (lane == 0) volatile_store(arena.state + UA_STATE_CLAIM / 4, position);
    } else {
      idle++;
    }
    look = count ? LOOK_AHEAD : 1;
    u32 done = 0, stop = 0;
    if (lane == 0) {
      done = volatile_load(device + D_DONE);
      stop = volatile_load(device + D_STOP);
      if (!count && idle % IDLE_LOOKS == 0) stop |= volatile_load(arena.control + UA_CONTROL_SHUTDOWN_WORD);
      if (done != mirrored_done) {
        volatile_store(arena.control + UA_CONTROL_DONE_COUNT_WORD, done);
        for (u32 i = 0; i < UA_CONTROL_METRICS_COUNT; i++)
          volatile_store(arena.control + UA_CONTROL_METRICS_WORD + i, volatile_load(device + D_METRIC(i)));
        volatile_store(arena.control + UA_CONTROL_EPOCH_WORD, volatile_load(device + D_EPOCH));
        volatile_store(arena.control + UA_CONTROL_STARVATION_WORD, volatile_load(device + D_STARVED));
        for (u32 q = 0; q < QUEUES; q++)
          volatile_store(arena.control + UA_CONTROL_PRIORITY_FAIRNESS_WORD + q, volatile_load(device + D_SERVED(q)));
        mirrored_done = done;
      }
    }
    if (__shfl_sync(~0u, stop, 0)) {
      if (lane == 0) release_gpu(device + D_STOP, 1);
      return;
    }
  }
}

// ── workers: taking a slot ───────────────────────────────────────────────────────────────────────────────────────

// Take the oldest slot of queue q, if there is one. One thread.
__device__ u32 take_from(u32* device, const u32* queues, u32 q, u32 mask) {
  for (;;) {
    u32 head = volatile_load(device + D_HEAD(q));
    if (head == acquire_gpu(device + D_TAIL(q))) return NOTHING;
    // Read before the swap: while the head has this value, the entry is neither taken nor written again.
    u32 slot = volatile_load(queues + q * (mask + 1) + (head & mask));
    if (atomicCAS(device + D_HEAD(q), head, head + 1) == head) return slot;
  }
}

__device__ bool waiting(u32* device, u32 q) {
  return volatile_load(device + D_HEAD(q)) != volatile_load(device + D_TAIL(q));
}

// The next slot by priority, but a queue that has been passed over too often first. NOTHING when stopping.
__device__ u32 take(u32* device, const u32* queues, u32 mask) {
  for (;;) {
    for (u32 q = 1; q < QUEUES; q++) {
      if (volatile_load(device + D_PASSED(q)) < STARVATION_BOUND) continue;
      atomicExch(device + D_PASSED(q), 0);
      u32 slot = take_from(device, queues, q, mask);
      if (slot == NOTHING) continue;
      atomicAdd(device + D_STARVED, 1);
      atomicAdd(device + D_SERVED(q), 1);
      return slot;
    }
    for (u32 q = 0; q < QUEUES; q++) {
      u32 slot = take_from(device, queues, q, mask);
      if (slot == NOTHING) continue;
      for (u32 lower = q + 1; lower < QUEUES; lower++)
        if (waiting(device, lower)) atomicAdd(device + D_PASSED(lower), 1);
      atomicAdd(device + D_SERVED(q), 1);
      return slot;
    }
    if (acquire_gpu(device + D_STOP)) return NOTHING;
    __nanosleep(40);
  }
}

// ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────

__device__ u64 block_sum(u64 value) {
  __shared__ u64 partial[32];
  for (int o = 16; o; o >>= 1) value += __shfl_down_sync(~0u, value, o);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = value;
  __syncthreads();
  value = threadIdx.x < (blockDim.x >> 5) ? partial[threadIdx.x] : 0;
  if (threadIdx.x < 32)
    for (int o = 16; o; o >>= 1) value += __shfl_down_sync(~0u, value, o);
  __syncthreads();
  return value;  // thread 0 has it
}

__device__ __forceinline__ u32 byte_sum(uint4 v, u32 sum) {
  sum = __dp4a(v.x, 0x01010101u, sum);
  sum = __dp4a(v.y, 0x01010101u, sum);
  sum = __dp4a(v.z, 0x01010101u, sum);
  return __dp4a(v.w, 0x01010101u, sum);
}

// TOUCH: every payload byte once, 16 bytes a load, four loads in flight in each thread.
__device__ void touch(const u8* payload, u32 bytes, u8* result) {
  const uint4* words = (const uint4*)payload;  // payloads begin on a page
  u32 count = bytes / 16, step = blockDim.x, sum = 0, i = threadIdx.x;
  u64 total = 0;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 a = __ldcv(words + i), b = __ldcv(words + i + step);
    uint4 c = __ldcv(words + i + 2 * step), d = __ldcv(words + i + 3 * step);
    sum = byte_sum(d, byte_sum(c, byte_sum(b, byte_sum(a, sum))));
    if (sum >> 31) { total += sum; sum = 0; }
  }
  for (; i < count; i += step) sum = byte_sum(__ldcv(words + i), sum);
  u32 tail = count * 16 + threadIdx.x;
  if (tail < bytes) sum += __ldcv(payload + tail);
  total = block_sum(total + sum);
  if (threadIdx.x == 0) {
    volatile_store((u32*)(result + UA_RESULT_COUNT), 0);
    volatile_store((u32*)(result + UA_RESULT_OVERFLOW), 0);
    *(volatile u64*)(result + UA_RESULT_VALUES) = total;
  }
}

// Operations on control words: one thread. FAULT where an index is out of range.
__device__ u32 control_operation(const Arena& arena, u32* device, u32 opcode, const u32* a) {
  const u32 words = UA_CONTROL_WORDS, observables = UA_CONTROL_WORDS - UA_CONTROL_OBSERVABLE_WORD;
  switch (opcode) {
    case UA_OP_NOP:
    case UA_OP_SCAN_NOP:
      return UA_DONE;
    case UA_OP_STORE_U32:
      if (a[1] >= words) return UA_FAULT;
      volatile_store(arena.control + a[1], a[0]);
      return UA_DONE;
    case UA_OP_ATOMIC_ADD:
      if (a[1] >= words) return UA_FAULT;
      atomicAdd(arena.control + a[1], a[0]);
      return UA_DONE;
    case UA_OP_LOAD_U32:
      if (a[0] >= words || a[1] >= observables) return UA_FAULT;
      volatile_store(arena.control + UA_CONTROL_OBSERVABLE_WORD + a[1], volatile_load(arena.control + a[0]));
      return UA_DONE;
    case UA_OP_COMPARE_SWAP:
      if (a[2] >= words) return UA_FAULT;
      atomicCAS(arena.control + a[2], a[0], a[1]);
      return UA_DONE;
    case UA_OP_BATCH_FENCE:
      __threadfence_system();
      atomicAdd(device + D_EPOCH, 1);
      return UA_DONE;
    case UA_OP_SHUTDOWN:
      release_gpu(device + D_STOP, 1);
      return UA_DONE;
    default:
      return UA_FAULT;
  }
}

__device__ bool permitted(const Arena& arena, u32 tenant) {
  return tenant < UA_TENANTS && volatile_load(arena.control + UA_CONTROL_TENANT_MASK_WORD + tenant) == 0;
}

// ── worker ───────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ void work(const Arena& arena, u32* device, const u32* queues, const u32* descriptors) {
  __shared__ u32 slot_, allowed_, descriptor[16];
  for (;;) {
    if (threadIdx.x < 32) {
      u32 slot = 0;
      if (threadIdx.x == 0) slot = take(device, queues, arena.ring_mask);
      slot = __shfl_sync(~0u, slot, 0);
      u32 word = 0;
      if (slot != NOTHING && threadIdx.x < 16)
        word = volatile_load(descriptors + (u64)slot * 16 + threadIdx.x);
      if (threadIdx.x < 16) descriptor[threadIdx.x] = word;
      if (threadIdx.x == 0) slot_ = slot;
      if (threadIdx.x == UA_SLOT_TENANT / 4) allowed_ = slot != NOTHING && permitted(arena, word);
    }
    __syncthreads();
    u32 slot = slot_;
    if (slot == NOTHING) return;
    u32 opcode = descriptor[UA_SLOT_OPCODE / 4], status = UA_DONE;
    if (!allowed_) {
      status = UA_FAULT;
    } else if (opcode == UA_OP_SCAN_TOUCH) {
      u64 where = descriptor[UA_SLOT_DATA_SLOT / 4];
      touch(arena.data + where * arena.slot_bytes + descriptor[UA_SLOT_PAYLOAD_OFFSET / 4],
            descriptor[UA_SLOT_PAYLOAD_BYTES / 4], arena.results + where * arena.result_bytes);
    } else if (threadIdx.x == 0) {
      status = control_operation(arena, device, opcode, descriptor + UA_SLOT_ARGS / 4);
    }
    if (threadIdx.x == 0) {
      if (status == UA_DONE) atomicAdd(device + D_METRIC(opcode & (UA_CONTROL_METRICS_COUNT - 1)), 1);
      release_sys(arena.ring + (u64)slot * 16, status);
      __threadfence();
      atomicAdd(device + D_DONE, 1);
    }
    __syncthreads();  // nobody may overwrite slot_ and descriptor while others read them
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
megakernel(u32* control, u32* state, u32* ring, u8* results, u8* data, u32* log, u64 result_bytes, u64 slot_bytes,
           u32 ring_mask, u32 first_position, u32* device, u32* queues, u32* descriptors) {
  const Arena arena = {control, state, ring, results, data, log, result_bytes, slot_bytes, ring_mask, first_position};
  if (blockIdx.x > 0)
    work(arena, device, queues, descriptors);
  else if (threadIdx.x < 32)
    schedule(arena, device, queues, descriptors);
}

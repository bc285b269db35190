// The megakernel: one launch that serves a ring until SHUTDOWN. Constants (UA_*) are generated from arena/abi.py.
//
// Block 0 is the scheduler: one warp, the only one that polls host memory. It reads the lines of the next ring slots
// over PCIe, copies those that are published into device memory, queues them by priority, and gives each to an idle
// worker through that worker's mailbox. Every other block is a worker: it runs the operation with all its threads and
// stores DONE or FAULT into the host's slot. All counters and all choices are the scheduler's, so there are no atomics.
//
// Hand-overs, each a release that the next owner acquires:
//   publisher → scheduler   x86 stores in order: arguments, then the position word (last word of the line's second
//                           half), then status. The warp reads the line in four 16-byte loads, which may see it in
//                           pieces; it takes the slot only where status says PUBLISHED *and* the position word is the
//                           one expected, so both halves are new. Then a system fence: the worker's loads of the
//                           payload come after it.
//   scheduler → worker      descriptor → __syncwarp → release of the mailbox's number (gpu) → acquire.
//   worker → host           results → release of the slot's status (sys) → the host's acquire load.
//   worker → scheduler      release of the worker's report (gpu), after the status → acquire.
// No load of the arena may be cached: it is __ldcv or volatile, never __ldg.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define QUEUES 5
#define LOOK_AHEAD 8         // slots read at once while there is work; one while there is none
#define IDLE_LOOKS 16        // idle polls between two looks at SHUTDOWN
#define MIRROR_EVERY 256     // polls between two updates of the host's counters, while there is work
#define STARVATION_BOUND 64  // how often a queue with work may be passed over before it is served first
#define MAX_WORKERS 192
#define NOTHING 0xFFFFFFFFu
#define MAILBOX_WORDS 32     // a mailbox has a cache line: 16 words of descriptor, then its number
#define MAILBOX_NUMBER 16
#define FAULTED 0x80000000u  // in a report, beside the number of the work that is done

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

struct Device {  // the device's own memory
  u32* queues;       // QUEUES rings of ring slots, the scheduler's
  u32* descriptors;  // 16 words for each ring slot, the scheduler's
  u32* mailboxes;    // MAILBOX_WORDS for each worker: the scheduler writes, the worker reads
  u32* reports;      // one word for each worker: the number of the work it has done, FAULTED
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

struct Schedule {  // shared memory of block 0
  u32 idle[MAX_WORKERS];    // a stack of workers without work
  u32 given[MAX_WORKERS];   // the number of the last work given to each
  u32 busy[MAX_WORKERS];    // whether it is still to be reported
  u32 opcode[MAX_WORKERS];  // of that work
  u32 head[QUEUES], tail[QUEUES], passed[QUEUES], served[QUEUES];
  u32 metrics[UA_CONTROL_METRICS_COUNT];
  u32 idle_count, busy_count, done, epoch, starved, stop;
};

// Take the reports of workers that are done.
__device__ void take_reports(Schedule& s, const Device& device, u32 workers) {
  for (u32 first = 0; first < workers; first += 32) {
    u32 w = first + threadIdx.x;
    u32 report = w < workers && s.busy[w] ? acquire_gpu(device.reports + w) : 0;
    bool done = w < workers && s.busy[w] && (report & ~FAULTED) == s.given[w];
    u32 all = __ballot_sync(~0u, done);
    if (done) {
      u32 opcode = s.opcode[w];
      s.busy[w] = 0;
      s.idle[s.idle_count + __popc(all & ((1u << threadIdx.x) - 1))] = w;
      if (!(report & FAULTED)) {
        atomicAdd(&s.metrics[opcode & (UA_CONTROL_METRICS_COUNT - 1)], 1);
        if (opcode == UA_OP_BATCH_FENCE) atomicAdd(&s.epoch, 1);
        if (opcode == UA_OP_SHUTDOWN) s.stop = 1;
      }
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      s.idle_count += __popc(all);
      s.busy_count -= __popc(all);
      s.done += __popc(all);
    }
    __syncwarp();
  }
}

// The queue to serve: one that was passed over too often, else the first with work; NOTHING where there is none.
__device__ u32 choose(Schedule& s) {
  u32 first = NOTHING, starving = NOTHING;
  for (u32 q = 0; q < QUEUES; q++) {
    if (s.head[q] == s.tail[q]) continue;
    if (first == NOTHING) first = q;
    if (starving == NOTHING && s.passed[q] >= STARVATION_BOUND) starving = q;
  }
  u32 chosen = starving != NOTHING ? starving : first;
  if (chosen == NOTHING) return NOTHING;
  __syncwarp();  // every lane has read what lane 0 changes now
  if (threadIdx.x == 0) {
    if (chosen != first) s.starved++;
    s.passed[chosen] = 0;
    s.served[chosen]++;
    for (u32 q = chosen + 1; q < QUEUES; q++)
      if (s.head[q] != s.tail[q]) s.passed[q]++;
  }
  __syncwarp();
  return chosen;
}

// Put one descriptor (word i in lane i, i < 16) into a worker's mailbox.
__device__ void give(Schedule& s, const Device& device, u32 worker, u32 word) {
  u32* mailbox = device.mailboxes + worker * MAILBOX_WORDS;
  u32 opcode = __shfl_sync(~0u, word, UA_SLOT_OPCODE / 4);
  if (threadIdx.x < 16) volatile_store(mailbox + threadIdx.x, word);
  __syncwarp();
  if (threadIdx.x == 0) {
    s.opcode[worker] = opcode;
    s.busy[worker] = 1;
    s.busy_count++;
    s.given[worker] = (s.given[worker] + 1) & ~FAULTED;
    release_gpu(mailbox + MAILBOX_NUMBER, s.given[worker]);
  }
  __syncwarp();
}

// Give queued slots to idle workers.
__device__ void dispatch(Schedule& s, const Device& device, u32 mask) {
  while (s.idle_count) {
    u32 q = choose(s);
    if (q == NOTHING) return;
    u32 slot = device.queues[q * (mask + 1) + (s.head[q] & mask)];
    u32 word = threadIdx.x < 16 ? device.descriptors[(u64)slot * 16 + threadIdx.x] : 0;
    // Word 0, the status, has told its tale: the worker needs the slot's number.
    if (threadIdx.x == 0) word = slot;
    u32 worker = s.idle[s.idle_count - 1];
    __syncwarp();
    if (threadIdx.x == 0) {
      s.head[q]++;
      s.idle_count--;
    }
    __syncwarp();
    give(s, device, worker, word);
  }
}

// Show the counters to the host.
__device__ void mirror(const Schedule& s, const Arena& arena, u32 position) {
  u32* control = arena.control;
  if (threadIdx.x < UA_CONTROL_METRICS_COUNT)
    volatile_store(control + UA_CONTROL_METRICS_WORD + threadIdx.x, s.metrics[threadIdx.x]);
  if (threadIdx.x < QUEUES)
    volatile_store(control + UA_CONTROL_PRIORITY_FAIRNESS_WORD + threadIdx.x, s.served[threadIdx.x]);
  if (threadIdx.x == 0) {
    volatile_store(control + UA_CONTROL_EPOCH_WORD, s.epoch);
    volatile_store(control + UA_CONTROL_STARVATION_WORD, s.starved);
    volatile_store(arena.state + UA_STATE_CLAIM / 4, position);
    release_sys(control + UA_CONTROL_DONE_COUNT_WORD, s.done);
  }
  __syncwarp();
}

// Word i (in lane i < 16) of the line that the warp has read as number k: four words in each of four lanes.
__device__ u32 word_of_line(uint4 words, u32 k) {
  const u32 from = 4 * k + (threadIdx.x >> 2 & 3);
  u32 x = __shfl_sync(~0u, words.x, from), y = __shfl_sync(~0u, words.y, from);
  u32 z = __shfl_sync(~0u, words.z, from), w = __shfl_sync(~0u, words.w, from);
  switch (threadIdx.x & 3) {
    case 0: return x;
    case 1: return y;
    case 2: return z;
    default: return w;
  }
}

// Give what the warp has just read straight to idle workers, while nothing is queued before it; how many.
__device__ u32 give_fresh(Schedule& s, const Device& device, uint4 words, u32 position, u32 count, u32 mask) {
  for (u32 q = 0; q < QUEUES; q++)
    if (s.head[q] != s.tail[q]) return 0;
  u32 given = 0;
  // Only where all find a worker: otherwise they are sorted by priority first.
  if (count > s.idle_count) return 0;
  __syncwarp();
  for (; given < count; given++) {
    u32 word = word_of_line(words, given);
    u32 q = min(__shfl_sync(~0u, word, UA_SLOT_PRIORITY / 4), (u32)QUEUES - 1);
    u32 worker = s.idle[s.idle_count - 1];
    __syncwarp();
    if (threadIdx.x == 0) {
      s.idle_count--;
      s.served[q]++;
      word = (position + given) & mask;  // in place of the status
    }
    __syncwarp();
    give(s, device, worker, word);
  }
  return given;
}

// Queue the first `count` slots of what the warp has just read.
__device__ void enqueue(Schedule& s, const Device& device, uint4 words, u32 position, u32 count, u32 mask) {
  const u32 line = threadIdx.x >> 2, part = threadIdx.x & 3;
  if (line < count) *((uint4*)(device.descriptors + (u64)((position + line) & mask) * 16) + part) = words;
  for (u32 k = 0; k < count; k++) {
    // Lane 4k has the priority; what is out of range waits with the idle ones.
    u32 q = min(__shfl_sync(~0u, words.w, 4 * k), (u32)QUEUES - 1);
    if (threadIdx.x == 0) device.queues[q * (mask + 1) + (s.tail[q]++ & mask)] = (position + k) & mask;
  }
  __syncwarp();
}

__device__ void schedule(Schedule& s, const Arena& arena, const Device& device, u32 workers) {
  const u32 lane = threadIdx.x, line = lane >> 2, part = lane & 3, mask = arena.ring_mask;
  u32 position = arena.first_position, look = 1, idle = 0, since = 0, mirrored = 0;
  for (u32 i = lane; i < sizeof(Schedule) / 4; i += 32) ((u32*)&s)[i] = 0;
  __syncwarp();
  for (u32 w = lane; w < workers; w += 32) s.idle[w] = w;
  if (lane == 0) s.idle_count = workers;
  __syncwarp();
  while (!s.stop) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (line < look) words = __ldcv((const uint4*)(arena.ring + (u64)((position + line) & mask) * 16) + part);
    if (s.busy_count) take_reports(s, device, workers);  // while the line is on its way
    u32 status_ok = __ballot_sync(~0u, part == 0 && words.x == UA_PUBLISHED);
    u32 place_ok = __ballot_sync(~0u, part == 3 && words.w == position + line);
    u32 count = 0;
    while (count < look && (status_ok >> (4 * count) & 1) && (place_ok >> (4 * count + 3) & 1)) count++;
    if (count) {
      __threadfence_system();
      if (!give_fresh(s, device, words, position, count, mask)) enqueue(s, device, words, position, count, mask);
      position += count;
    }
    dispatch(s, device, mask);
    idle = count ? 0 : idle + 1;
    look = count ? LOOK_AHEAD : 1;
    if (mirrored != s.done && (++since >= MIRROR_EVERY || idle > 2)) {
      mirrored = s.done;
      since = 0;
      mirror(s, arena, position);
    }
    if (idle % IDLE_LOOKS == 1 && lane == 0 && volatile_load(arena.control + UA_CONTROL_SHUTDOWN_WORD)) s.stop = 1;
    __syncwarp();
  }
  while (s.busy_count) take_reports(s, device, workers);
  mirror(s, arena, position);
  for (u32 w = 0; w < workers; w++) give(s, device, w, NOTHING);
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

// ── user operations ──────────────────────────────────────────────────────────────────────────────────────────────
// Helpers for their sources, which are inserted below (megakernel/cuda.py; docs/operations.md has the contract).

// Add every thread's value to a word of the state. All threads of a warp call it together.
__device__ void ua_add(long long* word, long long value) {
  for (int o = 16; o; o >>= 1) value += __shfl_down_sync(~0u, value, o);
  if ((threadIdx.x & 31) == 0) atomicAdd((u64*)word, (u64)value);
}

// Bytes [16 i, 16 i + 16) of the payload, as one load.
__device__ uint4 ua_load16(const volatile u8* payload, u32 i) { return __ldcv((const uint4*)payload + i); }

// USER OPERATIONS

// Run a user's operation with all threads of the block, and store its state; false where there is none such, or where
// the payload is misaligned or leaves its data slot.
__device__ bool run_user(const Arena& arena, const u32* descriptor) {
  __shared__ long long state[UA_USER_WORDS];
  const u32 opcode = descriptor[UA_SLOT_OPCODE / 4], begin = descriptor[UA_SLOT_PAYLOAD_OFFSET / 4];
  const u32 bytes = descriptor[UA_SLOT_PAYLOAD_BYTES / 4], after = descriptor[UA_SLOT_HALO_BYTES / 4];
  const u64 where = descriptor[UA_SLOT_DATA_SLOT / 4];
  const u64 offset = descriptor[UA_SLOT_FILE_OFFSET / 4] | (u64)descriptor[UA_SLOT_FILE_OFFSET / 4 + 1] << 32;
  const u32 words = user_words(opcode);
  if (!words || begin % 16 || begin + (u64)bytes + after > arena.slot_bytes) return false;
  for (u32 i = threadIdx.x; i < words; i += blockDim.x) state[i] = 0;
  __syncthreads();
  user_operation(opcode, arena.data + where * arena.slot_bytes + begin, bytes, offset && begin, after, offset, state);
  __syncthreads();
  u8* result = arena.results + where * arena.result_bytes;
  for (u32 i = threadIdx.x; i < words; i += blockDim.x)
    *(volatile long long*)(result + UA_RESULT_VALUES + 8 * i) = state[i];
  __threadfence_system();  // each thread's words, before thread 0 stores the status
  __syncthreads();
  return true;
}

// Operations on control words: one thread. FAULT where an index is out of range.
__device__ u32 control_operation(const Arena& arena, u32 opcode, const u32* a) {
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
    case UA_OP_SHUTDOWN:
      return UA_DONE;  // the rest is the scheduler's, when it is reported
    default:
      return UA_FAULT;
  }
}

__device__ bool permitted(const Arena& arena, u32 tenant) {
  return tenant < UA_TENANTS && volatile_load(arena.control + UA_CONTROL_TENANT_MASK_WORD + tenant) == 0;
}

// ── worker ───────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ void work(const Arena& arena, const Device& device, u32 worker) {
  __shared__ u32 descriptor[16], allowed;
  const u32* mailbox = device.mailboxes + worker * MAILBOX_WORDS;
  u32 number = 0;
  for (;;) {
    if (threadIdx.x < 32) {
      u32 seen = number;
      if (threadIdx.x == 0)
        while ((seen = acquire_gpu(mailbox + MAILBOX_NUMBER)) == number) {}
      number = __shfl_sync(~0u, seen, 0);
      if (threadIdx.x < 16) descriptor[threadIdx.x] = volatile_load(mailbox + threadIdx.x);
    }
    __syncthreads();
    const u32 slot = descriptor[0], opcode = descriptor[UA_SLOT_OPCODE / 4];
    if (slot == NOTHING) return;
    u32* home = arena.ring + (u64)slot * 16;
    u32 status = UA_DONE;
    if (threadIdx.x == 0) volatile_store(home, UA_CLAIMED);
    // The mask lies in host memory. A scan has no effect but its result, so it need not wait for the answer.
    if (threadIdx.x == 32) allowed = permitted(arena, descriptor[UA_SLOT_TENANT / 4]);
    const u32 begin = descriptor[UA_SLOT_PAYLOAD_OFFSET / 4], bytes = descriptor[UA_SLOT_PAYLOAD_BYTES / 4];
    if (opcode == UA_OP_SCAN_TOUCH && (begin % 16 || begin + (u64)bytes > arena.slot_bytes)) {
      status = UA_FAULT;  // a payload that 16-byte loads can't read, or that leaves its data slot
    } else if (opcode >= UA_OP_USER_FIRST && opcode <= UA_OP_USER_LAST) {
      const bool ran = run_user(arena, descriptor);
      __syncthreads();
      if (threadIdx.x == 0 && !(ran && allowed)) status = UA_FAULT;
    } else if (opcode == UA_OP_SCAN_TOUCH) {
      u64 where = descriptor[UA_SLOT_DATA_SLOT / 4];
      touch(arena.data + where * arena.slot_bytes + begin, bytes, arena.results + where * arena.result_bytes);
      if (threadIdx.x == 0 && !allowed) status = UA_FAULT;
    } else {
      __syncthreads();
      if (threadIdx.x == 0)
        status = allowed ? control_operation(arena, opcode, descriptor + UA_SLOT_ARGS / 4) : UA_FAULT;
    }
    if (threadIdx.x == 0) {
      release_sys(home, status);
      release_gpu(device.reports + worker, status == UA_DONE ? number : number | FAULTED);
    }
    __syncthreads();  // nobody may overwrite the descriptor while others read it
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
megakernel(u32* control, u32* state, u32* ring, u8* results, u8* data, u32* log, u64 result_bytes, u64 slot_bytes,
           u32 ring_mask, u32 first_position, u32* queues, u32* descriptors, u32* mailboxes, u32* reports) {
  __shared__ Schedule scheduling;
  const Arena arena = {control, state, ring, results, data, log, result_bytes, slot_bytes, ring_mask, first_position};
  const Device device = {queues, descriptors, mailboxes, reports};
  if (blockIdx.x > 0)
    work(arena, device, blockIdx.x - 1);
  else if (threadIdx.x < 32)
    schedule(scheduling, arena, device, gridDim.x - 1);
}

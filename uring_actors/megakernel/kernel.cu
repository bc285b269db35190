// The megakernel: one launch that serves a ring until SHUTDOWN. Constants (UA_*) are generated from arena/abi.py.
//
// Block 0 is the scheduler: one warp, the only one that polls host memory. It reads the lines of the next ring slots
// over PCIe, copies those that are published into device memory, queues them by priority, and gives each to an idle
// worker through that worker's mailbox. Every other block is a worker: it runs the operation with all its threads and
// stores DONE or FAULT into the host's slot. All counters and all choices are the scheduler's, so there are no atomics.
//
// Hand-overs, each a release that the next owner acquires (a fence with the access beside it counts as one):
//   publisher → scheduler   x86 stores in order: arguments, then the position word (last word of the line's second
//                           half), then status. The warp reads the line in four 16-byte loads, which may see it in
//                           pieces; it takes the slot only where status says PUBLISHED *and* the position word is the
//                           one expected, so both halves are new. Then an acquire fence (sys), in every lane: what the
//                           publisher wrote before the status, the payload with it, is visible to what follows.
//   scheduler → worker      descriptor in pieces of 16 bytes, each one store that carries the work's number, each read by
//                           one load (128-bit scalar accesses are single-copy atomic). A worker takes it when all pieces
//                           have the new number. A release fence (gpu) behind the acquire above precedes these stores, an
//                           acquire fence (gpu) follows the loads: so the worker sees the payload too.
//   worker → host           results → barrier → release of the slot's status (sys) → the host's acquire load.
//   worker → scheduler      release of the worker's report (gpu), after the status → load, then an acquire fence (gpu).
// No load of the arena may be cached: it is __ldcv or volatile, never __ldg.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define QUEUES 5
#define LOOK_AHEAD 8         // slots read at once while there is work; one while there is none
#define IDLE_LOOKS 16        // idle polls between two looks at SHUTDOWN
#define MIRROR_EVERY 256     // polls between two updates of the host's counters, while there is work
#define QUIET 8              // polls without a report after which they are updated at once
#define STARVATION_BOUND 64  // how often a queue with work may be passed over before it is served first
#define MAX_WORKERS 192
#define NOTHING 0xFFFFFFFFu
#define MAILBOX_WORDS 32     // a mailbox has a cache line: pieces of 16 bytes, each three words of descriptor …
#define MAILBOX_PIECES 6     // … and the number of the work, so that a piece is new where its number is
#define TILE_BYTES 32768     // of a payload, worked on from shared memory: 32 bytes for each of 1,024 threads
#define CHUNK_WORDS 8        // 32-bit words of a thread's piece of a tile, and what it warms an automaton up on at most
#define CHUNK_STRIDE 9       // odd, so that the threads of a warp read from different banks
static_assert((TILE_BYTES / 32 + 1) * CHUNK_STRIDE * 4 <= UA_SCRATCH_BYTES, "a tile, and the piece before it");
static_assert(TILE_BYTES % UA_NEWLINE_CHUNK == 0 && UA_NEWLINE_CHUNK % 1024 == 0, "a chunk is the pieces of whole warps");
static_assert(UA_CRC_POWERS_WORD * 4 <= UA_SCRATCH_BYTES && UA_USER_WORDS * 8 <= UA_SCRATCH_BYTES, "and other uses");
#define MOST_GROUPS 8        // automata of a pattern set
#define ACCEPTS 0x80000000u  // in a table's entry: words end in that state
#define FAULT_FOR(reason) (UA_FAULT | (reason) << 8)
#define FAULTED 0x80000000u  // in a report, beside the number of the work that is done

struct Arena {  // host memory, as the device maps it
  u32* control;
  u32* state;
  u32* ring;
  u8* results;
  u8* newlines;
  u8* data;
  u32* log;
  u64 result_bytes;
  u64 newline_bytes;
  u64 slot_bytes;
  u32 ring_mask;
  u32 data_slots;
  u32 first_position;
};

struct Device {  // the device's own memory
  u32* queues;       // QUEUES rings of ring slots, the scheduler's
  u32* descriptors;  // 16 words for each ring slot, the scheduler's
  u32* mailboxes;    // MAILBOX_WORDS for each worker: the scheduler writes, the worker reads
  u32* reports;      // one word for each worker: the number of the work it has done, FAULTED
  u32* log;          // one word: records of the debug log that were asked for
  u8* sets;          // pattern sets: UA_SETS entries of UA_SET_WORDS words, then their tables
  const u32* crc;    // CRC32C's tables
};

__device__ __forceinline__ void release_gpu(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void release_sys(u32* p, u32 v) {
  asm volatile("st.release.sys.global.u32 [%0],%1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ uint4 load_piece(const u32* p) {
  uint4 v;
  asm volatile("{.reg .b128 q; .reg .b64 a, b; ld.relaxed.gpu.global.b128 q,[%4]; mov.b128 {a, b}, q;"
               " mov.b64 {%0, %1}, a; mov.b64 {%2, %3}, b;}"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_piece(u32* p, uint4 v) {
  asm volatile("{.reg .b128 q; .reg .b64 a, b; mov.b64 a, {%1, %2}; mov.b64 b, {%3, %4}; mov.b128 q, {a, b};"
               " st.relaxed.gpu.global.b128 [%0], q;}" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// Fences that only order what follows them behind the loads before them, where the compiler has such (PTX 8.6): a full
// one also waits until every store of the thread has arrived, over PCIe where it must.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
__device__ __forceinline__ void acquire_fence_sys() { asm volatile("fence.acquire.sys;" ::: "memory"); }
__device__ __forceinline__ void acquire_fence_gpu() { asm volatile("fence.acquire.gpu;" ::: "memory"); }
__device__ __forceinline__ void release_fence_gpu() { asm volatile("fence.release.gpu;" ::: "memory"); }
#else
__device__ __forceinline__ void acquire_fence_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
__device__ __forceinline__ void acquire_fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ __forceinline__ void release_fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
#endif
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

// Take the reports of workers that are done. All are asked for at once: one round trip to the L2 cache.
__device__ void take_reports(Schedule& s, const Device& device, u32 workers) {
  u32 reports[MAX_WORKERS / 32];
#pragma unroll
  for (u32 i = 0; i < MAX_WORKERS / 32; i++) {
    const u32 w = 32 * i + threadIdx.x;
    reports[i] = w < workers && s.busy[w] ? volatile_load(device.reports + w) : s.given[w] ^ 1;
  }
  u32 taken = 0;
#pragma unroll
  for (u32 i = 0; i < MAX_WORKERS / 32; i++) {
    const u32 w = 32 * i + threadIdx.x;
    const bool done = (reports[i] & ~FAULTED) == s.given[w];
    const u32 all = __ballot_sync(~0u, done);
    if (done) {
      u32 opcode = s.opcode[w];
      s.busy[w] = 0;
      s.idle[s.idle_count + taken + __popc(all & ((1u << threadIdx.x) - 1))] = w;
      if (!(reports[i] & FAULTED)) {
        atomicAdd(&s.metrics[opcode & (UA_CONTROL_METRICS_COUNT - 1)], 1);
        if (opcode == UA_OP_BATCH_FENCE) atomicAdd(&s.epoch, 1);
        if (opcode == UA_OP_SHUTDOWN) s.stop = 1;
      }
    }
    taken += __popc(all);
  }
  if (!taken) return;
  acquire_fence_gpu();  // with the loads above: an acquire of what was reported
  __syncwarp();
  if (threadIdx.x == 0) {
    s.idle_count += taken;
    s.busy_count -= taken;
    s.done += taken;
  }
  __syncwarp();
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
  u32 opcode = __shfl_sync(~0u, word, UA_SLOT_OPCODE / 4);
  const u32 first = 3 * threadIdx.x, number = (s.given[worker] + 1) & ~FAULTED;
  uint4 piece;
  piece.x = __shfl_sync(~0u, word, first);
  piece.y = __shfl_sync(~0u, word, first + 1);
  piece.z = __shfl_sync(~0u, word, first + 2);
  piece.w = number;
  __syncwarp();  // every lane has read what lane 0 changes now
  if (threadIdx.x < MAILBOX_PIECES) store_piece(device.mailboxes + worker * MAILBOX_WORDS + 4 * threadIdx.x, piece);
  if (threadIdx.x == 0) {
    s.opcode[worker] = opcode;
    s.busy[worker] = 1;
    s.busy_count++;
    s.given[worker] = number;
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
__device__ void mirror(const Schedule& s, const Arena& arena, const Device& device, u32 position) {
  u32* control = arena.control;
  if (threadIdx.x < UA_CONTROL_METRICS_COUNT)
    volatile_store(control + UA_CONTROL_METRICS_WORD + threadIdx.x, s.metrics[threadIdx.x]);
  if (threadIdx.x < QUEUES)
    volatile_store(control + UA_CONTROL_PRIORITY_FAIRNESS_WORD + threadIdx.x, s.served[threadIdx.x]);
  if (threadIdx.x == 0) {
    volatile_store(control + UA_CONTROL_EPOCH_WORD, s.epoch);
    volatile_store(control + UA_CONTROL_STARVATION_WORD, s.starved);
    volatile_store(arena.state + UA_STATE_CLAIM / 4, position);
    volatile_store(arena.log, volatile_load(device.log) * UA_LOG_RECORD_WORDS);
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
  u32 position = arena.first_position, look = 1, idle = 0, since = 0, quiet = 0, mirrored, seen;
  for (u32 i = lane; i < sizeof(Schedule) / 4; i += 32) ((u32*)&s)[i] = 0;
  __syncwarp();
  for (u32 w = lane; w < workers; w += 32) s.idle[w] = w;
  // Counters go on where an earlier kernel on this ring left them.
  const u32* control = arena.control;
  if (lane < UA_CONTROL_METRICS_COUNT) s.metrics[lane] = volatile_load(control + UA_CONTROL_METRICS_WORD + lane);
  if (lane < QUEUES) s.served[lane] = volatile_load(control + UA_CONTROL_PRIORITY_FAIRNESS_WORD + lane);
  if (lane == 0) {
    s.idle_count = workers;
    s.done = volatile_load(arena.control + UA_CONTROL_DONE_COUNT_WORD);
    s.epoch = volatile_load(arena.control + UA_CONTROL_EPOCH_WORD);
    s.starved = volatile_load(arena.control + UA_CONTROL_STARVATION_WORD);
    volatile_store(device.log, volatile_load(arena.log) / UA_LOG_RECORD_WORDS);
  }
  __syncwarp();
  mirrored = seen = s.done;
  for (bool stop = false; !stop;) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (line < look) words = __ldcv((const uint4*)(arena.ring + (u64)((position + line) & mask) * 16) + part);
    if (s.busy_count) take_reports(s, device, workers);  // while the line is on its way
    u32 status_ok = __ballot_sync(~0u, part == 0 && words.x == UA_PUBLISHED);
    u32 place_ok = __ballot_sync(~0u, part == 3 && words.w == position + line);
    u32 count = 0;
    while (count < look && (status_ok >> (4 * count) & 1) && (place_ok >> (4 * count + 3) & 1)) count++;
    if (count) {
      acquire_fence_sys();
      release_fence_gpu();
      if (!give_fresh(s, device, words, position, count, mask)) enqueue(s, device, words, position, count, mask);
      position += count;
    }
    dispatch(s, device, mask);
    idle = count ? 0 : idle + 1;
    look = count ? LOOK_AHEAD : 1;
    // Not right after a report: that is when the host publishes the next, and a fence would keep it waiting.
    quiet = seen == s.done ? quiet + 1 : 0;
    seen = s.done;
    if (mirrored != seen && (++since >= MIRROR_EVERY || quiet >= QUIET)) {
      mirrored = seen;
      since = 0;
      mirror(s, arena, device, position);
    }
    if (idle % IDLE_LOOKS == IDLE_LOOKS - 1 && lane == 0 && volatile_load(arena.control + UA_CONTROL_SHUTDOWN_WORD)) s.stop = 1;
    __syncwarp();
    stop = s.stop;
    __syncwarp();
  }
  while (s.busy_count) take_reports(s, device, workers);
  mirror(s, arena, device, position);
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

// ── reductions: an operation leaves a few 64-bit words of a payload, its state ───────────────────────────────────

// TOUCH: every payload byte once, 16 bytes a load, four loads in flight in each thread. State: their sum.
__device__ void touch(const u8* payload, u32 bytes, u64* state) {
  const uint4* words = (const uint4*)payload;
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
  if (threadIdx.x == 0) *(volatile u64*)state = total;
}

// a · b modulo CRC32C's polynomial (reflected: bit 31 is x^0).
__device__ u32 crc_multiply(u32 a, u32 b) {
  u32 product = 0;
#pragma unroll 8
  for (u32 bit = 1u << 31; bit; bit >>= 1) {
    if (a & bit) product ^= b;
    b = b >> 1 ^ (b & 1 ? UA_CRC_POLYNOMIAL : 0);
  }
  return product;
}

// crc · x^(8 · bytes); powers[k] is x^(8 · 2^k).
__device__ u32 crc_shift(u32 crc, u32 bytes, const u32* powers) {
  for (u32 k = 0; bytes; bytes >>= 1, k++)
    if (bytes & 1) crc = crc_multiply(crc, powers[k]);
  return crc;
}

__device__ __forceinline__ u32 crc_word(const u32* slices, u32 word, u32 crc) {
  return slices[word & 255] ^ slices[256 + (word >> 8 & 255)] ^ slices[512 + (word >> 16 & 255)] ^
         slices[768 + (word >> 24)] ^ crc;
}

// CRC32C. A thread sums up every 1,024th 16-byte word: its sum so far times x^(8 · 16,384) and the word's own, both by
// tables in shared memory. At the end each thread's sum is shifted over what lies behind its last word, and all are
// added. State: the CRC32C, the bytes it is of.
__device__ void crc32c(const u8* payload, u32 bytes, u64* state, const u32* tables, u32* shared) {
  __shared__ u32 raw;
  const u32 t = threadIdx.x, count = bytes / 16, tail = bytes % 16;
  const uint4* words = (const uint4*)payload;
  const u32* stride = shared + UA_CRC_STRIDE_WORD;
  const u32* powers = tables + UA_CRC_POWERS_WORD;
  __syncthreads();  // nobody reads what lay here before
  for (u32 i = t; i < UA_CRC_POWERS_WORD; i += blockDim.x) shared[i] = tables[i];
  if (t == 0) raw = 0;
  __syncthreads();
  u32 crc = 0, last = 0;
  uint4 word = t < count ? __ldcv(words + t) : make_uint4(0, 0, 0, 0);
  for (u32 i = t; i < count; i += 1024) {
    uint4 following = i + 1024 < count ? __ldcv(words + i + 1024) : make_uint4(0, 0, 0, 0);
    crc = crc_word(stride, crc, 0);
    // Byte b of the 16 contributes slices[15 - b]; a table holds them in the order of the bytes.
    crc = crc_word(shared, word.x ^ crc, 0);
    crc = crc_word(shared + 1024, word.y, crc);
    crc = crc_word(shared + 2048, word.z, crc);
    crc = crc_word(shared + 3072, word.w, crc);
    word = following;
    last = i + 1;
  }
  if (last) crc = crc_shift(crc, (count - last) * 16 + tail, powers);
  if (t == 0) {
    u32 rest = 0;
    for (u32 i = 0; i < tail; i++)
      rest = rest >> 8 ^ shared[UA_CRC_BYTE_WORD + ((rest ^ __ldcv(payload + count * 16 + i)) & 255)];
    crc ^= rest ^ crc_shift(~0u, bytes, powers) ^ ~0u;
  }
  for (int o = 16; o; o >>= 1) crc ^= __shfl_xor_sync(~0u, crc, o);
  if ((t & 31) == 0) atomicXor(&raw, crc);
  __syncthreads();
  if (t == 0) {
    *(volatile u64*)state = raw;
    *(volatile u64*)(state + 1) = bytes;
  }
}

__device__ __forceinline__ void count_word(u32* counts, u32 word) {
  atomicAdd(counts + (word & 255), 1);
  atomicAdd(counts + (word >> 8 & 255), 1);
  atomicAdd(counts + (word >> 16 & 255), 1);
  atomicAdd(counts + (word >> 24), 1);
}

// How often each byte value occurs: a table for each warp in shared memory. State: 256 counts.
__device__ void histogram(const u8* payload, u32 bytes, u64* state, u32* shared) {
  const u32 t = threadIdx.x, count = bytes / 16;
  const uint4* words = (const uint4*)payload;
  u32* counts = shared + (t >> 5) * 256;
  __syncthreads();
  for (u32 i = t & 31; i < 256; i += 32) counts[i] = 0;
  __syncwarp();
  uint4 word = t < count ? __ldcv(words + t) : make_uint4(0, 0, 0, 0);
  for (u32 i = t; i < count; i += 1024) {
    uint4 following = i + 1024 < count ? __ldcv(words + i + 1024) : make_uint4(0, 0, 0, 0);
    count_word(counts, word.x);
    count_word(counts, word.y);
    count_word(counts, word.z);
    count_word(counts, word.w);
    word = following;
  }
  if (count * 16 + t < bytes) atomicAdd(counts + __ldcv(payload + count * 16 + t), 1);
  __syncthreads();
  if (t < 256) {
    u64 total = 0;
    for (u32 w = 0; w < 32; w++) total += shared[w * 256 + t];
    *(volatile u64*)(state + t) = total;
  }
}

__device__ u32 state_words(u32 opcode) {
  return opcode == UA_OP_SCAN_TOUCH ? 1 : opcode == UA_OP_SCAN_CRC32C ? 2 : 256;
}

// The states of a payload at `offset` in its file: one, or with `block` one for each of the file's blocks of that size
// (a multiple of 16) that it meets. FAULT where they don't fit the result block.
__device__ u32 reduce(u32 opcode, const u8* payload, u32 bytes, u64 offset, u32 block, u8* result, u64 result_bytes,
                      const u32* tables, u32* shared) {
  const u32 words = state_words(opcode);
  const u64 states = block && bytes ? (offset + bytes - 1) / block - offset / block + 1 : 1;
  if (block % 16) return FAULT_FOR(UA_REASON_ARGUMENT);
  if (UA_RESULT_VALUES + 8 * words * states > result_bytes) return FAULT_FOR(UA_REASON_RESULT);
  u64* state = (u64*)(result + UA_RESULT_VALUES);
  for (u64 k = 0; k < states; k++, state += words) {
    const u32 part = block ? (u32)min((u64)bytes, block - offset % block) : bytes;
    if (opcode == UA_OP_SCAN_TOUCH) touch(payload, part, state);
    else if (opcode == UA_OP_SCAN_CRC32C) crc32c(payload, part, state, tables, shared);
    else histogram(payload, part, state, shared);
    payload += part;
    offset += part;
    bytes -= part;
  }
  if (threadIdx.x == 0) {
    volatile_store((u32*)(result + UA_RESULT_COUNT), 0);
    volatile_store((u32*)(result + UA_RESULT_OVERFLOW), 0);
  }
  return UA_DONE;
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

// Run a user's operation with all threads of the block, and store its state. FAULT where there is none such.
__device__ u32 run_user(u32 opcode, const u8* payload, u32 bytes, bool before, u32 after, u64 offset, u8* result,
                        u64 result_bytes, long long* state) {
  const u32 words = user_words(opcode);
  if (!words) return FAULT_FOR(UA_REASON_OPCODE);
  if (UA_RESULT_VALUES + 8 * words > result_bytes) return FAULT_FOR(UA_REASON_RESULT);
  for (u32 i = threadIdx.x; i < words; i += blockDim.x) state[i] = 0;
  __syncthreads();
  user_operation(opcode, payload, bytes, before, after, offset, state);
  __syncthreads();
  for (u32 i = threadIdx.x; i < words; i += blockDim.x)
    *(volatile long long*)(result + UA_RESULT_VALUES + 8 * i) = state[i];
  return UA_DONE;
}

// ── MATCH ────────────────────────────────────────────────────────────────────────────────────────────────────────
// Words of a pattern set end in the states of a few automata (ops/match/automaton.py makes their tables). A state
// depends on no more than the last `depth - 1` bytes, so every thread searches its own piece of a tile, after it has
// walked the end of the piece before. Loads of a tile are coalesced and made once; the pieces are read from shared
// memory, and the next tile is on its way meanwhile.

struct PatternSet {
  const u8* classes;   // 256 for each automaton
  const u32* next;     // (state << shift) + class → the same of the next state
  const u32* first;    // where a state's patterns begin in `accepts`
  const u32* accepts;  // patterns
  u32 groups, shift, depth;
  u32 roots[MOST_GROUPS];
};

__device__ PatternSet pattern_set(const u8* sets, u32 number) {
  const u32* entry = (const u32*)sets + number * UA_SET_WORDS;
  PatternSet set;
  set.groups = min(volatile_load(entry + UA_SET_GROUPS_WORD), MOST_GROUPS);
  set.shift = volatile_load(entry + UA_SET_SHIFT_WORD);
  set.depth = volatile_load(entry + UA_SET_DEPTH_WORD);
  set.classes = sets + volatile_load(entry + UA_SET_CLASSES_WORD);
  set.next = (const u32*)(sets + volatile_load(entry + UA_SET_NEXT_WORD));
  set.first = (const u32*)(sets + volatile_load(entry + UA_SET_FIRST_WORD));
  set.accepts = (const u32*)(sets + volatile_load(entry + UA_SET_ACCEPTS_WORD));
#pragma unroll
  for (u32 g = 0; g < MOST_GROUPS; g++) set.roots[g] = volatile_load(entry + UA_SET_ROOTS_WORD + g);
  return set;
}

struct Found {  // shared memory of a worker
  u32 count, last;
  u32 newlines[32];  // by warp, of the tile at hand
};

// Write down every pattern that ends in this state, as far as the result block has room.
__device__ __noinline__ void report(const PatternSet& set, u32 state, u32 end, Found& found, u8* result, u32 capacity) {
  for (u32 k = set.first[state]; k < set.first[state + 1]; k++) {
    u32 at = atomicAdd(&found.count, 1);
    if (at < capacity)
      __stwt((uint4*)(result + UA_RESULT_HITS) + at, make_uint4(set.accepts[k], UA_HIT_NO_START, end, 0));
  }
}

// One thread's walk through its piece: `words` of the tile, of which `length` bytes count, after `warm` words before.
__device__ void walk(const PatternSet& set, u32 root, const u8* classes, const u32* words, u32 warm, u32 length,
                     u32 offset, Found& found, u8* result, u32 capacity) {
  const u32* next = set.next;
  u32 entry = root;
  for (u32 k = CHUNK_WORDS - warm; k < CHUNK_WORDS; k++) {
    u32 word = (words - CHUNK_STRIDE)[k];
#pragma unroll
    for (u32 j = 0; j < 4; j++) entry = next[(entry & ~ACCEPTS) + classes[word >> 8 * j & 255]];
  }
  for (u32 k = 0; 4 * k < length; k++) {
    u32 word = words[k];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      entry = next[(entry & ~ACCEPTS) + classes[word >> 8 * j & 255]];
      if (entry & ACCEPTS && 4 * k + j < length)
        report(set, (entry & ~ACCEPTS) >> set.shift, offset + 4 * k + j + 1, found, result, capacity);
    }
  }
}

// The first warp, for one tile from `start` on: newlines before each chunk that begins behind one of its pieces, to
// `index`. `before`: those before the tile; returned: those before the next.
__device__ u32 index_newlines(const u32* by_warp, u32 before, u32 start, u32 bytes, u32* index) {
  const u32 t = threadIdx.x, behind = start + (t + 1) * (TILE_BYTES / 32);
  u32 sum = by_warp[t];
  for (u32 o = 1; o < 32; o <<= 1) {
    const u32 other = __shfl_up_sync(~0u, sum, o);
    if (t >= o) sum += other;
  }
  if (behind % UA_NEWLINE_CHUNK == 0 && behind < bytes) volatile_store(index + behind / UA_NEWLINE_CHUNK, before + sum);
  return before + __shfl_sync(~0u, sum, 31);
}

// Search payload and halo, and count the payload's newlines. `begins` in the payload are all reported, wherever they
// end: that is what the halo is for.
__device__ void match(const PatternSet& set, const u8* payload, u32 bytes, u32 halo, u8* result, u32 capacity,
                      u32* index, u32* tile) {
  __shared__ u8 classes[MOST_GROUPS * 256];
  __shared__ Found found;
  const u32 t = threadIdx.x, total = bytes + halo, count = (total + 15) / 16;
  const uint4* words = (const uint4*)payload;
  for (u32 i = t; i < set.groups * 256; i += blockDim.x) classes[i] = set.classes[i];
  if (t == 0) found.count = found.last = 0;
  const uint4 none = make_uint4(0, 0, 0, 0);
  uint4 a = t < count ? __ldcv(words + t) : none;
  uint4 b = t + 1024 < count ? __ldcv(words + t + 1024) : none;
  u32* mine = tile + (t + 1) * CHUNK_STRIDE;
  const u32 warm_words = (set.depth + 2) / 4;  // depth - 1 bytes, rounded up
  u32 newlines = 0, last = 0;  // newlines: in the first warp, those of the tiles so far
  for (u32 start = 0; start < total; start += TILE_BYTES) {
    // The 16-byte word i goes to piece i / 2, half i % 2; piece -1 holds the end of the tile before.
    u32* to = tile + (t / 2 + 1) * CHUNK_STRIDE + (t & 1) * 4;
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to += 512 * CHUNK_STRIDE;
    to[0] = b.x, to[1] = b.y, to[2] = b.z, to[3] = b.w;
    __syncthreads();
    const u32 following = (start + TILE_BYTES) / 16 + t;
    a = following < count ? __ldcv(words + following) : none;
    b = following + 1024 < count ? __ldcv(words + following + 1024) : none;
    const u32 tail = t < CHUNK_WORDS ? tile[1024 * CHUNK_STRIDE + t] : 0;
    const u32 offset = start + t * 32;
    u32 sum = 0;
    if (offset < total) {
      const u32 warm = offset ? warm_words : 0;
      for (u32 g = 0; g < set.groups; g++)
        walk(set, set.roots[g], classes + g * 256, mine, warm, min(32u, total - offset), offset, found, result,
             capacity);
      for (u32 k = 0; k < CHUNK_WORDS && offset + 4 * k < bytes; k++) {
        u32 same = __vcmpeq4(mine[k], 0x0a0a0a0au);
        const u32 left = bytes - offset - 4 * k;
        if (left < 4) same &= (1u << 8 * left) - 1;
        sum += __popc(same) >> 3;
        if (same) last = offset + 4 * k + (31 - __clz(same)) / 8 + 1;
      }
    }
    for (u32 o = 16; o; o >>= 1) sum += __shfl_down_sync(~0u, sum, o);
    if (t % 32 == 0) found.newlines[t / 32] = sum;
    __syncthreads();
    if (t < CHUNK_WORDS) tile[t] = tail;
    // Nobody writes `found.newlines` again before the barrier that the next tile begins with.
    if (t < 32) newlines = index_newlines(found.newlines, newlines, start, bytes, index);
  }
  if (last) atomicMax(&found.last, last);
  __syncthreads();
  if (t == 0) {
    volatile_store((u32*)(result + UA_RESULT_COUNT), found.count);
    volatile_store((u32*)(result + UA_RESULT_OVERFLOW), found.count > capacity);
    volatile_store((u32*)(result + UA_RESULT_NEWLINES), newlines);
    volatile_store((u32*)(result + UA_RESULT_LAST_NEWLINE), found.last ? found.last - 1 : UA_NO_NEWLINE);
  }
}

// ── operations on control words, and the debug log ───────────────────────────────────────────────────────────────

// One record of the log. The cursor that the host sees is the scheduler's to move.
__device__ void log_record(const Arena& arena, const Device& device, u32 format, u32 a, u32 b, u32 c) {
  u32 at = 1 + atomicAdd(device.log, 1) * UA_LOG_RECORD_WORDS;
  if ((at + UA_LOG_RECORD_WORDS) * 4 > UA_LOG_BYTES) return;
  volatile_store(arena.log + at, format);
  volatile_store(arena.log + at + 1, a);
  volatile_store(arena.log + at + 2, b);
  volatile_store(arena.log + at + 3, c);
}

// How many arguments an operation has that may stand in a packed slot; NOTHING where it may not.
__device__ u32 argument_count(u32 opcode) {
  switch (opcode) {
    case UA_OP_NOP: return 0;
    case UA_OP_STORE_U32:
    case UA_OP_ATOMIC_ADD:
    case UA_OP_LOAD_U32: return 2;
    case UA_OP_COMPARE_SWAP: return 3;
    case UA_OP_DFA_STEP:
    case UA_OP_PRINTF: return 4;
    default: return NOTHING;
  }
}

// An operation of one thread. FAULT where an argument is out of range.
__device__ u32 control_operation(const Arena& arena, const Device& device, u32 opcode, const u32* a) {
  const u32 words = UA_CONTROL_WORDS, observables = UA_CONTROL_WORDS - UA_CONTROL_OBSERVABLE_WORD;
  switch (opcode) {
    case UA_OP_NOP:
    case UA_OP_SCAN_NOP:
      return UA_DONE;
    case UA_OP_STORE_U32:
      if (a[1] >= words) return FAULT_FOR(UA_REASON_ARGUMENT);
      volatile_store(arena.control + a[1], a[0]);
      return UA_DONE;
    case UA_OP_ATOMIC_ADD:
      if (a[1] >= words) return FAULT_FOR(UA_REASON_ARGUMENT);
      atomicAdd(arena.control + a[1], a[0]);
      return UA_DONE;
    case UA_OP_LOAD_U32:
      if (a[0] >= words || a[1] >= observables) return FAULT_FOR(UA_REASON_ARGUMENT);
      volatile_store(arena.control + UA_CONTROL_OBSERVABLE_WORD + a[1], volatile_load(arena.control + a[0]));
      return UA_DONE;
    case UA_OP_COMPARE_SWAP:
      if (a[2] >= words) return FAULT_FOR(UA_REASON_ARGUMENT);
      atomicCAS(arena.control + a[2], a[0], a[1]);
      return UA_DONE;
    case UA_OP_DFA_STEP: {
      const u64 at = ((u64)a[0] * 256 + a[1]) * 4;
      if (a[1] > 255 || a[2] >= arena.data_slots || at + 4 > arena.slot_bytes || a[3] >= observables)
        return FAULT_FOR(UA_REASON_ARGUMENT);
      volatile_store(arena.control + UA_CONTROL_OBSERVABLE_WORD + a[3],
                     volatile_load((const u32*)(arena.data + a[2] * arena.slot_bytes + at)));
      return UA_DONE;
    }
    case UA_OP_LOAD_MISS:
      log_record(arena, device, UA_OP_LOAD_MISS, a[0], a[1], a[2]);
      return UA_DONE;
    case UA_OP_PRINTF:
      log_record(arena, device, a[0], a[1], a[2], a[3]);
      return UA_DONE;
    case UA_OP_SHUTDOWN:
      volatile_store(arena.control + UA_CONTROL_SHUTDOWN_WORD, 1);
      return UA_DONE;
    case UA_OP_BATCH_FENCE:
      return UA_DONE;  // the rest is the scheduler's, when it is reported
    default:
      return FAULT_FOR(UA_REASON_OPCODE);
  }
}

// PACKED_SLOT: a[0] operations, each its opcode and its arguments, one after the other. Nothing runs unless all may.
__device__ u32 packed_operations(const Arena& arena, const Device& device, const u32* a) {
  u32 at = 1;
  for (u32 i = 0; i < a[0]; i++) {
    const u32 count = at < UA_PACKED_WORDS ? argument_count(a[at]) : NOTHING;
    if (count == NOTHING || at + 1 + count > UA_PACKED_WORDS) return FAULT_FOR(UA_REASON_ARGUMENT);
    at += 1 + count;
  }
  at = 1;
  u32 status = UA_DONE;
  for (u32 i = 0; i < a[0]; i++) {
    if (control_operation(arena, device, a[at], a + at + 1) != UA_DONE)
      status = FAULT_FOR(UA_REASON_ARGUMENT);
    at += 1 + argument_count(a[at]);
  }
  return status;
}

// MEMCPY within the data slots: a[0..1] from, a[2..3] to (bytes from the first slot on, low word first), a[4] bytes.
__device__ u32 copy_bytes(const Arena& arena, const u32* a) {
  const u64 from = a[0] | (u64)a[1] << 32, to = a[2] | (u64)a[3] << 32, bytes = a[4];
  const u64 room = (u64)arena.data_slots * arena.slot_bytes;
  if (from > room || bytes > room - from || to > room || bytes > room - to) return FAULT_FOR(UA_REASON_ARGUMENT);
  if (from < to + bytes && to < from + bytes && bytes) return FAULT_FOR(UA_REASON_ARGUMENT);
  const bool wide = (from | to | bytes) % 16 == 0;
  const u64 step = wide ? 16 : 1;
  for (u64 i = threadIdx.x * step; i < bytes; i += blockDim.x * step) {
    if (wide) __stwt((uint4*)(arena.data + to + i), __ldcv((const uint4*)(arena.data + from + i)));
    else *(volatile u8*)(arena.data + to + i) = __ldcv(arena.data + from + i);
  }
  return UA_DONE;
}

__device__ bool permitted(const Arena& arena, u32 tenant) {
  return tenant < UA_TENANTS && volatile_load(arena.control + UA_CONTROL_TENANT_MASK_WORD + tenant) == 0;
}

// ── worker ───────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ bool scans(u32 opcode) {
  return opcode == UA_OP_SCAN_TOUCH || opcode == UA_OP_SCAN_CRC32C || opcode == UA_OP_SCAN_HISTOGRAM ||
         opcode == UA_OP_SCAN_MATCH || (opcode >= UA_OP_USER_FIRST && opcode <= UA_OP_USER_LAST);
}

// A scan of one payload, by all threads. FAULT for one that can't be read in 16-byte words, or leaves its data slot.
__device__ u32 scan(const Arena& arena, const Device& device, u32 opcode, const u32* slot, u32* scratch) {
  const u32 where = slot[UA_SLOT_DATA_SLOT / 4], begin = slot[UA_SLOT_PAYLOAD_OFFSET / 4];
  const u32 bytes = slot[UA_SLOT_PAYLOAD_BYTES / 4], halo = slot[UA_SLOT_HALO_BYTES / 4];
  if (where >= arena.data_slots || begin % 16 || (u64)begin + bytes + halo > arena.slot_bytes)
    return FAULT_FOR(UA_REASON_ARGUMENT);
  const u8* payload = arena.data + where * arena.slot_bytes + begin;
  u8* result = arena.results + where * arena.result_bytes;
  const u32 parameter = slot[UA_SLOT_OPERATION / 4];
  if (opcode == UA_OP_SCAN_MATCH) {
    const u32* entry = (const u32*)device.sets + parameter * UA_SET_WORDS;
    if (parameter >= UA_SETS || !volatile_load(entry + UA_SET_LOADED_WORD))
      return FAULT_FOR(UA_REASON_ARGUMENT);
    const u32 capacity = (arena.result_bytes - UA_RESULT_HITS) / UA_HIT_BYTES;
    u32* index = (u32*)(arena.newlines + where * arena.newline_bytes) + begin / UA_NEWLINE_CHUNK;
    match(pattern_set(device.sets, parameter), payload, bytes, halo, result, capacity, index, scratch);
    return UA_DONE;
  }
  const u64 offset = slot[UA_SLOT_FILE_OFFSET / 4] | (u64)slot[UA_SLOT_FILE_OFFSET / 4 + 1] << 32;
  if (opcode <= UA_OP_USER_LAST)
    return run_user(opcode, payload, bytes, offset && begin, halo, offset, result, arena.result_bytes,
                    (long long*)scratch);
  // TOUCH has no blocks: its slots' operation parameter is the publisher's own.
  const u32 block = opcode == UA_OP_SCAN_TOUCH ? 0 : parameter;
  return reduce(opcode, payload, bytes, offset, block, result, arena.result_bytes, device.crc, scratch);
}

__device__ void work(const Arena& arena, const Device& device, u32 worker) {
  __shared__ u32 descriptor[3 * MAILBOX_PIECES], allowed;
  extern __shared__ __align__(16) u32 scratch[];  // UA_SCRATCH_BYTES, for the operation at hand
  const u32* mailbox = device.mailboxes + worker * MAILBOX_WORDS;
  u32 number = 0;
  for (;;) {
    if (threadIdx.x < 32) {
      uint4 piece;
      do {
        piece = make_uint4(0, 0, 0, number + 1);
        if (threadIdx.x < MAILBOX_PIECES) piece = load_piece(mailbox + 4 * threadIdx.x);
      } while (!__all_sync(~0u, piece.w != number));
      acquire_fence_gpu();
      number = __shfl_sync(~0u, piece.w, 0);
      u32* to = descriptor + 3 * threadIdx.x;
      if (threadIdx.x < MAILBOX_PIECES) to[0] = piece.x, to[1] = piece.y, to[2] = piece.z;
    }
    __syncthreads();
    const u32 slot = descriptor[0], opcode = descriptor[UA_SLOT_OPCODE / 4];
    if (slot == NOTHING) return;
    u32* home = arena.ring + (u64)slot * 16;
    u32 status = UA_DONE;
    if (threadIdx.x == 0) volatile_store(home, UA_CLAIMED);
    // The mask lies in host memory. A scan has no effect but its result, so it need not wait for the answer: that is
    // looked at behind it, and asked for by a thread whose warp has least of a short payload to load.
    const bool asks = threadIdx.x == blockDim.x - 1;
    const bool permits = asks && permitted(arena, descriptor[UA_SLOT_TENANT / 4]);
    if (scans(opcode)) {
      status = scan(arena, device, opcode, descriptor, scratch);
      if (asks) allowed = permits;
    } else {
      if (asks) allowed = permits;
      __syncthreads();
      if (allowed && opcode == UA_OP_MEMCPY) status = copy_bytes(arena, descriptor + UA_SLOT_ARGS / 4);
      else if (allowed && threadIdx.x == 0)
        status = opcode == UA_OP_PACKED_SLOT
                     ? packed_operations(arena, device, descriptor + UA_SLOT_ARGS / 4)
                     : control_operation(arena, device, opcode, descriptor + UA_SLOT_ARGS / 4);
    }
    __syncthreads();  // every thread's stores stand before the status
    if (threadIdx.x == 0 && !allowed) status = FAULT_FOR(UA_REASON_TENANT);
    if (threadIdx.x == 0) {
      if (status != UA_DONE) volatile_store(home + UA_SLOT_REASON / 4, status >> 8);
      release_sys(home, status & 255);
      release_gpu(device.reports + worker, status == UA_DONE ? number : number | FAULTED);
    }
    __syncthreads();  // nobody may overwrite the descriptor while others read it
  }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
megakernel(u32* control, u32* state, u32* ring, u8* results, u8* newlines, u8* data, u32* log, u64 result_bytes,
           u64 newline_bytes, u64 slot_bytes, u32 ring_mask, u32 data_slots, u32 first_position, u32* queues,
           u32* descriptors, u32* mailboxes, u32* reports, u32* log_cursor, u8* sets, const u32* crc) {
  __shared__ Schedule scheduling;
  const Arena arena = {control,      state,         ring,       results,   newlines,   data,          log,
                       result_bytes, newline_bytes, slot_bytes, ring_mask, data_slots, first_position};
  const Device device = {queues, descriptors, mailboxes, reports, log_cursor, sets, crc};
  if (blockIdx.x > 0)
    work(arena, device, blockIdx.x - 1);
  else if (threadIdx.x < 32)
    schedule(scheduling, arena, device, gridDim.x - 1);
}

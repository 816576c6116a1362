// Compiles the CUDA kernels of csrc/*.cuh as host C++20 and runs them without a GPU; to be included before device.cuh.
//
// The threads of a block are fibers of one operating-system thread: each runs until it waits at a barrier or in a warp
// operation, then the next one does. The environment is read at every launch:
//   EQTP_CPU_ORDER    forward (default), reverse or random: which thread runs first; results must not depend on it
//   EQTP_CPU_SEED     of the random order (0)
//   EQTP_CPU_THREADS  operating-system threads (1); blocks are dealt out to them in turn and nothing orders blocks of
//                     different threads
// Reported as std::runtime_error: barriers and warp operations that not all threads reach, impossible launches. Shared
// memory starts as all bits one (NaN) in every block, and so does what a shuffle reads from a lane that takes no part.
// -fsanitize=address,undefined finds accesses out of bounds (global and dynamic shared memory; static shared arrays
// where they are indexed directly). -fsanitize=thread finds races: every CUDA thread is a thread to it, ordered by
// __syncthreads and __syncwarp alone. Shuffles and atomics order nothing. What has no host text: PTX, matrix
// instructions, cooperative groups, textures; and nothing here says anything about time.
#pragma once
#include <link.h>
#include <math.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cuda/context.h"

// ----------------------------------------------------------------------------------------------------------------
//   sanitizers
#if defined(__has_feature)  // clang
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__  // has to be told of every change of stack
extern "C" void __sanitizer_start_switch_fiber(void** fake, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake, const void** bottom, size_t* size);
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t);
#define EQTP_ASAN(...) __VA_ARGS__
#else
#define EQTP_ASAN(...)
#endif
#ifdef __SANITIZE_THREAD__
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned);
extern "C" void __tsan_switch_to_fiber(void*, unsigned flags);  // 0: the switch orders memory; 1: it does not
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#define EQTP_TSAN(...) __VA_ARGS__
#else
#define EQTP_TSAN(...)
#endif

// ----------------------------------------------------------------------------------------------------------------
//   words of CUDA
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define EQTP_DYN_SHARED(T, name) T* const name = static_cast<T*>(eqtp::cpu::current->shared)
#define threadIdx (eqtp::cpu::self().index)
#define blockIdx (eqtp::cpu::current->index)
#define blockDim (eqtp::cpu::current->dim)
#define gridDim (eqtp::cpu::current->grid)
#define warpSize 32

using cudaStream_t = void*;
struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace eqtp {
namespace cpu {

// ----------------------------------------------------------------------------------------------------------------
//   fibers
constexpr size_t PAGE = 4096, STACK = 32 * PAGE;  // bytes; the lowest page of a stack is a guard
constexpr int MASKS = 16;  // different masks in use by one warp

// The lanes of a warp that name one mask meet here. Two sets of values: a lane may come again before the others have
// read.
struct Meeting {
  uint32_t mask, here;
  unsigned turn;
  const char* op;
  unsigned char value[2][32][8];  // [turn & 1, lane, byte]
};
struct Copy {  // under way: functions.h
  void* to;
  const void* from;
  size_t bytes;
};
enum State { READY, AT_BARRIER, IN_WARP, LEFT };
struct Fiber {
  Context context;
  uint3 index;
  unsigned lane, warp;
  State state;
  Meeting* at;
  char* stack;  // [STACK]
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // where each ends in `copies`
  void *tsan = nullptr, *fake_stack = nullptr;
  bool started;
};
struct Block {  // the block that an operating-system thread is running; its memory serves one block after the other
  uint3 index;
  dim3 dim, grid;
  void (*body)(void*);
  void *context, *shared = nullptr;
  unsigned threads;
  std::vector<Fiber> fibers;  // [>= threads]
  std::vector<Meeting> meetings;  // [>= warps, MASKS]
  Fiber* fiber;  // that runs now
  Context scheduler;
  unsigned turn;  // barriers passed
  std::string error;
  char order[2];  // to the race checker: what the barriers of even and odd turns synchronise on
  void *tsan = nullptr, *fake_stack = nullptr;
  const void* bottom = nullptr;  // of the scheduler's stack
  size_t size = 0;
};
inline thread_local Block* current = nullptr;

struct Quiet {  // what the emulation itself reads and writes is no business of the race checker
  EQTP_TSAN(Quiet() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); })
  EQTP_TSAN(~Quiet() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); })
};
inline Fiber& self() {
  [[maybe_unused]] Quiet quiet;
  return *current->fiber;
}

inline void yield(State state) {  // fiber -> scheduler
  Fiber& f = self();
  Block& b = *current;
  {
    [[maybe_unused]] Quiet quiet;
    f.state = state;
  }
  EQTP_ASAN(__sanitizer_start_switch_fiber(state == LEFT ? nullptr : &f.fake_stack, b.bottom, b.size);)
  EQTP_TSAN(__tsan_switch_to_fiber(b.tsan, state != LEFT);)
  Context::change(f.context, b.scheduler);
  EQTP_ASAN(__sanitizer_finish_switch_fiber(f.fake_stack, &b.bottom, &b.size);)
}
inline void resume(Block& b, Fiber& f) {  // scheduler -> fiber
  b.fiber = &f;
  EQTP_ASAN(__sanitizer_start_switch_fiber(&b.fake_stack, f.stack, STACK);)
  EQTP_TSAN(const bool started = f.started; f.started = true; __tsan_switch_to_fiber(f.tsan, started);)
  Context::change(b.scheduler, f.context);
  EQTP_ASAN(__sanitizer_finish_switch_fiber(b.fake_stack, nullptr, nullptr);)
}
inline void fiber_main() {
  Block& b = *current;
  EQTP_ASAN(__sanitizer_finish_switch_fiber(nullptr, &b.bottom, &b.size);)
  try {
    b.body(b.context);
  } catch (const std::exception& e) {
    [[maybe_unused]] Quiet quiet;
    if (b.error.empty()) b.error = e.what();
  }
  yield(LEFT);
}

// ----------------------------------------------------------------------------------------------------------------
//   warps
inline uint32_t present(const Block& b, unsigned warp) {  // lanes that exist
  const unsigned lanes = b.threads - 32 * warp;
  return lanes >= 32 ? ~0u : (1u << lanes) - 1;
}
// Every lane of mask hands in a value and gets [32][8] bytes, the values of all of them.
template <class T>
const unsigned char (&meet(const char* op, uint32_t mask, T value, bool orders_memory = false))[32][8] {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8, "shuffles move one number");
  Block& b = *current;
  Fiber& f = *b.fiber;
  Meeting* m = &b.meetings[f.warp * MASKS];
  const Meeting* const end = m + MASKS;
  while (m != end && m->mask && m->mask != mask) ++m;
  if (m == end) throw std::runtime_error("a warp uses too many different masks");
  if (!(mask >> f.lane & 1)) throw std::runtime_error(std::string(op) + ": the mask lacks the lane that calls");
  if (!m->mask) m->mask = mask, m->here = 0, m->turn = 0, std::memset(m->value, 0xff, sizeof m->value);
  if (!m->here) m->op = op;
  if (std::strcmp(m->op, op))
    throw std::runtime_error(std::string("lanes of one warp meet in ") + m->op + " and in " + op);
  auto& values = m->value[m->turn & 1];
  std::memcpy(values[f.lane], &value, sizeof(T));
  m->here |= 1u << f.lane;
  (void)orders_memory;
  EQTP_TSAN(if (orders_memory) __tsan_release(&values);)
  if (m->here != (mask & present(b, f.warp))) {
    f.at = m;
    yield(IN_WARP);
  } else {  // the last one wakes the others
    m->here = 0, ++m->turn;
    for (unsigned t = 32 * f.warp; t < b.threads && t < 32 * f.warp + 32; ++t)
      if (b.fibers[t].state == IN_WARP && b.fibers[t].at == m) b.fibers[t].state = READY;
  }
  EQTP_TSAN(if (orders_memory) __tsan_acquire(&values);)
  return values;
}
template <class T>
T shuffle(const char* op, uint32_t mask, T value, int lane) {
  [[maybe_unused]] Quiet quiet;
  std::memcpy(&value, meet(op, mask, value)[lane], sizeof(T));
  return value;
}
inline uint32_t ballot(const char* op, uint32_t mask, bool vote) {
  [[maybe_unused]] Quiet quiet;
  const auto& votes = meet(op, mask, vote);
  uint32_t bits = 0;
  for (int l = 0; l < 32; ++l) bits |= uint32_t(votes[l][0] == 1) << l;  // lanes that take no part: 0xff
  return bits;
}

// ----------------------------------------------------------------------------------------------------------------
//   blocks
enum Order { FORWARD, REVERSE, RANDOM };
struct Settings {
  Order order = FORWARD;
  uint64_t seed = 0, threads = 1;
  Settings() {
    const char *o = std::getenv("EQTP_CPU_ORDER"), *s = std::getenv("EQTP_CPU_SEED"),
               *t = std::getenv("EQTP_CPU_THREADS");
    const std::string name = o ? o : "forward";
    if (name != "forward" && name != "reverse" && name != "random")
      throw std::runtime_error("EQTP_CPU_ORDER must be forward, reverse or random");
    order = name == "forward" ? FORWARD : name == "reverse" ? REVERSE : RANDOM;
    if (s) seed = std::strtoull(s, nullptr, 10);
    if (t) threads = std::strtoull(t, nullptr, 10);
    if (threads < 1 || threads > 64) throw std::runtime_error("EQTP_CPU_THREADS must be 1 to 64");
  }
};

// The thread-local memory of this program or library: `current` and the static shared memory of all kernels.
struct Storage {
  char* begin = nullptr;
  size_t bytes = 0;
  Storage() { dl_iterate_phdr(find, this); }
  static int find(dl_phdr_info* info, size_t, void* storage) {
    const auto here = reinterpret_cast<char*>(&current), begin = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
      const size_t bytes = info->dlpi_phdr[i].p_memsz;
      if (info->dlpi_phdr[i].p_type != PT_TLS || here < begin || here >= begin + bytes) continue;
      static_cast<Storage*>(storage)->begin = begin, static_cast<Storage*>(storage)->bytes = bytes;
      return 1;
    }
    return 0;
  }
  __attribute__((noinline)) void undefine() const {
    Block* const kept = current;
    std::memset(begin, 0xff, bytes);
    current = kept;
  }
};

inline void allocate(Block& b, unsigned threads) {
  b.threads = threads;
  b.meetings.resize((threads + 31) / 32 * MASKS);
  while (b.fibers.size() < threads) {
    void* p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, PAGE, PROT_NONE)) throw std::bad_alloc();
    b.fibers.emplace_back().stack = static_cast<char*>(p);
  }
}
// One round: every thread that is ready runs until it waits. Returns how many are in each state.
inline void round(Block& b, std::vector<unsigned>& order, const Settings& settings, uint64_t& random,
                  size_t (&count)[4]) {
  if (settings.order == RANDOM)
    for (size_t n = order.size(); n > 1; --n) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[n - 1], order[(random >> 33) % n]);
    }
  for (unsigned t : order)
    if (b.fibers[t].state == READY) resume(b, b.fibers[t]);
  std::memset(count, 0, sizeof count);
  for (unsigned t : order) ++count[b.fibers[t].state];
}
inline void run_block(Block& b, const Settings& settings, uint64_t random) {
  const unsigned n = b.threads;
  std::vector<unsigned> order(n);
  for (Meeting& m : b.meetings) m.mask = 0;
  for (unsigned t = 0; t < n; ++t) {
    order[t] = settings.order == REVERSE ? n - 1 - t : t;
    Fiber& f = b.fibers[t];
    f.index = {t % b.dim.x, t / b.dim.x % b.dim.y, t / (b.dim.x * b.dim.y)};
    f.lane = t % 32, f.warp = t / 32, f.state = READY, f.started = false, f.copies.clear(), f.groups.clear();
    EQTP_ASAN(__asan_unpoison_memory_region(f.stack + PAGE, STACK - PAGE);)
    EQTP_TSAN(if (!f.tsan) f.tsan = __tsan_create_fiber(0);)
    f.context.start(f.stack, STACK, fiber_main);
  }
  size_t count[4];
  while (round(b, order, settings, random, count), count[LEFT] < n && b.error.empty()) {
    if (count[READY]) continue;
    if (count[AT_BARRIER] < n)
      b.error = "not all threads reach one barrier: " + std::to_string(count[AT_BARRIER]) + " wait at __syncthreads, " +
                std::to_string(count[IN_WARP]) + " in a warp operation, " + std::to_string(count[LEFT]) +
                " have left the kernel";
    else
      for (unsigned t : order) b.fibers[t].state = READY;
    ++b.turn;
  }
  if (b.error.empty()) return;
  EQTP_TSAN(for (Fiber& f : b.fibers) f.tsan = nullptr;)  // they stopped halfway and cannot begin again
  const auto number = [](unsigned i) { return std::to_string(i); };
  throw std::runtime_error("block (" + number(b.index.x) + ", " + number(b.index.y) + ", " + number(b.index.z) +
                           "): " + b.error);
}
// Blocks first, first + threads, ...
inline void run_blocks(Block& b, size_t shared, const Settings& settings, uint64_t first, std::atomic<bool>& stop) {
  const uint64_t x = b.grid.x, y = b.grid.y, blocks = x * y * b.grid.z;
  b.shared = std::malloc(shared ? shared : 1);
  current = &b;
  EQTP_TSAN(b.tsan = __tsan_get_current_fiber();)
  const Storage storage;
  try {
    for (uint64_t i = first; i < blocks && !stop.load(std::memory_order_relaxed); i += settings.threads) {
      const uint64_t at = settings.order == REVERSE ? blocks - 1 - i : i;
      b.index = {unsigned(at % x), unsigned(at / x % y), unsigned(at / (x * y))};
      std::memset(b.shared, 0xff, shared ? shared : 1);
      storage.undefine();
      run_block(b, settings, settings.seed * blocks + at);
    }
  } catch (const std::exception& e) {
    b.error = e.what();
    stop = true;
  }
  std::free(b.shared);
}
inline void run_grid(dim3 grid, dim3 dim, size_t shared, void (*body)(void*), void* context) {
  static std::mutex one_launch;
  static std::deque<Block> all;  // [threads]
  const std::lock_guard<std::mutex> lock(one_launch);
  const Settings settings;
  const uint64_t n = uint64_t(dim.x) * dim.y * dim.z;
  if (!n || n > 1024 || dim.z > 64)
    throw std::runtime_error("launch: a block must have 1 to 1024 threads, at most 64 of them along z");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("launch: a grid must have 1 to 2^31 - 1, 65535, 65535 blocks");
  if (shared > 227 * 1024)
    throw std::runtime_error("launch: " + std::to_string(shared) +
                             " bytes of shared memory; no GPU has more than 227 KiB");
  while (all.size() < settings.threads) all.emplace_back();
  std::atomic<bool> stop{false};
  const auto work = [&](uint64_t i) { run_blocks(all[i], shared, settings, i, stop); };
  std::vector<std::thread> others;
  for (uint64_t i = 0; i < settings.threads; ++i) {
    Block& b = all[i];
    allocate(b, n);
    b.grid = grid, b.dim = dim, b.body = body, b.context = context, b.turn = 0, b.error.clear();
  }
  for (uint64_t i = 1; i < settings.threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& thread : others) thread.join();
  for (uint64_t i = 0; i < settings.threads; ++i)
    if (!all[i].error.empty()) throw std::runtime_error(all[i].error);
}

}  // namespace cpu

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t, A... a) {
  auto body = [&] { kernel(static_cast<P>(a)...); };
  cpu::run_grid(grid, block, shared, [](void* p) { (*static_cast<decltype(body)*>(p))(); }, &body);
}

}  // namespace eqtp

#include "cuda/functions.h"

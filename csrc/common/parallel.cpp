#include "common/parallel.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "common/simd.h"

namespace eqtp {

static bool forked = false;
static const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

void parallel(int threads, void (*body)(int, int, void*), void* context) {
  (void)at_fork;
  if (threads <= 1 || forked) return body(0, 1, context);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) body(t, threads, context);
}

static constexpr size_t HUGE = size_t(2) << 20;

static bool huge_wanted() {
  static const bool wanted = [] {
    const char* s = std::getenv("EQTP_HUGEPAGES");
    return !s || std::strcmp(s, "0") != 0;
  }();
  return wanted;
}

void advise_huge(void* p, size_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < 2 * HUGE || !huge_wanted()) return;
  const uintptr_t a = (reinterpret_cast<uintptr_t>(p) + HUGE - 1) & ~(HUGE - 1),
                  b = (reinterpret_cast<uintptr_t>(p) + bytes) & ~(HUGE - 1);
  if (b > a) madvise(reinterpret_cast<void*>(a), b - a, MADV_HUGEPAGE);
#endif
}

Scratch::Scratch(size_t bytes, bool zeros) : p_(nullptr), n_(bytes) {
  if (!bytes) return;
  if (bytes < HUGE) {  // small: from the heap
    p_ = std::aligned_alloc(64, (bytes + 63) & ~size_t(63));
    if (!p_) throw std::bad_alloc();
    if (zeros) std::memset(p_, 0, bytes);
  } else {
    n_ = (bytes + HUGE - 1) & ~(HUGE - 1);
    p_ = mmap(nullptr, n_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p_ == MAP_FAILED) throw std::bad_alloc();
    advise_huge(p_, n_);
  }
}
Scratch::~Scratch() {
  if (!p_) return;
  if (n_ < HUGE) std::free(p_);
  else munmap(p_, n_);
}

Range share(const int64_t* ptr, int64_t rows, int t, int n) {
  auto row_of = [&](int64_t entry) {  // first row that starts at or after this entry
    int64_t lo = 0, hi = rows;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (ptr[mid] < entry) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  };
  const int64_t entries = ptr[rows];
  if (entries == 0) return share(rows, t, n);
  return {t == 0 ? 0 : row_of(entries * t / n), t == n - 1 ? rows : row_of(entries * (t + 1) / n)};
}

int simd_level() {
  static const int level = [] {
    const char* s = std::getenv("EQTP_SIMD");
    const int cap = s ? std::atoi(s) : 4;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (cap >= 4 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      return 4;
    if (cap >= 3 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 3;
#endif
    (void)cap;
    return 1;
  }();
  return level;
}

}  // namespace eqtp

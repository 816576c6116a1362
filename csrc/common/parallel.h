// Threads and memory advice shared by the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace eqtp {

// Runs body(thread, threads, context) on `threads` OpenMP threads of the pool that torch uses; on the caller alone when
// threads <= 1 or in a forked child (a second thread would hang there: the pool's threads do not survive a fork).
void parallel(int threads, void (*body)(int thread, int threads, void* context), void* context);

template <class F>
inline void parallel(int threads, F& f) {
  parallel(threads, [](int t, int n, void* c) { (*static_cast<F*>(c))(t, n); }, &f);
}

// Asks for huge pages for a large block that is about to be written for the first time (page faults cost more than the
// kernel).
void advise_huge(void* p, size_t bytes);

// 64-byte aligned scratch memory. Without `zeros`, what it holds at first is not specified, and what is never touched
// costs nothing.
class Scratch {
 public:
  explicit Scratch(size_t bytes, bool zeros = true);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(p_);
  }

 private:
  void* p_;
  size_t n_;
};

// Rows [begin, end) of thread t of n: contiguous, about equal numbers of entries by the CSR offsets ptr [rows + 1].
// Serial and fixed, so results do not depend on timing.
struct Range { int64_t begin, end; };
Range share(const int64_t* ptr, int64_t rows, int t, int n);
static inline __attribute__((always_inline)) Range share(int64_t rows, int t, int n) {
  return {rows * t / n, rows * (t + 1) / n};
}

}  // namespace eqtp

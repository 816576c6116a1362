// Sums of rows over segments (the edges into each destination of a graph), and the CSR form of an index.
#pragma once
#include "common/parallel.h"
#include "common/simd.h"

namespace eqtp {

// out[n] = sum over t in [ptr[n], ptr[n + 1]) of x[order[t]]; x [e, c], rows x_stride apart, out [num, c]
template <class T>
struct SegmentArgs {
  int64_t e, num, c, x_stride;
  const int64_t *ptr, *order;
  const T* x;
  T* out;
  int threads;
};
template <class T>
SegmentArgs<T> segment_args(uintptr_t x, int64_t x_stride, uintptr_t ptr, uintptr_t order, int64_t e, int64_t num,
                            int64_t c, uintptr_t out, int threads) {
  const auto index = [](uintptr_t p) { return reinterpret_cast<const int64_t*>(p); };
  return {e,      num, c, x_stride, index(ptr), index(order), reinterpret_cast<const T*>(x), reinterpret_cast<T*>(out),
          threads};
}

#define EQTP_SEGMENT                               \
  void segment_sum_f32(const SegmentArgs<float>&); \
  void segment_sum_f64(const SegmentArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_SEGMENT)

#ifdef EQTP_SIMD
namespace EQTP_SIMD {

// Rows of c columns as whole vectors; the last vector of a row that is no multiple of one has `lanes` < W, and the
// others are 0.
template <class T>
static inline __attribute__((always_inline)) Vec<T> load(const T* p, int64_t lanes) {
  if (lanes >= Simd<T>::W) return load(p);
  Vec<T> v{};
  for (int l = 0; l < lanes; ++l) v[l] = p[l];
  return v;
}
template <class T>
static inline __attribute__((always_inline)) void store(T* p, Vec<T> v, int64_t lanes) {
  if (lanes >= Simd<T>::W) return store(p, v);
  for (int l = 0; l < lanes; ++l) p[l] = v[l];
}

// f(n, i, columns) for tiles of up to COLUMN_TILE vectors of columns of each segment n: i the first column. A tile of a
// row
// is read in one go, so that the hardware sees it coming, and the tile of all rows of a segment stays in the caches for
// the next time.
constexpr int COLUMN_TILE = 16;
template <class T, class F>
static inline void each_column_tile(const SegmentArgs<T>& a, F&& f) {
  constexpr int64_t columns = COLUMN_TILE * Simd<T>::W;
  auto body = [&](int thread, int count) {
    const Range r = share(a.ptr, a.num, thread, count);
    for (int64_t n = r.begin; n < r.end; ++n)
      for (int64_t i = 0; i < a.c; i += columns) f(n, i, a.c - i < columns ? a.c - i : columns);
  };
  parallel(a.threads, body);
}
// f(q, column, lanes) for each vector q of a tile
template <class T, class F>
static inline __attribute__((always_inline)) void each_vector(int64_t columns, F&& f) {
  constexpr int W = Simd<T>::W;
  int q = 0;
  for (; q < columns / W; ++q) f(q, q * W, W);
  if (columns % W) f(q, q * W, int(columns % W));
}

}  // namespace EQTP_SIMD
#endif

}  // namespace eqtp

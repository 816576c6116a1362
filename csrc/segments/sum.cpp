// Each destination's rows are added in the order of the CSR: no atomics, the same bits every time and for every number
// of threads.
#include "segments/sum.h"

#include "common/parallel.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T>
static void segment_sum(const SegmentArgs<T>& a) {
  constexpr int W = Simd<T>::W;
  advise_huge(a.out, size_t(a.num * a.c) * sizeof(T));
  auto body = [&](int thread, int count) {
    const Range r = share(a.ptr, a.num, thread, count);
    for (int64_t n = r.begin; n < r.end; ++n) {
      T* const out = a.out + n * a.c;  // [c]
      const int64_t first = a.ptr[n], last = a.ptr[n + 1];
      int64_t i = 0;
      for (; i + 4 * W <= a.c; i += 4 * W) {
        Vec<T> s[4]{};
        for (int64_t t = first; t < last; ++t) {
          const T* const x = a.x + a.order[t] * a.x_stride + i;
          for (int q = 0; q < 4; ++q) s[q] += load(x + q * W);
        }
        for (int q = 0; q < 4; ++q) store(out + i + q * W, s[q]);
      }
      for (; i + W <= a.c; i += W) {
        Vec<T> s{};
        for (int64_t t = first; t < last; ++t) s += load(a.x + a.order[t] * a.x_stride + i);
        store(out + i, s);
      }
      for (; i < a.c; ++i) {
        T s = 0;
        for (int64_t t = first; t < last; ++t) s += a.x[a.order[t] * a.x_stride + i];
        out[i] = s;
      }
    }
  };
  parallel(a.threads, body);
}
void segment_sum_f32(const SegmentArgs<float>& a) { segment_sum(a); }
void segment_sum_f64(const SegmentArgs<double>& a) { segment_sum(a); }

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <cstring>
#include <vector>

#include "common/module.h"

namespace eqtp {
using P = uintptr_t;

// CSR of index [n] with values in [0, num): ptr [num + 1] and order [n], stable. Returns the position of the first
// value out of range, or -1.
template <class I>
static int64_t build_csr(const I* index, int64_t n, int64_t num, int64_t* ptr, int64_t* order) {
  std::memset(ptr, 0, sizeof(int64_t) * size_t(num + 1));
  for (int64_t e = 0; e < n; ++e) {
    if (index[e] < 0 || index[e] >= num) return e;
    ++ptr[index[e] + 1];
  }
  for (int64_t i = 0; i < num; ++i) ptr[i + 1] += ptr[i];
  std::vector<int64_t> next(ptr, ptr + num);
  for (int64_t e = 0; e < n; ++e) order[next[size_t(index[e])]++] = e;
  return -1;
}
static int64_t csr(P index, bool is64, int64_t n, int64_t num, P ptr, P order) {
  pybind11::gil_scoped_release nogil;
  auto *p = reinterpret_cast<int64_t*>(ptr), *o = reinterpret_cast<int64_t*>(order);
  return is64 ? build_csr(reinterpret_cast<const int64_t*>(index), n, num, p, o)
              : build_csr(reinterpret_cast<const int32_t*>(index), n, num, p, o);
}

static void sum(P x, int64_t x_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P out, bool f64,
                int threads) {
  pybind11::gil_scoped_release nogil;
  if (f64) EQTP_PICK(segment_sum_f64)(segment_args<double>(x, x_stride, ptr, order, e, num, c, out, threads));
  else EQTP_PICK(segment_sum_f32)(segment_args<float>(x, x_stride, ptr, order, e, num, c, out, threads));
}

EQTP_BINDING(define_segment_sum) {
  m.def("csr", &csr);
  m.def("segment_sum", &sum);
}

}  // namespace eqtp
#endif

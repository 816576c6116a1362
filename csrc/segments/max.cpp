// A tile of columns goes down the rows of a segment and keeps the largest values and, beside them, how far down they
// stood.
#include "segments/max.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T>
static void segment_max(const MaxArgs<T>& args) {
  typedef typename Simd<T>::I I;
  const SegmentArgs<T>& a = args.segment;
  advise_huge(a.out, size_t(a.num * a.c) * sizeof(T));
  advise_huge(args.arg, size_t(a.num * a.c) * sizeof(int64_t));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    T* const out = a.out + n * a.c + i;  // [columns]
    int64_t* const arg = args.arg + n * a.c + i;  // [columns]
    const int64_t first = a.ptr[n], last = a.ptr[n + 1];
    if (first == last) {
      for (int64_t k = 0; k < columns; ++k) out[k] = 0, arg[k] = a.e;
      return;
    }
    Vec<T> m[COLUMN_TILE];
    I at[COLUMN_TILE];
    const T* x = a.x + a.order[first] * a.x_stride + i;
    each_vector<T>(columns, [&](int q, int k, int lanes) { m[q] = load(x + k, lanes), at[q] = I{}; });
    for (int64_t t = first + 1; t < last; ++t) {
      const I here = I{} + typename Simd<T>::Index(t - first);
      x = a.x + a.order[t] * a.x_stride + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        const Vec<T> v = load(x + k, lanes);
        const I taken = (v > m[q]) | ((v != v) & (m[q] == m[q]));
        m[q] = taken ? v : m[q];
        at[q] = taken ? here : at[q];
      });
    }
    each_vector<T>(columns, [&](int q, int k, int lanes) {
      store(out + k, m[q], lanes);
      for (int l = 0; l < lanes; ++l) arg[k + l] = a.order[first + at[q][l]];
    });
  });
}
void segment_max_f32(const MaxArgs<float>& a) { segment_max(a); }
void segment_max_f64(const MaxArgs<double>& a) { segment_max(a); }

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include "common/module.h"

namespace eqtp {
using P = uintptr_t;

template <class T>
static MaxArgs<T> arguments(P x, int64_t x_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P out, P arg,
                            int threads) {
  return {segment_args<T>(x, x_stride, ptr, order, e, num, c, out, threads), reinterpret_cast<int64_t*>(arg)};
}
static void max(P x, int64_t x_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P out, P arg, bool f64,
                int threads) {
  pybind11::gil_scoped_release nogil;
  if (f64) EQTP_PICK(segment_max_f64)(arguments<double>(x, x_stride, ptr, order, e, num, c, out, arg, threads));
  else EQTP_PICK(segment_max_f32)(arguments<float>(x, x_stride, ptr, order, e, num, c, out, arg, threads));
}

EQTP_BINDING(define_segment_max) { m.def("segment_max", &max); }

}  // namespace eqtp
#endif

// A tile of columns goes down the rows of a segment two or three times: they are still in the caches after the first.
#include "segments/softmax.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int degree = 7, mantissa = 23, bias = 127;
  static constexpr float lowest = -87.0f, magic = 12582912.0f, high = 0.693359375f,
                         low = -2.12194440e-4f;  // high + low = ln 2
};
template <>
struct Exponential<double> {
  static constexpr int degree = 13, mantissa = 52, bias = 1023;
  static constexpr double lowest = -708.0, magic = 6755399441055744.0, high = 6.93147180369123816490e-01,
                          low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 0: 2^k times the Taylor series of x - k ln 2. Below `lowest`, where the result is about to lose its
// precision, 0; NaN stays NaN.
template <class T>
static inline __attribute__((always_inline)) Vec<T> exponential(Vec<T> x) {
  using E = Exponential<T>;
  typedef typename Simd<T>::I I;
  const I zero = x < E::lowest;
  x = zero ? Vec<T>{} : x;
  const Vec<T> shifted =
      x * T(1.4426950408889634074) + E::magic;  // the last bits of its mantissa: the nearest integer to x / ln 2
  const Vec<T> k = shifted - E::magic, r = (x - k * E::high) - k * E::low;
  Vec<T> p = Vec<T>{} + T(1);
#pragma GCC unroll 16
  for (int n = E::degree; n > 0; --n) p = p * r * (T(1) / T(n)) + T(1);
  const I scale =
      (reinterpret_cast<const I&>(shifted) << E::mantissa) + (I{} + (typename Simd<T>::Index(E::bias) << E::mantissa));
  return zero ? Vec<T>{} : p * reinterpret_cast<const Vec<T>&>(scale);
}

template <class T>
static void segment_softmax(const SegmentArgs<T>& a) {
  advise_huge(a.out, size_t(a.e * a.c) * sizeof(T));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    const T infinity = T(__builtin_inf());
    Vec<T> m[COLUMN_TILE], sum[COLUMN_TILE];
    each_vector<T>(columns, [&](int q, int, int) { m[q] = Vec<T>{} - infinity, sum[q] = Vec<T>{}; });
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T* const x = a.x + a.order[t] * a.x_stride + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        const Vec<T> v = load(x + k, lanes);
        m[q] = (v > m[q]) | (v != v) ? v : m[q];  // NaN: nothing is larger
      });
    }
    each_vector<T>(columns, [&](int q, int, int) { m[q] = m[q] == -infinity ? Vec<T>{} : m[q]; });  // all are masked
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T* const x = a.x + a.order[t] * a.x_stride + i;
      T* const out = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        const Vec<T> p = exponential<T>(load(x + k, lanes) - m[q]);
        store(out + k, p, lanes);
        sum[q] += p;
      });
    }
    each_vector<T>(columns, [&](int q, int, int) { sum[q] = sum[q] == 0 ? Vec<T>{} : 1 / sum[q]; });
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      T* const out = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) { store(out + k, load(out + k, lanes) * sum[q], lanes); });
    }
  });
}
void segment_softmax_f32(const SegmentArgs<float>& a) { segment_softmax(a); }
void segment_softmax_f64(const SegmentArgs<double>& a) { segment_softmax(a); }

template <class T>
static void segment_softmax_bwd(const SoftmaxBwdArgs<T>& args) {
  const SegmentArgs<T>& a = args.segment;
  advise_huge(a.out, size_t(a.e * a.c) * sizeof(T));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    Vec<T> sum[COLUMN_TILE]{};
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T *const g = a.x + a.order[t] * a.x_stride + i, *const y = args.y + a.order[t] * args.y_stride + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) { sum[q] += load(y + k, lanes) * load(g + k, lanes); });
    }
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T *const g = a.x + a.order[t] * a.x_stride + i, *const y = args.y + a.order[t] * args.y_stride + i;
      T* const gx = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        store(gx + k, load(y + k, lanes) * (load(g + k, lanes) - sum[q]), lanes);
      });
    }
  });
}
void segment_softmax_bwd_f32(const SoftmaxBwdArgs<float>& a) { segment_softmax_bwd(a); }
void segment_softmax_bwd_f64(const SoftmaxBwdArgs<double>& a) { segment_softmax_bwd(a); }

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include "common/module.h"

namespace eqtp {
using P = uintptr_t;

static void softmax(P x, int64_t x_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P out, bool f64,
                    int threads) {
  pybind11::gil_scoped_release nogil;
  if (f64) EQTP_PICK(segment_softmax_f64)(segment_args<double>(x, x_stride, ptr, order, e, num, c, out, threads));
  else EQTP_PICK(segment_softmax_f32)(segment_args<float>(x, x_stride, ptr, order, e, num, c, out, threads));
}
static void softmax_bwd(P g, int64_t g_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P gx, P y,
                        int64_t y_stride, bool f64, int threads) {
  pybind11::gil_scoped_release nogil;
  const auto run = [=](auto* kernel, const auto* rows, auto segment) { kernel({segment, y_stride, rows}); };
  if (f64)
    run(EQTP_PICK(segment_softmax_bwd_f64), reinterpret_cast<const double*>(y),
        segment_args<double>(g, g_stride, ptr, order, e, num, c, gx, threads));
  else
    run(EQTP_PICK(segment_softmax_bwd_f32), reinterpret_cast<const float*>(y),
        segment_args<float>(g, g_stride, ptr, order, e, num, c, gx, threads));
}

EQTP_BINDING(define_segment_softmax) {
  m.def("segment_softmax", &softmax);
  m.def("segment_softmax_bwd", &softmax_bwd);
}

}  // namespace eqtp
#endif

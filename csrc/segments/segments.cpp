// A tile of columns goes down the rows of a segment, for a softmax two or three times: they are still in the caches
// after the first. Each destination's rows are taken in the order of the CSR, in blocks where they are many
// (common/long_sums.h): no atomics, the same bits every time and for every number of threads.
#include "segments/segments.h"

#ifdef EQTP_SIMD
#include "common/long_sums.h"
#include "common/parallel.h"

namespace eqtp::EQTP_SIMD {

// ----------------------------------------------------------------------------------------------------------------
//   columns
// Rows of c columns as whole vectors; the last vector of a row that is no multiple of one has `lanes` < W, and the
// others are 0.
template <class T>
EQTP_INLINE Vec<T> load(const T* p, int lanes) {
  return lanes >= Simd<T>::W ? load(p) : load_part(p, lanes);
}
template <class T>
EQTP_INLINE void store(T* p, Vec<T> v, int lanes) {
  if (lanes >= Simd<T>::W) store(p, v);
  else store_part(p, v, lanes);
}

// f(n, i, columns) for tiles of up to COLUMN_TILE vectors of columns of each segment n: i the first column. A tile of a
// row is read in one go, so that the hardware sees it coming, and the tile of all rows of a segment stays in the caches
// for the next time.
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
template <class T>
EQTP_INLINE int vectors_of(int64_t columns) {
  return int((columns + Simd<T>::W - 1) / Simd<T>::W);
}
// f(q, column, lanes) for each vector q of a tile
template <class T, class F>
static inline __attribute__((always_inline)) void each_vector(int64_t columns, F&& f) {
  constexpr int W = Simd<T>::W;
  int q = 0;
  for (; q < columns / W; ++q) f(q, q * W, W);
  if (columns % W) f(q, q * W, int(columns % W));
}

// ----------------------------------------------------------------------------------------------------------------
//   sum
template <class T>
void segment_sum(const SegmentArgs<T>& a) {
  constexpr int W = Simd<T>::W;
  advise_huge(a.out, size_t(a.num * a.c) * sizeof(T));
  auto body = [&](int thread, int count) {
    const Range r = share(a.ptr, a.num, thread, count);
    for (int64_t n = r.begin; n < r.end; ++n) {
      T* const out = a.out + n * a.c;  // [c]
      const int64_t first = a.ptr[n], last = a.ptr[n + 1];
      int64_t i = 0;
      for (; i + 4 * W <= a.c; i += 4 * W) {
        Vec<T> s[4];
        sum_rows<T, 4>(first, last, s, 4, [&](int64_t t) {
          const T* const x = a.x + a.order[t] * a.x_stride + i;
          for (int q = 0; q < 4; ++q) s[q] += load(x + q * W);
        });
        for (int q = 0; q < 4; ++q) store(out + i + q * W, s[q]);
      }
      for (; i + W <= a.c; i += W) {
        Vec<T> s;
        sum_rows<T, 1>(first, last, &s, 1, [&](int64_t t) { s += load(a.x + a.order[t] * a.x_stride + i); });
        store(out + i, s);
      }
      for (; i < a.c; ++i) {
        T s;
        sum_rows<T, 1>(first, last, &s, 1, [&](int64_t t) { s += a.x[a.order[t] * a.x_stride + i]; });
        out[i] = s;
      }
    }
  };
  parallel(a.threads, body);
}
EQTP_INSTANTIATE_KERNEL(segment_sum, SegmentArgs);

// ----------------------------------------------------------------------------------------------------------------
//   max
// Keeps the largest values and, beside them, how far down they stood
template <class T>
void segment_max(const SegmentArgs<T>& a) {
  typedef typename Simd<T>::I I;
  advise_huge(a.out, size_t(a.num * a.c) * sizeof(T));
  advise_huge(a.arg, size_t(a.num * a.c) * sizeof(int64_t));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    T* const out = a.out + n * a.c + i;  // [columns]
    int64_t* const arg = a.arg + n * a.c + i;  // [columns]
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
EQTP_INSTANTIATE_KERNEL(segment_max, SegmentArgs);

// ----------------------------------------------------------------------------------------------------------------
//   softmax
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
void segment_softmax(const SegmentArgs<T>& a) {
  advise_huge(a.out, size_t(a.e * a.c) * sizeof(T));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    const T infinity = T(__builtin_inf());
    Vec<T> m[COLUMN_TILE], sum[COLUMN_TILE];
    each_vector<T>(columns, [&](int q, int, int) { m[q] = Vec<T>{} - infinity; });
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T* const x = a.x + a.order[t] * a.x_stride + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        const Vec<T> v = load(x + k, lanes);
        m[q] = (v > m[q]) | (v != v) ? v : m[q];  // NaN: nothing is larger
      });
    }
    each_vector<T>(columns, [&](int q, int, int) { m[q] = m[q] == -infinity ? Vec<T>{} : m[q]; });  // all are masked
    sum_rows<T, COLUMN_TILE>(a.ptr[n], a.ptr[n + 1], sum, vectors_of<T>(columns), [&](int64_t t) {
      const T* const x = a.x + a.order[t] * a.x_stride + i;
      T* const out = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        const Vec<T> p = exponential<T>(load(x + k, lanes) - m[q]);
        store(out + k, p, lanes);
        sum[q] += p;
      });
    });
    each_vector<T>(columns, [&](int q, int, int) { sum[q] = sum[q] == 0 ? Vec<T>{} : 1 / sum[q]; });
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      T* const out = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) { store(out + k, load(out + k, lanes) * sum[q], lanes); });
    }
  });
}
EQTP_INSTANTIATE_KERNEL(segment_softmax, SegmentArgs);

template <class T>
void segment_softmax_bwd(const SegmentArgs<T>& a) {
  advise_huge(a.out, size_t(a.e * a.c) * sizeof(T));
  each_column_tile(a, [&](int64_t n, int64_t i, int64_t columns) {
    Vec<T> sum[COLUMN_TILE];
    sum_rows<T, COLUMN_TILE>(a.ptr[n], a.ptr[n + 1], sum, vectors_of<T>(columns), [&](int64_t t) {
      const T *const g = a.x + a.order[t] * a.x_stride + i, *const y = a.y + a.order[t] * a.y_stride + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) { sum[q] += load(y + k, lanes) * load(g + k, lanes); });
    });
    for (int64_t t = a.ptr[n]; t < a.ptr[n + 1]; ++t) {
      const T *const g = a.x + a.order[t] * a.x_stride + i, *const y = a.y + a.order[t] * a.y_stride + i;
      T* const gx = a.out + a.order[t] * a.c + i;
      each_vector<T>(columns, [&](int q, int k, int lanes) {
        store(gx + k, load(y + k, lanes) * (load(g + k, lanes) - sum[q]), lanes);
      });
    }
  });
}
EQTP_INSTANTIATE_KERNEL(segment_softmax_bwd, SegmentArgs);

}  // namespace eqtp::EQTP_SIMD

#else  // ---- bindings
#include "common/module.h"
#include "segments/graph.h"

namespace eqtp {

using P = uintptr_t;  // address of a tensor's first element; 0: absent

static int64_t edges(P src, P dst, bool is64, P valid, int64_t e, int64_t num_src, int64_t num_dst, P to_src,
                     P to_dst) {
  const auto copy = [&](auto type) {
    using I = const decltype(type)*;
    return copy_edges(reinterpret_cast<I>(src), reinterpret_cast<I>(dst), reinterpret_cast<const bool*>(valid), e,
                      num_src, num_dst, reinterpret_cast<int64_t*>(to_src), reinterpret_cast<int64_t*>(to_dst));
  };
  return is64 ? copy(int64_t()) : copy(int32_t());
}

static void csr(P index, int64_t n, int64_t num, P ptr, P order) {
  sort_by(reinterpret_cast<const int64_t*>(index), n, num, reinterpret_cast<int64_t*>(ptr),
          reinterpret_cast<int64_t*>(order));
}

// The operands as Python has them: what SegmentArgs says, by address
struct SegmentCall {
  P x;
  int64_t x_stride;
  P ptr, order;
  int64_t e, num, c;
  P out, arg, y;
  int64_t y_stride;
  bool f64;
  int threads;

  template <class T>
  SegmentArgs<T> args() const {
    return {.x = reinterpret_cast<const T*>(x),
            .x_stride = x_stride,
            .ptr = reinterpret_cast<const int64_t*>(ptr),
            .order = reinterpret_cast<const int64_t*>(order),
            .e = e,
            .num = num,
            .c = c,
            .out = reinterpret_cast<T*>(out),
            .arg = reinterpret_cast<int64_t*>(arg),
            .y = reinterpret_cast<const T*>(y),
            .y_stride = y_stride,
            .threads = threads};
  }
};

static void sum(const SegmentCall& call) {
  with_real(call.f64, [&](auto real) { EQTP_RUN(segment_sum, call.args<decltype(real)>()); });
}
static void max(const SegmentCall& call) {
  with_real(call.f64, [&](auto real) { EQTP_RUN(segment_max, call.args<decltype(real)>()); });
}
static void softmax(const SegmentCall& call) {
  with_real(call.f64, [&](auto real) { EQTP_RUN(segment_softmax, call.args<decltype(real)>()); });
}
static void softmax_bwd(const SegmentCall& call) {
  with_real(call.f64, [&](auto real) { EQTP_RUN(segment_softmax_bwd, call.args<decltype(real)>()); });
}

// A kernel as Python calls it
template <void run(const SegmentCall&)>
static void bind(P x, int64_t x_stride, P ptr, P order, int64_t e, int64_t num, int64_t c, P out, P arg, P y,
                 int64_t y_stride, bool f64, int threads) {
  run({.x = x,
       .x_stride = x_stride,
       .ptr = ptr,
       .order = order,
       .e = e,
       .num = num,
       .c = c,
       .out = out,
       .arg = arg,
       .y = y,
       .y_stride = y_stride,
       .f64 = f64,
       .threads = threads});
}

EQTP_BINDING(define_segments) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_lock;
  m.def("edges", &edges, without_lock);
  m.def("csr", &csr, without_lock);
  m.def("segment_sum", &bind<sum>, without_lock);
  m.def("segment_max", &bind<max>, without_lock);
  m.def("segment_softmax", &bind<softmax>, without_lock);
  m.def("segment_softmax_bwd", &bind<softmax_bwd>, without_lock);
}

}  // namespace eqtp
#endif

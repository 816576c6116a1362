// Lanes are samples. For a tile of W samples: components of every input to orders on the rows of the octant (sums over
// l); then, point by point, the values at its eight images (sums over m, butterflies) and the products there, in
// registers; row by row, and then for all rows, back the same way. All that a tile needs stays in the caches. The sums
// over l, and those on the way back, are small matrices times vectors of lanes (`combine`).
//
// Floor: eqtp.math.sphere.folded_flops over the rate of multiply-adds from degree 3 on; below, the bytes of the
// operands.
#include "signals/signals.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

constexpr int RESULTS = EQTP_SIMD_BYTES == 64 ? 10 : 6;  // pairs of sums in registers

template <int N>
struct Constant {
  static constexpr int value = N;
};
// f(Constant<n>): a number known at run time, 1 .. RESULTS, as a constant
template <class F>
EQTP_INLINE void with(int n, const F& f) {
  switch (n) {
    case 1: return f(Constant<1>());
    case 2: return f(Constant<2>());
    case 3: return f(Constant<3>());
    case 4: return f(Constant<4>());
    case 5: return f(Constant<5>());
    case 6: return f(Constant<6>());
  }
  if constexpr (RESULTS > 6) {
    switch (n) {
      case 7: return f(Constant<7>());
      case 8: return f(Constant<8>());
      case 9: return f(Constant<9>());
      case 10: return f(Constant<10>());
    }
  }
}
// f(begin, Constant<length>) for pieces of 0 .. n of about equal length
template <class F>
EQTP_INLINE void pieces(int n, const F& f) {
  const int count = (n + RESULTS - 1) / RESULTS;
  for (int i = 0, begin = 0; i < count; ++i) {
    const int end = n * (i + 1) / count;
    with(end - begin, [&](auto length) { f(begin, length); });
    begin = end;
  }
}

// Sums over i < n of table[i, j] in[i], for j < J; `in` is read and `out` written in steps, twice (PAIR), a distance
// apart. STEP: out_step, if known.
template <int J, bool PAIR, int STEP, class T>
EQTP_INLINE void combine(int n, const T* table, int table_step, const Vec<T>* in, int in_step, int in_pair, Vec<T>* out,
                         int out_step, int out_pair) {
  Vec<T> a[J], b[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) a[j] = b[j] = Vec<T>{};
  for (int i = 0; i < n; ++i, table += table_step, in += in_step) {
    const Vec<T> u = in[0], v = PAIR ? in[in_pair] : u;
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      a[j] += table[j] * u;
      if (PAIR) b[j] += table[j] * v;
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) {
    Vec<T>* const to = out + j * (STEP ? STEP : out_step);
    to[0] = a[j];
    if (PAIR) to[out_pair] = b[j];
  }
}

// Hadamard transform over the eight kinds, or images, of a point
template <class T>
EQTP_INLINE void butterflies(Vec<T>* v) {
#pragma GCC unroll 3
  for (int d = 1; d < 8; d *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (!(i & d)) {
        const Vec<T> a = v[i], b = v[i + d];
        v[i] = a + b, v[i + d] = a - b;
      }
}

template <class T>
struct SignalsTile {
  const SignalsArgs<T>& a;
  Vec<T>* blocks;  // [2, M, 2, K] of the input or output at hand
  Vec<T>** orders;  // [fields + outputs] of each [R, 2, 2, M / 2, 2]
  Vec<T>* values;  // [fields, Q, 8] at the images of the points of the row at hand
  Vec<T>* products;  // [Q, 8] of the output at hand
};
EQTP_INLINE int even(int lmax) { return lmax + 1 + (lmax + 1) % 2; }  // M
// Degrees l >= m with (l - m) mod 2 = y
EQTP_INLINE int degrees(int lmax, int m, int y) { return lmax - m - y < 0 ? 0 : (lmax - m - y) / 2 + 1; }

// blocks -> orders on all rows
template <class T>
static void legendre(const Transform<T>& t, const T* table, int R, const Vec<T>* blocks, Vec<T>* orders) {
  const int M = even(t.lmax), K = t.lmax / 2 + 1;
  pieces(R, [&](int r, auto J) {
    for (int m = 0; m <= t.lmax; ++m)
      for (int y = 0; y < 2; ++y) {
        const int n = degrees(t.lmax, m, y), at = (2 * m + y) * K;
        Vec<T>* const out = orders + r * 4 * M + m % 2 * M + m / 2 * 2 + y;
        if (m) combine<J.value, true, 0, T>(n, table + at * R + r, R, blocks + at, 1, 2 * M * K, out, 4 * M, 2 * M);
        else combine<J.value, false, 0, T>(n, table + at * R + r, R, blocks + at, 1, 0, out, 4 * M, 0);
      }
  });
}

// Orders on a row -> values [Q, 8] at the images of its points. WHICH: as in `legendre`; a derivative stands at another
// y or x than what it is made from. LMAX: the degree, if it has code of its own.
template <int WHICH, int LMAX, class T>
static void azimuth(const Transform<T>& t, int Q, const Vec<T>* orders, Vec<T>* values) {
  const int lmax = LMAX < 0 ? t.lmax : LMAX, M = even(lmax);
  constexpr int flip = WHICH == 2 ? 4 : WHICH;
  const T* const table = WHICH == 2 ? t.turned : t.azimuth;
  for (int c = 0; c < Q; ++c) {
    Vec<T> v[8];
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x)
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) {
        Vec<T> a{}, b{};
#pragma GCC unroll 8
        for (int m = x && !p ? 2 : p; m <= lmax; m += 2) {  // no sine of order 0
          const T k = table[(x * M + m) * Q + c];
          const Vec<T>* const in = orders + (x * 2 + p) * M + m - p;
          a += k * in[0], b += k * in[1];
        }
        const int kind = (4 * x + 2 * p) ^ flip;
        v[kind] = a, v[kind ^ 1] = b;
      }
    butterflies<T>(v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) values[c * 8 + i] = v[i];
  }
}
template <int WHICH, class T>
EQTP_INLINE void azimuth(const Transform<T>& t, int Q, const Vec<T>* orders, Vec<T>* values) {
  switch (t.lmax) {
    case 1: return azimuth<WHICH, 1>(t, Q, orders, values);
    case 2: return azimuth<WHICH, 2>(t, Q, orders, values);
    case 3: return azimuth<WHICH, 3>(t, Q, orders, values);
    case 4: return azimuth<WHICH, 4>(t, Q, orders, values);
    case 5: return azimuth<WHICH, 5>(t, Q, orders, values);
    case 6: return azimuth<WHICH, 6>(t, Q, orders, values);
    case 8: return azimuth<WHICH, 8>(t, Q, orders, values);
    default: return azimuth<WHICH, -1>(t, Q, orders, values);
  }
}

// A coefficient times fields (FACTORS of them, or more) at the points of a row, added to what is there (ADD), and
// (LAST) taken to kinds
template <int FACTORS, bool ADD, bool LAST, class T>
static void multiply(int Q, T coefficient, const Vec<T>* values, const int32_t* factor, int factors, Vec<T>* products) {
  for (int c = 0; c < Q; ++c) {
    Vec<T> v[8];
    const Vec<T>* f = values + (factor[0] * Q + c) * 8;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = coefficient * f[i];
    for (int n = 1; n < FACTORS || n < factors; ++n) {
      f = values + (factor[n] * Q + c) * 8;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) v[i] *= f[i];
      if (FACTORS == 2) break;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (ADD) v[i] += products[c * 8 + i];
    if (LAST) butterflies<T>(v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) products[c * 8 + i] = v[i];
  }
}

// Sum of the terms of output o at the points of a row, as kinds
template <class T>
static void multiply(const SignalsArgs<T>& a, int o, const Vec<T>* values, Vec<T>* products) {
  const int first = a.term_ptr[o], end = a.term_ptr[o + 1];
  if (first == end)
    for (int i = 0; i < a.columns * 8; ++i) products[i] = Vec<T>{};
  for (int t = first; t < end; ++t) {
    const int32_t* const factor = a.factor + a.factor_ptr[t];
    const int factors = a.factor_ptr[t + 1] - a.factor_ptr[t];
    const auto run = [&](auto number) {
      constexpr int FACTORS = decltype(number)::value;
      if (t == first && t + 1 == end)
        multiply<FACTORS, false, true>(a.columns, a.coefficient[t], values, factor, factors, products);
      else if (t == first)
        multiply<FACTORS, false, false>(a.columns, a.coefficient[t], values, factor, factors, products);
      else if (t + 1 == end)
        multiply<FACTORS, true, true>(a.columns, a.coefficient[t], values, factor, factors, products);
      else multiply<FACTORS, true, false>(a.columns, a.coefficient[t], values, factor, factors, products);
    };
    if (factors == 2) run(Constant<2>());
    else run(Constant<1>());
  }
}

// Products [Q, 8] by kind -> orders on the row
template <class T>
static void azimuth_back(const Transform<T>& t, int Q, const Vec<T>* products, Vec<T>* orders) {
  const int M = even(t.lmax);
  for (int p = 0; p < 2 && p <= t.lmax; ++p)
    pieces((t.lmax - p) / 2 + 1, [&](int i, auto J) {
      for (int x = 0; x < 2; ++x) {
        const T* const table = t.back + (x * 2 + p) * Q * (M / 2) + i;
        combine<J.value, true, 2, T>(Q, table, M / 2, products + 4 * x + 2 * p, 8, 1, orders + (x * 2 + p) * M + 2 * i,
                                     2, 1);
      }
    });
}

// Orders on all rows -> blocks
template <class T>
static void legendre_back(const Transform<T>& t, int R, const Vec<T>* orders, Vec<T>* blocks) {
  const int M = even(t.lmax), K = t.lmax / 2 + 1;
  for (int m = 0; m <= t.lmax; ++m)
    for (int y = 0; y < 2; ++y)
      pieces(degrees(t.lmax, m, y), [&](int k, auto J) {
        const T* const table = t.projection + (2 * m + y) * R * K + k;
        const Vec<T>* const in = orders + m % 2 * M + m / 2 * 2 + y;
        Vec<T>* const out = blocks + (2 * m + y) * K + k;
        if (m) combine<J.value, true, 1, T>(R, table, K, in, 4 * M, 2 * M, out, 1, 2 * M * K);
        else combine<J.value, false, 1, T>(R, table, K, in, 4 * M, 0, out, 1, 0);
      });
}

template <class T>
static void run_tile(const SignalsTile<T>& tile, int64_t z, int count) {
  const SignalsArgs<T>& a = tile.a;
  const int R = a.rows, Q = a.columns;
  for (int f = 0, read = -1; f < a.fields; ++f) {
    const int i = a.field[2 * f], which = a.field[2 * f + 1];
    if (i != read) read_samples(a.x[i], a.count_c, z, count, a.in[i].place, tile.blocks), read = i;
    legendre(a.in[i], a.in[i].legendre[which], R, tile.blocks, tile.orders[f]);
  }
  for (int r = 0; r < R; ++r) {
    for (int f = 0; f < a.fields; ++f) {
      const Transform<T>& t = a.in[a.field[2 * f]];
      const Vec<T>* const orders = tile.orders[f] + r * 4 * even(t.lmax);
      switch (a.field[2 * f + 1]) {
        case 0: azimuth<0>(t, Q, orders, tile.values + f * Q * 8); break;
        case 1: azimuth<1>(t, Q, orders, tile.values + f * Q * 8); break;
        default: azimuth<2>(t, Q, orders, tile.values + f * Q * 8);
      }
    }
    for (int o = 0; o < a.outputs; ++o) {
      multiply(a, o, tile.values, tile.products);
      azimuth_back(a.out[o], Q, tile.products, tile.orders[a.fields + o] + r * 4 * even(a.out[o].lmax));
    }
  }
  for (int o = 0; o < a.outputs; ++o) {
    legendre_back(a.out[o], R, tile.orders[a.fields + o], tile.blocks);
    write_samples(a.y[o], a.count_c, z, count, a.out[o].place, tile.blocks);
  }
}

template <class T>
void signals(const SignalsArgs<T>& a) {
  int64_t blocks = 0, orders = 0;
  for (int i = 0; i < a.inputs + a.outputs; ++i) {
    const int lmax = (i < a.inputs ? a.in[i] : a.out[i - a.inputs]).lmax, size = 4 * even(lmax) * (lmax / 2 + 1);
    if (size > blocks) blocks = size;
  }
  const auto transform = [&](int n) -> const Transform<T>& {
    return n < a.fields ? a.in[a.field[2 * n]] : a.out[n - a.fields];
  };
  for (int n = 0; n < a.fields + a.outputs; ++n) orders += int64_t(a.rows) * 4 * even(transform(n).lmax);
  const int64_t values = (a.fields + 1) * a.columns * 8,
                pointers = (a.fields + a.outputs) * sizeof(Vec<T>*) / sizeof(Vec<T>) + 1;
  const auto make = [&](Vec<T>* work) {
    Vec<T>* const found = work + blocks + pointers;
    SignalsTile<T> tile{.a = a,
                        .blocks = work,
                        .orders = reinterpret_cast<Vec<T>**>(work + blocks),
                        .values = found,
                        .products = found + a.fields * a.columns * 8};
    work = found + values;
    for (int f = 0; f < a.fields + a.outputs; ++f) tile.orders[f] = work, work += a.rows * 4 * even(transform(f).lmax);
    return tile;
  };
  each_sample_tile(a.count_b * a.count_c, a.threads, blocks + pointers + values + orders, a.y, a.outputs, make,
                   [](const SignalsTile<T>& tile, int64_t z, int count) { run_tile(tile, z, count); });
}
EQTP_INSTANTIATE_KERNEL(signals, SignalsArgs);

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "common/module.h"
#include "common/precisions.h"
#include "common/sample_calls.h"

namespace py = pybind11;
namespace eqtp {

// Tables of one degree as eqtp/backends/native/signals.py hands them over: place, then legendre (3), azimuth, turned,
// back, projection
struct SignalTables {
  SignalTables(int lmax, std::vector<int32_t> place, const std::vector<std::vector<double>>& tables)
      : lmax(lmax), place(std::move(place)), tables(tables.begin(), tables.end()) {}
  template <class T>
  Transform<T> transform() const {
    return {.lmax = lmax,
            .place = place.data(),
            .legendre = {tables[0].data<T>(), tables[1].data<T>(), tables[2].data<T>()},
            .azimuth = tables[3].data<T>(),
            .turned = tables[4].data<T>(),
            .back = tables[5].data<T>(),
            .projection = tables[6].data<T>()};
  }
  int lmax;
  std::vector<int32_t> place;
  std::vector<BothPrecisions> tables;
};

struct SignalProgram {
  int rows, columns;
  std::vector<std::shared_ptr<SignalTables>> in, out;
  std::vector<int32_t> field, term_ptr;
  BothPrecisions coefficient;
  std::vector<int32_t> factor_ptr, factor;
};

template <class T>
static std::vector<Transform<T>> transforms(const std::vector<std::shared_ptr<SignalTables>>& of) {
  std::vector<Transform<T>> found;
  for (const auto& t : of) found.push_back(t->transform<T>());
  return found;
}
template <class T>
static void run(const SignalProgram& p, const std::vector<Operand>& x, const std::vector<Operand>& y, int64_t count_b,
                int64_t count_c, int threads) {
  const auto in = transforms<T>(p.in), out = transforms<T>(p.out);
  std::vector<Samples<T>> inputs, outputs;
  for (size_t i = 0; i < x.size(); ++i)
    inputs.push_back(samples<T>(x[i], count_b, count_c, int64_t(p.in[i]->place.size())));
  for (size_t o = 0; o < y.size(); ++o)
    outputs.push_back(samples<T>(y[o], count_b, count_c, int64_t(p.out[o]->place.size())));
  const SignalsArgs<T> a{.rows = p.rows,
                         .columns = p.columns,
                         .inputs = int(in.size()),
                         .outputs = int(out.size()),
                         .fields = int(p.field.size() / 2),
                         .in = in.data(),
                         .out = out.data(),
                         .field = p.field.data(),
                         .term_ptr = p.term_ptr.data(),
                         .coefficient = p.coefficient.data<T>(),
                         .factor_ptr = p.factor_ptr.data(),
                         .factor = p.factor.data(),
                         .x = inputs.data(),
                         .y = outputs.data(),
                         .count_b = count_b,
                         .count_c = count_c,
                         .threads = threads};
  EQTP_RUN(signals, a);
}

EQTP_BINDING(define_gaunt_tensor_product) {
  py::class_<SignalTables, std::shared_ptr<SignalTables>>(m, "SignalTables")
      .def(py::init<int, std::vector<int32_t>, const std::vector<std::vector<double>>&>());
  using Tables = std::vector<std::shared_ptr<SignalTables>>;
  using Ints = std::vector<int32_t>;
  py::class_<SignalProgram>(m, "SignalProgram")
      .def(py::init([](int rows, int columns, Tables in, Tables out, Ints field, Ints term_ptr,
                       std::vector<double> coefficient, Ints factor_ptr, Ints factor) {
        return SignalProgram{.rows = rows,
                             .columns = columns,
                             .in = std::move(in),
                             .out = std::move(out),
                             .field = std::move(field),
                             .term_ptr = std::move(term_ptr),
                             .coefficient = BothPrecisions(coefficient),
                             .factor_ptr = std::move(factor_ptr),
                             .factor = std::move(factor)};
      }));
  define_run<SignalProgram>(m, "signals");
}

}  // namespace eqtp
#endif
